"""chapter04.gpt: transformers との一致、寸法、初期値、キャッシュ、入力の検査。"""

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from transformers import GPT2Config, GPT2LMHeadModel, OpenAIGPTConfig, OpenAIGPTLMHeadModel

from chapter04.gpt import CORRECTED, GPT, PRESETS, GPTConfig, n_parameters

SMALL = {"vocab_size": 23, "context": 9, "d_model": 12, "n_heads": 3, "n_layers": 2}
EPS = 1e-2  # 掛け忘れに気づくよう、大きくする
CONFIG = GPTConfig(**SMALL, layer_norm_eps=EPS)
POST = GPTConfig(**SMALL, layer_norm_eps=EPS, norm_first=False)
IDS = torch.tensor([[3, 22, 0, 5, 7, 5], [9, 1, 1, 20, 4, 11]])


def theirs(kind="gpt2", seed=0, n_embd=12, n_head=3, **changes):
    """すべてを乱数にした、倍精度の transformers のモデル。"""
    config, model = {
        "gpt2": (GPT2Config, GPT2LMHeadModel),
        "gpt1": (OpenAIGPTConfig, OpenAIGPTLMHeadModel),
    }[kind]
    sizes = {
        "vocab_size": 23, "n_positions": 9, "n_embd": n_embd, "n_layer": 2, "n_head": n_head,
        "layer_norm_epsilon": EPS, "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip
    torch.manual_seed(seed)
    other = model(config(**{**sizes, **changes})).double().eval()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.4)
    return other


def shaken(config=CONFIG, seed=0):
    torch.manual_seed(seed)
    model = GPT(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.4)
    return model


# ---- transformers との一致 -----------------------------------------------------------------


