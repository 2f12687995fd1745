"""shared.learning: 一致・予想・採点・進みぐあい。"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from shared import learning
from shared.learning import Case, grade, predict, reveal, same, self_test

EQUAL = [
    (1, 1.0),
    ([1, (2, 3)], ((1, [2, 3]))),
    (np.array([1.0, np.nan]), [1.0, float("nan")]),
    (torch.tensor([[1, 2]]), np.array([[1, 2]])),
    ({"a": [1]}, {"a": (1,)}),
    ("猫", "猫"),
    ({1, 2}, {2, 1}),
    (None, None),
    (float("inf"), float("inf")),
]
DIFFERENT = [
    (1, 2, "1 と 2"),
    ([1, 2], [1], "長さが 2 と 1"),
    ([1, [2, 3]], [1, [2, 4]], "[1][1]"),
    ({"a": 1}, {"b": 1}, "キー"),
    ("猫", "犬", "'猫' と '犬'"),
    (True, 1, "True と 1"),
    (float("nan"), 1.0, "nan"),
    (np.zeros((2, 3)), np.zeros((3, 2)), "長さ"),
    (1, "1", "'1'"),
]


@pytest.mark.parametrize(("a", "b"), EQUAL, ids=range(len(EQUAL)))
def test_same_accepts_equal(a: object, b: object, capsys: pytest.CaptureFixture[str]) -> None:
    same(a, b, what="二つ")
    assert "二つは" in capsys.readouterr().out


@pytest.mark.parametrize(("a", "b", "message"), DIFFERENT, ids=range(len(DIFFERENT)))
def test_same_rejects_different(a: object, b: object, message: str) -> None:
    with pytest.raises(AssertionError) as caught:
        same(a, b)
    assert message in str(caught.value)


def test_same_tolerance_is_absolute(capsys: pytest.CaptureFixture[str]) -> None:
    same([1000.0], [1000.5], atol=0.5)
    assert "1 個の値すべてが0.5 以内" in capsys.readouterr().out
    with pytest.raises(AssertionError):
        same([1000.0], [1000.51], atol=0.5)
    with pytest.raises(ValueError, match="atol"):
        same(1, 1, atol=-1)


def test_predict_and_reveal(capsys: pytest.CaptureFixture[str]) -> None:
    assert predict("") == ""
    assert predict("イ") == "イ"
    with pytest.raises(ValueError, match="choice"):
        predict("エ")
    reveal("", "ア")
    reveal("ア", "ア")
    reveal("イ", "ア")
    out = capsys.readouterr().out
    assert "答えは「ア」でした" in out
    assert "予想どおり" in out
    assert "予想は「イ」" in out


CASES = [
    Case((2, 3), 5),
    Case((0, 0), 0, edge="ゼロ", hint="足し算です"),
    Case((0.1, 0.2), 0.3, atol=1e-9),
]
ATTEMPTS = [
    (lambda a, b: a + b, True, "正解です(3 通り"),
    (lambda a, b: None, False, "まだ解かれていません"),
    (lambda a, b: a * b, False, "5 と 6"),
    (lambda a, b: a + b or None, False, "値が返っていません"),
    (lambda a, b: a + b if a or b else 1, False, "ヒント: 足し算です"),
    (lambda a, b: str(a + b), False, "型が str"),
    (lambda a: a, False, "例外 TypeError"),
]


@pytest.mark.parametrize(("attempt", "solved", "message"), ATTEMPTS, ids=range(len(ATTEMPTS)))
def test_grade(
    attempt: object, solved: bool, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    grade("2.3 演習 3", attempt, CASES)  # pyright: ignore
    out = capsys.readouterr().out
    assert message in out
    assert ("正解です" in out) is solved


def test_grade_reports_length_and_protects_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    case = Case(([3, 1],), [1, 3])

    def sort_in_place(values: list[int]) -> list[int]:
        values.sort()
        return values

    grade("x", sort_in_place, [case, case])
    assert case.args == ([3, 1],)
    grade("x", lambda values: [1], [case])
    out = capsys.readouterr().out
    assert "正解です(2 通り" in out
    assert "長さが 1 です(正しくは 2)" in out
    with pytest.raises(TypeError, match="function"):
        grade("x", 3, [case])  # pyright: ignore


def test_solved_exercises_and_explained_questions_are_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning, "PROGRESS", tmp_path / "my" / "progress.json")
    grade("2.3 演習 3", lambda a, b: a + b, CASES)
    assert not learning.PROGRESS.exists()  # 回帰テスト中は記録しない
    monkeypatch.delenv("GENAI_NOTES_STRICT")
    grade("2.3 演習 3", lambda a, b: a + b, CASES)
    grade("2.3 演習 3", lambda a, b: a + b, CASES)
    remaining = self_test("02", explained=(1, 3))
    assert json.loads(learning.PROGRESS.read_text(encoding="utf-8")) == {
        "exercises": ["2.3 演習 3"],
        "explained": ["02-1", "02-3"],
    }
    assert remaining == [2, 4, 5, 6, 7, 8, 9, 10]
    line = next(line for line in learning.progress().splitlines() if line.startswith("02"))
    assert line.split()[1:3] == ["1", "/"]
    assert line.split()[4:6] == ["2", "/"]
    assert line.split()[6] == "10"
    learning.PROGRESS.write_text("{壊れた", encoding="utf-8")
    assert learning.progress()


def test_self_test_rejects_bad_input() -> None:
    with pytest.raises(ValueError, match="chapter"):
        self_test("99")
    with pytest.raises(ValueError, match="explained"):
        self_test("02", explained=(11,))
