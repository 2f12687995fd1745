"""chapter03.additive_attention: 論文の式を語ごとに書いたものとの一致、詰めもの、向き、例外。"""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from chapter03.additive_attention import AdditiveAttention, RNNSearch, translation_loss

BOS, EOS = 1, 2


def model(attention=True, seed=0):
    torch.manual_seed(seed)
    return RNNSearch(11, 13, d_embedding=5, d_hidden=6, attention=attention)


def source():
    """長さ 4・7・1 の文。"""
    src = torch.randint(3, 11, (3, 7), generator=torch.Generator().manual_seed(1))
    src[0, 4:] = 0
    src[2, 1:] = 0
    return src


def target():
    return torch.randint(3, 13, (3, 5), generator=torch.Generator().manual_seed(2))


# ---- 注意 ----


def test_attention_is_the_equation_of_the_paper():
    """e_ij = v^T tanh(W s + U h_j)、softmax、加重和を、内積一つずつ計算したものと等しい。"""
    torch.manual_seed(0)
    attention = AdditiveAttention(3, 4, 5)
    nn.init.normal_(attention.U.bias)
    s, h = torch.randn(2, 3), torch.randn(2, 6, 4)
    context, weights = attention(s, h)
    W, U, b, v = (
        p.tolist()
        for p in (attention.W.weight, attention.U.weight, attention.U.bias, attention.v.weight[0])
    )
    for i in range(2):
        energies = []
        for hj in h[i].tolist():
            hidden = [
                math.tanh(
                    sum(w * x for w, x in zip(W[r], s[i].tolist(), strict=True))
                    + sum(u * x for u, x in zip(U[r], hj, strict=True))
                    + b[r]
                )
                for r in range(5)
            ]
            energies.append(sum(a * x for a, x in zip(v, hidden, strict=True)))
        total = sum(math.exp(e) for e in energies)
        expected = torch.tensor([math.exp(e) / total for e in energies])
        assert torch.allclose(weights[i], expected, atol=1e-6)
        assert torch.allclose(context[i], expected @ h[i], atol=1e-6)


def test_masked_positions_get_nothing():
    """見てはいけない位置の重みはちょうど 0 で、残りは、そこを除いたものと等しい。"""
    torch.manual_seed(0)
    attention, s, h = AdditiveAttention(3, 4, 5), torch.randn(1, 3), torch.randn(1, 6, 4)
    mask = torch.tensor([[True, False, True, True, False, False]])
    context, weights = attention(s, h, mask)
    alone, kept = attention(s, h[:, mask[0]])
    assert torch.equal(weights[0, ~mask[0]], torch.zeros(3))
    assert torch.allclose(weights[0, mask[0]], kept[0])
    assert torch.allclose(context, alone)


def test_projection_computed_beforehand_changes_nothing():
    """U h をあらかじめ渡しても同じ。渡したものが本当に使われる。"""
    torch.manual_seed(0)
    attention, s, h = AdditiveAttention(3, 4, 5), torch.randn(2, 3), torch.randn(2, 6, 4)
    weights = attention(s, h)[1]
    assert torch.equal(attention(s, h, projected=attention.U(h))[1], weights)
    assert not torch.allclose(attention(s, h, projected=attention.U(h) * 2)[1], weights)


# ---- 読む側 ----


def test_encoder_equals_packed_bidirectional_gru():
    """注釈は、PyTorch の双方向 GRU に、長さを教えて通したものと等しい(詰めもののある文も)。"""
    search, src = model(), source()
    twin = nn.GRU(5, 6, batch_first=True, bidirectional=True)
    with torch.no_grad():
        for name, weight in search.forwards.named_parameters():
            getattr(twin, name).copy_(weight)
        for name, weight in search.backwards.named_parameters():
            getattr(twin, name + "_reverse").copy_(weight)
    lengths = (src != 0).sum(1)
    packed = pack_padded_sequence(search.src_embedding(src), lengths, True, enforce_sorted=False)
    expected, _ = pad_packed_sequence(twin(packed)[0], True)
    annotations, mask = search.encode(src)
    assert torch.allclose(annotations[mask], expected[mask], atol=1e-6)
    assert torch.equal(mask, src != 0)


@pytest.mark.parametrize("attention", [True, False])
def test_padding_changes_nothing(attention):
    """右に詰めものを足しても、短い文を長い文と並べても、結果は変わらない。"""
    search, src, tgt = model(attention), source(), target()
    logits, weights = search(src, tgt)
    wider, wider_weights = search(F.pad(src, (0, 4)), tgt)
    assert torch.allclose(logits, wider, atol=1e-6)
    assert torch.allclose(weights, wider_weights[:, :, :7], atol=1e-6)
    assert not wider_weights[:, :, 7:].any()
    for i, length in enumerate([4, 7, 1]):
        alone, _ = search(src[i : i + 1, :length], tgt[i : i + 1])
        assert torch.allclose(alone[0], logits[i], atol=1e-6)


# ---- 書く側 ----


