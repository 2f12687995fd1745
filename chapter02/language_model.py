"""2.7 節の実験のための、小さな GPT(言語モデル)と、その学習と評価。

ここでは「直前までの id から次の id の確率を出す箱」と思ってよい。注意機構とそのまわりの一行一行は、
第3章で原論文から組み立てる。
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from shared.checks import require_int, require_number, shown


class TinyGPT(nn.Module):
    """pre-LN の Transformer デコーダー(Radford+ 2019 の GPT-2 の形を小さくしたもの)。

    h = E[id] + P[位置]; 各層で h += 注意(LN(h)), h += FFN(LN(h)); logits = LN(h) E^T。
    入力の埋め込み E を出力でも使う(重みの共有)。

    Args:
        vocab_size: id の種類の数 V。
        d_model: ベクトルの次元。
        n_layers: 層の数。
        context: 一度に見られる長さ T の上限。

    Raises:
        TypeError, ValueError: 1 以上の整数でない引数があるとき。
    """

    def __init__(
        self, vocab_size: int, d_model: int = 16, n_layers: int = 1, context: int = 512
    ) -> None:
        super().__init__()
        d_model = require_int(d_model, "d_model", minimum=1)
        self.context = require_int(context, "context", minimum=1)
        self.embedding = nn.Embedding(require_int(vocab_size, "vocab_size", minimum=1), d_model)
        self.position = nn.Embedding(context, d_model)
        n_layers = require_int(n_layers, "n_layers", minimum=1)
        self.blocks = nn.ModuleList(Block(d_model) for _ in range(n_layers))
        self.norm = nn.LayerNorm(d_model)
        nn.init.normal_(self.embedding.weight, std=0.1)
        nn.init.normal_(self.position.weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        """ids (B, T) から、各位置の次の id の logits (B, T, V) を計算する。

        Raises:
            ValueError: T が `context` より長いとき。
        """
        length = ids.shape[1]
        if length > self.context:
            raise ValueError(f"ids の長さは context = {self.context} 以下にしてください: {length}")
        h = self.embedding(ids) + self.position.weight[:length]  # (B, T, d)
        for block in self.blocks:
            h = block(h)
        return self.norm(h) @ self.embedding.weight.T  # (B, T, V)


class Block(nn.Module):
    """注意機構(一つのヘッド)と FFN を、残差接続でつないだ一層。"""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(d_model)
        self.qkv = nn.Linear(d_model, 3 * d_model)
        self.out = nn.Linear(d_model, d_model)
        self.norm_2 = nn.LayerNorm(d_model)
        self.ffn = nn.Sequential(
            nn.Linear(d_model, 4 * d_model), nn.GELU(), nn.Linear(4 * d_model, d_model)
        )

    def forward(self, h: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm_1(h)).chunk(3, dim=-1)  # 各 (B, T, d)
        h = h + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True))
        return h + self.ffn(self.norm_2(h))


def train(
    model: TinyGPT,
    ids: NDArray[np.int64],
    steps: int,
    seed: int,
    *,
    batch: int = 8,
    lr: float = 2e-3,
) -> list[float]:
    """`ids` から無作為に切り出した列で `model` を学習し、各ステップの損失 (nat/id) を返す。

    AdamW。学習率は余弦で `lr` から 0 まで下げる。

    Raises:
        TypeError, ValueError: `steps`・`batch` が 1 以上の整数でない、`lr` が負または有限でない、
            `ids` が `context` + 1 個に足りないとき。
    """
    steps, batch = require_int(steps, "steps", minimum=1), require_int(batch, "batch", minimum=1)
    lr = require_number(lr, "lr", minimum=0)
    if len(ids) <= model.context:
        raise ValueError(f"ids は {model.context + 1} 個以上にしてください: {len(ids)} 個")
    data, rng = torch.as_tensor(ids), np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    window, losses = np.arange(model.context + 1), []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 + math.cos(math.pi * step / steps)) / 2
        starts = rng.integers(len(ids) - model.context, size=batch)
        rows = data[torch.as_tensor(starts[:, None] + window)]  # (B, T + 1)
        loss = F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def cross_entropy(model: TinyGPT, ids: NDArray[np.int64], batch: int = 8) -> float:
    """`ids` を長さ `context` の列に分けたときの、id 一つあたりの平均の交差エントロピー (nat)。

    Raises:
        ValueError: `ids` が `context` + 1 個に足りないとき。
    """
    n_rows = (len(ids) - 1) // model.context
    if n_rows < 1:
        raise ValueError(f"ids は {model.context + 1} 個以上にしてください: {shown(len(ids))} 個")
    data = torch.as_tensor(ids[: n_rows * model.context + 1])
    inputs, targets = data[:-1].view(n_rows, -1), data[1:].view(n_rows, -1)
    total = 0.0
    for x, y in zip(inputs.split(batch), targets.split(batch), strict=True):
        total += F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="sum").item()
    return total / targets.numel()
