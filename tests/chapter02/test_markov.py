"""chapter02.markov: 定常分布とエントロピーを、総当たりと乗べきで確かめる。"""

import itertools
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from chapter02.bpe import BPE
from chapter02.markov import (
    MarkovSource,
    PairTokenizer,
    block_entropy,
    entropy_rate,
    stationary_distribution,
    unigram_cross_entropy,
)

ASYMMETRIC = [[0.9, 0.1, 0.0], [0.2, 0.5, 0.3], [0.6, 0.0, 0.4]]


def enumerated_block_entropy(P: Sequence[Sequence[float]], pi: Sequence[float], r: int) -> float:
    total = 0.0
    for states in itertools.product(range(len(P)), repeat=r):
        probability = pi[states[0]] if states else 1.0
        for i, j in itertools.pairwise(states):
            probability *= P[i][j]
        total -= probability * math.log(probability) if probability else 0.0
    return total


# ---- 定常分布 ---------------------------------------------------------------------------


def test_two_state_closed_form():
    # π_0 = q / (p + q)。行と列を取り違えると p / (p + q) になる。
    p, q = 0.3, 0.1
    assert stationary_distribution([[1 - p, p], [q, 1 - q]]) == pytest.approx([0.25, 0.75])


def test_matches_power_iteration():
    pi = stationary_distribution(ASYMMETRIC)
    power = np.linalg.matrix_power(np.array(ASYMMETRIC), 200)
    assert pi == pytest.approx(power[0], abs=1e-12)
    assert pi.sum() == pytest.approx(1.0, abs=1e-15)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_periodic_cycle_is_uniform(n: int):
    cycle = np.roll(np.eye(n), 1, axis=1)
    assert stationary_distribution(cycle) == pytest.approx([1 / n] * n)
    assert entropy_rate(cycle) == pytest.approx(0.0, abs=1e-12)


def test_transient_states_get_zero():
    P = [[0.5, 0.5, 0.0], [0.0, 0.3, 0.7], [0.0, 0.6, 0.4]]
    assert stationary_distribution(P) == pytest.approx([0, 6 / 13, 7 / 13], abs=1e-12)


def test_long_path_to_the_only_closed_class():
    # 0 → 1 → ... → 40 (吸収)。何歩も先でしかたどり着けなくても、閉じた組は一つである。
    P = np.eye(41, k=1)
    P[40, 40] = 1
    assert stationary_distribution(P) == pytest.approx([0.0] * 40 + [1.0], abs=1e-12)


@pytest.mark.parametrize(
    ("P", "message"),
    [
        ([[0.5, 0.5]], "正方"),
        ([0.5, 0.5], "正方"),
        ([], "正方"),
        ([[math.nan, 0.5], [0.5, 0.5]], "有限"),
        ([[math.inf, 0.5], [0.5, 0.5]], "有限"),
        ([[1.5, -0.5], [0.5, 0.5]], "0 以上"),
        ([[0.5, 0.4], [0.5, 0.5]], "行 0"),
        ([[0.9, 0.2], [0.1, 0.8]], "行 0"),  # 列の和が 1 の行列
        ([[1.0, 0.0], [0.0, 1.0]], "一つに決まりません"),
        ([[1, 0, 0], [0.5, 0, 0.5], [0, 0, 1]], "一つに決まりません"),
        (np.kron(np.eye(2), np.roll(np.eye(9), 1, axis=1)), "一つに決まりません"),  # 長い輪が二つ
    ],
)
@pytest.mark.parametrize("function", [stationary_distribution, entropy_rate])
def test_bad_matrices_are_refused(function, P, message: str):
    with pytest.raises(ValueError, match=message):
        function(P)


@pytest.mark.parametrize("P", ["abc", [["a", "b"], ["c", "d"]], [[0.5, None], [0.5, 0.5]]])
def test_non_numbers_are_refused(P):
    with pytest.raises((TypeError, ValueError), match="P "):
        stationary_distribution(P)


def test_ragged_rows_are_refused():
    with pytest.raises(TypeError, match="正方形の表"):
        stationary_distribution([[1.0], [0.5, 0.5]])


# ---- エントロピー -----------------------------------------------------------------------


def test_entropy_rate_of_the_paper_setting():
    # p = q = 0.8: H(0.8) = -0.8 ln 0.8 - 0.2 ln 0.2
    assert entropy_rate([[0.2, 0.8], [0.8, 0.2]]) == pytest.approx(0.500402, abs=1e-6)


