"""SentencePiece のモデルファイル (`.model`) の読み取りと、その中に書かれた正規化の実行。

`.model` は Protocol Buffers の ModelProto である。断片の表のほかに、文字の置き換え規則
(precompiled_charsmap)がトライ木ごと入っているので、ファイルが 1 つあれば、どこでも同じ分割が得られ
る (Kudo & Richardson 2018, arXiv:1808.06226)。
"""

import enum
import math
import re
import struct
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

SPACE = "▁"
"""空白の代わりに使う記号 U+2581。空白も 1 つの文字として扱えば、分割から元の文を復元できる。"""

# nmt_nfkc が空白とみなす文字(SentencePiece の実装)と、消す制御文字。
_TO_SPACE = [9, 10, 12, 13, 0x61C, 0x1680, 0x200B, 0x200C, 0x200E, 0x200F, 0x2028, 0x2029]
_TO_SPACE += [0x2581, 0xFEFF, 0xFFFD]
_TO_NOTHING = [*range(1, 9), 0x0B, *range(0x0E, 0x20), 0x7F, 0x8F, 0x9F]
_NMT_TABLE = dict.fromkeys(_TO_SPACE, " ") | dict.fromkeys(_TO_NOTHING, "")
_FULLWIDTH_TILDE = "\uff5e"  # NFKC では "~" になるが、日本語では使い分けるので変えない
_MODEL_TYPES = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}


class Kind(enum.IntEnum):
    """断片の種類(ModelProto.SentencePiece.Type)。"""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Normalizer:
    """文字の置き換えと空白の整理。`normalize` は「置き換え→空白の整理→空白の記号化」の順に行う。

    Attributes:
        replace: 文字列から文字列への置き換え(`nmt_nfkc`、`CharsMap.replace` など)。
        add_dummy_prefix: 文頭に空白を足し、文頭の語と文中の語を同じ断片にする。
        remove_extra_whitespaces: 続く空白を 1 つにし、両端の空白を除く。
        escape_whitespaces: 空白を `▁` に置き換える。
        whitespace_as_suffix: 文頭ではなく文末に空白を足す。
    """

    replace: Callable[[str], str]
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    escape_whitespaces: bool = True
    whitespace_as_suffix: bool = False

    @property
    def strips_leading_space(self) -> bool:
        """復号のときに文頭の空白を除くか。"""
        return self.add_dummy_prefix or self.remove_extra_whitespaces

    def normalize(self, text: str) -> str:
        """分割の対象になる文字列を返す。空白だけの文は空になる。"""
        original, text = text, self.replace(text)
        if self.remove_extra_whitespaces:
            text = re.sub(" {2,}", " ", text.lstrip(" "))
        if not text and all(self.replace(character) == " " for character in original):
            return ""  # 消える制御文字だけの文は、ここで終わらない(SentencePiece の実装)
        space = SPACE if self.escape_whitespaces else " "
        if self.escape_whitespaces:
            text = text.replace(" ", SPACE)
        if self.add_dummy_prefix and not self.whitespace_as_suffix:
            text = space + text
        if self.remove_extra_whitespaces:
            text = text.rstrip(space)
        if self.add_dummy_prefix and self.whitespace_as_suffix:
            text += space
        return text


def nmt_nfkc(text: str) -> str:
    """SentencePiece の既定の置き換え nmt_nfkc: NFKC 正規化と、空白・制御文字の整理。

    Python の Unicode データを使うので、組み込みの規則とは Unicode の版だけが異なる。
    """
    text = text.translate(_NMT_TABLE)
    if text.isascii():
        return text
    parts = (unicodedata.normalize("NFKC", part) for part in text.split(_FULLWIDTH_TILDE))
    return _FULLWIDTH_TILDE.join(parts)


class CharsMap:
    """precompiled_charsmap: 置き換え規則のダブル配列トライ(Darts-clone の形式)。

    `protected` の文字列(利用者定義の断片)は置き換えない。

    Raises:
        ValueError: `blob` が壊れているとき。
    """

    def __init__(self, blob: bytes, protected: Sequence[str] = ()) -> None:
        size = int.from_bytes(blob[:4], "little") if blob else 0
        if blob and (size % 4 or not 4 <= size < len(blob) - 4):
            raise ValueError("precompiled_charsmap の大きさが合いません")
        self._units = struct.unpack(f"<{size // 4}I", blob[4 : 4 + size])
        self._texts = blob[4 + size :]
        longest_first = sorted(protected, key=len, reverse=True)
        self._protected = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._unchanged: set[str] = set()  # 続く文字によらず、置き換えの起こらない文字

    def replace(self, text: str) -> str:
        """先頭から順に、最も長く一致する規則で置き換える。一致しない文字はそのまま残す。"""
        if not self._units and self._protected.pattern == "(?!)":
            return text
        output: list[str] = []
        i = 0
        while i < len(text):
            kept = self._protected.match(text, i)
            if kept:
                output.append(kept.group())
                i = kept.end()
            elif text[i] in self._unchanged:
                output.append(text[i])
                i += 1
            else:
                length, replacement = self._longest(text, i)
                output.append(replacement)
                i += length
        return "".join(output)

    def _longest(self, text: str, start: int) -> tuple[int, str]:
        """`start` から最も長く一致する規則の (文字数, 置き換え後) を返す。"""
        if not self._units:
            return 1, text[start]
        best = 1, text[start]
        try:
            unit = self._units[0]
            node = _offset(unit)
            for i in range(start, len(text)):
                for byte in text[i].encode("utf-8"):
                    unit = self._units[node ^ byte]
                    if unit & 0x800000FF != byte:  # 下位 8 ビットが、この節点へ来るときの文字
                        if i == start:
                            self._unchanged.add(text[start])
                        return best
                    node ^= byte ^ _offset(unit)
                if unit >> 8 & 1:  # 規則がここで終わる。値は置き換え後の文字列の位置
                    position = self._units[node] & 0x7FFFFFFF
                    end = self._texts.index(b"\0", position)
                    best = i - start + 1, self._texts[position:end].decode("utf-8")
        except (IndexError, ValueError) as error:
            raise ValueError("モデルの precompiled_charsmap が壊れています") from error
        return best


