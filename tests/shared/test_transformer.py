"""shared.transformer: torch.nn の層との一致、キャッシュ、入力の検査。"""

import pytest
import torch
from torch import nn

from shared.attention import KVCache, causal_mask, padding_mask
from shared.transformer import Decoder, DecoderLayer, Encoder, EncoderLayer, FeedForward, Residual

D, H, FF = 12, 4, 20


def randn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def shaken(module):
    torch.manual_seed(0)
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return module


def copy_attention(ours, theirs):
    inputs = (ours.query, ours.key, ours.value)
    theirs.in_proj_weight.copy_(torch.cat([linear.weight for linear in inputs]))
    theirs.in_proj_bias.copy_(torch.cat([linear.bias for linear in inputs]))
    theirs.out_proj.load_state_dict(ours.out.state_dict())


@torch.no_grad()
def copy_layer(ours, theirs):
    copy_attention(ours.self_attention, theirs.self_attn)
    norms = [ours.residual_1.norm, ours.residual_2.norm]
    if isinstance(ours, DecoderLayer):
        copy_attention(ours.cross_attention, theirs.multihead_attn)
        norms.append(ours.residual_3.norm)
    for i, norm in enumerate(norms, start=1):
        getattr(theirs, f"norm{i}").load_state_dict(norm.state_dict())
    theirs.linear1.load_state_dict(ours.ffn.inner.state_dict())
    theirs.linear2.load_state_dict(ours.ffn.outer.state_dict())


def gradients(output, *inputs):
    return torch.autograd.grad(output.sin().sum(), inputs)


MEMORY_IDS = torch.tensor([[5, 6, 7, 8], [5, 6, 0, 0]])


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_encoder_equals_torch(norm_first, activation, padded, causal):
    ours = shaken(Encoder(2, D, H, FF, 0.0, norm_first=norm_first, activation=activation))
    layer = nn.TransformerEncoderLayer(
        D, H, FF, 0.0, activation, batch_first=True, norm_first=norm_first, dtype=torch.float64
    )
    norm = nn.LayerNorm(D, dtype=torch.float64) if norm_first else None
    theirs = nn.TransformerEncoder(layer, 2, norm, enable_nested_tensor=False)
    for one, other in zip(ours.layers, theirs.layers, strict=True):
        copy_layer(one, other)
    if norm is not None:
        theirs.norm.load_state_dict(ours.norm.state_dict())
    x = randn(2, 4, D).requires_grad_()
    output = ours(x, padding_mask(MEMORY_IDS) if padded else None, causal=causal)
    expected = theirs(
        x,
        mask=~causal_mask(4) if causal else None,
        src_key_padding_mask=MEMORY_IDS == 0 if padded else None,
    )
    torch.testing.assert_close(output, expected, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(
        gradients(output, x, ours.layers[0].ffn.inner.weight),
        gradients(expected, x, theirs.layers[0].linear1.weight),
        atol=1e-9,
        rtol=1e-9,
    )


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_decoder_equals_torch(norm_first, padded):
    ours = shaken(Decoder(2, D, H, FF, 0.0, norm_first=norm_first))
    layer = nn.TransformerDecoderLayer(
        D, H, FF, 0.0, batch_first=True, norm_first=norm_first, dtype=torch.float64
    )
    norm = nn.LayerNorm(D, dtype=torch.float64) if norm_first else None
    theirs = nn.TransformerDecoder(layer, 2, norm)
    for one, other in zip(ours.layers, theirs.layers, strict=True):
        copy_layer(one, other)
    if norm is not None:
        theirs.norm.load_state_dict(ours.norm.state_dict())
    x, memory = randn(2, 5, D, seed=1).requires_grad_(), randn(2, 4, D, seed=2).requires_grad_()
    output = ours(x, memory, padding_mask(MEMORY_IDS) if padded else None)
    expected = theirs(
        x, memory, tgt_mask=~causal_mask(5),
        memory_key_padding_mask=MEMORY_IDS == 0 if padded else None,
    )  # fmt: skip
    torch.testing.assert_close(output, expected, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(
        gradients(output, x, memory), gradients(expected, x, memory), atol=1e-9, rtol=1e-9
    )


def test_the_whole_of_nn_transformer_is_ours_with_a_final_norm():
    ours = nn.ModuleList([shaken(Encoder(2, D, H, FF, 0.0)), shaken(Decoder(2, D, H, FF, 0.0))])
    theirs = nn.Transformer(D, H, 2, 2, FF, 0.0, batch_first=True, dtype=torch.float64)
    for one, other in zip(ours, (theirs.encoder, theirs.decoder), strict=True):
        for layer, twin in zip(one.layers, other.layers, strict=True):
            copy_layer(layer, twin)
    src, tgt = randn(2, 4, D, seed=1), randn(2, 5, D, seed=2)
    memory = nn.functional.layer_norm(ours[0](src), (D,))
    output = nn.functional.layer_norm(ours[1](tgt, memory), (D,))
    expected = theirs(src, tgt, tgt_mask=~causal_mask(5))
    torch.testing.assert_close(output, expected, atol=1e-10, rtol=1e-10)


def test_residual_places_the_norm_as_named():
    x, shift = randn(2, 3, D), randn(D, seed=5)
    for norm_first in (False, True):
        wrapped = shaken(Residual(D, 0.0, norm_first))
        norm = wrapped.norm
        expected = x + norm(x) * shift if norm_first else norm(x + x * shift)
        torch.testing.assert_close(wrapped(x, lambda h: h * shift), expected)


def test_dropout_is_on_the_sublayer_not_on_the_residual():
    wrapped = Residual(D, 0.999999, norm_first=True).double()
    x = randn(4, 4, D)
    assert (wrapped(x, lambda h: h) == x).float().mean() > 0.99


def test_feed_forward_is_equation_2():
    ffn = shaken(FeedForward(3, 5))
    x = randn(7, 3)
    inner = (x @ ffn.inner.weight.T + ffn.inner.bias).clamp(min=0)
    torch.testing.assert_close(ffn(x), inner @ ffn.outer.weight.T + ffn.outer.bias)


@pytest.mark.parametrize("name", ["relu", "gelu", "gelu_tanh", "silu"])
def test_activations(name):
    ffn = shaken(FeedForward(3, 5, activation=name))
    x = randn(7, 3)
    h = ffn.inner(x)
    phi = 0.5 * (1 + torch.erf(h / 2**0.5))
    tanh = 0.5 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (h + 0.044715 * h**3)))
    expected = {"relu": h * (h > 0), "gelu": h * phi, "gelu_tanh": h * tanh,
                "silu": h / (1 + torch.exp(-h))}[name]  # fmt: skip
    torch.testing.assert_close(ffn(x), ffn.outer(expected))


