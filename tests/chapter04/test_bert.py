"""chapter04.bert: transformers との一致、パラメーターの数、穴のあけ方、重みの読みこみ。"""

import copy

import pytest
import torch
import torch.nn.functional as F
from transformers import BertConfig as TheirConfig
from transformers import BertForMaskedLM, BertForPreTraining

from chapter04.bert import IGNORED, PRESETS, Bert, BertConfig, mask_tokens, n_parameters

SMALL = {"vocab_size": 23, "context": 9, "d_model": 16, "n_heads": 4, "n_layers": 2, "d_ff": 24}
IDS = torch.tensor([[1, 4, 5, 6, 2], [1, 7, 2, 0, 0]])
SEGMENTS = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, 0, 0]])


def small(**changes):
    return BertConfig(**{**SMALL, "dropout": 0.0, **changes})


def twin(config, kind=BertForMaskedLM):
    """定数項も層正規化も乱数にした、倍精度の transformers のモデル。"""
    torch.manual_seed(0)
    theirs = kind(TheirConfig(
        vocab_size=config.vocab_size, hidden_size=config.d_model, type_vocab_size=config.n_segments,
        num_hidden_layers=config.n_layers, num_attention_heads=config.n_heads,
        intermediate_size=config.d_ff, max_position_embeddings=config.context,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        pad_token_id=None,  # 0 を特別に扱わない(扱うと、その埋め込みの勾配が 0 にされる)
    )).double().eval()  # fmt: skip
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return theirs


def shaken(**changes):
    config = small(**changes)
    return Bert.from_huggingface(twin(config).state_dict(), config).eval()


# ---- transformers との一致 -----------------------------------------------------------------


@pytest.mark.parametrize("padded", [False, True])
def test_logits_and_gradients_equal_transformers(padded):
    config = small(n_segments=3)
    theirs = twin(config)
    ours = Bert.from_huggingface(theirs.state_dict(), config).eval()
    mask = IDS != 0 if padded else None
    expected = theirs(
        IDS, token_type_ids=SEGMENTS, attention_mask=None if mask is None else mask.long()
    ).logits
    logits = ours(IDS, SEGMENTS, mask)
    seen = torch.ones_like(IDS, dtype=torch.bool) if mask is None else mask
    torch.testing.assert_close(logits[seen], expected[seen], atol=1e-10, rtol=1e-10)

    # 勾配も、すべての重みについて(二つの写しの名前は from_huggingface で揃う)
    logits[seen].sin().sum().backward()
    expected[seen].sin().sum().backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    gradients = Bert.from_huggingface(gradients, config).state_dict()
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-9, rtol=1e-9, msg=name)
    assert len(dict(ours.named_parameters())) == len(list(theirs.parameters()))


def test_the_next_sentence_head_equals_transformers():
    config = small(next_sentence=True)
    theirs = twin(config, BertForPreTraining)
    ours = Bert.from_huggingface(theirs.state_dict(), config).eval()
    mask = IDS != 0
    expected = theirs(IDS, token_type_ids=SEGMENTS, attention_mask=mask.long())
    hidden = ours.hidden(IDS, SEGMENTS, mask)
    torch.testing.assert_close(
        ours.next_sentence_logits(hidden), expected.seq_relationship_logits, atol=1e-10, rtol=0
    )
    torch.testing.assert_close(ours.logits(hidden)[mask], expected.prediction_logits[mask])


def test_the_layer_norm_epsilon_is_used_everywhere():
    """ε を大きくすると、どの層正規化でも差が見える。"""
    config = small(layer_norm_eps=0.5)
    theirs = twin(config)
    for module in theirs.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 0.5
    ours = Bert.from_huggingface(theirs.state_dict(), config).eval()
    torch.testing.assert_close(ours(IDS), theirs(IDS).logits, atol=1e-10, rtol=1e-10)
    assert BertConfig().layer_norm_eps == 1e-12


def test_the_loss_equals_transformers():
    config = small()
    theirs = twin(config)
    ours = Bert.from_huggingface(theirs.state_dict(), config).eval()
    labels = torch.tensor([[IGNORED, 4, IGNORED, 6, IGNORED], [IGNORED] * 5])
    loss = F.cross_entropy(ours(IDS).flatten(0, 1), labels.flatten())
    torch.testing.assert_close(loss, theirs(IDS, labels=labels).loss)


