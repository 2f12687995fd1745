"""4.3.1a の採点が、正しい解を通し、もっともらしい誤りを理由つきで退けるか。"""

import numpy as np
import pytest
import torch

from chapter04.exercises import check_induction, check_prefix_matching
from chapter04.induction import prefix_matching, repeated_rows
from tests.grading import accepts, explains, waits


def induction(ids):
    """最後に見た次の記号を、辞書に覚えておく。"""
    follows, found = {}, []
    for t, symbol in enumerate(ids):
        if t:
            follows[ids[t - 1]] = symbol
        found.append(follows.get(symbol))
    return found


def copies_the_symbol(ids):
    return [symbol if symbol in ids[:t] else None for t, symbol in enumerate(ids)]


def first_match(ids):
    return [
        ids[ids.index(symbol) + 1] if symbol in ids[:t] else None for t, symbol in enumerate(ids)
    ]


def peeks(ids):
    """自分のすぐ後を読んでしまう。"""
    return [ids[t + 1] if t + 1 < len(ids) else None for t in range(len(ids))]


def zero_for_unseen(ids):
    return [0 if found is None else found for found in induction(ids)]


def skips_neighbours(ids):
    """すぐ前の同じ記号を見落とす。"""
    found: list[int | None] = []
    for t, symbol in enumerate(ids):
        earlier = [s for s in range(t - 1) if ids[s] == symbol]
        found.append(ids[earlier[-1] + 1] if earlier else None)
    return found


def breaks_on_empty(ids):
    return induction(ids) if ids else None


def score(weights, ids, *, shift=1, itself=False, every=True, over_all=False):
    n = len(ids)
    total, count = 0.0, 0
    for t in range(n):
        seen = [s for s in range(t) if ids[s] == ids[t]]
        if not seen and not over_all:
            continue
        places = seen if every else seen[-1:]
        total += sum(weights[t, s + shift] for s in places) + (weights[t, t] if itself else 0)
        count += 1
    return float(total / count) if count else 0.0


def as_matrix(weights, ids):
    """同じ記号の組の行列をずらして、一度に求める。"""
    ids = np.array(ids)
    same = np.tril(ids[:, None] == ids[None, :], -1)  # (t, s)
    shifted = np.pad(same, ((0, 0), (1, 0)))[:, :-1]
    seen = same.any(axis=1)
    return float((weights * shifted).sum(axis=1)[seen].mean()) if seen.any() else 0.0


def at_the_same_symbol(weights, ids):
    return score(weights, ids, shift=0)


def only_the_nearest(weights, ids):
    return score(weights, ids, every=False)


def over_every_position(weights, ids):
    return score(weights, ids, over_all=True)


def transposed(weights, ids):
    return score(weights.T, ids)


def nan_without_repeats(weights, ids):
    return score(weights, ids) if len(set(ids)) < len(ids) else float("nan")


@pytest.mark.parametrize(
    ("check", "solution"),
    [
        (check_induction, induction),
        (check_prefix_matching, score),
        (check_prefix_matching, as_matrix),
    ],
)
def test_solutions_pass(check, solution, capsys):
    accepts(check, solution, capsys)


@pytest.mark.parametrize(
    ("check", "wrong", "message"),
    [
        (check_induction, copies_the_symbol, "すぐ後の記号"),
        (check_induction, first_match, "いちばん近い"),
        (check_induction, peeks, "None です"),
        (check_induction, zero_for_unseen, "None です"),
        (check_induction, skips_neighbours, "同じ記号が続く"),
        (check_induction, breaks_on_empty, "空の list"),
        (check_prefix_matching, at_the_same_symbol, "すぐ後 s + 1"),
        (check_prefix_matching, only_the_nearest, "そのすべて"),
        (check_prefix_matching, over_every_position, "すぐ後 s + 1"),
        (check_prefix_matching, transposed, "すぐ後 s + 1"),
        (check_prefix_matching, nan_without_repeats, "0.0 を返します"),
    ],
)
def test_wrong_answers_are_explained(check, wrong, message, capsys):
    explains(check, wrong, message, capsys)


@pytest.mark.parametrize("check", [check_induction, check_prefix_matching])
def test_stub_is_not_a_failure(check, capsys):
    waits(check, capsys)


def test_the_exercise_agrees_with_the_module():
    """演習の得点は、モジュールの得点を一行ずつ求めたものの平均(周期が同じとき)。"""
    generator = torch.Generator().manual_seed(0)
    ids, periods = repeated_rows(generator, 3, length=14, symbols=11, periods=(5, 5))
    weights = torch.rand(3, 1, 14, 14, generator=generator).tril()

    class Fixed:
        def attention_maps(self, _):
            return [weights]

    rows = zip(weights[:, 0].numpy(), ids.tolist(), strict=True)
    expected = np.mean([score(w, row) for w, row in rows])
    assert float(prefix_matching(Fixed(), ids, periods)) == pytest.approx(expected, abs=1e-6)