def test_entropy_rate_weights_rows_by_the_stationary_distribution():
    pi = np.linalg.matrix_power(np.array(ASYMMETRIC), 200)[0]
    rows = [-sum(p * math.log(p) for p in row if p) for row in ASYMMETRIC]
    assert entropy_rate(ASYMMETRIC) == pytest.approx(float(pi @ rows), abs=1e-12)


def test_independent_symbols_have_block_entropy_proportional_to_length():
    P = [[0.25, 0.75], [0.25, 0.75]]
    one = -0.25 * math.log(0.25) - 0.75 * math.log(0.75)
    assert block_entropy(P, 7) == pytest.approx(7 * one)


@pytest.mark.parametrize("r", range(6))
def test_block_entropy_matches_enumeration(r: int):
    pi = stationary_distribution(ASYMMETRIC).tolist()
    expected = enumerated_block_entropy(ASYMMETRIC, pi, r)
    assert block_entropy(ASYMMETRIC, r) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("r", "error"), [(-1, ValueError), (1.5, TypeError), (True, TypeError)])
def test_bad_block_length(r, error):
    with pytest.raises(error, match="r "):
        block_entropy(ASYMMETRIC, r)


def test_block_entropy_of_zero_still_checks_the_matrix():
    with pytest.raises(ValueError, match="正方"):
        block_entropy([[1.0, 0.0]], 0)


# ---- k 次のスイッチング情報源 -----------------------------------------------------------


@pytest.mark.parametrize("order", [1, 2, 3])
def test_expanded_chain_matches_the_definition(order: int):
    # 状態の連鎖からの条件付き確率を、定義 Pr(x_n | x_{n-k}) と総当たりで比べる。
    source = MarkovSource(order, p=0.7, q=0.4)
    P = source.transition_matrix()
    for history in itertools.product((0, 1), repeat=order):
        state = int("".join(map(str, history)), 2)
        for symbol in (0, 1):
            successor = int("".join(map(str, (*history[1:], symbol))), 2)
            one = 1 - 0.4 if history[0] else 0.7
            expected = one if symbol else 1 - one
            assert P[state, successor] == pytest.approx(expected)
    assert P.sum() == pytest.approx(2**order)


@pytest.mark.parametrize("order", [1, 2, 4])
def test_entropies_do_not_depend_on_the_order(order: int):
    source = MarkovSource(order, p=0.7, q=0.4)
    h = [-x * math.log(x) - (1 - x) * math.log(1 - x) for x in (0.7, 0.4)]
    assert source.entropy_rate() == pytest.approx((0.4 * h[0] + 0.7 * h[1]) / 1.1, abs=1e-12)
    x = 0.7 / 1.1
    assert source.unigram_entropy() == pytest.approx(-x * math.log(x) - (1 - x) * math.log(1 - x))


@pytest.mark.parametrize("order", [1, 2, 3])
def test_samples_follow_the_definition(order: int):
    source = MarkovSource(order, p=0.7, q=0.4)
    x = source.sample(200_000, np.random.default_rng(0))
    assert set(x.tolist()) == {0, 1}
    before, after = x[:-order], x[order:]
    assert after[before == 0].mean() == pytest.approx(0.7, abs=0.01)
    assert after[before == 1].mean() == pytest.approx(0.6, abs=0.01)
    assert x.mean() == pytest.approx(0.7 / 1.1, abs=0.01)
    if order > 1:  # 間の記号は予測の役に立たない
        assert x[1:][x[:-1] == 0].mean() == pytest.approx(0.7 / 1.1, abs=0.01)


def test_sample_starts_from_the_stationary_distribution():
    rng = np.random.default_rng(1)
    first = np.array([MarkovSource(2, 0.7, 0.2).sample(2, rng) for _ in range(4000)])
    assert first.mean(axis=0) == pytest.approx([7 / 9, 7 / 9], abs=0.03)


def test_sample_is_reproducible_and_may_be_short():
    source = MarkovSource(3)
    a, b = (source.sample(50, np.random.default_rng(5)) for _ in range(2))
    assert (a == b).all()
    assert len(source.sample(0, np.random.default_rng(0))) == 0
    assert len(source.sample(2, np.random.default_rng(0))) == 2


