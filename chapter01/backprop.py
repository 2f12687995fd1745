"""誤差逆伝播法を NumPy だけで書く (Rumelhart, Hinton & Williams 1986)。

どの層も、入力 x から「出力 y」と「勾配を引き戻す関数 pull」の組を返す。

    y, pull = layer(x)
    dx = pull(dy)          # dy = ∂E/∂y を渡すと、重みの勾配を grad に足しこみ、dx = ∂E/∂x を返す

同じ層を二度使えば pull も二つでき、どちらも同じ grad に足しこむ。重みを共有するための特別な仕組みは
要らない。ベクトルは行で、一例が一行である(y = x W + b)。計算はすべて float64 で行う。
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, NDArray

from shared.checks import require_int, require_number

Array = NDArray[np.float64]
Ids = NDArray[np.int64]
_NOT_NEEDED = np.empty(0)  # need_dx=False のときに返す、要素のない配列


class Pull(Protocol):
    """∂E/∂y から ∂E/∂x を求める関数。`need_dx=False` なら重みの勾配だけを足し、空の配列を返す。"""

    def __call__(self, dy: Array, need_dx: bool = True) -> Array: ...


class Layer(Protocol):
    """入力から、出力と `Pull` を返すもの。"""

    def __call__(self, x: ArrayLike, /) -> tuple[Array, Pull]: ...


class Parameter:
    """学習で決まる配列 `value` と、同じ形の勾配 `grad`。勾配は、消すまで足しこまれる。"""

    def __init__(self, value: Array) -> None:
        self.value = value
        self.grad = np.zeros_like(value)


# ---- 重みのある層 -----------------------------------------------------------------------


class Dense:
    """全結合層 y = x W + b。

    順: Y = X W + b。逆: ∂E/∂W = Xᵀ ∂E/∂Y、∂E/∂b = (行の和) ∂E/∂Y、∂E/∂X = ∂E/∂Y Wᵀ
    (Rumelhart+ 1986 の式 (1)、(6)、(7) を行列で書いたもの)。`nn.Linear` の重みは、この W の転置。

    Args:
        n_in, n_out: 入力と出力の次元。weight は (n_in, n_out)、bias は (n_out,)。
        rng: 初期値の乱数。W は平均 0、分散 2 / n_in の正規分布 (He+ 2015)、b は 0。

    Raises:
        TypeError, ValueError: 次元が 1 以上の整数でないとき。
    """

    def __init__(self, n_in: int, n_out: int, rng: np.random.Generator) -> None:
        self.n_in = require_int(n_in, "n_in", minimum=1)
        self.n_out = require_int(n_out, "n_out", minimum=1)
        self.weight = Parameter(rng.normal(0, np.sqrt(2 / n_in), (n_in, n_out)))
        self.bias = Parameter(np.zeros(n_out))

    def __call__(self, x: ArrayLike) -> tuple[Array, Pull]:
        """x (..., n_in) から y (..., n_out) を計算する。

        Raises:
            TypeError, ValueError: 数の配列でないとき、最後の軸の長さが n_in でないとき。
        """
        inputs = _floats(x, "x")
        if inputs.ndim == 0 or inputs.shape[-1] != self.n_in:
            raise ValueError(f"x の最後の軸の長さは {self.n_in} にしてください: 形 {inputs.shape}")
        y = inputs @ self.weight.value + self.bias.value

        def pull(dy: Array, need_dx: bool = True) -> Array:
            _require_shape(dy, y.shape)
            rows, d_rows = inputs.reshape(-1, self.n_in), dy.reshape(-1, self.n_out)
            self.weight.grad += rows.T @ d_rows
            self.bias.grad += d_rows.sum(axis=0)
            return dy @ self.weight.value.T if need_dx else _NOT_NEEDED

        return y, pull


class Conv2d:
    """二次元の畳み込み(PyTorch と同じく、フィルターを裏返さない相互相関)。

        y[b, o, i, j] = bias[o] + Σ_{c,u,v} weight[o, c, u, v] · x̄[b, c, i s + u, j s + v]

    x̄ は周りに 0 を `padding` だけ足した x、s は `stride`。窓を一行に並べた行列 (im2col) を作ると、
    全結合層と同じ一つの行列積になる。逆向きは、窓に配った勾配を元の場所へ足し戻す (col2im)。

    Args:
        c_in, c_out: 入力と出力のチャンネル数。
        kernel: フィルターの一辺。weight は (c_out, c_in, kernel, kernel)、bias は (c_out,)。
        rng: 初期値の乱数。W の分散は 2 / (c_in · kernel²)、b は 0。

    Raises:
        TypeError, ValueError: 大きさが整数でないとき、小さすぎるとき。
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: int,
        rng: np.random.Generator,
        *,
        stride: int = 1,
        padding: int = 0,
    ) -> None:
        self.c_in = require_int(c_in, "c_in", minimum=1)
        self.c_out = require_int(c_out, "c_out", minimum=1)
        self.kernel = require_int(kernel, "kernel", minimum=1)
        self.stride = require_int(stride, "stride", minimum=1)
        self.padding = require_int(padding, "padding", minimum=0)
        scale = np.sqrt(2 / (c_in * kernel**2))
        self.weight = Parameter(rng.normal(0, scale, (c_out, c_in, kernel, kernel)))
        self.bias = Parameter(np.zeros(c_out))

    def __call__(self, x: ArrayLike) -> tuple[Array, Pull]:
        """x (B, c_in, H, W) から y (B, c_out, H', W') を計算する。H' = ⌊(H + 2p − k) / s⌋ + 1。

        Raises:
            TypeError, ValueError: 数の配列でないとき、形が合わないとき、フィルターが入らないとき。
        """
        inputs = _floats(x, "x")
        if inputs.ndim != 4 or inputs.shape[1] != self.c_in:
            raise ValueError(f"x の形は (B, {self.c_in}, H, W) にしてください: 形 {inputs.shape}")
        p, s, k = self.padding, self.stride, self.kernel
        padded = np.pad(inputs, ((0, 0), (0, 0), (p, p), (p, p)))
        if min(padded.shape[2:]) < k:
            raise ValueError(
                f"x が、一辺 {k} のフィルターより小さくなっています"
                f"(padding = {p} を足した後で {padded.shape[2]} × {padded.shape[3]})"
            )
        windows = sliding_window_view(padded, (k, k), axis=(2, 3))[:, :, ::s, ::s]
        batch, _, height, width = windows.shape[:4]  # windows: (B, C, H', W', k, k)
        filters = self.weight.value.reshape(self.c_out, -1)  # (c_out, C k k)
        columns = windows.transpose(0, 2, 3, 1, 4, 5).reshape(-1, filters.shape[1])
        rows = columns @ filters.T + self.bias.value  # (B H' W', C k k) から (B H' W', c_out)
        y = rows.reshape(batch, height, width, self.c_out).transpose(0, 3, 1, 2)

        def pull(dy: Array, need_dx: bool = True) -> Array:
            _require_shape(dy, y.shape)
            d_rows = dy.transpose(0, 2, 3, 1).reshape(-1, self.c_out)
            self.weight.grad += (d_rows.T @ columns).reshape(self.weight.value.shape)
            self.bias.grad += d_rows.sum(axis=0)
            if not need_dx:
                return _NOT_NEEDED
            d_windows = (d_rows @ filters).reshape(batch, height, width, self.c_in, k, k)
            d_padded = np.zeros_like(padded)
            for u in range(k):
                for v in range(k):
                    place = np.s_[:, :, u : u + s * height : s, v : v + s * width : s]
                    d_padded[place] += d_windows[..., u, v].transpose(0, 3, 1, 2)
            return d_padded[:, :, p : padded.shape[2] - p, p : padded.shape[3] - p]

        return y, pull


