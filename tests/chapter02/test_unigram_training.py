"""まとめ計算の学習を、数式どおりの短い実装と列挙に比べる。"""

import math
from collections import Counter

import numpy as np
import pytest
from scipy import special

from chapter02.unigram import Unigram
from chapter02.unigram_corpus import MAX_CHUNK_LENGTH, find_seeds, make_corpus
from chapter02.unigram_plain import (
    corpus_log_likelihood,
    em_step,
    path_log_prob,
    pruning_losses,
    segmentations,
)
from chapter02.unigram_training import BatchedLattices, digamma

WORDS = ["banana", "bandana", "ananas", "nab", "banana", "an", "b", "sand", "sand", "bandsand"]
TOY = {"a": 0.3, "b": 0.2, "ab": 0.3, "ba": 0.2}


@pytest.fixture(scope="module")
def prepared():
    corpus = make_corpus(WORDS, 1.0)
    return corpus, find_seeds(corpus)


def plain_counts(probabilities, words):
    model = Unigram.from_probabilities(probabilities)
    total = Counter()
    for word in words:
        total.update(model.expected_counts(word))
    return total


def test_corpus_keeps_every_chunk_with_its_count(prepared):
    corpus, _ = prepared
    chunks = [corpus.text[s : s + n] for s, n in zip(corpus.starts, corpus.lengths, strict=True)]
    assert dict(zip(chunks, corpus.counts.tolist(), strict=True)) == Counter(WORDS)
    assert (np.diff(corpus.lengths) <= 0).all()
    assert corpus.alphabet[0] == "a"


def test_chunks_end_at_spaces_scripts_and_rare_characters():
    corpus = make_corpus(["▁猫はcat▁a1、2。▁▁ー々"], 1.0)
    chunks = {corpus.text[s : s + n] for s, n in zip(corpus.starts, corpus.lengths, strict=True)}
    assert chunks == {"▁猫は", "cat", "▁a", "1、2。", "▁", "▁ー々"}
    corpus = make_corpus(["aaaaaaaaaXaaaaaaaaa"], 0.9)
    assert corpus.text == "aaaaaaaaa"
    assert corpus.counts.tolist() == [2]
    assert corpus.alphabet == ["a"]
    combined = make_corpus(["が\u3099a\u0301b"], 1.0)
    assert sorted(combined.lengths.tolist()) == [2, 3]
    assert make_corpus(["a" * (MAX_CHUNK_LENGTH + 5)], 1.0).lengths.tolist() == [
        MAX_CHUNK_LENGTH,
        5,
    ]


def test_seeds_are_the_frequent_substrings_that_no_longer_one_replaces(prepared):
    corpus, seeds = prepared
    counts = Counter(
        word[i:j] for word in WORDS for i in range(len(word)) for j in range(i + 1, len(word) + 1)
    )
    frequent = {piece for piece, count in counts.items() if len(piece) > 1 and count >= 2}
    kept = {p for p in frequent if all(counts[p + c] < counts[p] for c in corpus.alphabet)}
    assert set(seeds.pieces) == kept | set(corpus.alphabet)
    assert seeds.pieces[: len(corpus.alphabet)] == corpus.alphabet
    assert seeds.counts.tolist() == [counts[piece] for piece in seeds.pieces]
    for n, (positions, ids) in enumerate(zip(seeds.positions, seeds.ids, strict=True), start=1):
        for position, i in zip(positions.tolist(), ids.tolist(), strict=True):
            assert corpus.text[position : position + n] == seeds.pieces[i]


def test_seed_size_keeps_the_pieces_with_the_largest_count_times_length(prepared):
    corpus, seeds = prepared
    few = find_seeds(corpus, seed_size=3)
    score = dict(zip(seeds.pieces, seeds.counts * [len(p) for p in seeds.pieces], strict=True))
    chosen = few.pieces[len(corpus.alphabet) :]
    longer = sorted((score[p] for p in seeds.pieces if len(p) > 1), reverse=True)
    assert sorted((score[p] for p in chosen), reverse=True) == longer[:3]
    assert max(len(p) for p in find_seeds(corpus, max_length=3).pieces) == 3


def random_probabilities(pieces, seed):
    p = np.random.default_rng(seed).dirichlet(np.ones(len(pieces)))
    return dict(zip(pieces, p.tolist(), strict=True))


@pytest.mark.parametrize("seed", [0, 1])
def test_the_batched_e_step_agrees_with_the_plain_one(prepared, seed):
    corpus, seeds = prepared
    lattices = BatchedLattices(corpus, seeds)
    probabilities = random_probabilities(seeds.pieces, seed)
    log_likelihood, counts, _ = lattices.expectation(np.log(list(probabilities.values())))
    assert log_likelihood == pytest.approx(corpus_log_likelihood(probabilities, WORDS), abs=1e-9)
    wanted = plain_counts(probabilities, WORDS)
    for piece, count in zip(seeds.pieces, counts, strict=True):
        assert count == pytest.approx(wanted[piece], abs=1e-9)

    kept = np.array([len(p) == 1 or i % 2 == 0 for i, p in enumerate(seeds.pieces)])
    lattices.keep(kept)
    probabilities = {p: q for (p, q), k in zip(probabilities.items(), kept, strict=True) if k}
    log_likelihood, counts, _ = lattices.expectation(np.log(list(probabilities.values())))
    wanted = plain_counts(probabilities, WORDS)
    assert counts == pytest.approx([wanted[piece] for piece in probabilities], abs=1e-9)
    assert log_likelihood == pytest.approx(corpus_log_likelihood(probabilities, WORDS), abs=1e-9)


