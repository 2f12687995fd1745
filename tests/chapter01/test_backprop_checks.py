"""chapter01.backprop_checks: 数値微分の精度と、PyTorch の FLOPs の数え方との一致。"""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from chapter01.backprop import (
    Conv2d,
    Dense,
    Embedding,
    Flatten,
    Parameter,
    ReLU,
    Sequential,
    parameters,
    softmax_cross_entropy,
)
from chapter01.backprop_checks import (
    backward_ratio,
    count_flops,
    gradient_error,
    numerical_gradient,
)
from chapter01.measurements import section_1_3b

few = st.integers(1, 4)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# ---- 数値微分 -----------------------------------------------------------------------------


def test_central_difference_is_exact_for_quadratics_and_restores_the_value():
    x = np.array([[1.0, -2.0], [0.5, 3.0]])
    before = x.copy()
    gradient = numerical_gradient(lambda: float((x**2).sum()), x, h=0.25)
    assert np.allclose(gradient, 2 * before, rtol=0, atol=1e-12)
    assert np.array_equal(x, before)


def test_error_shrinks_with_the_square_of_h():
    x = np.array([0.7])
    errors = [
        abs(numerical_gradient(lambda: float(np.exp(x[0])), x, h)[0] - np.exp(0.7))
        for h in (1e-1, 1e-2)
    ]
    assert errors[0] / errors[1] == pytest.approx(100, rel=0.05)


def test_backpropagation_agrees_with_differences():
    network = Sequential([Conv2d(1, 2, 2, rng(1)), ReLU(), Flatten(), Dense(8, 3, rng(2))])
    x, target = rng(3).normal(size=(4, 1, 3, 3)), np.array([0, 1, 2, 1])

    def loss() -> float:
        return softmax_cross_entropy(network(x)[0], target)[0]

    logits, pull = network(x)
    pull(softmax_cross_entropy(logits, target)[1]())
    for p in parameters(network):
        assert gradient_error(p.grad, numerical_gradient(loss, p.value)) < 1e-8


def test_gradient_error_is_relative_and_symmetric():
    a, b = np.array([3.0, 4.0]), np.array([3.0, 3.0])
    assert gradient_error(a, b) == gradient_error(b, a) == pytest.approx(1 / 5)
    assert gradient_error(100 * a, 100 * b) == pytest.approx(1 / 5)
    assert gradient_error(0 * a, 0 * a) == 0
    assert gradient_error(a, 0 * a) == 1


# ---- FLOPs --------------------------------------------------------------------------------


def torch_flops(network: torch.nn.Module, x: torch.Tensor) -> tuple[int, int]:
    with FlopCounterMode(display=False) as forward:
        y = network(x)
    with FlopCounterMode(display=False) as backward:
        y.sum().backward()
    return forward.get_total_flops(), backward.get_total_flops()


def totals(counts) -> tuple[int, int]:
    return sum(c.forward for c in counts), sum(c.weight_grad + c.input_grad for c in counts)


@settings(max_examples=20, deadline=None)
@given(st.lists(few, min_size=2, max_size=5), few)
def test_dense_flops_equal_torch(widths, batch):
    pairs = list(pairwise(widths))
    ours = Sequential([layer for a, b in pairs for layer in (Dense(a, b, rng()), ReLU())])
    theirs = torch.nn.Sequential(
        *(layer for a, b in pairs for layer in (torch.nn.Linear(a, b), torch.nn.ReLU()))
    )
    x = np.ones((batch, widths[0]))
    expected = torch_flops(theirs, torch.ones(batch, widths[0]))
    assert totals(count_flops(ours, x)) == expected


