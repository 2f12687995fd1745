"""1.3 節の前半(記法と線形代数)の主張の測定。シードは、点数・文の選び方・初期値を決める。"""

from collections import Counter
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from shared import datasets

NUM_CHARACTERS = 150
NUM_STEPS = 400
LEARNING_RATE = 0.05


def softmax(scores: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """温度つきの softmax を最後の軸について求める(Hinton ら 2015、式 (1))。"""
    scaled = scores / temperature
    weights = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def entropy_gain(seed: int) -> float:
    """温度を 1 段上げたときの、エントロピーの増え方の最小値(nat)。"""
    scores = np.random.default_rng(seed).normal(size=(1000, 10))
    levels = [softmax(scores, t) for t in np.geomspace(0.5, 8, 9)]
    entropies = np.array([-(p * np.log(p)).sum(axis=-1) for p in levels])
    return float(np.diff(entropies, axis=0).min())


def gradient_slope(seed: int) -> float:
    """温度に対する勾配のノルムの、両対数の傾きと −2 との差の絶対値(無次元)。

    教師の点数 v と生徒の点数 z の交差エントロピーを、z について微分すると (q − p) / T になる。
    """
    generator = np.random.default_rng(seed)
    teacher, student = generator.normal(size=(2, 1000, 10))
    temperatures = np.geomspace(10, 100, 9)
    norms = [np.linalg.norm((softmax(student, t) - softmax(teacher, t)) / t) for t in temperatures]
    slope = np.polyfit(np.log(temperatures), np.log(norms), 1)[0]
    return float(abs(slope + 2))


def next_character_joint(seed: int) -> Tensor:
    """Tatoeba の日本語文の半分から、頻出文字どうしの隣り合いの同時確率 (V, V) を求める。"""
    sentences = datasets.tatoeba_sentences("ja")
    order = np.random.default_rng(seed).permutation(len(sentences))[: len(sentences) // 2]
    half = [sentences[i] for i in order]
    ranked = Counter("".join(half)).most_common(NUM_CHARACTERS)
    index = {character: i for i, (character, _) in enumerate(ranked)}
    counts = np.zeros((NUM_CHARACTERS, NUM_CHARACTERS))
    for sentence in half:
        for a, b in pairwise(sentence):
            if a in index and b in index:
                counts[index[a], index[b]] += 1
    return torch.tensor(counts / counts.sum(), dtype=torch.float32)


def excess_loss(joint: Tensor, dimension: int, num_mixtures: int, seed: int) -> float:
    """次元 `dimension` の softmax を混ぜて同時確率に当てはめ、避けられない損失を引く(nat)。"""
    size = len(joint)
    generator = torch.Generator().manual_seed(seed)
    contexts = torch.randn(num_mixtures, size, dimension, generator=generator) * 0.5
    words = torch.randn(size, dimension, generator=generator) * 0.5
    mixing = torch.zeros(num_mixtures, size, 1)
    parameters = [p.requires_grad_() for p in (contexts, words, mixing)]
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE)

    def loss() -> Tensor:
        parts = torch.log_softmax(contexts @ words.T, dim=-1) + torch.log_softmax(mixing, dim=0)
        return -(joint * torch.logsumexp(parts, dim=0)).sum()

    for _ in range(NUM_STEPS):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    conditional = joint / joint.sum(dim=1, keepdim=True)
    return loss().item() + torch.xlogy(joint, conditional).sum().item()


def mixture_ratio(seed: int) -> float:
    """d = 4 の超過損失の比、4 個の softmax の混合 ÷ 1 個の softmax(無次元)。"""
    joint = next_character_joint(seed)
    return excess_loss(joint, 4, 4, seed) / excess_loss(joint, 4, 1, seed)
