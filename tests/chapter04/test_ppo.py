"""chapter04.ppo: 手計算・全数の列挙との一致、切り詰めた所の勾配、詰めもの、小さな学習。"""

import copy
import math
from dataclasses import replace

import pytest
import torch

from chapter04 import ppo
from chapter04.dpo import optimal_policy
from chapter04.ppo import (
    ActorCritic,
    PPOConfig,
    Rollouts,
    advantages,
    masked_mean,
    ppo_loss,
    token_rewards,
    train_ppo,
)
from chapter04.preferences import kl_divergence, token_log_probs
from chapter04.reward_model import RewardModel
from tests.chapter04.test_preferences import every_answer, gpt


def tensor(rows):
    return torch.tensor(rows, dtype=torch.double)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


# ---- トークンごとの報酬 ----------------------------------------------------------------------

MASK = torch.tensor([[False, True, True, True], [False, True, False, False]])


def test_token_rewards_by_hand():
    """β = 0.5。2 行目の答えは 1 個で終わるので、点もそこに付く。"""
    log_probs = tensor([[-9, -1, -2, -3], [-9, -1, -9, -9]])
    reference = tensor([[-7, -2, -2, -1], [-7, -3, -7, -7]])
    rewards = token_rewards(tensor([10, 20]), log_probs, reference, MASK, 0.5)
    assert rewards.tolist() == [[0, -0.5, 0, 11], [0, 19, 0, 0]]


def test_token_rewards_sum_to_the_penalised_reward():
    """和は R(x, y) = r(x, y) - β log π(y|x)/π_ref(y|x)。"""
    scores, log_probs, reference = random(2), random(2, 4, seed=1), random(2, 4, seed=2)
    rewards = token_rewards(scores, log_probs, reference, MASK, 0.3)
    ratio = ((log_probs - reference) * MASK).sum(1)
    torch.testing.assert_close(rewards.sum(1), scores - 0.3 * ratio)


def test_token_rewards_refuse_bad_input():
    zeros = torch.zeros(2, 4)
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match=r"scores は有限.*\[1\] 番目"):
            token_rewards(torch.tensor([0.0, bad]), zeros, zeros, MASK, 0.1)
    with pytest.raises(ValueError, match="揃えて"):
        token_rewards(torch.zeros(3), zeros, zeros, MASK, 0.1)
    with pytest.raises(ValueError, match="beta は 0 以上"):
        token_rewards(torch.zeros(2), zeros, zeros, MASK, -0.1)
    with pytest.raises(ValueError, match="mask の 1 行目に、答えの印"):
        token_rewards(torch.zeros(2), zeros, zeros, MASK & torch.tensor([[True], [False]]), 0.1)


# ---- アドバンテージ ---------------------------------------------------------------------------


def test_advantages_by_hand():
    """r = (1, 0, 2)、V = (0.5, 1, 1.5)、γ = 0.5、λ = 0.5。

    δ_3 = 2 - 1.5 = 0.5、δ_2 = 0 + 0.75 - 1 = -0.25、δ_1 = 1 + 0.5 - 0.5 = 1
    A_3 = 0.5、A_2 = -0.25 + 0.25 × 0.5 = -0.125、A_1 = 1 - 0.25 × 0.125 = 0.96875
    """
    result = advantages(tensor([[1, 0, 2]]), tensor([[0.5, 1, 1.5]]), 0.5, 0.5)
    assert result.tolist() == [[0.96875, -0.125, 0.5]]


@pytest.mark.parametrize(("gamma", "lam"), [(0.9, 0.8), (1.0, 1.0), (0.7, 0.0), (1.0, 0.95)])
def test_advantages_equal_the_sum_of_residuals(gamma, lam):
    """Σ_l (γλ)^l δ_{t+l} を素直に足し上げたもの。λ = 1 は割引和 - V、λ = 0 は δ。"""
    rewards, values = random(3, 6), random(3, 6, seed=1)
    ours = advantages(rewards, values, gamma, lam)
    for b in range(3):
        r, v = rewards[b].tolist(), [*values[b].tolist(), 0.0]
        delta = [r[t] + gamma * v[t + 1] - v[t] for t in range(6)]
        for t in range(6):
            plain = sum((gamma * lam) ** k * delta[t + k] for k in range(6 - t))
            assert math.isclose(float(ours[b, t]), plain, rel_tol=1e-9, abs_tol=1e-12)
            if lam == 1:
                returns = sum(gamma**k * r[t + k] for k in range(6 - t))
                assert math.isclose(float(ours[b, t]), returns - v[t], abs_tol=1e-9)
            if lam == 0:
                assert math.isclose(float(ours[b, t]), delta[t], abs_tol=1e-12)


