"""chapter04.lora: 手で書いた順伝播、閉じた式、よく知られた結果との比較。"""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from chapter04.gpt import GPT, GPTConfig
from chapter04.lora import (
    LoRALinear,
    add_lora,
    load_lora,
    lora_parameters,
    lora_state_dict,
    merge_lora,
    n_lora_parameters,
    optimizer_bytes,
    rank_of_update,
    remove_lora,
    spectrum,
    unmerge_lora,
    weight_updates,
)

D, LAYERS = 16, 3


def gpt(seed=0, dtype=torch.double, **changes):
    """小さな GPT。"""
    torch.manual_seed(seed)
    config = {"vocab_size": 30, "context": 12, "d_model": D, "n_heads": 2, "n_layers": LAYERS}
    return GPT(GPTConfig(**{**config, "dropout": 0.0, **changes})).to(dtype)


def shaken(model, seed=1):
    """差分が 0 でなくなるように、B を乱数にする。"""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for matrix in lora_parameters(model):
            matrix.copy_(torch.randn(matrix.shape, generator=generator, dtype=torch.double))
    return model


IDS = torch.randint(0, 30, (2, 9), generator=torch.Generator().manual_seed(0))


def test_forward_by_hand():
    """手計算: W_0 = I、A = (1 2)、B = (3, 0)^T、α / r = 4 なら h = x + 4 (x_1 + 2 x_2) (3, 0)。"""
    linear = nn.Linear(2, 2)
    layer = LoRALinear(linear, rank=1, alpha=4.0)
    with torch.no_grad():
        linear.weight.copy_(torch.eye(2))
        linear.bias.copy_(torch.tensor([0.0, 10.0]))
        layer.A.copy_(torch.tensor([[1.0, 2.0]]))
        layer.B.copy_(torch.tensor([[3.0], [0.0]]))
    x = torch.tensor([[1.0, 1.0], [0.0, -1.0]])
    assert layer(x).tolist() == [[1 + 36, 11], [-24, 9]]
    assert layer.delta().tolist() == [[12, 24], [0, 0]]
    layer.merge()
    assert layer(x).tolist() == [[1 + 36, 11], [-24, 9]]


def test_scale_is_alpha_over_rank():
    """形の違う行列でも (α / r) B A を足す。NumPy で書いた式と一致する。"""
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(7, 5, dtype=torch.double)
    layer = LoRALinear(linear, rank=3, alpha=6.0)
    with torch.no_grad():
        layer.B.copy_(torch.randn(5, 3, generator=generator, dtype=torch.double))
    x = torch.randn(2, 4, 7, generator=generator, dtype=torch.double)
    W, b, A, B = (t.detach().numpy() for t in (linear.weight, linear.bias, layer.A, layer.B))
    expected = x.numpy() @ (W + 6.0 / 3 * B @ A).T + b
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, atol=1e-12)


def test_nothing_changes_when_added():
    """B は 0、A は 0 でないので、付けた直後の logits は 1 ビットも変わらない。"""
    model = gpt()
    before = model(IDS)
    names = add_lora(model, rank=4, alpha=8)
    assert torch.equal(model(IDS), before)
    assert names == [
        f"layers.{i}.self_attention.{name}" for i in range(LAYERS) for name in ("query", "value")
    ]
    for a, b in zip(lora_parameters(model)[::2], lora_parameters(model)[1::2], strict=True):
        assert a.abs().min() > 0
        assert not b.any()


