"""DPO(Rafailov+ 2023): 報酬モデルも強化学習も使わず、選好の組から方策を直に学ぶ。

KL を抑えながら報酬を最大にする問題には、閉じた形の解がある(4 節、式 (4))。

    max E[r(x, y)] - β KL(π || π_ref)   →   π*(y|x) = π_ref(y|x) exp(r(x, y) / β) / Z(x)

これを r について解いた r(x, y) = β log π*(y|x)/π_ref(y|x) + β log Z(x)(式 (5))を、Bradley-Terry の
モデルに入れる。差をとるときに Z(x) が消え、方策だけの損失(式 (7))になる。
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from chapter04.gpt import GPT
from chapter04.preferences import Pair, PairBatches, pair_tensors, token_log_probs
from shared.checks import require_int, require_number, shown
from shared.device import seed_everything
from shared.training import Result, train


def optimal_policy(ref_probs: Tensor, rewards: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """KL を抑えた報酬の最大化の解 π* = π_ref exp(r / β) / Z (..., Y) と、Z (...)。

    Rafailov+ 2023, 式 (4)。π_ref の確率が 0 の答えは、報酬がいくら高くても 0 のままである。

    Args:
        ref_probs: 元の方策の、答えごとの確率 (..., Y)。
        rewards: 答えの報酬 (..., Y)。
        beta: KL に掛ける係数。

    Raises:
        TypeError, ValueError: 形が違う、確率でない、報酬が有限でない、`beta` が正でないとき。
    """
    _require_beta(beta)
    if ref_probs.shape != rewards.shape:
        raise ValueError(
            "ref_probs と rewards の形を揃えてください: "
            f"{tuple(ref_probs.shape)} と {tuple(rewards.shape)}"
        )
    total = ref_probs.sum(dim=-1)
    if (ref_probs < 0).any() or not torch.allclose(total, torch.ones_like(total), atol=1e-5):
        raise ValueError("ref_probs は 0 以上で、和が 1 の確率にしてください")
    if not rewards.isfinite().all():
        raise ValueError("rewards は有限の数にしてください")
    logits = ref_probs.log() + rewards / beta
    return logits.softmax(dim=-1), logits.logsumexp(dim=-1).exp()


def dpo_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    beta: float,
    *,
    preferred: Tensor | float = 1.0,
) -> Tensor:
    """DPO の損失(Rafailov+ 2023, 式 (7))の平均。

    -log σ(β log π(y_w|x)/π_ref(y_w|x) - β log π(y_l|x)/π_ref(y_l|x))

    勾配は -β σ(r̂_l - r̂_w) [∇ log π(y_w|x) - ∇ log π(y_l|x)](r̂ は `implicit_reward`)で、順を誤った
    組ほど大きく動かす。

    Args:
        policy_chosen, policy_rejected: 方策の、答え全体の対数確率 (N,)。
        ref_chosen, ref_rejected: 元の方策の、同じもの (N,)。
        beta: KL に掛ける係数。
        preferred: y_w が本当に好まれる確率 p。1 なら式 (7) のまま、ほかは p と 1 - p で重みを
            付けた、両方の順の損失の和。

    Raises:
        TypeError, ValueError: 形が違う、空、`beta` が正でない、`preferred` が 0 から 1 の外のとき。
    """
    _require_beta(beta)
    given = policy_chosen, policy_rejected, ref_chosen, ref_rejected
    if len({one.shape for one in given}) > 1 or given[0].dim() != 1 or not len(given[0]):
        raise ValueError(
            "四つの対数確率は、同じ形の (N,)、N は 1 以上にしてください: "
            f"{'、'.join(str(tuple(one.shape)) for one in given)}"
        )
    p = torch.as_tensor(preferred)
    if p.shape not in ((), given[0].shape) or not ((p >= 0) & (p <= 1)).all():
        raise ValueError(
            f"preferred は 0 以上 1 以下の確率か、その (N,) にしてください: {shown(preferred)}"
        )
    margin = implicit_reward(policy_chosen, ref_chosen, beta) - implicit_reward(
        policy_rejected, ref_rejected, beta
    )
    losses = -preferred * F.logsigmoid(margin) - (1 - preferred) * F.logsigmoid(-margin)
    return losses.mean()


def implicit_reward(policy_log_probs: Tensor, ref_log_probs: Tensor, beta: float) -> Tensor:
    """方策が内に持つ報酬 r̂ = β log π(y|x)/π_ref(y|x)(Rafailov+ 2023, 4 節)。

    Raises:
        TypeError, ValueError: `beta` が正の数でないとき。
    """
    _require_beta(beta)
    return beta * (policy_log_probs - ref_log_probs)


def sequence_log_probs(policy: GPT, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """`pair_tensors` の組の、好まれた答えとそうでない答えの対数確率 (N,)。答えの部分だけの和。"""
    sides = batch["chosen"], batch["rejected"]
    ids, mask = (torch.cat([side[name] for side in sides]) for name in ("ids", "mask"))
    chosen, rejected = token_log_probs(policy, ids, mask).sum(dim=1).chunk(2)
    return chosen, rejected


def train_dpo(
    policy: GPT,
    pairs: Sequence[Pair],
    *,
    beta: float = 0.1,
    steps: int = 300,
    batch_size: int = 64,
    rate: float = 1e-3,
    seed: int = 0,
    **options: Any,
) -> Result:
    """`policy` の写しを、組から DPO で学習する。元の方策は `policy` で、重みは変えない。

    元の方策の対数確率は、はじめに一度だけ求める。記録には、組の順に揃った割合 accuracy と、r̂ の差の
    平均 margin が加わる。`options` は train に渡す。

    Raises:
        TypeError, ValueError: 引数が誤っている、`pairs` が空、id が語彙の外のとき。
    """
    _require_beta(beta)
    require_int(steps, "steps", minimum=1)
    generator = seed_everything(seed)
    reference, policy = policy, copy.deepcopy(policy).requires_grad_(True)
    with torch.no_grad():
        device = next(reference.parameters()).device
        known = sequence_log_probs(reference.eval(), pair_tensors(pairs, device=device))
    extra = {"ref_chosen": known[0].cpu(), "ref_rejected": known[1].cpu()}
    batches = PairBatches(pairs, batch_size, generator, extra=extra)

    def loss(model: GPT, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, float]]:
        chosen, rejected = sequence_log_probs(model, batch)
        ref_chosen, ref_rejected = batch["ref_chosen"], batch["ref_rejected"]
        margin = beta * (chosen - ref_chosen - rejected + ref_rejected).detach()
        return dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta), {
            "accuracy": float((margin > 0).float().mean()),
            "margin": float(margin.mean()),
        }

    settings: dict[str, Any] = {
        "optimizer": "adamw", "clip": 1.0, "progress": False, "generators": [generator],
        "rate": lambda step: rate * min(step / 20, 1.0),
    }  # fmt: skip
    result = train(policy, batches, loss, steps=steps, **{**settings, **options})
    policy.eval()
    return result


def _require_beta(beta: float) -> None:
    if require_number(beta, "beta") <= 0:
        raise ValueError(f"beta は 0 より大きい数にしてください: {beta}")
