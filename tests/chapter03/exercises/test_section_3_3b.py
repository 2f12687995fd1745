"""3.3.4 節の採点が、正しい解を通し、もっともらしい誤りを理由つきで退けるか。"""

import pytest
import torch

from chapter03.exercises import check_both_masks, check_split_heads
from tests.grading import accepts, explains, waits


def split(x, n_heads):
    return x.reshape(len(x), n_heads, x.shape[1] // n_heads).permute(1, 0, 2)


def split_by_view(x, n_heads):
    return x.reshape(n_heads, len(x), -1)


def split_interleaved(x, n_heads):
    return x.reshape(len(x), -1, n_heads).permute(2, 0, 1)


def split_without_transpose(x, n_heads):
    return x.reshape(len(x), n_heads, -1)


def masks(ids):
    batch, n = ids.shape
    rows = [
        [[j <= i and bool(ids[b, j]) for j in range(n)] for i in range(n)] for b in range(batch)
    ]
    return torch.tensor(rows)


def masks_with_or(ids):
    return torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril() | (ids != 0)[:, None]


def masks_of_rows(ids):
    return torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril() & (ids != 0)[..., None]


def masks_looking_ahead(ids):
    return torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).triu() & (ids != 0)[:, None]


def masks_inverted(ids):
    return ~masks(ids)


def masks_without_padding(ids):
    causal = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
    return causal.expand(len(ids), -1, -1)


def masks_as_numbers(ids):
    return masks(ids).float()


@pytest.mark.parametrize(
    ("check", "solution"), [(check_split_heads, split), (check_both_masks, masks)]
)
def test_solutions_pass(check, solution, capsys):
    accepts(check, solution, capsys)


@pytest.mark.parametrize(
    ("check", "wrong", "message"),
    [
        (check_split_heads, split_by_view, "語が混ざります"),
        (check_split_heads, split_interleaved, "場所"),
        (check_split_heads, split_without_transpose, "長さ"),
        (check_both_masks, masks_with_or, "場所"),
        (check_both_masks, masks_of_rows, "列が見られる側"),
        (check_both_masks, masks_looking_ahead, "未来でなく"),
        (check_both_masks, masks_inverted, "場所"),
        (check_both_masks, masks_without_padding, "左に詰めた"),
        (check_both_masks, masks_as_numbers, "場所"),
    ],
)
def test_wrong_answers_are_explained(check, wrong, message, capsys):
    explains(check, wrong, message, capsys)


@pytest.mark.parametrize("check", [check_split_heads, check_both_masks])
def test_stub_is_not_a_failure(check, capsys):
    waits(check, capsys)
