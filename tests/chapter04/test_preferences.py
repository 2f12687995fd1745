"""chapter04.preferences: 手計算・全数の列挙との一致、ラベルの確率、答えの印、入力の検査。"""

import itertools
import math

import pytest
import torch

from chapter04 import preferences
from chapter04.gpt import GPT, GPTConfig
from chapter04.preferences import (
    DIGITS,
    LENGTH,
    START,
    Pair,
    PairBatches,
    answers,
    base_policy,
    frontier,
    gold_reward,
    kl_divergence,
    pair_tensors,
    sample_pairs,
    start_prompts,
    strings,
    token_log_probs,
    transitions,
)

V = 3


def gpt(seed=0, vocab_size=V, context=8, scale=8.0, **changes):
    """分布に偏りが付くように重みを大きくした、倍精度の小さな GPT。"""
    torch.manual_seed(seed)
    settings = {"d_model": 8, "n_heads": 2, "n_layers": 1, "dropout": 0.0, **changes}
    model = GPT(GPTConfig(vocab_size=vocab_size, context=context, **settings)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(scale)
    return model.eval()


def every_answer(prompt, length, vocabulary=V):
    """書き出しに続く、長さ `length` のすべての答えの (ids, mask)。"""
    rows = [[*prompt, *a] for a in itertools.product(range(vocabulary), repeat=length)]
    ids = torch.tensor(rows)
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[:, : len(prompt)] = False
    return ids, mask


# ---- 選好の組 -------------------------------------------------------------------------------


def test_pair_keeps_tuples_of_ints():
    pair = Pair(torch.tensor([1]), [2, 3], (4,))
    assert (pair.prompt, pair.chosen, pair.rejected) == ((1,), (2, 3), (4,))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (([], [1], [2]), "prompt には 1 個以上"),
        (([0], [], [2]), "chosen には 1 個以上"),
        (([0], [1], []), "rejected には 1 個以上"),
        (([0], [1, 2], (1, 2)), "違う答え"),
        (([0], [1], [-2]), "rejected は 0 以上"),
    ],
)
def test_pair_refuses_empty_equal_and_negative(given, message):
    with pytest.raises(ValueError, match=message):
        Pair(*given)


@pytest.mark.parametrize("given", [([0], "12", [2]), ([0], [1.5], [2]), (0, [1], [2])])
def test_pair_refuses_other_types(given):
    with pytest.raises(TypeError, match="渡してください"):
        Pair(*given)


PAIRS = [Pair([7], [1, 2, 3], [4]), Pair([8, 9], [5], [6, 0])]


def test_pair_tensors_by_hand():
    """書き出しの印は False、答えは True、詰めものは False。左右とも同じ幅になる。"""
    batch = pair_tensors(PAIRS, pad=10)
    assert batch["chosen"]["ids"].tolist() == [[7, 1, 2, 3], [8, 9, 5, 10]]
    assert batch["chosen"]["mask"].int().tolist() == [[0, 1, 1, 1], [0, 0, 1, 0]]
    assert batch["rejected"]["ids"].tolist() == [[7, 4, 10, 10], [8, 9, 6, 0]]
    assert batch["rejected"]["mask"].int().tolist() == [[0, 1, 0, 0], [0, 0, 1, 1]]
    with pytest.raises(ValueError, match="1 組以上"):
        pair_tensors([])
    with pytest.raises(TypeError, match=r"pairs\[2\] には Pair.*\(\[7\], \[1\], \[4\]\)"):
        pair_tensors([*PAIRS, ([7], [1], [4])])  # pyright: ignore[reportArgumentType]


def test_batches_visit_every_pair_once_with_its_own_extra():
    pairs = [Pair([k], [1], [2]) for k in range(7)]
    batches = PairBatches(
        pairs, 3, torch.Generator().manual_seed(0), extra={"number": torch.arange(7)}
    )
    orders = []
    for _ in range(2):
        seen = list(batches)
        assert [len(batch["number"]) for batch in seen] == [3, 3, 1]
        for batch in seen:
            for side, answer in (("chosen", 1), ("rejected", 2)):
                expected = [[k, answer] for k in batch["number"].tolist()]
                assert batch[side]["ids"].tolist() == expected
        orders.append(torch.cat([batch["number"] for batch in seen]).tolist())
        assert sorted(orders[-1]) == list(range(7))
    assert orders[0] != orders[1]


