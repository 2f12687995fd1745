"""ユニグラム言語モデルによるサブワード分割 (Kudo 2018, arXiv:1804.10959v1, 3.2 節と 3.3 節)。

文字列 X の分割 x = (x_1, ..., x_M) の確率を P(x) = Π p(x_i) とし、最も確率の高い分割を選ぶ、あるい
は分割を確率に従って引く。分割の全体 S(X) にわたる和・最大・標本抽出は unigram_lattice が、p の学習
は unigram_training が、SentencePiece のモデルファイルの読み取りは sentencepiece_model が受け持つ。
"""

import itertools
import math
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np

from chapter02.longest_match import check_probabilities, greedy_longest_match
from chapter02.sentencepiece_model import Kind, Normalizer, nmt_nfkc, read_model
from chapter02.unigram_lattice import Edge, Lattice, viterbi
from chapter02.unigram_training import train_unigram
from shared.checks import require_int, require_many, require_number, require_text, shown

__all__ = ["Unigram", "greedy_longest_match"]

UNKNOWN_PENALTY = 10.0
"""未知の文字の対数確率を、語彙の最小の対数確率からさらに下げる幅 [nat](SentencePiece の実装)。"""


class Unigram:
    """ユニグラム言語モデルのトークナイザー。`train` などのクラスメソッドで作る。

    Attributes:
        pieces: 断片の一覧。添字が id である。未知を表す `<unk>` とバイトの断片 `<0x00>`... も含む。
        log_probs: 各断片の対数確率 [nat](`pieces` と同じ順)。
        unk_id: 未知の文字の id。
        byte_ids: バイト 0-255 の断片の id。バイトに分けないモデルでは空。
    """

    def __init__(
        self,
        pieces: Sequence[str],
        log_probs: Sequence[float],
        unk_id: int,
        *,
        byte_ids: Sequence[int] = (),
        user_defined: Collection[int] = (),
        hidden: Collection[int] = (),
        unused: Collection[int] = (),
        normalizer: Normalizer | None = None,
        unk_surface: str = " ⁇ ",
        as_sentencepiece: bool = False,
    ) -> None:
        self.pieces = list(pieces)
        self.log_probs = list(log_probs)
        self.unk_id = unk_id
        self.byte_ids = list(byte_ids)
        self.normalizer = normalizer
        self._hidden = frozenset(hidden)  # 制御記号: 文字列に対応せず、decode で消える
        self._byte_of = {piece_id: byte for byte, piece_id in enumerate(self.byte_ids)}
        self._unk_surface = unk_surface
        self._as_sentencepiece = as_sentencepiece
        special = {unk_id, *self.byte_ids, *hidden, *user_defined, *unused}
        ordinary = [p for i, p in enumerate(self.log_probs) if i not in special]
        self.unknown_log_prob = min(ordinary) - UNKNOWN_PENALTY
        # 利用者定義の断片は、同じ長さの通常の断片の列に負けない点を得る(SentencePiece の実装)。
        for i in user_defined:
            bonus = len(self.pieces[i]) * max(ordinary) - 0.1
            self.log_probs[i] = float(np.float32(bonus))  # 実装は単精度で持つ
        self._prefixes: dict[str, int] = {}  # 断片の接頭辞 → id(断片そのものでなければ -1)
        for i in set(range(len(self.pieces))) - (special - set(user_defined)):
            for length in range(1, len(self.pieces[i])):
                self._prefixes.setdefault(self.pieces[i][:length], -1)
            self._prefixes[self.pieces[i]] = i

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int,
        *,
        character_coverage: float = 0.9995,
        byte_fallback: bool = False,
        normalization: str = "nmt_nfkc",
        seed_size: int = 1_000_000,
        max_piece_length: int = 16,
        shrinking_factor: float = 0.75,
        num_sub_iterations: int = 2,
        split_by_whitespace: bool = True,
        split_by_unicode_script: bool = True,
        split_by_number: bool = True,
    ) -> Self:
        """文の並び `texts` から、id の総数が `vocab_size` のモデルを学習する (Kudo 2018, 3.2 節)。

        id は `<unk>` が 0、次に(`byte_fallback` なら)256 個のバイト、残りは確率の高い順の断片であ
        る。2 回以上現れる部分文字列が足りなければ、語彙は `vocab_size` より小さくなる。既定値は
        SentencePiece のものである。

        Args:
            character_coverage: 必ず語彙に入れる文字で、全文字の出現の何割を覆うか (0, 1]。
            normalization: "nmt_nfkc" か "identity"(どちらも空白は整理し、`▁` に置き換える)。
            seed_size: 種の語彙に入れる、2 文字以上の部分文字列の数の上限。
            max_piece_length: 断片の長さの上限 [文字]。
            shrinking_factor: 1 度の刈り込みで残す割合 (0, 1)。
            num_sub_iterations: 刈り込みから刈り込みまでの EM の回数。
            split_by_whitespace: 断片が空白をまたがないようにするか(空白は断片の先頭にだけ来る)。
            split_by_unicode_script: 断片が文字の種類(漢字とかな、ラテン文字、...)をまたがない
                ようにするか。
            split_by_number: 数字も 1 つの文字の種類とみなすか。

        Raises:
            TypeError: `texts` が文字列の並びでない、数の引数が数でないとき。
            ValueError: 引数が範囲の外、または `vocab_size` が文字の種類の数に足りないとき。
        """
        require_many(texts, "texts", "文字列の並び(リストなど)")
        if normalization not in ("nmt_nfkc", "identity"):
            raise ValueError(
                f'normalization は "nmt_nfkc" か "identity" にしてください: {shown(normalization)}'
            )
        if not 0.0 < require_number(character_coverage, "character_coverage") <= 1.0:
            raise ValueError(
                f"character_coverage は 0 より大きく 1 以下にしてください: {character_coverage}"
            )
        if not 0.0 < require_number(shrinking_factor, "shrinking_factor") < 1.0:
            raise ValueError(
                f"shrinking_factor は 0 より大きく 1 より小さくしてください: {shrinking_factor}"
            )
        normalizer = Normalizer(nmt_nfkc if normalization == "nmt_nfkc" else str)
        special = ["<unk>", *(_byte_pieces() if byte_fallback else [])]
        learned = train_unigram(
            (normalizer.normalize(require_text(t, f"texts[{i}]")) for i, t in enumerate(texts)),
            require_int(vocab_size, "vocab_size", minimum=1),
            len(special),
            character_coverage=character_coverage,
            seed_size=require_int(seed_size, "seed_size", minimum=0),
            max_piece_length=require_int(max_piece_length, "max_piece_length", minimum=1),
            shrinking_factor=shrinking_factor,
            num_sub_iterations=require_int(num_sub_iterations, "num_sub_iterations", minimum=1),
            split_by_whitespace=split_by_whitespace,
            split_by_unicode_script=split_by_unicode_script,
            split_by_number=split_by_number,
        )
        log_probs = [0.0] * len(special) + list(learned.values())
        byte_ids = range(1, len(special))
        return cls([*special, *learned], log_probs, 0, byte_ids=byte_ids, normalizer=normalizer)

    @classmethod
    def from_probabilities(
        cls, probabilities: Mapping[str, float], byte_fallback: bool = False
    ) -> Self:
        """断片と確率の表から作る。断片は文字どおりに使い、正規化も空白の記号への置き換えもしない。

        id は表の順で、その後ろに `<unk>` と(`byte_fallback` なら)256 個のバイトの断片が付く。確率の
        和は 1 でなくてもよい。

        Raises:
            TypeError: 表でない、断片が str でない、確率が数でないとき。
            ValueError: 表や断片が空、または確率が 0 以下・1 超・NaN・無限大のとき。
        """
        checked = check_probabilities(probabilities)
        n = len(checked)
        pieces = [*checked, "<unk>", *(_byte_pieces() if byte_fallback else [])]
        log_probs = [math.log(p) for p in checked.values()] + [0.0] * (len(pieces) - n)
        return cls(pieces, log_probs, n, byte_ids=range(n + 1, len(pieces)))

    @classmethod
    def from_sentencepiece(cls, model_file: str | os.PathLike[str]) -> Self:
        """sentencepiece の `.model`(model_type=unigram)を、そのモデル自身の正規化とともに読む。

        Raises:
            TypeError: パスでないとき。
            OSError: ファイルが読めないとき。
            ValueError: ファイルが壊れているか、ユニグラム言語モデルでないとき。
        """
        if not isinstance(model_file, str | os.PathLike):
            raise TypeError(f"model_file にはパスを渡してください: {shown(model_file)}")
        model = read_model(Path(model_file).read_bytes(), repr(os.fspath(model_file)))
        kinds = model.kinds
        byte_ids: list[int] = []
        if model.byte_fallback:
            position = {piece: i for i, piece in enumerate(model.pieces) if kinds[i] == Kind.BYTE}
            byte_ids = [position[piece] for piece in _byte_pieces()]
        return cls(
            model.pieces,
            model.scores,
            kinds.index(Kind.UNKNOWN),
            byte_ids=byte_ids,
            user_defined=[i for i, kind in enumerate(kinds) if kind == Kind.USER_DEFINED],
            hidden=[i for i, kind in enumerate(kinds) if kind == Kind.CONTROL],
            unused=[i for i, kind in enumerate(kinds) if kind == Kind.UNUSED],
            normalizer=model.normalizer,
            unk_surface=model.unk_surface,
            as_sentencepiece=True,
        )

    @property
    def vocab_size(self) -> int:
        """id の総数(`<unk>` とバイトの断片も数える)。"""
        return len(self.pieces)

    def normalize(self, text: str) -> str:
        """分割の対象になる文字列を返す(正規化のないモデルでは `text` のまま)。"""
        text = require_text(text, "text")
        return text if self.normalizer is None else self.normalizer.normalize(text)

    def lattice(self, text: str) -> Lattice:
        """正規化した `text` のラティスを返す。

        語彙の断片だけで読める文では、辺は語彙の断片だけである。読めない文では、1 文字の断片のない文
        字に未知の辺(対数確率は「語彙の最小 - 10」)を足す。SentencePiece のモデルでは実装に合わせて
        常に足す。
        """
        text = self.normalize(text)
        n = len(text)
        lattice = Lattice(
            n, (e for i in range(n) for e in self._edges_from(text, i, self._as_sentencepiece))
        )
        if lattice.forward()[n] == -math.inf:
            lattice = Lattice(n, (e for i in range(n) for e in self._edges_from(text, i, True)))
        return lattice

    def tokenize(self, text: str) -> list[str]:
        """最も確率の高い分割 x* = argmax_{x ∈ S(X)} P(x) をビタビ法で求め、断片の並びを返す。

        続く未知の文字は 1 つの断片にまとめる。バイトに分けるモデルでは `<0xE3>` のような断片にな
        る。

        Raises:
            TypeError: `text` が str でないとき。
            ValueError: `text` が単独のサロゲートを含むとき。
        """
        text = self.normalize(text)
        return self._pieces_of(text, self._best(text))

    def encode(self, text: str) -> list[int]:
        """`tokenize` と同じ分割を id の並びで返す。Raises は `tokenize` と同じ。"""
        text = self.normalize(text)
        ids: list[int] = []
        previous = -1
        for edge in self._best(text):
            if edge.piece_id != self.unk_id:
                ids.append(edge.piece_id)
            elif self.byte_ids:
                ids.extend(self.byte_ids[b] for b in text[edge.start : edge.end].encode("utf-8"))
            elif previous != self.unk_id:
                ids.append(self.unk_id)
            previous = edge.piece_id
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """id の並びを文字列に戻す。`<unk>` は「 ⁇ 」に、UTF-8 として不正なバイトは U+FFFD になる。

        Raises:
            TypeError: 整数の並びでないとき。
            ValueError: 語彙の範囲外の id があるとき。
        """
        require_many(ids, "ids", "整数の並び")
        text = ""
        pending = bytearray()  # まだ文字になっていないバイト
        stripping = self.normalizer is not None and self.normalizer.strips_leading_space
        for position, value in enumerate(ids):
            i = require_int(value, f"ids[{position}]")
            if not 0 <= i < len(self.pieces):
                raise ValueError(
                    f"ids[{position}] は 0 以上 {len(self.pieces)} 未満にしてください: {i}"
                )
            if i in self._byte_of:
                pending.append(self._byte_of[i])
                continue
            text += _decode_bytes(pending)
            pending.clear()
            stripping = stripping and not text
            if i in self._hidden:
                continue
            piece = self._unk_surface if i == self.unk_id else self.pieces[i]
            if self.normalizer is not None and i != self.unk_id:
                if stripping and piece.startswith("▁"):
                    piece = piece[1:]
                    stripping = self.normalizer.remove_extra_whitespaces
                piece = piece.replace("▁", " ")
            text += piece
        return text + _decode_bytes(pending)

    def nbest(self, text: str, n: int) -> list[tuple[list[str], float]]:
        """確率の高い順に最大 `n` 個の分割を、(断片の並び, 対数確率 log P(x) [nat]) で返す。

        Raises:
            TypeError, ValueError: `text` が `tokenize` の受けつけないもの、または `n` が 1 未満のと
            き。
        """
        n = require_int(n, "n", minimum=1)
        normalized = self.normalize(text)
        paths = self.lattice(text).nbest(n)
        return [(self._pieces_of(normalized, path), log_prob) for path, log_prob in paths]

    def sample(self, text: str, alpha: float, generator: np.random.Generator) -> list[str]:
        """分割を 1 つ、P(x)^alpha に比例する確率で引く (Kudo 2018, 3.3 節)。

        論文の式は上位 l 個に限った P(x_i)^alpha / Σ_{j≤l} P(x_j)^alpha であり、ここでは論文が l → ∞
        として挙げる、全分割からの厳密な抽出を行う。alpha = 0 は一様、alpha が大きいほど `tokenize`
        に近い。

        Args:
            generator: `np.random.default_rng(種)` で作る NumPy の乱数生成器。

        Raises:
            TypeError: `text` が str でない、`alpha` が数でない、`generator` が生成器でないとき。
            ValueError: `alpha` が負・NaN・無限大、または `text` が単独のサロゲートを含むとき。
        """
        alpha = require_number(alpha, "alpha", minimum=0.0)
        if not isinstance(generator, np.random.Generator):
            raise TypeError(
                "generator には np.random.default_rng(種) で作る生成器を渡してください: "
                f"{shown(generator)}"
            )
        normalized = self.normalize(text)
        return self._pieces_of(normalized, self.lattice(text).sample(alpha, generator))

    def log_likelihood(self, text: str) -> float:
        """周辺尤度の対数 log P(X) = log Σ_{x ∈ S(X)} P(x) [nat] を、全分割にわたる和として返す。

        空の文字列では 0 である。Raises は `tokenize` と同じ。
        """
        lattice = self.lattice(text)
        return lattice.forward()[lattice.length]

    def expected_counts(self, text: str) -> dict[str, float]:
        """各断片が `text` に現れる回数の期待値 Σ_x P(x | X) #(断片, x) を返す(E ステップ)。

        ラティスに現れない断片は含めない。未知の文字はまとめて `<unk>` に数える。
        """
        counts: dict[str, float] = {}
        for edge, probability in self.lattice(text).posteriors():
            piece = self.pieces[edge.piece_id]
            counts[piece] = counts.get(piece, 0.0) + probability
        return counts

    def _edges_from(self, text: str, start: int, with_unknown: bool) -> list[Edge]:
        """`start` から始まる辺を短い順に返す。"""
        edges: list[Edge] = []
        for end in range(start + 1, len(text) + 1):
            piece_id = self._prefixes.get(text[start:end])
            if piece_id is None:
                break
            if piece_id >= 0:
                edges.append(Edge(start, end, piece_id, self.log_probs[piece_id]))
        if with_unknown and not (edges and edges[0].end == start + 1):
            edges.insert(0, Edge(start, start + 1, self.unk_id, self.unknown_log_prob))
        return edges

    def _best(self, text: str) -> list[Edge]:
        path = viterbi(
            len(text),
            lambda start: self._edges_from(text, start, self._as_sentencepiece),
            single_precision=self._as_sentencepiece,
        )
        if path is None:
            path = viterbi(len(text), lambda start: self._edges_from(text, start, True))
        assert path is not None, "未知の辺を足せば必ず経路がある"
        return path

    def _pieces_of(self, text: str, path: list[Edge]) -> list[str]:
        """経路を断片の並びに直す。未知の文字はバイトに分けるか、続くものを 1 つにまとめる。"""
        pieces: list[str] = []
        for is_unknown, run in itertools.groupby(path, lambda edge: edge.piece_id == self.unk_id):
            edges = list(run)
            if not is_unknown:
                pieces.extend(text[edge.start : edge.end] for edge in edges)
                continue
            surface = text[edges[0].start : edges[-1].end]
            if self.byte_ids:
                pieces.extend(f"<0x{byte:02X}>" for byte in surface.encode("utf-8"))
            else:
                pieces.append(surface)
        return pieces


def _byte_pieces() -> list[str]:
    """バイト 0-255 の断片の表記(SentencePiece の byte_fallback と同じ)。"""
    return [f"<0x{byte:02X}>" for byte in range(256)]


def _decode_bytes(data: bytearray) -> str:
    """UTF-8 として読み、不正なバイトは 1 つずつ U+FFFD に置き換える。"""
    return re.sub("[\udc80-\udcff]", "\ufffd", data.decode("utf-8", "surrogateescape"))