def test_the_batched_loss_is_the_drop_of_the_likelihood(prepared):
    corpus, seeds = prepared
    probabilities = random_probabilities(seeds.pieces, 3)
    _, _, losses = BatchedLattices(corpus, seeds).expectation(
        np.log(list(probabilities.values())), with_losses=True
    )
    assert losses is not None
    exact = pruning_losses(probabilities, WORDS)
    once = [p for p in exact if all(w.find(p) == w.rfind(p) for w in WORDS)]
    assert len(once) > 5
    for piece in once:
        assert losses[seeds.pieces.index(piece)] == pytest.approx(exact[piece], abs=1e-9)


def reference_training(seeds, alphabet, words, n_pieces):
    """学習の手順を、辞書とラティス 1 つずつで書き下したもの。"""
    weight = {p: c * len(p) for p, c in zip(seeds.pieces, seeds.counts, strict=True)}
    log_p = {p: math.log(w / sum(weight.values())) for p, w in weight.items()}

    def expectation():
        counts, losses = dict.fromkeys(log_p, 0.0), dict.fromkeys(log_p, 0.0)
        model = Unigram([*log_p, "<unk>"], [*log_p.values(), 0.0], len(log_p))
        for word in words:
            for edge, gamma in model.lattice(word).posteriors():
                counts[model.pieces[edge.piece_id]] += gamma
                losses[model.pieces[edge.piece_id]] -= math.log1p(-min(gamma, 1 - 1e-15))
        return counts, losses

    while True:
        for _ in range(2):
            counts, _ = expectation()
            kept = [p for p in log_p if counts[p] >= 0.5 or p in alphabet]
            if len(kept) < n_pieces:
                rest = sorted((p for p in log_p if p not in kept), key=lambda p: -counts[p])
                kept += rest[: n_pieces - len(kept)]
            kept = {p: max(counts[p], 0.5) for p in log_p if p in kept}
            total = special.digamma(sum(kept.values()))
            log_p = {p: special.digamma(c) - total for p, c in kept.items()}
        if len(log_p) <= n_pieces:
            break
        _, losses = expectation()
        order = sorted(log_p, key=lambda p: (p not in alphabet, -losses[p]))
        size = max(n_pieces, int(0.75 * len(log_p)))
        log_p = {p: q for p, q in log_p.items() if p in set(order[:size])}
    counts, _ = expectation()
    counts = {p: max(c, 0.5) for p, c in counts.items()}
    return {p: c / sum(counts.values()) for p, c in counts.items()}


@pytest.mark.parametrize("n_pieces", [5, 9, 14])
def test_training_follows_the_procedure_step_by_step(n_pieces):
    words = ["▁" + word for word in [*WORDS, "nabs", "sandbar", "bar", "bars", "bands"]]
    corpus = make_corpus(words, 1.0)
    n_pieces = max(n_pieces, len(corpus.alphabet))
    model = Unigram.train([w[1:] for w in words], n_pieces + 1, character_coverage=1.0)
    learned = dict(zip(model.pieces[1:], np.exp(model.log_probs[1:]), strict=True))
    wanted = reference_training(find_seeds(corpus), corpus.alphabet, words, n_pieces)
    assert learned == pytest.approx(wanted, rel=1e-8)


def test_em_never_lowers_the_likelihood_and_stays_a_distribution():
    probabilities = random_probabilities(["a", "b", "n", "d", "s", "an", "ban", "and", "ana"], 5)
    before = corpus_log_likelihood(probabilities, WORDS)
    for _ in range(6):
        probabilities = em_step(probabilities, WORDS)
        after = corpus_log_likelihood(probabilities, WORDS)
        assert after >= before - 1e-12
        assert sum(probabilities.values()) == pytest.approx(1.0, abs=1e-12)
        before = after


def test_em_can_be_repeated_until_probabilities_vanish():
    """負け続けた断片の確率が浮動小数点の下限を下回っても、次のステップへ進める。"""
    probabilities = {"a": 5e-324, "b": 0.4, "ab": 0.6}
    for _ in range(4):
        probabilities = em_step(probabilities, ["ab", "b"])
    assert set(probabilities) == {"b", "ab"}
    assert math.isclose(sum(probabilities.values()), 1.0)


def test_one_em_step_by_hand():
    # "ab" の分割は [ab] (0.3) と [a, b] (0.06)。
    q = 0.3 / 0.36
    counts = {"a": 1 - q, "b": 1 - q, "ab": q}
    step = em_step(TOY, ["ab"])
    assert step == pytest.approx({p: c / sum(counts.values()) for p, c in counts.items()})


def test_segmentations_and_losses_by_hand():
    assert sorted(segmentations("aba", TOY)) == [["a", "b", "a"], ["a", "ba"], ["ab", "a"]]
    assert list(segmentations("", TOY)) == [[]]
    assert list(segmentations("xa", TOY)) == []
    assert path_log_prob(["ab", "a"], TOY) == pytest.approx(math.log(0.09))
    losses = pruning_losses(TOY, ["ab", "ba", "ba"])
    assert set(losses) == {"ab", "ba"}
    assert losses["ab"] == pytest.approx(math.log(0.36) - math.log(0.06))
    assert losses["ba"] == pytest.approx(2 * (math.log(0.26) - math.log(0.06)))


def test_digamma_agrees_with_scipy():
    x = np.concatenate([np.geomspace(1e-6, 1e6, 200), [0.5, 1.0, 2.0, 5.999, 6.0]])
    np.testing.assert_allclose(digamma(x), special.digamma(x), rtol=1e-10, atol=1e-10)
