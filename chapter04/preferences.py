"""選好の組と、本当の報酬(gold)が分かっている小さな世界。

報酬モデル・PPO・DPO が共に使うもの:

    方策 → 一つの書き出しに答えを二つ → 好まれる確率 σ((g_a - g_b) / 温度) で選ぶ → Pair
    Pair の列 → PairBatches → {"chosen": {"ids", "mask"}, "rejected": {"ids", "mask"}}

`mask` は答えのトークンだけが True である。答えの対数確率も報酬も、この印だけを頼りに求める。

小さな世界は、START に続く 10 桁の数字の列である。本当の報酬は、右隣のほうが大きい組の数(0 から 9)。
人の好みと違って正解を計算できるので、報酬モデルの報酬と食い違っていくところまで見届けられる。
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from chapter04.finetune import pad_rows
from chapter04.generation import generate
from chapter04.gpt import GPT, GPTConfig
from shared.checks import require_int, require_number, shown
from shared.device import seed_everything
from shared.ids import require_ids
from shared.training import to_device, train

DIGITS, START, LENGTH = 10, 10, 10
MIN_TRIES = 64  # 組を作るとき、一度に試す組の数の下限
SPREAD = 3.0  # 隣の数字との差がこのくらい離れると、確率が 1/e になる
Reward = Callable[[Tensor, Tensor], Tensor]  # (ids, mask) (B, T) → 報酬 (B,)


# ---- 選好の組 -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """一つの書き出しへの二つの答えと、好まれたほう。どれも id の列。

    Raises:
        TypeError: id が整数でないとき。
        ValueError: 空の列がある、二つの答えが同じとき。
    """

    prompt: Sequence[int]
    chosen: Sequence[int]
    rejected: Sequence[int]

    def __post_init__(self) -> None:
        for field in fields(self):
            ids = getattr(self, field.name)
            if isinstance(ids, str | bytes) or not hasattr(ids, "__iter__"):
                raise TypeError(f"{field.name} には id の列を渡してください: {shown(ids)}")
            ids = tuple(require_int(one, field.name, minimum=0) for one in ids)
            if not ids:
                raise ValueError(f"{field.name} には 1 個以上の id を渡してください: {shown(ids)}")
            object.__setattr__(self, field.name, ids)
        if self.chosen == self.rejected:
            raise ValueError(
                f"chosen と rejected には違う答えを渡してください: どちらも {shown(self.chosen)}"
            )


def pair_tensors(
    pairs: Sequence[Pair], pad: int = 0, device: torch.device | None = None
) -> dict[str, dict[str, Tensor]]:
    """組を、書き出しと答えをつなぎ、うしろに `pad` を詰めたテンソルにする。

    {"chosen": {"ids": (N, T), "mask": (N, T)}, "rejected": 同じ形}

    Raises:
        TypeError: `Pair` でないものがあるとき。
        ValueError: `pairs` が空のとき。
    """
    if not pairs:
        raise ValueError("pairs に 1 組以上を渡してください: 0 組")
    for i, pair in enumerate(pairs):
        if not isinstance(pair, Pair):
            raise TypeError(f"pairs[{i}] には Pair を渡してください: {shown(pair)}")
    rows = [
        ((*pair.prompt, *answer), (False,) * len(pair.prompt) + (True,) * len(answer))
        for side in ("chosen", "rejected")
        for pair in pairs
        for answer in (getattr(pair, side),)
    ]
    padded = to_device(pad_rows(rows, pad), device or torch.device("cpu"))
    n = len(pairs)
    return {
        "chosen": {name: value[:n] for name, value in padded.items()},
        "rejected": {name: value[n:] for name, value in padded.items()},
    }


class PairBatches:
    """組を無作為に並べ、`batch_size` ずつ返す。1 周ごとに並べ直す。"""

    def __init__(
        self,
        pairs: Sequence[Pair],
        batch_size: int,
        generator: torch.Generator,
        *,
        extra: Mapping[str, Tensor] | None = None,
    ) -> None:
        """引数は、組、1 バッチの組の数、並べる乱数、組ごとの数 {名前: (N,)}(バッチに添える)。

        Raises:
            TypeError, ValueError: `batch_size` が 1 より小さい、組がないとき。
        """
        self.tensors = pair_tensors(pairs)
        self.extra = dict(extra or {})
        self.n, self.generator = len(pairs), generator
        self.batch_size = require_int(batch_size, "batch_size", minimum=1)

    def __iter__(self) -> Iterator[dict[str, dict[str, Tensor] | Tensor]]:
        for rows in torch.randperm(self.n, generator=self.generator).split(self.batch_size):
            batch: dict[str, dict[str, Tensor] | Tensor] = {
                side: {name: value[rows] for name, value in one.items()}
                for side, one in self.tensors.items()
            }
            yield batch | {name: value[rows] for name, value in self.extra.items()}


def require_finite(values: Tensor, name: str, where: str = "") -> None:
    """NaN か無限大があれば断る。

    Raises:
        ValueError: NaN か無限大があるとき(`where` に、学習のどこかを書く)。
    """
    if not values.isfinite().all():
        place = (~values.isfinite()).nonzero()[0].tolist()
        raise ValueError(
            f"{name} は有限の数にしてください: {where}{place} 番目が "
            f"{float(values[tuple(place)])} です"
        )


def sample_pairs(
    policy: GPT,
    prompts: Tensor,
    count: int,
    reward: Reward,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    stop: int | None = None,
) -> list[Pair]:
    """方策の答えを二つずつ、Bradley-Terry のモデルで比べた `count` 組。

    P(a が好まれる) = σ((r_a - r_b) / 温度)。同じ答えどうしの組は作り直す。

    Args:
        policy: 答えを書く方策。
        prompts: 書き出し (P, T)。順に使い、尽きたら初めに戻る。
        count: 組の数。
        reward: 本当の報酬。
        max_new_tokens: 答えの長さの上限。
        temperature: 大きいほど判断が迷う。0 なら迷わず、同点の組は捨てる。
        generator: 乱数の出所。
        stop: 答えの終わりの id(答えに含む)。

    Raises:
        TypeError, ValueError: 引数が範囲の外、報酬に NaN か無限大があるとき。
        RuntimeError: 方策が同じ答えばかり書き(または同点ばかりで)、組を作れないとき。
    """
    require_int(count, "count", minimum=1)
    require_number(temperature, "temperature", 0)
    policy.require_ids(prompts, name="prompts")
    pairs: list[Pair] = []
    while len(pairs) < count:
        before, tries = len(pairs), max(count - len(pairs), MIN_TRIES)
        rows = torch.arange(before, before + tries) % len(prompts)
        ids, mask = answers(
            policy, prompts[rows].repeat(2, 1), max_new_tokens, generator=generator, stop=stop
        )
        rewards = reward(ids, mask)
        require_finite(rewards, "reward")
        difference = torch.sub(*rewards.view(2, tries))
        if temperature:
            p = torch.sigmoid(difference / temperature)
            first = torch.rand(tries, generator=generator).to(p) < p
        else:
            first = difference > 0
        written = [tuple(one[keep].tolist()) for one, keep in zip(ids, mask, strict=True)]
        for k, row in enumerate(rows.tolist()):
            a, b = written[k], written[k + tries]
            if a != b and (temperature or difference[k] != 0):
                pairs.append(Pair(prompts[row].tolist(), *((a, b) if first[k] else (b, a))))
        if len(pairs) == before:
            raise RuntimeError(
                f"違う答えの組を作れませんでした({tries} 組を試しました)。policy がいろいろな答えを"
                "書くか、reward に差が付くかを確かめてください"
            )
    return pairs[:count]


# ---- 答えと、その対数確率 --------------------------------------------------------------------


def answers(
    policy: GPT,
    prompts: Tensor,
    max_new_tokens: int,
    *,
    generator: torch.Generator | None = None,
    stop: int | None = None,
) -> tuple[Tensor, Tensor]:
    """書き出し (B, T) に続けて方策が書いた ids と、答えの印 mask(どちらも (B, T + n))。

    `stop` があれば、最初の `stop` までが答えである(それより後は詰めもの)。
    """
    ids = generate(policy, prompts, max_new_tokens, generator=generator, stop=stop)
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[:, : prompts.shape[1]] = False
    if stop is not None:
        ended = (ids == stop) & mask
        mask &= ended.cumsum(dim=1) - ended.long() == 0  # 自分より前に stop がない
    return ids, mask


def log_distributions(policy: GPT, ids: Tensor) -> Tensor:
    """位置 t + 1 のトークンの、log π(· | x_≤t) (B, T - 1, V)。"""
    return policy(ids[:, :-1]).log_softmax(dim=-1)


def token_log_probs(policy: GPT, ids: Tensor, mask: Tensor) -> Tensor:
    """答えの各トークンの log π(x_{t+1} | x_≤t) (B, T - 1)。答えでない所は 0。

    一文の答えの対数確率は、その和である。

    Raises:
        TypeError, ValueError: id が整数でない、語彙か文脈の外のとき。
    """
    require_ids(ids, "ids", policy.config.vocab_size)
    chosen = log_distributions(policy, ids).gather(-1, ids[:, 1:, None])[..., 0]
    return chosen.masked_fill(~mask[:, 1:], 0.0)


@torch.no_grad()
def kl_divergence(policy: GPT, reference: GPT, ids: Tensor, mask: Tensor) -> Tensor:
    """方策が書いた答え (B, T) ごとの Σ_t KL(π(·|x_≤t) || π_ref(·|x_≤t)) (B,) [nat]。

    平均は KL(π || π_ref) の偏りのない推定になる。位置ごとの KL は語彙の全体で和をとるので、
    log π/π_ref の和よりばらつきが小さい。
    """
    p, q = log_distributions(policy, ids), log_distributions(reference, ids)
    return ((p.exp() * (p - q)).sum(dim=-1) * mask[:, 1:]).sum(dim=1)


# ---- 数字の列の世界 ---------------------------------------------------------------------------


def gold_reward(ids: Tensor, mask: Tensor) -> Tensor:
    """答えの中で、右隣のほうが大きい組の数 (B,)。10 桁なら最大は 9。"""
    rising = ids[:, 1:] > ids[:, :-1]
    return (rising & mask[:, 1:] & mask[:, :-1]).sum(dim=1).double()


def transitions(spread: float = SPREAD) -> Tensor:
    """次の数字の確率 p(j | i) ∝ exp(-|i - j| / spread) (10, 10)、倍精度。前の数字に近いほど高い。

    Raises:
        TypeError, ValueError: `spread` が正の数でないとき。
    """
    if require_number(spread, "spread") <= 0:
        raise ValueError(f"spread は正の数にしてください: {spread}")
    digits = torch.arange(DIGITS, dtype=torch.double)
    return (-(digits[:, None] - digits).abs() / spread).softmax(dim=1)


def strings(generator: torch.Generator, rows: int) -> Tensor:
    """START と、`transitions` に従う 10 桁の数字 (rows, 11)。初めの数字はどれも同じ確率。"""
    ids = torch.full((rows, 1 + LENGTH), START)
    ids[:, 1] = torch.randint(DIGITS, (rows,), generator=generator)
    table = transitions()
    for t in range(2, 1 + LENGTH):
        ids[:, t] = table[ids[:, t - 1]].multinomial(1, generator=generator)[:, 0]
    return ids


class StringBatches:
    """`strings` のバッチを、いつまでも返す。"""

    def __init__(self, generator: torch.Generator, rows: int = 128) -> None:
        self.generator, self.rows = generator, require_int(rows, "rows", minimum=1)

    def __iter__(self) -> Iterator[Tensor]:
        while True:
            yield strings(self.generator, self.rows)


def next_token_loss(model: GPT, ids: Tensor) -> Tensor:
    """言語モデルの損失(次のトークンの交差エントロピーの平均)[nat/トークン]。"""
    return F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())


def base_policy(seed: int = 0, *, steps: int = 200, d_model: int = 32, n_layers: int = 2) -> GPT:
    """`strings` を事前学習した小さな GPT(選好を教える前の方策)。"""
    generator = seed_everything(seed)
    config = GPTConfig(
        vocab_size=DIGITS + 1, context=1 + LENGTH, d_model=d_model, n_heads=4,
        n_layers=n_layers, dropout=0.0,
    )  # fmt: skip
    model = GPT(config)
    train(
        model, StringBatches(generator), next_token_loss, steps=steps, optimizer="adamw",
        rate=lambda step: 5e-3 * min(step / 20, (steps + 1 - step) / steps),
        progress=False, generators=[generator],
    )  # fmt: skip
    return model.eval()


def start_prompts(rows: int) -> Tensor:
    """書き出し START だけの (rows, 1)。"""
    return torch.full((require_int(rows, "rows", minimum=1), 1), START)


def frontier(betas: Sequence[float]) -> list[tuple[float, float]]:
    """`strings` の分布から KL だけ離れて得られる、本当の報酬の上限 (KL, 報酬) を β の順に返す。

    max E[r] - β KL の解 π* ∝ π_ref exp(r / β) の値。r は隣どうしの和なので、正規化定数は行列の積
    Z(β) = u (T ∘ exp([i < j] / β))^9 1 で正確に求まり、E[r] = d log Z / d(1/β)、
    KL = E[r] / β - log Z となる。

    Raises:
        TypeError, ValueError: β が正の数でないとき。
    """
    rising = torch.ones(DIGITS, DIGITS, dtype=torch.double).triu(1)
    points = []
    for beta in betas:
        if require_number(beta, "betas") <= 0:
            raise ValueError(f"betas には正の数を渡してください: {beta}")
        strength = torch.tensor(1 / beta, dtype=torch.double, requires_grad=True)
        tilted = transitions() * torch.exp(strength * rising)
        log_z = torch.linalg.matrix_power(tilted, LENGTH - 1).sum(dim=1).mean().log()
        gold = torch.autograd.grad(log_z, strength)[0]
        points.append((float(gold / beta - log_z.detach()), float(gold)))
    return points
