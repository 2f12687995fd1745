"""2.4 節の採点が、正しい解を通し、もっともらしい誤りを理由つきで退けるか。"""

import math

import pytest

from chapter02.exercises import check_expected_counts, check_viterbi
from chapter02.longest_match import greedy_longest_match
from chapter02.unigram_plain import segmentations
from tests.grading import accepts, explains, waits


def viterbi(text, p):
    delta, last = [0.0] + [-math.inf] * len(text), [""] * (len(text) + 1)
    for j in range(1, len(text) + 1):
        for i in range(max(0, j - 5), j):
            if text[i:j] in p and delta[i] + math.log(p[text[i:j]]) > delta[j]:
                delta[j], last[j] = delta[i] + math.log(p[text[i:j]]), text[i:j]
    if delta[-1] == -math.inf:
        return []
    pieces, j = [], len(text)
    while j > 0:
        pieces.append(last[j])
        j -= len(last[j])
    return pieces[::-1]


def viterbi_without_logarithms(text, p):
    delta, last = [1.0] + [0.0] * len(text), [""] * (len(text) + 1)
    for j in range(1, len(text) + 1):
        for i in range(max(0, j - 5), j):
            if delta[i] * p.get(text[i:j], 0.0) > delta[j]:
                delta[j], last[j] = delta[i] * p[text[i:j]], text[i:j]
    pieces, j = [], len(text)
    while j > 0 and last[j]:
        pieces.append(last[j])
        j -= len(last[j])
    return pieces[::-1] if j == 0 else []


def fewest_pieces(text, p):
    paths = [[]] + [None] * len(text)
    for j in range(1, len(text) + 1):
        for i in range(max(0, j - 5), j):
            if text[i:j] in p and paths[i] is not None:
                longer = [*paths[i], text[i:j]]
                if paths[j] is None or len(longer) < len(paths[j]):
                    paths[j] = longer
    return paths[-1] or []


def viterbi_keeping_the_readable_part(text, p):
    for end in range(len(text), 0, -1):
        if pieces := viterbi(text[:end], p):
            return pieces
    return []


def count_over(paths, weights):
    counts = {}
    for pieces, weight in zip(paths, weights, strict=True):
        for piece in pieces:
            counts[piece] = counts.get(piece, 0.0) + weight
    return counts


def expected_counts(text, p):
    paths = list(segmentations(text, p))
    weights = [math.prod(p[piece] for piece in pieces) for pieces in paths]
    return count_over(paths, [w / sum(weights) for w in weights])


def counts_of_the_best(text, p):
    best = max(segmentations(text, p), key=lambda x: math.prod(p[piece] for piece in x))
    return {piece: 0.0 for x in segmentations(text, p) for piece in x} | count_over([best], [1.0])


def undivided_counts(text, p):
    paths = list(segmentations(text, p))
    return count_over(paths, [math.prod(p[piece] for piece in pieces) for pieces in paths])


def each_piece_once(text, p):
    paths = list(segmentations(text, p))
    weights = [math.prod(p[piece] for piece in pieces) for pieces in paths]
    return count_over([sorted(set(x)) for x in paths], [w / sum(weights) for w in weights])


def counts_of_everything(text, p):
    return dict.fromkeys(p, 0.0) | expected_counts(text, p)


@pytest.mark.parametrize(
    ("check", "right"), [(check_viterbi, viterbi), (check_expected_counts, expected_counts)]
)
def test_right_answers_pass(check, right, capsys):
    accepts(check, right, capsys)


@pytest.mark.parametrize(
    ("check", "wrong", "message"),
    [
        (check_viterbi, greedy_longest_match, "最長一致で取らず"),
        (check_viterbi, fewest_pieces, "断片の数が少なくても"),
        (check_viterbi, viterbi_without_logarithms, "対数を足しましょう"),
        (check_viterbi, viterbi_keeping_the_readable_part, "途中で読めなくなる文字列"),
        (check_expected_counts, counts_of_the_best, "全部の切り方を確率の分だけ"),
        (check_expected_counts, undivided_counts, "P(X) で割ります"),
        (check_expected_counts, each_piece_once, "両方を足します"),
        (check_expected_counts, counts_of_everything, "1 文字"),
    ],
)
def test_plausible_mistakes_are_named(check, wrong, message, capsys):
    explains(check, wrong, message, capsys)


@pytest.mark.parametrize("check", [check_viterbi, check_expected_counts])
def test_unsolved_is_not_a_failure(check, capsys):
    waits(check, capsys)
