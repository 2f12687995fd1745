"""混入の検査: 試験の問題が学習データに入っていないかを、n-gram の重なりで調べる。

- GPT-2 (Radford et al. 2019, 4 節): 学習データの 8-gram を Bloom フィルターに入れ、試験の 8-gram の
  うち何 % がそこにあるかを数えた。`ngrams` → `BloomFilter` → `ngram_overlap`。
- GPT-3 (Brown et al. 2020, 付録 C): N-gram が一つでも学習文書に現れる問題を「汚れた」ものとし、
  残りの「きれいな」問題だけの成績と比べた。`overlap_length` → `dirty` → `compare_clean`。また、
  学習データからは、重なりとその前後を取り除いた。`remove_overlaps`。
- GPT-4 (OpenAI 2023, 付録 C): 問題から無作為に選んだ 50 文字が 3 つのうち一つでも、学習データに
  そのまま現れるかを調べた。`substring_matches`。

GPT-3 の 1-gram は、空白で区切られた、小文字で記号のない語である(`words`)。語の間に空白を置かない
和文では、`characters` で文字に分けて渡す。
"""

import hashlib
import math
import random
import re
import unicodedata
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shared.checks import require_int, require_many, require_number, require_text, shown

Gram = tuple[str | int, ...]


# ---- n-gram -----------------------------------------------------------------------------


class _Removing(dict[int, int | None]):
    """str.translate の表。一般カテゴリーが `kinds` の文字を取り除く。引かれるたびに覚える。"""

    def __init__(self, kinds: str) -> None:
        self.kinds = kinds

    def __missing__(self, code: int) -> int | None:
        self[code] = None if unicodedata.category(chr(code))[0] in self.kinds else code
        return self[code]


_NO_SYMBOLS = _Removing("PS")  # 約物と記号
_ONLY_CHARACTERS = _Removing("PSZC")  # 空白と制御文字なども


def words(text: str) -> list[str]:
    """小文字にし、約物と記号を除き、空白で分けた語 (Brown et al. 2020, 付録 C)。

    Raises:
        TypeError, ValueError: str でない、単独のサロゲートを含むとき。
    """
    return require_text(text, "text").lower().translate(_NO_SYMBOLS).split()


def characters(text: str) -> list[str]:
    """空白・約物・記号・制御文字を除いた、文字と数字の並び (OpenAI 2023, 付録 C)。

    Raises:
        TypeError, ValueError: str でない、単独のサロゲートを含むとき。
    """
    return list(require_text(text, "text").translate(_ONLY_CHARACTERS))


def ngrams(text_or_tokens: str | Sequence[str | int], n: int) -> list[Gram]:
    """続いた n 個の組を、前から順に。文字列なら `words` で語に、ほかの列ならそのまま要素を使う。

    Raises:
        TypeError, ValueError: `n` が 1 以上の整数でない、文字列でも列でもないとき。
    """
    n = require_int(n, "n", minimum=1)
    tokens = words(text_or_tokens) if isinstance(text_or_tokens, str) else text_or_tokens
    if isinstance(tokens, bytes | bytearray) or not hasattr(tokens, "__len__"):
        raise TypeError(f"text_or_tokens には文字列かトークンの列を渡してください: {shown(tokens)}")
    tokens = tuple(tokens)
    return [tokens[i : i + n] for i in range(len(tokens) - n + 1)]


def ngram_overlap(
    text_or_tokens: str | Sequence[str | int], reference_ngrams: Container[Gram], n: int
) -> float:
    """n-gram のうち、`reference_ngrams` にあるものの割合。n 個に満たなければ 0。

    0 でなければ、GPT-3 のいう「汚れた」文。GPT-2 の表 6 は、試験の全体でのこの割合である。

    Args:
        text_or_tokens: 調べる文かトークンの列(`ngrams` と同じ)。
        reference_ngrams: 学習データの `ngrams` の集合か、それを入れた `BloomFilter`。
        n: 何個の組で見るか。

    Raises:
        TypeError, ValueError: `ngrams` と同じ。`reference_ngrams` が文字列か、in で調べられない物の
            とき。
    """
    if isinstance(reference_ngrams, str) or not hasattr(reference_ngrams, "__contains__"):
        raise TypeError(
            "reference_ngrams には n-gram の集合か BloomFilter を渡してください: "
            f"{shown(reference_ngrams)}"
        )
    found = ngrams(text_or_tokens, n)
    return sum(gram in reference_ngrams for gram in found) / len(found) if found else 0.0


