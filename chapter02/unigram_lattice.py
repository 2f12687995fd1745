"""ラティス: 1 つの文字列のすべての分割を、辺の並びとして持つ有向非巡回グラフ。

節点は文字と文字のあいだ 0, 1, ..., N であり、辺 (start, end) は断片 text[start:end] である。節点 0
から N への経路の 1 本が分割の 1 つにあたる。ユニグラム言語モデル (Kudo 2018, 3.2 節) では、分割の確
率は辺の確率の積になるので、経路の和・最大・標本抽出がどれも動的計画法 1 回で済む。
"""

import heapq
import math
from array import array
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np


class Edge(NamedTuple):
    """ラティスの辺。文字列の [start, end) を断片 piece_id と読み、log_prob [nat] を得る。"""

    start: int
    end: int
    piece_id: int
    log_prob: float


class Lattice:
    """長さ `length` [文字] の文字列のラティス。`incoming[j]` は節点 j に入る辺の一覧である。"""

    def __init__(self, length: int, edges: Iterable[Edge]) -> None:
        self.length = length
        self.incoming: list[list[Edge]] = [[] for _ in range(length + 1)]
        for edge in edges:
            self.incoming[edge.end].append(edge)

    @property
    def edges(self) -> list[Edge]:
        """すべての辺(終点の順、同じ終点では与えた順)。"""
        return [edge for edges in self.incoming for edge in edges]

    def forward(self, power: float = 1.0) -> list[float]:
        """前向き対数確率を返す: log_alpha[j] = log Σ Π p(断片)^power(0 から j への全経路の和)。

        漸化式は alpha_0 = 1, alpha_j = Σ_{(i, j)} alpha_i p(x_{i:j})^power である。経路のない節点は
        -inf。
        """
        log_alpha = [0.0]
        for edges in self.incoming[1:]:
            log_alpha.append(log_sum_exp([log_alpha[e.start] + power * e.log_prob for e in edges]))
        return log_alpha

    def backward(self, power: float = 1.0) -> list[float]:
        """後ろ向き対数確率を返す: log_beta[i] = log Σ Π p(断片)^power(i から N への全経路の和)。"""
        outgoing: list[list[float]] = [[] for _ in range(self.length + 1)]
        log_beta = [0.0] * (self.length + 1)
        for j in range(self.length, -1, -1):
            if j < self.length:
                log_beta[j] = log_sum_exp(outgoing[j])
            for edge in self.incoming[j]:
                outgoing[edge.start].append(power * edge.log_prob + log_beta[j])
        return log_beta

    def posteriors(self) -> list[tuple[Edge, float]]:
        """各辺が使われる事後確率を (辺, 確率) の並びで返す。

        P((i, j) | X) = alpha_i p(x_{i:j}) beta_j / alpha_N である。Kudo (2018) 3.2 節の E ステップ
        はこれを断片ごとに足し合わせる。経路が 1 本もないときはすべて 0 とする。
        """
        log_alpha, log_beta = self.forward(), self.backward()
        total = log_alpha[self.length]
        if total == -math.inf:
            return [(edge, 0.0) for edge in self.edges]
        return [
            (e, math.exp(log_alpha[e.start] + e.log_prob + log_beta[e.end] - total))
            for e in self.edges
        ]

    def nbest(self, n: int) -> list[tuple[list[Edge], float]]:
        """確率の高い順に、異なる経路を最大 `n` 本、(辺の並び, 対数確率 [nat]) で返す。

        節点ごとに上位 n 本を残す動的計画法であり、手間は O(辺の数 × n log n) で必ず抑えられる。結果
        は Kudo (2018) が挙げる Forward-DP Backward-A* と同じ(厳密な n-best)である。
        """
        # best[j] の各要素は (対数確率, 最後の辺, その辺の始点での順位)。
        best: list[list[tuple[float, Edge | None, int]]] = [[(0.0, None, 0)]]
        for edges in self.incoming[1:]:
            candidates = (
                (score + edge.log_prob, edge, rank)
                for edge in edges
                for rank, (score, _, _) in enumerate(best[edge.start])
            )
            best.append(heapq.nlargest(n, candidates, key=lambda item: item[0]))
        paths: list[tuple[list[Edge], float]] = []
        for score, last, last_rank in best[self.length]:
            path: list[Edge] = []
            edge, rank = last, last_rank
            while edge is not None:
                path.append(edge)
                _, edge, rank = best[edge.start][rank]
            paths.append((path[::-1], score))
        return paths

    def sample(self, power: float, generator: np.random.Generator) -> list[Edge]:
        """P ∝ Π p(断片)^power に厳密に従う経路を 1 本引く。

        前向きに和を取り、終点から始点へ向けて辺を 1 本ずつ引く forward-filtering backward-sampling
        (Kudo 2018, 3.3 節)。節点 j では辺 (i, j) を確率 alpha_i p(x_{i:j})^power / alpha_j で選ぶ。
        """
        log_alpha = self.forward(power)
        path: list[Edge] = []
        j = self.length
        while j > 0:
            edges = [e for e in self.incoming[j] if log_alpha[e.start] > -math.inf]
            threshold = generator.random()
            edge = edges[-1]  # 丸めで確率の和が 1 にわずかに届かないときは最後の辺とする
            for candidate in edges:
                log_weight = log_alpha[candidate.start] + power * candidate.log_prob
                threshold -= math.exp(log_weight - log_alpha[j])
                if threshold < 0.0:
                    edge = candidate
                    break
            path.append(edge)
            j = edge.start
        return path[::-1]


def viterbi(
    length: int, edges_from: Callable[[int], Iterable[Edge]], single_precision: bool = False
) -> list[Edge] | None:
    """最も確率の高い経路を返す(なければ None)。ラティス全体は作らず、辺を始点の順に調べる。

    漸化式は delta_0 = 0, delta_j = max_{(i, j)} (delta_i + log p(x_{i:j})) である。同点では始点の早
    い (最後の断片の長い)ほうを取る。`single_precision` は delta を単精度で持つ。SentencePiece の実
    装がそうしており、丸めの差で同点の勝ち負けが変わるので、同じ結果を得るにはまねる必要がある。
    """
    delta = array("f" if single_precision else "d", [-math.inf]) * (length + 2)
    delta[0] = 0.0
    last: list[Edge | None] = [None] * (length + 1)
    for start in range(length):
        here = delta[start]
        if here == -math.inf:
            continue
        for edge in edges_from(start):
            delta[-1] = here + edge.log_prob  # 末尾の要素は、delta の精度に丸めるための作業用
            if delta[-1] > delta[edge.end]:
                delta[edge.end] = delta[-1]
                last[edge.end] = edge
    if delta[length] == -math.inf:
        return None
    path: list[Edge] = []
    edge = last[length]
    while edge is not None:
        path.append(edge)
        edge = last[edge.start]
    return path[::-1]


def log_sum_exp(values: list[float]) -> float:
    """log Σ exp(v) を、最大値を引いてから計算する。空なら -inf。"""
    top = max(values, default=-math.inf)
    if top == -math.inf:
        return -math.inf
    return top + math.log(math.fsum([math.exp(value - top) for value in values]))