def test_padding_and_prompt_do_not_change_the_advantages():
    """答えだけを切り出したときと同じで、答えでない所は 0。"""
    rewards, values = random(2, 5), random(2, 5, seed=1)
    mask = torch.tensor([[False, True, True, True, False], [True, True, False, False, False]])
    ours = advantages(rewards, values, 0.9, 0.7, mask)
    for b, span in enumerate((slice(1, 4), slice(0, 2))):
        alone = advantages(rewards[b : b + 1, span], values[b : b + 1, span], 0.9, 0.7)
        torch.testing.assert_close(ours[b : b + 1, span], alone)
    assert ours[~mask].abs().max() == 0


def test_advantages_refuse_bad_input():
    zeros = torch.zeros(2, 3)
    for gamma, lam in ((1.1, 0.5), (0.5, -0.1)):
        with pytest.raises(ValueError, match="0 以上 1 以下"):
            advantages(zeros, zeros, gamma, lam)
    with pytest.raises(ValueError, match="同じ形"):
        advantages(zeros, zeros[:, 1:], 1.0, 1.0)
    with pytest.raises(ValueError, match="rewards は有限"):
        advantages(zeros * math.nan, zeros, 1.0, 1.0)
    with pytest.raises(ValueError, match="values は有限"):
        advantages(zeros, zeros + math.inf, 1.0, 1.0)


# ---- 切り詰めた目的関数 -----------------------------------------------------------------------


def test_ppo_loss_by_hand():
    """ε = 0.2。(ρ, A) = (1.5, 2) → 2.4、(0.5, 2) → 1、(1.5, -1) → -1.5、(0.5, -1) → -0.8。"""
    old = tensor([-1.0, -2.0, -3.0, -4.0])
    new = old + tensor([1.5, 0.5, 1.5, 0.5]).log()
    gains = tensor([2, 2, -1, -1])
    loss = ppo_loss(new, old, gains, 0.2)
    assert math.isclose(float(loss), -(2.4 + 1 - 1.5 - 0.8) / 4)
    mask = torch.tensor([True, False, False, True])
    assert math.isclose(float(ppo_loss(new, old, gains, 0.2, mask)), -(2.4 - 0.8) / 2)


@pytest.mark.parametrize(
    ("ratio", "gain", "moves"),
    [
        (1.3, 1.0, False), (1.1, 1.0, True), (0.9, 1.0, True), (0.5, 1.0, True),
        (0.7, -1.0, False), (0.9, -1.0, True), (1.1, -1.0, True), (1.5, -1.0, True),
    ],
)  # fmt: skip
def test_gradient_vanishes_only_beyond_the_clip_in_its_own_direction(ratio, gain, moves):
    """良い行動は 1 + ε を、悪い行動は 1 - ε を越えたら動かさない。戻すほうへは動く。"""
    new = tensor([math.log(ratio)]).requires_grad_()
    loss = ppo_loss(new, tensor([0.0]), tensor([gain]), 0.2)
    (grad,) = torch.autograd.grad(loss, new)
    assert math.isclose(float(grad), -ratio * gain if moves else 0.0, abs_tol=1e-12)


def test_ppo_loss_refuses_bad_input():
    zeros = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="形を揃えて"):
        ppo_loss(zeros, zeros, zeros[0], 0.2)
    with pytest.raises(ValueError, match="clip は 0 より大きい"):
        ppo_loss(zeros, zeros, zeros, 0.0)


