"""バイトレベル BPE の学習を、同じマージを全出現箇所でまとめて行うことで速くする。

`chapter02.bpe.BPE.train` と同じく、最も多い隣接対を選んでつなぐことを繰り返す。違いは 3 つある。
1. 語をすべて 1 本の配列に並べ、1 回のマージを全出現箇所について NumPy で一度に行う。
2. 対の出現数は、新しい対ができたときが最大で、その後は減る一方である。そこで優先度つき待ち行列には
   「できたときの数」を入れておき、取り出したときに数え直す。減っていたら、新しい数で入れ直す。
3. 出現数がしきい値に満たない対は覚えない。待ち行列が空になったら、しきい値を下げて数え直す。

同数の対は、記号の番号が小さいほうを先にする(tokenizers の BpeTrainer と同じ順序)。
"""

import heapq
from collections.abc import Callable
from itertools import pairwise

import numpy as np

from chapter02.byte_level import BYTE_TO_CHAR

# 数え直すときは、最も多い対の 1/16 以上で、多いほうから 2,048 個に入る対(同数はすべて)を覚える。
REMEMBERED = 2048
FRACTION = 16
_Pair = Callable[[int], tuple[int, int]]
_SEPARATOR = "\udcff"  # UTF-8 に現れないバイト 0xFF になる(surrogateescape)


def train_merges(
    word_counts: dict[str, int], vocab_size: int, special_tokens: tuple[str, ...]
) -> tuple[dict[str, int], list[tuple[int, int, int]]]:
    """語と出現数から、語彙(バイト写像後の文字列 → id)とマージ(左 id, 右 id, 結果 id)を学習する。

    id は、特殊トークン、256 バイト、マージの結果の順に付ける。
    """
    vocabulary = {token: number for number, token in enumerate(special_tokens)}
    for char in sorted(BYTE_TO_CHAR):
        vocabulary.setdefault(char, len(vocabulary))
    names = {number: token for token, number in vocabulary.items()}
    corpus = _Corpus(word_counts, [vocabulary[char] for char in BYTE_TO_CHAR])
    merges: list[tuple[int, int, int]] = []
    while len(vocabulary) < vocab_size and (pair := corpus.most_frequent()) is not None:
        name = names[pair[0]] + names[pair[1]]
        # 結果の文字列が特殊トークンと同じなら、その id を使う。
        number = vocabulary.setdefault(name, len(vocabulary))
        names[number] = name
        corpus.merge(*pair, number)
        merges.append((*pair, number))
    return vocabulary, merges


