"""報酬モデルと best-of-n: 二つの答えの比べ方から、報酬を学ぶ。

    ids (B, T) → GPT の状態 (B, T, d) → 線形写像 (B, T) → 答えの最後の位置 → 報酬 (B,)

Bradley-Terry のモデルでは、答え a が b より好まれる確率を σ(r_a - r_b) とする。報酬は差だけが
決まり、全体に同じ数を足しても変わらない。そこで、学習の後で平均を 0 に揃える。
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chapter04.gpt import GPT
from chapter04.preferences import (
    Pair,
    PairBatches,
    Reward,
    answers,
    pair_tensors,
    require_finite,
)
from shared.checks import require_int, shown
from shared.device import seed_everything
from shared.training import train


class RewardModel(nn.Module):
    """GPT の語彙への写像を、スカラーへの線形写像に替えたモデル (Ouyang+ 2022, 3.5 節)。

    Args:
        gpt: 事前学習した GPT。重みはそのまま使う(写しはとらない)。

    Raises:
        TypeError: `gpt` が GPT でないとき。
    """

    shift: Tensor

    def __init__(self, gpt: GPT) -> None:
        super().__init__()
        if not isinstance(gpt, GPT):
            raise TypeError(f"gpt には GPT を渡してください: {shown(gpt)}")
        self.gpt = gpt
        self.head = nn.Linear(gpt.config.d_model, 1)
        nn.init.normal_(self.head.weight, std=(gpt.config.d_model + 1) ** -0.5)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("shift", torch.zeros(()))

    def scores(self, ids: Tensor) -> Tensor:
        """位置ごとの、そこまでを読んだときの数 (B, T)。"""
        return self.head(self.gpt.hidden(ids))[..., 0] - self.shift

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ids と答えの印 (B, T) から、答えの最後のトークンの位置での数 r(x, y) (B,)。

        Raises:
            ValueError: `mask` の形が違う、印のない行があるとき。
        """
        last = last_position(ids, mask)
        return self.scores(ids).gather(1, last[:, None])[:, 0]

    @torch.no_grad()
    def normalize(self, ids: Tensor, mask: Tensor) -> None:
        """`ids` の報酬の平均が 0 になるように、一定の数を引く (Ouyang+ 2022, 3.5 節)。"""
        self.shift += self(ids, mask).mean()