@pytest.mark.parametrize("beta", [0.0, 0.7])
def test_expected_gradient_is_the_exact_policy_gradient(beta):
    """すべての答え (3^3 通り) にわたる推定の期待値が、E[r] - β KL の勾配に等しい。

    λ = 1 なら、価値 V が何であっても(状態だけで決まるかぎり)偏らない。
    """
    policy, reference = gpt(0), gpt(1)
    ids, mask = every_answer([2], 3)
    chosen = mask[:, 1:]
    scores = random(27, seed=3)
    log_probs = token_log_probs(policy, ids, mask)
    log_ref = token_log_probs(reference, ids, mask).detach()
    p = log_probs.sum(1).exp()
    exact = (p * (scores - beta * (log_probs - log_ref).sum(1))).sum()
    weights = [w for w in policy.parameters() if w.requires_grad]
    wanted = torch.autograd.grad(exact, weights, retain_graph=True, allow_unused=True)

    values = RewardModel(gpt(2)).double().scores(ids[:, :-1]).detach()
    old = log_probs.detach()
    rewards = token_rewards(scores, old, log_ref, chosen, beta)
    gains = advantages(rewards, values, 1.0, 1.0, chosen)
    # 平均を π(y) の重みの和に直す(ρ = 1 の近くでは、損失はアドバンテージについて線形)
    loss = ppo_loss(log_probs, old, gains * p.detach()[:, None] * gains.numel(), 0.2, chosen)
    got = torch.autograd.grad(-loss, weights, allow_unused=True)
    assert sum(float(w.abs().sum()) for w in wanted if w is not None) > 0.1
    for one, other in zip(got, wanted, strict=True):
        if other is not None:
            torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-7)


# ---- 学習 -----------------------------------------------------------------------------------

SMALL = PPOConfig(iterations=3, rollouts=8, minibatch=4, epochs=2, rate=1e-2)


def count_twos(ids, mask):
    return ((ids == 2) & mask).sum(1).double()


def test_rollouts_hold_normalised_advantages_of_the_answers():
    policy, critic = gpt(0, scale=1.0), RewardModel(gpt(1, scale=1.0)).double()
    model = ActorCritic(policy, critic)
    generator = torch.Generator().manual_seed(0)
    config = replace(SMALL, beta=0.3, rollouts=50, lam=0.6)
    rollouts = Rollouts(
        model, gpt(2, scale=1.0), reward=count_twos, gold=count_twos, stop=2,
        prompts=torch.tensor([[0], [1]]), max_new_tokens=5, config=config, generator=generator,
    )  # fmt: skip
    batch = rollouts.collect()
    mask = batch["mask"]
    ids = batch["ids"]
    assert ids[:, 0].tolist() == [0, 1] * 25
    assert not mask.all()
    full = torch.cat([torch.zeros(50, 1, dtype=torch.bool), mask], 1)
    old = token_log_probs(policy, ids, full)
    torch.testing.assert_close(batch["log_probs"], old.detach())
    ref = token_log_probs(gpt(2, scale=1.0), ids, full)
    values = critic.scores(ids[:, :-1]).detach()
    rewards = token_rewards(count_twos(ids, full), old, ref, mask, 0.3).detach()
    gains = advantages(rewards, values, 1.0, 0.6, mask)
    torch.testing.assert_close(batch["targets"][mask], (gains + values)[mask])
    kept = batch["advantages"][mask]
    torch.testing.assert_close(kept, (gains[mask] - gains[mask].mean()) / gains[mask].std())
    (record,) = rollouts.history
    assert record["proxy"] == record["gold"]
    assert math.isclose(record["gold"], float(count_twos(ids, full).mean()))
    assert math.isclose(
        record["kl"], float(kl_divergence(policy, gpt(2, scale=1.0), ids, full).mean())
    )