class Embedding:
    """埋め込み: 行列 E の行を id で引く(one-hot ベクトルと E の積に等しい)。

    逆: v 行目の勾配は、id が v だったすべての場所の勾配の和。整数の id に勾配はないので、pull は
    空の配列を返す。

    Raises:
        TypeError, ValueError: `n_ids` か `dim` が 1 以上の整数でないとき。
    """

    def __init__(self, n_ids: int, dim: int, rng: np.random.Generator) -> None:
        self.n_ids = require_int(n_ids, "n_ids", minimum=1)
        self.weight = Parameter(rng.normal(0, 1, (n_ids, require_int(dim, "dim", minimum=1))))

    def __call__(self, ids: ArrayLike) -> tuple[Array, Pull]:
        """ids (...) から、行を並べた (..., dim) を作る。

        Raises:
            TypeError, ValueError: `ids` が整数でないとき、0 以上 n_ids 未満でないとき。
        """
        index = _ids(ids, "ids", self.n_ids)
        y = self.weight.value[index]

        def pull(dy: Array, need_dx: bool = True) -> Array:
            _require_shape(dy, y.shape)
            np.add.at(self.weight.grad, index, dy)  # grad[index] += dy は同じ id を一度しか足さない
            return _NOT_NEEDED

        return y, pull


