"""1.3b(誤差逆伝播法)の演習の採点。"""

from collections.abc import Callable

import numpy as np

from chapter01.backprop import Array, Dense, softmax
from shared.learning import Case, grade


def check_dense_backward(
    my_dense_backward: Callable[[Array, Array, Array], tuple[Array, Array, Array]],
) -> None:
    """全結合層の逆向き (x, weight, dy) → (dx, d_weight, d_bias) を採点する。"""
    shapes = "勾配の形は、もとの配列と同じです。そうなる掛け方は一通りしかありません"
    rows = "bias はすべての例に足されています。例について足し合わせます(平均ではありません)"
    grade(
        "1.3b 演習 3",
        my_dense_backward,
        [
            _dense_case([[1, 2]], [[1, -1], [1, 0]], [[-0.5, 0.0]], hint=shapes),
            _dense_case([[1, 2, 3]], [[1, 0], [2, 1], [0, -1]], [[1, -2]], hint=shapes),
            _dense_case(
                [[1, 0], [2, 1], [0, 3]],
                [[2, 1], [-1, 4]],
                [[1, 2], [3, 4], [5, 6]],
                edge="3 例",
                hint=rows,
            ),
            _dense_case(np.zeros((0, 2)), np.ones((2, 3)), np.zeros((0, 3)), edge="空のバッチ"),
        ],
    )


def _dense_case(x: object, weight: object, dy: object, edge: str = "", hint: str = "") -> Case:
    arrays = tuple(np.array(a, dtype=np.float64) for a in (x, weight, dy))
    n_in, n_out = arrays[1].shape
    layer = Dense(n_in, n_out, np.random.default_rng(0))
    layer.weight.value[...] = arrays[1]
    dx = layer(arrays[0])[1](arrays[2])
    return Case(arrays, (dx, layer.weight.grad, layer.bias.grad), edge, hint, 1e-9)


def check_softmax_backward(my_softmax_backward: Callable[[Array, Array], Array]) -> None:
    """softmax の逆向き: 出力 p (n, V) と ∂E/∂p (n, V) から ∂E/∂z (n, V) を求める関数を採点する。"""
    others = "z_k を上げると、ほかの確率は下がります。p (1 − p) は対角成分だけです"
    per_row = "行(例)ごとに足し合わせます。axis と keepdims を確かめてください"
    rng = np.random.default_rng(0)
    grade(
        "1.3b 演習 4",
        my_softmax_backward,
        [
            _softmax_case(np.zeros((1, 2)), np.array([[1.0, 0.0]]), hint=others),
            _softmax_case(np.log([[1.0, 2.0, 5.0]]), np.array([[1.0, 2.0, 4.0]]), hint=others),
            _softmax_case(rng.normal(size=(3, 4)), rng.normal(size=(3, 4)), "3 例", per_row),
            _softmax_case(
                rng.normal(size=(2, 3)), np.ones((2, 3)), "どの確率の勾配も同じとき", others
            ),
        ],
    )


def _softmax_case(z: Array, dp: Array, edge: str = "", hint: str = "") -> Case:
    p = softmax(z)
    jacobians = [np.diag(row) - np.outer(row, row) for row in p]  # ∂p_j/∂z_k
    dz = np.array([row @ jacobian for row, jacobian in zip(dp, jacobians, strict=True)])
    return Case((p, dp), dz, edge, hint, 1e-9)
