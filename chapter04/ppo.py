"""PPO(Schulman+ 2017): 報酬モデルの点を上げるように、元の方策から離れすぎずに方策を動かす。

1 反復の流れ(B: 答えの数、T: 書き出しと答えの長さ):

    今の方策で答えを書く → 報酬 - β log π/π_ref をトークンに配る → アドバンテージ A を求める (GAE)
    → 同じ答えを何度か使い、切り詰めた目的関数で方策と価値を動かす

トークンごとの量はみな (B, T - 1) で、位置 t は「x_≤t を見て x_{t+1} を選ぶ」ときの値である。答えで
ない所(書き出しと、終わりの後の詰めもの)は、印 mask (B, T - 1) で除く。
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from chapter04.gpt import GPT
from chapter04.preferences import (
    Reward,
    answers,
    kl_divergence,
    log_distributions,
    next_token_loss,
    require_finite,
    token_log_probs,
)
from chapter04.reward_model import RewardModel, last_position
from shared.checks import require_int, require_number, require_rate
from shared.device import seed_everything
from shared.training import train

# ---- 式 -------------------------------------------------------------------------------------


def token_rewards(
    scores: Tensor, log_probs: Tensor, ref_log_probs: Tensor, mask: Tensor, beta: float
) -> Tensor:
    """トークンごとの報酬 (B, T - 1)。和は R(x, y) = r(x, y) - β log π(y|x)/π_ref(y|x)。

    R は Ziegler+ 2019, 2 節(Ouyang+ 2022, 式 (2) の初めの二項)。KL の項は各トークンに、報酬モデルの
    点は答えの最後のトークンに与える。

    Args:
        scores: 答え全体の点 r(x, y) (B,)。
        log_probs, ref_log_probs: 今の方策と元の方策の対数確率 (B, T - 1)。
        mask: 答えのトークンの印 (B, T - 1)。どの行にも True がある。
        beta: KL に掛ける係数。

    Raises:
        TypeError, ValueError: 形が違う、報酬が有限でない、答えのない行がある、`beta` が負のとき。
    """
    require_number(beta, "beta", 0)
    if not (
        log_probs.shape == ref_log_probs.shape == mask.shape == (*scores.shape, *mask.shape[1:])
    ):
        raise ValueError(
            "scores は (B,)、ほかは (B, T - 1) に揃えてください: "
            f"{'、'.join(str(tuple(x.shape)) for x in (scores, log_probs, ref_log_probs, mask))}"
        )
    require_finite(scores, "scores")
    last = torch.zeros_like(mask).scatter(1, last_position(log_probs, mask)[:, None], True)
    return torch.where(mask, -beta * (log_probs - ref_log_probs), 0.0) + last * scores[:, None]


def advantages(
    rewards: Tensor, values: Tensor, gamma: float, lam: float, mask: Tensor | None = None
) -> Tensor:
    """一般化アドバンテージ推定 (GAE) による A_t (B, T)。答えの後の価値は 0 とする。

    A_t = δ_t + γλ A_{t+1}、δ_t = r_t + γ V_{t+1} - V_t(Schulman+ 2016, 式 (16)。Schulman+ 2017,
    式 (11) と (12))。λ = 1 なら「この先の報酬の割引和 - V_t」、λ = 0 なら δ_t になる。

    Args:
        rewards, values: 報酬 r_t と、選ぶ前の状態の価値 V_t (B, T)。
        gamma, lam: 割引率 γ と λ(どちらも 0 以上 1 以下)。
        mask: 答えのトークンの印 (B, T)。False の所の価値は 0 とみなし、アドバンテージも 0 にする。

    Raises:
        TypeError, ValueError: 形が違う、報酬か価値が有限でない、係数が範囲の外のとき。
    """
    _require_discounts(gamma, lam)
    mask = torch.ones_like(rewards, dtype=torch.bool) if mask is None else mask
    if not rewards.shape == values.shape == mask.shape or rewards.dim() != 2:
        raise ValueError(
            "rewards と values(と mask)は、同じ形の (B, T) にしてください: "
            f"{'、'.join(str(tuple(x.shape)) for x in (rewards, values, mask))}"
        )
    require_finite(rewards, "rewards")
    require_finite(values, "values")
    rewards, values = rewards * mask, values * mask
    result = torch.zeros_like(rewards)
    following = next_value = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        following = (delta + gamma * lam * following) * mask[:, t]
        result[:, t], next_value = following, values[:, t]
    return result


def ppo_loss(
    new_log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    clip: float,
    mask: Tensor | None = None,
) -> Tensor:
    """切り詰めた目的関数に負号を付けたもの(Schulman+ 2017, 式 (7))の、印のある所の平均。

    -E[min(ρ_t A_t, clip(ρ_t, 1 - ε, 1 + ε) A_t)]、ρ_t = π(a_t|s_t) / π_old(a_t|s_t)

    A_t > 0 で ρ_t > 1 + ε、または A_t < 0 で ρ_t < 1 - ε の所では、勾配が 0 になる。良い行動の確率
    をもう十分に上げた(悪い行動なら下げた)所は動かさず、行き過ぎを戻すほうへは動ける。

    Raises:
        TypeError, ValueError: 形が違う、`clip` が正の数でないとき。
    """
    _require_clip(clip)
    if not new_log_probs.shape == old_log_probs.shape == advantages.shape:
        shapes = (new_log_probs, old_log_probs, advantages)
        raise ValueError(
            "new_log_probs・old_log_probs・advantages の形を揃えてください: "
            f"{'、'.join(str(tuple(x.shape)) for x in shapes)}"
        )
    ratio = (new_log_probs - old_log_probs).exp()
    clipped = ratio.clamp(1 - clip, 1 + clip)
    return -masked_mean(torch.minimum(ratio * advantages, clipped * advantages), mask)


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """印のある所の平均(`mask` を省けば全体の平均)。"""
    return values.mean() if mask is None else values[mask].mean()


def _require_discounts(gamma: float, lam: float) -> None:
    for name, value in (("gamma", gamma), ("lam", lam)):
        if not 0 <= require_number(value, name) <= 1:
            raise ValueError(f"{name} は 0 以上 1 以下にしてください: {value}")


def _require_clip(clip: float) -> None:
    if require_number(clip, "clip") <= 0:
        raise ValueError(f"clip は 0 より大きい数にしてください: {clip}")


# ---- 学習 -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class PPOConfig:
    """PPO の設定。

    Attributes:
        beta: KL に掛ける係数 β。
        iterations: 答えを書き直す回数。
        rollouts: 1 反復で書く答えの数。
        epochs, minibatch: 同じ答えを使う周の数と、1 ステップの答えの数。
        clip, gamma, lam: ε、γ、λ。
        rate: 学習率。
        value_weight, entropy_weight: 式 (9) の c_1 と c_2。
        ptx_weight: Ouyang+ 2022, 式 (2) の γ(事前学習の損失の重み、PPO-ptx)。

    Raises:
        TypeError, ValueError: 値が範囲の外のとき。
    """

    beta: float = 0.1
    iterations: int = 50
    rollouts: int = 128
    epochs: int = 2
    minibatch: int = 64
    clip: float = 0.2
    gamma: float = 1.0
    lam: float = 0.95
    rate: float = 1e-3
    value_weight: float = 0.5
    entropy_weight: float = 0.0
    ptx_weight: float = 0.0

    def __post_init__(self) -> None:
        for name in ("iterations", "rollouts", "epochs", "minibatch"):
            require_int(getattr(self, name), name, minimum=1)
        for name in ("beta", "rate", "value_weight", "entropy_weight", "ptx_weight"):
            require_number(getattr(self, name), name, 0)
        _require_clip(require_rate(self.clip, "clip"))
        _require_discounts(self.gamma, self.lam)

    @property
    def steps(self) -> int:
        """重みを動かす回数。"""
        return self.iterations * self.epochs * -(-self.rollouts // self.minibatch)


class ActorCritic(nn.Module):
    """方策 π と、位置ごとの価値 V を答えるモデル。

    ドロップアウトは、答えを書くときも学習でも使わない。使うと、重みが同じでも ρ_t が 1 にならない。
    """

    def __init__(self, policy: GPT, critic: RewardModel) -> None:
        super().__init__()
        self.policy, self.critic = policy, critic

    def train(self, mode: bool = True) -> Self:
        """`mode` によらず、評価の状態にする。"""
        return super().train(False)


class Rollouts:
    """回し始めるたびに今の方策で答えを書き、それを何周か、ミニバッチで返す(1 周 = 1 反復)。"""

    def __init__(
        self,
        model: ActorCritic,
        reference: GPT,
        *,
        reward: Reward,
        gold: Reward | None,
        prompts: Tensor,
        max_new_tokens: int,
        stop: int | None,
        config: PPOConfig,
        generator: torch.Generator,
    ) -> None:
        self.model, self.reference, self.reward, self.gold = model, reference, reward, gold
        self.prompts, self.max_new_tokens, self.stop = prompts, max_new_tokens, stop
        self.config, self.generator = config, generator
        self.history: list[dict[str, float]] = []

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        collected = self.collect()
        for _ in range(self.config.epochs):
            order = torch.randperm(self.config.rollouts, generator=self.generator)
            for rows in order.split(self.config.minibatch):
                yield {name: value[rows] for name, value in collected.items()}

    @torch.no_grad()
    def collect(self) -> dict[str, Tensor]:
        """答えを書いて、報酬・アドバンテージ・価値の目標を求め、`history` に 1 件を足す。"""
        config, policy = self.config, self.model.policy
        start = len(self.history) * config.rollouts
        rows = (start + torch.arange(config.rollouts)) % len(self.prompts)
        ids, mask = answers(
            policy, self.prompts[rows], self.max_new_tokens,
            generator=self.generator, stop=self.stop,
        )  # fmt: skip
        scores = self.reward(ids, mask)
        require_finite(scores, "reward", f"PPO の {len(self.history) + 1} 反復目、答えの ")
        record = {
            "iteration": len(self.history) + 1,
            "proxy": float(scores.double().mean()),
            "kl": float(kl_divergence(policy, self.reference, ids, mask).mean()),
        }
        if self.gold is not None:
            gold = self.gold(ids, mask)
            require_finite(gold, "gold")
            record["gold"] = float(gold.double().mean())
        self.history.append(record)

        log_probs = token_log_probs(policy, ids, mask)
        ref_log_probs = token_log_probs(self.reference, ids, mask)
        chosen = mask[:, 1:]
        scores = scores.to(log_probs)
        rewards = token_rewards(scores, log_probs, ref_log_probs, chosen, config.beta)
        values = self.model.critic.scores(ids[:, :-1])
        gains = advantages(rewards, values, config.gamma, config.lam, chosen)
        spread, mean = torch.std_mean(gains[chosen])
        return {
            "ids": ids, "mask": chosen, "log_probs": log_probs, "targets": gains + values,
            "advantages": (gains - mean) / (spread + 1e-8),
        }  # fmt: skip


def train_ppo(
    policy: GPT,
    reward: Reward,
    prompts: Tensor,
    max_new_tokens: int,
    config: PPOConfig | None = None,
    *,
    gold: Reward | None = None,
    stop: int | None = None,
    pretraining: Tensor | None = None,
    seed: int = 0,
    **options: Any,
) -> tuple[GPT, list[dict[str, float]]]:
    """`policy` の写しを PPO で動かし、動かした方策と、反復ごとの記録を返す。

    記録は iteration(1 から)・proxy(`reward` の平均)・kl(元の方策からの KL [nat])・gold で、どれも
    その反復で動かす前の方策が書いた答えから測る。最後に、学習を終えた方策の 1 件を足す。

    Args:
        policy: 元の方策 π_ref。重みは変えない。
        reward: 上げたい報酬(報酬モデルなど)。RewardModel なら、その写しから価値を学び始める。
        prompts: 書き出し (P, T)。反復ごとに順に使い、尽きたら初めに戻る。
        max_new_tokens: 答えの長さの上限。
        config: 設定。
        gold: 記録するだけの、本当の報酬。
        stop: 答えの終わりの id。
        pretraining: `ptx_weight` を使うときの、事前学習の文 (M, T)。
        seed: 乱数の種。
        options: train に渡すもの。

    Raises:
        TypeError, ValueError: 引数が誤っているとき。報酬が NaN か無限大のとき(反復の番号を挙げる)。
    """
    config = PPOConfig() if config is None else config
    if (config.ptx_weight > 0) != (pretraining is not None):
        raise ValueError(
            "pretraining(事前学習の文)と、正の ptx_weight は、両方を渡すか両方を省いてください: "
            f"ptx_weight = {config.ptx_weight}"
        )
    policy.require_ids(prompts, name="prompts")
    generator = seed_everything(seed)
    reference = policy.eval()
    critic = reward if isinstance(reward, RewardModel) else RewardModel(policy)
    model = ActorCritic(copy.deepcopy(policy), copy.deepcopy(critic)).requires_grad_(True)
    rollouts = Rollouts(
        model, reference, reward=reward, gold=gold, prompts=prompts, stop=stop,
        max_new_tokens=max_new_tokens, config=config, generator=generator,
    )  # fmt: skip

    def loss(model: ActorCritic, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        ids, mask = batch["ids"], batch["mask"]
        log_p = log_distributions(model.policy, ids)  # (B, T - 1, V)
        new = log_p.gather(-1, ids[:, 1:, None])[..., 0]
        surrogate = ppo_loss(
            new[mask], batch["log_probs"][mask], batch["advantages"][mask], config.clip
        )
        values = model.critic.scores(ids[:, :-1])
        value_loss = masked_mean((values - batch["targets"]) ** 2, mask)
        entropy = masked_mean(-(log_p.exp() * log_p).sum(dim=-1), mask)
        total = surrogate + config.value_weight * value_loss - config.entropy_weight * entropy
        if pretraining is not None:
            rows = torch.randint(len(pretraining), (len(ids),), generator=generator)
            total = total + config.ptx_weight * next_token_loss(model.policy, pretraining[rows])
        return total, {"value_loss": value_loss.item(), "entropy": entropy.item()}

    settings: dict[str, Any] = {
        "rate": config.rate, "clip": 1.0, "progress": False, "generators": [generator],
    }  # fmt: skip
    train(model, rollouts, loss, steps=config.steps, **{**settings, **options})
    rollouts.collect()
    return model.policy, rollouts.history