# ---- 重みのない層 -----------------------------------------------------------------------


class ReLU:
    """y = max(0, x)。逆: x > 0 の所だけ通す(x = 0 での傾きは 0 とする)。"""

    def __call__(self, x: ArrayLike) -> tuple[Array, Pull]:
        inputs = _floats(x, "x")
        return np.maximum(inputs, 0), _elementwise(inputs > 0)


class Sigmoid:
    """y = 1 / (1 + e^−x)。逆: ∂E/∂x = ∂E/∂y · y (1 − y) (Rumelhart+ 1986 の式 (2)、(5))。"""

    def __call__(self, x: ArrayLike) -> tuple[Array, Pull]:
        y = 0.5 * (1 + np.tanh(0.5 * _floats(x, "x")))  # 同じ値。大きな |x| でもあふれない
        return y, _elementwise(y * (1 - y))


class Tanh:
    """y = tanh x。逆: ∂E/∂x = ∂E/∂y · (1 − y²)。"""

    def __call__(self, x: ArrayLike) -> tuple[Array, Pull]:
        y = np.tanh(_floats(x, "x"))
        return y, _elementwise(1 - y**2)


class Flatten:
    """(B, ...) を (B, 残りの積) に並べ直す。逆: 元の形に戻す。"""

    def __call__(self, x: ArrayLike) -> tuple[Array, Pull]:
        inputs = _floats(x, "x")
        if inputs.ndim == 0:
            raise ValueError("x には、はじめの軸が例の番号である配列を渡してください: 形 ()")
        y = inputs.reshape(len(inputs), int(np.prod(inputs.shape[1:])))

        def pull(dy: Array, need_dx: bool = True) -> Array:
            _require_shape(dy, y.shape)
            return dy.reshape(inputs.shape)

        return y, pull


def _elementwise(slope: NDArray) -> Pull:
    """要素ごとの関数の pull: 上から来た勾配に、その場の傾きを掛ける。"""

    def pull(dy: Array, need_dx: bool = True) -> Array:
        _require_shape(dy, slope.shape)
        return dy * slope

    return pull


class Sequential:
    """層を順につないだもの。逆向きは、pull を後ろから順に呼ぶだけ(連鎖律)。

    同じ層を二度並べてもよい(重みの共有)。pull は既定では入力の勾配を求めず、最初の重みのある層で
    行列積を一つ省く。

    Raises:
        ValueError: `layers` が空のとき。
    """

    def __init__(self, layers: Iterable[Layer]) -> None:
        self.layers = list(layers)
        if not self.layers:
            raise ValueError("layers には 1 つ以上の層を渡してください: []")
        learns = [bool(parameters(layer)) for layer in self.layers]
        self.first = learns.index(True) if any(learns) else len(learns)

    def __call__(self, x: ArrayLike) -> tuple[Array, Pull]:
        pulls: list[Pull] = []
        y = np.asarray(x)
        for layer in self.layers:
            y, pull = layer(y)
            pulls.append(pull)

        def pull_all(dy: Array, need_dx: bool = False) -> Array:
            for i in reversed(range(0 if need_dx else self.first, len(pulls))):
                dy = pulls[i](dy, need_dx or i > self.first)
            return dy if need_dx else _NOT_NEEDED

        return y, pull_all


def parameters(*layers: object) -> list[Parameter]:
    """層のもつ `Parameter` を並べて返す。共有された重みは一度だけ数える。"""
    found: dict[int, Parameter] = {}
    for layer in layers:
        inner = getattr(layer, "layers", None)
        values = parameters(*inner) if inner else vars(layer).values()
        found.update({id(value): value for value in values if isinstance(value, Parameter)})
    return list(found.values())


# ---- 損失 -------------------------------------------------------------------------------


def softmax(logits: ArrayLike) -> Array:
    """最後の軸の softmax e^{z_k} / Σ_j e^{z_j}(最大値を引いてから計算し、あふれない)。"""
    z = _floats(logits, "logits")
    exp = np.exp(z - z.max(axis=-1, keepdims=True))
    return exp / exp.sum(axis=-1, keepdims=True)


