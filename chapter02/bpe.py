"""バイト対符号化 (BPE) によるサブワード分割。

`BPE` は Sennrich et al. (2015) "Neural Machine Translation of Rare Words with Subword Units"
(arXiv:1508.07909) の Algorithm 1 をそのまま実装する。文字の代わりにバイトを最小単位とする
`ByteLevelBPE` は chapter02/byte_level_bpe.py にあり、ここからも import できる。
"""

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Self

from chapter02.byte_level_bpe import ByteLevelBPE
from shared.checks import require_int, require_text, shown

__all__ = ["BPE", "ByteLevelBPE", "merge_pair"]

Pair = tuple[str, str]


class BPE:
    """語を文字に分け、学習した順に隣接対をつないでサブワードにする (Sennrich et al. 2015, 3.2 節)。

    Attributes:
        merges: つないだ対の並び。前にあるものほど先に学習された。
        end_of_word: 語の終わりを表す記号。空文字列なら付けない。
    """

    def __init__(self, merges: Iterable[Pair], end_of_word: str = "</w>") -> None:
        self.merges = list(merges)
        self.end_of_word = require_text(end_of_word, "end_of_word")
        self._rank = {pair: rank for rank, pair in reversed([*enumerate(self.merges)])}

    @classmethod
    def train(
        cls, word_counts: Mapping[str, int], num_merges: int, end_of_word: str = "</w>"
    ) -> Self:
        """最も多い隣接対をつなぐことを `num_merges` 回くり返す (Algorithm 1)。

        つなぐ対は argmax_(a,b) Σ_w n(w) · #{w の中で a の直後に b が来る位置}。同数のときは、
        そのときの分割を `word_counts` の順に、語の中は左から読んで、先に現れる対を選ぶ。重なる対
        (aaa の中の a a)は左からつなぐ。対がなくなれば、そこで終わる。

        Args:
            word_counts: 語 → 出現数。出現数 0 の語は無視する。
            num_merges: マージの回数の上限。
            end_of_word: 語の末尾に付ける記号。

        Raises:
            TypeError: `word_counts` が辞書でない、語が str でない、数が整数でないとき。
            ValueError: 出現数や `num_merges` が負のとき。
        """
        word_counts = _require_word_counts(word_counts)
        num_merges = require_int(num_merges, "num_merges", 0)
        end = [end_of_word] if require_text(end_of_word, "end_of_word") else []
        corpus = _WordCorpus([([*word, *end], count) for word, count in word_counts.items()])
        merges: list[Pair] = []
        while len(merges) < num_merges and (pair := corpus.most_frequent()) is not None:
            corpus.merge(pair)
            merges.append(pair)
        return cls(merges, end_of_word)

    def segment(self, word: str) -> list[str]:
        """`word` をサブワードに分ける(つなぐと `word + end_of_word` になる)。

        含まれる対のうち最も先に学習されたものを、全部の位置でつなぐことをくり返す。

        Raises:
            TypeError: `word` が str でないとき。
        """
        symbols = [*require_text(word, "word")] + ([self.end_of_word] if self.end_of_word else [])
        while known := [pair for pair in pairwise(symbols) if pair in self._rank]:
            symbols = merge_pair(symbols, min(known, key=self._rank.__getitem__))
        return symbols


def merge_pair(symbols: list[str], pair: Pair) -> list[str]:
    """`symbols` の中の隣接対 `pair` を、左から順に重ならないようにつないだ並びを返す。"""
    merged: list[str] = []
    place = 0
    while place < len(symbols):
        if tuple(symbols[place : place + 2]) == pair:
            merged.append(pair[0] + pair[1])
            place += 2
        else:
            merged.append(symbols[place])
            place += 1
    return merged


class _WordCorpus:
    """語の今の分割と対の出現数。毎回すべてを数え直さず、変わった語の分だけ増減させる。"""

    def __init__(self, words: list[tuple[list[str], int]]) -> None:
        self.words = [symbols for symbols, _ in words]
        self.counts = [count for _, count in words]
        self.pair_counts: Counter[Pair] = Counter()
        self.where: dict[Pair, list[int]] = {}  # 対を含む(含んでいた)語の番号のヒープ
        # (-出現数, 最初に現れる語, 語の中の位置, 対)。古くなった値は取り出したときに直す。
        # 対の出現数は減り、最初の位置は後ろへ動くだけなので、これで最大のものが先頭に来る。
        self.queue: list[tuple[int, int, int, Pair]] = []
        for index in range(len(words)):
            self._count(index, +1)
            for pair in pairwise(self.words[index]):
                self.where.setdefault(pair, []).append(index)
        self._push([*self.pair_counts])

    def most_frequent(self) -> Pair | None:
        """最も多い対(同数なら先に現れるもの)を返す。なければ None。"""
        while self.queue:
            *seen, pair = heapq.heappop(self.queue)
            if (now := self._key(pair)) == tuple(seen):
                return pair
            if now is not None:
                heapq.heappush(self.queue, (*now, pair))
        return None

    def merge(self, pair: Pair) -> None:
        """`pair` を、それを含むすべての語でつなぐ。"""
        created: set[Pair] = set()
        for index in set(self.where.pop(pair)):
            self._count(index, -1)
            self.words[index] = merge_pair(self.words[index], pair)
            self._count(index, +1)
            pairs = {new for new in pairwise(self.words[index]) if "".join(pair) in new}
            for new in pairs:
                heapq.heappush(self.where.setdefault(new, []), index)
            created |= pairs
        self._push(created)

    def _count(self, index: int, sign: int) -> None:
        for pair in pairwise(self.words[index]):
            self.pair_counts[pair] += sign * self.counts[index]

    def _push(self, pairs: Iterable[Pair]) -> None:
        for pair in pairs:
            if (key := self._key(pair)) is not None:
                heapq.heappush(self.queue, (*key, pair))

    def _key(self, pair: Pair) -> tuple[int, int, int] | None:
        """(-出現数, 最初に現れる語の番号, その語の中で対の前にある文字の数)。なければ None。"""
        if self.pair_counts[pair] <= 0:
            return None
        indices = self.where[pair]
        while pair not in pairwise(self.words[indices[0]]):
            heapq.heappop(indices)
        symbols = self.words[indices[0]]
        place = [*pairwise(symbols)].index(pair)
        return -self.pair_counts[pair], indices[0], sum(map(len, symbols[:place]))


def _require_word_counts(word_counts: object) -> dict[str, int]:
    if not isinstance(word_counts, Mapping):
        raise TypeError(
            "word_counts には語から出現数への辞書を渡してください: "
            f"{shown(word_counts)} ({type(word_counts).__name__})"
        )
    checked = {
        require_text(word, "word_counts の語"): require_int(count, f"word_counts[{shown(word)}]", 0)
        for word, count in word_counts.items()
    }
    return {word: count for word, count in checked.items() if count > 0}