# ---- パラメーターの数 ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "size", "by_hand"),
    [("bert-base", (768, 12, 12), 109_514_298), ("bert-large", (1024, 16, 24), 335_174_458)],
)
@pytest.mark.parametrize("next_sentence", [False, True])
def test_parameters_of_the_published_sizes(preset, size, by_hand, next_sentence):
    d_model, n_heads, n_layers = size
    config = BertConfig.preset(preset, next_sentence=next_sentence)
    kind = BertForPreTraining if next_sentence else BertForMaskedLM
    with torch.device("meta"):
        theirs = kind(TheirConfig(
            hidden_size=d_model, num_attention_heads=n_heads, num_hidden_layers=n_layers,
            intermediate_size=4 * d_model,
        ))  # fmt: skip
        ours = Bert(config)
    counts = {sum(p.numel() for p in model.parameters()) for model in (ours, theirs)}
    more = d_model**2 + 3 * d_model + 2 if next_sentence else 0
    assert counts == {n_parameters(config)} == {by_hand + more}
    assert (config.d_model, config.n_heads, config.n_layers) == size
    assert config.dropout == 0.1


def test_parameters_of_odd_sizes():
    config = small(n_segments=5, next_sentence=True, d_ff=7, n_layers=3)
    assert sum(p.numel() for p in Bert(config).parameters()) == n_parameters(config)
    assert BertConfig.preset("bert-base", vocab_size=7).vocab_size == 7
    assert set(PRESETS) == {"bert-base", "bert-large"}


def test_fresh_weights_follow_the_released_code():
    model = Bert(BertConfig(vocab_size=3000, d_model=64, n_heads=1, n_layers=1))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        else:
            assert parameter.abs().max() <= 0.04, name
            assert float(parameter.detach().std()) == pytest.approx(0.0176, rel=0.1), name
    assert model.output.weight is model.token_embedding.weight


# ---- 見える範囲 ----------------------------------------------------------------------------


def test_every_position_sees_both_sides():
    model = shaken()
    for j in range(5):
        changed = IDS[:1].clone()
        changed[0, j] = 9
        different = (model(changed) - model(IDS[:1])).abs().amax(-1)[0]
        assert (different > 1e-6).all()


@pytest.mark.parametrize("more", [1, 4])
def test_padding_never_changes_a_result(more):
    model, longer = shaken(), F.pad(IDS, (0, more))
    logits = model(longer, mask=longer != 0)
    torch.testing.assert_close(logits[0, :5], model(IDS[:1])[0], atol=1e-10, rtol=0)
    torch.testing.assert_close(logits[1, :3], model(IDS[1:, :3])[0], atol=1e-10, rtol=0)
    assert not torch.allclose(model(longer)[1, :3], logits[1, :3])


def test_attention_maps_respect_the_mask():
    maps = shaken().attention_maps(IDS, IDS != 0)
    assert [m.shape for m in maps] == [(2, 4, 5, 5)] * 2
    for m in maps:
        torch.testing.assert_close(m.sum(-1), torch.ones(2, 4, 5).double())
        assert m[1, :, :, 3:].eq(0).all()
        assert m[0].gt(0).all()


def test_dropout_acts_on_embeddings_attention_and_sublayers():
    model = Bert(small(dropout=0.25))
    rates = [m.p for m in model.modules() if isinstance(m, torch.nn.Dropout) and m.p]
    assert rates == [0.25] * 5  # 埋め込みと、二つの層の二つずつの副層
    assert [layer.self_attention.dropout for layer in model.layers] == [0.25] * 2
    torch.manual_seed(0)
    assert not torch.equal(model(IDS), model(IDS))

    # 埋め込みのドロップアウトは、層正規化の後に掛かる
    inputs = []
    model.layers[0].register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    for training in (True, False):
        model.train(training)(IDS)
    dropped, whole = inputs
    kept = dropped != 0
    assert 0.1 < 1 - kept.float().mean() < 0.4
    torch.testing.assert_close(dropped, whole / 0.75 * kept)


