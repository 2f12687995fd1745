"""2.1 節(埋め込みと分布仮説)の主張の測定。

コーパスは Tatoeba の英文(178,031 文、140 万語)、人の判断は WordSim-353。シードは、文脈に使う文の選び方
と、skip-gram の初期値・間引き・負例を決める。
"""

from collections import defaultdict
from functools import cache

import numpy as np
from scipy.stats import spearmanr

from chapter02.distributional import SkipGram, context_overlap
from chapter02.word_vectors import vocabulary, words
from shared import datasets

N_SENTENCES = 50  # 語ごとに使う文の数。頻度の違いが重なりに混ざらないように、そろえる
N_COMMON = 100  # 文脈から除く、ごくありふれた語の数


@cache
def corpus() -> list[list[str]]:
    """Tatoeba の英文を語に分けたもの。"""
    return [words(sentence) for sentence in datasets.tatoeba_sentences("en")]


def judgements() -> list[tuple[str, str, float]]:
    """WordSim-353 の、異なる二語の組(小文字)と、人のつけた 0 から 10 の類似度。"""
    pairs = [(a.lower(), b.lower(), score) for a, b, score in datasets.wordsim353()]
    return [(a, b, score) for a, b, score in pairs if a != b]


def overlaps(seed: int, unit: str = "type") -> list[tuple[str, str, float, float]]:
    """(語, 語, 人のつけた類似度, 文脈の重なり) の一覧。

    二語の片方だけを含む文を 50 ずつ無作為に選び、その中の内容語(最頻 100 語を除く)を文脈とする。
    """
    sentences, rng = corpus(), np.random.default_rng(seed)
    common = set(list(vocabulary(sentences))[:N_COMMON])
    wanted = {word for a, b, _ in judgements() for word in (a, b)}
    where = defaultdict(list)
    for i, sentence in enumerate(sentences):
        for word in wanted.intersection(sentence):
            where[word].append(i)
    rows = []
    for a, b, score in judgements():
        sides = [sorted(set(where[x]) - set(where[y])) for x, y in ((a, b), (b, a))]
        if min(map(len, sides)) < N_SENTENCES:
            continue
        contexts = [
            [w for i in rng.choice(side, N_SENTENCES, replace=False) for w in sentences[i]]
            for side in sides
        ]
        kept = [[w for w in side if w not in common and w not in (a, b)] for side in contexts]
        rows.append((a, b, score, context_overlap(kept[0], kept[1], unit)))
    return rows


def overlap_correlation(seed: int) -> float:
    """文脈の重なり(異なり)と人のつけた類似度の、Spearman の順位相関。"""
    _, _, scores, values = zip(*overlaps(seed), strict=True)
    return float(spearmanr(scores, values).statistic)  # pyright: ignore[reportAttributeAccessIssue]


def overlap_steepness(seed: int) -> float:
    """類似度の上位・中位・下位三分の一の平均の重なりを比べた、(上 - 中) - (中 - 下)。"""
    ordered = [value for *_, value in sorted(overlaps(seed), key=lambda row: row[2])]
    low, middle, high = (float(np.mean(third)) for third in np.array_split(ordered, 3))
    return (high - middle) - (middle - low)


def skip_gram_correlation(seed: int, threshold: float = 1e-4, epochs: int = 6) -> float:
    """skip-gram のコサイン類似度と人のつけた類似度の、Spearman の順位相関。"""
    model = SkipGram(corpus(), threshold=threshold, seed=seed)
    model.train(epochs)
    return model.embeddings().agreement(judgements())[0]


def subsampling_speedup(seed: int) -> float:
    """間引かないときの一周回の組の数 ÷ 間引いたとき (t = 1e-4) の組の数。"""
    plain, thinned = (SkipGram(corpus(), threshold=t, seed=seed) for t in (1.0, 1e-4))
    return len(plain.pairs()[0]) / len(thinned.pairs()[0])


def subsampling_gain(seed: int) -> float:
    """ほぼ同じ数の組で学習したときの順位相関の差、間引きあり (5 周回) - なし (1 周回)。"""
    return skip_gram_correlation(seed, epochs=5) - skip_gram_correlation(seed, 1.0, epochs=1)


def noise_power_gain(seed: int) -> float:
    """順位相関の差、U^{3/4} - (U と一様のうち良いほう)。"""
    scores = {}
    for power in (0.0, 0.75, 1.0):
        model = SkipGram(corpus(), power=power, seed=seed)
        model.train()
        scores[power] = model.embeddings().agreement(judgements())[0]
    return scores[0.75] - max(scores[0.0], scores[1.0])