def softmax_cross_entropy(
    logits: ArrayLike, target: ArrayLike
) -> tuple[float, Callable[[], Array]]:
    """softmax をかけた交差エントロピーの平均 (nat/例) と、∂E/∂logits を返す関数。

    E = −(1/N) Σ_n log p_n[t_n]、∂E/∂z_n = (p_n − onehot(t_n)) / N。
    logits は (..., V)、target は (...)、N は例の数。

    Raises:
        TypeError, ValueError: 形が合わないとき、例がないとき、id が 0 以上 V 未満の整数でないとき。
    """
    z = _floats(logits, "logits")
    if z.ndim == 0 or z.size == 0:
        raise ValueError(f"logits には 1 つ以上の例を渡してください: 形 {z.shape}")
    ids = _ids(target, "target", z.shape[-1])
    if ids.shape != z.shape[:-1]:
        raise ValueError(f"target の形は {z.shape[:-1]} にしてください: 形 {ids.shape}")
    shifted = z - z.max(axis=-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    picked = np.take_along_axis(log_p, ids[..., None], axis=-1)  # (..., 1)

    def pull() -> Array:
        one_hot = np.arange(z.shape[-1]) == ids[..., None]
        return (np.exp(log_p) - one_hot) / ids.size

    return float(-picked.mean()), pull


def squared_error(y: ArrayLike, d: ArrayLike) -> tuple[float, Callable[[], Array]]:
    """E = ½ Σ (y − d)² と、∂E/∂y = y − d を返す関数 (Rumelhart+ 1986 の式 (3)、(4))。

    Raises:
        TypeError, ValueError: 数の配列でないとき、形が違うとき。
    """
    output, wanted = _floats(y, "y"), _floats(d, "d")
    if output.shape != wanted.shape:
        raise ValueError(f"d の形は y と同じ {output.shape} にしてください: 形 {wanted.shape}")
    difference = output - wanted
    return float(0.5 * (difference**2).sum()), lambda: difference


# ---- 学習 -----------------------------------------------------------------------------


class SGD:
    """モメンタムつきの勾配降下法 Δw(t) = −ε ∂E/∂w + α Δw(t−1) (Rumelhart+ 1986 の式 (9))。

    Raises:
        TypeError, ValueError: `rate` (ε) が負か有限でないとき、`momentum` (α) が 0 以上 1 未満で
            ないとき。
    """

    def __init__(self, params: Sequence[Parameter], rate: float, momentum: float = 0.0) -> None:
        self.params = list(params)
        self.rate = require_number(rate, "rate", minimum=0)
        self.momentum = require_number(momentum, "momentum", minimum=0)
        if self.momentum >= 1:
            raise ValueError(f"momentum は 1 より小さくしてください: {self.momentum}")
        self.velocity = [np.zeros_like(p.value) for p in self.params]

    def zero_grad(self) -> None:
        """たまった勾配を 0 に戻す。pull は勾配を足しこむので、次の順方向の前に呼ぶ。"""
        for p in self.params:
            p.grad[...] = 0

    def step(self) -> None:
        """勾配を使って、重みを一歩動かす。"""
        for i, p in enumerate(self.params):
            self.velocity[i] = self.momentum * self.velocity[i] - self.rate * p.grad
            p.value += self.velocity[i]


# ---- 引数の検査 -------------------------------------------------------------------------


def _floats(value: ArrayLike, name: str) -> Array:
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name} には実数の配列を渡してください: 型 {array.dtype}")
    return array.astype(np.float64, copy=False)


def _ids(value: ArrayLike, name: str, n_ids: int) -> Ids:
    array = np.asarray(value)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} には整数の配列を渡してください: 型 {array.dtype}")
    if array.size and not 0 <= int(array.min()) <= int(array.max()) < n_ids:
        raise ValueError(
            f"{name} は 0 以上 {n_ids} 未満にしてください: {array.min()} から {array.max()}"
        )
    return array.astype(np.int64, copy=False)


def _require_shape(dy: Array, shape: tuple[int, ...]) -> None:
    if np.shape(dy) != shape:
        raise ValueError(f"dy の形は出力と同じ {shape} にしてください: 形 {np.shape(dy)}")
