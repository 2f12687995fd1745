"""3.2 節(位置埋め込み)の主張の測定。シードは、重みの初期値・学習に使う列・試す位置を決める。"""

from functools import cache

import torch

from chapter03.position_experiments import (
    SHIFT_LENGTH,
    TEXT_LENGTH,
    shift_accuracy,
    text_losses,
    train_shift,
    train_text,
)
from chapter03.positional import sinusoidal

N_POSITIONS, D_MODEL, MAX_SHIFT = 1000, 64, 50


def linear_shift(seed: int) -> float:
    """半分の位置から最小二乗で求めた行列で、残りの位置の PE(p + k) を当てたときの相対誤差。"""
    generator = torch.Generator().manual_seed(seed)
    k = int(torch.randint(1, MAX_SHIFT + 1, (), generator=generator))
    table = sinusoidal(N_POSITIONS + k, D_MODEL).double()
    here, shifted = table[:N_POSITIONS], table[k:]
    order = torch.randperm(N_POSITIONS, generator=generator)
    fit, test = order[: N_POSITIONS // 2], order[N_POSITIONS // 2 :]
    matrix = torch.linalg.lstsq(here[fit], shifted[fit]).solution
    return float((here[test] @ matrix - shifted[test]).norm() / shifted[test].norm())


def relative_attention(seed: int) -> float:
    """正弦波の位置埋め込みを足した 1 層のモデルが、3 つ前の記号を写す課題に正答する割合。"""
    return float(shift_accuracy(train_shift("sinusoidal", seed), SHIFT_LENGTH).mean())


@cache
def _text_loss(method: str, seed: int) -> tuple[float, float | None]:
    """検証損失(nat / 文字)。学習と同じ長さと、その 4 倍の長さ(学習する表では測れない)。"""
    model = train_text(method, seed)
    short = float(text_losses(model, TEXT_LENGTH).mean())
    if method == "learned":
        return short, None
    return short, float(text_losses(model, 4 * TEXT_LENGTH).mean())


def learned_difference(seed: int) -> float:
    """検証損失の差の絶対値 |学習する表 - 正弦波| ÷ 正弦波。"""
    sine, _ = _text_loss("sinusoidal", seed)
    return abs(_text_loss("learned", seed)[0] - sine) / sine


def sinusoidal_long(seed: int) -> float:
    """正弦波の検証損失、4 倍の長さ ÷ 学習と同じ長さ。"""
    return _ratio("sinusoidal", seed)


def alibi_long(seed: int) -> float:
    """ALiBi の検証損失、4 倍の長さ ÷ 学習と同じ長さ。"""
    return _ratio("alibi", seed)


def _ratio(method: str, seed: int) -> float:
    short, long = _text_loss(method, seed)
    assert long is not None
    return long / short
