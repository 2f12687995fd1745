"""WordPiece によるサブワード分割 (Schuster & Nakajima 2012、BERT の Devlin et al. 2018)。

学習について論文が述べるのは、2 つの単位をつないだ新しい単位のうち、加えたときに学習データの尤度を
最も上げるものを選ぶという方針だけで、Google の実装は公開されていない。ここでは、その近似として広く
知られる比 n(ab) / (n(a) n(b)) を使う。ライブラリー tokenizers の WordPieceTrainer は、名前に反して
出現数 n(ab) だけを使い、BPE と同じ順につなぐ。分割のほうは BERT の公開実装と同じで、語の左から最も
長い単位を貪欲に取る。
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from itertools import pairwise
from typing import Self

from shared.checks import require_int, require_many, require_text, shown

Pair = tuple[str, str]


class WordPiece:
    """語を、語彙にある最長の単位に左から順に分ける。

    語の先頭以外の単位には接頭辞 `prefix` が付く("walking" → "walk", "##ing")。

    Attributes:
        vocab: 単位 → id。
        unk_token: 分けられない語を表す単位。
        prefix: 語の途中の単位に付く接頭辞。
        max_chars_per_word: これより長い語は、調べずに `unk_token` にする [文字]。
    """

    def __init__(
        self,
        vocabulary: Iterable[str],
        *,
        unk_token: str = "[UNK]",
        prefix: str = "##",
        max_chars_per_word: int = 100,
    ) -> None:
        """語彙(id の順の単位の並び)から作る。

        Raises:
            TypeError: `vocabulary` が文字列の並びでないとき。
            ValueError: 同じ単位が 2 度あるとき、`unk_token` がないとき。
        """
        units = _require_texts(vocabulary, "vocabulary")
        self.vocab = {unit: number for number, unit in enumerate(units)}
        if len(self.vocab) < len(units):
            raise ValueError("vocabulary に同じ単位が 2 度あります")
        self.unk_token = require_text(unk_token, "unk_token")
        if unk_token not in self.vocab:
            raise ValueError(f"unk_token が vocabulary にありません: {shown(unk_token)}")
        self.prefix = require_text(prefix, "prefix")
        self.max_chars_per_word = require_int(max_chars_per_word, "max_chars_per_word", 1)
        self._longest = max(map(len, self.vocab))

    @classmethod
    def train(
        cls,
        word_counts: Mapping[str, int],
        vocab_size: int,
        *,
        special_tokens: Collection[str] = ("[UNK]",),
        prefix: str = "##",
        min_count: int = 1,
    ) -> Self:
        """n(ab) / (n(a) n(b)) が最大の隣接対をつなぎ、語彙を `vocab_size` 個まで増やす。

        この比は、a と b が隣り合う割合が、ばらばらに並べたときの何倍かに比例する。まれな文字どうし
        の対ほど大きくなりやすいので、`min_count` 回未満の対は候補から除ける。同点のときは n(ab) の
        大きい対を、それも同じなら文字列の順で先の対を選ぶ。

        Args:
            word_counts: 語 → 出現数。出現数 0 の語は無視する。
            vocab_size: 語彙の大きさの上限。候補の対がなくなれば、これより小さくなる。
            special_tokens: 語彙の先頭に置く単位。最初のものを `unk_token` にする。
            prefix: 語の途中の単位に付ける接頭辞。
            min_count: つなぐ対の出現数の下限。

        Raises:
            TypeError: `word_counts` が辞書でない、語が str でない、数が整数でないとき。
            ValueError: 負の出現数か空の語があるとき、`vocab_size` が特殊トークンと文字の数より
                小さいとき、`special_tokens` が空か、空文字列や重複を含むとき。
        """
        specials = _require_texts(special_tokens, "special_tokens")
        if not specials or "" in specials or len({*specials}) < len(specials):
            raise ValueError(
                "special_tokens には、空でない異なる文字列を 1 つ以上渡してください: "
                f"{shown(specials)}"
            )
        prefix = require_text(prefix, "prefix")
        words = [
            ([word[0], *(prefix + char for char in word[1:])], count)
            for word, count in _require_word_counts(word_counts).items()
        ]
        alphabet = {unit for units, _ in words for unit in units} - {*specials}
        vocabulary = dict.fromkeys([*specials, *sorted(alphabet)])
        if require_int(vocab_size, "vocab_size") < len(vocabulary):
            raise ValueError(
                f"vocab_size は {len(vocabulary)} 以上にしてください(特殊トークン "
                f"{len(specials)} 個と文字 {len(alphabet)} 種): {vocab_size}"
            )
        corpus = _UnitCorpus(words, prefix)
        min_count = require_int(min_count, "min_count", 1)
        while len(vocabulary) < vocab_size and (pair := corpus.best_pair(min_count)):
            vocabulary[corpus.merge(pair)] = None
        return cls(vocabulary, unk_token=specials[0], prefix=prefix)

    def tokenize(self, text: str) -> list[str]:
        """`text` を空白で語に分け、それぞれを単位に分ける。

        途中で一致する単位がなくなった語は、語全体を `unk_token` 1 つにする。

        Raises:
            TypeError: `text` が str でないとき。
            ValueError: 単独のサロゲートがあるとき。
        """
        return [unit for word in require_text(text, "text").split() for unit in self._split(word)]

    def _split(self, word: str) -> list[str]:
        if len(word) > self.max_chars_per_word:
            return [self.unk_token]
        units: list[str] = []
        begin = 0
        while begin < len(word):
            prefix = self.prefix if begin else ""
            for end in range(min(len(word), begin + self._longest), begin, -1):
                unit = prefix + word[begin:end]
                if unit in self.vocab:
                    units.append(unit)
                    begin = end
                    break
            else:
                return [self.unk_token]
        return units


class _UnitCorpus:
    """語の今の分割と、単位の数 n(a) と隣接対の数 n(ab)。変わった語の分だけ増減させる。"""

    def __init__(self, words: list[tuple[list[str], int]], prefix: str) -> None:
        self.words = [units for units, _ in words]
        self.counts = [count for _, count in words]
        self.prefix = prefix
        self.unit_counts: Counter[str] = Counter()
        self.pair_counts: Counter[Pair] = Counter()
        self.where: dict[Pair, set[int]] = {}  # 対を含む(含んでいた)語の番号
        for index in range(len(words)):
            self._count(index, +1)

    def best_pair(self, min_count: int) -> Pair | None:
        """n(ab) / (n(a) n(b)) が最大の対。候補がなければ None。"""
        best = None
        for pair, count in self.pair_counts.items():
            if count >= min_count:
                score = count / (self.unit_counts[pair[0]] * self.unit_counts[pair[1]])
                key = (-score, -count, pair)
                best = key if best is None or key < best else best
        return best[2] if best else None

    def merge(self, pair: Pair) -> str:
        """`pair` をすべての語でつなぎ、できた単位を返す。"""
        unit = pair[0] + pair[1].removeprefix(self.prefix)
        for index in self.where.pop(pair):
            self._count(index, -1)
            old, new = self.words[index], []
            place = 0
            while place < len(old):
                joined = tuple(old[place : place + 2]) == pair
                new.append(unit if joined else old[place])
                place += 2 if joined else 1
            self.words[index] = new
            self._count(index, +1)
        return unit

    def _count(self, index: int, sign: int) -> None:
        units, change = self.words[index], sign * self.counts[index]
        for unit in units:
            self.unit_counts[unit] += change
        for pair in pairwise(units):
            self.pair_counts[pair] += change
            if sign > 0:
                self.where.setdefault(pair, set()).add(index)
            elif not self.pair_counts[pair]:
                del self.pair_counts[pair]


def _require_texts(values: object, name: str) -> list[str]:
    many = require_many(values, name, "文字列の並び")
    return [require_text(value, f"{name}[{index}]") for index, value in enumerate(many)]


def _require_word_counts(word_counts: object) -> dict[str, int]:
    if not isinstance(word_counts, Mapping):
        raise TypeError(
            "word_counts には語から出現数への辞書を渡してください: "
            f"{shown(word_counts)} ({type(word_counts).__name__})"
        )
    checked: dict[str, int] = {}
    for word, count in word_counts.items():
        if not require_text(word, "word_counts の語"):
            raise ValueError("word_counts に空の語があります")
        checked[word] = require_int(count, f"word_counts[{shown(word)}]", 0)
    return {word: count for word, count in checked.items() if count > 0}
