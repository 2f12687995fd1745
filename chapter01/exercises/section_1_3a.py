"""1.3 節の前半(記法と線形代数)の演習の採点。"""

from collections.abc import Callable

import numpy as np

from shared.learning import Case, grade

Matrix = list[list[float]]


def check_softmax(my_softmax: Callable[[np.ndarray, float], np.ndarray]) -> None:
    """温度つきの softmax を、最後の軸について求める関数を採点する。"""
    divide = "点数を温度で割ってから exp を取ります"
    rows = "合計が 1 になるのは最後の軸です (keepdims=True を使うと割り算がそろいます)"
    shift = "softmax は点数に同じ数を足しても変わりません。最大値を引いてから exp を取ると安全です"
    own = "引くのは全体の最大値ではなく、行ごとの最大値です"
    hidden = "exp(-inf) は 0 です。特別な場合分けは要りません"
    inputs = [
        ([2.0, 1.0, 0.1], 1.0, "", ""),
        ([2.0, 1.0, 0.1], 0.5, "", divide),
        ([2.0, 1.0, 0.1], 2.0, "", divide),
        ([[1.0, 2.0, 3.0], [1.0, 1.0, 1.0]], 1.0, "2 次元", rows),
        ([[[0.0, 1.0]], [[5.0, 2.0]]], 1.0, "3 次元", rows),
        ([1000.0, 999.0, -1000.0], 1.0, "大きな点数", shift),
        ([-1000.0, -1001.0], 1.0, "とても小さな点数", shift),
        ([[1000.0, 1001.0], [0.0, 1.0]], 1.0, "行ごとに桁の違う点数", own),
        ([1.0, 2.0], 0.001, "低い温度", "最大値を引くのは、温度で割ったあとでも前でもかまいません"),
        ([1.0, -np.inf, 2.0], 1.0, "−∞ で隠した点数", hidden),
    ]
    cases = [
        Case((np.array(scores), temperature), _softmax(scores, temperature), edge, hint, 1e-9)
        for scores, temperature, edge, hint in inputs
    ]
    grade("1.3a 演習 3", my_softmax, cases)


def _softmax(scores: list, temperature: float) -> np.ndarray:
    scaled = np.array(scores) / temperature
    weights = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def check_rank(my_rank: Callable[[Matrix], int]) -> None:
    """行列の階数を、掃き出し法で求める関数を採点する。"""
    swap = "いまの行の、左から見ている列が 0 なら、下の 0 でない行と入れ替えます"
    skip = "その列に 0 でない行が一つもなければ、行はそのままで、次の列へ進みます"
    sweep = "0 でない行を数えるだけでは足りません。ほかの行の定数倍や和で作れる行は数えません"
    small = "0.1 の 3 倍は 0.3 とぴったり同じになりません。1e-9 より小さな値は 0 とみなしましょう"
    matrices = [
        ([[1.0, 1.0], [2.0, 2.0]], "", sweep),
        ([[2.0, 0.5], [0.5, 1.0]], "", ""),
        ([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]], "二行の和で作れる行", sweep),
        ([[0.0, 1.0], [1.0, 0.0]], "左上が 0", swap),
        ([[0.0, 0.0, 1.0], [0.0, 0.0, 2.0], [0.0, 3.0, 4.0]], "左の列がすべて 0", skip),
        ([[1.0, 2.0, 3.0], [2.0, 4.0, 7.0]], "横長", skip),
        ([[1.0], [2.0], [3.0]], "縦長", sweep),
        ([[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]], "すべて 0", ""),
        ([[0.1, 0.3, 0.7], [0.3, 0.9, 2.1]], "丸め誤差", small),
    ]
    cases = [
        Case((matrix,), int(np.linalg.matrix_rank(matrix)), edge, hint)
        for matrix, edge, hint in matrices
    ]
    grade("1.3a 演習 4", my_rank, cases)
