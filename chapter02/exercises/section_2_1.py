"""2.1 節(埋め込みと分布仮説)の演習の採点。"""

from collections.abc import Callable

import numpy as np

from chapter02.distributional import context_overlap, negative_sampling
from shared.learning import Case, grade

Vector = list[float]


def check_context_overlap(my_overlap: Callable[[list[str], list[str], str], float]) -> None:
    """二つの文脈の重なりを、異なり ("type") と延べ ("token") で求める関数を採点する。"""
    smaller = "分母は和集合ではなく、小さいほうの大きさです"
    multiset = "延べでは、同じ語を、両方に現れた回数の少ないほうだけ数えます"
    distinct = "異なりでは、同じ語は何度現れても一つと数えます"
    rows = [
        (["好き", "寝る", "庭"], ["好き", "走る", "庭", "散歩"], "type", "", smaller),
        (["好き", "寝る", "庭"], ["好き", "走る", "庭", "散歩"], "token", "", smaller),
        (["a", "a", "b"], ["a", "c", "c", "c"], "type", "くり返しのある文脈", distinct),
        (["a", "a", "b"], ["a", "a", "a", "c"], "token", "くり返しのある文脈", multiset),
        (["a", "a", "a", "b"], ["a", "b"], "token", "片方に含まれる文脈", smaller),
        (["a", "b"], ["c", "d"], "type", "重ならない文脈", ""),
    ]
    cases = [
        Case((a, b, unit), context_overlap(a, b, unit), edge, hint, 1e-9)
        for a, b, unit, edge, hint in rows
    ]
    grade("2.1 演習 3", my_overlap, cases)


def check_sgns_gradient(my_gradient: Callable[[Vector, Vector, list[Vector]], Vector]) -> None:
    """一組の損失を、中心の語のベクトル v で微分した勾配を返す関数を採点する。"""
    sign = "損失の勾配です。正例の係数は σ(u·v) - 1(負)、負例の係数は σ(u_i·v)(正)です"
    every = "負例は、すべての和をとります"
    rows = [
        ([1.0, 0.0], [0.0, 1.0], [[1.0, 1.0]], "", sign),
        ([0.5, -1.0, 2.0], [1.0, 0.5, 0.25], [[-1.0, 0.0, 1.0], [0.5, 0.5, 0.5]], "", every),
        ([0.0, 0.0], [1.0, 2.0], [[3.0, 4.0], [1.0, 0.0], [0.0, 1.0]], "0 ベクトル", sign),
        ([1.0, 2.0], [2.0, 1.0], [], "負例なし", "負例がなければ、正例の項だけになります"),
    ]
    cases = [
        Case((v, u, negatives), _gradient(v, u, negatives), edge, hint, 1e-6)
        for v, u, negatives, edge, hint in rows
    ]
    grade("2.1 演習 4", my_gradient, cases)


def _gradient(v: Vector, u: Vector, negatives: list[Vector]) -> Vector:
    others = np.array([negatives]).reshape(1, len(negatives), len(v))
    return negative_sampling(np.array([v]), np.array([u]), others)[1][0].tolist()
