"""chapter01.backprop: PyTorch の自動微分(float64)と 1e-9 で一致するか、悪い入力を断るか。"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from chapter01.backprop import (
    SGD,
    Conv2d,
    Dense,
    Embedding,
    Flatten,
    Parameter,
    ReLU,
    Sequential,
    Sigmoid,
    Tanh,
    parameters,
    softmax,
    softmax_cross_entropy,
    squared_error,
)

TOLERANCE = 1e-9
few = st.integers(1, 4)
seeds = st.integers(0, 2**32 - 1)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.tensor(array, dtype=torch.float64, requires_grad=True)


def close(ours: np.ndarray, theirs: torch.Tensor | None) -> None:
    assert theirs is not None
    assert ours.shape == tuple(theirs.shape)
    assert np.abs(ours - theirs.detach().numpy()).max(initial=0) <= TOLERANCE


def randomise(*layers: object) -> None:
    """偏りも 0 のままにしない。"""
    for i, p in enumerate(parameters(*layers)):
        p.value[...] = rng(i).normal(size=p.value.shape)


# ---- 層ごとに、自動微分と比べる ------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(seeds, st.lists(few, max_size=3), few, few)
def test_dense_equals_autograd(seed, leading, n_in, n_out):
    layer = Dense(n_in, n_out, rng(seed))
    randomise(layer)
    x, dy = rng(seed).normal(size=(*leading, n_in)), rng(seed + 1).normal(size=(*leading, n_out))
    y, pull = layer(x)
    dx = pull(dy)
    x_t, w_t, b_t = tensor(x), tensor(layer.weight.value.T), tensor(layer.bias.value)
    y_t = F.linear(x_t, w_t, b_t)
    y_t.backward(torch.tensor(dy))
    close(y, y_t)
    close(dx, x_t.grad)
    close(layer.weight.grad.T, w_t.grad)
    close(layer.bias.grad, b_t.grad)


@settings(max_examples=60, deadline=None)
@given(seeds, st.tuples(few, few, few), st.tuples(few, few), st.tuples(few, st.integers(0, 3), few))
def test_conv_equals_autograd(seed, sizes, extra, options):
    # 縦と横の大きさを別々に選び、窓が端まで届かない(割り切れない)場合も通る。
    (batch, c_in, c_out), (extra_h, extra_w), (stride, padding, kernel) = sizes, extra, options
    height, width = (max(kernel + extra - 1 - 2 * padding, 1) for extra in (extra_h, extra_w))
    layer = Conv2d(c_in, c_out, kernel, rng(seed), stride=stride, padding=padding)
    randomise(layer)
    x = rng(seed).normal(size=(batch, c_in, height, width))
    y, pull = layer(x)
    dy = rng(seed + 1).normal(size=y.shape)
    dx = pull(dy)
    x_t, w_t, b_t = tensor(x), tensor(layer.weight.value), tensor(layer.bias.value)
    y_t = F.conv2d(x_t, w_t, b_t, stride=stride, padding=padding)
    y_t.backward(torch.tensor(dy))
    close(y, y_t)
    close(dx, x_t.grad)
    close(layer.weight.grad, w_t.grad)
    close(layer.bias.grad, b_t.grad)


@pytest.mark.parametrize(
    ("layer", "peer"), [(ReLU(), torch.relu), (Sigmoid(), torch.sigmoid), (Tanh(), torch.tanh)]
)
def test_activations_equal_autograd(layer, peer):
    x = np.array([-800.0, -30.0, -1.5, 0.0, 1e-3, 2.0, 30.0, 800.0])
    dy = rng().normal(size=x.shape)
    y, pull = layer(x)
    x_t = tensor(x)
    y_t = peer(x_t)
    y_t.backward(torch.tensor(dy))
    close(y, y_t)
    close(pull(dy), x_t.grad)


@settings(max_examples=40, deadline=None)
@given(seeds, st.lists(few, max_size=2), few, st.sampled_from([1.0, 50.0, 5000.0]))
def test_softmax_cross_entropy_equals_autograd(seed, leading, n_classes, scale):
    logits = scale * rng(seed).normal(size=(*leading, n_classes))
    target = rng(seed).integers(n_classes, size=leading)
    loss, pull = softmax_cross_entropy(logits, target)
    z = tensor(logits)
    loss_t = F.cross_entropy(z.reshape(-1, n_classes), torch.as_tensor(target).reshape(-1))
    loss_t.backward()
    assert loss == pytest.approx(loss_t.item(), abs=1e-9, rel=1e-12)
    close(pull(), z.grad)
    close(softmax(logits), torch.softmax(z, dim=-1))


def test_squared_error_equals_autograd():
    y, d = rng().normal(size=(2, 5, 3))
    y_t = tensor(y)
    loss_t = 0.5 * (y_t - torch.tensor(d)).pow(2).sum()
    loss_t.backward()
    loss, pull = squared_error(y, d)
    assert loss == pytest.approx(loss_t.item(), abs=1e-12)
    close(pull(), y_t.grad)


# ---- 重みの共有 ---------------------------------------------------------------------------


def test_embedding_adds_up_repeated_ids():
    layer, ids = Embedding(5, 3, rng()), np.array([[1, 1, 4], [1, 0, 4]])
    dy = rng(1).normal(size=(2, 3, 3))
    y, pull = layer(ids)
    assert pull(dy).size == 0
    w_t = tensor(layer.weight.value)
    y_t = F.embedding(torch.as_tensor(ids), w_t)
    y_t.backward(torch.tensor(dy))
    close(y, y_t)
    close(layer.weight.grad, w_t.grad)


def test_one_layer_used_twice_sums_its_gradients():
    layer, activation = Dense(4, 4, rng()), Tanh()
    randomise(layer)
    x, dy = rng(1).normal(size=(2, 3, 4))
    network = Sequential([layer, activation, layer])
    y, pull = network(x)
    dx = pull(dy, need_dx=True)
    x_t, w_t, b_t = tensor(x), tensor(layer.weight.value), tensor(layer.bias.value)
    y_t = torch.tanh(x_t @ w_t + b_t) @ w_t + b_t
    y_t.backward(torch.tensor(dy))
    close(y, y_t)
    close(dx, x_t.grad)
    close(layer.weight.grad, w_t.grad)
    close(layer.bias.grad, b_t.grad)
    assert len(parameters(network)) == len(parameters(layer, layer)) == 2  # 二度は動かさない


def test_unrolled_rnn_equals_torch_rnn():
    steps, batch, dim, hidden = 6, 2, 3, 4
    into, over, act = Dense(dim, hidden, rng(1)), Dense(hidden, hidden, rng(2)), Tanh()
    randomise(into, over)
    over.bias.value[...] = 0
    x, dy = rng(3).normal(size=(steps, batch, dim)), rng(4).normal(size=(steps, batch, hidden))
    h, pulls, states = np.zeros((batch, hidden)), [], []
    for x_now in x:
        a, pull_in = into(x_now)
        r, pull_over = over(h)
        h, pull_act = act(a + r)
        pulls.append((pull_in, pull_over, pull_act))
        states.append(h)
    dh, dx = np.zeros((batch, hidden)), np.zeros_like(x)
    for t in reversed(range(steps)):
        pull_in, pull_over, pull_act = pulls[t]
        da = pull_act(dh + dy[t])
        dx[t], dh = pull_in(da), pull_over(da)
    rnn = torch.nn.RNN(dim, hidden, dtype=torch.float64)
    with torch.no_grad():
        rnn.weight_ih_l0.copy_(torch.tensor(into.weight.value.T))
        rnn.weight_hh_l0.copy_(torch.tensor(over.weight.value.T))
        rnn.bias_ih_l0.copy_(torch.tensor(into.bias.value))
        rnn.bias_hh_l0.zero_()
    x_t = tensor(x)
    y_t, _ = rnn(x_t)
    y_t.backward(torch.tensor(dy))
    close(np.stack(states), y_t)
    close(dx, x_t.grad)
    close(into.weight.grad.T, rnn.weight_ih_l0.grad)
    close(over.weight.grad.T, rnn.weight_hh_l0.grad)
    close(into.bias.grad, rnn.bias_ih_l0.grad)


# ---- つなぐ -------------------------------------------------------------------------------


def convolutional() -> Sequential:
    layers = [Conv2d(2, 3, 3, rng(1), stride=2, padding=1), ReLU(), Flatten(), Dense(12, 4, rng(2))]
    return Sequential(layers)


def test_sequential_equals_autograd_from_images_to_loss():
    network = convolutional()
    randomise(network)
    x, target = rng(3).normal(size=(5, 2, 4, 3)), rng(4).integers(4, size=5)
    logits, pull = network(x)
    loss, pull_loss = softmax_cross_entropy(logits, target)
    dx = pull(pull_loss(), need_dx=True)
    tensors = [tensor(p.value) for p in parameters(network)]
    x_t, (w1, b1, w2, b2) = tensor(x), tensors
    hidden = F.relu(F.conv2d(x_t, w1, b1, stride=2, padding=1)).flatten(1)
    loss_t = F.cross_entropy(hidden @ w2 + b2, torch.as_tensor(target))
    loss_t.backward()
    assert loss == pytest.approx(loss_t.item(), abs=1e-12)
    close(dx, x_t.grad)
    for p, t in zip(parameters(network), tensors, strict=True):
        close(p.grad, t.grad)


def test_skipping_the_input_gradient_changes_no_weight_gradient():
    x, dy = rng(3).normal(size=(2, 2, 4, 3)), rng(4).normal(size=(2, 4))
    both = []
    for need_dx in (True, False):
        network = Sequential([ReLU(), convolutional()])  # 重みのない層が先頭にあり、入れ子でもある
        _, pull = network(x)
        dx = pull(dy, need_dx=need_dx)
        assert dx.shape == (x.shape if need_dx else (0,))
        both.append([p.grad for p in parameters(network)])
    assert len(both[0]) == 4
    assert all(np.array_equal(a, b) for a, b in zip(*both, strict=True))
    assert all(np.abs(a).max() > 0 for a in both[0])


def test_default_stops_at_the_first_weights():
    network, x = (
        Sequential([Sigmoid(), Dense(3, 2, rng()), Tanh(), Dense(2, 2, rng())]),
        np.ones((1, 3)),
    )
    y, pull = network(x)
    assert network.first == 1
    assert pull(np.ones_like(y)).size == 0
    assert all(np.abs(p.grad).max() > 0 for p in parameters(network))


def test_the_input_gradient_is_asked_for_only_where_it_is_needed():
    asked = []

    class Spy:
        def __init__(self):
            self.weight = Parameter(np.ones(1))

        def __call__(self, x):
            return x, lambda dy, need_dx=True: asked.append(need_dx) or dy

    y, pull = Sequential([Spy(), Spy(), Spy()])(np.ones((1, 1)))
    pull(y)
    assert asked == [True, True, False]
    pull(y, need_dx=True)
    assert asked[3:] == [True, True, True]


def test_a_network_without_weights_still_pulls_back():
    y, pull = Sequential([Sigmoid(), Tanh()])([[0.0]])
    s = 0.5
    expected = (1 - np.tanh(s) ** 2) * s * (1 - s)
    assert pull(np.ones_like(y), need_dx=True) == pytest.approx(expected)
    assert pull(np.ones_like(y)).size == 0


def test_gradients_accumulate_until_cleared():
    layer = Dense(2, 2, rng())
    y, pull = layer(np.ones((3, 2)))
    pull(np.ones_like(y))
    once = layer.weight.grad.copy()
    pull(np.ones_like(y))
    assert np.array_equal(layer.weight.grad, 2 * once)
    SGD(parameters(layer), rate=0.1).zero_grad()
    assert not layer.weight.grad.any()
    assert not layer.bias.grad.any()


def test_sgd_equals_torch():
    start, gradients = rng().normal(size=(2, 3)), rng(1).normal(size=(5, 2, 3))
    p, p_t = Parameter(start.copy()), tensor(start)
    ours = SGD([p], rate=0.1, momentum=0.9)
    theirs = torch.optim.SGD([p_t], lr=0.1, momentum=0.9)
    for gradient in gradients:
        p.grad[...] = gradient
        p_t.grad = torch.tensor(gradient)
        ours.step()
        theirs.step()
    close(p.value, p_t)


def test_initial_weights_keep_the_variance():
    # He+ 2015: fan_in が k なら分散 2/k。平均も符号も偏らない。
    for weight, fan_in in (
        (Dense(200, 300, rng()).weight, 200),
        (Conv2d(20, 100, 5, rng()).weight, 500),
    ):
        assert weight.value.var() == pytest.approx(2 / fan_in, rel=0.05)
        assert abs(weight.value.mean()) < 0.05 / np.sqrt(fan_in)


def test_integers_are_accepted_and_inputs_are_untouched():
    x = np.array([[1, -2]])
    y, pull = Sequential([Dense(2, 2, rng()), ReLU()])(x)
    pull(np.ones_like(y), need_dx=True)
    assert y.dtype == np.float64
    assert x.tolist() == [[1, -2]]


def test_empty_batches_give_zero_gradients():
    for layer, x in ((Dense(3, 2, rng()), np.zeros((0, 3))), (Flatten(), np.zeros((0, 2, 2)))):
        y, pull = layer(x)
        assert pull(np.zeros_like(y)).shape == x.shape
    conv = Conv2d(1, 2, 3, rng())
    y, pull = conv(np.zeros((0, 1, 4, 4)))
    assert y.shape == (0, 2, 2, 2)
    assert pull(y).shape == (0, 1, 4, 4)
    assert not conv.weight.grad.any()


# ---- 悪い入力 -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Dense(0, 2, rng()), ValueError, "n_in は 1 以上"),
        (lambda: Dense(2, 1.5, rng()), TypeError, "n_out には整数"),
        (lambda: Dense(3, 2, rng())(np.ones((4, 2))), ValueError, "最後の軸の長さは 3"),
        (lambda: Dense(3, 2, rng())(1.0), ValueError, "最後の軸の長さは 3"),
        (lambda: Dense(3, 2, rng())(["a", "b", "c"]), TypeError, "x には実数の配列"),
        (lambda: ReLU()(np.array([1j])), TypeError, "x には実数の配列"),
        (lambda: Conv2d(1, 2, 0, rng()), ValueError, "kernel は 1 以上"),
        (lambda: Conv2d(1, 2, 3, rng(), stride=0), ValueError, "stride は 1 以上"),
        (lambda: Conv2d(1, 2, 3, rng(), padding=-1), ValueError, "padding は 0 以上"),
        (lambda: Conv2d(1, 2, 3, rng())(np.ones((1, 2, 5, 5))), ValueError, r"\(B, 1, H, W\)"),
        (lambda: Conv2d(1, 2, 3, rng())(np.ones((5, 5))), ValueError, r"\(B, 1, H, W\)"),
        (lambda: Conv2d(1, 2, 3, rng())(np.ones((1, 1, 5, 2))), ValueError, "フィルターより小さく"),
        (lambda: Embedding(3, 0, rng()), ValueError, "dim は 1 以上"),
        (lambda: Embedding(3, 2, rng())([0, 3]), ValueError, "ids は 0 以上 3 未満"),
        (lambda: Embedding(3, 2, rng())([-1]), ValueError, "ids は 0 以上 3 未満"),
        (lambda: Embedding(3, 2, rng())([0.5]), TypeError, "ids には整数"),
        (lambda: Flatten()(1.0), ValueError, "はじめの軸"),
        (lambda: Sequential([]), ValueError, "1 つ以上の層"),
        (lambda: softmax_cross_entropy(np.ones((2, 3)), [0]), ValueError, r"target の形は \(2,\)"),
        (lambda: softmax_cross_entropy(np.ones((2, 3)), [0, 3]), ValueError, "0 以上 3 未満"),
        (lambda: softmax_cross_entropy(np.ones((2, 3)), [0, 1.0]), TypeError, "target には整数"),
        (lambda: softmax_cross_entropy(np.ones((0, 3)), []), ValueError, "1 つ以上の例"),
        (lambda: squared_error([1.0], [[1.0]]), ValueError, r"d の形は y と同じ \(1,\)"),
        (lambda: SGD([], rate=-1), ValueError, "rate は 0 以上"),
        (lambda: SGD([], rate=float("nan")), ValueError, "rate は有限"),
        (lambda: SGD([], rate=1, momentum=1), ValueError, "momentum は 1 より小さく"),
    ],
)
def test_bad_input_is_refused_in_japanese(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (Dense(2, 2, rng()), np.ones((3, 2))),
        (Conv2d(1, 1, 2, rng()), np.ones((1, 1, 3, 3))),
        (Embedding(3, 2, rng()), np.array([0, 1, 2])),
        (Tanh(), np.ones((3, 2))),
        (Flatten(), np.ones((3, 2, 2))),
    ],
)
def test_a_gradient_of_the_wrong_shape_is_refused(layer, x):
    _, pull = layer(x)
    with pytest.raises(ValueError, match="dy の形は出力と同じ"):
        pull(np.ones((1, 1)))  # ブロードキャストで黙って通ってはいけない
