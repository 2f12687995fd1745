"""分布仮説と埋め込み: 周りの語が似ている語は、意味も似ている(2.1 節)。

文脈の重なり(Rubenstein & Goodenough 1965)、文脈の数を並べたベクトル(共起、PPMI、その SVD)、そして
周りの語を当てる学習で得る密なベクトル(skip-gram と負例サンプリング、Mikolov+ 2013、
arXiv:1310.4546v1)を、同じ言葉で並べる。
"""

import re
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import svds
from scipy.stats import spearmanr

from shared.checks import require_int, require_number, require_text, shown

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")


# ---- 語と文脈 ---------------------------------------------------------------------------


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


def context_overlap(
    contexts_a: Iterable[Hashable], contexts_b: Iterable[Hashable], unit: str = "type"
) -> float:
    """二つの語の文脈の重なり(0 から 1)を返す。

    Rubenstein & Goodenough 1965 の二つの測り方。文脈に現れた語の集まり A, B について

        unit="type":  M_y = |A ∩ B| / min(|A|, |B|)   A, B は集合(同じ語は何度現れても 1)
        unit="token": M_k = |A ∩ B| / min(|A|, |B|)   A, B は多重集合(現れた回数だけ数える)

    小さいほうで割るので、片方がもう片方に含まれていれば 1 になる。

    Args:
        contexts_a: 一つめの語の文脈。語の並び、または集合。
        contexts_b: 二つめの語の文脈。
        unit: "type"(異なり)または "token"(延べ)。

    Raises:
        TypeError: 文脈が str や dict など、語の並びでないとき。
        ValueError: `unit` が二つのどちらでもないとき。どちらかの文脈が空のとき(0 で割ることになり、
            似ているとも似ていないとも言えない)。
    """
    if unit not in ("type", "token"):
        raise ValueError(f"unit は 'type' か 'token' にしてください: {shown(unit)}")
    a = _multiset(contexts_a, "contexts_a")
    b = _multiset(contexts_b, "contexts_b")
    if unit == "type":
        return len(a.keys() & b.keys()) / min(len(a), len(b))
    return (a & b).total() / min(a.total(), b.total())


def _multiset(contexts: Iterable[Hashable], name: str) -> Counter[Hashable]:
    if isinstance(contexts, str | bytes | Mapping) or not isinstance(contexts, Iterable):
        raise TypeError(
            f"{name} には文脈の語を並べた list などを渡してください: "
            f"{shown(contexts)} ({type(contexts).__name__})"
        )
    try:
        counts = Counter(contexts)
    except TypeError:
        raise TypeError(f"{name} の要素は語(文字列など)にしてください: {shown(contexts)}") from None
    if not counts:
        raise ValueError(f"{name} が空です。一つ以上の文脈の語を渡してください")
    return counts


def contexts(tokens: Sequence[str], target: str, window: int) -> list[str]:
    """`target` が現れるたびに、前後 `window` 語以内の語を現れた順に集めて返す。

    Raises:
        TypeError: `tokens` が語の並びでない、`window` が整数でないとき。
        ValueError: `window` が 1 より小さいとき。
    """
    if isinstance(tokens, str | bytes) or not isinstance(tokens, Sequence):
        raise TypeError(f"tokens には語を並べた list を渡してください: {shown(tokens)}")
    window = require_int(window, "window", minimum=1)
    found: list[str] = []
    for i, token in enumerate(tokens):
        if token == target:
            found += tokens[max(0, i - window) : i]
            found += tokens[i + 1 : i + 1 + window]
    return found


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
    ids, sentence = _flatten(sentences, index)
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
    if not 1 <= require_int(dim, "dim") < min(table.shape):
        raise ValueError(f"dim は 1 以上 {min(table.shape)} 未満にしてください: {dim}")
    start = np.ones(min(table.shape))  # 反復の出発点を決め、いつも同じ結果にする
    u, sigma, _ = svds(table.astype(np.float64), k=dim, v0=start)
    order = np.argsort(-sigma)
    return (u[:, order] * np.sqrt(sigma[order])).astype(np.float32)