# ---- GPT-3: 汚れた問題と、きれいな問題 --------------------------------------------------


def overlap_length(examples: Iterable[str | Sequence[str | int]]) -> int:
    """重なりを調べる N: 問題の長さの 5 パーセンタイルを、8 から 13 に収めたもの(付録 C)。

    Raises:
        ValueError: 問題が一つもないとき。
    """
    lengths = [len(ngrams(example, 1)) for example in examples]
    if not lengths:
        raise ValueError("examples に、問題を一つ以上渡してください")
    return min(13, max(8, int(np.percentile(lengths, 5))))


def dirty(
    examples: Iterable[str | Sequence[str | int]],
    documents: Iterable[str | Sequence[str | int]],
    n: int | None = None,
) -> list[bool]:
    """問題ごとに、N-gram が一つでも学習文書のどれかに現れるか(付録 C の dirty)。

    問題の側の N-gram だけを覚え、文書は一度だけ順に読む。N 個に満たない問題は、調べようがないので
    False(きれい)とする。

    Args:
        examples: 試験の問題。
        documents: 学習文書。
        n: N。省けば `overlap_length(examples)`。

    Raises:
        TypeError: `examples` か `documents` が、並びでなく一つの文字列のとき。
    """
    require_many(examples, "examples")
    require_many(documents, "documents")
    examples = list(examples)
    n = overlap_length(examples) if n is None else require_int(n, "n", minimum=1)
    grams = [set(ngrams(example, n)) for example in examples]
    wanted = set().union(*grams)
    seen = {gram for document in documents for gram in ngrams(document, n) if gram in wanted}
    return [not seen.isdisjoint(own) for own in grams]


class CleanComparison(NamedTuple):
    """表 C.1 の一行。成績は平均で、問題がなければ NaN。"""

    every: float
    dirty: float
    clean: float
    n_dirty: int
    n_clean: int
    relative_difference: float  # (clean - every) / every


def compare_clean(scores: Sequence[float], flags: Sequence[bool]) -> CleanComparison:
    """問題ごとの成績を、汚れた問題ときれいな問題に分けて平均する(付録 C、表 C.1)。

    きれいな問題での成績が全体より 1、2 % を超えて悪ければ、見た問題を覚えているおそれがある。

    Raises:
        ValueError: 数が揃わない、成績が一つもないとき。
    """
    if len(scores) != len(flags) or not len(scores):
        raise ValueError(
            f"scores と flags は、同じ 1 個以上の数にしてください: {len(scores)} と {len(flags)}"
        )
    values, chosen = np.asarray(scores, dtype=float), np.asarray(flags, dtype=bool)
    every = float(values.mean())
    stained, clean = (float(values[c].mean()) if c.any() else math.nan for c in (chosen, ~chosen))
    return CleanComparison(
        every=every,
        dirty=stained,
        clean=clean,
        n_dirty=int(chosen.sum()),
        n_clean=int((~chosen).sum()),
        relative_difference=(clean - every) / every if every else math.nan,
    )


