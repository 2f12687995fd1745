"""4.3.2 節(RLHF)の主張の測定。

設定はシード 0 から 2 で試しながら選んだ。そこで、主張はどれも、使っていないシード 10 から先
(台帳のシード s には 10 + s)で測る。シードは、元の方策、選好の組、学習の乱数を決める。
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from chapter04.dpo import train_dpo
from chapter04.gpt import GPT
from chapter04.ppo import PPOConfig, train_ppo
from chapter04.preferences import (
    LENGTH,
    Pair,
    answers,
    base_policy,
    gold_reward,
    sample_pairs,
    start_prompts,
)
from chapter04.reward_model import RewardModel, accuracy, train_reward_model

FRESH = 10
"""設定を選ぶのに使わなかった、はじめのシード。"""
STEPS = {300: 100, 1000: 200, 3000: 300}
"""選好の組の数と、報酬モデルの歩数(300 組では、300 歩より 100 歩のほうが良かった)。"""
BLOCK = 5
"""PPO の記録をならす反復の数。"""


@dataclass(frozen=True)
class World:
    """元の方策、試験の組(本当の順で並べた 1,000 組)、学習の組(迷いのある 3,000 組)。"""

    base: GPT
    test: list[Pair]
    pairs: list[Pair]


@cache
def world(seed: int) -> World:
    """シード `FRESH + seed` の世界。"""
    base = base_policy(FRESH + seed)
    generator = torch.Generator().manual_seed(1000 + FRESH + seed)
    answers(base, start_prompts(4096), LENGTH, generator=generator)  # ノートブックと乱数を揃える
    test, pairs = (
        sample_pairs(
            base, start_prompts(1), count, gold_reward, max_new_tokens=LENGTH,
            temperature=temperature, generator=generator,
        )
        for count, temperature in ((1000, 0.0), (3000, 0.5))
    )  # fmt: skip
    return World(base, test, pairs)


@cache
def reward_model(seed: int, n_pairs: int) -> RewardModel:
    """はじめの `n_pairs` 組から学んだ報酬モデル。"""
    found = world(seed)
    return train_reward_model(
        found.base, found.pairs[:n_pairs], steps=STEPS[n_pairs], seed=FRESH + seed
    )


def more_pairs_gain(seed: int) -> float:
    """試験の組の順を当てた割合の差、3,000 組 - 300 組。"""
    few, many = (accuracy(reward_model(seed, n), world(seed).test) for n in (300, 3000))
    return many - few


def ppo_gain(seed: int) -> float:
    """本当の報酬の平均の差、PPO(3,000 組の報酬モデル、β = 0.1、40 反復)の後 - 前。"""
    base = world(seed).base
    config = PPOConfig(beta=0.1, iterations=40)
    policy, _ = train_ppo(
        base, reward_model(seed, 3000), start_prompts(1), LENGTH, config, seed=FRESH + seed,
        gold=gold_reward,
    )  # fmt: skip
    return mean_gold(policy, seed) - mean_gold(base, seed)


def dpo_gain(seed: int) -> float:
    """本当の報酬の平均の差、DPO(3,000 組、β = 0.1、200 歩)の後 - 前。"""
    found = world(seed)
    policy = train_dpo(found.base, found.pairs, beta=0.1, steps=200, seed=FRESH + seed).model
    return mean_gold(policy, seed) - mean_gold(found.base, seed)  # pyright: ignore


def mean_gold(policy: GPT, seed: int) -> float:
    """新しく書いた 1,024 個の答えの、本当の報酬の平均。"""
    generator = torch.Generator().manual_seed(2000 + FRESH + seed)
    ids, mask = answers(policy, start_prompts(1024), LENGTH, generator=generator)
    return float(gold_reward(ids, mask).mean())


def gold_peak(seed: int) -> float:
    """弱い報酬モデルを上げ続けたときの、本当の報酬の頂点と、元の方策か最後の、高いほうとの差。"""
    gold = overoptimize(seed)["gold"]
    return float(gold.max()) - max(mean_gold(world(seed).base, seed), float(gold[-1]))


def proxy_rise(seed: int) -> float:
    """同じ学習で、本当の報酬の頂点から最後までに、報酬モデルの報酬が上がった量。"""
    found = overoptimize(seed)
    return float(found["proxy"][-1] - found["proxy"][found["gold"].argmax()])


@cache
def overoptimize(seed: int) -> dict[str, NDArray[np.float64]]:
    """1,000 組の報酬モデル、β = 0.01、60 反復の PPO の記録を、5 反復ずつ平均したもの。"""
    config = PPOConfig(beta=0.01, iterations=60)
    _, history = train_ppo(
        world(seed).base, reward_model(seed, 1000), start_prompts(1), LENGTH, config,
        gold=gold_reward, seed=FRESH + seed,
    )  # fmt: skip
    return {
        name: np.array([record[name] for record in history[:-1]]).reshape(-1, BLOCK).mean(axis=1)
        for name in ("proxy", "gold", "kl")
    }
