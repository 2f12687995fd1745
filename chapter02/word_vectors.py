"""語のベクトル: 共起の回数を数え、PPMI に直し、SVD で縮め、コサインで比べる(2.1 節)。

one-hot では、どの二つの語も直交していて、似かたに差がない。文脈の回数を並べたベクトルなら、似た
文脈に現れる語どうしが近くなる。学習で得るベクトル(skip-gram)は distributional.py にある。
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import svds
from scipy.stats import spearmanr

from shared.checks import require_int, require_text, shown

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")


# ---- 文を語の番号に ---------------------------------------------------------------------


def words(text: str) -> list[str]:
    """英文を小文字の語の list にする(don't のような、中のアポストロフィは残す)。

    Raises:
        TypeError: `text` が str でないとき。
    """
    return _WORD.findall(require_text(text, "text").lower())


def vocabulary(sentences: Iterable[Sequence[str]], min_count: int = 1) -> dict[str, int]:
    """`min_count` 回以上現れる語とその回数を、多い順(同数なら辞書順)に並べて返す。

    Raises:
        TypeError: `sentences` が文(語の list)の並びでないとき。
        ValueError: `min_count` が 1 より小さいとき。条件を満たす語がないとき。
    """
    min_count, counts = require_int(min_count, "min_count", minimum=1), Counter()
    for sentence in sentences:
        counts.update(_sentence(sentence))
    kept = sorted((-n, word) for word, n in counts.items() if n >= min_count)
    if not kept:
        raise ValueError(f"sentences に {min_count} 回以上現れる語がありません")
    return {word: -n for n, word in kept}


def _sentence(sentence: Sequence[str]) -> Sequence[str]:
    if isinstance(sentence, str | bytes) or not isinstance(sentence, Sequence):
        raise TypeError(f"sentences には語の list を並べてください: {shown(sentence)}")
    return sentence


def flatten(sentences: Iterable[Sequence[str]], index: Mapping[str, int]) -> tuple[Ids, Ids]:
    """全文をつないだ語の番号(`index` にない語は -1)と、各語の文の番号を返す。

    Raises:
        TypeError: `sentences` が文(語の list)の並びでないとき。
    """
    ids, lengths = [], []
    for sentence in sentences:
        ids += [index.get(word, -1) for word in _sentence(sentence)]
        lengths.append(len(sentence))
    return np.array(ids, dtype=np.int64), np.repeat(
        np.arange(len(lengths)), np.array(lengths, dtype=np.int64)
    )


# ---- 数えて作るベクトル -----------------------------------------------------------------


def co_occurrence(
    sentences: Iterable[Sequence[str]], index: Mapping[str, int], window: int
) -> sparse.csr_array:
    """語 i の前後 `window` 語以内に語 j が現れた回数の表 (V, V) を返す(疎行列、対称)。

    `index` は語から 0 以上 V 未満の番号への辞書で、ここにない語は場所だけを占める。文はまたがない。

    Raises:
        TypeError: `sentences` が文の並びでない、`window` が整数でないとき。
        ValueError: `window` が 1 より小さいとき。
    """
    window = require_int(window, "window", minimum=1)
    ids, sentence = flatten(sentences, index)
    rows, columns = [], []
    for offset in range(1, window + 1):
        near = sentence[:-offset] == sentence[offset:]
        near &= (ids[:-offset] >= 0) & (ids[offset:] >= 0)
        rows.append(ids[:-offset][near])
        columns.append(ids[offset:][near])
    row, column = np.concatenate(rows), np.concatenate(columns)
    ones = np.ones(len(row), dtype=np.float32)
    after = sparse.coo_array((ones, (row, column)), shape=(len(index), len(index)))
    return sparse.csr_array(after + after.T)


def ppmi(counts: sparse.csr_array) -> sparse.csr_array:
    """共起の回数 (V, C) を正の自己相互情報量 max(0, ln P(w, c) / (P(w) P(c))) に直す。

    独立に現れるときの何倍よく一緒に現れるかの対数(Church & Hanks 1990)の、負の値を 0 としたもの。

    Raises:
        ValueError: 回数がすべて 0 のとき、負の値や NaN があるとき。
    """
    table = sparse.coo_array(counts, dtype=np.float64)
    if not (np.isfinite(table.data).all() and (table.data >= 0).all() and table.sum() > 0):
        raise ValueError("counts は 0 以上の回数の表で、どこかが正でなければなりません")
    table.eliminate_zeros()
    w, c = table.sum(axis=1)[table.row], table.sum(axis=0)[table.col]
    table.data = np.maximum(np.log(table.data * table.data.sum() / (w * c)), 0.0)
    return sparse.csr_array(table)


def truncated_svd(table: sparse.csr_array, dim: int) -> Floats:
    """疎な表 (V, C) を `dim` 次元の密なベクトル U Σ^{1/2} (V, dim) に縮める。

    上位 `dim` 個の特異値だけを残す。Σ の指数 1/2 は、skip-gram の二つの行列の対称な役割に合わせた
    もの(Levy & Goldberg 2014)。

    Raises:
        ValueError: `dim` が 1 以上 min(V, C) 未満でないとき。
    """
    shortest = min(table.shape)  # pyright: ignore[reportArgumentType]
    if not 1 <= require_int(dim, "dim") < shortest:
        raise ValueError(f"dim は 1 以上 {shortest} 未満にしてください: {dim}")
    start = np.ones(shortest)  # 反復の出発点を決め、いつも同じ結果にする
    u, sigma, _ = svds(table.astype(np.float64), k=dim, v0=start)  # 特異値は小さい順に並ぶ
    order = np.argsort(-sigma)
    return (np.asarray(u)[:, order] * np.sqrt(sigma[order])).astype(np.float32)


# ---- ベクトルを比べる -------------------------------------------------------------------


def cosine(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """二つのベクトル (d,) のコサイン類似度 a·b / (|a||b|)。どちらかが 0 ベクトルなら 0 とする。

    Raises:
        ValueError: 形が違うとき。
    """
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(f"a と b は同じ長さのベクトルにしてください: 形 {x.shape} と {y.shape}")
    norms = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y) / norms if norms else 0.0


def tf_idf(documents: Sequence[Sequence[str]], index: Mapping[str, int]) -> NDArray[np.float64]:
    """文書 (D 個) を、語の回数 × 珍しさ ln(D / その語を含む文書の数) のベクトル (D, V) にする。

    重みのつけ方は Salton & Buckley 1988 の基本の形。どの文書にも現れる語の重みは 0 になる。

    Raises:
        TypeError: `documents` が語の list の並びでないとき。
        ValueError: 文書が一つもないとき。
    """
    if not documents:
        raise ValueError("documents が空です。一つ以上の文書を渡してください")
    counts = np.zeros((len(documents), len(index)))
    for row, document in enumerate(documents):
        for word, n in Counter(_sentence(document)).items():
            if word in index:
                counts[row, index[word]] = n
    containing = (counts > 0).sum(axis=0)
    return counts * np.log(len(documents) / np.maximum(containing, 1))


class Embeddings:
    """語ごとのベクトル。似た語を探し、人のつけた類似度と比べる。

    Args:
        vocabulary: 語の並び(V 個、重なりなし)。
        vectors: 形 (V, d)。行 i が語 i のベクトル。

    Raises:
        ValueError: 語の数とベクトルの数が違う、語が重なっている、有限でない値があるとき。
    """

    def __init__(self, vocabulary: Iterable[str], vectors: NDArray[np.floating]) -> None:
        self.vocabulary = list(vocabulary)
        self.index = {word: i for i, word in enumerate(self.vocabulary)}
        self.vectors = np.asarray(vectors, dtype=np.float32)
        if self.vectors.ndim != 2 or len(self.vectors) != len(self.vocabulary):
            raise ValueError(
                f"vectors の形は (語の数 {len(self.vocabulary)}, 次元) にしてください: "
                f"{self.vectors.shape}"
            )
        if len(self.index) != len(self.vocabulary):
            raise ValueError("vocabulary に同じ語が二度あります")
        if not np.isfinite(self.vectors).all():
            raise ValueError("vectors に NaN か無限大があります")

    def __getitem__(self, word: str) -> Floats:
        """語のベクトル (d,)。

        Raises:
            ValueError: 語彙にないとき。
        """
        if word not in self.index:
            raise ValueError(f"word {shown(word)} は語彙にありません({len(self.index):,} 語)")
        return self.vectors[self.index[word]]

    def similarity(self, a: str, b: str) -> float:
        """二つの語のコサイン類似度。

        Raises:
            ValueError: 語彙にない語のとき。
        """
        return cosine(self[a], self[b])

    def nearest(self, word: str, k: int = 10) -> list[tuple[str, float]]:
        """コサイン類似度の大きい順に、`word` 自身を除く `k` 語と類似度。

        Raises:
            ValueError: 語彙にない語のとき、`k` が 1 より小さいとき。
        """
        k, target = require_int(k, "k", minimum=1), self[word]
        norms = np.linalg.norm(self.vectors, axis=1) * np.linalg.norm(target)
        scores = self.vectors @ target / np.where(norms > 0, norms, 1.0)
        order = [i for i in np.argsort(-scores, kind="stable") if self.vocabulary[i] != word]
        return [(self.vocabulary[i], float(scores[i])) for i in order[:k]]

    def agreement(self, pairs: Iterable[tuple[str, str, float]]) -> tuple[float, int]:
        """人のつけた類似度との Spearman の順位相関と、両方の語が語彙にある組の数。

        Raises:
            ValueError: 使える組が二つに満たないとき。
        """
        known = [(a, b, s) for a, b, s in pairs if a in self.index and b in self.index]
        if len(known) < 2:
            raise ValueError(f"pairs のうち語彙にある組が {len(known)} 個しかありません")
        ours = [self.similarity(a, b) for a, b, _ in known]
        result = spearmanr(ours, [score for _, _, score in known])
        return float(result.statistic), len(known)  # pyright: ignore[reportAttributeAccessIssue]
