"""2.4 節(ユニグラム言語モデル)の主張の測定。シードは、使う文の選び方と乱数を決める。"""

import math
from collections import Counter
from itertools import pairwise

import numpy as np

from chapter02.bpe import BPE
from chapter02.unigram import Unigram
from chapter02.unigram_plain import corpus_log_likelihood, em_step
from shared import datasets

VOCAB_SIZE = 6000
ALPHAS = (0.1, 0.2, 0.5, 1.0)


def split(seed: int, n_train: int, n_test: int) -> tuple[list[str], list[str]]:
    """シードで選んだ Tatoeba の日本語の (学習文, 検証文)。同じ文は除いてあり、両者は重ならない。"""
    sentences = sorted(set(datasets.tatoeba_sentences("ja")))
    order = np.random.default_rng(seed).permutation(len(sentences))[: n_train + n_test]
    chosen = [sentences[i] for i in order]
    return chosen[:n_train], chosen[n_train:]


def substrings(texts: list[str], longest: int, at_least: int) -> list[str]:
    """1 文字はすべて、2 文字以上 `longest` 文字以下は `at_least` 回以上現れる部分文字列。"""
    counts = Counter(
        text[i : i + n]
        for text in texts
        for n in range(1, longest + 1)
        for i in range(len(text) - n + 1)
    )
    return sorted(piece for piece, c in counts.items() if len(piece) == 1 or c >= at_least)


def smallest_em_gain(seed: int) -> float:
    """乱数の初期値から EM を 10 回進めたときの、1 文字あたりの対数尤度の増え方の最小値 [nat]。"""
    texts, _ = split(seed, 300, 0)
    vocabulary = substrings(texts, longest=4, at_least=2)
    weights = np.random.default_rng(seed).exponential(size=len(vocabulary))
    probabilities = dict(zip(vocabulary, (weights / weights.sum()).tolist(), strict=True))
    history = [corpus_log_likelihood(probabilities, texts)]
    for _ in range(10):
        probabilities = em_step(probabilities, texts)
        history.append(corpus_log_likelihood(probabilities, texts))
    return min(after - before for before, after in pairwise(history)) / sum(map(len, texts))


def smallest_alpha_gain(seed: int) -> float:
    """標本が最良の切り方と一致する割合の、隣り合う α の間の増え方の最小値。"""
    train, test = split(seed, 10_000, 200)
    model = Unigram.train(train, 4000)
    generator = np.random.default_rng(seed)
    best = [model.tokenize(text) for text in test]
    shares = []
    for alpha in ALPHAS:
        lattices = [model.lattice(text) for text in test]
        hits = sum(
            [model.pieces[e.piece_id] for e in lattice.sample(alpha, generator)] == pieces
            for lattice, pieces in zip(lattices, best, strict=True)
            for _ in range(20)
        )
        shares.append(hits / (20 * len(test)))
    return min(after - before for before, after in pairwise(shares))


def code_length_ratio(seed: int) -> float:
    """検証文の 1 文字あたりの符号長 -log p の比、ユニグラム言語モデル ÷ BPE(同じ語彙の大きさ)。

    どちらも文を前もって区切らずに学習し、全部の文字を語彙に入れる。BPE の p は、学習文を切ったとき
    の回数から求める(0 回の断片は 0.5 回とみなす。ユニグラム言語モデルの学習と同じである)。
    """
    train, test = split(seed, 10_000, 2_000)
    unigram = Unigram.train(
        train,
        VOCAB_SIZE,
        character_coverage=1.0,
        split_by_unicode_script=False,
        split_by_number=False,
    )
    texts = [unigram.normalize(text) for text in train]
    letters = set("".join(texts))
    held_out = [text for text in test if set(unigram.normalize(text)) <= letters]
    bpe = BPE.train(Counter(texts), VOCAB_SIZE - 1 - len(letters), end_of_word="")
    counts = Counter(piece for text in texts for piece in bpe.segment(text))
    vocabulary = letters | {a + b for a, b in bpe.merges}
    smoothed = {piece: max(counts[piece], 0.5) for piece in vocabulary}
    total = sum(smoothed.values())
    by_bpe = sum(
        -math.log(smoothed[piece] / total)
        for text in held_out
        for piece in bpe.segment(unigram.normalize(text))
    )
    by_unigram = sum(-unigram.nbest(text, 1)[0][1] for text in held_out)
    return by_unigram / by_bpe