@pytest.mark.parametrize(
    ("arguments", "error", "name"),
    [
        ((0, 0.8, 0.8), ValueError, "order"),
        ((13, 0.8, 0.8), ValueError, "order"),
        ((2.0, 0.8, 0.8), TypeError, "order"),
        ((2, 1.0, 0.8), ValueError, "p "),
        ((2, 0.8, 0.0), ValueError, "q "),
        ((2, math.nan, 0.8), ValueError, "p "),
        ((2, "0.8", 0.8), TypeError, "p "),
    ],
)
def test_bad_sources_are_refused(arguments, error, name: str):
    with pytest.raises(error, match=name):
        MarkovSource(*arguments)


def test_bad_sample_arguments():
    with pytest.raises(ValueError, match="n "):
        MarkovSource().sample(-1, np.random.default_rng(0))
    with pytest.raises(TypeError, match="generator"):
        MarkovSource().sample(3, 0)  # pyright: ignore[reportArgumentType]


# ---- トークン ---------------------------------------------------------------------------


def naive_encode(symbols: list[int], merges: tuple[tuple[int, int], ...]) -> list[int]:
    ids = list(symbols)
    for new, pair in enumerate(merges, start=2):
        out, i = [], 0
        while i < len(ids):
            if tuple(ids[i : i + 2]) == pair:
                out.append(new)
                i += 2
            else:
                out.append(ids[i])
                i += 1
        ids = out
    return ids


def test_first_merge_is_the_most_frequent_pair():
    assert PairTokenizer.train([0, 1, 1, 0, 1, 1, 0, 1], 3).merges == ((0, 1),)
    assert PairTokenizer.train([0, 0, 1, 1, 1], 3).merges == ((1, 1),)
    assert PairTokenizer.train([1, 0, 1, 0], 3).merges == ((1, 0),)
    # (1, 1)、(1, 0)、(0, 0) が 2 回ずつ。先に現れるのは (1, 1) だが、id の小さい (0, 0) を選ぶ。
    assert PairTokenizer.train([1, 1, 0, 0, 1, 1, 0, 0], 3).merges == ((0, 0),)


def test_merging_stops_when_no_pair_repeats():
    assert PairTokenizer.train([0, 1], 10).merges == ()
    assert PairTokenizer.train([], 10).merges == ()


def test_encode_matches_the_naive_algorithm_and_is_lossless():
    symbols = MarkovSource().sample(3000, np.random.default_rng(0))
    tokenizer = PairTokenizer.train(symbols, 20)
    ids = tokenizer.encode(symbols)
    assert len(tokenizer.pieces()) == 20
    assert ids.tolist() == naive_encode(symbols.tolist(), tokenizer.merges)
    text = "".join(tokenizer.pieces()[i] for i in ids)
    assert text == "".join(map(str, symbols.tolist()))


def test_merges_are_those_of_section_2_3():
    symbols = MarkovSource().sample(20_000, np.random.default_rng(0))
    bpe = BPE.train({"".join(map(str, symbols.tolist())): 1}, 18, end_of_word="")
    tokenizer = PairTokenizer.train(symbols, 20)
    pieces = tokenizer.pieces()
    assert bpe.merges == [(pieces[left], pieces[right]) for left, right in tokenizer.merges]


@pytest.mark.parametrize("symbols", [[0, 2], [[0, 1]], ["a"], None])
def test_other_symbols_are_refused(symbols):
    with pytest.raises(ValueError, match="symbols"):
        PairTokenizer.train(symbols, 4)


@pytest.mark.parametrize("vocab_size", [1, 50_001])
def test_bad_vocab_size(vocab_size: int):
    with pytest.raises(ValueError, match="vocab_size"):
        PairTokenizer.train([0, 1, 0, 1], vocab_size)


def test_unigram_cross_entropy_by_hand():
    # トークン a, a, b。-ln(2/3) * 2 - ln(1/3) を 6 記号で割る。
    expected = -(2 * math.log(2 / 3) + math.log(1 / 3)) / 6
    assert unigram_cross_entropy([4, 4, 9], 6) == pytest.approx(expected)


def test_unigram_over_characters_is_the_unigram_entropy():
    source = MarkovSource(2, 0.7, 0.4)
    x = source.sample(200_000, np.random.default_rng(0))
    measured = unigram_cross_entropy(x.tolist(), len(x))
    assert measured == pytest.approx(source.unigram_entropy(), abs=2e-3)
    counts = Counter(x.tolist())
    assert measured >= -sum(c * math.log(c / len(x)) for c in counts.values()) / len(x) - 1e-12


def test_bad_unigram_arguments():
    with pytest.raises(ValueError, match="ids"):
        unigram_cross_entropy([], 3)
    with pytest.raises(ValueError, match="n_symbols"):
        unigram_cross_entropy([0, 1], 1)
