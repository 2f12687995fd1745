"""層の計算量: 論文の表 1 を、式・実際の演算・依存のグラフの三通りで数える。

    式で数える      attention_flops(n, d) など       2 n² d + 2 n² d
    演算を数える    counted_flops(計算), saved_bytes(計算)   PyTorch が行う行列積、残すテンソル
    グラフで数える  maximum_path_length("recurrent", n)      幅優先探索

FLOPs は、行列積の乗算と加算を 1 回ずつ数えたもの((n, m) と (m, p) の積で 2nmp)。softmax・活性化
関数・足し算は含めない。n は列の長さ、d はベクトルの次元、k は畳み込みの幅、r は近傍の幅。
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from shared.checks import require_int, shown

# ---- 式で数える --------------------------------------------------------------------------------


def attention_flops(n: int, d: int) -> int:
    """自己注意の内積 Q K^T と重み付き和の FLOPs、4 n² d(表 1 の O(n² d))。ヘッドの数によらない。"""
    n, d = _positive(n=n, d=d)
    return 4 * n * n * d


def projection_flops(n: int, d: int) -> int:
    """マルチヘッド注意の四つの線形写像 W^Q, W^K, W^V, W^O の FLOPs、8 n d²(表 1 にはない)。"""
    n, d = _positive(n=n, d=d)
    return 8 * n * d * d


def feed_forward_flops(n: int, d: int, d_ff: int) -> int:
    """位置ごとの全結合層の FLOPs、4 n d d_ff。"""
    n, d, d_ff = _positive(n=n, d=d, d_ff=d_ff)
    return 4 * n * d * d_ff


def restricted_flops(n: int, d: int, r: int) -> int:
    """幅 r の近傍だけを見る自己注意の FLOPs、4 r n d(表 1 の O(r n d))。"""
    n, d, r = _positive(n=n, d=d, r=r)
    return 4 * r * n * d


def recurrent_flops(n: int, d: int, gates: int = 1) -> int:
    """RNN の層の FLOPs、4 n d² の `gates` 倍(表 1 の O(n d²))。LSTM は 4、GRU は 3。"""
    n, d, gates = _positive(n=n, d=d, gates=gates)
    return 4 * gates * n * d * d


def convolution_flops(n: int, d: int, k: int) -> int:
    """幅 k の畳み込み層の FLOPs、2 k n d²(表 1 の O(k n d²))。"""
    n, d, k = _positive(n=n, d=d, k=k)
    return 2 * k * n * d * d


def separable_flops(n: int, d: int, k: int) -> int:
    """分離した畳み込み(チャンネルごとの幅 k と、幅 1)の FLOPs、2 k n d + 2 n d²(論文 4 節)。"""
    n, d, k = _positive(n=n, d=d, k=k)
    return 2 * k * n * d + 2 * n * d * d


def kv_cache_bytes(
    n: int, n_layers: int, n_kv_heads: int, d_k: int, *, bytes_per_number: int = 2
) -> int:
    """KV キャッシュの大きさ(バイト / 文)、2 n n_layers n_kv_heads d_k bytes_per_number。

    MHA は n_kv_heads = H、GQA はその間、MQA は 1(Shazeer 2019; Ainslie+ 2023)。

    Raises:
        TypeError, ValueError: 引数が正の整数でないとき。
    """
    sizes = _positive(
        n=n, n_layers=n_layers, n_kv_heads=n_kv_heads, d_k=d_k, bytes_per_number=bytes_per_number
    )
    return 2 * math.prod(sizes)


def fit_exponent(lengths: Sequence[float], values: Sequence[float]) -> float:
    """values ∝ lengths^a の a を、両対数の最小二乗で求める。

    Raises:
        ValueError: 長さが違う、異なる点が二つない、正でない値があるとき。
    """
    if len(lengths) != len(values) or len(set(lengths)) < 2:
        raise ValueError(
            "lengths と values には、同じ個数の、異なる長さ二つ以上の値を渡してください: "
            f"{len(lengths)} 個と {len(values)} 個"
        )
    if min(*lengths, *values) <= 0:
        raise ValueError("lengths と values は正の数にしてください(対数をとります)")
    return float(np.polyfit(np.log(lengths), np.log(values), 1)[0])


# ---- 実際の層と、演算の数え上げ ------------------------------------------------------------------


def band_mask(n: int, window: int) -> Tensor:
    """左右 `window` 個までを見る帯のマスク (n, n)。True は「見てよい」。

    Raises:
        TypeError, ValueError: `n` が正の整数でない、`window` が負のとき。
    """
    positions = torch.arange(require_int(n, "n", minimum=1))
    return (positions[:, None] - positions).abs() <= require_int(window, "window", minimum=0)


def restricted_attention(q: Tensor, k: Tensor, v: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """左右 `window` 個だけを見る自己注意の、出力 (..., n, d_v) と重み (..., n, 2 window + 1)。

    `band_mask` を掛けた注意と同じ値を、近傍の r 個の内積だけを求めて得る(論文 4 節の restricted
    self-attention)。重みの列 o は、位置 i + o - window のキーに対するもの。

    Raises:
        TypeError, ValueError: `window` が負、q・k・v の長さが違うとき。
    """
    window, n = require_int(window, "window", minimum=0), q.shape[-2]
    if not n == k.shape[-2] == v.shape[-2]:
        raise ValueError(f"q・k・v の長さを揃えてください: {n}・{k.shape[-2]}・{v.shape[-2]}")
    r = 2 * window + 1
    nearby_k, nearby_v = (
        F.pad(x, (0, 0, window, window)).unfold(-2, r, 1) for x in (k, v)
    )  # (..., n, d_k, r): 位置ごとの窓。写しではなく、同じ記憶域の見方を変えたもの
    scores = (q.unsqueeze(-2) @ nearby_k).squeeze(-2) / math.sqrt(q.shape[-1])  # (..., n, r)
    position = torch.arange(n, device=q.device)[:, None] + torch.arange(r, device=q.device) - window
    outside = (position < 0) | (position >= n)
    weights = scores.masked_fill(outside, -math.inf).softmax(-1)
    return (nearby_v @ weights.unsqueeze(-1)).squeeze(-1), weights


def recurrent(x: Tensor, w: Tensor, u: Tensor) -> Tensor:
    """RNN の層: x (n, d)、w と u (d, d) から h (n, d)。h_t = tanh(x_t w + h_{t-1} u)、h_0 = 0。"""
    h, states = torch.zeros_like(x[:1]), []
    for step in x @ w:
        h = torch.tanh(step + h @ u)
        states.append(h)
    return torch.cat(states)


def convolution(x: Tensor, weight: Tensor, dilation: int = 1) -> Tensor:
    """畳み込み層: x (n, d) と weight (d, d, k) から (n, d)。左へ `dilation` おきに k 個を見る。"""
    left = dilation * (weight.shape[-1] - 1)
    return F.conv1d(F.pad(x.T[None], (left, 0)), weight, dilation=dilation)[0].T


def counted_flops(compute: Callable[[], Any]) -> int:
    """`compute()` の中で PyTorch が実際に行った行列積と畳み込みの FLOPs。"""
    with FlopCounterMode(display=False) as counter:
        compute()
    return counter.get_total_flops()


def saved_bytes(compute: Callable[[], Any], exclude: Iterable[Tensor] = ()) -> int:
    """`compute()` が逆伝播のために残すテンソルの大きさ(バイト)。

    同じ記憶域は一度だけ数え、`exclude`(パラメーターなど)の記憶域は除く。
    """
    skipped = {tensor.untyped_storage().data_ptr() for tensor in exclude}
    sizes: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in skipped:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        result = compute()  # 結果を持っている間は、残したテンソルの場所が使い回されない
    del result
    return sum(sizes.values())


# ---- グラフで数える ------------------------------------------------------------------------------

Kind = Literal["attention", "restricted", "recurrent", "convolution", "dilated"]
KINDS: tuple[Kind, ...] = ("attention", "restricted", "recurrent", "convolution", "dilated")
ONE_WAY = ("recurrent", "convolution", "dilated")
"""左から右にしか流れない層。入力が出力より後ろにない組だけを比べる。"""

Node = tuple[int, int]  # (深さ, 位置)。深さ 0 が入力
Graph = dict[Node, list[Node]]  # 節点 → その値を直に読む節点


def reads(kind: Kind, depth: int, i: int, n: int, width: int) -> list[int]:
    """`depth` 層目(1 から)の位置 i が、すぐ下の層から読む位置。"""
    if kind == "attention":
        return list(range(n))
    if kind == "recurrent":
        return [i]
    if kind == "restricted":
        return list(range(max(i - width // 2, 0), min(i + width // 2 + 1, n)))
    dilation = width ** (depth - 1) if kind == "dilated" else 1
    return list(range(i, max(i - dilation * width, -1), -dilation))


def dependency_graph(kind: Kind, n: int, depth: int = 1, width: int = 3) -> Graph:
    """長さ n の列に、`kind` の層を `depth` 枚積んだときの、情報の流れの辺。

    Args:
        kind: "attention"・"restricted"(左右あわせて `width` 個の近傍)・"recurrent"(左から右)・
            "convolution"(自分と左の、幅 `width`)・"dilated"(同じく。間隔は層ごとに width 倍)。
        width: 近傍または畳み込みの幅(2 以上。"restricted" では 3 以上の奇数)。

    Raises:
        TypeError, ValueError: 引数が範囲の外のとき。
    """
    if kind not in KINDS:
        raise ValueError(f"kind は {', '.join(KINDS)} から選んでください: {shown(kind)}")
    n, depth = _positive(n=n, depth=depth)
    width = require_int(width, "width", minimum=2)
    if kind == "restricted" and width % 2 == 0:
        raise ValueError(f"width は 3 以上の奇数にしてください(左右に同じだけ見ます): {width}")
    graph: Graph = {(level, i): [] for level in range(depth + 1) for i in range(n)}
    for level in range(1, depth + 1):
        for i in range(n):
            for j in reads(kind, level, i, n, width):
                graph[level - 1, j].append((level, i))
            if kind == "recurrent" and i:
                graph[level, i - 1].append((level, i))
    return graph


def distances(graph: Graph, start: Node) -> dict[Node, int]:
    """`start` から届く節点への、最短の道の辺の数(幅優先探索)。"""
    found, queue = {start: 0}, deque([start])
    while queue:
        node = queue.popleft()
        for following in graph[node]:
            if following not in found:
                found[following] = found[node] + 1
                queue.append(following)
    return found


def maximum_path_length(kind: Kind, n: int, width: int = 3) -> int:
    """入力から出力への最短の道のうち、最も長いものの辺の数(表 1 の Maximum Path Length)。

    すべての入力がすべての出力に届くまで、層を 1 枚ずつ積む。左から右にしか流れない `ONE_WAY` の
    層では、入力が出力より後ろにない組だけを見る。

    Raises:
        TypeError, ValueError: 引数が範囲の外のとき。
    """
    n = require_int(n, "n", minimum=1)
    for depth in range(1, n + 1):  # どの層も、1 枚で少なくとも隣には届く
        graph = dependency_graph(kind, n, depth, width)
        longest = _longest(graph, kind, n, depth)
        if longest is not None:
            return longest
    raise AssertionError(f"{kind} の層を {n} 枚積んでも、届かない組があります")


def _longest(graph: Graph, kind: Kind, n: int, depth: int) -> int | None:
    """すべての組の最短の道の、最大の長さ。届かない組があれば None。"""
    longest = 0
    for i in range(n):
        found = distances(graph, (0, i))
        for j in range(i if kind in ONE_WAY else 0, n):
            if (depth, j) not in found:
                return None
            longest = max(longest, found[depth, j])
    return longest


def sequential_operations(graph: Graph) -> int:
    """前の結果を待たなければならない計算の数: グラフの中の最も長い道の辺の数。

    表 1 の Sequential Operations(最小限の逐次演算)に当たる。並列に何台あっても、これより少ない
    段数では終わらない。
    """
    longest: dict[Node, int] = {}
    for node in sorted(graph, reverse=True):  # 辺は必ず、深いほうか右へ向かう
        longest[node] = max((1 + longest[following] for following in graph[node]), default=0)
    return max(longest.values())


def _positive(**sizes: int) -> tuple[int, ...]:
    return tuple(require_int(value, name, minimum=1) for name, value in sizes.items())
