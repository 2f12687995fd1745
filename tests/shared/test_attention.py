"""shared.attention: 素朴な繰り返しと torch との一致、マスク、キャッシュ、入力の検査。"""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from shared import attention
from shared.attention import (
    KVCache,
    MultiHeadAttention,
    causal_mask,
    padding_mask,
    scaled_dot_product_attention,
)


def randn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def by_hand(q, k, v, mask):
    """論文の式 (1) を、行ごと・要素ごとの繰り返しで書いたもの。"""
    n, m, d_k, d_v = len(q), len(k), q.shape[1], v.shape[1]
    output, weights = torch.zeros(n, d_v).double(), torch.zeros(n, m).double()
    for i in range(n):
        allowed = [j for j in range(m) if mask is None or mask[i, j]]
        scores = {j: math.exp(float(q[i] @ k[j]) / math.sqrt(d_k)) for j in allowed}
        for j in allowed:
            weights[i, j] = scores[j] / sum(scores.values())
            output[i] += weights[i, j] * v[j]
    return output, weights


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 5), st.integers(0, 99), st.booleans())
def test_attention_is_the_papers_equation(n, m, d_k, seed, masked):
    q, k, v = randn(n, d_k, seed=seed), randn(m, d_k, seed=seed + 1), randn(m, 3, seed=seed + 2)
    mask = randn(n, m, seed=seed + 3) > 0 if masked else None
    output, weights = scaled_dot_product_attention(q, k, v, mask)
    expected = by_hand(q, k, v, mask)
    torch.testing.assert_close(output, expected[0])
    torch.testing.assert_close(weights, expected[1])


def test_numbers_one_can_redo_by_hand():
    q = torch.tensor([[2.0, 0.0, 0.0, 0.0]])  # d_k = 4 なので、点は内積の半分
    k = torch.tensor([[math.log(3), 0, 0, 0], [0, 9, 9, 9]])
    v = torch.tensor([[4.0], [8.0]])
    output, weights = scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(weights, torch.tensor([[0.75, 0.25]]))
    torch.testing.assert_close(output, torch.tensor([[5.0]]))


def test_rows_masked_everywhere_give_zeros_and_finite_gradients():
    q, k, v = (randn(2, 3, 4, seed=i).requires_grad_() for i in range(3))
    mask = torch.ones(2, 3, 3, dtype=torch.bool)
    mask[0, 1] = False
    output, weights = scaled_dot_product_attention(q, k, v, mask)
    assert output[0, 1].eq(0).all()
    assert weights[0, 1].eq(0).all()
    output.pow(2).sum().backward()
    assert q.grad is not None
    assert q.grad[0, 1].eq(0).all()
    for tensor in (q, k, v):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_all_backends_agree_with_the_paper_form(dtype):
    q, k, v = (randn(2, 4, 7, 8, seed=i).to(dtype) for i in range(3))
    padding = padding_mask(torch.tensor([[5, 5, 5, 5, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0]]))
    bias = randn(4, 7, 7, seed=9).to(dtype)
    tolerance = {"atol": 4e-2, "rtol": 4e-2} if dtype == torch.bfloat16 else {}
    for mask in (None, padding):
        for causal in (False, True):
            for extra in (None, bias):
                allowed = None if mask is None else mask.expand(2, 4, 7, 7)
                if causal:
                    below = causal_mask(7)
                    allowed = below if allowed is None else allowed & below
                scores = q.double() @ k.double().transpose(-2, -1) / math.sqrt(8)
                scores = scores if extra is None else scores + extra.double()
                weights = attention._masked_softmax(scores, allowed)
                for attend in (attention._attend_plain, attention._attend_sdpa):
                    output, _ = attend(q, k, v, mask, causal=causal, bias=extra, dropout=0.0)
                    expected = (weights @ v.double()).to(dtype)
                    torch.testing.assert_close(output, expected, **tolerance)
    plain, weights = attention._attend_plain(q, k, v, padding, causal=True, bias=None, dropout=0.0)
    assert plain[1].eq(0).all()


