"""3.3a の採点が、正しい解を通し、もっともらしい誤りを理由つきで退けるか。"""

import math

import pytest
import torch

from chapter03.exercises.section_3_3a import check_attention, check_softmax_backward
from tests.grading import accepts, explains, waits


def attention(q, k, v, scale=None, dim=1):
    return (q @ k.T / (scale or math.sqrt(q.shape[1]))).softmax(dim) @ v


def attention_by_hand(q, k, v):
    scores = q @ k.T / math.sqrt(q.shape[1])
    weights = (scores - scores.max(1, keepdim=True).values).exp()
    return weights / weights.sum(1, keepdim=True) @ v


def attention_overflows(q, k, v):
    weights = (q @ k.T / math.sqrt(q.shape[1])).exp()
    return weights / weights.sum(1, keepdim=True) @ v


def returns_weights(q, k, v):
    return (q @ k.T / math.sqrt(q.shape[1])).softmax(1)


def backward(p, g):
    return p * (g - (p * g).sum())


def backward_by_jacobian(p, g):
    return (torch.diag(p) - torch.outer(p, p)) @ g


@pytest.mark.parametrize(
    ("check", "solution"),
    [
        (check_attention, attention),
        (check_attention, attention_by_hand),
        (check_softmax_backward, backward),
        (check_softmax_backward, backward_by_jacobian),
    ],
)
def test_solutions_pass(check, solution, capsys):
    accepts(check, solution, capsys)


@pytest.mark.parametrize(
    ("check", "wrong", "message"),
    [
        (check_attention, lambda q, k, v: attention(q, k, v, dim=0), "キーの方向"),
        (check_attention, lambda q, k, v: attention(q, k, v, scale=1.0), "√d_k"),
        (check_attention, lambda q, k, v: attention(q, k, v, scale=q.shape[1]), "√d_k"),
        (check_attention, lambda q, k, v: attention(q, k, v, v.shape[1] ** 0.5), "√d_k"),
        (check_attention, attention_overflows, "最大値を引いて"),
        (check_attention, returns_weights, "長さ"),
        (check_softmax_backward, lambda p, g: p * (1 - p) * g, "ほかの重みも動きます"),
        (check_softmax_backward, lambda p, g: p * g, "ほかの重みも動きます"),
        (check_softmax_backward, lambda p, g: p * (g - g.mean()), "ほかの重みも動きます"),
        (check_softmax_backward, lambda p, g: g - (p * g).sum(), "ほかの重みも動きます"),
        (check_softmax_backward, lambda p, g: torch.diag(p) - torch.outer(p, p), "戻り値"),
    ],
)
def test_wrong_answers_are_explained(check, wrong, message, capsys):
    explains(check, wrong, message, capsys)


@pytest.mark.parametrize("check", [check_attention, check_softmax_backward])
def test_stub_is_not_a_failure(check, capsys):
    waits(check, capsys)
