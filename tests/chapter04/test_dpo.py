"""chapter04.dpo: 素直に書いた式・自動微分・列挙との一致、π* への収束、答えの部分だけの和。"""

import copy
import itertools
import math

import pytest
import torch

from chapter04 import dpo
from chapter04.dpo import (
    dpo_loss,
    implicit_reward,
    optimal_policy,
    sequence_log_probs,
    train_dpo,
)
from chapter04.preferences import Pair, PairBatches, pair_tensors
from tests.chapter04.test_preferences import gpt


def numbers(seed=0, n=6):
    return torch.randn(4, n, generator=torch.Generator().manual_seed(seed)).double()


# ---- 損失 -----------------------------------------------------------------------------------


def test_loss_equals_equation_7():
    pc, pr, rc, rr = numbers()
    plain = 0.0
    for k in range(6):
        ratio = 0.3 * (float(pc[k]) - float(rc[k])) - 0.3 * (float(pr[k]) - float(rr[k]))
        plain -= math.log(1 / (1 + math.exp(-ratio))) / 6
    assert math.isclose(float(dpo_loss(pc, pr, rc, rr, 0.3)), plain)
    assert math.isclose(float(dpo_loss(rc, rr, rc, rr, 0.3)), math.log(2))
    assert float(dpo_loss(*torch.tensor([[-900.0], [0.0], [0.0], [0.0]]), 1.0)) == 900.0


def test_gradient_equals_the_paper():
    """∇L = -β σ(r̂_l - r̂_w) [∇ log π(y_w) - ∇ log π(y_l)] の平均。"""
    pc, pr, rc, rr = numbers(1)
    pc.requires_grad_()
    pr.requires_grad_()
    beta = 0.7
    grads = torch.autograd.grad(dpo_loss(pc, pr, rc, rr, beta), (pc, pr))
    r_w, r_l = beta * (pc - rc).detach(), beta * (pr - rr).detach()
    weight = beta / (1 + torch.exp(r_w - r_l)) / 6
    torch.testing.assert_close(grads[0], -weight)
    torch.testing.assert_close(grads[1], weight)


def test_soft_labels_mix_both_orders():
    pc, pr, rc, rr = numbers(2)
    p = torch.linspace(0.1, 0.9, 6).double()
    plain = sum(
        p[k] * dpo_loss(*(x[k : k + 1] for x in (pc, pr, rc, rr)), 0.5)
        + (1 - p[k]) * dpo_loss(*(x[k : k + 1] for x in (pr, pc, rr, rc)), 0.5)
        for k in range(6)
    )
    torch.testing.assert_close(dpo_loss(pc, pr, rc, rr, 0.5, preferred=p), plain / 6)


def test_implicit_reward_by_hand():
    reward = implicit_reward(torch.tensor([-1.0]), torch.tensor([-3.0]), 0.25)
    assert reward.tolist() == [0.5]


def test_bad_input_is_refused():
    four = numbers()
    with pytest.raises(ValueError, match="beta は 0 より大きい"):
        dpo_loss(*four, 0.0)
    with pytest.raises(ValueError, match="同じ形"):
        dpo_loss(*four[:3], four[3][:2], 0.1)
    with pytest.raises(ValueError, match="1 以上"):
        dpo_loss(*four[:, :0], 0.1)
    with pytest.raises(ValueError, match="beta"):
        train_dpo(gpt(), [Pair([0], [1], [2])], beta=-1.0)
    with pytest.raises(ValueError, match="1 組以上"):
        train_dpo(gpt(), [])
    for pair in (Pair([0], [1], [3]), Pair([0], [7], [1]), Pair([3], [1], [2])):
        with pytest.raises(ValueError, match="ids は 0 以上 3 未満"):
            train_dpo(gpt(), [Pair([0], [1], [2]), pair])
    with pytest.raises(TypeError, match=r"pairs\[1\] には Pair"):
        train_dpo(gpt(), [Pair([0], [1], [2]), ([0], [1], [2])])  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "preferred", [2, -0.1, math.nan, torch.tensor([0.5] * 5 + [1.1]), torch.tensor([0.5] * 5)]
)
def test_preferred_is_a_probability(preferred):
    with pytest.raises(ValueError, match="preferred は 0 以上 1 以下"):
        dpo_loss(*numbers(), 0.1, preferred=preferred)
    assert dpo_loss(*numbers(), 0.1, preferred=0) != dpo_loss(*numbers(), 0.1, preferred=1)


