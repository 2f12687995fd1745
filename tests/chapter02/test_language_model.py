"""chapter02.language_model: 因果性、重みの共有、独立な実装との一致、損失の目盛り。"""

import math

import numpy as np
import pytest
import torch
from torch import nn

from chapter02.language_model import TinyGPT, cross_entropy, train


def model(vocab_size: int = 5, **options: int) -> TinyGPT:
    torch.manual_seed(0)
    return TinyGPT(vocab_size, **({"d_model": 8, "context": 12} | options))


def test_the_future_is_invisible():
    gpt, ids = model(n_layers=2), torch.randint(5, (2, 12), generator=torch.manual_seed(1))
    changed = ids.clone()
    changed[:, 7:] = (changed[:, 7:] + 1) % 5
    before, after = gpt(ids), gpt(changed)
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.allclose(before[:, 7], after[:, 7])


def test_every_past_position_is_visible():
    gpt = model()
    for position in range(12):
        ids = torch.zeros(1, 12, dtype=torch.long)
        reference = gpt(ids)[0, -1]
        ids[0, position] = 1
        assert not torch.equal(gpt(ids)[0, -1], reference), position


def test_order_matters_through_the_positions():
    gpt = model()
    a, b = gpt(torch.tensor([[1, 2, 3]])), gpt(torch.tensor([[2, 1, 3]]))
    assert not torch.allclose(a[0, -1], b[0, -1], atol=1e-7)


def test_matches_torch_transformer_encoder_layer():
    # torch.nn の pre-LN 層に同じ重みを入れ、因果マスクをかけたものと比べる。
    gpt = model(n_layers=2)
    for parameter in gpt.parameters():
        if parameter.dim() == 1:  # 偏りと LayerNorm も、初期値 0 と 1 のままにしない
            nn.init.normal_(parameter)
    causal = nn.Transformer.generate_square_subsequent_mask(12)
    ids = torch.randint(5, (3, 12), generator=torch.manual_seed(2))
    h = gpt.embedding.weight[ids] + gpt.position.weight
    for block in gpt.blocks:
        peer = nn.TransformerEncoderLayer(
            8, 1, 32, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        weights = {
            "self_attn.in_proj_weight": block.qkv.weight,
            "self_attn.in_proj_bias": block.qkv.bias,
            "self_attn.out_proj.weight": block.out.weight,
            "self_attn.out_proj.bias": block.out.bias,
            "linear1.weight": block.ffn[0].weight,
            "linear1.bias": block.ffn[0].bias,
            "linear2.weight": block.ffn[2].weight,
            "linear2.bias": block.ffn[2].bias,
        }
        for i in (1, 2):
            for kind in ("weight", "bias"):
                weights[f"norm{i}.{kind}"] = getattr(getattr(block, f"norm_{i}"), kind)
        peer.load_state_dict(weights)
        h = peer(h, src_mask=causal)
    expected = nn.functional.linear(gpt.norm(h), gpt.embedding.weight)
    assert torch.allclose(gpt(ids), expected, atol=1e-6)


def test_input_and_output_share_one_matrix():
    gpt = model(d_model=16)
    attention_and_ffn = 12 * 16**2 + 9 * 16 + 4 * 16  # 重み・偏り・二つの LayerNorm
    expected = (5 + 12) * 16 + attention_and_ffn + 2 * 16
    assert sum(p.numel() for p in gpt.parameters()) == expected


def test_cross_entropy_is_the_mean_over_next_ids():
    gpt = model(context=4)
    ids = np.random.default_rng(0).integers(5, size=15)
    total = 0.0
    for start in (0, 4, 8):  # 4 個ずつ 3 列。余る 14 番目は使わない
        log_probs = gpt(torch.as_tensor(ids[None, start : start + 4])).log_softmax(-1)[0]
        total -= sum(log_probs[i, ids[start + i + 1]].item() for i in range(4))
    assert cross_entropy(gpt, ids, batch=2) == pytest.approx(total / 12, abs=1e-6)


def test_cross_entropy_of_a_uniform_model_is_log_v():
    gpt = model()
    nn.init.zeros_(gpt.embedding.weight)
    assert cross_entropy(gpt, np.arange(40) % 5) == pytest.approx(math.log(5), abs=1e-6)


def test_training_learns_a_cycle_and_is_reproducible():
    ids = np.arange(2000) % 5
    models = [model(), model()]
    runs = [train(gpt, ids, steps=100, seed=3, lr=2e-2) for gpt in models]
    assert runs[0] == runs[1]
    assert len(runs[0]) == 100
    assert runs[0][0] > 1.4
    assert runs[0][-1] < 0.05
    assert cross_entropy(models[0], ids) < 0.05  # 同じ id の写しではなく、次の id を学んでいる
    assert runs[0] != train(model(), ids, steps=100, seed=4, lr=2e-2)


def test_learning_rate_follows_the_cosine(monkeypatch: pytest.MonkeyPatch):
    rates = []
    original = torch.optim.AdamW.step

    def step(self, *arguments):
        rates.append(self.param_groups[0]["lr"])
        return original(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    train(model(), np.zeros(20, dtype=np.int64), steps=4, seed=0, lr=0.4)
    assert rates == pytest.approx(
        [0.4, 0.2 * (1 + math.sqrt(0.5)), 0.2, 0.2 * (1 - math.sqrt(0.5))]
    )


@pytest.mark.parametrize("name", ["vocab_size", "d_model", "n_layers", "context"])
def test_bad_sizes_are_refused(name: str):
    with pytest.raises(ValueError, match=name):
        TinyGPT(**({"vocab_size": 5} | {name: 0}))
    with pytest.raises(TypeError, match=name):
        TinyGPT(**({"vocab_size": 5} | {name: 1.5}))  # pyright: ignore[reportArgumentType]


def test_bad_data_is_refused():
    gpt = model()
    with pytest.raises(ValueError, match="ids"):
        gpt(torch.zeros(1, 13, dtype=torch.long))
    with pytest.raises(ValueError, match="ids"):
        train(gpt, np.zeros(12, dtype=np.int64), steps=1, seed=0)
    with pytest.raises(ValueError, match="ids"):
        cross_entropy(gpt, np.zeros(12, dtype=np.int64))
    with pytest.raises(ValueError, match="steps"):
        train(gpt, np.zeros(20, dtype=np.int64), steps=0, seed=0)
    with pytest.raises(ValueError, match="lr"):
        train(gpt, np.zeros(20, dtype=np.int64), steps=1, seed=0, lr=math.nan)