@settings(max_examples=20, deadline=None)
@given(st.tuples(few, few, few, few), st.integers(1, 3), st.integers(0, 2))
def test_conv_flops_equal_torch(sizes, stride, padding):
    batch, c_in, c_mid, c_out = sizes
    ours = Sequential(
        [
            Conv2d(c_in, c_mid, 3, rng(), stride=stride, padding=padding),
            Conv2d(c_mid, c_out, 2, rng(), padding=1),
        ]
    )
    theirs = torch.nn.Sequential(
        torch.nn.Conv2d(c_in, c_mid, 3, stride=stride, padding=padding),
        torch.nn.Conv2d(c_mid, c_out, 2, padding=1),
    )
    x = np.ones((batch, c_in, 6, 5))
    expected = torch_flops(theirs, torch.ones(x.shape))
    assert totals(count_flops(ours, x)) == expected


def test_equal_layers_cost_two_minus_one_over_depth():
    for depth in (1, 2, 5, 10):
        network = Sequential([Dense(6, 6, rng()) for _ in range(depth)])
        assert backward_ratio(count_flops(network, np.ones((3, 6)))) == pytest.approx(2 - 1 / depth)


def test_layers_before_the_first_weights_do_not_make_it_pay():
    network = Sequential([Flatten(), Dense(4, 3, rng()), Dense(3, 2, rng())])
    counts = count_flops(network, np.ones((5, 2, 2)))
    assert [count[1:] for count in counts] == [(120, 120, 0), (60, 60, 60)]


def test_embedding_makes_the_first_dense_pay_in_full():
    network = Sequential([Embedding(5, 4, rng()), Dense(4, 2, rng())])
    counts = count_flops(network, np.array([[0, 1, 2]]))
    assert [count.name for count in counts] == ["Embedding", "Dense"]
    assert counts[1][1:] == (48, 48, 48)
    assert backward_ratio(counts) == 2


# ---- 悪い入力 -----------------------------------------------------------------------------


class Scale:
    """数え方を教えていない、重みのある層。"""

    def __init__(self) -> None:
        self.weight = Parameter(np.ones(1))

    def __call__(self, x):
        return x * self.weight.value, lambda dy, need_dx=True: dy * self.weight.value


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: numerical_gradient(lambda: 0.0, np.ones(2, np.float32)), TypeError, "float64"),
        (lambda: numerical_gradient(lambda: 0.0, [1.0]), TypeError, "float64"),
        (lambda: numerical_gradient(lambda: 0.0, np.ones(2), h=0), ValueError, "h は正の数"),
        (lambda: numerical_gradient(lambda: 0.0, np.ones(2), h="1"), TypeError, "h には数"),
        (lambda: gradient_error(np.ones(2), np.ones(3)), ValueError, r"second の形は \(2,\)"),
        (lambda: count_flops(Sequential([Scale()]), np.ones(1)), TypeError, "層 Scale"),
        (lambda: backward_ratio([]), ValueError, "行列積のある層がありません"),
    ],
)
def test_bad_input_is_refused_in_japanese(call, error, message):
    with pytest.raises(error, match=message):
        call()


# ---- 主張の測定 ---------------------------------------------------------------------------


def test_symmetry_task_is_the_one_of_the_paper():
    x, d = section_1_3b.symmetry_data()
    assert x.shape == (64, 6)
    assert len({tuple(row) for row in x}) == 64
    assert int(d.sum()) == 8
    assert d[[tuple(row) == (1, 0, 1, 1, 0, 1) for row in x]].item() == 1


def test_mirror_gap_of_the_ideal_weights_is_zero():
    ideal = np.array([[4.0, 1, 2, -2, -1, -4], [-4.0, -1, -2, 2, 1, 4]]).T
    assert section_1_3b.mirror_gap(ideal) == 0
    assert section_1_3b.mirror_gap(np.abs(ideal)) == pytest.approx(2)


def test_a_short_symmetry_run_is_reproducible_and_lowers_the_error():
    first, again = (section_1_3b.learn_symmetry(2, rng(3), sweeps=60) for _ in range(2))
    assert first.errors == again.errors
    assert first.errors[-1] < first.errors[0]
    assert not first.solved
