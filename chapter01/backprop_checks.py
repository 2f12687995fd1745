"""誤差逆伝播法の検算: 数値微分との比較と、行列積の演算数 (FLOPs)。"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from chapter01.backprop import Array, Conv2d, Dense, Embedding, Sequential, parameters
from shared.checks import require_number, shown


def numerical_gradient(loss: Callable[[], float], value: Array, h: float = 1e-5) -> Array:
    """`loss()` の `value` についての勾配を、中心差分 (f(x+h) − f(x−h)) / 2h で求める。

    `value` は `loss` が見ている float64 の配列で、一つずつ動かしては元に戻す。誤差は打ち切りの
    O(h²) と丸めの O(ε/h) の和で、ε ≈ 2.2e-16 なら h ≈ ε^{1/3} ≈ 6e-6 のあたりで最も小さい。

    Raises:
        TypeError, ValueError: `value` が float64 の配列でないとき、`h` が正の数でないとき。
    """
    if not isinstance(value, np.ndarray) or value.dtype != np.float64:
        raise TypeError(f"value には float64 の NumPy 配列を渡してください: {shown(value)}")
    if require_number(h, "h") <= 0:
        raise ValueError(f"h は正の数にしてください: {h}")
    gradient = np.zeros_like(value)
    for place in np.ndindex(value.shape):
        original = value[place]
        value[place] = original + h
        above = loss()
        value[place] = original - h
        gradient[place] = (above - loss()) / (2 * h)
        value[place] = original
    return gradient


def gradient_error(first: Array, second: Array) -> float:
    """二つの勾配の相対誤差 ‖a − b‖ / max(‖a‖, ‖b‖)(どちらも 0 なら 0)。

    Raises:
        ValueError: 形が違うとき。
    """
    if np.shape(first) != np.shape(second):
        raise ValueError(f"second の形は {np.shape(first)} にしてください: 形 {np.shape(second)}")
    size = max(np.linalg.norm(first), np.linalg.norm(second))
    return float(np.linalg.norm(first - second) / size) if size else 0.0


class LayerFlops(NamedTuple):
    """一つの層の行列積の演算数(掛け算と足し算を別に数える)。"""

    name: str
    forward: int
    weight_grad: int
    input_grad: int


def count_flops(model: Sequential, x: ArrayLike) -> list[LayerFlops]:
    """入力 `x` を一度通すときと、一度引き戻すときの FLOPs を、重みのある層ごとに数える。

    (m, k) と (k, n) の行列積を 2mkn と数え、偏り・活性化・損失は数えない(Kaplan+ 2020 の表 1 と
    同じ約束)。最初の重みのある層の input_grad は 0(入力の勾配は要らない)。表を引く埋め込みも 0。

    Raises:
        TypeError: Dense・Conv2d・Embedding のほかに、重みのある層があるとき。
    """
    counts, y = [], np.asarray(x)
    for i, layer in enumerate(model.layers):
        y, _ = layer(y)
        if isinstance(layer, Dense | Conv2d):
            n_out = y.shape[-1] if isinstance(layer, Dense) else y.shape[1]
            product = 2 * y.size * (layer.weight.value.size // n_out)
            needed = product if i > model.first else 0
            counts.append(LayerFlops(type(layer).__name__, product, product, needed))
        elif isinstance(layer, Embedding):
            counts.append(LayerFlops("Embedding", 0, 0, 0))
        elif parameters(layer):
            raise TypeError(f"model の層 {type(layer).__name__} の数え方が決まっていません")
    return counts


def backward_ratio(counts: list[LayerFlops]) -> float:
    """逆向きの FLOPs ÷ 順方向の FLOPs。

    Raises:
        ValueError: 順方向の FLOPs が 0 のとき。
    """
    forward = sum(count.forward for count in counts)
    if forward == 0:
        raise ValueError(f"counts に、行列積のある層がありません: {shown(counts)}")
    return sum(count.weight_grad + count.input_grad for count in counts) / forward