def test_the_backend_follows_the_measurement():
    q = torch.zeros(1, 1, 4, 8)
    assert attention.backend(q, 4) == "sdpa"
    assert attention.backend(q.bfloat16(), 256) == "plain"
    assert attention.backend(q.bfloat16(), 257) == "sdpa"


def torch_twin(ours):
    """同じ重みの torch.nn.MultiheadAttention。"""
    theirs = nn.MultiheadAttention(ours.d_model, ours.n_heads, batch_first=True).double()
    inputs = (ours.query, ours.key, ours.value)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([linear.weight for linear in inputs]))
        theirs.in_proj_bias.copy_(torch.cat([linear.bias for linear in inputs]))
        theirs.out_proj.weight.copy_(ours.out.weight)
        theirs.out_proj.bias.copy_(ours.out.bias)
    return theirs


def shaken(module):
    """定数項まで乱数にした、倍精度の写し(0 のままでは間違いを見逃す)。"""
    torch.manual_seed(0)
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return module


@pytest.mark.parametrize(("cross", "causal"), [(False, False), (False, True), (True, False)])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("return_weights", [False, True])
def test_outputs_and_gradients_equal_torch(cross, causal, padded, return_weights):
    ours = shaken(MultiHeadAttention(12, 3))
    theirs = torch_twin(ours)
    x = randn(2, 5, 12, seed=1).requires_grad_()
    memory = randn(2, 7 if cross else 5, 12, seed=2).requires_grad_() if cross else None
    source = x if memory is None else memory
    ids = torch.ones(2, source.shape[1], dtype=torch.long)
    ids[1, -2:] = 0
    mask = padding_mask(ids) if padded else None
    output, weights = ours(x, memory, mask=mask, causal=causal, return_weights=return_weights)
    expected, expected_weights = theirs(
        x, source, source,
        key_padding_mask=ids == 0 if padded else None,
        attn_mask=~causal_mask(5) if causal else None,
        average_attn_weights=False,
    )  # fmt: skip
    torch.testing.assert_close(output, expected, atol=1e-10, rtol=0)
    assert (weights is not None) == return_weights
    if weights is not None:
        torch.testing.assert_close(weights, expected_weights, atol=1e-10, rtol=0)
    inputs = (x,) if memory is None else (x, memory)
    grads = torch.autograd.grad(output.pow(2).sum(), (*inputs, *ours.parameters()))
    wanted = torch.autograd.grad(expected.pow(2).sum(), (*inputs, *theirs.parameters()))
    torch.testing.assert_close(grads[: len(inputs)], wanted[: len(inputs)], atol=1e-9, rtol=1e-9)
    named = dict(zip([n for n, _ in ours.named_parameters()], grads[len(inputs) :], strict=True))
    in_weight = torch.cat([named[f"{n}.weight"] for n in ("query", "key", "value")])
    torch.testing.assert_close(in_weight, wanted[len(inputs)], atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(named["out.weight"], wanted[-2], atol=1e-8, rtol=1e-8)


def test_grouped_heads_are_full_heads_with_repeated_keys_and_values():
    grouped, full = shaken(MultiHeadAttention(12, 6, n_kv_heads=2)), MultiHeadAttention(12, 6)
    full = full.double()
    with torch.no_grad():
        for name in ("query", "out"):
            getattr(full, name).load_state_dict(getattr(grouped, name).state_dict())
        for name in ("key", "value"):
            for part in ("weight", "bias"):
                narrow = getattr(getattr(grouped, name), part)  # (2 * d_k, ...)
                per_head = narrow.view(2, 2, *narrow.shape[1:])
                wide = per_head.repeat_interleave(3, dim=0).reshape(12, *narrow.shape[1:])
                getattr(getattr(full, name), part).copy_(wide)
    x = randn(2, 5, 12)
    torch.testing.assert_close(grouped(x, causal=True)[0], full(x, causal=True)[0])


def test_an_independent_grouped_query_attention_agrees():
    ours = shaken(MultiHeadAttention(16, 4, n_kv_heads=2))
    x = randn(2, 5, 16)
    q, k, v = (
        linear(x).view(2, 5, -1, 4).transpose(1, 2) for linear in (ours.query, ours.key, ours.value)
    )
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    expected = ours.out(expected.transpose(1, 2).reshape(2, 5, 16))
    torch.testing.assert_close(ours(x, causal=True)[0], expected)


class Both:
    """位置に応じて回し、距離に比例した値を点から引く、試験用の位置の差し込み口。"""

    def rotate(self, q, k, q_positions, k_positions):
        return q * (1 + q_positions[:, None]), k * (2 + k_positions[:, None])

    def bias(self, q_positions, k_positions):
        distance = (q_positions[:, None] - k_positions).abs()
        return -distance * torch.tensor([1.0, 0.5, 0.25]).double()[:, None, None]


@pytest.mark.parametrize("position", [None, Both()])
@pytest.mark.parametrize("pieces", [[1] * 9, [4, 1, 4], [9], [2, 7]])
@pytest.mark.parametrize("n_kv_heads", [3, 1])
def test_the_cache_changes_no_output(position, pieces, n_kv_heads):
    ours = shaken(MultiHeadAttention(12, 3, n_kv_heads, position=position))
    x = randn(2, 9, 12)
    expected, _ = ours(x, causal=True, return_weights=True)
    cache, outputs = KVCache(), []
    with torch.no_grad():
        for part in x.split(pieces, dim=1):
            outputs.append(ours(part, causal=True, cache=cache)[0])
    torch.testing.assert_close(torch.cat(outputs, dim=1), expected, atol=1e-12, rtol=0)
    assert cache.length == 9


def test_the_position_hook_enters_where_it_should():
    ours = shaken(MultiHeadAttention(12, 3, position=Both()))
    x = randn(1, 4, 12)
    q, k, v = (
        linear(x).view(1, 4, 3, 4).transpose(1, 2) for linear in (ours.query, ours.key, ours.value)
    )
    place = torch.arange(4)
    q, k = Both().rotate(q, k, place, place)
    scores = q @ k.transpose(-2, -1) / 2 + Both().bias(place, place)
    expected = (scores.softmax(-1) @ v).transpose(1, 2).reshape(1, 4, 12)
    torch.testing.assert_close(ours(x)[0], ours.out(expected))


def test_a_cache_for_cross_attention_is_computed_once_and_can_be_reordered():
    ours = shaken(MultiHeadAttention(12, 3))
    x, memory = randn(3, 2, 12, seed=1), randn(3, 7, 12, seed=2)
    cache = KVCache()
    with torch.no_grad():
        first = ours(x, memory, cache=cache)[0]
        torch.testing.assert_close(first, ours(x, memory)[0])
        # 二度目からは memory を計算し直さない(違う memory を渡しても結果は変わらない)。
        torch.testing.assert_close(ours(x, torch.zeros_like(memory), cache=cache)[0], first)
        order = torch.tensor([2, 0, 0])
        cache.reorder(order)
        reordered = ours(x[order], memory[order], cache=cache)[0]
    torch.testing.assert_close(reordered, first[order])


def test_the_cache_grows_by_doubling():
    cache, copies = KVCache(), 0
    step = torch.zeros(1, 1, 1, 2)
    for i in range(200):
        before = cache._keys
        keys, _ = cache.append(step + i, step)
        copies += cache._keys is not before
        assert keys.shape[2] == cache.length == i + 1
        assert keys[0, 0, :, 0].tolist() == list(range(i + 1))
    assert copies <= 8


def test_permuting_the_inputs_permutes_the_outputs():
    ours = shaken(MultiHeadAttention(12, 3))
    x, order = randn(1, 6, 12), torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(ours(x[:, order])[0], ours(x)[0][:, order])


def test_causal_mask_is_aligned_at_the_end():
    assert causal_mask(2, 3).tolist() == [[True, True, False], [True, True, True]]
    assert causal_mask(2).tolist() == [[True, False], [True, True]]
    assert causal_mask(0).shape == (0, 0)


def test_padding_mask_has_the_shape_that_heads_need():
    mask = padding_mask(torch.tensor([[3, 4, 0]]))
    assert mask.shape == (1, 1, 1, 3)
    assert mask.flatten().tolist() == [True, True, False]


def test_dropout_acts_in_training_only():
    ours = shaken(MultiHeadAttention(12, 3, dropout=0.5))
    x = randn(1, 6, 12)
    assert not torch.equal(ours(x)[0], ours(x)[0])
    ours.eval()
    assert torch.equal(ours(x)[0], ours(x)[0])


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: MultiHeadAttention(10, 3), ValueError, "d_model は n_heads で割り切れる"),
        (lambda: MultiHeadAttention(12, 6, 4), ValueError, "n_heads は n_kv_heads で"),
        (lambda: MultiHeadAttention(12, 0), ValueError, "n_heads"),
        (lambda: MultiHeadAttention(12.0, 3), TypeError, "d_model"),
        (lambda: MultiHeadAttention(12, 3, dropout=1.0), ValueError, "dropout は 0 以上 1 未満"),
        (lambda: MultiHeadAttention(12, 3, position=object()), TypeError, "position"),
        (lambda: causal_mask(3, 2), ValueError, "m"),
        (lambda: padding_mask(torch.zeros(2, 2)), TypeError, "ids"),
        (lambda: padding_mask(torch.zeros(2, dtype=torch.long)), ValueError, "ids の形"),
        (lambda: KVCache().stored(), ValueError, "空です"),
    ],
)
def test_bad_arguments_are_named(call, error, words):
    with pytest.raises(error, match=words):
        call()