class _Corpus:
    """語を並べた配列と、つながれた記号の今の姿。

    `symbols[i]` は、位置 i から始まる(または i で終わる)記号の番号。途中の位置の値は使わない。
    記号の長さは番号で決まるので、右隣は `i + 長さ`、左隣は `i - 1` を見ればわかる。
    """

    def __init__(self, word_counts: dict[str, int], byte_symbols: list[int]) -> None:
        words = _SEPARATOR.join(["", *word_counts, ""])
        data = np.frombuffer(words.encode("utf-8", "surrogateescape"), np.uint8)
        del words
        table = np.array(byte_symbols, np.int32)
        table[0xFF] = -1
        self.symbols = table[data]  # (N,) 語の境目は -1
        self.starts = data != 0xFF  # (N,) 記号の始まる位置か
        borders = np.flatnonzero(data == 0xFF)
        counts = np.fromiter(word_counts.values(), np.int64, len(word_counts))
        dtype = np.int32 if counts.max(initial=0) < 2**31 else np.int64
        # (N,) 語の出現数を、その語の全位置に置く
        self.weights = np.repeat(counts.astype(dtype), np.diff(borders))
        self.lengths = np.ones(max(byte_symbols) + 1, np.int32)  # (記号の数,) バイト数
        self.positions: dict[tuple[int, int], np.ndarray] = {}  # 対 → 左の記号の位置(昇順)
        self.queue: list[tuple[int, int, int]] = []  # (-出現数, 左, 右)
        self.threshold = 2**62

    def most_frequent(self) -> tuple[int, int] | None:
        """最も多い対を返す(同数なら番号の小さい対)。1 つも残っていなければ None。"""
        while True:
            while self.queue:
                negative, left, right = heapq.heappop(self.queue)
                places = self.positions.pop((left, right))
                alive = self.symbols[places] == left
                alive &= self.symbols[places + self.lengths[left]] == right
                places = places[alive]
                count = int(self.weights[places].sum(dtype=np.int64))
                if count == -negative:
                    self.positions[left, right] = places
                    return left, right
                self._remember(left, right, count, places)
            if self.threshold == 1:
                return None
            self._recount()

    def merge(self, left: int, right: int, result: int) -> None:
        """対 (left, right) を全出現箇所で `result` につなぎ、新しくできた対を覚える。"""
        places = self.positions.pop((left, right))
        middle = int(self.lengths[left])
        length = middle + int(self.lengths[right])
        if result >= len(self.lengths):
            self.lengths = np.append(self.lengths, np.int32(0))
        self.lengths[result] = length
        if left == right:
            places = _without_overlap(places, middle)
        self.symbols[places + middle] = -1
        self.starts[places + middle] = False
        self.symbols[places] = result
        self.symbols[places + (length - 1)] = result

        after = self.symbols[places + length]
        self._remember_groups(after, places, lambda other: (result, other))
        before = self.symbols[places - 1]
        other = before != result  # 左隣も result なら、上で数えてある
        before = before[other]
        self._remember_groups(
            before, places[other] - self.lengths[before], lambda other: (other, result)
        )

    def _remember(self, left: int, right: int, count: int, places: np.ndarray) -> None:
        if count >= self.threshold:
            self.positions[left, right] = places
            heapq.heappush(self.queue, (-count, left, right))

    def _remember_groups(self, others: np.ndarray, places: np.ndarray, pair: _Pair) -> None:
        """`others[i]` が同じ位置どうしを 1 つの対 `pair(others[i])` にまとめて覚える。"""
        totals = np.bincount(others + 1, self.weights[places])  # 番号 -1 (境目) は totals[0]
        totals[0] = 0
        frequent = totals >= self.threshold
        chosen = np.flatnonzero(frequent[others + 1])
        if not len(chosen):
            return
        others, places = others[chosen], places[chosen]
        order = np.argsort(others, kind="stable")
        others, places = others[order], places[order]
        bounds = [0, *(np.flatnonzero(np.diff(others)) + 1).tolist(), len(others)]
        for begin, end in pairwise(bounds):
            other = int(others[begin])
            self._remember(*pair(other), int(totals[other + 1]), places[begin:end])

    def _recount(self) -> None:
        """全部の対を数え直し、しきい値を決め直して、それ以上の対を覚える。"""
        places = np.flatnonzero(self.starts)
        left = self.symbols[places]
        right = self.symbols[places + self.lengths[left]]
        inside = right >= 0
        places, left, right = places[inside], left[inside], right[inside]
        base = len(self.lengths)
        keys = left.astype(np.int64) * base + right
        del left, right
        # 対と位置を 1 つの整数に詰めて並べ替えると、同じ対の位置が昇順に集まる。
        bits = len(self.symbols).bit_length()
        keys <<= bits
        keys |= places
        keys.sort()
        places = keys & ((1 << bits) - 1)
        keys >>= bits
        begins = np.flatnonzero(np.diff(keys, prepend=-1))
        totals = np.add.reduceat(self.weights[places], begins, dtype=np.int64)
        rank = max(len(totals) - REMEMBERED, 0)
        common = int(np.partition(totals, rank)[rank]) if len(totals) else 1
        self.threshold = max(common, int(totals.max(initial=0)) // FRACTION)
        ends = np.append(begins[1:], len(keys))
        for index in np.flatnonzero(totals >= self.threshold).tolist():
            begin, end = int(begins[index]), int(ends[index])
            pair = divmod(int(keys[begin]), base)
            self._remember(*pair, int(totals[index]), places[begin:end].astype(np.int32))


def _without_overlap(places: np.ndarray, length: int) -> np.ndarray:
    """長さ `length` の同じ記号の対が重なるとき、左から順に重ならないものだけを残す。"""
    if len(places) < 2:
        return places
    fresh = np.diff(places, prepend=places[0] - length - 1) != length  # 連なりの先頭か
    index = np.arange(len(places))
    head = np.maximum.accumulate(np.where(fresh, index, 0))
    return places[(index - head) % 2 == 0]
