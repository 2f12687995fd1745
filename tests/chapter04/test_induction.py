"""chapter04.induction: 繰り返しの列、モデル、smeared key、ヘッドの得点と切り落とし、学習。"""

import itertools

import pytest
import torch
from torch import nn

from chapter03.positional import Rotary
from chapter04.gpt import GPT, GPTConfig
from chapter04.induction import (
    LENGTH,
    PERIODS,
    SYMBOLS,
    InductionModel,
    SmearedKeys,
    ablated,
    accuracy,
    copying,
    held_out_rows,
    predictable,
    prefix_matching,
    previous_token,
    repeated_rows,
    train_induction,
)
from shared.transformer import EncoderLayer

EXACT = {"atol": 1e-12, "rtol": 1e-12}


def rows(n=6, seed=0, **changes):
    return repeated_rows(torch.Generator().manual_seed(seed), n, **changes)


def shaken(n_layers=2, seed=0, **changes):
    """定数項も層正規化も乱数にした、倍精度の小さなモデル。"""
    torch.manual_seed(seed)
    sizes = {"symbols": 11, "d_model": 8, "n_heads": 2}
    model = InductionModel(n_layers, **{**sizes, **changes}).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5)
    return model.eval()


class Fixed(nn.Module):
    """注意の重みが決まっている、偽のモデル。"""

    def __init__(self, *maps):
        super().__init__()
        self.maps = maps

    def attention_maps(self, ids):
        return list(self.maps)


# ---- 繰り返しの列 --------------------------------------------------------------------------


def test_rows_repeat_with_their_period_and_never_within_it():
    ids, periods = rows(300)
    assert ids.shape == (300, LENGTH)
    assert ids.dtype == torch.int64
    for row, period in zip(ids.tolist(), periods.tolist(), strict=True):
        assert row[period:] == row[:-period]
        assert len(set(row)) == period
    assert sorted(set(periods.tolist())) == list(range(PERIODS[0], PERIODS[1] + 1))
    assert sorted(ids.unique().tolist()) == list(range(SYMBOLS))


def test_periods_and_blocks_are_uniform():
    ids, periods = rows(6000, length=6, symbols=3, periods=(2, 3))
    assert float((periods == 2).float().mean()) == pytest.approx(0.5, abs=0.03)
    for order in itertools.permutations(range(3)):
        share = (ids[periods == 3][:, :3] == torch.tensor(order)).all(1).float().mean()
        assert float(share) == pytest.approx(1 / 6, abs=0.03)


def test_a_step_is_predictable_if_its_symbol_was_seen_before():
    ids, periods = rows(50)
    found = predictable(ids, periods)
    assert found.shape == (50, LENGTH - 1)
    for row, marks in zip(ids.tolist(), found.tolist(), strict=True):
        assert marks == [row[t] in row[:t] for t in range(LENGTH - 1)]


def test_held_out_rows_depend_on_the_seed_alone():
    assert torch.equal(held_out_rows(3)[0], held_out_rows(3)[0])
    assert not torch.equal(held_out_rows(3)[0], held_out_rows(4)[0])
    assert not torch.equal(held_out_rows(0)[0], rows(256)[0])  # 学習が始めに使う乱数とは違う


def test_accuracy_counts_only_what_can_be_known():
    """写せば当たる位置だけを写し、ほかはわざと外すモデルが満点になる。"""

    def copier(ids, shift=0):
        logits = torch.zeros(*ids.shape, SYMBOLS)
        for b, row in enumerate(ids.tolist()):
            for t, symbol in enumerate(row):
                if symbol in row[:t]:
                    logits[b, t, row[row.index(symbol) + 1 + shift]] = 1
                elif t + 1 < len(row):
                    logits[b, t, (row[t + 1] + 1) % SYMBOLS] = 1
        return logits

    assert accuracy(copier, 0) == 1.0
    assert accuracy(lambda ids: copier(ids, 1), 0) == 0.0


# ---- モデル --------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"ffn": True}, {"smeared": True}])
def test_later_symbols_change_nothing_and_every_earlier_one_matters(options):
    model, ids = shaken(1, **options), torch.tensor([[1, 5, 3, 8, 2]])
    for j in range(5):
        changed = ids.clone()
        changed[0, j] = 9
        different = (model(changed) - model(ids)).abs().amax(-1)[0] > 1e-9
        assert different.tolist() == [t >= j for t in range(5)]


