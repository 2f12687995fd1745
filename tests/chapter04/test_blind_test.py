"""chapter04.blind_test の検査: 混ぜ方、数え方、記録が新しいこと。"""

import tomllib

import pytest

from chapter04 import blind_test
from chapter04.blind_test import NAME, counts, main, majority, markdown, mixed
from chapter04.pretrain import RUNS


def test_mixed_hides_the_origin_by_order_only():
    """どちらの文も同じ数だけ入り、順は種で決まり、どちらかに偏って並ばない。"""
    written, real = [f"作{i}" for i in range(30)], [f"真{i}" for i in range(100)]
    items = mixed(written, real, 0)
    assert sorted(i["text"] for i in items if i["written"]) == sorted(written)
    assert len({i["text"] for i in items if not i["written"]}) == 30
    assert 8 <= sum(i["written"] for i in items[:30]) <= 22
    assert items == mixed(written, real, 0) != mixed(written, real, 1)
    with pytest.raises(ValueError, match="30 文以上が要ります: 2 文"):
        mixed(written, real[:2], 0)


ITEMS = [{"text": t, "written": w} for t, w in zip("甲乙丙丁", (True, False, True, False))]  # noqa: B905


def test_counts_by_hand():
    assert counts(ITEMS, [1, 2, 4]) == (1, 2)
    assert counts(ITEMS, []) == (0, 0)
    for wrong, message in (([0], "1 から 4"), ([5], "1 から 4"), ([2, 2], "同じ番号")):
        with pytest.raises(ValueError, match=message):
            counts(ITEMS, wrong)


def test_majority_needs_more_than_half():
    judges = [{"correct": [1, 2]}, {"correct": [2, 3]}, {"correct": [2]}]
    assert majority(judges, 4) == [2]
    assert majority(judges[:2], 4) == [2]


def test_report_lists_everything():
    data = {
        "judged_by": "試し",
        "items": ITEMS,
        "judges": [{"name": "A", "correct": [1, 4]}, {"name": "B", "correct": [4]}],
    }
    page = markdown(data)
    for line in (
        "| A | 1 / 2 | 1 / 2 |",
        "| 多数決 | 0 / 2 | 1 / 2 |",
        "| 1 | 甲 | GPT | ○ | × | × |",
    ):
        assert line in page
    with pytest.raises(ValueError, match="判定"):
        markdown({"judged_by": "", "items": ITEMS})


def test_stored_report_is_fresh_and_reaches_the_goal(tmp_path):
    """記録は判定のファイルから作り直せ、GPT の 30 文の半分以上が正しいと判定されている。"""
    source = (RUNS / f"{NAME}.toml").read_text(encoding="utf-8")
    data = tomllib.loads(source)
    assert len(data["items"]) == 60
    assert sum(item["written"] for item in data["items"]) == 30
    (tmp_path / f"{NAME}.toml").write_text(source, encoding="utf-8")
    assert main(["report"], tmp_path) == 0
    stored = (RUNS / f"{NAME}.md").read_text(encoding="utf-8")
    assert (tmp_path / f"{NAME}.md").read_text(encoding="utf-8") == stored
    assert counts(data["items"], majority(data["judges"], 60))[0] >= 15


def test_command_writes_a_sheet(tmp_path, monkeypatch, capsys):
    """番号と文だけを表示し、出所は表示しない。誤った命令は断る。"""

    class Fake:
        def complete(self, **options):
            return [f"作{i}" for i in range(options["n"])]

    monkeypatch.setattr(blind_test.japanese_gpt, "load", Fake)
    monkeypatch.setattr(blind_test.text, "documents", lambda: [f"文{i}" for i in range(9000)])
    assert main(["sheet"], tmp_path) == 0
    shown = capsys.readouterr().out
    assert shown.count("\n") == 60
    assert "True" not in shown
    assert (
        len(tomllib.loads((tmp_path / f"{NAME}.toml").read_text(encoding="utf-8"))["items"]) == 60
    )
    assert main(["show"], tmp_path) == 2
