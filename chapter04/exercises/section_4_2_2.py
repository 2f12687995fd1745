"""4.2.2 節(GPT-4)の演習の採点。"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from shared.learning import Case, grade

Array = NDArray[np.float64]
Law = tuple[float, float, float]


def check_three_points(my_law: Callable[[Sequence[float], Sequence[float]], Law]) -> None:
    """等しい比で並ぶ三つの計算量での損失から求めた (a, b, c) を採点する。L(C) = a C^-b + c。"""
    ratio = "(L1 - L2) / (L2 - L3) が、計算量の比の b 乗です(引き算で c が消えます)"
    rest = "c は L3 - (L2 - L3) / (比^b - 1)。残りの損失は等比数列で減ります"
    height = "a = (L1 - c) × C1^b。C1 が 1 とは限りません"
    zero = "c = 0 なら、ただのべき乗則です"

    def case(law: Law, first: float, step: float, edge: str, hint: str) -> Case:
        compute = [first, first * step, first * step**2]
        losses = [law[0] * c ** -law[1] + law[2] for c in compute]
        return Case((compute, losses), law, edge, hint, 1e-6)

    cases = [
        Case(([1.0, 100.0, 1e4], [5.0, 3.0, 2.0]), (4.0, 0.1505149978, 1.0), "手計算", ratio, 1e-6),
        case((4.0, 0.5, 1.0), 1.0, 4.0, "C1 = 1", rest),
        case((8.0, 0.25, 2.0), 16.0, 16.0, "C1 = 16", height),
        case((3.0, 0.5, 0.0), 4.0, 4.0, "c = 0", zero),
        case((6.0, 0.3, 1.7), 0.5, 30.0, "C1 が 1 より小さい", height),
    ]
    grade("4.2.2 演習 3", my_law, cases)


def check_fit_given_b(my_fit: Callable[[Array, Array, float], tuple[float, float]]) -> None:
    """b を決めたとき、Σ (L - a C^-b - c)^2 を最小にする (a, c) を採点する。ただし c は 0 以上。"""
    line = "x = C^-b とおけば L = a x + c は直線です。傾きが a、切片が c の最小二乗法"
    floor = "切片が負になったら c = 0 とし、原点を通る直線 a = Σ x L / Σ x^2 に当てはめ直します"
    compute = np.array([1.0, 4.0, 16.0, 64.0])
    exact = 4.0 * compute**-0.5 + 1.0
    noisy = exact + np.array([0.1, -0.2, 0.05, 0.1])

    def case(losses: Array, b: float, edge: str, hint: str) -> Case:
        return Case((compute, losses, b), _fit_given_b(compute, losses, b), edge, hint, 1e-9)

    cases = [
        case(exact, 0.5, "雑音なし", line),
        case(noisy, 0.5, "雑音あり", line),
        case(noisy, 0.8, "ほかの b", line),
        case(exact - 1.0, 0.25, "c が負になる", floor),
    ]
    grade("4.2.2 演習 4", my_fit, cases)


def _fit_given_b(compute: Array, losses: Array, b: float) -> tuple[float, float]:
    """切片が負なら、c = 0 の最小二乗解(凸なので、境界の上にある)。"""
    x = compute**-b
    a, c = np.polyfit(x, losses, 1)
    if c >= 0:
        return float(a), float(c)
    return float(x @ losses / (x @ x)), 0.0