@pytest.mark.parametrize("attention", [True, False])
def test_decoder_is_the_equation_of_the_paper(attention):
    """s_0 = tanh(W_s ←h_1) から始め、α は s_{i-1}、s_i は y_{i-1} と c_i から求める。"""
    search, src, tgt = model(attention), source(), target()
    logits, weights = search(src, tgt)
    h, mask = search.encode(src)
    for b in range(3):
        n = int(mask[b].sum())
        s = torch.tanh(search.start(h[b, 0, 6:]))
        ends = torch.cat([h[b, n - 1, :6], h[b, 0, 6:]])
        for i in range(5):
            y, c = search.tgt_embedding(tgt[b, i]), ends
            if search.attention is not None:
                c, w = (x[0] for x in search.attention(s[None], h[b : b + 1, :n]))
                assert torch.allclose(weights[b, i, :n], w, atol=1e-6)
            s = search.cell(torch.cat([y, c]), s)
            assert torch.allclose(search.out(torch.cat([s, y, c])), logits[b, i], atol=1e-5)
    assert attention or not weights.any()


def test_weights_are_distributions():
    """重みの行の和は 1。"""
    _, weights = model()(source(), target())
    assert weights.shape == (3, 5, 7)
    assert torch.allclose(weights.sum(2), torch.ones(3, 5))


@pytest.mark.parametrize("attention", [True, False])
def test_later_words_do_not_reach_back(attention):
    """訳文の後ろの語を変えても、前の語のロジットは変わらない。"""
    search, src, tgt = model(attention), source(), target()
    changed = tgt.clone()
    changed[:, 3:] = 3 + (changed[:, 3:] - 2) % 10
    before, after = search(src, tgt)[0], search(src, changed)[0]
    assert torch.equal(before[:, :3], after[:, :3])
    assert not torch.allclose(before[:, 3:], after[:, 3:])


@pytest.mark.parametrize("attention", [True, False])
def test_translate_picks_what_forward_says(attention):
    """translate の選ぶ語は forward のロジットが最大の語で、重みも等しい。"""
    search, src = model(attention, seed=3), source()
    ids, weights = search.translate(src, max_len=8)
    for b, row in enumerate(ids):
        tgt_in = torch.tensor([[BOS, *row]])
        logits, expected = search(src[b : b + 1], tgt_in)
        best = logits[0].argmax(1).tolist()
        assert best[: len(row)] == row
        assert len(row) == 8 or best[len(row)] == EOS
        assert torch.allclose(weights[b, : len(row)], expected[0, : len(row)], atol=1e-6)
        assert EOS not in row


def test_translate_stops_when_every_sentence_has_ended():
    """文末記号しか出さないモデルでは、訳文は空で、一語ぶんの重みだけが返る。"""
    search = model()
    with torch.no_grad():
        search.out.bias[EOS] = 1e3
    ids, weights = search.translate(source(), max_len=8)
    assert ids == [[], [], []]
    assert weights.shape == (3, 1, 7)


def test_loss_counts_words_not_padding():
    """損失は、詰めものを除いた語の交差エントロピーの平均。入力と正解は 1 語ずれる。"""
    search, src = model(), source()
    tgt = torch.tensor([[BOS, 5, 6, EOS], [BOS, 7, EOS, 0], [BOS, EOS, 0, 0]])
    log_p = search(src, tgt[:, :-1])[0].log_softmax(2)
    picked = [log_p[0, 0, 5], log_p[0, 1, 6], log_p[0, 2, EOS], log_p[1, 0, 7], log_p[1, 1, EOS]]
    expected = -sum([*picked, log_p[2, 0, EOS]]) / 6
    assert torch.allclose(translation_loss(search, (src, tgt)), expected)


@pytest.mark.parametrize("attention", [True, False])
def test_every_weight_is_used(attention):
    """どの重みにも勾配が届く。"""
    search = model(attention)
    translation_loss(search, (source(), F.pad(target(), (1, 0), value=BOS))).backward()
    for name, weight in search.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.any(), name


# ---- 例外 ----


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: AdditiveAttention(0, 4, 5), "state_size"),
        (lambda: RNNSearch(11, 13, d_hidden=0), "d_hidden"),
        (lambda: RNNSearch(0, 13), "src_vocab_size"),
        (lambda: model().encode(torch.zeros(2, 3, dtype=torch.long)), "詰めもの"),
        (lambda: model().encode(torch.zeros(3, dtype=torch.long)), "src"),
        (lambda: model().encode(torch.zeros(0, 3, dtype=torch.long)), "src"),
        (lambda: model().translate(source(), 0), "max_len"),
        (lambda: AdditiveAttention(3, 4, 5)(torch.ones(2, 4), torch.ones(2, 6, 4)), "state"),
        (lambda: AdditiveAttention(3, 4, 5)(torch.ones(2, 3), torch.ones(2, 6, 5)), "annotations"),
        (lambda: AdditiveAttention(3, 4, 5)(torch.ones(2, 3), torch.ones(1, 6, 4)), "annotations"),
        (lambda: attend_with(torch.ones(2, 5, dtype=torch.bool)), "mask"),
        (lambda: attend_with(torch.ones(2, 6)), "mask"),
        (lambda: attend_with(torch.zeros(2, 6, dtype=torch.bool)), "True が一つもない"),
    ],
)
def test_bad_input_is_explained(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def attend_with(mask):
    return AdditiveAttention(3, 4, 5)(torch.ones(2, 3), torch.ones(2, 6, 4), mask)