# ---- 重みの読みこみ ------------------------------------------------------------------------


def test_the_copy_is_a_copy_and_keeps_the_type():
    theirs = twin(small())
    ours = Bert.from_huggingface(theirs.state_dict(), small())
    before = ours(IDS)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.zero_()
    torch.testing.assert_close(ours(IDS), before, rtol=0, atol=0)
    assert all(p.dtype == torch.float64 and p.requires_grad for p in ours.parameters())
    assert ours.output.weight is ours.token_embedding.weight


@pytest.mark.parametrize(("n_heads", "next_sentence"), [(1, False), (2, True)])
def test_the_sizes_are_inferred_from_the_shapes(n_heads, next_sentence):
    sizes = {"d_model": 64 * n_heads, "n_heads": n_heads, "n_segments": 3}
    config = small(**sizes, next_sentence=next_sentence)
    theirs = twin(config, BertForPreTraining if next_sentence else BertForMaskedLM)
    ours = Bert.from_huggingface(theirs.state_dict()).eval()
    inferred = copy.copy(ours.config)
    assert inferred == BertConfig(**{**vars(config), "dropout": 0.1})
    output = theirs(IDS)
    expected = output.prediction_logits if next_sentence else output.logits
    torch.testing.assert_close(ours(IDS), expected, atol=1e-9, rtol=1e-9)
    with pytest.raises(ValueError, match="config を渡してください"):
        Bert.from_huggingface(twin(small()).state_dict())


def test_old_names_and_left_out_twins_are_read():
    weights = twin(small()).state_dict()
    old = {"bert.embeddings.position_ids": torch.arange(9)[None]}
    for name, value in weights.items():
        if "decoder" not in name:
            renamed = name.replace("LayerNorm.weight", "LayerNorm.gamma")
            old[renamed.replace("LayerNorm.bias", "LayerNorm.beta")] = value
    expected = Bert.from_huggingface(weights, small())(IDS)
    torch.testing.assert_close(Bert.from_huggingface(old, small())(IDS), expected)


def test_every_missing_extra_or_misshapen_key_is_named():
    weights = dict(twin(small()).state_dict())
    query = "bert.encoder.layer.1.attention.self.query.weight"
    norm = "bert.embeddings.LayerNorm.bias"
    extra = {"bert.pooler.dense.weight": torch.ones(1), "cls.other": torch.ones(1)}
    broken = {k: v for k, v in weights.items() if k not in (query, norm)} | extra
    with pytest.raises(ValueError, match="足りないキー") as caught:
        Bert.from_huggingface(broken, small())
    assert all(name in str(caught.value) for name in (query, norm, *extra, "余るキー"))
    assert "intermediate" not in str(caught.value)
    with pytest.raises(ValueError, match="足りないキー") as caught:
        Bert.from_huggingface(weights, small(n_layers=3))
    assert str(caught.value).count("layer.2.") == 16
    with pytest.raises(ValueError, match="余るキー") as caught:
        Bert.from_huggingface(weights, small(n_layers=1))
    assert str(caught.value).count("layer.1.") == 16

    decoder = "cls.predictions.decoder.weight"
    shapes = {query: torch.ones(16, 15), norm: torch.ones(17), decoder: torch.ones(16, 23)}
    wanted = ("(16, 15)(正しくは (16, 16))", "(17,)(正しくは (16,))", "(16, 23)(正しくは (23, 16))")
    broken = {k: v for k, v in weights.items() if "segment" not in k and "token_type" not in k}
    with pytest.raises(ValueError, match=r"足りないキー: .*token_type.*余るキー: cls\.o") as caught:
        Bert.from_huggingface({**broken, **shapes, "cls.other": torch.ones(1)}, small())
    for name, words in zip(shapes, wanted, strict=True):
        assert f"{name} {words}" in str(caught.value)
    for name in ("cls.predictions.decoder.weight", "cls.predictions.decoder.bias"):
        with pytest.raises(ValueError, match=f"{name} は .* と同じ"):
            Bert.from_huggingface({**weights, name: weights[name] + 1}, small())
    with pytest.raises(TypeError, match=r"cls\.predictions\.bias はテンソル"):
        Bert.from_huggingface({**weights, "cls.predictions.bias": [0.0]}, small())
    with pytest.raises(ValueError, match="足りないキー"):
        Bert.from_huggingface({})


