"""chapter04.sparse_attention: 論文の例、手で書いた集合、素直な注意の計算と照らし合わせる。"""

import itertools
import math

import pytest
import torch

from chapter04.sparse_attention import (
    banded_mask,
    count_pairs,
    fixed,
    fixed_mask,
    reachable,
    strided,
    strided_mask,
)
from shared.attention import causal_mask, scaled_dot_product_attention

# ---- 添字の集合 -------------------------------------------------------------------------


def test_strided_by_hand():
    """l = 3: 直前の 3 個と自分、そして 3 つおき。1 より小さい添字はない。"""
    assert strided(8, 3) == ({5, 6, 7, 8}, {2, 5, 8})
    assert strided(9, 3) == ({6, 7, 8, 9}, {3, 6, 9})
    assert strided(3, 3) == ({1, 2, 3}, {3})
    assert strided(1, 3) == ({1}, {1})
    assert strided(5, 1) == ({4, 5}, {1, 2, 3, 4, 5})


def test_fixed_by_hand():
    """l = 4、c = 1: 区切りは {1, 2, 3}, {4, …, 7}, …、まとめ役は 3, 4, 7, 8, …。"""
    assert fixed(6, 4, 1) == ({4, 5, 6}, {3, 4})
    assert fixed(8, 4, 1) == ({8}, {3, 4, 7, 8})
    assert fixed(3, 4, 2) == ({1, 2, 3}, {2, 3})
    assert fixed(1, 4, 1) == ({1}, set())
    assert fixed(3, 2, 2) == ({2, 3}, {1, 2, 3})
    assert fixed(2, 1, 1) == ({2}, {1, 2})


def test_the_example_of_the_paper():
    """4.3 節: l = 128、c = 8 なら、120 から 128 まで、248 から 256 までを見る。"""
    first = {*range(120, 129)}
    second = {*range(248, 257)}
    assert fixed(129, 128, 8)[1] == fixed(247, 128, 8)[1] == first
    assert fixed(257, 128, 8)[1] == fixed(300, 128, 8)[1] == first | second


@pytest.mark.parametrize("stride", [1, 2, 3, 4, 7])
def test_masks_agree_with_the_sets(stride):
    """マスクの行 i - 1 は、位置 i の集合と同じ。未来は一つも含まない。"""
    n = 20
    cases = [(strided_mask(n, stride), lambda i: strided(i, stride))]
    for c in range(1, stride + 1):
        cases.append((fixed_mask(n, stride, c), lambda i, c=c: fixed(i, stride, c)))
    for masks, sets in cases:
        for i in range(1, n + 1):
            first, second = sets(i)
            assert first | second <= {*range(1, i + 1)}
            expected = [first, second, first | second]
            found = [{j + 1 for j in m[i - 1].nonzero()[:, 0].tolist()} for m in masks]
            assert found == expected
        assert not (masks.union & ~causal_mask(n)).any()
        assert masks.union.diagonal().all()  # 自分自身はいつも見える


def test_banded_mask():
    """自分を含む直前の window 個。strided の A^(1) は幅 l + 1 の帯。"""
    expected = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    assert banded_mask(4, 2).int().tolist() == expected
    assert torch.equal(banded_mask(9, 9), causal_mask(9))
    assert torch.equal(banded_mask(9, 1), torch.eye(9, dtype=torch.bool))
    assert torch.equal(strided_mask(12, 3).first, banded_mask(12, 4))
    assert banded_mask(0, 3).shape == (0, 0)


# ---- 2 歩で届くか -----------------------------------------------------------------------


def two_hops(first, second):
    """論文の条件そのもの: 各 (i, j) に j ∈ A_a^(1)、a ∈ A_i^(2) となる a があるか。"""
    n = len(first)
    return torch.tensor(
        [[any(first[a, j] and second[i, a] for a in range(n)) for j in range(n)] for i in range(n)]
    )


@pytest.mark.parametrize("stride", [1, 2, 3, 5])
def test_reachable_is_the_condition_of_the_paper(stride):
    """先に A^(1)、後に A^(2) を通る経路を、総当たりで数えたものと一致する。"""
    for masks in (strided_mask(13, stride), fixed_mask(13, stride, 1)):
        found = reachable(masks.first, masks.second, residual=False)
        assert torch.equal(found, two_hops(masks.first, masks.second))
        found = reachable(masks.second, masks.first, residual=False)
        assert torch.equal(found, two_hops(masks.second, masks.first))


@pytest.mark.parametrize("n", [1, 7, 24])
@pytest.mark.parametrize("stride", [1, 2, 3, 4, 6])
def test_everything_is_reachable_in_two_steps(n, stride):
    """strided はどの順でも、fixed は A^(1)、A^(2) の順(と残差接続)で、過去のすべてに届く。"""
    causal = causal_mask(n)
    masks = strided_mask(n, stride)
    for pair in itertools.permutations(masks[:2]):
        assert torch.equal(reachable(*pair, residual=False), causal)
    for c in {1, stride}:
        masks = fixed_mask(n, stride, c)
        assert torch.equal(reachable(masks.first, masks.second), causal)
        assert torch.equal(reachable(masks.union, masks.union, residual=False), causal)


