"""1.3 節の前半の採点が、正しい解を通し、もっともらしい誤りを理由つきで退けるか。"""

import numpy as np
import pytest

from chapter01.exercises import check_rank, check_softmax
from tests.grading import accepts, explains, waits


def softmax(scores, temperature):
    shifted = (scores - scores.max(axis=-1, keepdims=True)) / temperature
    weights = np.exp(shifted)
    return weights / weights.sum(axis=-1, keepdims=True)


def softmax_without_shift(scores, temperature):
    with np.errstate(over="ignore", invalid="ignore"):
        weights = np.exp(scores / temperature)
        return weights / weights.sum(axis=-1, keepdims=True)


def softmax_of_everything(scores, temperature):
    weights = np.exp((scores - scores.max()) / temperature)
    return weights / weights.sum()


def softmax_of_columns(scores, temperature):
    return softmax(scores.T, temperature).T


def softmax_with_one_maximum(scores, temperature):
    with np.errstate(invalid="ignore"):
        weights = np.exp((scores - scores.max()) / temperature)
        return weights / weights.sum(axis=-1, keepdims=True)


def softmax_times_temperature(scores, temperature):
    return softmax(scores * temperature, 1.0)


def softmax_of_absolute(scores, temperature):
    with np.errstate(invalid="ignore"):
        return np.abs(scores) / np.abs(scores).sum(axis=-1, keepdims=True)


def eliminate(matrix, tolerance=1e-9, swap=True):
    rows, rank = [list(row) for row in matrix], 0
    for column in range(len(rows[0])):
        candidates = range(rank, len(rows) if swap else min(rank + 1, len(rows)))
        pivot = next((i for i in candidates if abs(rows[i][column]) > tolerance), None)
        if pivot is None:
            continue
        rows[rank], rows[pivot] = rows[pivot], rows[rank]
        for i in range(rank + 1, len(rows)):
            factor = rows[i][column] / rows[rank][column]
            rows[i] = [x - factor * y for x, y in zip(rows[i], rows[rank], strict=True)]
        rank += 1
    return rank


def rank_without_swap(matrix):
    return eliminate(matrix, swap=False)


def rank_without_tolerance(matrix):
    return eliminate(matrix, tolerance=0.0)


def nonzero_rows(matrix):
    return sum(any(row) for row in matrix)


def smaller_side(matrix):
    return min(len(matrix), len(matrix[0]))


@pytest.mark.parametrize(
    ("check", "solution"),
    [(check_softmax, softmax), (check_rank, eliminate), (check_rank, np.linalg.matrix_rank)],
)
def test_solutions_pass(check, solution, capsys):
    accepts(check, solution, capsys)


@pytest.mark.parametrize(
    ("check", "wrong", "message"),
    [
        (check_softmax, softmax_without_shift, "大きな点数"),
        (check_softmax, softmax_of_everything, "最後の軸"),
        (check_softmax, softmax_of_columns, "最後の軸"),
        (check_softmax, softmax_with_one_maximum, "行ごとの最大値"),
        (check_softmax, softmax_times_temperature, "温度で割って"),
        (check_softmax, softmax_of_absolute, "違います"),
        (check_softmax, lambda scores, temperature: softmax(scores, 1.0), "温度で割って"),
        (check_rank, rank_without_swap, "入れ替え"),
        (check_rank, rank_without_tolerance, "丸め誤差"),
        (check_rank, nonzero_rows, "定数倍"),
        (check_rank, smaller_side, "定数倍"),
        (check_rank, lambda matrix: float(eliminate(matrix[:2])), "違います"),
    ],
)
def test_wrong_answers_are_explained(check, wrong, message, capsys):
    explains(check, wrong, message, capsys)


@pytest.mark.parametrize("check", [check_softmax, check_rank])
def test_stub_is_not_a_failure(check, capsys):
    waits(check, capsys)