@pytest.mark.parametrize("norm_first", [False, True])
def test_the_decoder_cache_changes_nothing(norm_first):
    decoder = shaken(Decoder(2, D, H, FF, 0.0, norm_first=norm_first))
    x, memory, mask = randn(2, 6, D), randn(2, 4, D, seed=3), padding_mask(MEMORY_IDS)
    expected = decoder(x, memory, mask)
    cache = decoder.new_cache()
    with torch.no_grad():
        parts = [decoder(part, memory, mask, cache=cache) for part in x.split([1, 3, 2], dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), expected, atol=1e-12, rtol=0)
        assert cache.length == 6
        cache.reorder(torch.tensor([1]))
        one = decoder(x[1:, :1], memory[1:], mask[1:], cache=cache)
    longer = decoder(torch.cat([x[1:], x[1:, :1]], dim=1), memory[1:], mask[1:])
    torch.testing.assert_close(one, longer[:, -1:], atol=1e-12, rtol=0)


def test_a_decoder_only_layer_with_a_cache():
    layer = shaken(EncoderLayer(D, H, FF, 0.0, n_kv_heads=1))
    x, cache = randn(2, 6, D), KVCache()
    with torch.no_grad():
        parts = [layer(part, causal=True, cache=cache) for part in x.split(1, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), layer(x, causal=True))


def test_maps_are_collected_in_the_order_of_the_layers():
    decoder = shaken(Decoder(2, D, H, FF, 0.0))
    x, memory = randn(2, 5, D), randn(2, 4, D, seed=3)
    own, cross = [], []
    output = decoder(x, memory, padding_mask(MEMORY_IDS), maps=(own, cross))
    torch.testing.assert_close(output, decoder(x, memory, padding_mask(MEMORY_IDS)))
    assert [m.shape for m in own] == [(2, H, 5, 5)] * 2
    assert [m.shape for m in cross] == [(2, H, 5, 4)] * 2
    assert own[0].triu(1).eq(0).all()
    assert cross[1][1, :, :, 2:].eq(0).all()
    first = decoder.layers[0].self_attention(x, causal=True, return_weights=True)[1]
    torch.testing.assert_close(own[0], first)


def test_the_position_hook_reaches_self_attention_only():
    class Rotate:
        def rotate(self, q, k, q_positions, k_positions):
            return q, k

    hook = Rotate()
    layer = DecoderLayer(D, H, FF, position=hook)
    assert layer.self_attention.position is hook
    assert layer.cross_attention.position is None


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: FeedForward(3, 0), ValueError, "d_ff"),
        (lambda: FeedForward(3, 4, activation="tanh"), ValueError, "activation は relu"),
        (lambda: EncoderLayer(D, H, FF, 1.5), ValueError, "dropout は 0 以上"),
        (lambda: Encoder(0, D, H, FF), ValueError, "n_layers"),
        (lambda: Decoder(1, D, 5, FF), ValueError, "d_model は n_heads"),
    ],
)
def test_bad_arguments_are_named(call, error, words):
    with pytest.raises(error, match=words):
        call()
