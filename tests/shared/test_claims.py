"""shared.claims: 台帳の読み書きと判定。"""

import sys
from pathlib import Path
from types import ModuleType

import pytest

from shared import claims

LEDGER = """# 先頭の注釈は残る

[[claim]]
id = "2.9-test"
paper = "someone2020"
where = "Table 1"
statement = "大きいほど | よい"
paper_value = "0.5"
ours = "割合"
bound = ">= 0.5"  # 測る前に決めた
measure = "fake_measurements:run"
"""


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """仮の台帳と、0.5, 0.6, 0.7, ... を返す測定。"""
    (tmp_path / "chapter02").mkdir()
    path = tmp_path / "chapter02" / "claims.toml"
    path.write_text(LEDGER, encoding="utf-8")
    (tmp_path / "README.md").write_text(f"前\n{claims.BEGIN}\n{claims.END}\n後\n", encoding="utf-8")
    module = ModuleType("fake_measurements")
    module.run = lambda seed: 0.5 + seed / 10  # pyright: ignore
    monkeypatch.setitem(sys.modules, "fake_measurements", module)
    monkeypatch.setattr(claims, "ROOT", tmp_path)
    return path


@pytest.mark.parametrize(
    ("bound", "value", "expected"),
    [
        (">= 0.5", 0.5, True), (">= 0.5", 0.499, False), ("<= 0.5", 0.5, True),
        ("<= 0.5", 0.501, False), ("> 0.5", 0.5, False), ("> 0.5", 0.51, True),
        ("< -1", -1.0, False), ("< -1", -1.1, True), ("<= 1e-3", 0.001, True),
        (">= 0", float("nan"), False), ("<= 0", float("nan"), False),
    ],
)  # fmt: skip
def test_satisfies(bound: str, value: float, expected: bool) -> None:
    assert claims.satisfies(bound, value) is expected


@pytest.mark.parametrize("bound", ["0.5", "== 0.5", ">= ", "about 3", ">= 1 or < 0"])
def test_unreadable_bound(bound: str) -> None:
    with pytest.raises(ValueError, match="bound"):
        claims.satisfies(bound, 1.0)


def test_measure_writes_values_and_keeps_the_bound(ledger: Path) -> None:
    claim = claims.measure("2.9-test", 3)
    assert claim["values"] == [0.5, 0.6, 0.7]
    assert claim["seeds"] == [0, 1, 2]
    assert claim["holds"] is True
    text = ledger.read_text(encoding="utf-8")
    assert text.startswith(LEDGER)
    assert [p.name for p in ledger.parent.iterdir()] == ["claims.toml"]


def test_every_seed_must_satisfy_the_bound(ledger: Path) -> None:
    ledger.write_text(LEDGER.replace(">= 0.5", ">= 0.55"), encoding="utf-8")
    assert claims.measure("2.9-test", 3)["holds"] is False


def test_too_few_seeds_or_bad_values_change_nothing(
    ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="seeds"):
        claims.measure("2.9-test", 2)
    monkeypatch.setattr(sys.modules["fake_measurements"], "run", lambda seed: float("nan"))
    with pytest.raises(ValueError, match="シード 0"):
        claims.measure("2.9-test", 3)
    assert ledger.read_text(encoding="utf-8") == LEDGER


def test_check_says_the_verdict(ledger: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="まだ測られていません"):
        claims.check("2.9-test", 0.6)
    claims.measure("2.9-test", 3)
    capsys.readouterr()
    claims.check("2.9-test", 0.9)
    assert capsys.readouterr().out == "主張 2.9-test(基準 >= 0.5): 成り立つ。\n"


def test_check_raises_under_regression_and_explains_to_readers(
    ledger: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    claims.measure("2.9-test", 3)
    with pytest.raises(AssertionError, match="判定が台帳と違います"):
        claims.check("2.9-test", 0.1)
    monkeypatch.delenv("GENAI_NOTES_STRICT")
    claims.check("2.9-test", 0.1)
    out = capsys.readouterr().out
    assert "今回: この規模では成り立たない(測定値 0.1)" in out
    assert "カーネルを再起動" in out


def test_unknown_claim_names_the_known_ones(ledger: Path) -> None:
    with pytest.raises(ValueError, match=r"'2.9-typo'.*2\.9-test"):
        claims.find("2.9-typo")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LEDGER.replace('where = "Table 1"\n', ""), "where"),
        (LEDGER + LEDGER, "重なって"),
        (LEDGER.replace(">= 0.5", "about 0.5"), "bound"),
    ],
)
def test_bad_ledger(ledger: Path, text: str, message: str) -> None:
    ledger.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        claims.load()


def test_readme_table(ledger: Path, capsys: pytest.CaptureFixture[str]) -> None:
    readme = claims.ROOT / "README.md"
    assert claims.main(["--check"]) == 1
    assert claims.main([]) == 0
    assert claims.main(["--check"]) == 0
    text = readme.read_text(encoding="utf-8")
    assert "大きいほど \\| よい" in text
    assert "未測定" in text
    claims.measure("2.9-test", 3)
    assert claims.main(["--check"]) == 1
    assert claims.main(["--measure", "2.9-typo"]) == 2
    assert claims.main(["02"]) == 0
    assert "2.9-test: 成り立つ >= 0.5(測定値 0.5, 0.6, 0.7)" in capsys.readouterr().out
    with pytest.raises(ValueError, match="README"):
        claims.refreshed_readme("印がない")


def test_the_real_ledger_is_judged_by_its_own_bounds() -> None:
    """すべての主張が 3 シード以上で測られ、判定は値と基準から出たものである。"""
    for claim in claims.load():
        assert len(claim["values"]) == len(claim["seeds"]) >= 3, claim["id"]
        holds = all(claims.satisfies(claim["bound"], value) for value in claim["values"])
        assert claim["holds"] is holds, claim["id"]
        assert holds or claim["why"].strip(), claim["id"]
