"""2.3 節の採点が、正しい解を通し、もっともらしい誤りを理由つきで退けるか。"""

from itertools import pairwise

import pytest

from chapter02.exercises import check_merge, check_segment
from tests.grading import accepts, explains, waits


def merge(symbols, pair):
    merged, i = [], 0
    while i < len(symbols):
        hit = symbols[i : i + 2] == pair
        merged.append("".join(pair) if hit else symbols[i])
        i += 1 + hit
    return tuple(merged)


def merge_by_replace(symbols, pair):
    joined = " ".join(symbols).replace(" ".join(pair), "".join(pair))
    return tuple(joined.split(" ")) if symbols else ()


def merge_first_only(symbols, pair):
    for i in range(len(symbols) - 1):
        if symbols[i : i + 2] == pair:
            return (*symbols[:i], "".join(pair), *symbols[i + 2 :])
    return symbols


def merge_from_the_right(symbols, pair):
    return tuple(merge(symbols[::-1], pair[::-1])[::-1])


def merge_as_list(symbols, pair):
    return list(merge(symbols, pair))


def segment(word, merges):
    symbols = (*word, "</w>")
    for pair in merges:
        symbols = merge(symbols, pair)
    return list(symbols)


def segment_from_the_left(word, merges):
    symbols, i = [*word, "</w>"], 0
    while i < len(symbols) - 1:
        if (symbols[i], symbols[i + 1]) in merges:
            symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
            i = 0
        else:
            i += 1
    return symbols


def segment_without_end(word, merges):
    return segment(word, merges)[:-1]


def segment_once(word, merges):
    symbols = (*word, "</w>")
    for pair in merges:
        if pair in set(pairwise(symbols)):
            return list(merge(symbols, pair))
    return list(symbols)


@pytest.mark.parametrize(("check", "solution"), [(check_merge, merge), (check_segment, segment)])
def test_solutions_pass(check, solution, capsys):
    accepts(check, solution, capsys)


@pytest.mark.parametrize(
    ("check", "wrong", "message"),
    [
        (check_merge, merge_by_replace, "境目"),
        (check_merge, merge_first_only, "長さ"),
        (check_merge, merge_from_the_right, "場所"),
        (check_merge, merge_as_list, "型"),
        (check_segment, segment_from_the_left, "順位"),
        (check_segment, segment_without_end, "長さ"),
        (check_segment, segment_once, "長さ"),
    ],
)
def test_wrong_answers_are_explained(check, wrong, message, capsys):
    explains(check, wrong, message, capsys)


@pytest.mark.parametrize("check", [check_merge, check_segment])
def test_stub_is_not_a_failure(check, capsys):
    waits(check, capsys)
