"""ラティスの計算を、すべての分割の列挙と比べる。"""

import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from chapter02.unigram import Unigram
from chapter02.unigram_lattice import Edge, Lattice, log_sum_exp, viterbi

TOY = {"a": 0.15, "b": 0.2, "c": 0.05, "ab": 0.25, "bc": 0.1, "abc": 0.04, "ca": 0.11, "aa": 0.1}


def enumerate_paths(text, probabilities):
    """区切りの有無 2^(N-1) 通りを数え上げ、語彙で読める分割とその確率を返す。"""
    found = []
    for cuts in itertools.product([False, True], repeat=max(len(text) - 1, 0)):
        bounds = [0, *(i for i, cut in enumerate(cuts, start=1) if cut), len(text)]
        pieces = [text[a:b] for a, b in itertools.pairwise(bounds)] if text else []
        if all(piece in probabilities for piece in pieces):
            found.append((pieces, math.prod(probabilities[piece] for piece in pieces)))
    return found


def expected_counts(paths):
    total = math.fsum(p for _, p in paths)
    counts = {}
    for pieces, p in paths:
        for piece in pieces:
            counts[piece] = counts.get(piece, 0.0) + p / total
    return counts


@settings(max_examples=150, deadline=None)
@given(st.text("abc", max_size=10))
def test_sums_and_counts_agree_with_enumeration(text):
    model = Unigram.from_probabilities(TOY)
    paths = enumerate_paths(text, TOY)
    total = math.fsum(p for _, p in paths)
    assert model.log_likelihood(text) == pytest.approx(math.log(total), abs=1e-12)
    lattice = model.lattice(text)
    assert lattice.backward()[0] == pytest.approx(math.log(total), abs=1e-12)
    powered = math.log(math.fsum(p**0.3 for _, p in paths))
    assert lattice.forward(0.3)[-1] == pytest.approx(powered, abs=1e-12)
    assert lattice.backward(0.3)[0] == pytest.approx(powered, abs=1e-12)
    counts = model.expected_counts(text)
    wanted = expected_counts(paths)
    assert set(wanted) <= set(counts)
    for piece, count in counts.items():
        assert count == pytest.approx(wanted.get(piece, 0.0), abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(st.text("abc", max_size=9), st.integers(1, 40))
def test_nbest_agrees_with_enumeration(text, n):
    found = Unigram.from_probabilities(TOY).nbest(text, n)
    paths = sorted(enumerate_paths(text, TOY), key=lambda path: -path[1])
    assert len(found) == min(n, len(paths))
    assert len({tuple(pieces) for pieces, _ in found}) == len(found)
    by_pieces = {tuple(pieces): math.log(p) for pieces, p in paths}
    for (pieces, log_prob), (_, p) in zip(found, paths, strict=False):
        assert log_prob == pytest.approx(math.log(p), abs=1e-12)
        assert log_prob == pytest.approx(by_pieces[tuple(pieces)], abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.text("abc", max_size=9))
def test_viterbi_finds_the_most_probable_segmentation(text):
    pieces = Unigram.from_probabilities(TOY).tokenize(text)
    best = max(p for _, p in enumerate_paths(text, TOY))
    assert math.prod(TOY[piece] for piece in pieces) == pytest.approx(best, rel=1e-12)
    assert "".join(pieces) == text


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0, 2.5])
def test_sampling_frequencies_pass_a_chi_square_test(alpha):
    text, n = "abcaabc", 6000
    model = Unigram.from_probabilities(TOY)
    generator = np.random.default_rng(7)
    lattice = model.lattice(text)
    drawn = {}
    for _ in range(n):
        key = tuple(text[e.start : e.end] for e in lattice.sample(alpha, generator))
        drawn[key] = drawn.get(key, 0) + 1
    weights = {tuple(pieces): p**alpha for pieces, p in enumerate_paths(text, TOY)}
    total = sum(weights.values())
    assert set(drawn) <= set(weights)
    common = [key for key, weight in weights.items() if n * weight / total >= 5]
    rest = n - sum(drawn.get(key, 0) for key in common)
    observed = [drawn.get(key, 0) for key in common]
    expected = [n * weights[key] / total for key in common]
    if n - sum(expected) > 1e-6:
        observed, expected = [*observed, rest], [*expected, n - sum(expected)]
    assert len(common) > 5
    assert stats.chisquare(observed, expected).pvalue > 0.01


