"""4.3.2 節(報酬モデルと PPO)の演習の採点。"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from shared.learning import Case, grade

Array = NDArray[np.float64]


def check_advantages(my_advantages: Callable[[Array, Array, float, float], Array]) -> None:
    """報酬 (T,) と価値 (T,) から求めた、一般化アドバンテージ推定 (T,) を採点する。"""
    delta = "δ_t = r_t + γ V_{t+1} - V_t です(V_{t+1} にも γ を掛けます)"
    end = "最後のトークンの後の価値は 0 です"
    backwards = "A_t = δ_t + γλ A_{t+1} を、後ろから求めます"
    one_step = "λ = 0 なら δ_t だけです"
    returns = "λ = 1、γ = 1 なら、この先の報酬の和から V_t を引いたものです"
    rewards, values = np.array([1.0, -0.5, 0.0, 2.0]), np.array([0.5, 1.0, -1.0, 0.25])

    def case(r: Array, v: Array, weights: tuple[float, float], edge: str, hint: str) -> Case:
        return Case((r, v, *weights), _advantages(r, v, *weights), edge, hint, 1e-9)

    cases = [
        case(np.array([2.0]), np.array([0.5]), (0.9, 0.9), "1 トークン", end),
        case(rewards, values, (0.9, 0.0), "λ = 0", f"{one_step}。{delta}。{end}"),
        case(rewards, values, (1.0, 1.0), "λ = 1", f"{returns}。{backwards}"),
        case(rewards, values, (0.9, 0.5), "γ = 0.9、λ = 0.5", f"{backwards}。{delta}"),
        case(rewards, values, (0.0, 1.0), "γ = 0", delta),
    ]
    grade("4.3.2b 演習 3", my_advantages, cases)


def _advantages(rewards: Array, values: Array, gamma: float, lam: float) -> Array:
    """δ_t を γλ の重みで足した A_t (Schulman+ 2016, 式 (16))。"""
    following = 0.0
    delta = rewards + gamma * np.append(values[1:], 0.0) - values
    result = np.zeros_like(delta)
    for t in reversed(range(len(delta))):
        following = delta[t] + gamma * lam * following
        result[t] = following
    return result


def check_best_of_n(my_best_of_n: Callable[[Array, Array, int], float]) -> None:
    """N 個の答えから n 個を選ぶすべての選び方で、proxy の最大の答えの gold を平均して採点する。"""
    shares = (
        "proxy の順に並べて k 番目(1 から)の答えが選ばれるのは、残りの n - 1 個がみなそれより下の"
        "ときで、割合は C(k-1, n-1) / C(N, n) です"
    )
    order = "並べる順は proxy、平均するのは gold です"
    single = "n = 1 なら、gold のただの平均です"
    everything = "n = N なら、proxy の最大の答えの gold です"
    many = "C(N, n) 通りをすべて並べると、終わりません。割合の式を使います"
    proxy = np.array([0.9, 0.1, 0.7, 0.4, -1.0, 0.2])
    gold = np.array([4.0, 2.0, 3.0, 5.0, 1.0, 7.0])
    generator = np.random.default_rng(0)
    large = generator.normal(size=300), generator.normal(size=300)

    def case(p: Array, g: Array, n: int, edge: str, hint: str) -> Case:
        return Case((p, g, n), _best_of_n(p, g, n), edge, hint, 1e-6)

    cases = [
        case(proxy, gold, 1, "n = 1", single),
        case(proxy, gold, 6, "n = N", f"{everything}。{order}"),
        case(proxy, gold, 2, "6 個から 2 個", f"{shares}。{order}"),
        case(proxy, gold, 4, "6 個から 4 個", shares),
        case(*large, 100, "300 個から 100 個", many),
    ]
    grade("4.3.2b 演習 4", my_best_of_n, cases)


def _best_of_n(proxy: Array, gold: Array, n: int) -> float:
    """Σ_k C(k-1, n-1) / C(N, n) gold_(k)、k は proxy の順。整数で数えるので誤差がない。"""
    total = math.comb(len(proxy), n)
    shares = [math.comb(k, n - 1) / total for k in range(len(proxy))]
    return float(np.dot(shares, gold[np.argsort(proxy)]))
