"""2.6 節(バイト単位の BPE)の主張の測定。シードは、文字列・戯曲・対訳の選び方を決める。"""

from collections import Counter
from functools import cache

import numpy as np
import regex

from chapter02.bpe import BPE, ByteLevelBPE
from shared import datasets

N_STRINGS = 1000
N_PAIRS = 2000
NUM_MERGES = 4000
_CONTRACTIONS = "'s|'t|'re|'ve|'m|'ll|'d"
_WITH_SPACE = regex.compile(
    rf"{_CONTRACTIONS}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|\s+(?!\S)|\s+"
)
_WITHOUT_SPACE = regex.compile(rf"{_CONTRACTIONS}|\p{{L}}+|\p{{N}}+|[^\s\p{{L}}\p{{N}}]+|\s+")


@cache
def _pretrained(name: str) -> ByteLevelBPE:
    return ByteLevelBPE.from_pretrained(name)


def _random_string(rng: np.random.Generator) -> str:
    """代用符号 (U+D800 から U+DFFF) を除く文字を 1 から 40 個。範囲も文字列ごとに変える。"""
    top = int(rng.choice([0x80, 0x800, 0x10000, 0x110000]))
    points = rng.integers(0, top, size=int(rng.integers(1, 41)))
    return "".join(chr(p) for p in points.tolist() if not 0xD800 <= p < 0xE000)


def lost_strings(seed: int) -> float:
    """元に戻らない文字列の割合。四つの語彙のうち最大のもの(無次元)。"""
    rng = np.random.default_rng(seed)
    strings = [_random_string(rng) for _ in range(N_STRINGS)]
    english = list(datasets.shakespeare().values())[:5]
    models = [_pretrained(name) for name in ("gpt2", "cl100k_base", "o200k_base")]
    models.append(ByteLevelBPE.train(english, vocab_size=1000))
    lost = [sum(m.decode(m.encode(s)) != s for s in strings) / N_STRINGS for m in models]
    return max(lost)


def space_exception_ratio(seed: int) -> float:
    """検証用の戯曲でのトークン数の比。空白の例外あり ÷ なし(無次元)。"""
    plays = list(datasets.shakespeare().values())
    held_out = set(np.random.default_rng(seed).permutation(len(plays))[: len(plays) // 5].tolist())
    return _tokens(plays, held_out, _WITH_SPACE) / _tokens(plays, held_out, _WITHOUT_SPACE)


def _tokens(plays: list[str], held_out: set[int], pattern: regex.Pattern[str]) -> int:
    """pattern で切って学習した BPE が、検証用の戯曲に使うトークンの数。"""
    train: Counter[str] = Counter()
    test: Counter[str] = Counter()
    for i, play in enumerate(plays):
        (test if i in held_out else train).update(pattern.findall(play))
    model = BPE.train(train, NUM_MERGES, end_of_word="")
    return sum(len(model.segment(piece)) * count for piece, count in test.items())


def premium_gpt2(seed: int) -> float:
    """gpt2 の語彙での、同じ内容の日本語 ÷ 英語のトークン数(無次元)。"""
    return _premium("gpt2", seed)


def premium_o200k(seed: int) -> float:
    """o200k_base の語彙での、同じ内容の日本語 ÷ 英語のトークン数(無次元)。"""
    return _premium("o200k_base", seed)


def _premium(name: str, seed: int) -> float:
    pairs = datasets.tatoeba("ja", "en")
    chosen = np.random.default_rng(seed).choice(len(pairs), N_PAIRS, replace=False).tolist()
    japanese, english = zip(*(pairs[i] for i in chosen), strict=True)
    model = _pretrained(name)
    lengths = [sum(map(len, model.encode_batch(list(texts)))) for texts in (japanese, english)]
    return lengths[0] / lengths[1]
