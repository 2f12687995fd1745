"""バイトレベル BPE を、Hugging Face の tokenizers が開ける tokenizer.json に読み書きする。"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chapter02.bpe_encoding import MergeTable
from chapter02.byte_level import BYTES_IN_ORDER, PATTERNS, bytes_to_chars, chars_to_bytes
from shared.checks import shown
from shared.files import write_atomically

_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}


def save(
    path: str | os.PathLike[str],
    table: MergeTable,
    ids: list[int],
    special_tokens: Mapping[str, int],
    pattern: str,
) -> Path:
    """マージの表と特殊トークンを `path` に書く。

    id に空きがあっても正しく読めるように、特殊トークンは語彙にも入れる。
    """
    names = [bytes_to_chars(token) for token in table.tokens]
    vocabulary = dict(special_tokens) | dict(zip(names, ids, strict=True))
    pairs = zip(table.left[256:], table.right[256:], strict=True)
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": number,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for token, number in sorted(special_tokens.items(), key=lambda item: item[1])
        ],
        "normalizer": None,
        "pre_tokenizer": _pre_tokenizer(pattern),
        "post_processor": None,
        "decoder": {**_BYTE_LEVEL, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": dict(sorted(vocabulary.items(), key=lambda item: item[1])),
            "merges": [[names[left], names[right]] for left, right in pairs],
        },
    }
    return write_atomically(path, json.dumps(content, ensure_ascii=False, indent=1))


def _pre_tokenizer(pattern: str) -> dict[str, Any]:
    if pattern == PATTERNS["gpt2"]:
        return {**_BYTE_LEVEL, "use_regex": True}
    split = {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }
    return {"type": "Sequence", "pretokenizers": [split, {**_BYTE_LEVEL, "use_regex": False}]}


def load(path: str | os.PathLike[str]) -> tuple[MergeTable, list[int], dict[str, int], str]:
    """`save` の逆。マージの表、記号の番号 → id、特殊トークン、正規表現を返す。

    Raises:
        OSError: 読めないとき。
        ValueError: tokenizer.json として正しくないとき、バイトレベル BPE でないとき。
    """
    try:
        content = json.loads(Path(path).read_bytes())
        return _parse(content)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        reason = error if isinstance(error, _UnsupportedError) else f"形式が違います ({error!r})"
        raise ValueError(f"path のファイルを読めません: {shown(str(path))}: {reason}") from None


class _UnsupportedError(ValueError):
    """読めない理由を、読者への言葉で述べる例外。"""


def _parse(content: dict[str, Any]) -> tuple[MergeTable, list[int], dict[str, int], str]:
    model = content["model"]
    if model.get("type", "BPE") != "BPE":
        raise _UnsupportedError(f"model.type が BPE ではありません: {model['type']}")
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(option):
            raise _UnsupportedError(f"model.{option} には対応していません: {model[option]}")
    if content.get("normalizer"):
        raise _UnsupportedError("normalizer には対応していません")
    pattern = _pattern(content["pre_tokenizer"])
    vocabulary: dict[str, int] = model["vocab"]
    numbers = [*vocabulary.values()]
    specials = {token["content"]: token["id"] for token in content.get("added_tokens", [])}
    numbers += [number for token, number in specials.items() if token not in vocabulary]
    if any(type(number) is not int or number < 0 for number in numbers):
        raise _UnsupportedError("id が 0 以上の整数ではありません")
    if len({*numbers}) < len(numbers) or any(
        vocabulary.get(token, number) != number for token, number in specials.items()
    ):
        raise _UnsupportedError("同じ id が 2 つのトークンに付いています")

    ordered = sorted(BYTES_IN_ORDER, key=lambda byte: vocabulary[bytes_to_chars(byte)])
    table = MergeTable(ordered)
    for merge in model["merges"]:
        parts = merge.split(" ") if isinstance(merge, str) else merge
        left, right = (chars_to_bytes(part) for part in parts)
        if left not in table.number or right not in table.number:
            raise _UnsupportedError(f"後のマージの結果を先に使うマージがあります: {merge}")
        if left + right in table.number:
            raise _UnsupportedError(f"結果の同じマージが 2 つあります: {merge}")
        table.add(table.number[left], table.number[right])
    ids = [vocabulary[bytes_to_chars(token)] for token in table.tokens]
    if rest := {*vocabulary.values()} - {*ids} - {*specials.values()}:
        raise _UnsupportedError(f"マージでは作れないトークンの id があります: {sorted(rest)[:5]}")
    return table, ids, specials, pattern


def _pattern(pre_tokenizer: dict[str, Any]) -> str:
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    *splits, last = steps
    known = {json.dumps(_pre_tokenizer(pattern)): pattern for pattern in PATTERNS.values()}
    if last["type"] != "ByteLevel" or last.get("add_prefix_space", True):
        raise _UnsupportedError(
            "pre_tokenizer が add_prefix_space=false の ByteLevel ではありません"
        )
    for pattern in known.values():
        expected = _pre_tokenizer(pattern)
        first, *_ = expected.get("pretokenizers", [None])
        if [first] * len(splits) == splits and last.get("use_regex", True) == (not splits):
            return pattern
    raise _UnsupportedError(
        "pre_tokenizer の正規表現が GPT-2、cl100k_base、o200k_base のどれでもない"
    )
