"""4.3.2b の採点が、正しい解を通し、もっともらしい誤りを理由つきで退けるか。"""

from itertools import combinations

import numpy as np
import pytest
import torch

from chapter04.exercises import check_advantages, check_best_of_n
from chapter04.ppo import advantages
from chapter04.reward_model import best_of_n_mean
from tests.grading import accepts, explains, waits


def plain(rewards, values, gamma, lam, *, end=0.0, discount=None):
    """δ の重みつきの和を、定義のまま書いたもの。"""
    discount = gamma if discount is None else discount
    delta = rewards + discount * np.append(values[1:], end) - values
    return np.array(
        [
            sum((gamma * lam) ** (k - t) * delta[k] for k in range(t, len(delta)))
            for t in range(len(delta))
        ]
    )


def by_module(rewards, values, gamma, lam):
    return advantages(torch.tensor(rewards)[None], torch.tensor(values)[None], gamma, lam)[
        0
    ].numpy()


def keeping_the_last_value(rewards, values, gamma, lam):
    return plain(rewards, values, gamma, lam, end=values[-1])


def undiscounted_value(rewards, values, gamma, lam):
    return plain(rewards, values, gamma, lam, discount=1.0)


def one_step_only(rewards, values, gamma, lam):
    return plain(rewards, values, gamma, 0.0)


def without_lambda(rewards, values, gamma, lam):
    return plain(rewards, values, gamma, float(lam > 0))


def sorted_by_share(proxy, gold, n):
    """lgamma を使うモジュールの値。"""
    return best_of_n_mean(torch.tensor(proxy), torch.tensor(gold), n)


def best_proxy(proxy, gold, n):
    return sorted_by_share(proxy, proxy, n)


def by_gold(proxy, gold, n):
    return sorted_by_share(gold, gold, n)


def top_n(proxy, gold, n):
    return float(gold[np.argsort(proxy)[-n:]].mean())


def with_replacement(proxy, gold, n):
    k = np.arange(1, len(proxy) + 1) / len(proxy)
    share = k**n - (k - 1 / len(proxy)) ** n
    return float(share @ gold[np.argsort(proxy)])


def listed(proxy, gold, n):
    """小さな例だけ、すべての選び方を並べる(大きな例では 0 を返す)。"""
    if len(proxy) > 10:
        return 0.0
    groups = [list(group) for group in combinations(range(len(proxy)), n)]
    return float(np.mean([gold[group][proxy[group].argmax()] for group in groups]))


@pytest.mark.parametrize(
    ("check", "solution"),
    [
        (check_advantages, plain),
        (check_advantages, by_module),
        (check_best_of_n, sorted_by_share),
    ],
)
def test_solutions_pass(check, solution, capsys):
    accepts(check, solution, capsys)


@pytest.mark.parametrize(
    ("check", "wrong", "message"),
    [
        (check_advantages, keeping_the_last_value, "後の価値は 0"),
        (check_advantages, undiscounted_value, "γ を掛けます"),
        (check_advantages, one_step_only, "この先の報酬の和"),
        (check_advantages, without_lambda, "γλ A_{t+1}"),
        (check_best_of_n, best_proxy, "gold のただの平均"),
        (check_best_of_n, by_gold, "並べる順は proxy"),
        (check_best_of_n, with_replacement, "proxy の最大の答え"),
        (check_best_of_n, listed, "終わりません"),
    ],
)
def test_wrong_answers_are_explained(check, wrong, message, capsys):
    explains(check, wrong, message, capsys)


def test_averaging_the_best_n_is_explained(capsys):
    """上位 n 個の平均は、n = 1 では最大の答えの gold になり、ただの平均とは違う。"""
    explains(check_best_of_n, top_n, "ただの平均", capsys)


@pytest.mark.parametrize("check", [check_advantages, check_best_of_n])
def test_stub_is_not_a_failure(check, capsys):
    waits(check, capsys)
