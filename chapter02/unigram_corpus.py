"""ユニグラム言語モデルの学習の準備: 文を区切りに分け、語彙の候補(種)を数え上げる。

断片は空白や文字の種類の境を越えないと決めておくと(SentencePiece の既定)、文は境で切った「区切り」の
列になり、同じ区切りは 1 度だけ調べて回数を掛ければよい。
"""

import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import regex
from numpy.typing import NDArray

from chapter02.sentencepiece_model import SPACE

MAX_CHUNK_LENGTH = 512
"""区切りの長さの上限 [文字]。これより長い区切りは、学習の間だけ切り分ける。"""

_SEPARATOR = "\0"
_ANY_SCRIPT = -1  # どの種類の文字とも続けてよい
_INHERITED = -2  # 前の文字の種類を引き継ぐ


@dataclass(frozen=True)
class Corpus:
    """異なる区切りを長い順に並べたコーパス。

    Attributes:
        text: 区切りをつないだ文字列(区切り記号なし)。
        lengths: 各区切りの長さ [文字]、降順。 # (C,)
        counts: 各区切りの出現回数。 # (C,)
        alphabet: 必ず語彙に入れる文字(出現回数の降順)。
    """

    text: str
    lengths: NDArray[np.int64]
    counts: NDArray[np.int64]
    alphabet: list[str]

    @property
    def starts(self) -> NDArray[np.int64]:
        """各区切りの `text` での開始位置。 # (C,)"""
        return np.cumsum(self.lengths) - self.lengths


def make_corpus(
    sentences: Iterable[str],
    character_coverage: float = 0.9995,
    split_by_whitespace: bool = True,
    split_by_unicode_script: bool = True,
    split_by_number: bool = True,
) -> Corpus:
    """正規化ずみの文を区切りに分けて数える。

    アルファベットは、頻度の高い文字から順に、累積の割合が `character_coverage` に達するまで取る。
    残りの文字は未知とし、その前後で文を切る。
    """
    joined = _SEPARATOR + _SEPARATOR.join(sentences) + _SEPARATOR
    codes = np.frombuffer(joined.encode("utf-32-le"), dtype=np.uint32)
    symbols, inverse, frequency = np.unique(codes, return_inverse=True, return_counts=True)
    order = np.lexsort((symbols, -frequency))
    order = order[symbols[order] != 0]
    covered = np.cumsum(frequency[order]) - frequency[order]
    kept = order[covered < character_coverage * frequency[order].sum()]

    script = np.array([_script(chr(code), split_by_number) for code in symbols], dtype=np.int32)
    known = np.zeros(len(symbols), dtype=bool)
    known[kept] = True
    script, known = script[inverse], known[inverse]
    own = np.maximum.accumulate(np.where(script == _INHERITED, 0, np.arange(len(script))))
    script = script[own]
    cut = ~known
    cut[1:] |= cut[:-1].copy()
    if split_by_whitespace:
        cut |= codes == ord(SPACE)
    if split_by_unicode_script:
        definite = script != _ANY_SCRIPT
        cut[1:] |= (script[1:] != script[:-1]) & definite[1:] & definite[:-1]

    bounds = np.flatnonzero(cut)
    bounds = bounds[:-1][known[bounds[:-1]]], bounds[1:][known[bounds[:-1]]]
    chunks: Counter[str] = Counter()
    for start, end in zip(*(b.tolist() for b in bounds), strict=True):
        for i in range(start, end, MAX_CHUNK_LENGTH):
            chunks[joined[i : min(end, i + MAX_CHUNK_LENGTH)]] += 1
    ordered = sorted(chunks, key=len, reverse=True)
    return Corpus(
        "".join(ordered),
        np.array([len(chunk) for chunk in ordered], dtype=np.int64),
        np.array([chunks[chunk] for chunk in ordered], dtype=np.int64),
        [chr(code) for code in symbols[kept]],
    )


def _script(character: str, split_by_number: bool) -> int:
    """文字の種類 (Unicode の Script) の番号。漢字・かな・長音記号は 1 つの種類とする。"""
    if character in (SPACE, _SEPARATOR) or (not split_by_number and character.isdecimal()):
        return _ANY_SCRIPT
    if regex.match(r"\p{Script=Inherited}", character):
        return _INHERITED
    if character == "ー" or regex.match(
        r"[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}]", character
    ):
        return 1
    if regex.match(r"\p{Script=Common}", character):
        return 0
    name = unicodedata.name(character, "").partition(" ")[0]  # LATIN, CYRILLIC, HANGUL, ...
    return 2 + int.from_bytes(name.encode("ascii")[:3])


