"""3.5 節(出力と探索)の演習の採点。"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from shared.learning import Case, grade


def check_shift_right(my_shift_right: Callable[[Tensor, int], Tensor]) -> None:
    """正解の id (B, T) を右へ一つずらし、先頭に bos を置く関数を採点する。"""
    push = "最後の列を落とし、先頭に bos を置きます"
    one = torch.tensor([[5, 6, 7, 2]])
    padded = torch.tensor([[5, 6, 7, 2], [8, 2, 0, 0]])
    grade(
        "3.5 演習 3",
        lambda target, bos: _plain(my_shift_right(torch.tensor(target), bos)),
        [
            Case((one.tolist(), 1), [[1, 5, 6, 7]], hint=push),
            Case((padded.tolist(), 1), [[1, 5, 6, 7], [1, 8, 2, 0]], "長さの違う文", push),
            Case((one.tolist(), 9), [[9, 5, 6, 7]], "bos が 1 でないとき"),
            Case(([[2]], 1), [[1]], "1 語だけの文", push),
        ],
    )


BeamStep = Callable[
    [Tensor, Tensor, int, int], tuple[list[tuple[float, int]], list[tuple[float, int, int]]]
]


def check_beam_step(my_beam_step: BeamStep) -> None:
    """ビームサーチの一歩(完成した仮説と、残す仮説を選ぶ)を採点する。"""
    border = "完成にするのは、すべての続きの上位 width 個に入った eos だけです"
    total = "親の log P に、次の語の log P を足してから比べます"
    enough = "eos を除いても width 個残るように、2 × width 個まで見ます"
    start = ([0.0], [[-9.0, -9.0, -2.0, -0.5, -1.0]])
    close = ([-1.0, -1.2], [[-9.0, -9.0, -0.1, -3.0, -4.0], [-9.0, -9.0, -0.2, -0.3, -0.4]])
    far = ([-0.1, -5.0], [[-9.0, -9.0, -2.5, -0.2, -2.0], [-9.0, -9.0, -0.1, -0.1, -0.1]])
    grade(
        "3.5 演習 4",
        lambda log_p, following, eos, width: _rounded(
            my_beam_step(torch.tensor(log_p), torch.tensor(following), eos, width)
        ),
        [
            Case((*start, 2, 2), ([], [(-0.5, 0, 3), (-1.0, 0, 4)]), "はじめの一歩", border, 1e-4),
            Case((*far, 2, 2), ([], [(-0.3, 0, 3), (-2.1, 0, 4)]), "差のある親", total, 1e-4),
            Case(
                (*close, 2, 2),
                ([(-1.1, 0), (-1.4, 1)], [(-1.5, 1, 3), (-1.6, 1, 4)]),
                "二つとも完成する",
                enough,
                1e-4,
            ),
            Case((*far, 4, 1), ([], [(-0.3, 0, 3)]), "eos が 2 でない", atol=1e-4),
            Case(([0.0], [[-9.0, -9.0, -0.1, -3.0]], 2, 1), ([(-0.1, 0)], [(-3.0, 0, 3)]),
                 "幅 1", enough, 1e-4),
        ],
    )  # fmt: skip


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, Tensor) else value


def _rounded(value: Any) -> Any:
    """テンソルの数を Python の数に直す(表示を読みやすくするため、小数は 4 桁にする)。"""
    if isinstance(value, Tensor):
        value = value.tolist()
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, list | tuple):
        return type(value)(_rounded(item) for item in value)
    return value
