"""トークンの id のテンソルが、語彙に収まる (文の数, 長さ) か確かめる。"""

import torch
from torch import Tensor


def require_ids(ids: Tensor, name: str, size: int) -> None:
    """`ids` が、0 以上 `size` 未満の整数の (B, T) か確かめる。

    Raises:
        TypeError: 整数 (int64 か int32) のテンソルでないとき。
        ValueError: 2 次元でない、空、値が範囲の外のとき。
    """
    if not isinstance(ids, Tensor) or ids.dtype not in (torch.int64, torch.int32):
        kind = ids.dtype if isinstance(ids, Tensor) else type(ids).__name__
        raise TypeError(f"{name} には整数 (int64) のテンソルを渡してください: {kind}")
    if ids.dim() != 2 or 0 in ids.shape:
        raise ValueError(
            f"{name} の形は (文の数, 長さ)、どちらも 1 以上にしてください: {tuple(ids.shape)}"
        )
    low, high = (int(value) for value in ids.aminmax())
    if low < 0 or high >= size:
        raise ValueError(f"{name} は 0 以上 {size} 未満にしてください: {low} から {high}")
