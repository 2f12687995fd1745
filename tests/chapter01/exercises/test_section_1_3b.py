"""1.3b の採点が、正しい解を通し、もっともらしい誤りを理由つきで退けるか。"""

import numpy as np
import pytest

from chapter01.exercises.section_1_3b import check_dense_backward, check_softmax_backward
from tests.grading import accepts, explains, waits


def dense(x, weight, dy):
    return dy @ weight.T, x.T @ dy, dy.sum(axis=0)


def dense_transposed_weight(x, weight, dy):
    return dy @ weight.T, dy.T @ x, dy.sum(axis=0)


def dense_forgotten_transpose(x, weight, dy):
    return (
        (dy @ weight if weight.shape[0] == weight.shape[1] else dy @ weight.T),
        x.T @ dy,
        dy.sum(0),
    )


def dense_mean_bias(x, weight, dy):
    return dy @ weight.T, x.T @ dy, dy.sum(axis=0) / max(len(dy), 1)


def dense_as_list(x, weight, dy):
    return list(dense(x, weight, dy))


def softmax(p, dp):
    return p * (dp - (dp * p).sum(axis=1, keepdims=True))


def softmax_diagonal(p, dp):
    return dp * p * (1 - p)


def softmax_all_rows(p, dp):
    return p * (dp - (dp * p).sum())


def softmax_without_p(p, dp):
    return dp - (dp * p).sum(axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("check", "solution"), [(check_dense_backward, dense), (check_softmax_backward, softmax)]
)
def test_solutions_pass(check, solution, capsys):
    accepts(check, solution, capsys)


@pytest.mark.parametrize(
    ("check", "wrong", "message"),
    [
        (check_dense_backward, dense_transposed_weight, "形は、もとの配列と同じ"),
        (check_dense_backward, dense_forgotten_transpose, "場所 [0]"),
        (check_dense_backward, dense_mean_bias, "平均ではありません"),
        (check_dense_backward, dense_as_list, "型が list"),
        (check_softmax_backward, softmax_diagonal, "対角成分だけ"),
        (check_softmax_backward, softmax_all_rows, "行(例)ごとに"),
        (check_softmax_backward, softmax_without_p, "場所 [0]"),
    ],
)
def test_wrong_answers_are_explained(check, wrong, message, capsys):
    explains(check, wrong, message, capsys)


@pytest.mark.parametrize("check", [check_dense_backward, check_softmax_backward])
def test_stub_is_not_a_failure(check, capsys):
    waits(check, capsys)


def test_softmax_cases_agree_with_autograd():
    import torch  # noqa: PLC0415

    z = torch.tensor([[0.3, -1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    dp = np.array([[1.0, 2.0, 4.0]])
    p = torch.softmax(z, dim=1)
    p.backward(torch.tensor(dp))
    assert z.grad is not None
    assert np.allclose(softmax(p.detach().numpy(), dp), z.grad.numpy(), rtol=0, atol=1e-12)
