"""バイト対符号化 (BPE) によるサブワード分割。

`BPE` は Sennrich et al. (2015) "Neural Machine Translation of Rare Words with Subword Units"
(arXiv:1508.07909) の Algorithm 1 をそのまま実装する。`ByteLevelBPE` は、文字の代わりにバイトを
最小単位とする GPT-2 以後の BPE (Radford et al. 2019, 2.2 節) である。
"""

import heapq
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Self

from chapter02 import tokenizer_json
from chapter02.bpe_encoding import MergeTable
from chapter02.bpe_training import train_merges
from chapter02.byte_level import (
    BYTES_IN_ORDER,
    PATTERNS,
    SPECIAL_TOKENS,
    bytes_to_chars,
    parse_gpt2,
    parse_tiktoken,
    split_text,
)
from shared import datasets
from shared.checks import require_int, require_text, shown

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


class ByteLevelBPE:
    """バイトを最小単位とする BPE。どの文字列も未知語なしで符号化でき、復号すると元に戻る。

    公開語彙は `from_pretrained` で、保存した語彙は `load` で読む。`train` は文から新しく作る。

    Attributes:
        special_tokens: 特殊トークン → id。
        pattern: 前分割の正規表現。マージは、分けた断片(前トークン)の境目をまたがない。
    """

    def __init__(
        self, table: MergeTable, ids: list[int], special_tokens: Mapping[str, int], pattern: str
    ) -> None:
        """マージの表と、記号の番号 → id の対応から作る(ふつうはクラスメソッドを使う)。"""
        self.special_tokens = dict(special_tokens)
        self.pattern = pattern
        self._table = table
        self._ids = ids
        self._bytes = {number: token.encode() for token, number in special_tokens.items()}
        self._bytes |= dict(zip(ids, table.tokens, strict=True))  # id → バイト列
        self._known: dict[str, int] = {}  # UTF-8 として正しいトークン → id
        for token, number in zip(table.tokens, ids, strict=True):
            try:
                self._known[token.decode()] = number
            except UnicodeDecodeError:
                continue

    @classmethod
    def train(
        cls, texts: Iterable[str], vocab_size: int, special_tokens: Collection[str] = ()
    ) -> Self:
        """`texts` から、特殊トークン・256 バイト・マージの結果の順に `vocab_size` 個の語彙を作る。

        前分割は GPT-2 の正規表現による。同数の対は左の id が、次いで右の id が小さいものを選ぶ
        (tokenizers の BpeTrainer と同じマージになる)。つなぐ対がなくなれば、そこで終わる。

        Raises:
            TypeError: `texts` が文字列の並びでないとき。
            ValueError: `vocab_size` が 256 + 特殊トークンの数より小さいとき、特殊トークンが空文字列
                であるか重複しているとき、文に単独のサロゲートがあるとき。
        """
        special_tokens = _require_special_tokens(special_tokens)
        vocab_size = require_int(vocab_size, "vocab_size")
        if vocab_size < (least := 256 + len(special_tokens)):
            raise ValueError(
                f"vocab_size は {least} 以上にしてください(256 バイトと特殊トークン "
                f"{len(special_tokens)} 個): {vocab_size}"
            )
        pattern = PATTERNS["gpt2"]
        counts: Counter[str] = Counter()
        for text in _each_text(texts):
            counts.update(split_text(text, pattern))
        vocabulary, merges = train_merges(counts, vocab_size, special_tokens)
        table = MergeTable(BYTES_IN_ORDER)
        ids = [vocabulary[bytes_to_chars(token)] for token in BYTES_IN_ORDER]
        numbers = {number: symbol for symbol, number in enumerate(ids)}
        for left, right, result in merges:
            numbers[result] = table.add(numbers[left], numbers[right])
            ids.append(result)
        return cls(table, ids, {token: vocabulary[token] for token in special_tokens}, pattern)

    @classmethod
    def from_pretrained(cls, name: str) -> Self:
        """公開語彙 "gpt2"、"cl100k_base"、"o200k_base" を読む(初回だけ取得する)。

        cl100k_base と o200k_base は、トークンと順位だけが公開されている。どの 2 つをつないだものか
        は、順位の低い記号だけで BPE を行えば復元できる。

        Raises:
            ValueError: `name` が 3 つのどれでもないとき。
            shared.datasets.DataError: 取得できないとき。
        """
        if require_text(name, "name") not in PATTERNS:
            raise ValueError(f"name は {'、'.join(PATTERNS)} のどれかにしてください: {shown(name)}")
        if name == "gpt2":
            tokens = parse_gpt2(*datasets.gpt2_files())
        else:
            tokens = parse_tiktoken(datasets.tiktoken_file(name))
        table = MergeTable(tokens[:256])
        for token in tokens[256:]:
            if not table.add_token(token):
                raise ValueError(f"{name} のトークン {token!r} を 2 つに分けられません")
        return cls(table, [*range(len(tokens))], SPECIAL_TOKENS[name], PATTERNS[name])

    @property
    def vocab_size(self) -> int:
        """最大の id + 1(埋め込みの行数)。cl100k_base と o200k_base には使われない id もある。"""
        return max(self._bytes) + 1

    @property
    def merges(self) -> list[tuple[bytes, bytes]]:
        """つないだ対の並び(学習された順、バイト列の組)。"""
        table = self._table
        pairs = zip(table.left[256:], table.right[256:], strict=True)
        return [(table.tokens[left], table.tokens[right]) for left, right in pairs]

    def encode(self, text: str, allowed_special: Collection[str] = ()) -> list[int]:
        """`text` を id の並びにする。

        Args:
            text: 任意の文字列。
            allowed_special: 特殊トークンとして読む文字列。"all" ならすべて。ここにない特殊トークン
                の文字列は、ふつうの文字として符号化する。

        Raises:
            TypeError: `text` が str でないとき。
            ValueError: 単独のサロゲートがあるとき、`allowed_special` に知らないものがあるとき。
        """
        text = require_text(text, "text")
        if not (special := self._allowed(allowed_special)):
            return self._encode_ordinary(text)
        ids: list[int] = []
        for index, part in enumerate(re.split(f"({'|'.join(map(re.escape, special))})", text)):
            if index % 2:
                ids.append(self.special_tokens[part])
            else:
                ids += self._encode_ordinary(part)
        return ids

    def encode_batch(
        self, texts: Iterable[str], allowed_special: Collection[str] = ()
    ) -> list[list[int]]:
        """`texts` のそれぞれを符号化する。同じ前トークンは一度だけ分けるので、1 つずつより速い。"""
        return [self.encode(text, allowed_special) for text in _each_text(texts)]

    def _encode_ordinary(self, text: str) -> list[int]:
        pieces = split_text(text, self.pattern)
        found = [*map(self._known.get, pieces)]
        if None not in found:
            return found  # pyright: ignore[reportReturnType]
        ids: list[int] = []
        for piece, number in zip(pieces, found, strict=True):
            if number is not None:
                ids.append(number)
            else:
                ids += [self._ids[symbol] for symbol in self._table.encode(piece.encode())]
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """id の並びを文字列に戻す。文字の途中で切れたバイトは U+FFFD にする。

        Raises:
            TypeError: id が整数でないとき。
            ValueError: 語彙にない id があるとき。
        """
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """id の並びを、つないだバイト列に戻す(例外は `decode` と同じ)。"""
        ids = _require_iterable(ids, "ids", "id の並び")
        numbers = [require_int(number, f"ids[{index}]") for index, number in enumerate(ids)]
        try:
            return b"".join([self._bytes[number] for number in numbers])
        except KeyError as error:
            raise ValueError(
                f"ids に語彙にない id があります: {error.args[0]}(0 以上 {self.vocab_size} 未満で、"
                "使われている番号だけが許されます)"
            ) from None

    def save(self, path: str | os.PathLike[str]) -> Path:
        """tokenizers が開ける tokenizer.json に保存する(書きかけのファイルは残らない)。"""
        return tokenizer_json.save(path, self._table, self._ids, self.special_tokens, self.pattern)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """tokenizer.json を読む。

        Raises:
            OSError: 読めないとき。
            ValueError: 壊れているとき、このクラスで表せない設定が使われているとき。
        """
        return cls(*tokenizer_json.load(path))

    def _allowed(self, allowed_special: Collection[str]) -> list[str]:
        if isinstance(allowed_special, str) and allowed_special == "all":
            return sorted(self.special_tokens, key=len, reverse=True)
        names = _require_iterable(
            allowed_special, "allowed_special", '"all" か特殊トークンの集まり'
        )
        for name in (names := [*names]):
            if name not in self.special_tokens:
                raise ValueError(
                    f"allowed_special に語彙にない特殊トークンがあります: {shown(name)}"
                    f"(使えるもの: {shown([*self.special_tokens])})"
                )
        return sorted(names, key=len, reverse=True)


def _require_iterable(value: object, name: str, what: str) -> Iterable:
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise TypeError(
            f"{name} には{what}を渡してください: {shown(value)} ({type(value).__name__})"
        )
    return value


def _each_text(texts: object) -> Iterator[str]:
    for index, text in enumerate(_require_iterable(texts, "texts", "文字列の並び")):
        yield require_text(text, f"texts[{index}]")


def _require_special_tokens(special_tokens: object) -> tuple[str, ...]:
    tokens = tuple(_require_iterable(special_tokens, "special_tokens", "文字列の並び"))
    for index, token in enumerate(tokens):
        if not require_text(token, f"special_tokens[{index}]"):
            raise ValueError(f"special_tokens[{index}] が空文字列です")
    if len({*tokens}) < len(tokens):
        raise ValueError(f"special_tokens に同じものが 2 度あります: {shown(tokens)}")
    return tokens
