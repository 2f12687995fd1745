"""対訳: 正規化と、英文も和文もまたがらない、学習・検証・試験への分割。

Tatoeba の英文と和文 → normalise → split_pairs → "train"・"validation"・"test"
"""

import hashlib
import json
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable

from shared import datasets
from shared.checks import require_text, shown

Pair = tuple[str, str]  # (英文, 和文)

DIRECTIONS = ("en-ja", "ja-en")
MAX_WORDS, MAX_CHARACTERS = 12, 30  # 学習に使う対訳の長さの上限(英語の語、日本語の字)
TEST_WORDS = 8  # 評価に使う英文の語数の上限
SHARES = {"validation": 0.0085, "test": 0.0127}  # 連結成分のうち、検証と試験に回す割合


def normalise(text: str, language: str) -> str:
    """NFKC 正規化をし、空白を整え、言語の習慣に記号を揃える。

    日本語では字の間の空白を除き、? と ! を全角に戻す。英語では曲がった引用符をまっすぐにする。

    Raises:
        TypeError: `text` が str でないとき。
        ValueError: `language` が "en" か "ja" でないとき。
    """
    text = unicodedata.normalize("NFKC", require_text(text, "text")).replace("\u200b", "")
    text = " ".join(text.split())
    if language == "ja":
        text = re.sub(r"(?<![!-~]) | (?![!-~])", "", text)
        return text.translate(str.maketrans("?!", "？！"))
    if language == "en":
        return text.translate(str.maketrans("‘’“”", "''\"\""))
    raise ValueError(f'language は "en" か "ja" にしてください: {shown(language)}')


def key(text: str, language: str) -> str:
    """同じ文とみなすための鍵: 大文字と小文字、記号、空白の違いを除いたもの。"""
    text = normalise(text, language).casefold()
    joint = " " if language == "en" else ""
    return joint.join(re.findall(r"[^\W_]+", text.replace("'", ""))) or text


def split_pairs(pairs: Iterable[Pair]) -> dict[str, list[Pair]]:
    """対訳を "train"・"validation"・"test" に、英文も和文もまたがらないように分ける。

    英文と和文を頂点、対訳を辺とするグラフの連結成分を単位とし、成分に属する鍵のうち辞書順で最小の
    もののハッシュ値で行き先を決める。だから、行の順を変えても、ほかの成分が増えても行き先は同じであ
    る。評価に使う文やその訳は、表記が `key` の範囲で違っても学習に現れない。
    """
    parent: dict[str, str] = {}

    def root(node: str) -> str:
        while parent.setdefault(node, node) != node:
            parent[node] = node = parent[parent[node]]
        return node

    edges: list[tuple[str, Pair]] = []
    for en, ja in pairs:
        node = "en:" + key(en, "en")
        one, other = sorted((root(node), root("ja:" + key(ja, "ja"))))
        parent[other] = one  # 根はつねに、成分の中で最小の鍵
        edges.append((node, (en, ja)))
    parts: dict[str, list[Pair]] = {"train": [], "validation": [], "test": []}
    for node, pair in edges:
        parts[_part(root(node))].append(pair)
    return parts


def _part(name: str) -> str:
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
    for part, share in SHARES.items():
        if number < share:
            return part
        number -= share
    return "train"


def is_short(pair: Pair) -> bool:
    """学習に使う長さの対訳か。"""
    return len(pair[0].split()) <= MAX_WORDS and len(pair[1]) <= MAX_CHARACTERS


def corpus() -> dict[str, list[Pair]]:
    """Tatoeba の英日の対訳を正規化し、"train"・"validation"・"test" に分けて返す。

    train は短い対訳(`is_short`)に限り、ほかの二つは英文が `TEST_WORDS` 語以下の対訳に限る。

    Raises:
        DataError: 書庫を用意できないとき。
    """
    raw = datasets.tatoeba("en", "ja")
    pairs = dict.fromkeys((normalise(en, "en"), normalise(ja, "ja")) for en, ja in raw)
    parts = split_pairs(pair for pair in pairs if all(pair))
    parts["train"] = [pair for pair in parts["train"] if is_short(pair)]
    for part in SHARES:
        parts[part] = [pair for pair in parts[part] if len(pair[0].split()) <= TEST_WORDS]
    return parts


def fingerprint(parts: dict[str, list[Pair]]) -> str:
    """対訳の全体の SHA-256(データが変わっていないことを確かめる)。"""
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()


def references(pairs: Iterable[Pair], direction: str) -> dict[str, list[str]]:
    """原文ごとに、その訳のすべてを並べた辞書(一つの原文に正しい訳はいくつもある)。"""
    found: dict[str, list[str]] = defaultdict(list)
    for en, ja in pairs:
        source, target = (en, ja) if require_direction(direction) == "en-ja" else (ja, en)
        found[source].append(target)
    return dict(found)


def require_direction(direction: str) -> str:
    """`direction` が "en-ja" か "ja-en" であることを確かめて返す。

    Raises:
        ValueError: ほかの値のとき。
    """
    if direction not in DIRECTIONS:
        raise ValueError(f'direction は "en-ja" か "ja-en" にしてください: {shown(direction)}')
    return direction
