"""3.3.4・3.3.5 節(ヘッド、計算量)の主張の測定。

シードは、隣を読む課題では重みの初めの値と列を、計算量では次元と長さを決める。
"""

import random
from functools import cache

import torch

from chapter03.complexity import counted_flops, fit_exponent, recurrent
from chapter03.head_experiments import D_MODEL, pair_accuracy, train_reader
from shared.attention import MultiHeadAttention, scaled_dot_product_attention


@cache
def accuracy(n_heads: int, seed: int) -> float:
    """ヘッドが `n_heads` 本のとき、左隣と右隣の両方を当てた割合。"""
    return pair_accuracy(train_reader(n_heads, seed), seed)


def one_head(seed: int) -> float:
    """両隣の正解率の比、1 ヘッド ÷ 4 ヘッド(パラメーターの数は同じ)。"""
    return accuracy(1, seed) / accuracy(4, seed)


def too_many_heads(seed: int) -> float:
    """両隣の正解率の比、d_k = 1 になるまで分けたとき ÷ 4 ヘッド。"""
    return accuracy(D_MODEL, seed) / accuracy(4, seed)


def attention_exponent_error(seed: int) -> float:
    """実際に行われた自己注意の FLOPs を n のべき乗とみたときの、指数と 2 の差の絶対値。"""
    d, lengths = _sizes(seed)

    def flops(n: int) -> int:
        q, k, v = (torch.zeros(n, d) for _ in range(3))
        return counted_flops(lambda: scaled_dot_product_attention(q, k, v))

    return abs(fit_exponent(lengths, [flops(n) for n in lengths]) - 2)


def recurrent_exponent_error(seed: int) -> float:
    """実際に行われた RNN の FLOPs を n のべき乗とみたときの、指数と 1 の差の絶対値。"""
    d, lengths = _sizes(seed)
    w, u = torch.zeros(d, d), torch.zeros(d, d)
    flops = [counted_flops(lambda n=n: recurrent(torch.zeros(n, d), w, u)) for n in lengths]
    return abs(fit_exponent(lengths, flops) - 1)


def short_cost_ratio(seed: int) -> float:
    """n = d / 2 のときの FLOPs の比、マルチヘッド注意(投影も含む)÷ RNN。"""
    d, _ = _sizes(seed)
    n = d // 2
    attention, x = MultiHeadAttention(d, 4), torch.zeros(1, n, d)
    w, u = torch.zeros(d, d), torch.zeros(d, d)
    ours = counted_flops(
        lambda: attention(x, return_weights=True)
    )  # 重みを返すと素直な行列積になる
    return ours / counted_flops(lambda: recurrent(x[0], w, u))


def _sizes(seed: int) -> tuple[int, list[int]]:
    """次元 d(8 の倍数)と、倍々に伸びる五つの長さ。"""
    source = random.Random(seed)
    first = source.randint(5, 20)
    return 8 * source.randint(2, 8), [first * 2**i for i in range(5)]