def test_a_block_with_ffn_is_the_pre_ln_layer():
    model = shaken(1, ffn=True)
    twin = EncoderLayer(
        8, 2, 32, 0.0, norm_first=True, activation="gelu_tanh", position=Rotary(4)
    ).double()
    twin.load_state_dict(model.layers[0].state_dict())
    ids = rows(3, symbols=11, periods=(2, 5), length=12)[0]
    hidden = twin(model.embedding(ids), causal=True)
    torch.testing.assert_close(model(ids), model.output(model.norm(hidden)), **EXACT)


def test_attention_only_layers_add_their_attention():
    model, ids = shaken(2), rows(3, symbols=11, periods=(2, 5), length=12)[0]
    x = model.embedding(ids)
    for layer in model.layers:
        x = x + layer.self_attention(layer.residual_1.norm(x), causal=True)[0]
    torch.testing.assert_close(model(ids), model.output(model.norm(x)), **EXACT)
    d, v = 8, 11
    expected = 2 * v * d + 2 * (4 * (d * d + d) + 2 * d) + 2 * d
    assert sum(p.numel() for p in model.parameters()) == expected


def test_smeared_keys_mix_each_key_with_the_one_before():
    smeared = SmearedKeys(2, Rotary(4))
    with torch.no_grad():
        smeared.alpha.copy_(torch.tensor([0.0, 2.0])[:, None, None])
    torch.manual_seed(0)
    q, k, positions = torch.randn(3, 2, 5, 4), torch.randn(3, 2, 5, 4), torch.arange(5)
    mixed = k.clone()
    for head, share in enumerate((0.5, 1 / (1 + torch.tensor(-2.0).exp()))):
        for j in range(1, 5):
            mixed[:, head, j] = share * k[:, head, j] + (1 - share) * k[:, head, j - 1]
    expected = Rotary(4).rotate(q, mixed, positions, positions)
    for one, other in zip(smeared.rotate(q, k, positions, positions), expected, strict=True):
        torch.testing.assert_close(one, other)
    model = InductionModel(2, smeared=True)
    alphas = [p for name, p in model.named_parameters() if name.endswith("alpha")]
    assert len(alphas) == 2  # 層ごとに別のものを学習する
    model(rows(2)[0]).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in alphas)


# ---- ヘッドの得点 --------------------------------------------------------------------------


def loop_scores(maps, ids, periods):
    """定義を、位置ごとの素直な繰り返しで書いた得点。"""
    prefix, previous = [], []
    for m in maps:
        for head in range(m.shape[1]):
            matched, before = [], []
            for b, row in enumerate(ids.tolist()):
                for t in range(len(row)):
                    if t:
                        before.append(float(m[b, head, t, t - 1]))
                    earlier = [s for s in range(t) if row[s] == row[t]]
                    if earlier:
                        matched.append(sum(float(m[b, head, t, s + 1]) for s in earlier))
            prefix.append(sum(matched) / len(matched))
            previous.append(sum(before) / len(before))
    return prefix, previous


def test_scores_equal_their_definition():
    ids, periods = rows(4, symbols=11, periods=(2, 7), length=17)
    anything = torch.rand(4, 2, 17, 17, generator=torch.Generator().manual_seed(0))
    model = Fixed(*shaken(2).attention_maps(ids)[:1], anything.double())  # 二つ目は未来も見る
    prefix, previous = loop_scores(model.attention_maps(ids), ids, periods)
    assert prefix_matching(model, ids, periods).flatten().tolist() == pytest.approx(prefix)
    assert previous_token(model, ids).flatten().tolist() == pytest.approx(previous)
    assert prefix_matching(model, ids, periods).shape == previous_token(model, ids).shape == (2, 2)


