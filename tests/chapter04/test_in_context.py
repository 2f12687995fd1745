"""chapter04.in_context: 双対の形と自動微分、線形注意の構成、損失の期待値、学習した層。"""

import dataclasses

import pytest
import torch
from torch import nn

from chapter04.in_context import (
    RATE,
    LinearSelfAttention,
    best_rate,
    gradient_descent,
    gradient_descent_layer,
    gradient_step,
    linear_attention,
    one_step_loss,
    regression_tasks,
    ridge,
    squared_error,
    train_linear_attention,
)

EXACT = {"atol": 1e-12, "rtol": 1e-12}


def doubles(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def tasks_of(n_tasks=7, seed=0, **changes):
    tasks = regression_tasks(torch.Generator().manual_seed(seed), n_tasks, **changes)
    return dataclasses.replace(
        tasks, **{f.name: getattr(tasks, f.name).double() for f in dataclasses.fields(tasks)}
    )


# ---- 双対の形 (Dai+ 2023, 式 (7)-(9)) --------------------------------------------------------


def test_linear_attention_is_a_sum_over_examples():
    values, keys, query = doubles(6, 3), doubles(6, 4, seed=1), doubles(4, seed=2)
    expected = sum(values[i] * float(keys[i] @ query) for i in range(6))
    torch.testing.assert_close(linear_attention(values, keys, query), expected, **EXACT)
    batched = linear_attention(values.expand(5, 6, 3), keys.expand(5, 6, 4), query.expand(5, 4))
    torch.testing.assert_close(batched, expected.expand(5, 3), **EXACT)


def test_one_step_of_gradient_descent_equals_linear_attention():
    w0, xs, ys, x = doubles(3, 4), doubles(9, 4, seed=1), doubles(9, 3, seed=2), doubles(4, seed=3)
    layer = nn.Linear(4, 3, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(w0)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.3)
    (0.5 * (layer(xs) - ys).square().sum()).backward()
    optimizer.step()

    errors = xs @ w0.T - ys
    torch.testing.assert_close(gradient_step(w0, xs, errors, 0.3), layer.weight, **EXACT)
    dual = w0 @ x + linear_attention(-0.3 * errors, xs, x)
    torch.testing.assert_close(dual, layer(x), **EXACT)


def test_any_loss_has_the_dual_form():
    """二乗誤差でなくても、出力についての損失の勾配を渡せば等しい(交差エントロピーで)。"""
    w0, xs, x = doubles(3, 4), doubles(9, 4, seed=1), doubles(4, seed=3)
    w = w0.clone().requires_grad_()
    outputs = xs @ w.T
    loss = nn.functional.cross_entropy(outputs, torch.arange(9) % 3, reduction="sum")
    errors, gradient = torch.autograd.grad(loss, (outputs, w))
    moved = gradient_step(w0, xs, errors, 0.7)
    torch.testing.assert_close(moved, w0 - 0.7 * gradient, **EXACT)
    torch.testing.assert_close(moved @ x, w0 @ x + linear_attention(-0.7 * errors, xs, x), **EXACT)


# ---- 課題 ----------------------------------------------------------------------------------


def test_tasks_are_linear_and_standard_normal():
    tasks = tasks_of(5_000, dimension=3, examples=4)
    w = torch.linalg.lstsq(tasks.xs, tasks.ys[..., None]).solution[..., 0]
    fits = torch.isclose((w * tasks.x).sum(-1), tasks.y, atol=1e-3, rtol=1e-3)
    assert fits.float().mean() > 0.99  # 条件の悪い課題では、単精度の丸め誤差が大きい
    every = torch.cat([tasks.xs, tasks.x[:, None]], dim=1)
    assert every.shape == (5_000, 5, 3)
    assert float(every.mean()) == pytest.approx(0, abs=0.01)
    torch.testing.assert_close(
        every.flatten(0, 1).T.cov(), torch.eye(3).double(), atol=0.03, rtol=0
    )
    torch.testing.assert_close(w[fits].T.cov(), torch.eye(3).double(), atol=0.05, rtol=0)
    assert float(tasks.y.square().mean()) == pytest.approx(3, rel=0.05)


def test_noise_is_added_to_every_answer():
    clean, noisy = tasks_of(5000), tasks_of(5000, noise=0.5)
    torch.testing.assert_close(clean.xs, noisy.xs)
    for difference in (noisy.ys - clean.ys, noisy.y - clean.y):
        assert float(difference.std()) == pytest.approx(0.5, rel=0.05)
        assert float(difference.mean()) == pytest.approx(0, abs=0.03)


def test_tokens_hold_examples_and_a_question_without_its_answer():
    tasks = tasks_of(3, dimension=2, examples=4)
    assert tasks.tokens.shape == (3, 5, 3)
    assert torch.equal(tasks.tokens[:, :4, :2], tasks.xs)
    assert torch.equal(tasks.tokens[:, :4, 2], tasks.ys)
    assert torch.equal(tasks.tokens[:, 4, :2], tasks.x)
    assert tasks.tokens[:, 4, 2].eq(0).all()
    assert squared_error(tasks.y + torch.tensor([1.0, 2.0, 3.0]), tasks) == pytest.approx(14 / 3)


# ---- 勾配降下、リッジ回帰、損失の期待値 --------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 1, 4])
def test_gradient_descent_equals_autograd(steps):
    tasks = tasks_of()
    w = torch.zeros(7, 5, dtype=torch.float64, requires_grad=True)
    for _ in range(steps):
        fits = torch.einsum("bnd,bd->bn", tasks.xs, w)
        loss = (fits - tasks.ys).square().mean(1).sum() / 2  # 式 (2)
        w = (w - 0.3 * torch.autograd.grad(loss, w)[0]).detach().requires_grad_()
    expected = (w * tasks.x).sum(-1).detach()
    torch.testing.assert_close(gradient_descent(tasks, 0.3, steps), expected, **EXACT)


def test_ridge_is_the_posterior_mean():
    """(w · x, y_1, ..., y_N) の同時の正規分布から求めた、条件つき期待値に等しい。"""
    tasks = tasks_of(noise=0.7)
    gram = tasks.xs @ tasks.xs.mT + 0.49 * torch.eye(10).double()
    cross = (tasks.xs @ tasks.x[..., None]).mT
    expected = (cross @ torch.linalg.solve(gram, tasks.ys[..., None])).flatten()
    torch.testing.assert_close(ridge(tasks, 0.7), expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("examples", [3, 5, 10])
def test_ridge_without_noise_is_least_squares(examples):
    tasks = tasks_of(examples=examples)
    torch.testing.assert_close(ridge(tasks), ridge(tasks, 1e-5), atol=1e-4, rtol=1e-4)
    assert (squared_error(ridge(tasks), tasks) < 1e-8) == (examples >= 5)


@pytest.mark.parametrize(("dimension", "examples", "noise"), [(5, 10, 0.0), (3, 4, 1.5), (2, 1, 0)])
def test_the_expected_loss_of_one_step(dimension, examples, noise):
    sizes = {"dimension": dimension, "examples": examples, "noise": noise}
    tasks = tasks_of(40_000, **sizes)
    best = best_rate(**sizes)
    for rate in (0.0, 0.5 * best, best, 1.5 * best):
        measured = squared_error(gradient_descent(tasks, rate), tasks)
        assert measured == pytest.approx(one_step_loss(rate, **sizes), rel=0.05)
    lowest = one_step_loss(best, **sizes)
    assert lowest < min(one_step_loss(best + shift, **sizes) for shift in (-1e-3, 1e-3))
    few = tasks_of(2000, **sizes)
    assert squared_error(ridge(few, noise), few) < squared_error(gradient_descent(few, best), few)


# ---- 線形自己注意 (von Oswald+ 2023, 命題 1) ---------------------------------------------------


@pytest.mark.parametrize("layers", [1, 3])
def test_the_constructed_layer_is_gradient_descent(layers):
    tasks = tasks_of()
    layer = gradient_descent_layer(0.4, 10, dtype=torch.float64)
    torch.testing.assert_close(
        layer.predict(tasks, layers), gradient_descent(tasks, 0.4, layers), **EXACT
    )


def test_the_constructed_layer_turns_every_answer_into_its_residual():
    tasks = tasks_of()
    after = gradient_descent_layer(0.4, 10, dtype=torch.float64)(tasks.tokens)
    assert torch.equal(after[..., :-1], tasks.tokens[..., :-1])  # x は動かない
    for i in range(10):
        asked = dataclasses.replace(tasks, x=tasks.xs[:, i])
        expected = tasks.ys[:, i] - gradient_descent(asked, 0.4)
        torch.testing.assert_close(after[:, i, -1], expected, **EXACT)


def test_the_constructed_layer_may_start_from_any_weights():
    tasks, w0 = tasks_of(), doubles(5, seed=4)
    layer = gradient_descent_layer(0.4, 10, w0=w0, dtype=torch.float64)
    tokens = tasks.tokens
    tokens[:, -1, -1] = -tasks.x @ w0
    for b in range(7):
        xs, ys = tasks.xs[b], tasks.ys[b, :, None]
        moved = gradient_step(w0[None], xs, xs @ w0[:, None] - ys, 0.4 / 10)
        torch.testing.assert_close(-layer(tokens)[b, -1, -1:], moved @ tasks.x[b], **EXACT)


def test_the_layer_follows_its_equation_for_any_weights():
    tasks = tasks_of(2, dimension=2, examples=3)
    torch.manual_seed(0)
    layer = LinearSelfAttention(3).double()
    out = layer(tasks.tokens)
    for b in range(2):
        e = tasks.tokens[b]
        for j in range(4):
            moved = sum(
                (layer.value @ e[i]) * ((layer.key @ e[i]) @ (layer.query @ e[j])) for i in range(3)
            )
            torch.testing.assert_close(out[b, j], e[j] + layer.projection @ moved, **EXACT)
    assert {p.shape for p in layer.parameters()} == {(3, 3)}
    assert len(list(layer.parameters())) == 4


def test_the_question_does_not_attend_to_itself_and_examples_may_be_permuted():
    tasks = tasks_of()
    torch.manual_seed(0)
    layer = LinearSelfAttention(6).double()
    order = torch.randperm(10)
    shuffled = dataclasses.replace(tasks, xs=tasks.xs[:, order], ys=tasks.ys[:, order])
    torch.testing.assert_close(layer.predict(shuffled), layer.predict(tasks), **EXACT)
    doubled = dataclasses.replace(tasks, x=2 * tasks.x)  # 問いについて線形
    torch.testing.assert_close(layer.predict(doubled), 2 * layer.predict(tasks), **EXACT)


def test_the_step_matrix_of_the_construction_is_the_rate():
    layer = gradient_descent_layer(0.4, 10)
    torch.testing.assert_close(layer.step_matrix(10), 0.4 * torch.eye(5))
    with torch.no_grad():  # 打ち消し合う倍率は、M を変えない。キーとクエリーの入れ替えは転置になる
        layer.value.mul_(-2)
        layer.query.mul_(-0.5)
        layer.key[0, 1] = 3
    expected = 0.4 * torch.eye(5)
    expected[1, 0] = 1.2
    torch.testing.assert_close(layer.step_matrix(10), expected)
    tasks = regression_tasks(torch.Generator().manual_seed(0), 4)
    written = torch.einsum("bn,bnd,de,be->b", tasks.ys, tasks.xs, expected, tasks.x) / 10
    torch.testing.assert_close(layer.predict(tasks), written, atol=1e-5, rtol=1e-5)


def test_the_same_seed_gives_the_same_layer():
    one, two = (train_linear_attention(3, steps=3).model for _ in range(2))
    other = train_linear_attention(4, steps=3).model
    assert torch.equal(one.key, two.key)
    assert not torch.equal(one.key, other.key)
    noisy = train_linear_attention(3, steps=3, noise=5.0)
    assert noisy.losses[0] > train_linear_attention(3, steps=3).losses[0] + 10  # 雑音の分散 25
    rates = [record["rate"] for record in noisy.history]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.2 * RATE


def test_training_finds_one_step_of_gradient_descent():
    """小さな課題なら 2 秒ほどで、学習した層の損失が最良の一歩の 5 % 以内に入る。"""
    sizes = {"dimension": 3, "examples": 6}
    result = train_linear_attention(0, steps=400, **sizes)
    tasks = regression_tasks(torch.Generator().manual_seed(99), 50_000, **sizes)
    one_step = gradient_descent(tasks, best_rate(**sizes))
    with torch.no_grad():
        predictions = result.model.predict(tasks)
    ratio = squared_error(predictions, tasks) / squared_error(one_step, tasks)
    assert 0.98 < ratio < 1.05
    assert float(torch.corrcoef(torch.stack([predictions, one_step]))[0, 1]) > 0.98
    assert len(result.losses) == 400
    diagonal = result.model.step_matrix(6).diagonal()
    assert diagonal.tolist() == pytest.approx([best_rate(**sizes)] * 3, rel=0.15)


# ---- おかしな入力 --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: linear_attention(doubles(3, 2), doubles(4, 2), doubles(2)), ValueError, "個数"),
        (lambda: linear_attention(doubles(3, 2), doubles(3, 2), doubles(3)), ValueError, "次元"),
        (lambda: gradient_step(doubles(3, 4), doubles(9, 4), doubles(8, 3), 1), ValueError, "w0"),
        (lambda: gradient_step(doubles(3, 4), doubles(9, 4), doubles(9, 2), 1), ValueError, "w0"),
        (lambda: gradient_step(doubles(3, 4), doubles(9, 5), doubles(9, 3), 1), ValueError, "w0"),
        (lambda: tasks_of(0), ValueError, "n_tasks"),
        (lambda: tasks_of(examples=0), ValueError, "examples"),
        (lambda: tasks_of(dimension=0), ValueError, "dimension"),
        (lambda: tasks_of(noise=-1), ValueError, "noise"),
        (lambda: gradient_descent(tasks_of(), 0.1, -1), ValueError, "steps"),
        (lambda: gradient_descent(tasks_of(), float("nan")), ValueError, "rate"),
        (lambda: ridge(tasks_of(), -1), ValueError, "noise"),
        (lambda: best_rate(0, 10), ValueError, "dimension"),
        (lambda: best_rate(5, 0), ValueError, "examples"),
        (lambda: best_rate(5, 10, -1), ValueError, "noise"),
        (lambda: LinearSelfAttention(1), ValueError, "size"),
        (lambda: gradient_descent_layer(0.1, 0), ValueError, "examples"),
        (lambda: gradient_descent_layer(0.1, 3, dimension=0), ValueError, "dimension"),
        (lambda: gradient_descent_layer("0.1", 3), TypeError, "rate"),
        (lambda: LinearSelfAttention(6).predict(tasks_of(), 0), ValueError, "layers"),
        (lambda: LinearSelfAttention(3)(torch.zeros(3)), ValueError, r"tokens の形.*, 3\).*\(3,\)"),
        (lambda: LinearSelfAttention(3)(torch.zeros(3, 3)), ValueError, "tokens の形"),
        (lambda: LinearSelfAttention(3)(torch.zeros(1, 4, 2)), ValueError, "tokens の形"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, words):
    with pytest.raises(error, match=words):
        call()