def test_a_keeps_the_size_of_its_input():
    """A の標準偏差は 1 / sqrt(d_in) なので、A x の大きさは x と同じくらいになる。"""
    torch.manual_seed(0)
    layer = LoRALinear(nn.Linear(400, 300), rank=200, alpha=1)
    assert layer.A.std().item() == pytest.approx(1 / 20, rel=0.02)
    assert layer.A.mean().abs() < 1e-3


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-5), (torch.double, 1e-10)])
@pytest.mark.parametrize("targets", [("query", "value"), ("key", "out", "inner", "outer")])
def test_merge_and_unmerge_change_no_logit(dtype, atol, targets):
    """足しこんでも、引いて戻しても、logits は変わらない。二度足すことも、二度引くこともない。"""
    model = gpt(dtype=dtype)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    add_lora(model, 4, 2, targets)
    shaken(model)
    expected = model(IDS)
    assert (expected - gpt(dtype=dtype)(IDS)).abs().max() > 0.1
    for change in (merge_lora, merge_lora, unmerge_lora, unmerge_lora, merge_lora):
        change(model)
        torch.testing.assert_close(model(IDS), expected, atol=atol, rtol=0)
    unmerge_lora(model)
    for name, layer in model.named_modules():
        if isinstance(layer, LoRALinear):
            original = weights[f"{name}.weight"]
            torch.testing.assert_close(layer.linear.weight, original, atol=atol, rtol=0)


def test_removed_lora_leaves_a_plain_model():
    """外すとキーの並びまで元の GPT と同じになり、足しこんであれば出力も同じである。"""
    model = gpt()
    add_lora(model, 2, 4)
    shaken(model)
    expected = model(IDS)
    unmerged = copy.deepcopy(model)
    merge_lora(model)
    remove_lora(model)
    plain = gpt(1)
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(plain(IDS), expected, atol=1e-10, rtol=0)
    assert all(p.requires_grad for p in model.parameters())
    remove_lora(unmerged)
    torch.testing.assert_close(unmerged(IDS), gpt()(IDS), atol=0, rtol=0)


def test_only_lora_learns():
    """勾配を持つのは A と B だけで、1 歩動かしても、元の重みは 1 ビットも変わらない。"""
    model = gpt()
    frozen = {name: value.clone() for name, value in model.state_dict().items()}
    names = add_lora(model, 4, 8)
    model(IDS).square().sum().backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == {f"{name}.{key}" for name in names for key in "AB"}
    # B = 0 なので、初めの勾配は B だけが 0 でない
    for a, b in zip(lora_parameters(model)[::2], lora_parameters(model)[1::2], strict=True):
        assert not a.grad.any()
        assert b.grad.abs().max() > 0
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    optimizer.step()
    for name, value in model.state_dict().items():
        original = name.replace(".linear.", ".")
        assert original not in frozen or torch.equal(value, frozen[original])


def test_gradient_is_the_chain_rule():
    """∂L/∂B = (α / r) G x^T A^T、∂L/∂A = (α / r) B^T G x^T(G: 出力の勾配)。"""
    layer = LoRALinear(nn.Linear(6, 4, dtype=torch.double), 2, 3.0)
    nn.init.normal_(layer.B)
    x, g = torch.randn(5, 6, dtype=torch.double), torch.randn(5, 4, dtype=torch.double)
    (layer(x) * g).sum().backward()
    torch.testing.assert_close(layer.B.grad, 1.5 * g.T @ x @ layer.A.T)
    torch.testing.assert_close(layer.A.grad, 1.5 * layer.B.T @ g.T @ x)


@pytest.mark.parametrize("targets", [("query", "value"), ("inner", "outer", "out")])
@pytest.mark.parametrize("rank", [1, 5])
def test_number_of_parameters(targets, rank):
    """学習する重みの数は閉じた式どおり。正方行列だけなら 2 × 行列の数 × d × r。"""
    model = gpt()
    shapes = [
        tuple(m.weight.shape) for name, m in model.named_modules() if name.split(".")[-1] in targets
    ]
    add_lora(model, rank, 1, targets)
    counted = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert (
        counted == n_lora_parameters(shapes, rank) == sum(p.numel() for p in lora_parameters(model))
    )
    if targets == ("query", "value"):
        assert counted == 2 * (2 * LAYERS) * D * rank
    else:
        assert counted == LAYERS * rank * (2 * (D + 4 * D) + 2 * D)