def test_each_round_uses_every_answer_epochs_times():
    model = ActorCritic(gpt(0), RewardModel(gpt(1)).double())
    config = replace(SMALL, rollouts=7, minibatch=3)
    rollouts = Rollouts(
        model, gpt(0), reward=count_twos, gold=None, stop=None, prompts=torch.tensor([[0]]),
        max_new_tokens=4, config=config, generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    sizes = [len(batch["ids"]) for batch in rollouts]
    assert sizes == [3, 3, 1] * 2
    assert config.steps == 3 * 6
    assert len(rollouts.history) == 1
    assert "gold" not in rollouts.history[0]


def test_model_stays_in_evaluation_mode():
    model = ActorCritic(gpt(0, dropout=0.5), RewardModel(gpt(1, dropout=0.5)))
    model.train()
    assert not any(module.training for module in model.modules())


def test_masked_mean():
    values = tensor([[1, 2], [3, 5]])
    assert float(masked_mean(values, None)) == 2.75
    assert float(masked_mean(values, values > 2)) == 4


def test_nan_reward_is_refused_with_the_iteration():
    calls = []

    def reward(ids, mask):
        calls.append(1)
        scores = torch.zeros(len(ids))
        if len(calls) == 3:
            scores[5] = math.nan
        return scores

    with pytest.raises(
        ValueError, match=r"reward は有限.*PPO の 3 反復目、答えの \[5\] 番目が nan"
    ):
        train_ppo(gpt(scale=1.0).float(), reward, torch.tensor([[0]]), 3, SMALL)


def test_training_keeps_the_reference_and_repeats_for_a_seed():
    policy = gpt(scale=1.0).float()
    before = copy.deepcopy(policy.state_dict())
    runs = [
        train_ppo(
            policy, count_twos, torch.tensor([[0]]), 3, SMALL, gold=count_twos, stop=1, seed=4
        )
        for _ in range(2)
    ]
    for name, value in policy.state_dict().items():
        assert torch.equal(value, before[name])
    history = runs[0][1]
    assert history == runs[1][1]
    assert [record["iteration"] for record in history] == [1, 2, 3, 4]
    assert abs(history[0]["kl"]) < 1e-6
    assert history[-1]["kl"] > 1e-4
    assert any(
        not torch.equal(one, other)
        for one, other in zip(runs[0][0].parameters(), policy.parameters(), strict=True)
    )


def test_the_critic_starts_from_the_reward_model_and_leaves_it_alone():
    policy = gpt(scale=1.0).float()
    reward = RewardModel(gpt(3, scale=1.0).float())
    before = copy.deepcopy(reward.state_dict())
    train_ppo(policy, reward, torch.tensor([[0]]), 3, SMALL)
    for name, value in reward.state_dict().items():
        assert torch.equal(value, before[name])


def test_ppo_converges_to_the_optimal_policy():
    """答えが 1 個なら、π* ∝ π_ref exp(r / β) に近づく。"""
    policy = gpt(scale=6.0).float()
    ref = policy(torch.tensor([[0]]))[0, 0].softmax(-1).detach()
    rewards = torch.tensor([0.0, 1.0, -0.5])
    config = PPOConfig(beta=1.0, iterations=60, rollouts=256, minibatch=256, epochs=2, rate=5e-3)
    tuned, _ = train_ppo(
        policy, lambda ids, mask: rewards[ids[:, 1]], torch.tensor([[0]]), 1, config
    )
    best, _ = optimal_policy(ref, rewards, 1.0)
    got = tuned(torch.tensor([[0]]))[0, 0].softmax(-1).detach()
    assert (ref - best).abs().max() > 0.15
    assert (got - best).abs().max() < 0.06


def test_entropy_and_pretraining_terms_pull_the_policy():
    """エントロピーの項は分布を平らにし、PPO-ptx の項は事前学習の文に近づける。"""
    policy, prompts = gpt(scale=6.0).float(), torch.tensor([[0]])

    def indifferent(ids, mask):
        return torch.zeros(len(ids))

    config = replace(SMALL, beta=0.0, iterations=8, rollouts=32, minibatch=32)
    flat, _ = train_ppo(policy, indifferent, prompts, 3, replace(config, entropy_weight=1.0))
    texts = torch.tensor([[0, 1, 1, 1]])
    ptx, _ = train_ppo(
        policy, indifferent, prompts, 3, replace(config, ptx_weight=1.0), pretraining=texts
    )

    def entropy(model):
        return float(
            torch.distributions.Categorical(logits=model(prompts)[0, 0].detach()).entropy()
        )

    def likelihood(model):
        return float(token_log_probs(model, texts, texts == 1).detach().sum())

    assert entropy(flat) > entropy(policy) + 0.02
    assert likelihood(ptx) > likelihood(policy) + 0.3
    for wrong in ({"ptx_weight": 1.0}, {}):
        given = None if wrong else texts
        with pytest.raises(ValueError, match="pretraining"):
            train_ppo(policy, indifferent, prompts, 3, PPOConfig(**wrong), pretraining=given)


@pytest.mark.parametrize(
    "wrong",
    [
        {"iterations": 0}, {"beta": -0.1}, {"rate": -1}, {"rollouts": 1.5},
        {"clip": 1.0}, {"clip": 0.0}, {"clip": -0.1},
        {"gamma": 1.1}, {"gamma": -0.1}, {"lam": 1.1}, {"lam": math.nan}, {"lam": "0.9"},
    ],
)  # fmt: skip
def test_config_is_checked(wrong):
    with pytest.raises((TypeError, ValueError), match=next(iter(wrong))):
        PPOConfig(**wrong)


@pytest.mark.parametrize("shape", [(0, 1), (2, 0), (3,)])
def test_prompts_must_not_be_empty(shape):
    """方策を動かす前に断る。"""
    policy = gpt().train()
    with pytest.raises(ValueError, match="prompts の形"):
        train_ppo(policy, count_twos, torch.zeros(shape, dtype=torch.int64), 2, SMALL)
    assert policy.training


def test_integer_rewards_are_counted_as_numbers():
    def as_integers(ids, mask):
        return count_twos(ids, mask).long()

    policy, prompts = gpt(scale=1.0).float(), torch.tensor([[0]])
    runs = [
        train_ppo(policy, reward, prompts, 3, SMALL, gold=reward)[1]
        for reward in (count_twos, as_integers)
    ]
    assert runs[0] == runs[1]
    assert runs[0][-1]["gold"] > 0


def test_prompts_are_taken_in_turn():
    model = ActorCritic(gpt(0, scale=1.0), RewardModel(gpt(1, scale=1.0)).double())
    rollouts = Rollouts(
        model, gpt(2, scale=1.0), reward=count_twos, gold=None, stop=None, max_new_tokens=2,
        prompts=torch.tensor([[0], [1], [2]]), config=replace(SMALL, rollouts=2),
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    turns = [rollouts.collect()["ids"][:, 0].tolist() for _ in range(3)]
    assert turns == [[0, 1], [2, 0], [1, 2]]


def test_critic_start_and_clip_reach_the_training(monkeypatch):
    """価値のモデルは報酬モデルの重みから始まり、設定の clip が損失に届く。"""
    starts, clips, real, loss = [], [], ppo.ActorCritic, ppo.ppo_loss

    def spy(policy, critic):
        starts.append(copy.deepcopy(critic.state_dict()))
        return real(policy, critic)

    monkeypatch.setattr(ppo, "ActorCritic", spy)
    monkeypatch.setattr(ppo, "ppo_loss", lambda *a: clips.append(a[3]) or loss(*a))
    reward, config = RewardModel(gpt(3, scale=1.0).float()), replace(SMALL, iterations=1, clip=0.05)
    train_ppo(gpt(scale=1.0).float(), reward, torch.tensor([[0]]), 2, config)
    assert set(clips) == {0.05}
    assert all(torch.equal(starts[0][name], value) for name, value in reward.state_dict().items())


def test_critic_learns_a_constant_reward(monkeypatch):
    """いつも 2 の報酬(KL なし)なら、価値も 2 に近づく。"""
    kept, real = [], ppo.ActorCritic

    def spy(policy, critic):
        kept.append(real(policy, critic))
        return kept[0]

    monkeypatch.setattr(ppo, "ActorCritic", spy)
    config = PPOConfig(
        beta=0.0, iterations=30, rollouts=16, minibatch=16, epochs=2, rate=2e-2, lam=1.0
    )
    policy = gpt(scale=1.0).float()
    train_ppo(policy, lambda i, k: torch.full((len(i),), 2.0), torch.tensor([[0]]), 2, config)
    with torch.no_grad():
        values = kept[0].critic.scores(torch.tensor([[0, 1], [0, 2]]))
    assert (values - 2).abs().max() < 0.5


def test_gold_reward_must_be_finite():
    def nan(ids, mask):
        return torch.full((len(ids),), math.nan)

    with pytest.raises(ValueError, match="gold は有限の数"):
        train_ppo(gpt(scale=1.0), count_twos, torch.tensor([[0]]), 2, SMALL, gold=nan)
