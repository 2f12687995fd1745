"""バイトレベル BPE: 文字の代わりにバイトを最小単位とする BPE (Radford et al. 2019, 2.2 節)。

文を正規表現で前トークンに分け(byte_level)、前トークンごとに UTF-8 のバイト列を BPE で分ける
(bpe_encoding)。学習は bpe_training、ファイルへの保存は tokenizer_json が受け持つ。
"""

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

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
from shared.checks import require_int, require_many, require_text, shown


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
        table.prepare()
        self._ids = ids
        self._symbols_are_ids = ids == [*range(len(ids))]  # 公開語彙ではいつもそうなる
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
                か、重複しているか、バイトを表す文字と重なるとき、文に単独のサロゲートがあるとき。
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
        specials = {token: vocabulary[token] for token in special_tokens}
        spelled = dict(zip(ids, table.tokens, strict=True))
        for token, number in specials.items():
            if spelled.get(number, token.encode()) != token.encode():
                raise ValueError(
                    f"special_tokens の {shown(token)} は、バイト列 {spelled[number]!r} を表す"
                    "文字と重なるので使えません"
                )
        return cls(table, ids, specials, pattern)

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
        return self._encode(require_text(text, "text"), self._allowed(allowed_special), {}, set())

    def encode_batch(
        self, texts: Iterable[str], allowed_special: Collection[str] = ()
    ) -> list[list[int]]:
        """`texts` のそれぞれを符号化する。

        同じ前トークンを二度は分けず、隣どうしの記号の検査も使い回すので、1 つずつより速い。
        """
        special = self._allowed(allowed_special)
        memory: dict[str, list[int]] = {}
        fitting: set[int] = set()
        return [self._encode(text, special, memory, fitting) for text in _each_text(texts)]

    def _encode(
        self,
        text: str,
        special: list[str],
        memory: dict[str, list[int]],
        fitting: set[int],
    ) -> list[int]:
        if not special:
            return self._encode_ordinary(text, memory, fitting)
        ids: list[int] = []
        for index, part in enumerate(re.split(f"({'|'.join(map(re.escape, special))})", text)):
            if index % 2:  # 丸括弧で囲んだ区切りが、奇数番目に来る
                ids.append(self.special_tokens[part])
            else:
                ids += self._encode_ordinary(part, memory, fitting)
        return ids

    def _encode_ordinary(
        self, text: str, memory: dict[str, list[int]], fitting: set[int]
    ) -> list[int]:
        """語彙にある前トークンはそのまま id に、ないものは BPE で分ける。

        `memory` は分けた前トークンの、`fitting` は隣り合えるとわかった記号の控え。
        """
        pieces = split_text(text, self.pattern)
        found: list[Any] = [*map(self._known.get, pieces)]
        ids: list[int] = []
        begin = 0
        for place in [place for place, number in enumerate(found) if number is None]:
            piece = pieces[place]
            if piece not in memory:
                symbols = self._table.encode(piece.encode(), fitting)
                if not self._symbols_are_ids:
                    symbols = [self._ids[symbol] for symbol in symbols]
                memory[piece] = symbols
            ids += found[begin:place]
            ids += memory[piece]
            begin = place + 1
        return ids + found[begin:]

    def decode(self, ids: Iterable[int]) -> str:
        """id の並びを文字列に戻す。文字の途中で切れたバイトは U+FFFD にする。

        Raises:
            TypeError: id が整数でないとき。
            ValueError: 語彙にない id があるとき。
        """
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """id の並びを、つないだバイト列に戻す(例外は `decode` と同じ)。"""
        ids = require_many(ids, "ids", "id の並び")
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
        kind = '"all" か特殊トークンの集まり'
        names = [*require_many(allowed_special, "allowed_special", kind)]
        for name in names:
            if require_text(name, "allowed_special の要素") not in self.special_tokens:
                raise ValueError(
                    f"allowed_special に語彙にない特殊トークンがあります: {shown(name)}"
                    f"(使えるもの: {shown([*self.special_tokens])})"
                )
        return sorted(names, key=len, reverse=True)


def _each_text(texts: object) -> Iterator[str]:
    for index, text in enumerate(require_many(texts, "texts", "文字列の並び")):
        yield require_text(text, f"texts[{index}]")


def _require_special_tokens(special_tokens: object) -> tuple[str, ...]:
    tokens = tuple(require_many(special_tokens, "special_tokens", "文字列の並び"))
    for index, token in enumerate(tokens):
        if not require_text(token, f"special_tokens[{index}]"):
            raise ValueError(f"special_tokens[{index}] が空文字列です")
    if len({*tokens}) < len(tokens):
        raise ValueError(f"special_tokens に同じものが 2 度あります: {shown(tokens)}")
    return tokens