def last_position(ids: Tensor, mask: Tensor) -> Tensor:
    """行ごとの、最後の True の位置 (B,)。

    Raises:
        ValueError: `mask` の形か型が違う、印のない行があるとき。
    """
    if mask.shape != ids.shape or mask.dtype != torch.bool:
        raise ValueError(
            f"mask は ids と同じ形 {tuple(ids.shape)} の真偽値にしてください: "
            f"{tuple(mask.shape)} {mask.dtype}"
        )
    if not mask.any(dim=1).all():
        row = int((~mask.any(dim=1)).nonzero()[0, 0])
        raise ValueError(f"mask の {row} 行目に、答えの印(True)がありません")
    return (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(dim=1)


def bradley_terry_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """好まれた答えの報酬 r_w と、そうでない答えの報酬 r_l (N,) から、-log σ(r_w - r_l) の平均。

    Raises:
        ValueError: 形が違う、空、NaN か無限大があるとき。
    """
    _require_same(chosen, rejected)
    return -F.logsigmoid(chosen - rejected).mean()


def ranking_loss(scores: Tensor) -> Tensor:
    """良い順に並べた K 個の答えの報酬 (B, K) から、Ouyang+ 2022, 式 (1) の損失。

    -1 / C(K, 2) Σ_{w<l} log σ(r_w - r_l) を、書き出しについて平均する。K = 2 なら
    `bradley_terry_loss` と同じ。

    Raises:
        ValueError: 形が (B, K)、K が 2 以上でないとき。
    """
    if scores.dim() != 2 or scores.shape[0] < 1 or scores.shape[1] < 2:
        raise ValueError(
            f"scores の形は (書き出しの数, K)、K は 2 以上にしてください: {tuple(scores.shape)}"
        )
    better, worse = torch.triu_indices(scores.shape[1], scores.shape[1], 1, device=scores.device)
    return bradley_terry_loss(scores[:, better].flatten(), scores[:, worse].flatten())


def pair_scores(
    model: RewardModel | Reward, batch: Mapping[str, Mapping[str, Tensor]]
) -> tuple[Tensor, Tensor]:
    """`pair_tensors` の組の (r_w, r_l)。二つをつないで、一度に計算する。"""
    sides = batch["chosen"], batch["rejected"]
    scores = model(*(torch.cat([side[name] for side in sides]) for name in ("ids", "mask")))
    chosen, rejected = scores.chunk(2)
    return chosen, rejected


def train_reward_model(
    gpt: GPT,
    pairs: Sequence[Pair],
    *,
    steps: int = 300,
    batch_size: int = 64,
    rate: float = 2e-3,
    weight_decay: float = 0.1,
    seed: int = 0,
    **options: Any,
) -> RewardModel:
    """`gpt` の写しから始めて、組の比べ方を学んだ報酬モデル。

    最後に、組に出てきた答えの報酬の平均を 0 にする。`options` は train に渡す。

    Raises:
        TypeError, ValueError: 引数が誤っている、`pairs` が空のとき。
    """
    require_int(steps, "steps", minimum=1)
    generator = seed_everything(seed)
    model = RewardModel(copy.deepcopy(gpt).requires_grad_(True))
    batches = PairBatches(pairs, batch_size, generator)
    settings: dict[str, Any] = {
        "optimizer": "adamw", "weight_decay": weight_decay, "clip": 1.0, "progress": False,
        "rate": lambda step: rate * (steps + 1 - step) / steps, "generators": [generator],
    }  # fmt: skip
    train(
        model, batches, lambda model, batch: bradley_terry_loss(*pair_scores(model, batch)),
        steps=steps, **{**settings, **options},
    )  # fmt: skip
    tensors = pair_tensors(pairs, device=model.shift.device)
    sides = [tensors["chosen"], tensors["rejected"]]
    model.eval().normalize(*(torch.cat([side[name] for side in sides]) for name in ("ids", "mask")))
    return model


@torch.no_grad()
def accuracy(model: RewardModel | Reward, pairs: Sequence[Pair]) -> float:
    """好まれた答えのほうに、高い報酬を付けた組の割合(同点は半分と数える)。

    Raises:
        ValueError: `pairs` が空のとき。
    """
    device = model.shift.device if isinstance(model, RewardModel) else None
    chosen, rejected = pair_scores(model, pair_tensors(pairs, device=device))
    _require_same(chosen, rejected)
    difference = chosen - rejected
    return float(((difference.sign() + 1) / 2).mean())


# ---- best-of-n ------------------------------------------------------------------------------


@torch.no_grad()
def best_of_n(
    policy: GPT,
    reward: Reward,
    prompts: Tensor,
    n: int,
    max_new_tokens: int,
    *,
    generator: torch.Generator | None = None,
    stop: int | None = None,
) -> tuple[Tensor, Tensor]:
    """書き出しごとに答えを `n` 個書き、報酬のいちばん高いもの(ids と答えの印)を返す。

    Raises:
        TypeError, ValueError: 引数が範囲の外、報酬に NaN か無限大があるとき。
    """
    require_int(n, "n", minimum=1)
    repeated = prompts.repeat_interleave(n, dim=0)
    ids, mask = answers(policy, repeated, max_new_tokens, generator=generator, stop=stop)
    rewards = reward(ids, mask)
    require_finite(rewards, "reward")
    best = rewards.view(len(prompts), n).argmax(dim=1)
    rows = torch.arange(len(prompts), device=best.device) * n + best
    return ids[rows], mask[rows]


def best_of_n_kl(n: int) -> float:
    """best-of-n の方策の、元の方策からの KL の上限 log n - (n - 1)/n [nat]。

    報酬が同点になる確率が 0 なら、等号が成り立つ(Gao+ 2022 はこの値を使う。上限であることは
    Beirami+ 2024)。

    Raises:
        TypeError, ValueError: `n` が 1 より小さいとき。
    """
    return math.log(require_int(n, "n", minimum=1)) - (n - 1) / n


def best_of_n_mean(proxy: Tensor, gold: Tensor, n: int) -> float:
    """N 個の答えの報酬から、「proxy のいちばん高いものを n 個から選ぶ」ときの gold の平均。

    N 個から n 個を選ぶすべての選び方の平均で、偏りがない。proxy の順に並べて k 番目(1 から)の答えが
    選ばれるのは、残りの n - 1 個がみなそれより下のときなので、その割合は C(k-1, n-1) / C(N, n)。

    Raises:
        TypeError, ValueError: 形が違う、`n` が 1 以上 N 以下でないとき。
    """
    _require_same(proxy, gold)
    if require_int(n, "n", minimum=1) > len(proxy):
        raise ValueError(f"n は答えの数 {len(proxy)} 以下にしてください: {n}")
    k = torch.arange(1, len(proxy) + 1, dtype=torch.double)
    log_ways = k.lgamma() - math.lgamma(n) - (k - n + 1).clamp(min=1).lgamma()
    share = log_ways.masked_fill(k < n, -math.inf).softmax(dim=0)
    return float(share @ gold.double().cpu()[proxy.cpu().argsort(stable=True)])


def _require_same(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape or a.dim() != 1 or not len(a):
        raise ValueError(
            f"二つの報酬は、同じ形の (N,)、N は 1 以上にしてください: {tuple(a.shape)} と "
            f"{tuple(b.shape)}"
        )
    for one in (a, b):
        require_finite(one, "報酬")