@pytest.mark.parametrize(("kind", "config"), [("gpt2", CONFIG), ("gpt1", POST)])
def test_logits_and_every_gradient_equal_transformers(kind, config):
    other = theirs(kind)
    ours = GPT.from_huggingface(other.state_dict(), config).eval()
    logits, expected = ours(IDS), other(IDS).logits
    torch.testing.assert_close(logits, expected, atol=1e-10, rtol=1e-10)
    logits.sin().sum().backward()
    expected.sin().sum().backward()
    gradients = {name: p.grad for name, p in other.named_parameters()}
    wanted = GPT.from_huggingface(gradients, config).state_dict()  # 並べ替えは重みと同じ
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name], atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("kind", ["gpt2", "gpt1"])
def test_the_names_may_lack_the_prefix_and_carry_buffers(kind):
    other = theirs(kind)
    config = POST if kind == "gpt1" else CONFIG
    expected = GPT.from_huggingface(other.state_dict(), config).state_dict()
    bare = {name.removeprefix("transformer."): p for name, p in other.state_dict().items()}
    del bare["lm_head.weight"]
    for i in range(2):
        bare[f"h.{i}.attn.bias"] = torch.ones(1, 1, 9, 9)
        bare[f"h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    weights = GPT.from_huggingface(bare, config).state_dict()
    torch.testing.assert_close(weights, expected, atol=0, rtol=0)


@pytest.mark.parametrize("kind", ["gpt2", "gpt1"])
def test_the_config_is_read_from_the_shapes(kind):
    other = theirs(kind, n_embd=128, n_head=2, layer_norm_epsilon=1e-5)
    model = GPT.from_huggingface(other.state_dict()).eval()
    assert model.config == GPTConfig(
        vocab_size=23, context=9, d_model=128, n_heads=2, n_layers=2, norm_first=kind == "gpt2"
    )
    torch.testing.assert_close(model(IDS), other(IDS).logits, atol=1e-9, rtol=1e-9)


def test_an_untied_output_is_noticed_and_kept():
    other = theirs(n_embd=64, n_head=1, n_inner=40, tie_word_embeddings=False)
    model = GPT.from_huggingface(other.state_dict()).eval()
    assert not model.config.tie_output
    assert model.config.d_ff == 40
    changed = GPTConfig(**{**SMALL, "d_model": 64, "n_heads": 1, "d_ff": 40})
    with pytest.raises(ValueError, match="tie_output を False に"):
        GPT.from_huggingface(other.state_dict(), changed)
    assert not torch.equal(model.output.weight, model.token_embedding.weight)


def test_loaded_weights_are_copies_that_can_be_trained():
    source = theirs().state_dict()
    before = {name: value.clone() for name, value in source.items()}
    model = GPT.from_huggingface(source, CONFIG)
    assert model.output.weight is model.token_embedding.weight
    model(IDS).sum().backward()
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    assert all(p.is_contiguous() and p.dtype == torch.float64 for p in model.parameters())
    assert all(torch.equal(source[name], before[name]) for name in source)


def test_every_missing_extra_and_misshapen_key_is_named():
    weights = theirs().state_dict()
    del weights["transformer.h.1.attn.c_attn.weight"], weights["transformer.ln_f.bias"]
    weights["transformer.h.0.attn.rotary"] = torch.zeros(2)
    weights["score.weight"] = torch.zeros(2)
    weights["transformer.h.0.mlp.c_fc.weight"] = torch.zeros(48, 12)  # 転置されている
    weights["transformer.wpe.weight"] = torch.zeros(8, 12)
    with pytest.raises(ValueError, match="state_dict がモデルと合いません") as caught:
        GPT.from_huggingface(weights, CONFIG)
    message = str(caught.value)
    assert "足りないキー: h.1.attn.c_attn.weight, ln_f.bias。" in message
    assert "余るキー: h.0.attn.rotary, score.weight。" in message
    assert "wpe.weight (8, 12)(正しくは (9, 12)), h.0.mlp.c_fc.weight (48, 12)" in message
    with pytest.raises(ValueError, match=r"足りないキー.*ln_f\.bias.*余るキー.*score\.weight"):
        GPT.from_huggingface(weights)


def test_a_layer_that_was_left_out_is_named():
    weights = {k: v for k, v in theirs().state_dict().items() if ".h.0." not in k}
    with pytest.raises(ValueError, match=r"足りないキー: h\.0\.ln_1\.weight.*余るキー: h\.1\.ln"):
        GPT.from_huggingface(weights)
    with pytest.raises(ValueError, match=r"足りないキー: wte\.weight, wpe\.weight, h\.0\."):
        GPT.from_huggingface({})


def test_the_number_of_heads_must_be_given_when_it_cannot_be_told():
    with pytest.raises(ValueError, match=r"config を渡してください.*\(23, 12\)"):
        GPT.from_huggingface(theirs().state_dict())
    with pytest.raises(TypeError, match=r"wte\.weight はテンソル"):
        GPT.from_huggingface({"wte.weight": [1.0]})  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("config", [CONFIG, None])
@pytest.mark.parametrize(
    ("changed", "dtype", "words"),
    [
        ("", torch.int64, r"lm_head\.weight は torch\.int64"),
        ("wpe", torch.int64, r"torch\.float64.*wpe\.weight は torch\.int64"),
        ("wpe", torch.float32, r"torch\.float64.*wpe\.weight は torch\.float32"),
        ("lm_head", torch.float32, r"torch\.float64.*lm_head\.weight は torch\.float32"),
    ],
)
def test_dtypes_must_be_one_floating_type(changed, dtype, words, config):
    weights = theirs(**({"n_embd": 64, "n_head": 1} if config is None else {})).state_dict()
    mixed = {k: v.to(dtype) if changed in k else v for k, v in weights.items()}
    with pytest.raises(TypeError, match=words):
        GPT.from_huggingface(mixed, config)


def test_a_misshapen_output_and_another_config_are_named():
    weights = theirs().state_dict() | {"lm_head.weight": torch.zeros(5, 12)}
    with pytest.raises(ValueError, match=r"形が違うキー: lm_head\.weight \(5, 12\)\(正しくは"):
        GPT.from_huggingface(weights, CONFIG)
    for config in ({"vocab_size": 23}, "gpt2"):
        with pytest.raises(TypeError, match="config には GPTConfig"):
            GPT.from_huggingface(weights, config)  # pyright: ignore[reportArgumentType]


# ---- 寸法と初期値 ------------------------------------------------------------------------

PUBLISHED = {
    "gpt1": 116_534_784,
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "gpt3": 174_604_259_328,
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ("gpt1", "gpt2") else pytest.mark.slow)
        for name in PRESETS
    ],
)
def test_parameter_counts_of_the_published_sizes_equal_transformers(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = GPTConfig.preset(name)
    sizes = {
        "vocab_size": config.vocab_size, "n_positions": config.context, "n_embd": config.d_model,
        "n_layer": config.n_layers, "n_head": config.n_heads,
    }  # fmt: skip
    with torch.device("meta"):
        if name == "gpt1":
            other = OpenAIGPTLMHeadModel(OpenAIGPTConfig())
        else:
            other = GPT2LMHeadModel(GPT2Config(**sizes))
        counts = [sum(p.numel() for p in model.parameters()) for model in (GPT(config), other)]
    assert counts == [n_parameters(config)] * 2


@pytest.mark.parametrize(("name", "count"), PUBLISHED.items())
def test_exact_parameter_counts(name, count):
    assert n_parameters(GPTConfig.preset(name)) == count


def test_the_sizes_named_in_the_papers():
    """表の呼び名(1.3B など)と 5 % 以内で合う。13B は表の d_model を直しても合う。"""
    millions = {
        "gpt3-small": 125, "gpt3-medium": 350, "gpt3-large": 760, "gpt3-xl": 1_300,
        "gpt3-2.7b": 2_700, "gpt3-6.7b": 6_700, "gpt3-13b": 13_000, "gpt3": 175_000,
    }  # fmt: skip
    for name, expected in millions.items():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            config = GPTConfig.preset(name)
        assert n_parameters(config) / 1e6 == pytest.approx(expected, rel=0.05)
        assert config.context == 2048
        assert config.d_model % config.n_heads == 0
        assert [name in str(one.message) for one in caught] == [True] * (name in CORRECTED)


@pytest.mark.parametrize(
    "changes", [{}, {"norm_first": False}, {"tie_output": False}, {"d_ff": 7}, {"n_layers": 1}]
)
def test_the_closed_form_counts_every_parameter(changes):
    config = GPTConfig(**{**SMALL, **changes})
    assert n_parameters(config) == sum(p.numel() for p in GPT(config).parameters())


def test_presets_can_be_changed():
    config = GPTConfig.preset("gpt1", vocab_size=100, n_layers=2)
    assert (config.vocab_size, config.n_layers, config.context) == (100, 2, 512)
    assert not config.norm_first
    assert config.d_ff == 3072
    with pytest.raises(ValueError, match="gpt2-xl"):
        GPTConfig.preset("gpt4")


@pytest.mark.parametrize("norm_first", [True, False])
def test_initial_weights(norm_first):
    config = GPTConfig(
        vocab_size=500, context=300, d_model=96, n_heads=2, n_layers=8, norm_first=norm_first
    )
    for name, parameter in GPT(config).named_parameters():
        if "norm" in name:
            assert parameter.eq(float(name.endswith("weight"))).all(), name
        elif name.endswith("bias"):
            assert parameter.eq(0).all(), name
        else:
            residual = name.endswith(("self_attention.out.weight", "ffn.outer.weight"))
            std = 0.02 / 4 if residual and norm_first else 0.02  # sqrt(2 × 8) = 4
            error = 4 / math.sqrt(2 * parameter.numel())  # 標準偏差の推定誤差の 4 倍
            assert float(parameter.detach().std()) == pytest.approx(std, rel=error), name
            assert abs(float(parameter.detach().mean())) < 4 * std / parameter.numel() ** 0.5


def test_dropout_acts_on_embeddings_attention_and_residuals_while_training():
    model = GPT(GPTConfig(**SMALL, dropout=0.25))
    rates = [m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)]
    assert rates.count(0.25) == 1 + 2 * 2  # 埋め込みと、層ごとに二つの副層
    assert rates.count(0.0) == 2  # FFN の中間には掛けない
    assert [layer.self_attention.dropout for layer in model.layers] == [0.25, 0.25]  # pyright: ignore
    model.eval()
    assert torch.equal(model(IDS), model(IDS))
    model.train()
    assert not torch.equal(model(IDS), model(IDS))
    model.dropout = torch.nn.Dropout(1.0)  # 埋め込みをすべて落とす
    for layer in model.layers:
        layer.eval()
    assert torch.equal(model.hidden(IDS)[0, 0], model.hidden(IDS)[1, 3])


