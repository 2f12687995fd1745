"""ユニグラム言語モデルの学習: EM 算法と語彙の刈り込みを、全区切りのラティスについて一度に行う。

Kudo (2018) 3.2 節の手順は、(1) 十分大きな種の語彙を作り、(2) EM 算法で p を求め、(3) 取り除いたとき
の対数尤度の減り方 loss_i の小さい断片を除き、(4) 望みの語彙数まで (2)(3) を繰り返す、である。数式ど
おりの短い実装は unigram_plain にあり、ここではそれと同じ値を NumPy のまとめ計算で求める。
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from chapter02.unigram_corpus import Corpus, Seeds, find_seeds, make_corpus

MINIMUM_COUNT = 0.5
"""期待回数がこれに満たない断片は M ステップで除く(SentencePiece の実装)。残すときはこの値にする。
"""


class BatchedLattices:
    """すべての区切りのラティスを、節点を「位置の順」に並べて 1 つにまとめたもの。

    位置 t の節点は、長さ t 以上の区切りが長い順に並ぶので、番号 first[t] ... first[t+1] - 1 に続け
    て置ける。辺は終点の順、同じ終点では短い順に並べる。こうすると、前向きの 1 歩は連続した範囲での
    reduceat になり、区切りの数だけの Python の繰り返しが消える。
    """

    def __init__(self, corpus: Corpus, seeds: Seeds) -> None:
        longest = int(corpus.lengths.max(initial=0))
        # 位置 t まで届く区切りの数(長い順に並んでいるので、先頭からの個数)。
        alive = np.searchsorted(-corpus.lengths, -np.arange(longest + 1), side="right")
        self.first = np.concatenate([[0], np.cumsum(alive)])
        self.chunk_counts = corpus.counts.astype(np.float64)
        rank = np.repeat(np.arange(len(corpus.lengths), dtype=np.int32), corpus.lengths)
        offset = np.arange(len(corpus.text)) - np.repeat(corpus.starts, corpus.lengths)
        self.last = self.first[corpus.lengths] + np.arange(len(corpus.lengths))
        n_nodes = int(self.first[-1])
        ends = [
            (self.first[offset[p] + n] + rank[p]).astype(np.int32)
            for n, p in enumerate(seeds.positions, start=1)
        ]
        self.degree = np.zeros(n_nodes, dtype=np.int32)  # 節点に入る辺の数
        for end in ends:
            self.degree[end] += 1  # 同じ長さの辺の終点はすべて異なる
        slot = np.cumsum(self.degree) - self.degree
        n_edges = int(self.degree.sum())
        self.start = np.empty(n_edges, dtype=np.int32)
        self.piece = np.empty(n_edges, dtype=np.int32)
        for p, end, ids in zip(seeds.positions, ends, seeds.ids, strict=True):
            self.start[slot[end]] = self.first[offset[p]] + rank[p]
            self.piece[slot[end]] = ids
            slot[end] += 1
        self.max_length = len(seeds.positions)

    def keep(self, kept: NDArray[np.bool_]) -> None:
        """`kept` が偽の断片の辺を除き、残る断片の id を詰める。"""
        remaining = kept[self.piece]
        inside = np.flatnonzero(self.degree)
        heads = np.cumsum(self.degree)[inside] - self.degree[inside]
        self.degree[inside] = np.add.reduceat(remaining, heads, dtype=np.int32)
        new_ids = (np.cumsum(kept) - 1).astype(np.int32)
        self.piece = new_ids[self.piece[remaining]]
        self.start = self.start[remaining]

    def expectation(
        self, log_probs: NDArray[np.float64], with_losses: bool = False
    ) -> tuple[float, NDArray[np.float64], NDArray[np.float64] | None]:
        """E ステップ: (対数尤度 [nat], 各断片の期待回数, 各断片の loss) を返す。

        前向きに log_alpha を求めながら、辺を逆にたどる確率
        q(i, j) = alpha_i p(x_{i:j}) / alpha_j を残し、後ろから節点の事後確率を配る。辺の事後確率は
        gamma(i, j) = q(i, j) P(節点 j) である。loss は、その断片の辺を除いたときの対数尤度の減少
        -Σ log(1 - gamma) で、1 つの区切りに 2 度現れない断片については(p を変えない限り)厳密であ
        る。
        """
        edge_bounds = np.concatenate([[0], np.cumsum(self.degree)])[self.first]
        log_alpha = np.zeros(int(self.first[-1]))
        flow = log_probs[self.piece]  # (辺の数,)。前向きの後は q、後ろ向きの後は gamma
        for t in range(1, len(self.first) - 1):
            nodes = slice(self.first[t], self.first[t + 1])
            edges = slice(edge_bounds[t], edge_bounds[t + 1])
            degree = self.degree[nodes]
            heads = np.cumsum(degree) - degree
            weight = flow[edges]
            weight += log_alpha[self.start[edges]]
            top = np.maximum.reduceat(weight, heads)
            weight -= np.repeat(top, degree)
            np.exp(weight, out=weight)
            total = np.add.reduceat(weight, heads)
            weight /= np.repeat(total, degree)
            log_alpha[nodes] = top + np.log(total)
        log_likelihood = float(self.chunk_counts @ log_alpha[self.last])

        visited = np.zeros(len(log_alpha))
        visited[self.last] = 1.0
        edge_counts = np.empty(len(flow))
        for t in range(len(self.first) - 2, 0, -1):
            nodes = slice(self.first[t], self.first[t + 1])
            edges = slice(edge_bounds[t], edge_bounds[t + 1])
            degree = self.degree[nodes]
            gamma = flow[edges]
            gamma *= np.repeat(visited[nodes], degree)
            low = self.first[max(0, t - self.max_length)]
            window = visited[low : self.first[t]]
            window += np.bincount(self.start[edges] - low, gamma, minlength=len(window))
            edge_counts[edges] = np.repeat(self.chunk_counts[: len(degree)], degree)
        size = len(log_probs)
        losses = None
        if with_losses:
            drop = -np.log1p(-np.minimum(flow, 1.0 - 1e-15))
            drop *= edge_counts
            losses = _total(self.piece, drop, size)
        flow *= edge_counts
        return log_likelihood, _total(self.piece, flow, size), losses


def train_unigram(
    sentences: Iterable[str],
    vocab_size: int,
    n_special: int,
    *,
    character_coverage: float,
    seed_size: int,
    max_piece_length: int,
    shrinking_factor: float,
    num_sub_iterations: int,
    split_by_whitespace: bool,
    split_by_unicode_script: bool,
    split_by_number: bool,
) -> dict[str, float]:
    """正規化ずみの文から断片を学習し、{断片: 対数確率 [nat]} を確率の降順に返す。

    断片は多くとも `vocab_size - n_special` 個である。引数と例外は `Unigram.train` を参照。

    論文にはなく SentencePiece の実装にあるもの: M ステップで log c の代わりに psi(c) を使い(回数の
    少ない断片をさらに減らす疎な事前分布のはたらきをする)、期待回数が 0.5 に満たない断片を除く。
    SentencePiece と違うもの: loss は最良の分割だけでなく全分割から求め、語彙数まで loss だけで減ら
    し (SentencePiece は 1.1 倍で止めて、残りは確率で切る)、最後に論文どおりの M ステップを 1 回行っ
    て確率の和を 1 にする。
    """
    corpus = make_corpus(
        sentences,
        character_coverage,
        split_by_whitespace,
        split_by_unicode_script,
        split_by_number,
    )
    alphabet_size = len(corpus.alphabet)
    if alphabet_size == 0:
        raise ValueError("texts に、語彙を作れる文字がありません")
    n_pieces = vocab_size - n_special
    if n_pieces < alphabet_size:
        raise ValueError(
            f"vocab_size は {alphabet_size + n_special} 以上にしてください: {vocab_size} "
            f"(文字 {alphabet_size} 種と特別な断片 {n_special} 個は必ず語彙に入ります。"
            "character_coverage を下げると文字を減らせます)"
        )
    seeds = find_seeds(corpus, max_piece_length, seed_size)
    lattices = BatchedLattices(corpus, seeds)
    pieces = np.array(seeds.pieces, dtype=object)
    lengths = np.array([len(piece) for piece in seeds.pieces])
    log_probs = np.log(seeds.counts * lengths / (seeds.counts * lengths).sum())
    del corpus, seeds

    while True:
        for _ in range(num_sub_iterations):
            _, counts, _ = lattices.expectation(log_probs)
            frequent = counts >= MINIMUM_COUNT
            frequent[:alphabet_size] = True
            if frequent.sum() < n_pieces:  # 望みの語彙数を下回るまでは除かない
                frequent[np.argsort(np.where(frequent, -np.inf, -counts))[:n_pieces]] = True
            lattices.keep(frequent)
            pieces, counts = pieces[frequent], np.maximum(counts[frequent], MINIMUM_COUNT)
            log_probs = digamma(counts) - digamma(counts.sum())
        if len(pieces) <= n_pieces:
            break
        _, counts, losses = lattices.expectation(log_probs, with_losses=True)
        assert losses is not None
        losses[:alphabet_size] = np.inf
        size = max(n_pieces, int(shrinking_factor * len(pieces)))
        kept = np.zeros(len(pieces), dtype=bool)
        kept[np.argsort(-losses, kind="stable")[:size]] = True
        lattices.keep(kept)
        pieces, log_probs = pieces[kept], log_probs[kept]
    _, counts, _ = lattices.expectation(log_probs)
    counts = np.maximum(counts, MINIMUM_COUNT)
    log_probs = np.log(counts) - np.log(counts.sum())
    order = np.argsort(-log_probs, kind="stable")
    return dict(zip(pieces[order].tolist(), log_probs[order].tolist(), strict=True))


def _total(ids: NDArray[np.int32], values: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """id ごとに `values` を足す。"""
    return np.bincount(ids, values, minlength=size).astype(np.float64, copy=False)


def digamma(x: NDArray[np.float64] | np.float64) -> NDArray[np.float64]:
    """ディガンマ関数 psi(x) = d/dx log Gamma(x)(x > 0)。

    漸化式 psi(x) = psi(x + 1) - 1 / x で x を 6 以上にしてから漸近展開する。
    """
    x = np.array(x, dtype=np.float64)
    result = np.zeros_like(x)
    for _ in range(6):
        small = x < 6.0
        result -= np.where(small, 1.0 / x, 0.0)
        x += small
    y = 1.0 / (x * x)
    tail = y * (1 / 12 - y * (1 / 120 - y * (1 / 252 - y * (1 / 240 - y / 132))))
    return result + np.log(x) - 0.5 / x - tail