def _flatten(sentences: Iterable[Sequence[str]], index: Mapping[str, int]) -> tuple[Ids, Ids]:
    """全文をつないだ語の番号(`index` にない語は -1)と、各語の文の番号。"""
    ids, lengths = [], []
    for sentence in sentences:
        ids += [index.get(word, -1) for word in _sentence(sentence)]
        lengths.append(len(sentence))
    return np.array(ids, dtype=np.int64), np.repeat(np.arange(len(lengths)), lengths)


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
    """
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
        return float(spearmanr(ours, [score for _, _, score in known]).statistic), len(known)


# ---- skip-gram と負例サンプリング -------------------------------------------------------


def keep_probability(counts: NDArray[np.integer], threshold: float) -> NDArray[np.float64]:
    """頻出語を間引くときに、一回の出現を残す確率 min(1, sqrt(t / f(w)))。

    式 (5): 捨てる確率 P(w) = 1 - sqrt(t / f(w))。f は相対頻度、t は `threshold`。

    Raises:
        ValueError: `threshold` が負のとき。
    """
    frequency = counts / counts.sum()
    return np.minimum(1.0, np.sqrt(require_number(threshold, "threshold", 0) / frequency))


def noise_distribution(counts: NDArray[np.integer], power: float = 0.75) -> NDArray[np.float64]:
    """負例を引く分布 P_n(w) = U(w)^{3/4} / Z(2.2 節)。U はユニグラムの分布。"""
    weights = counts.astype(np.float64) ** require_number(power, "power")
    return weights / weights.sum()


def negative_sampling(v: Floats, u: Floats, negatives: Floats) -> tuple[float, Floats, Floats]:
    """式 (4) に負号をつけた損失の和と、ベクトルごとの勾配を返す。

        損失 = -ln σ(u·v) - Σ_{i=1}^{k} ln σ(-u_i·v)

    ln σ(x) の微分は 1 - σ(x) なので、正例の勾配は (σ(u·v) - 1)、負例は σ(u_i·v) に比例する。

    Args:
        v: 中心の語のベクトル (B, d)。
        u: 周りの語(正例)のベクトル (B, d)。
        negatives: 負例のベクトル (B, k, d)。

    Returns:
        損失の和、v の勾配 (B, d)、正例と負例の勾配を並べた (B, 1 + k, d)。
    """
    outputs = np.concatenate([u[:, None], negatives], axis=1)  # (B, 1 + k, d)
    scores = np.einsum("bd,bkd->bk", v, outputs)
    sign = np.full(scores.shape[1], -1.0, dtype=np.float32)
    sign[0] = 1.0
    loss = np.logaddexp(0.0, -sign * scores).sum()  # -ln σ(x) = ln(1 + e^{-x})
    error = -sign / (1.0 + np.exp(np.clip(sign * scores, -60, 60)))  # 各 u·v についての微分
    return float(loss), np.einsum("bk,bkd->bd", error, outputs), error[:, :, None] * v[:, None]


class SkipGram:
    """skip-gram: 中心の語のベクトルから周りの語を当てる学習で、語のベクトルを得る。

    Mikolov+ 2013 (1310.4546v1) の負例サンプリング(式 (4))と頻出語の間引き(式 (5))。窓の幅は
    中心の語ごとに 1 から `window` まで一様に選ぶ。

    Args:
        sentences: 文(語の list)の並び。文をまたぐ組は作らない。
        dim: ベクトルの次元 d。
        window: 窓の幅の最大。
        negatives: 正例一つあたりの負例の数 k。
        min_count: これより少ない語は使わない。
        threshold: 間引きの t。
        power: 負例の分布の指数。
        seed: 乱数のシード。

    Raises:
        TypeError, ValueError: `vocabulary`・`keep_probability` と同じ。整数の引数が 1 より小さいとき。
    """

    def __init__(
        self,
        sentences: Sequence[Sequence[str]],
        *,
        dim: int = 100,
        window: int = 5,
        negatives: int = 5,
        min_count: int = 5,
        threshold: float = 1e-3,
        power: float = 0.75,
        seed: int = 0,
    ) -> None:
        self.counts = vocabulary(sentences, min_count)
        self.window = require_int(window, "window", minimum=1)
        self.negatives = require_int(negatives, "negatives", minimum=1)
        dim = require_int(dim, "dim", minimum=1)
        counts = np.array(list(self.counts.values()))
        index = {word: i for i, word in enumerate(self.counts)}
        ids, sentence = _flatten(sentences, index)
        self._ids, self._sentence = ids[ids >= 0], sentence[ids >= 0]
        self._keep = keep_probability(counts, threshold)
        self._noise = np.cumsum(noise_distribution(counts, power))
        self._rng = np.random.default_rng(seed)
        self.v = ((self._rng.random((len(counts), dim)) - 0.5) / dim).astype(np.float32)
        self.u = np.zeros((len(counts), dim), dtype=np.float32)

    def pairs(self) -> tuple[Ids, Ids]:
        """間引いたあとの (中心の語, 周りの語) の番号の組を、無作為な順ですべて返す。"""
        kept = self._rng.random(len(self._ids)) < self._keep[self._ids]
        ids, sentence = self._ids[kept], self._sentence[kept]
        reach = self._rng.integers(1, self.window + 1, size=len(ids))
        centers, around = [], []
        for offset in range(1, self.window + 1):
            near = sentence[:-offset] == sentence[offset:]
            first, second = slice(None, -offset), slice(offset, None)
            for center, other in ((first, second), (second, first)):
                chosen = near & (reach[center] >= offset)
                centers.append(ids[center][chosen])
                around.append(ids[other][chosen])
        order = self._rng.permutation(sum(map(len, centers)))
        return np.concatenate(centers)[order], np.concatenate(around)[order]

    def train(self, epochs: int = 1, lr: float = 0.025, batch: int = 1024) -> list[float]:
        """確率的勾配降下で学習し、周回ごとの、組一つあたりの平均の損失 (nat) を返す。

        学習率は `lr` からほぼ 0 まで直線で下げる。`batch` 個の組の勾配は、足し合わせて一度に使う。

        Raises:
            TypeError, ValueError: `epochs`・`batch` が 1 以上の整数でない、`lr` が負のとき。
        """
        epochs, batch = require_int(epochs, "epochs", 1), require_int(batch, "batch", 1)
        lr, losses = require_number(lr, "lr", minimum=0), []
        for epoch in range(epochs):
            centers, around = self.pairs()
            total = 0.0
            for start in range(0, len(centers), batch):
                rate = lr * (1 - (epoch + start / len(centers)) / epochs)
                c, o = centers[start : start + batch], around[start : start + batch]
                total += self._step(c, o, rate)
            losses.append(total / max(1, len(centers)))
        return losses

    def _step(self, centers: Ids, around: Ids, rate: float) -> float:
        draws = self._rng.random((len(centers), self.negatives))
        outputs = np.column_stack([around, np.searchsorted(self._noise[:-1], draws)])
        u = self.u[outputs]
        loss, grad_v, grad_u = negative_sampling(self.v[centers], u[:, 0], u[:, 1:])
        _add_rows(self.v, centers, -rate * grad_v)
        _add_rows(self.u, outputs.ravel(), -rate * grad_u.reshape(-1, self.u.shape[1]))
        return loss

    def embeddings(self) -> Embeddings:
        """学習した中心の語のベクトル。"""
        return Embeddings(self.counts, self.v)

    def nearest(self, word: str, k: int = 10) -> list[tuple[str, float]]:
        """`Embeddings.nearest` と同じ。"""
        return self.embeddings().nearest(word, k)


def _add_rows(table: Floats, rows: Ids, values: Floats) -> None:
    """table[rows[i]] += values[i] を、同じ行が何度現れても正しく、まとめて行う。"""
    n = len(rows)
    scatter = sparse.csr_array(
        (np.ones(n, dtype=np.float32), (rows, np.arange(n))), shape=(len(table), n)
    )
    table += scatter @ values
