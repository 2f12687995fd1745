"""3.5 節の採点が、正しい解を通し、もっともらしい誤りを理由つきで退けるか。"""

import pytest
import torch

from chapter03.exercises import check_beam_step, check_shift_right
from tests.grading import accepts, explains, waits


def shift_right(target, bos):
    return torch.cat([torch.full_like(target[:, :1], bos), target[:, :-1]], dim=1)


def shift_left(target, bos):
    return torch.cat([target[:, 1:], torch.full_like(target[:, :1], bos)], dim=1)


def only_prepend(target, bos):
    return torch.cat([torch.full_like(target[:, :1], bos), target], dim=1)


def fixed_bos(target, bos):
    return shift_right(target, 1)


def rolled(target, bos):
    return target.roll(1, dims=1)


def as_list(target, bos):
    return shift_right(target, bos).tolist()


def beam_step(log_p, next_log_p, eos, width):
    total = log_p[:, None] + next_log_p
    best, flat = total.view(-1).topk(min(2 * width, total.numel()))
    done, live = [], []
    for rank, (value, place) in enumerate(zip(best.tolist(), flat.tolist(), strict=True)):
        parent, token = divmod(place, next_log_p.shape[1])
        if token != eos:
            live.append((value, parent, token))
        elif rank < width:
            done.append((value, parent))
    return done, live[:width]


def every_eos(log_p, next_log_p, eos, width):
    done = sorted(((log_p + next_log_p[:, eos])[k].item(), k) for k in range(len(log_p)))
    return done[::-1], beam_step(log_p, next_log_p, eos, width)[1]


def forgets_the_parent(log_p, next_log_p, eos, width):
    return beam_step(torch.zeros_like(log_p), next_log_p, eos, width)


def too_few(log_p, next_log_p, eos, width):
    total = log_p[:, None] + next_log_p
    best, flat = total.view(-1).topk(width)
    done, live = [], []
    for value, place in zip(best.tolist(), flat.tolist(), strict=True):
        parent, token = divmod(place, next_log_p.shape[1])
        if token == eos:
            done.append((value, parent))
        else:
            live.append((value, parent, token))
    return done, live


def swaps_parent_and_token(log_p, next_log_p, eos, width):
    done, live = beam_step(log_p, next_log_p, eos, width)
    return done, [(value, token, parent) for value, parent, token in live]


@pytest.mark.parametrize(
    ("check", "solution"),
    [(check_shift_right, shift_right), (check_shift_right, as_list), (check_beam_step, beam_step)],
)
def test_solutions_pass(check, solution, capsys):
    accepts(check, solution, capsys)


@pytest.mark.parametrize(
    ("check", "wrong", "message"),
    [
        (check_shift_right, shift_left, "先頭に bos"),
        (check_shift_right, only_prepend, "最後の列を落とし"),
        (check_shift_right, fixed_bos, "bos が 1 でないとき"),
        (check_shift_right, rolled, "先頭に bos"),
        (check_beam_step, every_eos, "上位 width 個に入った eos"),
        (check_beam_step, forgets_the_parent, "親の log P に"),
        (check_beam_step, too_few, "2 × width"),
        (check_beam_step, swaps_parent_and_token, "場所"),
    ],
)
def test_wrong_answers_are_explained(check, wrong, message, capsys):
    explains(check, wrong, message, capsys)


@pytest.mark.parametrize("check", [check_shift_right, check_beam_step])
def test_stub_is_not_a_failure(check, capsys):
    waits(check, capsys)
