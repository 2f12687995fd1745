"""演習の採点 check_... が、解答に何と言うかを確かめる。"""

from collections.abc import Callable

import pytest

Check = Callable[[Callable], None]


def accepts(check: Check, solution: Callable, capsys: pytest.CaptureFixture[str]) -> None:
    """正しい解を正解とする。"""
    check(solution)
    assert "正解です" in capsys.readouterr().out


def explains(
    check: Check, wrong: Callable, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """誤った解を退け、理由に `message` を含める。"""
    check(wrong)
    out = capsys.readouterr().out
    assert message in out
    assert "正解" not in out


def waits(check: Check, capsys: pytest.CaptureFixture[str]) -> None:
    """どの例にも None を返す関数は、失敗ではなく、まだ解かれていないとする。"""
    check(lambda *arguments: None)
    assert "まだ解かれていません" in capsys.readouterr().out
