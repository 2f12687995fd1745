"""chapter03.transformer: 独立な実装との一致、論文の寸法、マスクと詰めもの、入力の検査。"""

import math

import pytest
import torch
from torch import nn
from transformers import MarianConfig, MarianMTModel

from chapter03.positional import sinusoidal
from chapter03.transformer import Transformer, TransformerConfig
from shared.attention import causal_mask

SMALL = {"d_model": 16, "n_heads": 4, "n_layers": 2, "d_ff": 24, "dropout": 0.0, "max_len": 12}
SRC = torch.tensor([[3, 4, 5, 6], [7, 8, 0, 0]])
TGT = torch.tensor([[1, 9, 8], [1, 7, 6]])


def shaken(seed=0, **changes):
    """定数項も層正規化も乱数にした、倍精度の小さなモデル。"""
    config = TransformerConfig(**{"src_vocab_size": 11, "tgt_vocab_size": 13, **SMALL, **changes})
    torch.manual_seed(seed)
    model = Transformer(config).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return model.eval()


# ---- 独立な実装との一致 ------------------------------------------------------------------


def copy_attention(ours, theirs):
    for name, linear in (("q", ours.query), ("k", ours.key), ("v", ours.value), ("out", ours.out)):
        getattr(theirs, f"{name}_proj").load_state_dict(linear.state_dict())


@torch.no_grad()
def marian_twin(ours):
    """同じ重みの transformers の MarianMTModel(post-LN、語彙を共有し、活性化は ReLU)。"""
    c = ours.config
    config = MarianConfig(
        vocab_size=c.src_vocab_size, d_model=c.d_model, encoder_layers=c.n_layers,
        decoder_layers=c.n_layers, encoder_attention_heads=c.n_heads, dropout=0.0,
        decoder_attention_heads=c.n_heads, encoder_ffn_dim=c.d_ff, decoder_ffn_dim=c.d_ff,
        activation_function="relu", scale_embedding=True, pad_token_id=0, eos_token_id=2,
        decoder_start_token_id=1, max_position_embeddings=c.max_len, attention_dropout=0.0,
        activation_dropout=0.0, share_encoder_decoder_embeddings=True,
    )  # fmt: skip
    theirs = MarianMTModel(config).double().eval()
    inner = theirs.model
    inner.shared.load_state_dict(ours.src_embedding.state_dict())
    for side, stack in (("encoder", ours.encoder), ("decoder", ours.decoder)):
        twin = getattr(inner, side)
        # Marian は sin と cos を前半と後半に分けて並べるので、こちらの並びに合わせる。
        twin.embed_positions.weight.copy_(ours.positions)
        for layer, other in zip(stack.layers, twin.layers, strict=True):
            copy_attention(layer.self_attention, other.self_attn)
            other.self_attn_layer_norm.load_state_dict(layer.residual_1.norm.state_dict())
            last = layer.residual_2
            if side == "decoder":
                copy_attention(layer.cross_attention, other.encoder_attn)
                other.encoder_attn_layer_norm.load_state_dict(layer.residual_2.norm.state_dict())
                last = layer.residual_3
            other.final_layer_norm.load_state_dict(last.norm.state_dict())
            other.fc1.load_state_dict(layer.ffn.inner.state_dict())
            other.fc2.load_state_dict(layer.ffn.outer.state_dict())
    theirs.final_logits_bias.zero_()
    return theirs