# ---- 因果マスク・キャッシュ・注意の重み ------------------------------------------------------


@pytest.mark.parametrize("config", [CONFIG, POST])
def test_a_token_never_changes_the_logits_before_it(config):
    model = shaken(config)
    for t in range(1, IDS.shape[1]):
        changed = IDS.clone()
        changed[:, t] = 2
        ours, other = model(IDS), model(changed)
        torch.testing.assert_close(other[:, :t], ours[:, :t], atol=1e-12, rtol=0)
        assert (other[:, t] - ours[:, t]).abs().amin(dim=0).gt(0).any()


@pytest.mark.parametrize("config", [CONFIG, POST])
@pytest.mark.parametrize("parts", [[1] * 6, [3, 1, 2], [6]])
def test_the_cache_changes_no_logit(config, parts):
    model, cache = shaken(config), shaken(config).new_cache()
    with torch.no_grad():
        pieces = [model(part, cache) for part in IDS.split(parts, dim=1)]
    assert cache.length == 6
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(IDS), atol=1e-11, rtol=0)


def test_a_reordered_cache_continues_the_chosen_rows():
    model, cache = shaken(), shaken().new_cache()
    index = torch.tensor([1, 1, 0])
    with torch.no_grad():
        model(IDS[:, :4], cache)
        cache.reorder(index)
        logits = model(IDS[index, 4:], cache)
    torch.testing.assert_close(logits, model(IDS[index])[:, 4:], atol=1e-11, rtol=0)