def test_fixed_needs_the_order_and_the_residual():
    """fixed は、残差なしでは同じ区切りの中に、逆の順では前の区切りのまとめ役以外に届かない。"""
    masks = fixed_mask(12, 4, 1)
    without = reachable(masks.first, masks.second, residual=False)
    assert [j + 1 for j in range(6) if without[5, j]] == [1, 2, 3, 4]  # 5 と 6 自身に届かない
    reversed_order = reachable(masks.second, masks.first)
    assert [j + 1 for j in range(6) if reversed_order[5, j]] == [3, 4, 5, 6]
    assert reachable(masks.second, masks.first, masks.second).equal(causal_mask(12))


def test_a_single_banded_layer_is_not_enough():
    """帯だけの層は、k 層で k (window - 1) 個前まで。すべてを見る層を挟むと、すぐ届く。"""
    band = banded_mask(10, 3)
    assert torch.equal(reachable(band, band, band), banded_mask(10, 7))
    assert torch.equal(reachable(band, causal_mask(10)), causal_mask(10))


# ---- 組の数 -----------------------------------------------------------------------------


def test_pairs_in_closed_form():
    """A^(1) は Σ min(i, l + 1)、strided の A^(2) は Σ ceil(i / l)。"""
    for n, stride in [(16, 4), (30, 7), (5, 9)]:
        masks = strided_mask(n, stride)
        assert masks.first.sum() == sum(min(i, stride + 1) for i in range(1, n + 1))
        assert masks.second.sum() == sum(math.ceil(i / stride) for i in range(1, n + 1))
    blocks = fixed_mask(23, 4, 1).first.sum()
    assert blocks == 6 + 5 * 10  # 長さ 3 の区切りが一つ、4 の区切りが五つ


def test_pairs_grow_like_n_sqrt_n():
    """n を 4 倍にすると、すべてを見る注意は 16 倍に、疎な注意はおよそ 8 倍になる。"""
    small, large = count_pairs(256), count_pairs(1024)
    ratio = {name: large[name] / small[name] for name in small}
    assert ratio["dense"] == pytest.approx(16, rel=0.01)
    assert 7.5 < ratio["strided"] < 8.5
    assert 7.5 < ratio["fixed"] < 8.5
    assert small["dense"] == 256 * 257 // 2
    assert count_pairs(16, 16)["strided"] == 16 * 17 // 2
    assert count_pairs(64)["strided"] == strided_mask(64, 8).union.sum()


# ---- 注意の計算 -------------------------------------------------------------------------


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("pattern", ["strided", "fixed"])
def test_masked_attention_is_the_softmax_over_the_set(pattern, which):
    """マスクを渡した注意は、式 (3) のとおり、集合の中だけで softmax を取ったものと等しい。"""
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 11, 6, generator=generator, dtype=torch.float64)
    masks = strided_mask(11, 4) if pattern == "strided" else fixed_mask(11, 4, 2)
    output, weights = scaled_dot_product_attention(q, k, v, masks[which])
    for i in range(1, 12):
        first, second = strided(i, 4) if pattern == "strided" else fixed(i, 4, 2)
        chosen = sorted((first, second, first | second)[which])
        rows = [j - 1 for j in chosen]
        if not rows:  # fixed の A^(2) は、はじめの位置では空
            assert not output[i - 1].any()
            continue
        expected = (q[i - 1] @ k[rows].T / math.sqrt(6)).softmax(-1) @ v[rows]
        torch.testing.assert_close(output[i - 1], expected, atol=1e-12, rtol=0)
        assert weights[i - 1].count_nonzero() == len(rows)


# ---- 誤った入力 -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: strided(0, 3), ValueError, "i は 1 以上"),
        (lambda: strided(3, 0), ValueError, "stride は 1 以上"),
        (lambda: strided(3, 1.5), TypeError, "stride"),
        (lambda: fixed(3, 2, 0), ValueError, "c は 1 以上"),
        (lambda: fixed(3, 2, 3), ValueError, "c は stride = 2 以下"),
        (lambda: fixed(True, 2, 1), TypeError, "i "),
        (lambda: strided_mask(-1, 2), ValueError, "n は 0 以上"),
        (lambda: fixed_mask(4, 2, 3), ValueError, "c は stride"),
        (lambda: banded_mask(4, 0), ValueError, "window は 1 以上"),
        (lambda: count_pairs(0), ValueError, "n は 1 以上"),
        (reachable, ValueError, "一つ以上"),
        (lambda: reachable(torch.ones(3, 3)), TypeError, "真偽値"),
        (lambda: reachable(causal_mask(3), causal_mask(4)), ValueError, r"\(4, 4\)"),
        (lambda: reachable(causal_mask(2, 3)), ValueError, r"\(2, 3\)"),
    ],
)
def test_bad_arguments(call, error, message):
    """誤った引数は、名前と値を述べて断る。"""
    with pytest.raises(error, match=message):
        call()


def test_pairs_are_counted_with_the_default_stride_and_width():
    """既定の間隔は √n を四捨五入した数、fixed の幅 c は 1。"""
    assert count_pairs(30)["strided"] == strided_mask(30, 5).union.sum()
    assert count_pairs(31)["strided"] == strided_mask(31, 6).union.sum()
    assert count_pairs(30, 5)["fixed"] == fixed_mask(30, 5, 1).union.sum()
