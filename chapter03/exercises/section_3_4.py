"""3.4 節(Transformer の層)の演習の採点。"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from shared.learning import Case, grade

Array = NDArray[np.float64]
Fact = tuple[int, int, int]


def check_layer_norm(my_layer_norm: Callable[[Array, Array, Array, float], Array]) -> None:
    """層正規化 (n, d) → (n, d) を採点する。"""
    variance = "分散は d - 1 ではなく d で割ります(np.var はそのままでよく、ddof=1 は付けません)"
    axis = "平均と分散は、一つの語の中(axis=-1)でとります。語をまたいではいけません"
    inside = "eps は平方根の中で、分散に足します"
    affine = "正規化した後で、gain を成分ごとに掛け、bias を足します"
    one, zero = np.ones(4), np.zeros(4)
    x = np.array([[9.0, 3.0, 3.0, 1.0]])
    rows = np.array([[9.0, 3.0, 3.0, 1.0], [0.0, 0.0, 4.0, 4.0], [1.0, 5.0, 1.0, 5.0]])
    gain, bias = np.array([1.0, 2.0, 0.0, -1.0]), np.array([0.0, 1.0, 5.0, 0.0])
    cases = [
        Case((x, one, zero, 0.0), _layer_norm(x, one, zero, 0.0), "一語", variance, 1e-9),
        Case((rows, one, zero, 0.0), _layer_norm(rows, one, zero, 0.0), "三語", axis, 1e-9),
        Case((rows, gain, bias, 0.0), _layer_norm(rows, gain, bias, 0.0), "γ と β", affine, 1e-9),
        Case((x, one, zero, 16.0), _layer_norm(x, one, zero, 16.0), "大きな eps", inside, 1e-9),
        Case((0 * x + 7, one, zero, 1e-5), 0 * x, "どの成分も同じ語", inside, 1e-9),
    ]
    grade("3.4 演習 3", my_layer_norm, cases)


def _layer_norm(x: Array, gain: Array, bias: Array, eps: float) -> Array:
    """層正規化 (Ba+ 2016)。"""
    mean = x.mean(axis=-1, keepdims=True)
    variance = x.var(axis=-1, keepdims=True)
    return gain * (x - mean) / np.sqrt(variance + eps) + bias


def check_memory(
    my_memory: Callable[[Array, Sequence[Fact]], tuple[Array, Array, Array] | None],
) -> None:
    """二つの語が揃ったときだけ働く記憶を、FFN に入れて採点する。"""

    def answer(embedding: Array, facts: Sequence[Fact], x: Array) -> Array | None:
        """書きこまれた FFN に x を入れた出力 W2 max(0, W1 x + b1)。"""
        written = my_memory(embedding, facts)
        if written is None:
            return None
        w1, b1, w2 = (np.asarray(part, dtype=float) for part in written)
        m, d = len(facts), embedding.shape[1]
        for name, part, shape in (("W1", w1, (m, d)), ("b1", b1, (m,)), ("W2", w2, (d, m))):
            if part.shape != shape:
                raise ValueError(f"{name} の形は {shape} にしてください: {part.shape}")
        return w2 @ np.maximum(0, w1 @ x + b1)

    e = np.eye(6)
    turned = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))[0][:5]  # 直交する 5 本
    facts = [(0, 1, 2), (0, 3, 4)]
    both = "両方揃ったときの内積は 2 です。出力がちょうど e_c になるように倍率を決めます"
    single = "片方だけのときの内積 1 では、ReLU の中が 0 以下になるように b1 を決めます"
    general = "キーもバリューも、番号ではなく、渡された embedding の行から作ります"
    cases = [
        Case((e, facts[:1], e[0] + e[1]), e[2], "二語が揃った", both, 1e-9),
        Case((e, facts[:1], e[0]), 0 * e[0], "片方だけ", single, 1e-9),
        Case((e, facts, e[1] + e[3]), 0 * e[0], "組でない二語", single, 1e-9),
        Case((e, facts, e[0] + e[3]), e[4], "もう一つの事実が揃った", both, 1e-9),
        Case((e, facts, e[0] + e[1] + e[3]), e[2] + e[4], "二つの事実が揃った", both, 1e-9),
        Case((turned, facts, turned[0] + turned[1]), turned[2], "回した埋め込み", general, 1e-9),
    ]
    grade("3.4 演習 4", answer, cases)
