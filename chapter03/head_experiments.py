"""ヘッドの数とマスクの誤りが何を変えるかを、数秒の学習で確かめる二つの課題。

- 隣を読む: 乱数の列の各位置で、左隣と右隣の記号を同時に当てる。一層の注意だけで解く。
- 来ない未来: 乱数の列の次の記号を当てる。正しい因果マスクのもとでは、当たるはずがない。
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chapter03.positional import sinusoidal
from shared.attention import MultiHeadAttention
from shared.checks import require_int
from shared.device import seed_everything
from shared.training import train

SYMBOLS, LENGTH, D_MODEL, BATCH = 8, 10, 32, 64
STEPS, RATE = 500, 1e-2


def held_out_rows(seed: int, rows: int = 1000) -> Tensor:
    """学習に使わない、乱数の列 (rows, LENGTH)。"""
    return random_rows(torch.Generator().manual_seed(10_000 + seed), rows)


def random_rows(generator: torch.Generator, batch: int = BATCH) -> Tensor:
    """一様な乱数の記号の列 (batch, LENGTH)。"""
    return torch.randint(SYMBOLS, (batch, LENGTH), generator=generator)


class NeighbourReader(nn.Module):
    """各位置で左隣と右隣の記号を当てる、注意一層だけのモデル。

    パラメーターの数は `n_heads` によらない。読み出しは線形写像で、`hidden` が正なら中間の次元が
    `hidden` の 2 層(ReLU)にする。

    Raises:
        TypeError, ValueError: `n_heads` が `MultiHeadAttention` の範囲の外、`hidden` が負のとき。
    """

    def __init__(self, n_heads: int, hidden: int = 0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(SYMBOLS, D_MODEL)
        self.positions: Tensor
        self.register_buffer("positions", sinusoidal(LENGTH, D_MODEL))
        self.attention = MultiHeadAttention(D_MODEL, n_heads)
        if require_int(hidden, "hidden", minimum=0):
            inner, outer = nn.Linear(D_MODEL, hidden), nn.Linear(hidden, 2 * SYMBOLS)
            self.read = nn.Sequential(inner, nn.ReLU(), outer)
        else:
            self.read = nn.Linear(D_MODEL, 2 * SYMBOLS)

    def forward(self, ids: Tensor) -> Tensor:
        """記号の列 (B, n) から、左隣と右隣の logits (B, n - 2, 2, SYMBOLS)。両端の位置は除く。"""
        y, _ = self.attention(self.embedding(ids) + self.positions)
        return self.read(y).unflatten(-1, (2, SYMBOLS))[:, 1:-1]

    @torch.no_grad()
    def weights(self, ids: Tensor) -> Tensor:
        """注意の重み (B, H, n, n)。"""
        _, weights = self.attention(self.embedding(ids) + self.positions, return_weights=True)
        assert weights is not None
        return weights


def neighbours(ids: Tensor) -> Tensor:
    """正解: 両端を除く各位置の、左隣と右隣の記号 (B, n - 2, 2)。"""
    return torch.stack([ids[:, :-2], ids[:, 2:]], dim=-1)


def train_reader(n_heads: int, seed: int, hidden: int = 0) -> NeighbourReader:
    """ヘッドが `n_heads` 本のモデルを、乱数の列で学習する。"""
    generator = seed_everything(seed)
    model = NeighbourReader(n_heads, hidden)
    rows = [random_rows(generator) for _ in range(STEPS)]

    train(model, rows, _pair_loss, steps=STEPS, rate=_rate, progress=False)
    return model.eval()


@torch.no_grad()
def pair_accuracy(model: NeighbourReader, seed: int) -> float:
    """新しい列で、左隣と右隣の両方が当たった位置の割合。"""
    ids = held_out_rows(seed)
    return float((model(ids).argmax(-1) == neighbours(ids)).all(-1).float().mean())


@torch.no_grad()
def pair_loss(model: NeighbourReader, seed: int) -> float:
    """新しい列での損失(nat / 記号)。"""
    return float(_pair_loss(model, held_out_rows(seed)))


def _pair_loss(model: NeighbourReader, ids: Tensor) -> Tensor:
    return F.cross_entropy(model(ids).flatten(0, 2), neighbours(ids).flatten())


def _rate(step: int) -> float:
    return RATE * min(step / 50, 1 - step / (STEPS + 1))


# ---- 来ない未来: マスクの誤りを見つける課題 ----------------------------------------------------

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""q, k, v (B, H, n, d_k) から出力 (B, H, n, d_k) を作る関数。"""


class FuturePredictor(nn.Module):
    """注意一層と線形写像で、次の記号を当てるモデル。注意の計算 `attend` を差し替えられる。"""

    def __init__(self, attend: Attend, n_heads: int = 4) -> None:
        super().__init__()
        self.attend, self.n_heads = attend, n_heads
        self.embedding = nn.Embedding(SYMBOLS, D_MODEL)
        self.positions: Tensor
        self.register_buffer("positions", sinusoidal(LENGTH, D_MODEL))
        self.project = nn.Linear(D_MODEL, 3 * D_MODEL)
        self.read = nn.Linear(D_MODEL, SYMBOLS)

    def forward(self, ids: Tensor) -> Tensor:
        """記号の列 (B, n) から、次の記号の logits (B, n, SYMBOLS)。"""
        x = self.embedding(ids) + self.positions
        heads = self.project(x).unflatten(-1, (3, self.n_heads, -1))  # (B, n, 3, H, d_k)
        q, k, v = heads.permute(2, 0, 3, 1, 4)  # (B, H, n, d_k) が三つ
        return self.read(self.attend(q, k, v).transpose(1, 2).flatten(2))


def train_future(attend: Attend, seed: int) -> FuturePredictor:
    """乱数の列で、次の記号を当てる学習をする。"""
    generator = seed_everything(seed)
    model = FuturePredictor(attend)
    rows = [random_rows(generator) for _ in range(STEPS)]
    train(model, rows, _future_loss, steps=STEPS, rate=_rate, progress=False)
    return model.eval()


@torch.no_grad()
def future_loss(model: FuturePredictor, seed: int) -> float:
    """新しい列での損失(nat / 記号)。乱数の列なので、覗かない限り log(SYMBOLS) を下回れない。"""
    return float(_future_loss(model, held_out_rows(seed)))


def _future_loss(model: FuturePredictor, ids: Tensor) -> Tensor:
    return F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