@pytest.mark.parametrize("config", [small(), None])
@pytest.mark.parametrize(
    ("changed", "dtype", "words"),
    [
        ("", torch.int64, r"decoder\.bias は torch\.int64"),
        ("position", torch.int64, r"position_embeddings\.weight は torch\.int64"),
        ("position", torch.float32, r"torch\.float64.*position_embeddings.* は torch\.float32"),
        ("decoder.weight", torch.float32, r"decoder\.weight は torch\.float32"),
    ],
)
def test_dtypes_must_be_one_floating_type(changed, dtype, words, config):
    weights = twin(config or small(d_model=64, n_heads=1)).state_dict()
    mixed = {k: v.to(dtype) if changed in k else v for k, v in weights.items()}
    with pytest.raises(TypeError, match=words):
        Bert.from_huggingface(mixed, config)


def test_another_config_and_a_flat_embedding_are_refused():
    weights = twin(small(d_model=64, n_heads=1)).state_dict()
    with pytest.raises(TypeError, match="config には BertConfig"):
        Bert.from_huggingface(weights, {})  # pyright: ignore[reportArgumentType]
    flat = {"bert.embeddings.word_embeddings.weight": torch.tensor(1.0).double()}
    with pytest.raises(ValueError, match="config を渡してください"):
        Bert.from_huggingface({**weights, **flat})


# ---- 穴のあけ方 ----------------------------------------------------------------------------

SPECIAL = (0, 1, 2)
MASK = 3
VOCABULARY = 13


def masked(ids, seed=0, **changes):
    generator = torch.Generator().manual_seed(seed)
    return mask_tokens(ids, VOCABULARY, MASK, SPECIAL, generator, **changes)


def test_the_80_10_10_rule():
    """20 万個の穴で、三つの割合と、替える先が一様なことを確かめる(標準偏差の 5 倍まで)。"""
    ids = torch.full((20_000, 20), 7)
    inputs, labels = masked(ids, rate=0.5)
    chosen = labels != IGNORED
    assert chosen.sum(1).eq(10).all()
    n = 200_000
    counts = inputs[chosen].bincount(minlength=VOCABULARY)

    def near(share):
        return pytest.approx(n * share, abs=5 * (n * share * (1 - share)) ** 0.5)

    assert int(counts[MASK]) == near(0.8)
    assert int(counts[7]) == near(0.1 + 0.1 / 9)  # そのまま、または偶然同じトークン
    for token in (4, 5, 6, 8, 9, 10, 11, 12):
        assert int(counts[token]) == near(0.1 / 9)
    assert not counts[list(SPECIAL)].any()
    assert chosen.float().mean(0).tolist() == pytest.approx([0.5] * 20, abs=0.02)
    assert inputs[~chosen].eq(7).all()
    assert labels[chosen].eq(7).all()


def test_labels_are_the_original_tokens_and_special_tokens_are_never_chosen():
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(VOCABULARY, (3000, 15), generator=generator)
    before = ids.clone()
    inputs, labels = masked(ids, rate=0.3)
    chosen, special = labels != IGNORED, torch.isin(ids, torch.tensor([*SPECIAL, MASK]))
    assert torch.equal(ids, before)
    assert torch.equal(labels[chosen], ids[chosen])
    assert torch.equal(inputs[~chosen], ids[~chosen])
    assert not (chosen & special).any()
    for row, picked in zip(special, chosen, strict=True):
        n = int((~row).sum())
        assert int(picked.sum()) == (max(1, round(0.3 * n)) if n else 0)
    # どのトークンも、位置によらず選ばれる
    assert (chosen.float().mean(0) > 0.15).all()


@pytest.mark.parametrize(("n", "expected"), [(1, 1), (3, 1), (9, 1), (11, 2), (20, 3), (100, 15)])
def test_fifteen_percent_and_at_least_one(n, expected):
    ids = torch.full((4, n + 2), 8)
    ids[:, 0], ids[:, -1] = 1, 2
    _, labels = masked(ids)
    assert (labels != IGNORED).sum(1).tolist() == [expected] * 4


