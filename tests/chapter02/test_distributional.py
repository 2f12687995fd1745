"""chapter02.distributional: 手計算・総当たり・独立な実装と比べる。"""

from collections import Counter

import numpy as np
import pytest

from chapter02.distributional import context_overlap, contexts

# ---- 文脈の重なり -----------------------------------------------------------------------

A = ["the", "the", "the", "drink", "hot"]
B = ["the", "hot", "hot", "cup", "drink", "drink", "of"]


def test_overlap_by_type_and_token_by_hand():
    # 異なり: {the, drink, hot} が共通、小さいほうは 3 語。
    assert context_overlap(A, B, unit="type") == 1.0
    # 延べ: the 1 + drink 1 + hot 1 = 3 が共通、小さいほうは 5 語。
    assert context_overlap(A, B, unit="token") == 3 / 5
    assert context_overlap(A, B) == context_overlap(A, B, "type")


def test_the_smaller_side_differs_between_type_and_token():
    long_but_poor = ["a"] * 9 + ["b"]
    short_but_rich = ["a", "c", "d"]
    assert context_overlap(long_but_poor, short_but_rich, "type") == 1 / 2
    assert context_overlap(long_but_poor, short_but_rich, "token") == 1 / 3


@pytest.mark.parametrize("unit", ["type", "token"])
def test_overlap_properties(unit: str):
    rng = np.random.default_rng(0)
    for _ in range(50):
        a = rng.integers(0, 6, size=rng.integers(1, 12)).tolist()
        b = rng.integers(0, 6, size=rng.integers(1, 12)).tolist()
        value = context_overlap(a, b, unit)
        assert value == context_overlap(b, a, unit)
        assert value == context_overlap(a[::-1], b, unit)
        assert 0 <= value <= 1
        assert context_overlap(a, a + b, unit) == 1.0
        assert context_overlap(a, [9, 9], unit) == 0.0
        if unit == "token":
            shared = sum(min(a.count(x), b.count(x)) for x in range(6))
            assert value == shared / min(len(a), len(b))
        else:
            assert value == len({*a} & {*b}) / min(len({*a}), len({*b}))


def test_overlap_accepts_sets_tuples_and_generators():
    assert context_overlap({"a", "b"}, ("b", "c"), "token") == 0.5
    assert context_overlap((x for x in "ab"), ["b"], "type") == 1.0


@pytest.mark.parametrize("bad", ["the cat", b"the", None, 3, {"the": 2}, Counter("ab"), [["a"]]])
def test_overlap_refuses_what_is_no_sequence_of_words(bad):
    with pytest.raises(TypeError, match="contexts_a"):
        context_overlap(bad, ["a"])
    with pytest.raises(TypeError, match="contexts_b"):
        context_overlap(["a"], bad)


@pytest.mark.parametrize("unit", ["types", "", None, 1])
def test_overlap_refuses_other_units(unit):
    with pytest.raises(ValueError, match="unit"):
        context_overlap(["a"], ["a"], unit)


@pytest.mark.parametrize("unit", ["type", "token"])
def test_overlap_refuses_empty_sides(unit: str):
    with pytest.raises(ValueError, match="contexts_a が空"):
        context_overlap([], ["a"], unit)
    with pytest.raises(ValueError, match="contexts_b が空"):
        context_overlap(["a"], set(), unit)


def test_contexts_by_hand():
    tokens = ["a", "b", "x", "c", "d", "x", "e"]
    assert contexts(tokens, "x", 1) == ["b", "c", "d", "e"]
    assert contexts(tokens, "x", 2) == ["a", "b", "c", "d", "c", "d", "e"]
    assert contexts(tokens, "a", 3) == ["b", "x", "c"]
    assert contexts(["x", "x"], "x", 5) == ["x", "x"]
    assert contexts(tokens, "none", 2) == []


def test_contexts_refuses_bad_input():
    with pytest.raises(TypeError, match="tokens"):
        contexts("a b c", "b", 1)
    with pytest.raises(ValueError, match="window"):
        contexts(["a"], "a", 0)
    with pytest.raises(TypeError, match="window"):
        contexts(["a"], "a", 1.5)  # pyright: ignore[reportArgumentType]