def test_perfect_heads_score_one():
    ids, periods = rows(5, symbols=11, periods=(3, 6), length=14)
    n = ids.shape[1]
    t = torch.arange(n)
    before, induction, same = (torch.zeros(5, 1, n, n) for _ in range(3))
    before[:, :, t, (t - 1).clamp(min=0)] = 1
    for b, period in enumerate(periods.tolist()):
        induction[b, 0, t, (t - period + 1).clamp(min=0)] = 1
        same[b, 0, t, (t - period).clamp(min=0)] = 1
    model = Fixed(before, induction, same)
    assert previous_token(model, ids).flatten().tolist() == pytest.approx([1, 1 / 13, 1 / 13])
    # t が周期の倍数だけ離れない限り、前の位置は続きの先頭ではない
    assert prefix_matching(model, ids, periods).flatten().tolist() == pytest.approx([0, 1, 0])


@torch.no_grad()
def direct_effect(model, layer, head, ids):
    """ヘッドの出力を一つずつ求め、後の層を飛ばして logit にしたもの (B, n, V)。"""
    x = model.embedding(ids)
    for block in model.layers[:layer]:
        x = x + block.self_attention(block.residual_1.norm(x), causal=True)[0]
    block = model.layers[layer]
    attention, part = block.self_attention, slice(4 * head, 4 * head + 4)
    weights = model.attention_maps(ids)[layer][:, head]
    values = attention.value(block.residual_1.norm(x))[..., part]
    written = weights @ values @ attention.out.weight[:, part].T
    return weights, (written - written.mean(-1, keepdim=True)) * model.norm.weight @ (
        model.output.weight.T
    )


def test_copying_equals_its_definition():
    ids, _ = rows(3, symbols=11, periods=(2, 5), length=12)
    model = shaken(2)
    found = copying(model, ids)
    for layer, head in itertools.product(range(2), range(2)):
        weights, logits = direct_effect(model, layer, head, ids)
        a = b = 0.0
        for r, row in enumerate(ids.tolist()):
            for t in range(len(row)):
                raised = (logits[r, t] - logits[r, t].mean()).clamp(min=0)
                a += sum(float(weights[r, t, s] * raised[row[s]]) for s in range(len(row)))
                b += sum(float(raised[symbol]) for symbol in set(row))
        assert float(found[layer, head]) == pytest.approx(4 * a / (a + b) - 1)


def test_heads_that_copy_suppress_or_do_nothing():
    """埋め込みが直交し、自分だけを見るヘッドが、その記号を押し上げる・押し下げる・何もしない。"""
    model = InductionModel(1, symbols=16, d_model=16, n_heads=1)
    attention = model.layers[0].self_attention
    attention.position, attention._rotates = None, False
    ids, eye = rows(4, symbols=16, periods=(3, 6), length=14)[0], torch.eye(16)
    with torch.no_grad():
        for matrix, scale in (
            (model.embedding, 1), (model.output, 1), (attention.value, 1),
            (attention.query, 20), (attention.key, 20),
        ):  # fmt: skip
            matrix.weight.copy_(scale * eye)
        for scale, expected in ((1, 1.0), (-1, -1.0), (0, -1.0)):
            attention.out.weight.copy_(scale * eye)
            assert float(copying(model, ids)) == pytest.approx(expected, abs=0.01)


def test_scores_work_for_a_gpt():
    torch.manual_seed(0)
    sizes = {"vocab_size": 20, "context": 20, "d_model": 16, "n_heads": 4, "n_layers": 3}
    model = GPT(GPTConfig(**sizes, dropout=0.0)).eval()
    ids, periods = rows(3, symbols=20, periods=(3, 6), length=14)
    for scores in (
        prefix_matching(model, ids, periods), previous_token(model, ids), copying(model, ids),
    ):  # fmt: skip
        assert scores.shape == (3, 4)
        assert scores.isfinite().all()
    before = model(ids)
    with ablated(model, [(2, 3)]):
        assert not torch.equal(model(ids), before)


# ---- ヘッドの切り落とし --------------------------------------------------------------------