def test_optimizer_memory():
    """Adam の状態は、学習する重み 1 個に 2 つの数。LoRA では学習しない重みの分が要らない。"""
    whole, lora = gpt(dtype=torch.float32), gpt(dtype=torch.float32)
    add_lora(lora, 1, 1)
    sizes = []
    for model in (whole, lora):
        weights = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(weights)
        assert optimizer_bytes(optimizer) == 0
        model(IDS).sum().backward()
        optimizer.step()
        assert optimizer_bytes(optimizer) == 2 * 4 * sum(p.numel() for p in weights)
        sizes.append(optimizer_bytes(optimizer))
    assert sizes[1] == 2 * 4 * 2 * (2 * LAYERS) * D < sizes[0] / 20


def test_saved_lora_goes_into_another_model():
    """A と B だけを書き出し、同じ元のモデルに付ければ、同じ出力になる。写しは独立している。"""
    model = shaken_gpt = gpt()
    add_lora(model, 2, 4)
    shaken(shaken_gpt)
    saved = lora_state_dict(model)
    assert len(saved) == 4 * LAYERS
    other = gpt()
    add_lora(other, 2, 4)
    load_lora(other, saved)
    assert torch.equal(other(IDS), model(IDS))
    saved["layers.0.self_attention.query.A"] += 1
    assert torch.equal(other(IDS), model(IDS))
    merge_lora(other)
    with pytest.raises(ValueError, match="unmerge_lora"):
        load_lora(other, saved)


@pytest.mark.parametrize("kind", [torch.Tensor.tolist, torch.Tensor.numpy, lambda _: None])
def test_only_tensors_are_loaded(kind):
    """テンソルでないものを断り、ほかの行列も変えない。"""
    model = gpt()
    add_lora(model, 2, 4)
    before, last = lora_state_dict(model), [*lora_state_dict(model)][-1]
    wrong = {name: value + 1 for name, value in before.items()} | {last: kind(before[last])}
    with pytest.raises(TypeError, match=f"state の {last} はテンソル"):
        load_lora(model, wrong)
    assert all(torch.equal(value, before[name]) for name, value in lora_state_dict(model).items())


def test_every_wrong_key_is_named():
    """足りない・余分な・形の違うキーを、すべて挙げる。"""
    model = gpt()
    add_lora(model, 2, 4)
    state = lora_state_dict(model)
    del state["layers.0.self_attention.query.A"]
    state["layers.1.self_attention.query.A"] = torch.zeros(3, D)
    state["extra"] = torch.zeros(1)
    with pytest.raises(ValueError, match="state") as caught:
        load_lora(model, state)
    for part in (
        "layers.0.self_attention.query.A が足りません",
        f"layers.1.self_attention.query.A の形は (2, {D}) にしてください: (3, {D})",
        "extra は余分です",
    ):
        assert part in str(caught.value)


def test_spectrum_equals_numpy():
    """特異値は NumPy の SVD と一致する。LoRA の差分のランクは r を超えない。"""
    delta = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    expected = np.linalg.svd(delta.double().numpy(), compute_uv=False)
    np.testing.assert_allclose(spectrum(delta).numpy(), expected, atol=1e-12)
    layer = LoRALinear(nn.Linear(20, 30, dtype=torch.double), 3, 1)
    assert rank_of_update(layer.delta()) == 0
    nn.init.normal_(layer.B)
    assert rank_of_update(layer.delta(), 1e-9) == 3


@pytest.mark.parametrize("tolerance", [0.0, 0.05, 0.3, 0.6, 0.95])
def test_rank_is_the_least_that_suffices(tolerance):
    """k 個の特異値で作った近似の誤差は許容以下で、k - 1 個では足りない。"""
    generator = torch.Generator().manual_seed(3)
    delta = torch.randn(12, 9, generator=generator, dtype=torch.double)
    delta = delta @ torch.diag(0.6 ** torch.arange(9, dtype=torch.double))
    k = rank_of_update(delta, tolerance)
    u, s, v = np.linalg.svd(delta.numpy(), full_matrices=False)

    def error(rank):
        rest = delta.numpy() - u[:, :rank] * s[:rank] @ v[:rank]
        return np.linalg.norm(rest) / np.linalg.norm(delta.numpy())

    assert error(k) <= tolerance + 1e-12
    assert k > 0
    assert error(k - 1) > tolerance