Z = torch.zeros


@pytest.mark.parametrize(
    ("args", "error", "words"),
    [
        ((Z(2, 3), Z(2, 4), Z(2, 4), None), ValueError, "q と k の最後の次元"),
        ((Z(2, 3), Z(2, 3), Z(3, 3), None), ValueError, "k と v の長さ"),
        ((Z(3), Z(2, 3), Z(2, 3), None), ValueError, "q の形"),
        (([1.0], Z(2, 3), Z(2, 3), None), TypeError, "q にはテンソル"),
        ((Z(2, 3), Z(2, 3), Z(2, 3), Z(2, 2)), TypeError, "mask には真偽値"),
        ((Z(2, 3), Z(2, 3), Z(2, 3), Z(2, 3).bool()), ValueError, "mask の形"),
    ],
)
def test_bad_tensors_are_named(args, error, words):
    with pytest.raises(error, match=words):
        scaled_dot_product_attention(*args)


@pytest.mark.parametrize(
    ("x", "memory", "options", "error", "words"),
    [
        (Z(1, 2, 11), None, {}, ValueError, "x の形"),
        (Z(2, 12), None, {}, ValueError, "x の形"),
        (Z(1, 2, 12), Z(2, 2, 12), {}, ValueError, "文の数"),
        (Z(1, 2, 12), Z(1, 2, 13), {}, ValueError, "memory の形"),
        (Z(1, 2, 12), None, {"mask": Z(1, 2)}, TypeError, "mask"),
        (Z(1, 2, 12), None, {"mask": Z(3, 1, 2, 2).bool()}, ValueError, "mask の形"),
        ([1], None, {}, TypeError, "x にはテンソル"),
    ],
)
def test_bad_input_to_the_module_is_named(x, memory, options, error, words):
    with pytest.raises(error, match=words):
        MultiHeadAttention(12, 3)(x, memory, **options)


def test_a_cache_refuses_another_batch_size():
    cache = KVCache()
    cache.append(Z(2, 1, 1, 4), Z(2, 1, 1, 4))
    with pytest.raises(ValueError, match="文の数 2"):
        cache.append(Z(3, 1, 1, 4), Z(3, 1, 1, 4))
    assert cache.length == 1