# ---- π* ∝ π_ref exp(r / β) ------------------------------------------------------------------

REF = torch.tensor([0.5, 0.2, 0.2, 0.1], dtype=torch.double)
REWARDS = torch.tensor([0.0, 1.0, -0.5, 2.0], dtype=torch.double)


def test_optimal_policy_by_hand():
    """β = 1 / log 2、報酬が 0 と 1 なら、exp(r / β) は 1 と 2。Z = 0.75 + 0.5 = 1.25。"""
    ref = torch.tensor([[0.75, 0.25], [1.0, 0.0]], dtype=torch.double)
    rewards = torch.tensor([[0.0, 1.0], [0.0, 9.0]], dtype=torch.double)
    best, z = optimal_policy(ref, rewards, 1 / math.log(2))
    torch.testing.assert_close(best, torch.tensor([[0.6, 0.4], [1.0, 0.0]]).double())
    torch.testing.assert_close(z, torch.tensor([1.25, 1.0]).double())


def test_optimal_policy_maximises_reward_minus_kl():
    """最大値は β log Z で、どの分布もこれを超えない。"""
    beta = 0.4
    best, z = optimal_policy(REF, REWARDS, beta)

    def objective(policy):
        return (policy * (REWARDS - beta * (policy / REF).log())).sum(-1)

    torch.testing.assert_close(objective(best), beta * z.log())
    others = torch.distributions.Dirichlet(torch.ones(4).double()).sample((2000,))
    assert (objective(others) < objective(best)).all()
    near = (best.log() + 0.01 * torch.randn(2000, 4).double()).softmax(-1)
    assert (objective(near) <= objective(best)).all()


@pytest.mark.parametrize(
    ("ref", "rewards", "message"),
    [
        (REF, REWARDS[:3], "形を揃えて"),
        (REF * 2, REWARDS, "和が 1"),
        (torch.tensor([1.5, -0.5]), torch.zeros(2), "0 以上"),
        (REF, REWARDS * torch.nan, "有限"),
    ],
)
def test_optimal_policy_refuses_bad_input(ref, rewards, message):
    with pytest.raises(ValueError, match=message):
        optimal_policy(ref, rewards, 1.0)


@pytest.mark.parametrize("beta", [0.3, 2.0])
def test_minimiser_over_all_pairs_is_the_optimal_policy(beta):
    """すべての組と正確な選好の確率から、表の方策を収束させると π* になる。"""
    first, second = (
        torch.tensor(x) for x in zip(*itertools.combinations(range(4), 2), strict=True)
    )
    preferred = torch.sigmoid(REWARDS[first] - REWARDS[second])
    logits = torch.zeros(4, dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [logits], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-16,
        line_search_fn="strong_wolfe",
    )  # fmt: skip
    log_ref = REF.log()

    def closure():
        optimizer.zero_grad()
        log_p = logits.log_softmax(0)
        loss = dpo_loss(
            log_p[first], log_p[second], log_ref[first], log_ref[second], beta, preferred=preferred
        )
        loss.backward()
        return loss

    optimizer.step(closure)
    best, z = optimal_policy(REF, REWARDS, beta)
    torch.testing.assert_close(logits.softmax(0).detach(), best, atol=1e-6, rtol=1e-5)
    # 方策の持つ報酬は、本当の報酬と β log Z だけ違う
    hidden = implicit_reward(logits.log_softmax(0).detach(), log_ref, beta)
    torch.testing.assert_close(hidden, REWARDS - beta * z.log(), atol=1e-5, rtol=1e-5)


