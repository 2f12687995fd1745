"""chapter04.generation: transformers の generate と LogitsProcessor との一致、分布、入力の検査。"""

import math

import pytest
import torch
from scipy.stats import chisquare
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.generation.logits_process import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from chapter04.generation import (
    filter_logits,
    generate,
    is_plain,
    penalize_repetition,
    single_token,
)
from chapter04.gpt import GPT, GPTConfig

SMALL = {"vocab_size": 23, "context": 24, "d_model": 12, "n_heads": 3, "n_layers": 2}
IDS = torch.tensor([[3, 22, 0, 5], [9, 1, 1, 20], [8, 8, 8, 8]])


def model_of(norm_first=True, seed=0, scale=0.4, **changes):
    torch.manual_seed(seed)
    model = GPT(GPTConfig(**{**SMALL, "norm_first": norm_first, **changes})).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * scale)
    return model


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# ---- 生成 ----------------------------------------------------------------------------------


@pytest.mark.parametrize("penalty", [1.0, 1.7])
@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_equals_transformers(penalty, use_cache):
    torch.manual_seed(1)
    other = GPT2LMHeadModel(GPT2Config(
        vocab_size=23, n_positions=24, n_embd=12, n_layer=2, n_head=3, bos_token_id=None,
        eos_token_id=None,
    )).double().eval()  # fmt: skip
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.4)
    ours = GPT.from_huggingface(other.state_dict(), GPTConfig(**SMALL))
    expected = other.generate(
        IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=20, do_sample=False,
        repetition_penalty=penalty, pad_token_id=0,
    )  # fmt: skip
    made = generate(ours, IDS, 20, top_k=1, repetition_penalty=penalty, use_cache=use_cache)
    assert torch.equal(made, expected)
    assert len(set(made[0].tolist())) > 4


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize(
    "options", [{"top_k": 1}, {}, {"top_p": 0.8, "temperature": 0.7, "repetition_penalty": 1.3}]
)
def test_the_cache_changes_no_token(norm_first, options):
    model = model_of(norm_first)
    made = [
        generate(model, IDS, 20, use_cache=use_cache, generator=seeded(), **options)
        for use_cache in (True, False)
    ]
    assert made[0].shape == (3, 24)
    assert torch.equal(made[0][:, :4], IDS)
    assert torch.equal(*made)


@pytest.mark.parametrize("norm_first", [True, False])
@torch.inference_mode()
def test_single_token_equals_the_model(norm_first):
    model, ids = model_of(norm_first), torch.cat([IDS, IDS.flip(0)], dim=1)
    cache = model.new_cache()
    model.hidden(ids[:, :3], cache)
    step = single_token(model, cache, 8)
    steps = torch.stack([step(ids[:, t]) for t in range(3, 8)], dim=1)
    torch.testing.assert_close(steps, model(ids)[:, 3:], atol=1e-12, rtol=0)