def remove_overlaps(
    documents: Iterable[str],
    examples: Iterable[str],
    *,
    n: int = 13,
    window: int = 200,
    max_pieces: int = 10,
    max_documents: int = 10,
) -> list[list[str]]:
    """学習文書ごとに、試験と重なる n-gram とその前後 `window` 文字を除いた残りの断片(付録 C)。

    `window` 文字に満たない断片は捨てる。断片が `max_pieces` を超える文書は、すべて捨てる(捨てる前の
    断片を数える)。`max_documents` を超える文書に現れる n-gram は、決まり文句とみて無視する。付録は
    「200 文字の窓」とだけ述べるので、前後それぞれに `window` 文字と読んだ。

    Raises:
        TypeError, ValueError: 並びでなく一つの文字列を渡した、文が str でない、数が 0(`n` は 1)
            以上の整数でないとき。
    """
    require_many(documents, "documents")
    require_many(examples, "examples")
    window = require_int(window, "window", minimum=0)
    documents = list(documents)
    wanted = {gram for example in examples for gram in ngrams(example, n)}
    found = [_word_spans(document) for document in documents]
    hits = [
        [gram for gram in ngrams([word for word, _, _ in spans], n) if gram in wanted]
        for spans in found
    ]
    spread = Counter(gram for grams in hits for gram in set(grams))
    wanted = {gram for gram in wanted if spread[gram] <= max_documents}
    kept = []
    for document, spans in zip(documents, found, strict=True):
        pieces, start, collided = [], 0, False
        for i, gram in enumerate(ngrams([word for word, _, _ in spans], n)):
            if gram not in wanted:
                continue
            left = max(0, spans[i][1] - window)
            if left > start:
                pieces.append(document[start:left])
            collided, start = True, spans[i + n - 1][2] + window
        if start < len(document):
            pieces.append(document[start:])
        long_enough = [piece for piece in pieces if not collided or len(piece) >= window]
        kept.append([] if len(pieces) > max_pieces else long_enough)
    return kept


def _word_spans(text: str) -> list[tuple[str, int, int]]:
    """`words` の語と、もとの文での範囲。"""
    found = []
    for match in re.finditer(r"\S+", require_text(text, "documents")):
        found += [(word, match.start(), match.end()) for word in words(match.group())]
    return found


# ---- GPT-4: 部分文字列 ------------------------------------------------------------------


def substring_matches(
    examples: Iterable[str],
    documents: Iterable[str],
    seed: int = 0,
    count: int = 3,
    length: int = 50,
) -> list[bool]:
    """無作為に選んだ `length` 文字の部分が、一つでも学習文書に現れるか (OpenAI 2023, 付録 C)。

    問題も文書も `characters` で文字と数字だけにしてから比べる。`length` 文字に満たない問題は、その
    全体を使う(文字が一つも残らなければ False)。

    Raises:
        TypeError, ValueError: 並びでなく一つの文字列を渡した、文が str でない、数が 1 以上の整数で
            ないとき。
    """
    require_many(examples, "examples")
    require_many(documents, "documents")
    length = require_int(length, "length", minimum=1)
    count = require_int(count, "count", minimum=1)
    rng = random.Random(require_int(seed, "seed"))
    # 文書の間に、`characters` が残さない文字を挟み、境目をまたいで一致しないようにする
    corpus = "\n".join("".join(characters(document)) for document in documents)
    found = []
    for example in examples:
        text = "".join(characters(example))
        starts = [rng.randrange(max(1, len(text) - length + 1)) for _ in range(count)]
        pieces = {text[start : start + length] for start in starts if text}
        found.append(any(piece in corpus for piece in pieces))
    return found


# ---- Bloom フィルター -------------------------------------------------------------------