def test_sample_takes_the_same_draws_for_the_same_seed_and_sharpens_with_alpha():
    model = Unigram.from_probabilities(TOY)
    text = "abcaabcab" * 3
    draws = [model.sample(text, 0.5, np.random.default_rng(3)) for _ in range(2)]
    assert draws[0] == draws[1]
    assert model.sample(text, 500.0, np.random.default_rng(0)) == model.tokenize(text)


def test_single_precision_rounds_every_step_like_numpy():
    scores = [-0.1, -1.7, -3.3000001, -0.7654321]
    edges = [[Edge(i, i + 1, i % 4, scores[i % 4])] for i in range(40)]
    # 同点に近い 2 本の道: 単精度では (i, i+2) が先に来た値を越えられるかどうかが丸めで決まる。
    for i in range(0, 38, 3):
        edges[i].append(Edge(i, i + 2, 9, scores[i % 4] + scores[(i + 1) % 4]))
    delta = np.full(41, -np.inf, dtype=np.float32)
    delta[0] = 0
    last = {}
    for start in range(40):
        for edge in edges[start]:
            score = np.float32(float(delta[start]) + edge.log_prob)
            if score > delta[edge.end]:
                delta[edge.end], last[edge.end] = score, edge
    wanted, j = [], 40
    while j:
        wanted.append(last[j])
        j = last[j].start
    assert viterbi(40, lambda i: edges[i], single_precision=True) == wanted[::-1]
    assert viterbi(40, lambda i: edges[i]) != wanted[::-1]


def test_ties_go_to_the_longer_last_piece():
    assert Unigram.from_probabilities({"a": 0.5, "aa": 0.25}).tokenize("aaaa") == ["aa", "aa"]


def test_unreachable_ends_have_no_probability():
    lattice = Lattice(3, [Edge(0, 1, 0, -1.0), Edge(2, 3, 1, -1.0)])
    assert lattice.forward()[3] == -math.inf
    assert lattice.nbest(5) == []
    assert [p for _, p in lattice.posteriors()] == [0.0, 0.0]
    assert viterbi(3, lambda i: [e for e in lattice.edges if e.start == i]) is None


def test_log_sum_exp_survives_large_and_small_values():
    assert log_sum_exp([]) == -math.inf
    assert log_sum_exp([-math.inf, -2.0]) == pytest.approx(-2.0)
    assert log_sum_exp([1000.0, 1000.0]) == pytest.approx(1000.0 + math.log(2.0))
    assert log_sum_exp([-1000.0, -1001.0]) == pytest.approx(-1000.0 + math.log1p(math.exp(-1.0)))


def test_nbest_of_a_long_run_of_ties_is_fast():
    model = Unigram.from_probabilities({"a": 0.5, "aa": 0.25, "aaa": 0.125})
    found = model.nbest("a" * 400, 20)
    assert len({tuple(pieces) for pieces, _ in found}) == 20
    assert all(log_prob == pytest.approx(found[0][1]) for _, log_prob in found)


def test_long_text_does_not_underflow():
    random.seed(0)
    text = "".join(random.choices("abc", k=20_000))
    model = Unigram.from_probabilities(TOY)
    lattice = model.lattice(text)
    assert lattice.forward()[-1] == pytest.approx(lattice.backward()[0], rel=1e-12)
    assert sum((e.end - e.start) * p for e, p in lattice.posteriors()) == pytest.approx(20_000)