@pytest.mark.parametrize(("temperature", "expected"), [(1.0, 0.7311), (0.5, 0.8808)])
def test_labels_follow_bradley_terry(temperature, expected):
    """報酬の差が 1 の組では、σ(1 / 温度) の割合で報酬の高いほうが好まれる。"""
    policy = gpt(vocab_size=6, scale=1.0)
    pairs = sample_pairs(
        policy, torch.tensor([[0], [1]]), 2500, lambda ids, mask: (ids[:, 1] < 3).double(),
        max_new_tokens=2, temperature=temperature, generator=torch.Generator().manual_seed(1),
    )  # fmt: skip
    assert [pair.prompt for pair in pairs[:4]].count((0,)) >= 1
    assert {pair.prompt for pair in pairs} == {(0,), (1,)}
    differ = [pair for pair in pairs if (pair.chosen[0] < 3) != (pair.rejected[0] < 3)]
    right = sum(pair.chosen[0] < 3 for pair in differ) / len(differ)
    assert len(pairs) == 2500
    assert abs(right - expected) < 0.035


def test_zero_temperature_never_errs_and_drops_ties():
    generator = torch.Generator().manual_seed(0)
    pairs = sample_pairs(
        gpt(vocab_size=11, context=11, scale=1.0), start_prompts(1), 60, gold_reward,
        max_new_tokens=LENGTH, temperature=0, generator=generator,
    )  # fmt: skip
    golds = [
        [float(gold_reward(side["ids"], side["mask"])[k]) for side in pair_tensors(pairs).values()]
        for k in range(60)
    ]
    assert len(pairs) == 60
    assert all(chosen > rejected for chosen, rejected in golds)


def test_answers_end_at_the_stop_in_pairs():
    pairs = sample_pairs(
        gpt(scale=1.0), torch.tensor([[0]]), 40, lambda ids, mask: ids.sum(1).double(),
        max_new_tokens=6, generator=torch.Generator().manual_seed(0), stop=2,
    )  # fmt: skip
    written = [answer for pair in pairs for answer in (pair.chosen, pair.rejected)]
    assert any(len(answer) < 6 for answer in written)
    for answer in written:
        assert 2 not in answer[:-1]
        assert len(answer) == 6 or answer[-1] == 2


def test_sample_pairs_refuses_a_policy_that_always_writes_the_same():
    with pytest.raises(RuntimeError, match="違う答えの組"):
        sample_pairs(gpt(vocab_size=1), torch.tensor([[0]]), 3, gold_reward, max_new_tokens=2)


@pytest.mark.parametrize("shape", [(0, 1), (2, 0)])
def test_sample_pairs_refuses_empty_prompts(shape):
    prompts = torch.zeros(shape, dtype=torch.int64)
    with pytest.raises(ValueError, match="prompts の形"):
        sample_pairs(gpt(), prompts, 3, gold_reward, max_new_tokens=2)


# ---- 答えと、その対数確率 --------------------------------------------------------------------


def test_mask_covers_the_answer_up_to_the_first_stop():
    prompts = torch.tensor([[2, 0], [1, 2]]).repeat(20, 1)  # 書き出しの stop は数えない
    ids, mask = answers(
        gpt(scale=1.0), prompts, 5, generator=torch.Generator().manual_seed(0), stop=2
    )
    lengths = set()
    for row, keep in zip(ids.tolist(), mask.tolist(), strict=True):
        answer = row[2:]
        length = answer.index(2) + 1 if 2 in answer else 5
        assert keep == [False] * 2 + [True] * length + [False] * (5 - length)
        lengths.add(length)
    assert len(lengths) > 2


def test_token_log_probs_equal_categorical_and_sum_to_one():
    """torch.distributions と一致し、すべての答えの確率の和は 1。"""
    model = gpt()
    ids, mask = every_answer([1, 0], 3)
    ours = token_log_probs(model, ids, mask)
    plain = torch.distributions.Categorical(logits=model(ids)[:, :-1]).log_prob(ids[:, 1:])
    plain[:, 0] = 0  # 書き出しの 2 個目は答えではない
    torch.testing.assert_close(ours, plain)
    assert math.isclose(float(ours.detach().sum(1).exp().sum()), 1.0, abs_tol=1e-12)
    mask[:, -1] = False
    assert token_log_probs(model, ids, mask)[:, -1].abs().max() == 0