@dataclass(frozen=True)
class Seeds:
    """語彙の候補と、コーパスでの出現位置。id は `pieces` の添字で、先頭がアルファベットである。

    Attributes:
        counts: 各候補の出現回数。 # (V,)
        positions: 長さ n = 1, 2, ... の候補の、`corpus.text` での開始位置(昇順)の一覧。
        ids: `positions` と対になる候補の id の一覧。
    """

    pieces: list[str]
    counts: NDArray[np.float64]
    positions: list[NDArray[np.int32]]
    ids: list[NDArray[np.int32]]


def find_seeds(corpus: Corpus, max_length: int = 16, seed_size: int = 1_000_000) -> Seeds:
    """2 回以上現れる部分文字列から、種の語彙を選ぶ。

    論文 (3.2 節) は、全文字と、拡張接尾辞配列で数えた頻度の高い部分文字列の和集合を種とする。
    SentencePiece は「回数 × 長さ」の上位 `seed_size` 個を取り、いつも同じ文字が後に続く部分文字列
    (接尾辞木の節点でないもの)を除く。ここでは接尾辞配列の代わりに、長さ n の部分文字列の番号を、長
    さ n - 1 の番号 2 つの組(先頭の n - 1 文字、末尾の n - 1 文字)から作ることを繰り返す。
    """
    codes = np.frombuffer(corpus.text.encode("utf-32-le"), dtype=np.uint32)
    symbol_id = np.zeros(int(codes.max(initial=0)) + 1, dtype=np.int32)
    symbol_id[[ord(c) for c in corpus.alphabet]] = np.arange(len(corpus.alphabet))
    gram = symbol_id[codes]  # 位置 → 長さ n の部分文字列の番号(なければ -1)
    weights = np.repeat(corpus.counts, corpus.lengths).astype(np.float64)
    chunk_end = np.repeat((corpus.starts + corpus.lengths).astype(np.int32), corpus.lengths)
    position = np.arange(len(codes), dtype=np.int32)
    count = np.bincount(gram, weights, minlength=len(corpus.alphabet)).astype(np.float64)

    positions, ids, counts = [position], [gram], [count]
    wanted = [np.ones(len(count), dtype=bool)]  # 1 文字は必ず残す
    for n in range(2, max_length + 1):
        candidate = position[position + n <= chunk_end[position]]
        suffix = gram[candidate + 1]
        candidate, suffix = candidate[suffix >= 0], suffix[suffix >= 0]
        key = gram[candidate].astype(np.int64) * len(count) + suffix
        order = np.argsort(key)
        key = key[order]
        first = np.ones(len(key), dtype=bool)
        first[1:] = key[1:] != key[:-1]
        heads = np.flatnonzero(first)
        if len(heads) == 0:
            break
        new_count = np.add.reduceat(weights[candidate[order]], heads)
        if n > 2:  # 1 文字延ばしても回数の減らない部分文字列は、延ばしたほうだけを残す
            longest = np.zeros(len(count))
            np.maximum.at(longest, key[heads] // len(count), new_count)
            wanted[-1] &= longest < count
        frequent = new_count >= 2
        new_id = np.where(frequent, np.cumsum(frequent) - 1, -1).astype(np.int32)
        found = np.empty(len(key), dtype=np.int32)
        found[order] = new_id[np.cumsum(first) - 1]
        position = candidate[found >= 0]
        gram = np.full(len(codes), -1, dtype=np.int32)
        gram[position] = found[found >= 0]
        count = new_count[frequent]
        positions.append(position)
        ids.append(gram[position])
        counts.append(count)
        wanted.append(np.ones(len(count), dtype=bool))

    scores = np.concatenate([n * c for n, c in enumerate(counts, start=1)])
    usable = np.concatenate(wanted)
    usable[: len(corpus.alphabet)] = False
    best = np.flatnonzero(usable)
    if len(best) > seed_size:
        best = best[np.argsort(-scores[best], kind="stable")[:seed_size]]
    usable[:] = False
    usable[best] = True
    usable[: len(corpus.alphabet)] = True
    new_ids = np.where(usable, np.cumsum(usable) - 1, -1).astype(np.int32)
    pieces: list[str] = []
    offset = 0
    for n, count in enumerate(counts, start=1):
        level = new_ids[offset : offset + len(count)][ids[n - 1]]
        positions[n - 1] = positions[n - 1][level >= 0]
        ids[n - 1] = level[level >= 0]
        _, first_at = np.unique(ids[n - 1], return_index=True)
        pieces += [corpus.text[p : p + n] for p in positions[n - 1][first_at].tolist()]
        offset += len(count)
    return Seeds(pieces, np.concatenate(counts)[usable], positions, ids)
