"""shared.commands: 長い学習の命令の、表示と終了コード。"""

import json

import pytest

from shared import commands
from shared.archives import DataError
from shared.checkpoints import CheckpointError


def raises(error):
    """`error` を起こす関数。"""

    def job():
        raise error

    return job


def test_result_is_printed(capsys):
    """成績は JSON で、日本語のまま表示する。成績がなければ、何も表示しない。"""
    assert commands.run(lambda: {"正答率": 0.5}, 10) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {"正答率": 0.5}
    assert "正答率" in printed.out
    assert commands.run(lambda: None, 10) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    "error", [CheckpointError("壊れて"), DataError("ない"), FloatingPointError("NaN"),
              FileNotFoundError("どこ"), ValueError("だめ")],
)  # fmt: skip
def test_errors_are_one_line(error, capsys):
    """使う人が直せる誤りは、わけだけを stderr に。"""
    assert commands.run(raises(error), 10) == 1
    assert capsys.readouterr() == ("", f"{error}\n")


def test_stopping_tells_how_to_go_on(capsys):
    """止めたときは、残す間隔と、書き足しを表示する。"""
    assert commands.run(raises(KeyboardInterrupt), 250, "。書き足し") == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "250 ステップごと" in err
    assert err.endswith("始まります。書き足し\n")


def test_bugs_keep_their_traceback():
    """ほかの誤りは、隠さない。"""
    with pytest.raises(KeyError):
        commands.run(raises(KeyError("x")), 10)
