"""4.3.2a の採点が、正しい解を通し、もっともらしい誤りを理由つきで退けるか。"""

import numpy as np
import pytest
import torch
from torch import nn

from chapter04.exercises import check_chat_targets, check_lora_gradients
from chapter04.lora import LoRALinear
from tests.grading import accepts, explains, waits


def targets(ids, user, assistant, end, ignored):
    """印の位置から、答えの区間を一つずつ塗る。"""
    out = np.full(len(ids) - 1, ignored)
    for begin in np.flatnonzero(ids == assistant):
        stops = [i for i in range(begin + 1, len(ids)) if ids[i] == end]
        stop = stops[0] if stops else len(ids) - 1
        out[begin:stop] = ids[begin + 1 : stop + 1]
    return out


def everything(ids, user, assistant, end, ignored):
    return ids[1:]


def unshifted(ids, user, assistant, end, ignored):
    return np.where(targets(ids, user, assistant, end, ignored) == ignored, ignored, ids[:-1])


def full_length(ids, *settings):
    return np.append(targets(ids, *settings), settings[-1])


def without_end(ids, user, assistant, end, ignored):
    out = targets(ids, user, assistant, end, ignored)
    return np.where(out == end, ignored, out)


def first_turn_only(ids, user, assistant, end, ignored):
    out = targets(ids, user, assistant, end, ignored)
    if end in ids:
        out[int(np.flatnonzero(ids == end)[0]) :] = ignored
    return out


def with_the_next_user(ids, user, assistant, end, ignored):
    out = targets(ids, user, assistant, end, ignored)
    return np.where(ids[1:] == user, user, out)


def needs_an_end(ids, user, assistant, end, ignored):
    out = targets(ids, user, assistant, end, ignored)
    return out if end in ids else np.full_like(out, ignored)


def after_the_first_end_too(ids, user, assistant, end, ignored):
    """一度 <|assistant|> を見たら、最後まで数える。"""
    seen = np.cumsum(ids[:-1] == assistant) > 0
    return np.where(seen, ids[1:], ignored)


def gradients(x, g, a, b, alpha):
    """LoRALinear を自動微分したもの。"""
    layer = LoRALinear(nn.Linear(x.shape[1], g.shape[1], dtype=torch.double), len(a), alpha)
    with torch.no_grad():
        layer.A.copy_(torch.tensor(a))
        layer.B.copy_(torch.tensor(b))
    (layer(torch.tensor(x)) * torch.tensor(g)).sum().backward()
    return layer.A.grad.numpy(), layer.B.grad.numpy()


def by_hand(x, g, a, b, alpha, *, scale=None):
    scale = alpha / len(a) if scale is None else scale
    return scale * b.T @ g.T @ x, scale * g.T @ x @ a.T


def swapped(*args):
    return by_hand(*args)[::-1]


def unscaled(*args):
    return by_hand(*args, scale=1.0)


def alpha_alone(x, g, a, b, alpha):
    return by_hand(x, g, a, b, alpha, scale=alpha)


def averaged(x, g, a, b, alpha):
    return tuple(gradient / len(x) for gradient in by_hand(x, g, a, b, alpha))


def both_at_rest(x, g, a, b, alpha):
    grad_a, grad_b = by_hand(x, g, a, b, alpha)
    return grad_a, grad_b * b.any()


@pytest.mark.parametrize(
    ("check", "solution"),
    [
        (check_chat_targets, targets),
        (check_lora_gradients, gradients),
        (check_lora_gradients, by_hand),
    ],
)
def test_solutions_pass(check, solution, capsys):
    accepts(check, solution, capsys)


@pytest.mark.parametrize(
    ("check", "wrong", "message"),
    [
        (check_chat_targets, everything, "数えません"),
        (check_chat_targets, unshifted, "次のトークン"),
        (check_chat_targets, full_length, "1 個短く"),
        (check_chat_targets, without_end, "止まること"),
        (check_chat_targets, first_turn_only, "答えはどれも"),
        (check_chat_targets, with_the_next_user, "人が書く所"),
        (check_chat_targets, after_the_first_end_too, "人が書く所"),
        (check_chat_targets, needs_an_end, "終わりの印がなくても"),
        (check_lora_gradients, swapped, "順の tuple"),
        (check_lora_gradients, unscaled, "α / r"),
        (check_lora_gradients, alpha_alone, "α / r"),
        (check_lora_gradients, averaged, "平均ではありません"),
        (check_lora_gradients, both_at_rest, "B = 0"),
    ],
)
def test_wrong_answers_are_explained(check, wrong, message, capsys):
    explains(check, wrong, message, capsys)


@pytest.mark.parametrize("check", [check_chat_targets, check_lora_gradients])
def test_stub_is_not_a_failure(check, capsys):
    waits(check, capsys)


def test_zero_start_moves_only_b():
    """B = 0 から始めると、初めの勾配は B だけが 0 でない。A も 0 なら、どちらも動かない。"""
    rng = np.random.default_rng(1)
    x, g, a = rng.normal(size=(4, 3)), rng.normal(size=(4, 2)), rng.normal(size=(1, 3))
    grad_a, grad_b = gradients(x, g, a, np.zeros((2, 1)), 1.0)
    assert not grad_a.any()
    assert grad_b.any()
    both = gradients(x, g, np.zeros_like(a), np.zeros((2, 1)), 1.0)
    assert not any(gradient.any() for gradient in both)
