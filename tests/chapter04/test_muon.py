"""chapter04.muon の検査: 二つのオプティマイザーを別々に使ったときと同じになるか。"""

import copy

import pytest
import torch
from torch import nn

from chapter04.gpt import GPT, GPTConfig
from chapter04.muon import MuonAdamW

RATE, DECAY, BETAS = 1e-2, 0.3, (0.9, 0.95)


def build() -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(vocab_size=20, context=8, d_model=8, n_heads=2, n_layers=2, dropout=0.0))


def backward(model: GPT, seed: int) -> None:
    ids = torch.randint(20, (4, 8), generator=torch.Generator().manual_seed(seed))
    model(ids).logsumexp(-1).square().mean().backward()


def steps(model: GPT, optimizer: MuonAdamW, seeds: range, rate: float = RATE) -> None:
    for seed in seeds:
        for group in optimizer.param_groups:
            group["lr"] = rate
        backward(model, seed)
        optimizer.step()
        optimizer.zero_grad()


def own(model: GPT) -> MuonAdamW:
    return MuonAdamW(model, model.layers, RATE, DECAY, BETAS)


def test_equals_two_optimizers_used_apart():
    """行列は Muon、埋め込みは減衰つき、1 次元の重みは減衰なしの AdamW で動く。学習率も届く。"""
    together, apart = build(), build()
    steps(together, own(together), range(3), rate=3e-3)
    matrices = [p for p in apart.layers.parameters() if p.dim() == 2]
    vectors = [p for p in apart.parameters() if p.dim() == 1]
    tables = [apart.token_embedding.weight, apart.position_embedding.weight]
    optimizers = [
        torch.optim.Muon(
            matrices, 3e-3, weight_decay=DECAY, momentum=0.95, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(tables, 3e-3, BETAS, weight_decay=DECAY),
        torch.optim.AdamW(vectors, 3e-3, BETAS, weight_decay=0.0),
    ]
    for seed in range(3):
        backward(apart, seed)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    for (name, a), b in zip(together.named_parameters(), apart.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7, msg=name)
    moved = {name for name, p in together.named_parameters() if p.grad is None}
    assert moved == {name for name, _ in together.named_parameters()}  # 勾配は消してある


def test_a_step_is_nearly_orthogonal_and_as_large_as_adamw():
    """減衰を除いた一歩の特異値は η 0.2 sqrt(max(d_out, d_in)) に近い(Liu+ 2025)。"""
    model = build()
    before = copy.deepcopy(model.layers.state_dict())
    optimizer = MuonAdamW(model, model.layers, RATE, 0.0, BETAS)
    steps(model, optimizer, range(1))
    for name in ("0.self_attention.out.weight", "1.ffn.inner.weight"):
        moved = before[name] - model.layers.state_dict()[name]
        sizes = torch.linalg.svdvals(moved) / (RATE * 0.2 * max(moved.shape) ** 0.5)
        assert 0.4 < sizes[1:-1].min() < sizes.max() < 1.3, name


def test_state_can_be_stored_and_restored():
    """状態を写したオプティマイザーで続けても、続けて動かしたときと 1 ビットも違わない。"""
    whole, part = build(), build()
    optimizer = own(whole)
    steps(whole, optimizer, range(4))
    first = own(part)
    steps(part, first, range(2))
    state = copy.deepcopy(first.state_dict())
    numbers = [n for group in state["param_groups"] for n in group["params"]]
    assert numbers == list(range(len(list(part.parameters()))))
    assert sorted(state["state"]) == numbers
    second = own(part)
    second.load_state_dict(state)
    steps(part, second, range(2, 4))
    for a, b in zip(whole.parameters(), part.parameters(), strict=True):
        assert torch.equal(a, b)


def test_bad_arguments_are_refused():
    model = build()
    with pytest.raises(ValueError, match="lr"):
        MuonAdamW(model, model.layers, -1.0, DECAY, BETAS)
    with pytest.raises(ValueError, match="weight_decay"):
        MuonAdamW(model, model.layers, RATE, -1.0, BETAS)
    with pytest.raises(ValueError, match="行列の重みがありません"):
        MuonAdamW(model, nn.LayerNorm(4), RATE, DECAY, BETAS)
