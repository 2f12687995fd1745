"""2.3 節(BPE)の主張の測定。シードは、検証に回す戯曲の選び方を決める。"""

from collections import Counter

import numpy as np
import regex

from chapter02.bpe import BPE
from shared import datasets

NUM_MERGES = 4000
_WORD = regex.compile(r"\p{L}+")


def _split(seed: int) -> tuple[Counter[str], Counter[str]]:
    """戯曲の 4/5 と 1/5 に分けた単語の回数(学習, 検証)。"""
    plays = list(datasets.shakespeare().values())
    held_out = set(np.random.default_rng(seed).permutation(len(plays))[: len(plays) // 5].tolist())
    counts = Counter(), Counter()
    for i, play in enumerate(plays):
        counts[i in held_out].update(_WORD.findall(play.lower()))
    return counts


def unknown_ratio(seed: int) -> float:
    """検証データでの、未知の記号の割合 ÷ 未知の単語の割合(無次元)。"""
    train, test = _split(seed)
    model = BPE.train(train, NUM_MERGES)
    known = {s for word in train for s in (*word, "</w>")} | {a + b for a, b in model.merges}
    segmented = [(model.segment(word), count) for word, count in test.items()]
    pieces = sum(len(symbols) * count for symbols, count in segmented)
    unknown = sum(count * sum(s not in known for s in symbols) for symbols, count in segmented)
    unknown_words = sum(count for word, count in test.items() if word not in train)
    return (unknown / pieces) / (unknown_words / test.total())


def frequent_words_whole(seed: int) -> float:
    """学習データの最頻 1,000 語のうち、一つの記号になる単語の割合。"""
    train, _ = _split(seed)
    model = BPE.train(train, NUM_MERGES)
    return sum(len(model.segment(word)) == 1 for word, _ in train.most_common(1000)) / 1000