def test_rank_by_hand():
    """特異値 4, 2, 1 (二乗和 21): 誤差は sqrt(5/21) = 0.488、sqrt(1/21) = 0.218、0。"""
    delta = torch.diag(torch.tensor([2.0, 4.0, 1.0]))
    assert spectrum(delta).tolist() == [4, 2, 1]
    ranks = [rank_of_update(delta, t) for t in (0.5, 0.48, 0.22, 0.21, 0.0)]
    assert ranks == [1, 2, 2, 3, 3]


def test_weight_updates():
    """差分は、名前の末尾が当たる重みだけの W - W_0。"""
    before, model = gpt().state_dict(), gpt()
    with torch.no_grad():
        model.layers[1].self_attention.value.weight += 1
    updates = weight_updates(before, model.state_dict())
    assert len(updates) == 2 * LAYERS
    changed = [name for name, delta in updates.items() if delta.any()]
    assert changed == ["layers.1.self_attention.value.weight"]
    assert torch.allclose(updates[changed[0]], torch.ones(D, D, dtype=torch.double))
    with pytest.raises(ValueError, match=r"after に.*layers\.0\.self_attention\.query\.weight"):
        weight_updates(before, {})
    with pytest.raises(ValueError, match="before"):
        weight_updates(before, before, ["gate"])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"rank": 0}, ValueError, "rank は 1 以上"),
        ({"rank": D + 1}, ValueError, f"{D} 以下"),
        ({"rank": 2.0}, TypeError, "rank"),
        ({"alpha": 0}, ValueError, "alpha"),
        ({"alpha": float("nan")}, ValueError, "alpha"),
        ({"targets": "query"}, TypeError, "targets"),
        ({"targets": []}, ValueError, "targets"),
        ({"targets": ["query", "gate"]}, ValueError, "gate"),
        ({"targets": ["output"]}, ValueError, "共有.*output"),
        ({"model": "GPT"}, TypeError, "model"),
    ],
)
def test_bad_arguments(arguments, error, message):
    """誤った引数は断り、モデルは元のまま残る。"""
    model = gpt()
    with pytest.raises(error, match=message):
        add_lora(**{"model": model, "rank": 2, "alpha": 4, **arguments})
    assert not any(isinstance(module, LoRALinear) for module in model.modules())
    assert all(p.requires_grad for p in model.parameters())


def test_untied_output_is_allowed():
    """出力の写像も、埋め込みと共有していなければ対象にできる。"""
    model = gpt(tie_output=False)
    assert add_lora(model, 2, 4, ["output"]) == ["output"]


def test_more_bad_input():
    """二重に付ける、付けずに呼ぶ、行列でないものも断る。"""
    model = gpt()
    for call in (merge_lora, unmerge_lora, remove_lora, lora_parameters, lora_state_dict):
        with pytest.raises(ValueError, match="LoRA が付いていません"):
            call(model)
    add_lora(model, 2, 4)
    with pytest.raises(ValueError, match=r"もう LoRA.*layers\.0"):
        add_lora(model, 2, 4)
    with pytest.raises(TypeError, match="linear"):
        LoRALinear(nn.Identity(), 1, 1)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="delta"):
        spectrum(torch.zeros(3))
    with pytest.raises(ValueError, match="NaN"):
        rank_of_update(torch.full((2, 2), float("nan")))
    with pytest.raises(ValueError, match="tolerance"):
        rank_of_update(torch.eye(2), 1.0)
    with pytest.raises(TypeError, match="delta"):
        spectrum([[1.0]])  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="shapes"):
        n_lora_parameters([(0, 3)], 1)


def test_base_is_frozen_and_the_state_is_counted_in_bytes():
    layer = LoRALinear(nn.Linear(2, 2), 1, 1)
    assert not any(p.requires_grad for p in layer.linear.parameters())
    assert layer.A.requires_grad
    assert layer.B.requires_grad
    weight = nn.Parameter(torch.zeros(3, dtype=torch.double))
    optimizer = torch.optim.Adam([weight])
    weight.sum().backward()
    optimizer.step()
    assert optimizer_bytes(optimizer) == 2 * 8 * 3