def test_changed_parts_are_not_skipped():
    """LoRA のように部品を取り替えたモデルやフックのあるモデルは、モジュールを呼ぶ計算に戻る。"""

    class Doubled(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(input)

    model, hooked = model_of(), model_of()
    before = generate(model, IDS, 12, top_k=1)
    assert is_plain(model)
    layer = model.layers[0]
    replaced = Doubled(12, 12).double()
    replaced.load_state_dict(layer.self_attention.value.state_dict())  # pyright: ignore
    layer.self_attention.value = replaced  # pyright: ignore
    hooked.layers[0].self_attention.value.register_forward_hook(  # pyright: ignore
        lambda module, inputs, output: 2 * output
    )
    for changed in (model, hooked):
        assert not is_plain(changed)
        made = generate(changed, IDS, 12, top_k=1)
        assert torch.equal(made, generate(changed, IDS, 12, top_k=1, use_cache=False))
        assert not torch.equal(made, before)


def test_a_seed_gives_a_text_and_leaves_the_global_state_alone():
    model = model_of(scale=0.2)
    state = torch.get_rng_state()
    texts = [generate(model, IDS, 15, generator=seeded(s)) for s in (0, 0, 1)]
    generate(model, IDS, 5, top_k=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(texts[0], texts[1])
    assert not torch.equal(texts[0], texts[2])
    assert not torch.equal(texts[0][0, 4:], texts[0][1, 4:])


def test_the_mode_is_restored_and_the_result_can_be_trained_on():
    model = model_of(dropout=0.5).train()
    made = generate(model, IDS, 6, top_k=1)
    assert model.training
    assert torch.equal(made, generate(model.eval(), IDS, 6, top_k=1))
    model.train()
    model(made).sum().backward()
    assert model.token_embedding.weight.grad is not None
    model.eval()
    generate(model, IDS, 1)
    assert not model.training


def test_finished_rows_are_filled_with_stop():
    model = model_of()
    free = generate(model, IDS, 20, top_k=1)
    stop = int(free[0, 9])
    made = generate(model, IDS, 20, top_k=1, stop=stop)
    assert made.shape == free.shape
    for row, other in zip(made.tolist(), free.tolist(), strict=True):
        end = 4 + other[4:].index(stop) if stop in other[4:] else 24  # 書き出しの stop は数えない
        assert row == other[:end] + [stop] * (24 - end)
    assert made[0, 10:].eq(stop).all()
    alone = generate(model, IDS[:1], 20, top_k=1, stop=stop)
    assert torch.equal(alone, made[:1])


def test_int32_ids_may_be_given():
    model = model_of()
    made = generate(model, IDS.int(), 5, top_k=1)
    assert made.dtype == torch.int64
    assert torch.equal(made, generate(model, IDS, 5, top_k=1))


# ---- 分布 ----------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
@pytest.mark.parametrize("top_k", [None, 1, 3, 40, 999])
@pytest.mark.parametrize("top_p", [None, 1e-6, 0.3, 0.95, 1.0])
def test_filters_equal_transformers(temperature, top_k, top_p):
    logits = torch.randn(5, 40, generator=seeded(), dtype=torch.float64) * 2
    expected = TemperatureLogitsWarper(temperature)(None, logits)  # pyright: ignore
    if top_k is not None:
        expected = TopKLogitsWarper(top_k)(None, expected)  # pyright: ignore
    if top_p is not None:
        expected = TopPLogitsWarper(top_p)(None, expected)  # pyright: ignore
    before = logits.clone()
    torch.testing.assert_close(filter_logits(logits, temperature, top_k, top_p), expected)
    assert torch.equal(logits, before)


@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.2, 3.0])
def test_the_repetition_penalty_equals_transformers(penalty):
    logits = torch.randn(3, 23, generator=seeded(), dtype=torch.float64)
    expected = RepetitionPenaltyLogitsProcessor(penalty)(IDS, logits.clone())  # pyright: ignore
    before = logits.clone()
    torch.testing.assert_close(penalize_repetition(logits, IDS, penalty), expected)
    assert torch.equal(logits, before)


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [
        (1e-9, [1]),
        (0.5, [1]),
        (0.51, [1, 3]),
        (0.75, [1, 3]),
        (0.76, [0, 1, 3]),
        (0.9, [0, 1, 2, 3]),
    ],
)
def test_the_nucleus_is_the_smallest_set_that_reaches_p(top_p, kept):
    logits = torch.tensor([0.125, 0.5, 0.125, 0.25]).double().log()  # 同じ値は先のものから
    assert filter_logits(logits, top_p=top_p).isfinite().nonzero()[:, 0].tolist() == kept