@dataclass(frozen=True)
class SentencePieceModel:
    """`.model` の中身のうち、分割と復号に要るもの。`pieces` `scores` `kinds` は id の順。"""

    pieces: list[str]
    scores: list[float]
    kinds: list[Kind]
    normalizer: Normalizer
    byte_fallback: bool
    unk_surface: str


def read_model(data: bytes, name: str) -> SentencePieceModel:
    """`.model` の中身 `data` を読む。`name` はメッセージに使うファイル名。

    Raises:
        ValueError: ModelProto として読めない、ユニグラム言語モデルでない、中身が矛盾しているとき。
    """
    try:
        return _parse_model(data)
    except (ValueError, TypeError, struct.error) as error:
        raise ValueError(
            f"model_file {name} は SentencePiece のユニグラム言語モデルとして読めません: {error}"
        ) from error


def _parse_model(data: bytes) -> SentencePieceModel:
    pieces: list[str] = []
    scores: list[float] = []
    kinds: list[Kind] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    denormalizer: dict[int, int | bytes] = {}
    for number, value in _fields(data):
        if number == 1:  # SentencePiece: 1 piece, 2 score (float), 3 type
            piece = dict(_fields(_as_bytes(value)))
            pieces.append(_as_bytes(piece[1]).decode("utf-8") if 1 in piece else "")
            scores.append(struct.unpack("<f", _as_bytes(piece.get(2, b"\0\0\0\0")))[0])
            kinds.append(Kind(piece.get(3, Kind.NORMAL)))
        elif number == 2:
            trainer = dict(_fields(_as_bytes(value)))
        elif number == 3:
            normalizer = dict(_fields(_as_bytes(value)))
        elif number == 5:
            denormalizer = dict(_fields(_as_bytes(value)))
    model_type = trainer.get(3, 1)
    if model_type != 1:
        raise ValueError(f"model_type が {_MODEL_TYPES.get(int(model_type), model_type)} です")
    if kinds.count(Kind.UNKNOWN) != 1 or Kind.NORMAL not in kinds:
        raise ValueError("<unk> がちょうど 1 つ、通常の断片が 1 つ以上要ります")
    if "" in pieces or len(set(pieces)) != len(pieces) or not all(map(math.isfinite, scores)):
        raise ValueError("断片が空か重複しているか、点数が有限の数ではありません")
    byte_fallback = bool(trainer.get(35, 0))
    if byte_fallback and kinds.count(Kind.BYTE) != 256:
        raise ValueError("byte_fallback に要る 256 個のバイトの断片がそろっていません")
    if denormalizer.get(2):
        raise ValueError("復号のときの置き換え規則 (denormalizer_spec) には対応していません")
    user_defined = [p for p, kind in zip(pieces, kinds, strict=True) if kind == Kind.USER_DEFINED]
    charsmap = CharsMap(_as_bytes(normalizer.get(2, b"")), user_defined)
    return SentencePieceModel(
        pieces,
        scores,
        kinds,
        Normalizer(
            charsmap.replace,
            add_dummy_prefix=bool(normalizer.get(3, 1)),
            remove_extra_whitespaces=bool(normalizer.get(4, 1)),
            escape_whitespaces=bool(normalizer.get(5, 1)),
            whitespace_as_suffix=bool(trainer.get(24, 0)),
        ),
        byte_fallback,
        _as_bytes(trainer.get(44, " ⁇ ".encode())).decode("utf-8"),
    )


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Protocol Buffers のメッセージを (番号, 値) に分ける。整数以外の値は bytes のまま返す。"""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == 0:
            value, position = _varint(data, position)
            yield number, value
            continue
        if wire_type == 2:
            size, position = _varint(data, position)
        elif wire_type in (1, 5):
            size = 8 if wire_type == 1 else 4
        else:
            raise ValueError(f"{position} バイト目の型 {wire_type} は使われないものです")
        if number == 0 or position + size > len(data):
            raise ValueError(f"{position} バイト目で途切れているか壊れています")
        yield number, data[position : position + size]
        position += size


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """可変長の整数(7 ビットずつ、下位から)を読み、(値, 次の位置) を返す。"""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            break
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError(f"{position} バイト目で整数が途切れています")


def _as_bytes(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError("長さつきのはずのフィールドが整数です")
    return value


def _offset(unit: int) -> int:
    """ダブル配列の要素から、子の節点の基準位置を取り出す。"""
    return unit >> 10 << ((unit & 1 << 9) >> 6)