# ---- 学習 -----------------------------------------------------------------------------------


def test_sequence_log_probs_count_only_the_answer():
    """答えの部分だけの log π の和を、一文ずつ素直に求めたものと比べる。"""
    policy = gpt()
    pairs = [Pair([0, 1], [2, 1, 0], [1]), Pair([2], [0], [0, 0])]
    ours = sequence_log_probs(policy, pair_tensors(pairs, pad=1))
    for side, got in zip(("chosen", "rejected"), ours, strict=True):
        for k, pair in enumerate(pairs):
            ids = [*pair.prompt, *getattr(pair, side)]
            log_p = policy(torch.tensor([ids]))[0].log_softmax(-1)
            plain = sum(log_p[t - 1, ids[t]] for t in range(len(pair.prompt), len(ids)))
            torch.testing.assert_close(got[k], plain)


def test_training_raises_the_chosen_and_keeps_the_reference():
    policy = gpt(scale=1.0, d_model=16).float()
    before = copy.deepcopy(policy.state_dict())
    every = list(itertools.product(range(3), repeat=3))
    pairs = [
        Pair([0], a, b) for a, b in itertools.permutations(every, 2) if a.count(2) > b.count(2)
    ]
    result = train_dpo(policy, pairs, beta=0.5, steps=30, rate=1e-2)
    for name, value in policy.state_dict().items():
        assert torch.equal(value, before[name])
    assert math.isclose(result.history[0]["loss"], math.log(2), rel_tol=1e-5)
    assert result.history[0]["margin"] == 0
    assert result.history[-1]["accuracy"] > 0.9
    assert not result.model.training
    with torch.no_grad():
        chosen, rejected = sequence_log_probs(result.model, pair_tensors(pairs))
        old = sequence_log_probs(policy, pair_tensors(pairs))
    assert ((chosen - old[0]) - (rejected - old[1])).mean() > 1


MANY = [
    Pair([0], [1, 2], [2, 1]),
    Pair([0], [2], [1]),
    Pair([1], [0, 0], [2]),
    Pair([2], [1], [0, 1]),
]


@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_history_is_the_loss_and_margin_of_its_own_beta(beta):
    """凍らせた方策からでも学習し、記録は、その β での損失・差・正答率(同点は誤り)。"""
    policy, tensors = gpt(scale=1.0).requires_grad_(False), pair_tensors(MANY)
    one, two = (train_dpo(policy, MANY, beta=beta, steps=n, rate=1e-2) for n in (1, 2))
    with torch.no_grad():
        old, new = (sequence_log_probs(model, tensors) for model in (policy, one.model))
    margin, record = beta * ((new[0] - old[0]) - (new[1] - old[1])), two.history[1]
    assert math.isclose(record["loss"], float(dpo_loss(*new, *old, beta)), rel_tol=1e-6)
    assert math.isclose(record["margin"], float(margin.mean()), rel_tol=1e-6)
    assert math.isclose(record["accuracy"], float((margin > 0).double().mean()))
    assert two.history[0]["accuracy"] == 0


def test_reference_is_measured_without_dropout(monkeypatch):
    seen = {}

    class Spy(PairBatches):
        def __init__(self, *arguments, extra, **options):
            seen.update(extra)
            super().__init__(*arguments, extra=extra, **options)

    monkeypatch.setattr(dpo, "PairBatches", Spy)
    policy = gpt(scale=1.0, dropout=0.5).train()
    train_dpo(policy, MANY, steps=1)
    with torch.no_grad():
        expected = sequence_log_probs(policy.eval(), pair_tensors(MANY))
    torch.testing.assert_close((seen["ref_chosen"], seen["ref_rejected"]), expected)