class BloomFilter:
    """入れた物を必ず「ある」と答え、入れていない物もまれに「ある」と答える、小さな集合。

    k 個のハッシュ値の指すビットを立てる。容量 n と誤りの率 p に対して、最も小さいのは
    m = -n ln p / (ln 2)^2 ビット、k = (m / n) ln 2 個。ハッシュ値は二つだけ求め、
    g_i(x) = h_1(x) + i h_2(x) mod m で k 個にする (Kirsch & Mitzenmacher 2008)。

    入れられるのは str・bytes・整数と、それらの tuple。ハッシュは blake2b なので、いつどこで作っても
    同じになる。

    Attributes:
        n_bits: ビットの数 m。
        n_hashes: ハッシュ値の数 k。
        n_added: 入れた回数(同じ物も数える)。
    """

    def __init__(self, capacity: int, error_rate: float) -> None:
        """`capacity` 個を入れたときの誤りの率が `error_rate` になる大きさで、空のものを作る。

        Raises:
            TypeError: 数でないとき。
            ValueError: `capacity` が 1 より小さい、`error_rate` が 0 と 1 の間にないとき。
        """
        self.capacity = require_int(capacity, "capacity", minimum=1)
        self.error_rate = require_number(error_rate, "error_rate")
        if not 0 < self.error_rate < 1:
            raise ValueError(
                f"error_rate は 0 より大きく 1 より小さくしてください: {self.error_rate}"
            )
        self.n_bits = math.ceil(-self.capacity * math.log(self.error_rate) / math.log(2) ** 2)
        self.n_hashes = max(1, round(self.n_bits / self.capacity * math.log(2)))
        self.n_added = 0
        self._bits = np.zeros((self.n_bits + 7) // 8, dtype=np.uint8)

    def add(self, item: str | bytes | int | Gram) -> None:
        """一つを入れる。

        Raises:
            TypeError: str・bytes・整数と、それらの tuple でないとき。
        """
        self.update([item])

    def update(self, items: Iterable[str | bytes | int | Gram]) -> None:
        """いくつも入れる(一つずつ `add` するよりずっと速い)。

        Raises:
            TypeError: `items` が文字列のとき(一文字ずつになってしまう)。`add` と同じとき。
        """
        require_many(items, "items")
        rest = iter(items)
        while chunk := list(islice(rest, 65536)):
            bits = self._places(chunk).ravel()
            np.bitwise_or.at(self._bits, bits >> 3, np.left_shift(1, bits & 7).astype(np.uint8))
            self.n_added += len(chunk)

    def __contains__(self, item: object) -> bool:
        bits = self._places([item])[0]
        return bool((self._bits[bits >> 3] >> (bits & 7) & 1).all())

    def contains(self, items: Iterable[str | bytes | int | Gram]) -> NDArray[np.bool_]:
        """いくつもまとめて、あるかどうか (物の数,)。

        Raises:
            TypeError: `update` と同じ。
        """
        require_many(items, "items")
        rest = iter(items)
        found: list[NDArray[np.bool_]] = [np.zeros(0, dtype=bool)]
        while chunk := list(islice(rest, 65536)):
            bits = self._places(chunk)
            found.append(np.all(self._bits[bits >> 3] >> (bits & 7) & 1, axis=1))
        return np.concatenate(found)

    def false_positive_rate(self, n: int | None = None) -> float:
        """n 個の違う物を入れた後の、誤りの率の式 (1 - e^{-kn/m})^k。`n` を省けば `n_added`。

        Raises:
            TypeError, ValueError: `n` が 0 以上の整数でないとき。
        """
        n = self.n_added if n is None else require_int(n, "n", minimum=0)
        return (1 - math.exp(-self.n_hashes * n / self.n_bits)) ** self.n_hashes

    def _places(self, items: Sequence[object]) -> NDArray[np.int64]:
        """ビットの位置 (物の数, k)。"""
        digests = b"".join(
            hashlib.blake2b(_encoded(item), digest_size=16).digest() for item in items
        )
        hashes = np.frombuffer(digests, dtype="<u8").reshape(-1, 2)
        # 先に m で割った余りにしておけば、k 倍しても 64 ビットに収まる
        h1, h2 = (hashes % np.uint64(self.n_bits)).astype(np.int64).T[:, :, None]
        return (h1 + np.arange(self.n_hashes) * h2) % self.n_bits


def _encoded(item: object) -> bytes:
    """種類と値が違えば必ず違う、バイト列での表記。"""
    if isinstance(item, str):
        return b"s" + item.encode("utf-8", "surrogatepass")
    if isinstance(item, bytes):
        return b"b" + item
    if isinstance(item, tuple):
        parts = [_encoded(part) for part in item]
        return b"t" + b"".join(b"%d:%s" % (len(part), part) for part in parts)
    try:
        return b"i%d" % require_int(item, "item")
    except TypeError:
        raise TypeError(
            f"item には str・bytes・整数と、それらの tuple を渡してください: {shown(item)} "
            f"({type(item).__name__})"
        ) from None