def test_kl_divergence_is_unbiased_by_enumeration():
    """Σ_y π(y) kl(y) = Σ_y π(y) log π(y)/π_ref(y)。"""
    policy, reference = gpt(0), gpt(1)
    ids, mask = every_answer([2], 3)
    log_p = token_log_probs(policy, ids, mask).sum(1)
    log_q = token_log_probs(reference, ids, mask).sum(1)
    exact = (log_p.exp() * (log_p - log_q)).sum()
    ours = (log_p.exp() * kl_divergence(policy, reference, ids, mask)).sum()
    assert exact > 0.03
    torch.testing.assert_close(ours, exact)
    assert kl_divergence(policy, policy, ids, mask).abs().max() == 0
    mask[:, 2:] = False  # 一つ目のトークンだけが答えなら、その分布どうしの KL
    first = [
        torch.distributions.Categorical(logits=m(ids[:1, :1])[0, 0]) for m in (policy, reference)
    ]
    torch.testing.assert_close(
        kl_divergence(policy, reference, ids, mask)[0], torch.distributions.kl_divergence(*first)
    )


# ---- 数字の列の世界 ---------------------------------------------------------------------------


def test_gold_reward_by_hand():
    """等しい隣は数えない。答えと書き出しの境目、答えの後も数えない。"""
    ids = torch.tensor([
        [START, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9],
        [START, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0],
        [START, 1, 1, 2, 2, 0, 5, 5, 9, 3, 4],
    ])  # fmt: skip
    mask = ids != START
    assert gold_reward(ids, mask).tolist() == [9, 0, 4]
    mask[:, 5:] = False
    assert gold_reward(ids, mask).tolist() == [3, 0, 1]
    low_start = torch.tensor([[0, 5, 6]])
    assert gold_reward(low_start, torch.tensor([[False, True, True]])).tolist() == [1]


def test_transitions_by_hand():
    table = transitions(3.0)
    torch.testing.assert_close(table.sum(1), torch.ones(DIGITS).double())
    assert math.isclose(float(table[4, 5] / table[4, 4]), math.exp(-1 / 3))
    assert math.isclose(float(table[4, 0] / table[4, 7]), math.exp(-1 / 3))
    with pytest.raises(ValueError, match="正の数"):
        transitions(0)


def test_strings_follow_the_table():
    ids = strings(torch.Generator().manual_seed(0), 20_000)
    assert ids.shape == (20_000, 1 + LENGTH)
    assert (ids[:, 0] == START).all()
    first = ids[:, 1].bincount(minlength=DIGITS) / len(ids)
    assert (first - 0.1).abs().max() < 0.01
    pairs = (ids[:, 1:-1] * DIGITS + ids[:, 2:]).flatten().bincount(minlength=100).view(10, 10)
    assert (pairs / pairs.sum(1, keepdim=True) - transitions()).abs().max() < 0.015


def test_frontier_equals_enumeration(monkeypatch):
    """4 桁のすべての列について π* を作り、E[r] と KL を足し上げる。"""
    monkeypatch.setattr(preferences, "LENGTH", 4)
    ids, mask = every_answer([START], 4, DIGITS)
    table = transitions()
    reference = 0.1 * torch.stack([table[ids[:, t], ids[:, t + 1]] for t in (1, 2, 3)]).prod(0)
    rewards = gold_reward(ids, mask)
    points = frontier([2.0, 0.3])
    for beta, (kl, gold) in zip([2.0, 0.3], points, strict=True):
        best = reference * torch.exp(rewards / beta)
        best /= best.sum()
        assert math.isclose(gold, float(best @ rewards), rel_tol=1e-9)
        assert math.isclose(kl, float(best @ (best / reference).log()), rel_tol=1e-9)
    assert points[0][0] < points[1][0]
    assert points[0][1] < points[1][1]
    with pytest.raises(ValueError, match="正の数"):
        frontier([0.0])


def test_base_policy_learns_the_strings_and_repeats_for_a_seed():
    policy = base_policy(0, steps=25, d_model=16, n_layers=1)
    twin = base_policy(0, steps=25, d_model=16, n_layers=1)
    assert not policy.training
    for one, other in zip(policy.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, other)
    ids = strings(torch.Generator().manual_seed(1), 500)
    loss = float(preferences.next_token_loss(policy, ids).detach())
    assert loss < 0.99 * math.log(DIGITS)  # 一様な分布より良い
