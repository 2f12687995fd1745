"""2.1 節(埋め込みと分布仮説)の主張の測定。

コーパスは Tatoeba の英文(140 万語)、ものさしは WordSim-353。シードは、文脈を集める文の選び方と、
skip-gram の初期値・間引き・負例のすべてを決める。
"""

from functools import cache

import numpy as np

from chapter02.distributional import SkipGram, context_overlap
from chapter02.word_vectors import words
from shared import datasets

DIM, EPOCHS = 50, 2
SENTENCES_PER_WORD, FUNCTION_WORDS = 100, 100


@cache
def corpus() -> list[list[str]]:
    """英文を語の list にしたもの。"""
    return [words(sentence) for sentence in datasets.tatoeba_sentences("en")]


def human_pairs() -> list[tuple[str, str, float]]:
    """WordSim-353 の異なる二語の組と、人のつけた点数(語は小文字)。"""
    rows = [(a.lower(), b.lower(), score) for a, b, score in datasets.wordsim353()]
    return [row for row in rows if row[0] != row[1]]


@cache
def sentences_with() -> dict[str, list[int]]:
    """WordSim-353 の語ごとの、その語を含む文の番号。"""
    places: dict[str, list[int]] = {word: [] for a, b, _ in human_pairs() for word in (a, b)}
    for i, sentence in enumerate(corpus()):
        for word in set(sentence) & places.keys():
            places[word].append(i)
    return places


@cache
def function_words() -> frozenset[str]:
    """どの文にも出る機能語の代わりに、最頻の語を文脈から除く。"""
    counts: dict[str, int] = {}
    for sentence in corpus():
        for word in sentence:
            counts[word] = counts.get(word, 0) + 1
    return frozenset(sorted(counts, key=lambda word: -counts[word])[:FUNCTION_WORDS])


def overlaps(seed: int, unit: str = "token") -> list[tuple[str, str, float, float]]:
    """(語, 語, 人の点数, 文脈の重なり) を、点数の高い順に並べる。

    どちらの語も、二語が一緒に出る文を除いて 100 文以上に現れる組だけを使い、語ごとに無作為な 100 文を
    選ぶ(Rubenstein & Goodenough は、語ごとに人に文を書いてもらった)。
    """
    rng, rows = np.random.default_rng(seed), []
    for a, b, score in human_pairs():
        both = set(sentences_with()[a]) & set(sentences_with()[b])
        chosen = [[i for i in sentences_with()[word] if i not in both] for word in (a, b)]
        if min(map(len, chosen)) < SENTENCES_PER_WORD:
            continue
        sampled = [rng.choice(places, SENTENCES_PER_WORD, replace=False) for places in chosen]
        around = [
            [w for i in places for w in corpus()[i] if w not in function_words() | {a, b}]
            for places in sampled
        ]
        rows.append((a, b, score, context_overlap(*around, unit=unit)))
    return sorted(rows, key=lambda row: -row[2])


def overlap_ratio(seed: int) -> float:
    """文脈の重なり M_k の平均の比、点数の上位 1/4 の組 ÷ 下位 1/4 の組。"""
    measured = [overlap for *_, overlap in overlaps(seed)]
    quarter = len(measured) // 4
    return float(np.mean(measured[:quarter]) / np.mean(measured[-quarter:]))


@cache
def learned(seed: int, power: float = 0.75) -> SkipGram:
    """負例の分布の指数が `power` の skip-gram を学習する(CPU 1 コアで 10 秒ほど)。"""
    model = SkipGram(corpus(), dim=DIM, power=power, seed=seed)
    model.train(EPOCHS)
    return model


def agreement(model: SkipGram) -> float:
    """WordSim-353 との Spearman の順位相関。"""
    return model.embeddings().agreement(human_pairs())[0]


def skipgram_agreement(seed: int) -> float:
    """3/4 乗の負例で学習した skip-gram の、人の点数との順位相関。"""
    return agreement(learned(seed))


def noise_power_gain(seed: int) -> float:
    """順位相関の差、3/4 乗 − (一様分布とユニグラム分布の良いほう)。"""
    return agreement(learned(seed)) - max(agreement(learned(seed, p)) for p in (0.0, 1.0))
