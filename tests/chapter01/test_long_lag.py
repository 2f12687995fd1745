"""長い時間差の課題が約束どおりの列を作り、勾配を正しい時刻に割り当てるか。"""

import pytest
import torch
from torch import nn

from chapter01.long_lag import N_SYMBOLS, first_symbol_task, input_gradients


def test_only_the_first_symbol_tells_the_answer():
    """はじめの記号は 0 か 1 で答えと同じ、あとの記号は 2 から 9。"""
    x, y = first_symbol_task(500, 7, torch.Generator().manual_seed(0))
    assert x.shape == (500, 8, N_SYMBOLS)
    assert (x.sum(dim=2) == 1).all()
    symbols = x.argmax(dim=2)
    assert torch.equal(symbols[:, 0], y)
    assert symbols[:, 1:].unique().tolist() == [2, 3, 4, 5, 6, 7, 8, 9]
    assert 0.4 < y.float().mean() < 0.6


def test_same_seed_same_task():
    """同じ種なら同じ列。"""
    first, second = (first_symbol_task(4, 5, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first[0], second[0])


def test_gradients_are_ordered_by_lag():
    """h_t = tanh(a x_t + u h_{t-1}) を手で微分した値が、時間差の小さい順に並ぶ。"""
    layer = nn.RNN(1, 1, batch_first=True).double()
    for parameter, value in zip(layer.parameters(), (0.5, 0.8, 0.0, 0.0), strict=True):
        nn.init.constant_(parameter, value)
    x = torch.tensor([[[0.3], [-0.2], [0.4]]], dtype=torch.float64)
    h, slopes = 0.0, []
    for value in (0.3, -0.2, 0.4):
        h = float(torch.tanh(torch.tensor(0.5 * value + 0.8 * h, dtype=torch.float64)))
        slopes.append(1 - h * h)
    expected = [slopes[2] * 0.5, slopes[2] * 0.8 * slopes[1] * 0.5]
    expected.append(slopes[2] * 0.8 * slopes[1] * 0.8 * slopes[0] * 0.5)
    assert input_gradients(layer, x).tolist() == pytest.approx(expected)


@pytest.mark.parametrize(("n", "lag", "name"), [(0, 5, "n"), (3, 0, "lag")])
def test_bad_sizes_are_explained(n, lag, name):
    """1 より小さい数と時間差を断る。"""
    with pytest.raises(ValueError, match=name):
        first_symbol_task(n, lag, torch.Generator())
