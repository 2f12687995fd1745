"""2.1 節(埋め込みと分布仮説)の主張の測定。

コーパスは Tatoeba の英文(178,031 文、140 万語)、人の判断は WordSim-353。シードは、文脈に使う文の
選び方と、skip-gram の初期値・間引き・負例を決める。
"""

from collections import defaultdict
from functools import cache

import numpy as np

from chapter02.distributional import SkipGram, context_overlap
from chapter02.word_vectors import vocabulary, words
from shared import datasets

N_SENTENCES = 50  # 語ごとに使う文の数。頻度の違いが重なりに混ざらないように、そろえる
N_COMMON = 100  # 文脈から除く、ごくありふれた語の数
DIM, EPOCHS = 50, 3  # skip-gram の次元と周回数


@cache
def corpus() -> list[list[str]]:
    """Tatoeba の英文を語に分けたもの。"""
    return [words(sentence) for sentence in datasets.tatoeba_sentences("en")]


def judgements() -> list[tuple[str, str, float]]:
    """WordSim-353 の、異なる二語の組(小文字)と、人のつけた 0 から 10 の類似度。"""
    pairs = [(a.lower(), b.lower(), score) for a, b, score in datasets.wordsim353()]
    return [(a, b, score) for a, b, score in pairs if a != b]


@cache
def places() -> dict[str, set[int]]:
    """WordSim-353 の語ごとの、その語を含む文の番号。"""
    wanted = {word for a, b, _ in judgements() for word in (a, b)}
    where = defaultdict(set)
    for i, sentence in enumerate(corpus()):
        for word in wanted.intersection(sentence):
            where[word].add(i)
    return where


def overlaps(seed: int, unit: str = "token") -> list[tuple[str, str, float, float]]:
    """(語, 語, 人のつけた類似度, 文脈の重なり) を、類似度の高い順に並べる。

    二語の片方だけを含む文を 50 ずつ無作為に選び、その中の内容語(最頻 100 語を除く)を文脈とする。
    """
    common, rng = set(list(vocabulary(corpus()))[:N_COMMON]), np.random.default_rng(seed)
    rows = []
    for a, b, score in judgements():
        sides = [sorted(places()[x] - places()[y]) for x, y in ((a, b), (b, a))]
        if min(map(len, sides)) < N_SENTENCES:
            continue
        around = [
            [w for i in rng.choice(side, N_SENTENCES, replace=False) for w in corpus()[i]]
            for side in sides
        ]
        kept = [[w for w in side if w not in common and w not in (a, b)] for side in around]
        rows.append((a, b, score, context_overlap(kept[0], kept[1], unit)))
    return sorted(rows, key=lambda row: -row[2])


def overlap_ratio(seed: int) -> float:
    """文脈の重なり M_k の平均の比、類似度の上位 1/4 の組 ÷ 下位 1/4 の組。"""
    values = [value for *_, value in overlaps(seed)]
    quarter = len(values) // 4
    return float(np.mean(values[:quarter]) / np.mean(values[-quarter:]))


def overlap_steepness(seed: int) -> float:
    """類似度の上位・中位・下位三分の一の重なり M_k の平均を比べた、(上 - 中) - (中 - 下)。"""
    values = [value for *_, value in overlaps(seed)]
    high, middle, low = (float(np.mean(third)) for third in np.array_split(values, 3))
    return (high - middle) - (middle - low)


@cache
def skipgram_agreement(seed: int, power: float = 0.75) -> float:
    """skip-gram のコサイン類似度と人のつけた類似度の、Spearman の順位相関。"""
    model = SkipGram(corpus(), dim=DIM, power=power, seed=seed)
    model.train(EPOCHS)
    return model.embeddings().agreement(judgements())[0]


def noise_power_gain(seed: int) -> float:
    """順位相関の差、U^{3/4} - (U と一様分布のうち良いほう)。"""
    others = [skipgram_agreement(seed, power) for power in (0.0, 1.0)]
    return skipgram_agreement(seed) - max(others)
