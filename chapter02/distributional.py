"""分布仮説: 周りの語が似ている語は、意味も似ている(2.1 節)。

文脈の重なり(Rubenstein & Goodenough 1965)と、周りの語を当てる学習で語のベクトルを得る skip-gram の
負例サンプリング(Mikolov+ 2013、arXiv:1310.4546v1)。数えて作るベクトルは word_vectors.py にある。
"""

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from chapter02.word_vectors import Embeddings, Floats, Ids, flatten, vocabulary
from shared.checks import require_int, require_number, shown

# ---- 文脈の重なり -----------------------------------------------------------------------


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


# ---- skip-gram と負例サンプリング -------------------------------------------------------


def keep_probability(counts: NDArray[np.integer], threshold: float) -> NDArray[np.float64]:
    """頻出語を間引くときに、一回の出現を残す確率 min(1, sqrt(t / f(w)))。

    式 (5): 捨てる確率 P(w) = 1 - sqrt(t / f(w))。f は相対頻度、t は `threshold`。

    Raises:
        ValueError: `threshold` が負のとき、1 より小さい回数があるとき。
    """
    if (counts < 1).any():
        raise ValueError(f"counts は 1 以上の回数にしてください: {shown(counts.tolist())}")
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
        TypeError, ValueError: 整数の引数が 1 以上の整数でない、`threshold` が負のとき。
            `sentences` については `vocabulary` と同じ。
    """

    def __init__(
        self,
        sentences: Iterable[Sequence[str]],
        *,
        dim: int = 64,
        window: int = 5,
        negatives: int = 5,
        min_count: int = 5,
        threshold: float = 1e-4,
        power: float = 0.75,
        seed: int = 0,
    ) -> None:
        sentences = list(sentences)
        self.counts = vocabulary(sentences, min_count)
        self.window = require_int(window, "window", minimum=1)
        self.negatives = require_int(negatives, "negatives", minimum=1)
        dim = require_int(dim, "dim", minimum=1)
        counts = np.array(list(self.counts.values()))
        index = {word: i for i, word in enumerate(self.counts)}
        ids, sentence = flatten(sentences, index)
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

    def train(self, epochs: int = 6, lr: float = 0.1, batch: int = 1024) -> list[float]:
        """確率的勾配降下で学習し、周回ごとの、組一つあたりの平均の損失 (nat) を返す。

        学習率は `lr` からほぼ 0 まで直線で下げる。`batch` 個の組の勾配は、足し合わせて一度に使う。

        Raises:
            TypeError, ValueError: `epochs`・`batch` が 1 以上の整数でない、`lr` が負のとき、
                学習が発散したとき。
        """
        epochs, batch = require_int(epochs, "epochs", 1), require_int(batch, "batch", 1)
        lr, losses = require_number(lr, "lr", minimum=0), []
        for epoch in range(epochs):
            centers, around = self.pairs()
            total = 0.0
            with np.errstate(over="ignore", invalid="ignore"):
                for start in range(0, len(centers), batch):
                    rate = lr * (1 - (epoch + start / len(centers)) / epochs)
                    rows = slice(start, start + batch)
                    total += self._step(centers[rows], around[rows], rate)
            if not np.isfinite(total):
                raise ValueError(f"学習が発散しました。lr か batch を小さくしてください: lr {lr}")
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
