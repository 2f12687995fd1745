"""3.3.4 節(マルチヘッド注意、マスク)の演習の採点。"""

from collections.abc import Callable

import torch
from torch import Tensor

from shared.attention import causal_mask, padding_mask
from shared.learning import Case, grade


def check_split_heads(my_split: Callable[[Tensor, int], Tensor]) -> None:
    """x (n, d) をヘッドごとの (h, n, d_k) に切り分ける関数を採点する。"""
    axes = "view だけで (h, n, d_k) にすると語が混ざります。(n, h, d_k) にしてから軸を入れ替えます"
    x = torch.arange(24).view(4, 6)
    longer = torch.arange(40).view(5, 8)
    grade(
        "3.3b 演習 3",
        my_split,
        [
            Case((x, 2), _split(x, 2), hint=axes),
            Case((x, 3), _split(x, 3), hint=axes),
            Case((longer, 4), _split(longer, 4), hint=axes),
            Case((x, 1), _split(x, 1), "ヘッド 1 本", axes),
            Case((x, 6), _split(x, 6), "d_k = 1", axes),
            Case((x[:1], 2), _split(x[:1], 2), "1 語だけ", axes),
        ],
    )


def check_both_masks(my_mask: Callable[[Tensor], Tensor]) -> None:
    """id の列 (B, n) から、因果と詰めものを合わせたマスク (B, n, n) を作る関数を採点する。"""
    both = "行が見る側、列が見られる側です。未来でなく、しかも詰めものでない列だけを True にします"
    batches = [
        ([[3, 4, 5]], ""),
        ([[0, 0, 3, 4], [1, 2, 3, 4]], "左に詰めた"),
        ([[3, 4, 0, 0, 0]], "右に詰めた"),
        ([[0, 0]], "詰めものだけ"),
        ([[7]], "1 語だけ"),
    ]
    cases = [(torch.tensor(rows), edge) for rows, edge in batches]
    grade(
        "3.3b 演習 4",
        my_mask,
        [
            Case((ids,), (padding_mask(ids) & causal_mask(ids.shape[1]))[:, 0], edge, both)
            for ids, edge in cases
        ],
    )


def _split(x: Tensor, n_heads: int) -> Tensor:
    return x.view(len(x), n_heads, -1).transpose(0, 1)
