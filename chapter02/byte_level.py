"""バイトレベル BPE の土台: バイトと文字の対応、正規表現による前分割、公開語彙の読み取り。

出典: Radford et al. (2019) "Language Models are Unsupervised Multitask Learners" 2.2 節と、公開
された GPT-2 の符号化器。cl100k_base と o200k_base の正規表現は、tiktoken のものと同値である。
"""

import base64
import binascii
import functools
import json
import re

import regex

# 前分割の正規表現。どれも「空白 1 個を次の語に付ける」「数字と記号を字から離す」という方針をとる。
# 文字の種類(L 字、N 数字、M 結合文字、Lu 大文字、Ll 小文字など)は、角括弧の中にだけ書く。
PATTERNS = {
    "gpt2": (r"'s|'t|'re|'ve|'m|'ll|'d| ?[\p{L}]+| ?[\p{N}]+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"),
    "cl100k_base": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}]+|[\p{N}]{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "o200k_base": (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|[\p{N}]{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}

SPECIAL_TOKENS = {
    "gpt2": {"<|endoftext|>": 50256},
    "cl100k_base": {
        "<|endoftext|>": 100257,
        "<|fim_prefix|>": 100258,
        "<|fim_middle|>": 100259,
        "<|fim_suffix|>": 100260,
        "<|endofprompt|>": 100276,
    },
    "o200k_base": {"<|endoftext|>": 199999, "<|endofprompt|>": 200018},
}


def _byte_to_char() -> list[str]:
    """バイト b を表す文字の一覧(GPT-2 の対応)。

    印字できる 188 個のバイトは同じ番号の文字で、残りの 68 個は順に U+0100 からの文字で表す。
    空白は "Ġ"、改行は "Ċ" になる。
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {byte: chr(byte) for byte in printable}
    table |= {byte: chr(0x100 + rank) for rank, byte in enumerate(others)}
    return [table[byte] for byte in range(256)]


BYTE_TO_CHAR = _byte_to_char()
CHAR_TO_BYTE = {char: byte for byte, char in enumerate(BYTE_TO_CHAR)}
_TO_CHARS = dict(enumerate(BYTE_TO_CHAR))
_TO_LATIN = {ord(char): chr(byte) for char, byte in CHAR_TO_BYTE.items()}
# id の順に並べた 256 個のバイト。表す文字の符号位置の順である。
BYTES_IN_ORDER = [bytes([CHAR_TO_BYTE[char]]) for char in sorted(BYTE_TO_CHAR)]


def bytes_to_chars(data: bytes) -> str:
    """バイト列を、1 バイト 1 文字の読める文字列にする(b" the" は "Ġthe")。"""
    return data.decode("latin-1").translate(_TO_CHARS)


def chars_to_bytes(chars: str) -> bytes:
    """`bytes_to_chars` の逆。

    Raises:
        ValueError: バイトに対応しない文字があるとき。
    """
    if any(char not in CHAR_TO_BYTE for char in chars):
        raise ValueError(f"バイトに対応しない文字があります: {chars!r}")
    return chars.translate(_TO_LATIN).encode("latin-1")


# Unicode 16.0 で未割り当ての符号位置のうち、regex の新しい版が文字・数字・結合文字とみなすもの。
# tiktoken は Unicode 16.0 による。同じところで分けるために、私用領域の文字に置き換えて調べる。
_UNASSIGNED_IN_UNICODE_16 = (
    "0558 058B-058C 05C8-05C9 088F 0B53-0B54 0C5C 0CDC 1ACF-1AF0 208F 209D-209F A7CE-A7CF A7D2 "
    "A7D4 A7DD A7E2 A7F1 AB6C-AB6D 107BB-107BF 10940-10959 10EC5-10EC7 10ECB-10ECF 10ED9-10EEE "
    "10EF0-10EFB 11B0A 11B60-11B67 11DB0-11DDB 11DE0-11DE9 11DF0-11DF1 1246F 12475-1247F "
    "12550-12686 16EA0-16EB8 16EBB-16ED3 16FF2-16FF6 187F8-187FF 18CD6-18CDA 18D09-18D20 "
    "18D80-18DF2 18E00-19191 191A0-191D2 1B123-1B128 1B168 1D127-1D128 1D250-1D252 1D25B-1D25C "
    "1D25F 1D280-1D281 1D6A6 1DF1F-1DF24 1DF2B-1DF81 1DF90-1DF96 1DFCD-1DFFF 1E6C0-1E6DE "
    "1E6E0-1E6F5 1E6FE-1E6FF 2B73A-2B73F 2B81E 2CEA2-2CEAD 323B0-33479 3D000-3FC3F"
)
_RANGES = [
    (int(first, 16), int(last or first, 16))
    for first, _, last in (part.partition("-") for part in _UNASSIGNED_IN_UNICODE_16.split())
]
# 大まかな検査。基本多言語面の外はすべて疑い、疑わしい文だけを 1 文字ずつ置き換える。
_SUSPECT = re.compile(
    "["
    + "".join(f"{chr(first)}-{chr(last)}" for first, last in _RANGES if last < 0x10000)
    + "\u0295\U00010000-\U0010ffff]"
)


@functools.cache
def _stand_ins() -> dict[int, int]:
    """置き換えの表(符号位置 → 符号位置)。"""
    table = {code: 0xE000 for first, last in _RANGES for code in range(first, last + 1)}
    return table | {0x0295: 0x0259}  # Unicode 16.0 では小文字 (Ll)


# ASCII だけの文なら、文字の種類を範囲で書いて標準の re で読むほうが 2 倍ほど速い。
_IN_ASCII = {"L": "A-Za-z", "Lu": "A-Z", "Ll": "a-z", "N": "0-9"}


@functools.cache
def _compiled(pattern: str) -> "tuple[re.Pattern[str], regex.Pattern[str]]":
    """ASCII だけの文に使う正規表現と、どんな文にも使える正規表現。"""
    in_ascii = re.sub(r"\\p\{(\w+)\}", lambda kind: _IN_ASCII.get(kind[1], ""), pattern)
    return re.compile(in_ascii, re.ASCII), regex.compile(pattern)


def split_text(text: str, pattern: str) -> list[str]:
    """`text` を正規表現 `pattern` で前トークンに分ける(つなぐと元に戻る)。"""
    in_ascii, general = _compiled(pattern)
    if text.isascii():
        return in_ascii.findall(text)
    if _SUSPECT.search(text) is None:
        return general.findall(text)
    probe = text.translate(_stand_ins())
    return [text[match.start() : match.end()] for match in general.finditer(probe)]


def parse_tiktoken(raw: bytes) -> list[bytes]:
    """.tiktoken ファイル(1 行に base64 のトークンと順位)を、順位順のトークンの並びにする。

    Raises:
        ValueError: 形式が違うとき。
    """
    try:
        rows = [line.split() for line in raw.splitlines() if line]
        tokens = [base64.b64decode(token, validate=True) for token, _ in rows]
        ranks = [int(rank) for _, rank in rows]
    except (ValueError, binascii.Error) as error:
        raise ValueError(f"raw が .tiktoken の形式ではありません: {error}") from None
    if ranks != list(range(len(tokens))) or len({*tokens}) != len(tokens):
        raise ValueError("raw の順位が 0 からの連番ではないか、同じトークンが 2 度あります")
    return tokens


def parse_gpt2(encoder_json: bytes, vocab_bpe: bytes) -> list[bytes]:
    """GPT-2 の encoder.json と vocab.bpe を、順位順のトークンの並びにする。

    id は、256 バイト、マージの結果の順に付いている。encoder.json は、そのことの確認に使う。

    Raises:
        ValueError: 形式が違うとき、または 2 つのファイルが食い違うとき。
    """
    try:
        pairs = [line.split(" ") for line in vocab_bpe.decode("utf-8").split("\n")[1:] if line]
        merged = [chars_to_bytes(left + right) for left, right in pairs]
        encoder = json.loads(encoder_json)
    except ValueError as error:
        raise ValueError(f"GPT-2 の語彙ファイルの形式が違います: {error}") from None
    tokens = BYTES_IN_ORDER + merged
    expected = {bytes_to_chars(token): rank for rank, token in enumerate(tokens)}
    if encoder != expected | SPECIAL_TOKENS["gpt2"]:
        raise ValueError("GPT-2 の encoder.json と vocab.bpe が食い違っています")
    return tokens