def test_logits_and_gradients_equal_marian():
    ours = shaken(tgt_vocab_size=11, share_embeddings=True, attention_bias=True)
    theirs = marian_twin(ours)
    logits = ours(SRC, TGT)
    expected = theirs(input_ids=SRC, attention_mask=(SRC != 0).long(), decoder_input_ids=TGT).logits
    torch.testing.assert_close(logits, expected, atol=1e-9, rtol=1e-9)
    embedding, inner = ours.src_embedding.weight, ours.encoder.layers[0].ffn.inner.weight
    wanted = (theirs.model.shared.weight, theirs.model.encoder.layers[0].fc1.weight)
    grads = torch.autograd.grad(logits.sin().sum(), (embedding, inner))
    other = torch.autograd.grad(expected.sin().sum(), wanted)
    torch.testing.assert_close(grads, other, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("norm_first", [False, True])
def test_logits_equal_nn_transformer(norm_first):
    ours = shaken(norm_first=norm_first, attention_bias=True)
    norms = {"norm_first": norm_first, "batch_first": True, "dtype": torch.float64}
    c = ours.config
    theirs = nn.Transformer(c.d_model, c.n_heads, 2, 2, c.d_ff, 0.0, **norms).eval()
    for stack, other in ((ours.encoder, theirs.encoder), (ours.decoder, theirs.decoder)):
        if norm_first:
            other.norm.load_state_dict(stack.norm.state_dict())
        else:
            other.norm = None
        for layer, twin in zip(stack.layers, other.layers, strict=True):
            attentions = [(layer.self_attention, twin.self_attn)]
            if stack is ours.decoder:
                attentions.append((layer.cross_attention, twin.multihead_attn))
            with torch.no_grad():
                for one, two in attentions:
                    inputs = (one.query, one.key, one.value)
                    two.in_proj_weight.copy_(torch.cat([linear.weight for linear in inputs]))
                    two.in_proj_bias.copy_(torch.cat([linear.bias for linear in inputs]))
                    two.out_proj.load_state_dict(one.out.state_dict())
            for i in range(1, 2 + len(attentions)):
                norm = getattr(layer, f"residual_{i}").norm
                getattr(twin, f"norm{i}").load_state_dict(norm.state_dict())
            twin.linear1.load_state_dict(layer.ffn.inner.state_dict())
            twin.linear2.load_state_dict(layer.ffn.outer.state_dict())
    x = ours.src_embedding(SRC) * 4 + sinusoidal(4, 16).double()  # sqrt(16) = 4
    y = ours.tgt_embedding(TGT) * 4 + sinusoidal(3, 16).double()
    hidden = theirs(
        x, y, tgt_mask=~causal_mask(3),
        src_key_padding_mask=SRC == 0, memory_key_padding_mask=SRC == 0,
    )  # fmt: skip
    expected = hidden @ ours.tgt_embedding.weight.T
    torch.testing.assert_close(ours(SRC, TGT), expected, atol=1e-9, rtol=1e-9)


# ---- 論文の寸法 --------------------------------------------------------------------------


def parameters_by_hand(d, d_ff, n, vocabulary):
    """論文の式から数えたパラメーター数(埋め込みは三か所で共有する)。"""
    attention = 4 * d * d  # W^Q, W^K, W^V, W^O
    ffn = d * d_ff + d_ff + d_ff * d + d
    norm = 2 * d
    encoder_layer = attention + ffn + 2 * norm
    decoder_layer = 2 * attention + ffn + 3 * norm
    return n * (encoder_layer + decoder_layer) + vocabulary * d


@pytest.mark.parametrize(
    ("preset", "d", "d_ff", "by_hand"),
    [("base", 512, 2048, 63_045_632), ("big", 1024, 4096, 214_171_648)],
)
def test_parameters_of_the_papers_models(preset, d, d_ff, by_hand):
    assert parameters_by_hand(d, d_ff, 6, 37_000) == by_hand
    config = getattr(TransformerConfig, preset)(37_000, 37_000, share_embeddings=True)
    with torch.device("meta"):
        model = Transformer(config)
    assert sum(p.numel() for p in model.parameters()) == by_hand


def test_presets_are_table_3():
    base, big = TransformerConfig.base(5, 6), TransformerConfig.big(5, 6, dropout=0.1)
    sizes = ("n_layers", "d_model", "d_ff", "n_heads", "dropout", "norm_first", "tgt_vocab_size")
    assert [getattr(base, s) for s in sizes] == [6, 512, 2048, 8, 0.1, False, 6]
    assert [getattr(big, s) for s in sizes] == [6, 1024, 4096, 16, 0.1, False, 6]
    assert TransformerConfig.big(5, 6).dropout == 0.3
    assert base.tie_output


# ---- マスク、詰めもの、位置 ---------------------------------------------------------------


@pytest.mark.parametrize("norm_first", [False, True])
def test_later_target_tokens_change_nothing(norm_first):
    model = shaken(norm_first=norm_first)
    changed = TGT.clone()
    changed[:, 2] = 3
    torch.testing.assert_close(model(SRC, changed)[:, :2], model(SRC, TGT)[:, :2], rtol=0, atol=0)
    assert not torch.allclose(model(SRC, changed)[:, 2], model(SRC, TGT)[:, 2])


def test_earlier_target_tokens_and_every_source_token_matter():
    model = shaken()
    tgt = TGT.clone()
    tgt[:, 0] = 3
    assert not torch.allclose(model(SRC, tgt)[:, 2], model(SRC, TGT)[:, 2])
    for j in range(4):
        src = SRC[:1].clone()
        src[0, j] = 9
        assert not torch.allclose(model(src, TGT[:1])[:, 0], model(SRC[:1], TGT[:1])[:, 0])


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("more", [1, 5])
def test_padding_never_changes_a_result(norm_first, more):
    model = shaken(norm_first=norm_first)
    longer = nn.functional.pad(SRC, (0, more))
    torch.testing.assert_close(model(longer, TGT), model(SRC, TGT), atol=1e-12, rtol=0)
    torch.testing.assert_close(model(SRC[1:, :2], TGT[1:]), model(SRC, TGT)[1:])
    padded = nn.functional.pad(TGT, (0, more))
    torch.testing.assert_close(model(SRC, padded)[:, :3], model(SRC, TGT), atol=1e-12, rtol=0)


def test_a_source_of_padding_alone_gives_finite_logits_and_gradients():
    model = shaken()
    logits = model(torch.tensor([[0, 0, 0, 0], [7, 8, 0, 0]]), TGT)
    torch.testing.assert_close(logits[1], model(SRC, TGT)[1])
    logits.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_without_positions_the_encoder_permutes_with_its_input():
    model, order = shaken(positions="none"), torch.tensor([2, 0, 3, 1])
    src = SRC[:1]
    torch.testing.assert_close(model.encode(src[:, order]), model.encode(src)[:, order])
    torch.testing.assert_close(model(src[:, order], TGT[:1]), model(src, TGT[:1]))
    ordered = shaken()
    assert not torch.allclose(ordered(src[:, order], TGT[:1]), ordered(src, TGT[:1]))


def test_embeddings_are_scaled_by_the_root_of_d_model():
    model = shaken()
    expected = model.src_embedding.weight[SRC] * math.sqrt(16) + sinusoidal(4, 16).double()
    torch.testing.assert_close(model._embed(SRC, model.src_embedding, "src"), expected)
    fresh = Transformer(TransformerConfig(src_vocab_size=4000, tgt_vocab_size=5, **SMALL))
    scaled = fresh.src_embedding.weight * 4
    assert float(scaled.detach().std()) == pytest.approx(1.0, abs=0.02)


def test_the_same_seed_gives_the_same_weights(monkeypatch):
    """乱数を引く順が決まっている(集合で回すと、順が起動ごとに変わってしまう)。"""
    drawn = []
    monkeypatch.setattr(nn.init, "normal_", lambda w, mean=0.0, std=1.0: drawn.append(len(w)))
    for _ in range(5):
        Transformer(TransformerConfig(src_vocab_size=11, tgt_vocab_size=13, **SMALL))
    assert drawn == [11, 13, 11, 13] * 5


def test_learned_positions_are_parameters_and_sinusoids_are_not_stored():
    learned, fixed = shaken(positions="learned"), shaken()
    assert "positions" in dict(learned.named_parameters())
    assert not any("positions" in name for name in fixed.state_dict())


def test_tying_and_sharing():
    tied, free = shaken(), shaken(tie_output=False)
    assert tied.output.weight is tied.tgt_embedding.weight
    assert tied.src_embedding is not tied.tgt_embedding
    assert free.output.weight is not free.tgt_embedding.weight
    shared = shaken(tgt_vocab_size=11, share_embeddings=True)
    assert shared.output.weight is shared.src_embedding.weight


# ---- キャッシュと注意の重み ----------------------------------------------------------------


@pytest.mark.parametrize("positions", ["sinusoidal", "learned", "none"])
@pytest.mark.parametrize("norm_first", [False, True])
def test_the_cache_changes_no_logit(positions, norm_first):
    model = shaken(positions=positions, norm_first=norm_first)
    tgt = torch.tensor([[1, 9, 8, 4, 12, 3], [1, 7, 6, 5, 2, 2]])
    with torch.no_grad():
        memory, cache = model.encode(SRC), model.new_cache()
        parts = [model.decode(t, memory, SRC, cache) for t in tgt.split([1, 1, 3, 1], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(SRC, tgt), atol=1e-12, rtol=0)


def test_attention_maps_are_distributions_that_respect_the_masks():
    maps = shaken().attention_maps(SRC, TGT)
    shapes = {"encoder": (2, 4, 4, 4), "decoder": (2, 4, 3, 3), "cross": (2, 4, 3, 4)}
    for name, shape in shapes.items():
        assert [m.shape for m in maps[name]] == [shape] * 2
        for m in maps[name]:
            torch.testing.assert_close(m.sum(-1), torch.ones(shape[:-1]).double())
    assert maps["cross"][0][1, :, :, 2:].eq(0).all()
    assert maps["encoder"][1][1, :, :, 2:].eq(0).all()
    assert maps["decoder"][0].triu(1).eq(0).all()


def test_a_saved_model_can_be_read_back(tmp_path):
    from safetensors.torch import load_model, save_model  # noqa: PLC0415

    model, other = shaken(), shaken(seed=1)
    save_model(model, tmp_path / "model.safetensors")
    load_model(other, tmp_path / "model.safetensors")
    torch.testing.assert_close(other(SRC, TGT), model(SRC, TGT))


# ---- おかしな入力 ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"d_model": 10}, ValueError, "d_model は n_heads で割り切れる"),
        ({"d_model": 9, "n_heads": 3}, ValueError, "d_model を偶数"),
        ({"n_layers": 0}, ValueError, "n_layers"),
        ({"d_ff": 2.5}, TypeError, "d_ff"),
        ({"dropout": 1.0}, ValueError, "dropout"),
        ({"src_vocab_size": 0}, ValueError, "src_vocab_size"),
        ({"max_len": 0}, ValueError, "max_len"),
        ({"positions": "rotary"}, ValueError, "positions は sinusoidal"),
        ({"activation": "tanh"}, ValueError, "activation"),
        ({"share_embeddings": True}, ValueError, "share_embeddings"),
    ],
)
def test_bad_sizes_are_named(changes, error, words):
    with pytest.raises(error, match=words):
        shaken(**changes)


