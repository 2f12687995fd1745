"""3.2 節(位置埋め込み)の演習の採点。"""

from collections.abc import Callable

import torch

from chapter03.positional import Rotary, sinusoidal
from shared.learning import Case, grade


def check_position(my_position: Callable[[int, int], list[float]]) -> None:
    """位置 p の正弦波の位置埋め込みを、d 個の数の list で返す関数を採点する。"""
    order = "sin と cos は、前半と後半に分けず、交互に並べます"
    exponent = "組の番号 i は 0 から d/2 - 1 までで、指数は 2i/d です"
    grade(
        "3.2 演習 3",
        my_position,
        [
            Case((0, 4), [0.0, 1.0, 0.0, 1.0], "位置 0", order, 1e-6),
            Case((1, 4), _position(1, 4), hint=f"{order}。{exponent}", atol=1e-6),
            Case((3, 2), _position(3, 2), "組が一つ", "角度の単位はラジアンです", 1e-6),
            Case((7, 8), _position(7, 8), hint=exponent, atol=1e-6),
            Case((1000, 16), _position(1000, 16), "遠い位置", exponent, 1e-4),
        ],
    )


def _position(p: int, d_model: int) -> list[float]:
    return sinusoidal(p + 1, d_model)[p].tolist()


def check_rope(my_rope: Callable[[list[float], int], list[float]]) -> None:
    """ベクトル x の隣どうしの組を、位置 p に応じて回して返す関数を採点する。"""
    sign = "(x1, x2) を反時計回りに回すと (x1 cos - x2 sin, x1 sin + x2 cos) です"
    speed = "組 i を回す速さは 10000^(-2i/d)。組ごとに違います"
    pairs = "組にするのは隣どうし (0, 1), (2, 3), ... です"
    examples = [
        ([1.0, 0.0], 1, "組が一つ", sign),
        ([0.0, 2.0], 2, "組が一つ", sign),
        ([1.0, 0.0, 0.0, 0.0], 1, "最初の組だけ", pairs),
        ([0.0, 0.0, 1.0, 0.0], 5, "二番目の組だけ", speed),
        ([0.5, -1.0, 2.0, 1.5, -0.3, 0.7], 9, "", speed),
        ([0.5, -1.0, 2.0, 1.5], 0, "位置 0", "位置 0 では何も変わりません"),
    ]
    grade(
        "3.2 演習 4",
        my_rope,
        [Case((x, p), _rope(x, p), edge, hint, 1e-5) for x, p, edge, hint in examples],
    )


def _rope(x: list[float], p: int) -> list[float]:
    return Rotary(len(x)).turn(torch.tensor([x]), torch.tensor([p]))[0].tolist()
