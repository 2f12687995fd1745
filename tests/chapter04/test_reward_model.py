"""chapter04.reward_model: 手計算・列挙・数値積分との一致、詰めものの無害、小さな学習。"""

import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from chapter04.gpt import GPT, GPTConfig
from chapter04.preferences import Pair, answers, pair_tensors
from chapter04.reward_model import (
    RewardModel,
    accuracy,
    best_of_n,
    best_of_n_kl,
    best_of_n_mean,
    bradley_terry_loss,
    last_position,
    pair_scores,
    ranking_loss,
    train_reward_model,
)
from tests.chapter04.test_preferences import gpt

# ---- 損失 -----------------------------------------------------------------------------------


def test_bradley_terry_by_hand():
    """差が 0 なら log 2、log 3 なら -log(3/4)、-log 3 なら -log(1/4)。"""
    chosen = torch.tensor([1.0, math.log(3), 0.0], dtype=torch.double)
    rejected = torch.tensor([1.0, 0.0, math.log(3)], dtype=torch.double)
    expected = (math.log(2) - math.log(0.75) - math.log(0.25)) / 3
    assert math.isclose(float(bradley_terry_loss(chosen, rejected)), expected)


def test_bradley_terry_equals_cross_entropy_and_ignores_a_shift():
    """exp(r_w) / (exp(r_w) + exp(r_l)) の交差エントロピー。両方に同じ数を足しても変わらない。"""
    chosen, rejected = torch.randn(2, 9, generator=torch.Generator().manual_seed(0)).double()
    plain = F.cross_entropy(torch.stack([chosen, rejected], 1), torch.zeros(9).long())
    torch.testing.assert_close(bradley_terry_loss(chosen, rejected), plain)
    torch.testing.assert_close(bradley_terry_loss(chosen + 5, rejected + 5), plain)
    assert float(bradley_terry_loss(torch.tensor([-500.0]), torch.tensor([500.0]))) == 1000.0


def test_ranking_loss_averages_the_pairs():
    """K 個から作る C(K, 2) 組の平均を、素直な二重の繰り返しと比べる。"""
    scores = torch.randn(3, 5, generator=torch.Generator().manual_seed(1)).double()
    plain = 0.0
    for row in scores.tolist():
        for w, l in itertools.combinations(range(5), 2):  # noqa: E741
            plain -= math.log(1 / (1 + math.exp(row[l] - row[w]))) / 10 / 3
    assert math.isclose(float(ranking_loss(scores)), plain)
    two = scores[:, :2]
    torch.testing.assert_close(ranking_loss(two), bradley_terry_loss(two[:, 0], two[:, 1]))


def test_losses_refuse_bad_shapes():
    with pytest.raises(ValueError, match="同じ形"):
        bradley_terry_loss(torch.zeros(2), torch.zeros(3))
    with pytest.raises(ValueError, match="1 以上"):
        bradley_terry_loss(torch.zeros(0), torch.zeros(0))
    for wrong in (torch.zeros(3), torch.zeros(3, 1), torch.zeros(0, 3)):
        with pytest.raises(ValueError, match="K は 2 以上"):
            ranking_loss(wrong)


# ---- モデル ---------------------------------------------------------------------------------

IDS = torch.tensor([[0, 1, 2, 1], [2, 2, 0, 0]])
MASK = torch.tensor([[False, True, True, True], [False, True, False, False]])


def test_reward_is_the_head_on_the_last_answer_token():
    model = RewardModel(gpt()).double()
    states = model.gpt.hidden(IDS)
    last = torch.stack([states[0, 3], states[1, 1]])
    expected = last @ model.head.weight[0] + model.head.bias[0]
    torch.testing.assert_close(model(IDS, MASK), expected)
    changed = IDS.clone()
    changed[1, 2:] = 1  # 答えの後の詰めものを替えても同じ
    torch.testing.assert_close(model(changed, MASK), expected)
    assert model.scores(IDS).shape == (2, 4)
    torch.testing.assert_close(model.scores(IDS)[0, 3], expected[0])


def test_last_position_skips_holes_and_refuses_rows_without_an_answer():
    holes = torch.tensor([[True, False, True, False], [True, False, False, False]])
    assert last_position(IDS, holes).tolist() == [2, 0]
    with pytest.raises(ValueError, match="1 行目"):
        last_position(IDS, MASK & torch.tensor([[True], [False]]))
    with pytest.raises(ValueError, match="同じ形"):
        last_position(IDS, MASK[:, 1:])
    with pytest.raises(ValueError, match="真偽値"):
        last_position(IDS, MASK.long())
    with pytest.raises(TypeError, match="GPT"):
        RewardModel(torch.nn.Linear(2, 2))


