"""chapter02.corpus_statistics: 手計算・素直な数え上げ・NumPy の別の関数と比べる。"""

from collections import Counter

import numpy as np
import pytest

from chapter02.corpus_statistics import fit_power_law, unknown_rates, vocabulary_growth

# ---- 語彙の増え方 -----------------------------------------------------------------------


def test_growth_by_hand():
    assert vocabulary_growth(["the", "cat", "saw", "the", "dog"]).tolist() == [1, 2, 3, 3, 4]
    assert vocabulary_growth(["a", "a", "a"]).tolist() == [1, 1, 1]
    assert vocabulary_growth([]).tolist() == []
    assert vocabulary_growth((3, 1, 3, 2)).tolist() == [1, 2, 2, 3]
    assert vocabulary_growth(range(4)).tolist() == [1, 2, 3, 4]


def test_growth_equals_counting_every_prefix():
    rng = np.random.default_rng(0)
    for _ in range(100):
        tokens = rng.integers(0, 9, size=rng.integers(0, 30)).tolist()
        expected = [len(set(tokens[: i + 1])) for i in range(len(tokens))]
        assert vocabulary_growth(tokens).tolist() == expected


@pytest.mark.parametrize("bad", ["the cat", b"the", None, 3, {"a": 1}, {"a", "b"}, [["a"]]])
def test_growth_refuses_what_is_no_sequence_of_tokens(bad):
    with pytest.raises(TypeError, match="tokens"):
        vocabulary_growth(bad)


# ---- 未知の割合 -------------------------------------------------------------------------

TRAIN = {"a": 5, "b": 3, "c": 3, "d": 1}
TEST = {"a": 2, "c": 1, "d": 3, "z": 4}


def test_unknown_rates_by_hand():
    # 語彙は大きさの順に {}, {a}, {a b}, {a b c}, {a b c d}。同数の b と c は先に現れた b が先。
    rates = unknown_rates(TRAIN, TEST, [0, 1, 2, 3, 4, 99])
    np.testing.assert_allclose(rates, [1.0, 0.8, 0.8, 0.7, 0.4, 0.4], rtol=0, atol=1e-15)


def test_unknown_rates_equal_counting_with_a_set():
    rng = np.random.default_rng(1)
    for _ in range(50):
        train = Counter(rng.integers(0, 20, size=40).tolist())
        test = Counter(rng.integers(0, 25, size=30).tolist())
        sizes = list(range(0, 25, 3))
        for size, rate in zip(sizes, unknown_rates(train, test, sizes), strict=True):
            known = {token for token, _ in train.most_common(size)}
            assert rate == pytest.approx(sum(test[t] for t in test if t not in known) / 30)


def test_unknown_rates_ignore_zero_counts_and_keep_the_order_of_sizes():
    assert unknown_rates({"a": 0, "b": 1}, {"a": 1, "b": 1}, [2]).tolist() == [0.5]
    assert unknown_rates({"a": 2, "b": 1}, {"a": 1, "b": 0}, [1, 0]).tolist() == [0.0, 1.0]
    assert unknown_rates({}, {"a": 1}, (0, 5)).tolist() == [1.0, 1.0]
    assert unknown_rates(TRAIN, TEST, []).tolist() == []


@pytest.mark.parametrize(
    ("train", "test", "sizes", "error", "match"),
    [
        (["a"], TEST, [1], TypeError, "train"),
        (TRAIN, None, [1], TypeError, "test"),
        (TRAIN, {}, [1], ValueError, "test"),
        (TRAIN, {"a": 0}, [1], ValueError, "test"),
        ({"a": -1}, TEST, [1], ValueError, "train"),
        (TRAIN, {"a": 0.5}, [1], TypeError, "test"),
        (TRAIN, TEST, [-1], ValueError, "sizes"),
        (TRAIN, TEST, [1.5], TypeError, "sizes"),
    ],
)
def test_unknown_rates_refuse_bad_input(train, test, sizes, error, match):
    with pytest.raises(error, match=match):
        unknown_rates(train, test, sizes)


# ---- べき乗則の当てはめ -----------------------------------------------------------------


@pytest.mark.parametrize(("c", "gamma"), [(3.0, 0.5), (0.2, -1.1), (40.0, 1.0), (7.0, 0.0)])
def test_fit_recovers_an_exact_power_law(c: float, gamma: float):
    x = np.geomspace(1, 1e6, 13)
    assert fit_power_law(x, c * x**gamma) == pytest.approx((c, gamma), rel=1e-9, abs=1e-12)


def test_fit_equals_polyfit_on_noisy_points():
    rng = np.random.default_rng(2)
    x = rng.uniform(1, 100, size=40)
    y = 5 * x**0.7 * np.exp(rng.normal(0, 0.3, size=40))
    slope, intercept = np.polyfit(np.log(x), np.log(y), 1)
    assert fit_power_law(x.tolist(), y.tolist()) == pytest.approx((np.exp(intercept), slope))


@pytest.mark.parametrize(
    ("x", "y", "match"),
    [
        ([1, 2], [1], "長さ"),
        ([1], [1], "2 点"),
        ([], [], "2 点"),
        ([3, 3, 3], [1, 2, 3], "異なる"),
        ([0, 1], [1, 2], "x は正"),
        ([1, 2], [1, -2], "y は正"),
        ([1, 2], [1, float("nan")], "y は正"),
        ([1, float("inf")], [1, 2], "x は正"),
        ([[1, 2]], [1, 2], "1 次元"),
        (["a", "b"], [1, 2], "x には数"),
        (None, [1, 2], "x"),
    ],
)
def test_fit_refuses_bad_input(x, y, match):
    with pytest.raises(ValueError, match=match):
        fit_power_law(x, y)