def test_sentences_of_special_tokens_alone_have_nothing_to_guess():
    inputs, labels = masked(torch.tensor([[1, 2, 0], [1, MASK, 2]]))
    assert inputs.tolist() == [[1, 2, 0], [1, MASK, 2]]
    assert labels.eq(IGNORED).all()


def test_the_generator_decides_everything():
    ids = torch.full((50, 20), 7)
    one, two, other = masked(ids, 5), masked(ids, 5), masked(ids, 6)
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])
    assert not torch.equal(one[1], other[1])
    assert not torch.equal(one[1][0], one[1][1])  # 文ごとに違う所を選ぶ


# ---- おかしな入力 --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"d_model": 18}, ValueError, "d_model は n_heads で割り切れる"),
        ({"n_layers": 0}, ValueError, "n_layers"),
        ({"d_ff": 2.5}, TypeError, "d_ff"),
        ({"dropout": 1.0}, ValueError, "dropout"),
        ({"vocab_size": 0}, ValueError, "vocab_size"),
        ({"n_segments": 0}, ValueError, "n_segments"),
        ({"context": 0}, ValueError, "context"),
        ({"layer_norm_eps": -1.0}, ValueError, "layer_norm_eps"),
    ],
)
def test_bad_sizes_are_named(changes, error, words):
    with pytest.raises(error, match=words):
        small(**changes)


def test_bad_presets_and_configs_are_refused():
    with pytest.raises(ValueError, match="bert-base, bert-large"):
        BertConfig.preset("bert-huge")
    with pytest.raises(TypeError, match="BertConfig"):
        Bert({"d_model": 16})
    with pytest.raises(ValueError, match="next_sentence"):
        shaken().next_sentence_logits(torch.zeros(1, 2, 16))


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((IDS + 20,), ValueError, "ids は 0 以上 23 未満"),
        ((IDS - 1,), ValueError, "ids は 0 以上"),
        ((IDS[0],), ValueError, "ids の形"),
        ((IDS[:, :0],), ValueError, "ids の形"),
        ((IDS.float(),), TypeError, "ids には整数"),
        (
            (torch.ones(1, 10).long(),),
            ValueError,
            "ids の長さは context = 9 以下にしてください: 10",
        ),
        ((IDS, SEGMENTS + 1), ValueError, "segments は 0 以上 2 未満"),
        ((IDS, SEGMENTS[:, :4]), ValueError, "segments の形は ids に"),
        ((IDS, SEGMENTS.bool()), TypeError, "segments には整数"),
        ((IDS, None, IDS), TypeError, "mask には真偽値"),
        ((IDS, None, (IDS != 0)[:, None, None]), ValueError, "mask の形は ids に"),
    ],
)
def test_bad_inputs_are_named(arguments, error, words):
    with pytest.raises(error, match=words):
        shaken()(*arguments)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"ids": torch.tensor([[13]])}, ValueError, "ids は 0 以上 13 未満"),
        ({"ids": torch.tensor([7])}, ValueError, "ids の形"),
        ({"ids": [[7]]}, TypeError, "ids には整数"),
        ({"vocab_size": 0}, ValueError, "vocab_size"),
        ({"mask_id": 13}, ValueError, "mask_id は 13 未満"),
        ({"mask_id": -1}, ValueError, "mask_id は 0 以上"),
        ({"rate": 0.0}, ValueError, "rate は 0 より大きく"),
        ({"rate": 1.1}, ValueError, "rate は 0 より大きく"),
        ({"special_ids": range(13)}, ValueError, "special_ids に、語彙のすべて"),
    ],
)
def test_bad_masking_is_named(changes, error, words):
    given = {
        "ids": torch.tensor([[7, 8]]), "vocab_size": 13, "mask_id": MASK, "special_ids": SPECIAL,
        "generator": torch.Generator(),
    }  # fmt: skip
    with pytest.raises(error, match=words):
        mask_tokens(**{**given, **changes})
