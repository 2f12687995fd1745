"""4.2.2 の採点が、正しい解を通し、もっともらしい誤りを理由つきで退けるか。"""

import math

import numpy as np
import pytest
from scipy.optimize import nnls

from chapter04.exercises import check_fit_given_b, check_three_points
from tests.grading import accepts, explains, waits


def three(compute, losses):
    """書き方を変えた解: c の閉じた式から。"""
    (x, y, _), (p, q, r) = compute, losses
    c = (p * r - q * q) / (p + r - 2 * q)
    b = math.log((p - c) / (q - c)) / math.log(y / x)
    return (p - c) * x**b, b, c


def upside_down(compute, losses):
    a, b, c = three(compute, losses)
    return a, -b, c


def pure_line(compute, losses):
    b = math.log(losses[0] / losses[2]) / math.log(compute[2] / compute[0])
    return losses[0] * compute[0] ** b, b, 0.0


def lowest_as_floor(compute, losses):
    a, b, _ = three(compute, losses)
    return a, b, losses[2]


def height_at_the_first(compute, losses):
    _, b, c = three(compute, losses)
    return losses[0] - c, b, c


def always_a_floor(compute, losses):
    a, b, c = three(compute, losses)
    return (a, b, c) if abs(c) > 1e-9 else (a, b, 0.1)


def by_nnls(compute, losses, b):
    """c だけを 0 以上にする: a も正なので、非負の最小二乗法と同じ。"""
    (a, c), _ = nnls(np.stack([compute**-b, np.ones_like(compute)], 1), losses)
    return float(a), float(c)


def swapped(compute, losses, b):
    return by_nnls(compute, losses, b)[::-1]


def negative_floor(compute, losses, b):
    a, c = np.polyfit(compute**-b, losses, 1)
    return float(a), float(c)


def cut_floor(compute, losses, b):
    a, c = negative_floor(compute, losses, b)
    return a, max(c, 0.0)


def growing(compute, losses, b):
    return by_nnls(compute, losses, -b)


def ends_only(compute, losses, b):
    x = compute**-b
    a = (losses[0] - losses[-1]) / (x[0] - x[-1])
    return float(a), float(losses[0] - a * x[0])


@pytest.mark.parametrize(
    ("check", "solution"), [(check_three_points, three), (check_fit_given_b, by_nnls)]
)
def test_solutions_pass(check, solution, capsys):
    accepts(check, solution, capsys)


@pytest.mark.parametrize(
    ("check", "wrong", "message"),
    [
        (check_three_points, upside_down, "計算量の比の b 乗"),
        (check_three_points, pure_line, "引き算で c が消えます"),
        (check_three_points, lowest_as_floor, "引き算で c が消えます"),
        (check_three_points, height_at_the_first, "C1 が 1 とは限りません"),
        (check_three_points, always_a_floor, "ただのべき乗則"),
        (check_fit_given_b, swapped, "傾きが a、切片が c"),
        (check_fit_given_b, growing, "x = C^-b"),
        (check_fit_given_b, ends_only, "最小二乗法"),
        (check_fit_given_b, negative_floor, "切片が負になったら"),
        (check_fit_given_b, cut_floor, "当てはめ直します"),
    ],
)
def test_wrong_answers_are_explained(check, wrong, message, capsys):
    explains(check, wrong, message, capsys)


@pytest.mark.parametrize("check", [check_three_points, check_fit_given_b])
def test_stub_is_not_a_failure(check, capsys):
    waits(check, capsys)