def test_a_mask_hides_positions_from_every_query():
    model = shaken()
    mask = torch.ones(2, 1, 1, 6, dtype=torch.bool)
    mask[1, ..., :2] = False
    changed = IDS.clone()
    changed[1, :2] = 6
    torch.testing.assert_close(model(IDS, mask=mask)[:, 2:], model(changed, mask=mask)[:, 2:])
    torch.testing.assert_close(model(IDS, mask=mask)[0], model(IDS)[0])


def test_attention_maps_equal_those_of_transformers():
    other = theirs()
    other.set_attn_implementation("eager")
    maps = GPT.from_huggingface(other.state_dict(), CONFIG).eval().attention_maps(IDS)
    expected = other(IDS, output_attentions=True).attentions
    assert [m.shape for m in maps] == [(2, 3, 6, 6)] * 2
    torch.testing.assert_close(maps, list(expected), atol=1e-10, rtol=1e-10)


def test_logits_are_hidden_times_the_tied_embedding():
    model = shaken()
    assert model.output.weight is model.token_embedding.weight
    hidden = model.hidden(IDS)
    torch.testing.assert_close(model(IDS), hidden @ model.token_embedding.weight.T)
    torch.testing.assert_close(
        (hidden - model.norm.bias) / model.norm.weight,
        F.layer_norm((hidden - model.norm.bias) / model.norm.weight, (12,)),
        atol=0.02,
        rtol=0.02,
    )  # fmt: skip  最後に層正規化がある(ε の分だけずれる)
    assert not any(name.startswith("norm.") for name in shaken(POST).state_dict())


def test_a_saved_model_can_be_read_back(tmp_path):
    from safetensors.torch import load_model, save_model  # noqa: PLC0415

    model, other = shaken(), shaken(seed=1)
    save_model(model, tmp_path / "model.safetensors")
    load_model(other, tmp_path / "model.safetensors")
    assert torch.equal(other(IDS), model(IDS))


# ---- おかしな入力 ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"d_model": 10}, ValueError, "d_model は n_heads で割り切れる"),
        ({"vocab_size": 0}, ValueError, "vocab_size"),
        ({"context": 0}, ValueError, "context"),
        ({"n_layers": 1.5}, TypeError, "n_layers"),
        ({"d_ff": 0}, ValueError, "d_ff"),
        ({"dropout": 1.0}, ValueError, "dropout"),
        ({"activation": "tanh"}, ValueError, "activation は relu"),
        ({"norm_first": 1}, TypeError, "norm_first"),
        ({"tie_output": None}, TypeError, "tie_output"),
        ({"layer_norm_eps": 0.0}, ValueError, "layer_norm_eps"),
    ],
)
def test_bad_configs_are_refused(changes, error, words):
    with pytest.raises(error, match=words):
        GPTConfig(**{**SMALL, **changes})


@pytest.mark.parametrize(
    ("ids", "error", "words"),
    [
        (IDS.double(), TypeError, "ids には整数"),
        (IDS.tolist(), TypeError, "ids には整数"),
        (IDS[0], ValueError, "ids の形"),
        (IDS[:, :0], ValueError, "ids の形"),
        (IDS[:0], ValueError, "ids の形"),
        (torch.zeros(1, 10, dtype=torch.int64), ValueError, "context = 9 以下.* 10"),
        (torch.tensor([[0, 23]]), ValueError, "0 以上 23 未満.*0 から 23"),
        (torch.tensor([[-1, 3]]), ValueError, "-1 から 3"),
    ],
)
def test_bad_ids_are_refused(ids, error, words):
    with pytest.raises(error, match=words):
        shaken()(ids)


def test_the_cache_may_not_grow_beyond_the_context():
    model, cache = shaken(), shaken().new_cache()
    with torch.no_grad():
        model(torch.zeros(1, 8, dtype=torch.int64), cache)
        model(torch.zeros(1, 1, dtype=torch.int64), cache)
        with pytest.raises(ValueError, match=r"context = 9 以下.* 10"):
            model(torch.zeros(1, 1, dtype=torch.int64), cache)
    with pytest.raises(TypeError, match="GPTConfig"):
        GPT({"vocab_size": 3})  # pyright: ignore[reportArgumentType]
