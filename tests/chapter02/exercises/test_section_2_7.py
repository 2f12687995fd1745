"""2.7 節の採点が、正しい解を通し、もっともらしい誤りを理由つきで退けるか。"""

import math

import numpy as np
import pytest

from chapter02.exercises import check_bits_per_character, check_entropy_rate
from tests.grading import accepts, explains, waits


def bits(loss, tokens, characters):
    return loss * tokens / characters / math.log(2)


def bits_in_nats(loss, tokens, characters):
    return loss * tokens / characters


def bits_per_token(loss, tokens, characters):
    return loss / math.log(2)


def bits_with_ratio_upside_down(loss, tokens, characters):
    return loss * characters / tokens / math.log(2)


def rate_with(P, pi, log=np.log):
    P = np.array(P)
    return float(-(np.array(pi)[:, None] * P * log(np.where(P > 0, P, 1.0))).sum())


def stationary(P):
    P, pi = np.array(P), np.ones(len(P)) / len(P)
    mean = (P + np.eye(len(P))) / 2  # 怠けた連鎖にすれば、周期があっても収束する
    for _ in range(2000):
        pi = pi @ mean
    return pi


def rate(P):
    return rate_with(P, stationary(P))


def rate_uniform(P):
    return rate_with(P, [1 / len(P)] * len(P))


def rate_in_bits(P):
    return rate_with(P, stationary(P), np.log2)


def rate_by_walking(P):
    pi = np.eye(len(P))[0]
    for _ in range(1000):
        pi = pi @ np.array(P)
    return rate_with(P, pi)


def rate_with_columns(P):
    return rate_with(P, stationary(P)[::-1])


def rate_without_zero(P):
    pi = stationary(P)
    return -sum(pi[i] * p * math.log(p) for i, row in enumerate(P) for p in row)


@pytest.mark.parametrize(
    ("check", "solution"), [(check_bits_per_character, bits), (check_entropy_rate, rate)]
)
def test_solutions_pass(check, solution, capsys):
    accepts(check, solution, capsys)


@pytest.mark.parametrize(
    ("check", "wrong", "message"),
    [
        (check_bits_per_character, bits_in_nats, "ln 2"),
        (check_bits_per_character, bits_per_token, "文字数で割ります"),
        (check_bits_per_character, bits_with_ratio_upside_down, "文字数で割ります"),
        (check_entropy_rate, rate_uniform, "定常分布"),
        (check_entropy_rate, rate_in_bits, "自然対数"),
        (check_entropy_rate, rate_by_walking, "振動"),
        (check_entropy_rate, rate_with_columns, "0 にいる割合"),
        (check_entropy_rate, rate_without_zero, "例外"),
    ],
)
def test_wrong_answers_are_explained(check, wrong, message, capsys):
    explains(check, wrong, message, capsys)


@pytest.mark.parametrize("check", [check_bits_per_character, check_entropy_rate])
def test_stub_is_not_a_failure(check, capsys):
    waits(check, capsys)
