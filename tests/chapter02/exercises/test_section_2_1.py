"""2.1 節の採点が、正しい解を通し、もっともらしい誤りを理由つきで退けるか。"""

import math
from collections import Counter

import pytest

from chapter02.exercises import check_context_overlap, check_sgns_gradient
from tests.grading import accepts, explains, waits


def overlap(a, b, unit):
    if unit == "type":
        a, b = set(a), set(b)
        return len(a & b) / min(len(a), len(b))
    common = Counter(a) & Counter(b)
    return sum(common.values()) / min(len(a), len(b))


def overlap_jaccard(a, b, unit):
    return len(set(a) & set(b)) / len(set(a) | set(b))


def overlap_over_larger(a, b, unit):
    return overlap(a, b, unit) * min(len(a), len(b)) / max(len(a), len(b))


def overlap_types_only(a, b, unit):
    return overlap(a, b, "type")


def overlap_tokens_only(a, b, unit):
    return overlap(a, b, "token")


def overlap_counts_membership(a, b, unit):
    if unit == "type":
        return overlap(a, b, unit)
    return sum(word in b for word in a) / min(len(a), len(b))


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def dot(x, y):
    return sum(p * q for p, q in zip(x, y, strict=True))


def gradient(v, u, negatives):
    weights = [sigmoid(dot(u, v)) - 1] + [sigmoid(dot(n, v)) for n in negatives]
    return [dot(weights, column) for column in zip(u, *negatives, strict=True)]


def gradient_of_the_objective(v, u, negatives):
    return [-g for g in gradient(v, u, negatives)]


def gradient_same_sign(v, u, negatives):
    return [
        (sigmoid(dot(u, v)) - 1) * a - sum(sigmoid(dot(n, v)) * n[i] for n in negatives)
        for i, a in enumerate(u)
    ]


def gradient_first_negative(v, u, negatives):
    return gradient(v, u, negatives[:1])


def gradient_averaged(v, u, negatives):
    positive = gradient(v, u, [])
    return [
        p + (g - p) / max(1, len(negatives))
        for p, g in zip(positive, gradient(v, u, negatives), strict=True)
    ]


def gradient_with_respect_to_u(v, u, negatives):
    return [(sigmoid(dot(u, v)) - 1) * x for x in v]


@pytest.mark.parametrize(
    ("check", "solution"),
    [(check_context_overlap, overlap), (check_sgns_gradient, gradient)],
)
def test_solutions_pass(check, solution, capsys):
    accepts(check, solution, capsys)


@pytest.mark.parametrize(
    ("check", "wrong", "message"),
    [
        (check_context_overlap, overlap_jaccard, "小さいほう"),
        (check_context_overlap, overlap_over_larger, "小さいほう"),
        (check_context_overlap, overlap_types_only, "少ないほう"),
        (check_context_overlap, overlap_tokens_only, "一つと数えます"),
        (check_context_overlap, overlap_counts_membership, "小さいほう"),
        (check_sgns_gradient, gradient_of_the_objective, "損失の勾配"),
        (check_sgns_gradient, gradient_same_sign, "正例の係数"),
        (check_sgns_gradient, gradient_first_negative, "すべての和"),
        (check_sgns_gradient, gradient_averaged, "すべての和"),
        (check_sgns_gradient, gradient_with_respect_to_u, "場所"),
    ],
)
def test_wrong_answers_are_explained(check, wrong, message, capsys):
    explains(check, wrong, message, capsys)


@pytest.mark.parametrize("check", [check_context_overlap, check_sgns_gradient])
def test_stub_is_not_a_failure(check, capsys):
    waits(check, capsys)
