"""3.3 節(注意機構)の演習の採点。"""

from collections.abc import Callable

import torch
from torch import Tensor

from shared.attention import scaled_dot_product_attention
from shared.learning import Case, grade


def check_attention(my_attention: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """q (n, d_k)、k (m, d_k)、v (m, d_v) から、注意の出力 (n, d_v) を求める関数を採点する。"""
    random = torch.Generator().manual_seed(0)

    def case(shape: tuple[int, int, int, int], edge: str, hint: str, size: float = 1.0) -> Case:
        n, m, d_k, d_v = shape
        q, k = (size * torch.randn(rows, d_k, generator=random) for rows in (n, m))
        v = torch.randn(m, d_v, generator=random)
        expected, _ = scaled_dot_product_attention(q, k, v)
        return Case((q, k, v), expected, edge, hint, atol=1e-4)

    axis = "重みの和が 1 になるのは、クエリーごと(キーの方向)です"
    scale = "割るのは √d_k です。d_k でも、バリューの次元の平方根でもありません"
    large = "exp に大きな数をそのまま渡すと inf になります。行ごとに最大値を引いてからにします"
    grade(
        "3.3a 演習 3",
        my_attention,
        [
            case((3, 3, 1, 1), "d_k = 1", axis),
            case((2, 5, 1, 1), "n ≠ m", axis),
            case((4, 3, 16, 2), "d_k ≠ d_v", scale),
            case((1, 1, 4, 3), "キーが 1 本", "重みは 1 なので、バリューがそのまま出ます"),
            case((3, 4, 4, 2), "大きな数", large, size=100.0),
        ],
    )


def check_softmax_backward(my_backward: Callable[[Tensor, Tensor], Tensor]) -> None:
    """softmax の出力 p (m,) とその勾配 g (m,) から、入力の勾配を求める関数を採点する。"""

    def case(scores: list[float], g: list[float], edge: str, hint: str) -> Case:
        s = torch.tensor(scores, dtype=torch.float64, requires_grad=True)
        upstream = torch.tensor(g, dtype=torch.float64)
        p = s.softmax(dim=0)
        (expected,) = torch.autograd.grad(p, s, upstream)
        return Case((p.detach(), upstream), expected, edge, hint, atol=1e-9)

    mixed = "一つのスコアを動かすと、ほかの重みも動きます。∂p_j/∂s_i (i ≠ j) の項を忘れていませんか"
    flat = "どの重みも同じだけ得なら(g が一定)、動かしても得はなく、勾配は 0 です"
    grade(
        "3.3a 演習 4",
        my_backward,
        [
            case([0.0, 1.0, 2.0], [1.0, 0.0, 0.0], "one-hot の g", mixed),
            case([0.5, -1.0, 0.3, 2.0], [0.2, -1.0, 3.0, 0.5], "", mixed),
            case([0.0, 1.0, 2.0], [3.0, 3.0, 3.0], "一定の g", flat),
            case([0.0, 30.0], [1.0, -1.0], "飽和した softmax", "p に 0 に近い値があっても割らない"),
        ],
    )