def test_the_penalty_lowers_seen_tokens_whatever_their_sign():
    logits = torch.tensor([[2.0, -2.0, 0.0, 1.0]])
    seen = torch.tensor([[0, 1, 2, 0]])
    assert penalize_repetition(logits, seen, 2.0).tolist() == [[1.0, -4.0, 0.0, 1.0]]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.5},
        {"top_k": 3},
        {"top_p": 0.7},
        {"temperature": 1.5, "top_k": 5, "top_p": 0.9, "repetition_penalty": 2.0},
    ],
)
def test_sampled_frequencies_follow_the_filtered_distribution(options):
    model = model_of(vocab_size=7, scale=0.3)
    ids = torch.tensor([[2, 5, 5]])
    rows, n = 1000, 8000
    counts = torch.zeros(7)
    generator = seeded(3)
    for _ in range(n // rows):
        made = generate(model, ids.expand(rows, -1), 1, generator=generator, **options)
        counts += made[:, -1].bincount(minlength=7)
    logits = model(ids)[:, -1].detach()
    logits = penalize_repetition(logits, ids, options.pop("repetition_penalty", 1.0))
    p = filter_logits(logits, **options).softmax(-1)[0]
    assert counts[p == 0].sum() == 0
    assert chisquare(counts[p > 0].numpy(), n * p[p > 0].numpy(), sum_check=False).pvalue > 0.01


# ---- おかしな入力 ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"temperature": 0}, ValueError, "temperature は 0 より大きい"),
        ({"temperature": -1.0}, ValueError, "temperature"),
        ({"temperature": float("nan")}, ValueError, "temperature"),
        ({"temperature": "hot"}, TypeError, "temperature"),
        ({"temperature": 1e-45}, ValueError, "temperature が小さすぎて.*1e-45"),
        ({"temperature": 1e-300}, ValueError, "temperature が小さすぎて.*1e-300"),
        ({"top_k": 0}, ValueError, "top_k は 1 以上"),
        ({"top_k": 2.5}, TypeError, "top_k"),
        ({"top_p": 0.0}, ValueError, "top_p は 0 より大きく 1 以下"),
        ({"top_p": 1.01}, ValueError, "top_p"),
        ({"repetition_penalty": 0}, ValueError, "repetition_penalty"),
        ({"repetition_penalty": 1e-45}, ValueError, "repetition_penalty が極端.*1e-45"),
        ({"repetition_penalty": 1e-300}, ValueError, "repetition_penalty が極端.*1e-300"),
        ({"stop": 23}, ValueError, "stop は 23 未満"),
        ({"stop": -1}, ValueError, "stop"),
        ({"max_new_tokens": 0}, ValueError, "max_new_tokens は 1 以上"),
        ({"max_new_tokens": 21}, ValueError, "context = 24 を超え.*書き出しが 4 個.*20 以下.*21"),
        ({"ids": IDS[:, :0]}, ValueError, "ids の形"),
        ({"ids": IDS.float()}, TypeError, "ids には整数"),
        ({"ids": [[1, 2]]}, TypeError, "ids には整数"),
        ({"ids": IDS + 3}, ValueError, "0 以上 23 未満"),
        ({"ids": torch.zeros(1, 25, dtype=torch.int64)}, ValueError, "context = 24 以下.*25"),
        ({"ids": torch.zeros(1, 24, dtype=torch.int64)}, ValueError, "max_new_tokens は 0 以下"),
    ],
)
def test_bad_arguments_are_refused(changes, error, words):
    model = model_of().train()
    with pytest.raises(error, match=words):
        generate(model, **{"ids": IDS, "max_new_tokens": 3, **changes})
    assert model.training


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("options", [{}, {"top_k": 1}, {"temperature": 0.5, "use_cache": False}])
def test_logits_that_are_not_finite_are_refused(bad, options):
    """貪欲法でも、NaN を選ばずに断る。"""
    model = model_of()
    with torch.no_grad():
        model.token_embedding.weight[7] = bad
    with pytest.raises(ValueError, match="model の logits が有限ではありません"):
        generate(model, IDS, 3, **options)


def test_options_may_be_given_by_position():
    model = model_of()
    made = generate(model, IDS, 6, 0.8, 5, 0.9, seeded(), False)
    options = {"temperature": 0.8, "top_k": 5, "top_p": 0.9, "use_cache": False}
    assert torch.equal(made, generate(model, IDS, 6, generator=seeded(), **options))
