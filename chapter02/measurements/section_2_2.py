"""2.2 節(サブワードの必要性)の主張の測定。シードは、戯曲の順と検証に回す文章の選び方を決める。"""

import math
from collections import Counter

import numpy as np
import regex

from chapter02.bpe import BPE
from chapter02.corpus_statistics import fit_power_law, unknown_rates, vocabulary_growth
from shared import datasets

_WORD = regex.compile(r"\p{L}+")


def _plays(seed: int) -> list[list[str]]:
    """戯曲ごとの単語の列を、シードで並べ替えたもの。"""
    plays = list(datasets.shakespeare().values())
    order = np.random.default_rng(seed).permutation(len(plays))
    return [_WORD.findall(plays[i].lower()) for i in order]


def heaps_extrapolation_error(seed: int) -> float:
    """前半の語だけで当てはめた Heaps の法則が、全体の語彙の大きさを外す相対誤差(無次元)。"""
    growth = vocabulary_growth([word for play in _plays(seed) for word in play])
    n = np.unique(np.geomspace(100, len(growth) // 2, 50).astype(int))
    k, beta = fit_power_law(n, growth[n - 1])
    return abs(k * len(growth) ** beta / growth[-1] - 1)


def unknown_ratio_after_doubling(seed: int) -> float:
    """学習データを半分から全部にしたときの、検証データの未知語の割合の比(無次元)。"""
    plays = _plays(seed)
    held_out = len(plays) // 5
    test = Counter(word for play in plays[:held_out] for word in play)
    train = [word for play in plays[held_out:] for word in play]
    half, full = Counter(train[: len(train) // 2]), Counter(train)
    return float(
        unknown_rates(full, test, [len(full)])[0] / unknown_rates(half, test, [len(half)])[0]
    )


def balance_position(seed: int) -> float:
    """文字と単語の中間の語彙をもつ BPE の、列の長さの位置(文字 1、単語 0、ともに対数で測る)。

    位置は ln(L_BPE / L_単語) / ln(L_文字 / L_単語)。L は検証用の文の、1 文あたりの記号の数。
    """
    sentences = datasets.tatoeba_sentences("en")
    order = np.random.default_rng(seed).permutation(len(sentences))
    words = [_WORD.findall(sentences[i].lower()) for i in order]
    held_out = len(words) // 10
    test = Counter(word for sentence in words[:held_out] for word in sentence)
    train = Counter(word for sentence in words[held_out:] for word in sentence)
    characters = len({letter for word in train for letter in word}) + 1
    vocabulary = round(math.sqrt(characters * len(train)))
    model = BPE.train(train, vocabulary - characters)
    lengths = [
        sum(n * len(symbols(word)) for word, n in test.items())
        for symbols in (lambda word: [word], model.segment, lambda word: [*word, "</w>"])
    ]
    word, bpe, character = (math.log(length) for length in lengths)
    return (bpe - word) / (character - word)
