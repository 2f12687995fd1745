"""CPU で速いドロップアウト。長い学習(翻訳器、GPT)で、nn.Dropout と置き換えて使う。"""

import math

import torch
from torch import Tensor, nn

from shared.attention import MultiHeadAttention
from shared.checks import require_number, require_rate


class ByteDropout(nn.Module):
    """乱数を 1 バイトずつ使うドロップアウト。CPU では nn.Dropout の 3 分の 1 ほどの時間で済む。

    率は 1/256 の単位に丸める(0.1 は 26/256 になる)。

    Raises:
        ValueError: 率が 0 以上で、255/256 以下に丸まる数でないとき。
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0 <= round(256 * require_number(rate, "rate")) < 256:
            raise ValueError(f"rate は 0 以上 1 未満にしてください: {rate}")
        self.dropped = round(256 * rate)  # 256 通りのうち、落とす数

    def forward(self, x: Tensor) -> Tensor:
        """`x` の各要素を確率 dropped/256 で 0 にし、残りを、期待値が変わらないように大きくする。"""
        if not self.training or not self.dropped:
            return x
        words = torch.empty(math.ceil(x.numel() / 8), dtype=torch.int64, device=x.device)
        noise = words.random_(-(2**63), None).view(torch.uint8)[: x.numel()].view(x.shape)
        return x * (noise >= self.dropped).to(x.dtype).mul_(256 / (256 - self.dropped))


def use_byte_dropout(model: nn.Module) -> None:
    """`model` の nn.Dropout をすべて、同じ率の `ByteDropout` に置き換える。"""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Dropout):
                setattr(module, name, ByteDropout(child.p))


def set_dropout(model: nn.Module, rate: float) -> None:
    """`model` のドロップアウト(nn.Dropout と、注意の重み)の率を、すべて `rate` にする。

    Raises:
        TypeError, ValueError: `rate` が [0, 1) の数でないとき。
    """
    require_rate(rate, "rate")
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = rate
        elif isinstance(module, MultiHeadAttention):
            module.dropout = rate


def use_fast_dropout(model: nn.Module) -> None:
    """`use_byte_dropout` に加えて、CPU で遅い、注意の重みのドロップアウトを外す。"""
    use_byte_dropout(model)
    for module in model.modules():
        if isinstance(module, MultiHeadAttention):
            module.dropout = 0.0
