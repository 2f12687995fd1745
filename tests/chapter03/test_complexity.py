"""chapter03.complexity: 式・PyTorch の数え上げ・グラフが、互いに、また実物の層と一致するか。"""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from chapter03 import complexity
from chapter03.complexity import counted_flops, maximum_path_length
from shared.attention import KVCache, MultiHeadAttention, scaled_dot_product_attention
from shared.transformer import FeedForward


def randn(*shape, seed=0, grad=False):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_(grad)


SIZES = [(3, 8), (12, 4), (7, 16)]


# ---- 式と、PyTorch が数えた行列積 ----


@pytest.mark.parametrize(("n", "d"), SIZES)
def test_attention_formulas_match_counted_matmuls(n, d):
    q, k, v = (randn(n, d, seed=i) for i in range(3))
    counted = counted_flops(lambda: scaled_dot_product_attention(q, k, v))
    assert counted == complexity.attention_flops(n, d)
    for n_heads in (1, 2, 4):
        layer = MultiHeadAttention(d, n_heads)
        x = torch.zeros(1, n, d)
        counted = counted_flops(lambda layer=layer, x=x: layer(x, return_weights=True))
        assert counted == complexity.attention_flops(n, d) + complexity.projection_flops(n, d)


@pytest.mark.parametrize(("n", "d"), SIZES)
def test_other_formulas_match_counted_matmuls(n, d):
    x, k = randn(n, d), 3
    w, u, kernel = randn(d, d), randn(d, d), randn(d, d, k)
    depthwise, pointwise = randn(d, 1, k), randn(d, d, 1)

    def separable():
        F.conv1d(F.conv1d(x.T[None], depthwise, padding="same", groups=d), pointwise)

    ffn, cell = FeedForward(d, 5), nn.LSTMCell(d, d)
    assert counted_flops(lambda: complexity.recurrent(x, w, u)) == complexity.recurrent_flops(n, d)
    assert counted_flops(
        lambda: [cell(x[:1].float()) for _ in range(n)]
    ) == complexity.recurrent_flops(n, d, gates=4)
    assert counted_flops(lambda: complexity.convolution(x, kernel)) == complexity.convolution_flops(
        n, d, k
    )
    assert counted_flops(separable) == complexity.separable_flops(n, d, k)
    assert counted_flops(lambda: ffn(x.float())) == complexity.feed_forward_flops(n, d, 5)
    assert counted_flops(
        lambda: complexity.restricted_attention(x, x, x, 2)
    ) == complexity.restricted_flops(n, d, 5)


def test_crossings_of_the_formulas():
    d = 512
    assert complexity.attention_flops(d, d) == complexity.recurrent_flops(d, d)
    assert complexity.attention_flops(2 * d, d) == complexity.projection_flops(2 * d, d)
    rest = complexity.projection_flops(6 * d, d) + complexity.feed_forward_flops(6 * d, d, 4 * d)
    assert complexity.attention_flops(6 * d, d) == rest


@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
def test_kv_cache_formula_matches_the_real_cache(n_kv_heads):
    caches = [KVCache() for _ in range(3)]
    with torch.no_grad():
        for cache in caches:
            MultiHeadAttention(24, 4, n_kv_heads)(torch.zeros(1, 5, 24), causal=True, cache=cache)
    real = sum(tensor.nbytes for cache in caches for tensor in cache.stored())
    assert complexity.kv_cache_bytes(5, 3, n_kv_heads, 6, bytes_per_number=4) == real
    assert complexity.kv_cache_bytes(5, 3, n_kv_heads, 6) * 2 == real