@pytest.mark.parametrize("heads", [[(0, 1)], [(1, 0)], [(0, 0), (1, 0), (1, 1)], []])
def test_ablation_equals_zeroing_the_columns_of_the_output_map(heads):
    model, twin = shaken(2), shaken(2)
    ids = rows(3, symbols=11, periods=(2, 5), length=12)[0]
    before = model(ids)
    with torch.no_grad():
        for layer, head in heads:
            twin.layers[layer].self_attention.out.weight[:, 4 * head : 4 * head + 4] = 0
    with ablated(model, heads):
        torch.testing.assert_close(model(ids), twin(ids), **EXACT)
    assert torch.equal(model(ids), before)
    assert torch.allclose(twin(ids), before) == (not heads)


def test_ablation_ends_even_after_an_error():
    model, ids = shaken(2), rows(2, symbols=11, periods=(2, 5), length=12)[0]
    before = model(ids)

    def fail():
        with ablated(model, [(0, 0)]):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert torch.equal(model(ids), before)
    with pytest.raises(ValueError, match="ヘッドは"), ablated(model, [(0, 0), (0, 2)]):
        pass
    assert torch.equal(model(ids), before)
    copying(model, ids)
    assert not any(m._forward_pre_hooks for m in model.modules())


# ---- 学習 ----------------------------------------------------------------------------------


def test_the_same_seed_trains_the_same_model():
    one, two = (train_induction(1, 5, steps=4, evaluate_every=2) for _ in range(2))
    assert one.losses == two.losses
    assert ["accuracy" in record for record in one.history] == [False, True, False, True]
    assert one.history[-1]["accuracy"] == accuracy(one.model.eval(), 5) != accuracy(one.model, 0)
    assert one.losses[0] != train_induction(1, 6, steps=1, evaluate_every=1).losses[0]


def test_a_smeared_key_lets_one_layer_induce():
    result = train_induction(1, 0, smeared=True, steps=80, evaluate_every=80)
    assert accuracy(result.model.eval(), 0) > 0.6


@pytest.mark.slow
def test_induction_takes_two_layers():
    """2 層なら 90 % を超え、1 層では 40 % に届かない。2 層目のヘッドが続きを見る。"""
    two, one = (train_induction(n, 0, steps=200, evaluate_every=200).model.eval() for n in (2, 1))
    ids, periods = held_out_rows(0)
    assert accuracy(two, 0) > 0.9
    assert accuracy(one, 0) < 0.4
    assert prefix_matching(two, ids, periods)[1].max() > 0.7
    assert prefix_matching(two, ids, periods)[0].max() < 0.2
    assert previous_token(two, ids)[0].max() > 0.3
    assert copying(two, ids)[1].max() > 0
    first = int(previous_token(two, ids)[0].argmax())
    with ablated(two, [(0, first)]):
        assert accuracy(two, 0) < 0.7


# ---- おかしな入力 --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: rows(0), "rows"),
        (lambda: rows(periods=(0, 5)), r"periods\[0\]"),
        (lambda: rows(periods=(6, 5)), r"periods\[1\]"),
        (lambda: rows(symbols=19), "symbols は 20 以上"),
        (lambda: rows(length=39), "length は 40 以上"),
        (lambda: InductionModel(0), "n_layers"),
        (lambda: InductionModel(1, n_heads=0), "n_heads"),
        (lambda: InductionModel(1)(torch.tensor([[0, 32]])), "ids は 0 以上 32 未満"),
        (lambda: InductionModel(1)(torch.tensor([[-1, 0]])), "ids は 0 以上 32 未満"),
        (lambda: InductionModel(1)(torch.tensor([0, 1])), "ids の形"),
        (lambda: InductionModel(1, n_heads=6), "n_heads で割り切れる"),
        (lambda: ablated(shaken(), [(2, 0)]).__enter__(), "層は 0 以上 2 未満"),
        (lambda: ablated(shaken(), [(-1, 0)]).__enter__(), "層は 0 以上 2 未満"),
        (lambda: ablated(shaken(), [(0, 2)]).__enter__(), "ヘッドは 0 以上 2 未満"),
        (lambda: ablated(shaken(), [(0, -1)]).__enter__(), "ヘッドは 0 以上 2 未満"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize("ids", [torch.zeros(1, 3), torch.zeros(1, 3, dtype=torch.bool), [[0, 1]]])
def test_ids_must_be_integers(ids):
    with pytest.raises(TypeError, match="ids には整数"):
        shaken()(ids)