def test_normalize_subtracts_the_mean_only():
    model = RewardModel(gpt()).double()
    before = model(IDS, MASK).detach()
    model.normalize(IDS, MASK)
    torch.testing.assert_close(model(IDS, MASK).detach(), before - before.mean())
    model.normalize(IDS, MASK)  # もう一度でも 0 のまま
    torch.testing.assert_close(model(IDS, MASK).detach(), before - before.mean())
    assert "shift" in model.state_dict()


def test_accuracy_counts_ties_as_half():
    pairs = [
        Pair([0], [2], [1]),
        Pair([0], [1], [2]),
        Pair([0], [1, 2], [2, 1]),
        Pair([0], [2], [0]),
    ]
    assert accuracy(lambda ids, mask: (ids * mask).sum(1).double(), pairs) == 2.5 / 4


def test_training_learns_an_order_from_a_copy():
    """「2 が多いほど好まれる」組から順を学ぶ。元の GPT は変わらず、報酬の平均は 0。"""
    answers_of = [list(one) for one in itertools.product(range(3), repeat=3)]
    pairs = [
        Pair([0], a, b) for a, b in itertools.permutations(answers_of, 2) if a.count(2) > b.count(2)
    ]
    start = gpt(scale=1.0, d_model=16).float()
    before = copy.deepcopy(start.state_dict())
    untrained = accuracy(RewardModel(start), pairs)
    model = train_reward_model(start, pairs, steps=60, rate=1e-2)
    assert accuracy(model, pairs) > max(0.95, untrained)
    assert not model.training
    for name, value in start.state_dict().items():
        assert torch.equal(value, before[name])
    with torch.no_grad():
        scores = torch.cat(pair_scores(model, pair_tensors(pairs)))
    assert abs(float(scores.mean())) < 1e-4
    with pytest.raises(ValueError, match="1 組以上"):
        train_reward_model(start, [])


def test_training_leaves_a_frozen_gpt_alone_and_repeats_for_a_seed():
    """凍らせた GPT はそのまま、写しだけが動く。同じ種からは同じ重みになる。"""
    start = gpt(scale=1.0).float().requires_grad_(False).train()
    before = copy.deepcopy(start.state_dict())
    pairs = [Pair([0], [k % 3, 2], [1, k % 2]) for k in range(12) if [k % 3, 2] != [1, k % 2]]
    one, two, other = (
        train_reward_model(start, pairs, steps=5, batch_size=4, seed=seed) for seed in (3, 3, 4)
    )
    for name, value in start.state_dict().items():
        assert torch.equal(value, before[name])
        assert not torch.equal(one.gpt.state_dict()[name], value), name
    assert start.training
    assert not any(p.requires_grad for p in start.parameters())
    assert all(p.requires_grad for p in one.parameters())
    for name, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[name])
        assert value.dtype == torch.float32
    assert not torch.equal(one.head.weight, other.head.weight)


# ---- best-of-n ------------------------------------------------------------------------------


def test_best_of_n_takes_the_best_of_each_prompt():
    """同じ乱数で書いた n 個ずつの答えから、書き出しごとに最大を選ぶ。"""
    policy, prompts = gpt(scale=1.0), torch.tensor([[0], [1], [2]])

    def reward(ids, mask):
        return (ids * mask * torch.tensor([1, 3, 9, 27, 81])).sum(1).double()

    ids, mask = best_of_n(policy, reward, prompts, 5, 4, generator=torch.Generator().manual_seed(3))
    all_ids, all_mask = answers(
        policy, prompts.repeat_interleave(5, 0), 4, generator=torch.Generator().manual_seed(3)
    )
    every = reward(all_ids, all_mask).view(3, 5)
    assert (every.max(1).values > every[:, 0]).any()
    assert torch.equal(reward(ids, mask), every.max(1).values)
    assert ids[:, 0].tolist() == [0, 1, 2]
    assert mask.sum(1).tolist() == [4, 4, 4]
    with pytest.raises(ValueError, match="n は 1 以上"):
        best_of_n(policy, reward, prompts, 0, 4)