def test_saved_bytes_counts_each_storage_once():
    n, d, h = 6, 8, 2
    q, k, v = (randn(h, n, d // h, seed=i, grad=True) for i in range(3))
    saved = complexity.saved_bytes(lambda: scaled_dot_product_attention(q, k, v))
    assert saved == 8 * (3 * n * d + h * n * n)
    saved = complexity.saved_bytes(lambda: scaled_dot_product_attention(q, k, v), exclude=(k, v))
    assert saved == 8 * (n * d + h * n * n)
    x, w, u = randn(n, d, grad=True), randn(d, d, grad=True), randn(d, d, grad=True)
    saved = complexity.saved_bytes(lambda: complexity.recurrent(x, w, u), exclude=(w, u))
    assert saved == 8 * (2 * n + 1) * d  # x、n 個の状態、はじめの 0


def test_fit_exponent():
    assert complexity.fit_exponent([2, 4, 8], [12, 48, 192]) == pytest.approx(2)
    assert complexity.fit_exponent([10, 100], [5, 5]) == pytest.approx(0)
    assert complexity.fit_exponent([1, 4], [6, 3]) == pytest.approx(-0.5)


# ---- 層の実装 ----


@pytest.mark.parametrize("window", [0, 1, 2, 9])
def test_restricted_attention_is_banded_attention(window):
    q, k, v = randn(2, 7, 4), randn(2, 7, 4, seed=1), randn(2, 7, 3, seed=2)
    mask = complexity.band_mask(7, window)
    assert mask.tolist() == [[abs(i - j) <= window for j in range(7)] for i in range(7)]
    expected, weights = scaled_dot_product_attention(q, k, v, mask)
    output, near = complexity.restricted_attention(q, k, v, window)
    torch.testing.assert_close(output, expected)
    assert near.shape == (2, 7, 2 * window + 1)
    for i in range(7):
        for column in range(2 * window + 1):
            j = i + column - window
            known = weights[:, i, j] if 0 <= j < 7 else torch.zeros(2).double()
            torch.testing.assert_close(near[:, i, column], known)


def test_recurrent_is_torch_rnn():
    x, cell = randn(6, 4), nn.RNN(4, 4, bias=False).double()
    expected, _ = cell(x)
    weights = cell.weight_ih_l0.T, cell.weight_hh_l0.T
    torch.testing.assert_close(complexity.recurrent(x, *weights), expected)


@pytest.mark.parametrize("dilation", [1, 3])
def test_convolution_by_loops(dilation):
    x, weight = randn(8, 3), randn(3, 3, 2, seed=1)
    output = complexity.convolution(x, weight, dilation)
    for i in range(8):
        expected = weight[:, :, 1] @ x[i]
        if i >= dilation:
            expected = expected + weight[:, :, 0] @ x[i - dilation]
        torch.testing.assert_close(output[i], expected)


# ---- グラフ ----


@pytest.mark.parametrize("n", [2, 3, 9, 10, 20])
def test_path_lengths_have_closed_forms(n):
    assert maximum_path_length("attention", n) == 1
    assert maximum_path_length("recurrent", n) == n
    for width in (2, 3, 4):
        convolution = maximum_path_length("convolution", n, width)
        assert convolution == math.ceil((n - 1) / (width - 1))
        dilated = next(depth for depth in range(1, n + 1) if width**depth >= n)
        assert maximum_path_length("dilated", n, width) == dilated
    for width in (3, 5):
        assert maximum_path_length("restricted", n, width) == math.ceil((n - 1) / (width // 2))


@pytest.mark.parametrize("kind", complexity.KINDS)
@pytest.mark.parametrize("depth", [1, 2])
def test_the_graph_reaches_what_gradients_reach(kind, depth):
    """実際の層を積み、出力 j の勾配が入力 i に届くことと、グラフで届くことが一致する。"""
    n, d = 8, 4
    x = randn(n, d, grad=True)
    y: Any = x
    for level in range(depth):
        w, u = randn(d, d, seed=level + 1) / 2, randn(d, d, seed=level + 9) / 2
        kernel = randn(d, d, 3, seed=level + 1) / 2
        y = {
            "attention": lambda y=y: scaled_dot_product_attention(y, y, y)[0],
            "restricted": lambda y=y: complexity.restricted_attention(y, y, y, 1)[0],
            "recurrent": lambda y=y, w=w, u=u: complexity.recurrent(y, w, u),
            "convolution": lambda y=y, kernel=kernel: complexity.convolution(y, kernel),
            "dilated": lambda y=y, kernel=kernel, level=level: complexity.convolution(
                y, kernel, 3**level
            ),
        }[kind]()
    graph = complexity.dependency_graph(kind, n, depth)
    reached = [complexity.distances(graph, (0, i)) for i in range(n)]
    for j in range(n):
        (gradient,) = torch.autograd.grad(y[j].sum(), x, retain_graph=True)
        by_gradient = gradient.abs().sum(-1).ne(0).tolist()
        assert by_gradient == [(depth, j) in reached[i] for i in range(n)]


def test_distances_are_shortest():
    graph = {(0, 0): [(1, 0), (1, 1)], (1, 0): [(2, 0)], (1, 1): [(1, 0)], (2, 0): [], (2, 1): []}
    expected = {(0, 0): 0, (1, 0): 1, (1, 1): 1, (2, 0): 2}
    assert complexity.distances(graph, (0, 0)) == expected


@pytest.mark.parametrize("kind", complexity.KINDS)
def test_only_the_rnn_has_to_wait(kind):
    one = complexity.sequential_operations(complexity.dependency_graph(kind, 12))
    two = complexity.sequential_operations(complexity.dependency_graph(kind, 12, depth=2))
    assert one == (12 if kind == "recurrent" else 1)
    assert two == (13 if kind == "recurrent" else 2)  # RNN の 2 層目は、1 段遅れて並走できる


# ---- 入力の検査 ----


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: complexity.attention_flops(0, 4), ValueError, "n"),
        (lambda: complexity.attention_flops(4, 1.5), TypeError, "d"),
        (lambda: complexity.recurrent_flops(4, 4, gates=0), ValueError, "gates"),
        (lambda: complexity.kv_cache_bytes(4, 4, 0, 4), ValueError, "n_kv_heads"),
        (lambda: complexity.fit_exponent([1, 2], [1]), ValueError, "同じ個数"),
        (lambda: complexity.fit_exponent([2, 2], [1, 3]), ValueError, "異なる"),
        (lambda: complexity.fit_exponent([1, 2], [0, 3]), ValueError, "正の数"),
        (lambda: complexity.band_mask(4, -1), ValueError, "window"),
        (
            lambda: complexity.restricted_attention(randn(3, 2), randn(4, 2), randn(4, 2), 1),
            ValueError,
            "長さ",
        ),
        (lambda: complexity.dependency_graph("pooling", 4), ValueError, "pooling"),
        (lambda: complexity.dependency_graph("restricted", 4, 1, 4), ValueError, "奇数"),
        (lambda: complexity.dependency_graph("convolution", 4, 1, 1), ValueError, "width"),
        (lambda: maximum_path_length("attention", 0), ValueError, "n"),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
