"""2.2 節の採点が、正しい解を通し、もっともらしい誤りを理由つきで退けるか。"""

import math

import pytest

from chapter02.exercises import check_expected_types, check_vocabulary_for
from tests.grading import accepts, explains, waits


def vocabulary_for(counts, coverage):
    goal, covered = coverage * sum(counts.values()), 0
    if goal == 0:
        return 0
    for size, count in enumerate(sorted(counts.values(), reverse=True), start=1):
        covered += count
        if covered >= goal:
            return size
    return len(counts)


def by_dictionary_order(counts, coverage):
    covered, size = 0, 0
    for count in counts.values():
        if covered >= coverage * sum(counts.values()):
            break
        covered, size = covered + count, size + 1
    return size


def by_types(counts, coverage):
    return math.ceil(coverage * len(counts))


def strictly_more(counts, coverage):
    goal, covered, size = coverage * sum(counts.values()), 0, 0
    for count in sorted(counts.values(), reverse=True):
        covered, size = covered + count, size + 1
        if covered > goal:
            break
    return size


def at_least_one(counts, coverage):
    return max(vocabulary_for(counts, coverage), 1)


def expected_types(counts, n):
    total = sum(counts)
    return sum(1 - math.comb(total - c, n) / math.comb(total, n) for c in counts)


def expected_by_products(counts, n):
    """別の道: 1 語ずつ避けつづける確率を掛け合わせる。"""
    total = sum(counts)
    return sum(
        1 - math.prod((total - c - i) / (total - i) for i in range(min(n, total - c + 1)))
        for c in counts
    )


def with_replacement(counts, n):
    return sum(1 - (1 - c / sum(counts)) ** n for c in counts)


def unseen_types(counts, n):
    return len(counts) - expected_types(counts, n)


def proportional(counts, n):
    return len(counts) * n / sum(counts)


@pytest.mark.parametrize(
    ("check", "solution"),
    [
        (check_vocabulary_for, vocabulary_for),
        (check_expected_types, expected_types),
        (check_expected_types, expected_by_products),
    ],
)
def test_right_answers_pass(check, solution, capsys):
    accepts(check, solution, capsys)


@pytest.mark.parametrize(
    ("check", "wrong", "message"),
    [
        (check_vocabulary_for, by_dictionary_order, "多い順"),
        (check_vocabulary_for, by_types, "延べ"),
        (check_vocabulary_for, strictly_more, "ちょうど届いた"),
        (check_vocabulary_for, at_least_one, "語彙は 0"),
        (check_expected_types, with_replacement, "戻さずに"),
        (check_expected_types, unseen_types, "一度も現れない"),
        (check_expected_types, proportional, "1 語だけ抜く"),
    ],
)
def test_plausible_wrong_answers_are_explained(check, wrong, message, capsys):
    explains(check, wrong, message, capsys)


@pytest.mark.parametrize("check", [check_vocabulary_for, check_expected_types])
def test_unsolved_is_no_failure(check, capsys):
    waits(check, capsys)