@pytest.mark.parametrize(
    ("src", "tgt", "error", "words"),
    [
        (SRC, torch.tensor([[1, 13, 3]] * 2), ValueError, "tgt は 0 以上 13 未満"),
        (torch.tensor([[1, 11]] * 2), TGT, ValueError, "src は 0 以上 11 未満"),
        (torch.tensor([[1, -1]] * 2), TGT, ValueError, "src は 0 以上"),
        (SRC[:0], TGT[:0], ValueError, "src の形"),
        (SRC, TGT[:, :0], ValueError, "tgt の形"),
        (SRC[0], TGT, ValueError, "src の形"),
        (SRC.float(), TGT, TypeError, "src には整数"),
        ([[1]], TGT, TypeError, "src には整数"),
        (torch.ones(2, 13).long(), TGT, ValueError, "src の長さは max_len = 12 以下"),
        (SRC, torch.ones(2, 13).long(), ValueError, "tgt の長さは max_len = 12 以下"),
        (SRC[:1], TGT, ValueError, "src と tgt の文の数"),
    ],
)
def test_bad_ids_are_named(src, tgt, error, words):
    with pytest.raises(error, match=words):
        shaken()(src, tgt)


def test_the_cache_respects_the_maximum_length():
    model = shaken()
    with torch.no_grad():
        memory, cache = model.encode(SRC), model.new_cache()
        model.decode(torch.ones(2, 12).long(), memory, SRC, cache)
        with pytest.raises(ValueError, match="tgt の長さは max_len = 12 以下にしてください: 13"):
            model.decode(torch.ones(2, 1).long(), memory, SRC, cache)


def test_the_model_wants_a_config():
    with pytest.raises(TypeError, match="TransformerConfig"):
        Transformer({"d_model": 16})