@pytest.mark.parametrize("n", [1, 2, 7, 64])
def test_best_of_n_kl_equals_the_integral(n):
    """同点がなければ、最大の分布の密度は n u^(n-1)。∫ n u^(n-1) log(n u^(n-1)) du と一致する。"""
    u = (torch.arange(400_000).double() + 0.5) / 400_000
    density = n * u ** (n - 1)
    integral = float((density * density.log().clamp(min=-1e300)).nan_to_num().mean())
    assert math.isclose(best_of_n_kl(n), integral, abs_tol=1e-6)


def test_best_of_n_kl_is_an_upper_bound_when_there_are_ties():
    """同じ確率の K 個の答えでは log n - (n-1)/n より小さく、K を増やすと近づく。"""
    gaps = []
    for k in (2, 10, 1000):
        u = torch.arange(k + 1).double() / k
        p = (u**4).diff()  # 4 個の最大が i 番目である確率
        gaps.append(best_of_n_kl(4) - float((p * (p * k).log()).sum()))
    assert gaps[0] > gaps[1] > gaps[2] > 0
    assert gaps[2] < 2e-3
    assert best_of_n_kl(1) == 0
    with pytest.raises(ValueError, match="n は 1 以上"):
        best_of_n_kl(0)


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_best_of_n_mean_equals_all_choices(n):
    proxy = torch.tensor([0.3, -1.0, 2.0, 0.9, 0.1, 1.5])
    gold = torch.tensor([1.0, 5.0, 2.0, 7.0, 3.0, 4.0])
    chosen = [
        gold[max(choice, key=lambda i: proxy[i])].item()
        for choice in itertools.combinations(range(6), n)
    ]
    assert math.isclose(best_of_n_mean(proxy, gold, n), sum(chosen) / len(chosen))


def test_best_of_n_mean_is_stable_and_checked():
    values = torch.linspace(0, 1, 5000)
    assert math.isclose(best_of_n_mean(values, values, 1000), 1000 / 1001, abs_tol=1e-3)
    assert math.isclose(best_of_n_mean(values, values, 5000), 1.0)
    for n in (0, 5001):
        with pytest.raises(ValueError, match="n は"):
            best_of_n_mean(values, values, n)
    with pytest.raises(ValueError, match="同じ形"):
        best_of_n_mean(values, values[:3], 1)


def count_twos(ids, mask):
    return ((ids == 2) & mask).sum(1).double()


def test_best_of_n_ends_at_stop():
    """n 個とも、終わりの印で止まった答えから選ぶ。"""
    policy, prompts = gpt(scale=1.0), torch.tensor([[0], [1], [2]])
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    ids, mask = best_of_n(policy, count_twos, prompts, 4, 6, stop=1, generator=generators[0])
    repeated = prompts.repeat_interleave(4, 0)
    every, marks = answers(policy, repeated, 6, stop=1, generator=generators[1])
    best = count_twos(every, marks).view(3, 4).argmax(1) + 4 * torch.arange(3)
    assert torch.equal(ids, every[best])
    assert torch.equal(mask, marks[best])
    assert not mask[:, 1:].all()


def test_head_starts_at_the_width_of_the_paper():
    """線形写像の初期値の標準偏差は 1/sqrt(d + 1)、定数項は 0。"""
    torch.manual_seed(0)
    config = GPTConfig(vocab_size=3, context=4, d_model=400, n_heads=4, n_layers=1)
    head = RewardModel(GPT(config)).head
    assert float(head.weight.detach().std()) * 401**0.5 == pytest.approx(1, abs=0.15)
    assert not head.bias.any()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_rewards_must_be_finite(bad):
    """NaN は argmax に選ばれ、順の印にもなるので、断る。"""
    broken = torch.tensor([1.0, bad])

    def reward(ids, mask):
        return torch.full((len(ids),), bad)

    with pytest.raises(ValueError, match="報酬 は有限の数"):
        bradley_terry_loss(broken, torch.zeros(2))
    with pytest.raises(ValueError, match="報酬 は有限の数"):
        best_of_n_mean(broken, torch.zeros(2), 1)
    with pytest.raises(ValueError, match="reward は有限の数"):
        best_of_n(gpt(), reward, torch.tensor([[0]]), 2, 2)
    with pytest.raises(ValueError, match="報酬 は有限の数"):
        accuracy(reward, [Pair([0], [1], [2])])
