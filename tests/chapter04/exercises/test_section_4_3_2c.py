"""4.3.2c の採点が、正しい解を通し、もっともらしい誤りを理由つきで退けるか。"""

import numpy as np
import pytest
import torch

from chapter04.dpo import dpo_loss
from chapter04.exercises import check_dpo_gradient, check_dpo_loss
from tests.grading import accepts, explains, waits


def by_module(pc, pr, rc, rr, beta):
    pc, pr, rc, rr = map(torch.tensor, (pc, pr, rc, rr))
    return float(dpo_loss(pc, pr, rc, rr, beta))


def plain(pc, pr, rc, rr, beta):
    return float(np.logaddexp(0, -beta * (pc - rc - pr + rr)).mean())


def without_reference(pc, pr, rc, rr, beta):
    return plain(pc, pr, 0, 0, beta)


def upside_down(pc, pr, rc, rr, beta):
    return plain(pr, pc, rr, rc, beta)


def summed(pc, pr, rc, rr, beta):
    return plain(pc, pr, rc, rr, beta) * (1 if np.allclose(pc, rc) else len(pc))


def without_beta(pc, pr, rc, rr, beta):
    return plain(pc, pr, rc, rr, 1.0 if len(pc) > 1 else beta)


def overflowing(pc, pr, rc, rr, beta):
    with np.errstate(over="ignore"):
        return float(np.log1p(np.exp(-beta * (pc - rc - pr + rr))).mean())


def gradient(logits, log_ref, pairs, beta):
    """torch の自動微分。softmax の分母も、そのまま計算する。"""
    x = torch.tensor(logits, requires_grad=True)
    ref, y = torch.tensor(log_ref), torch.tensor(pairs)
    log_p = x.log_softmax(0)
    dpo_loss(log_p[y[:, 0]], log_p[y[:, 1]], ref[y[:, 0]], ref[y[:, 1]], beta).backward()
    assert x.grad is not None
    return x.grad.numpy()


def by_hand(logits, log_ref, pairs, beta, *, add_at=True, margin_sign=1.0):
    w, lose = pairs.T
    hidden = beta * (logits - log_ref)
    weight = beta / (1 + np.exp(margin_sign * (hidden[w] - hidden[lose]))) / len(pairs)
    result = np.zeros_like(logits)
    if add_at:
        np.add.at(result, w, -weight)
        np.add.at(result, lose, weight)
    else:
        for k in range(len(pairs)):
            result[w[k]], result[lose[k]] = -weight[k], weight[k]
    return result


def ascending(*arguments):
    return -by_hand(*arguments)


def favouring_the_easy(*arguments):
    return by_hand(*arguments, margin_sign=-1.0)


def not_averaged(logits, log_ref, pairs, beta):
    return by_hand(logits, log_ref, pairs, beta) * len(pairs)


def overwriting(logits, log_ref, pairs, beta):
    unique = np.unique(pairs, axis=0)
    if len(unique) == len(pairs):
        return by_hand(logits, log_ref, pairs, beta)
    return by_hand(logits, log_ref, pairs, beta, add_at=False)


@pytest.mark.parametrize(
    ("check", "solution"),
    [
        (check_dpo_loss, by_module),
        (check_dpo_loss, plain),
        (check_dpo_gradient, gradient),
        (check_dpo_gradient, by_hand),
    ],
)
def test_solutions_pass(check, solution, capsys):
    accepts(check, solution, capsys)


@pytest.mark.parametrize(
    ("check", "wrong", "message"),
    [
        (check_dpo_loss, without_reference, "log 2"),
        (check_dpo_loss, upside_down, "損失は下がります"),
        (check_dpo_loss, summed, "平均します"),
        (check_dpo_loss, without_beta, "β 倍"),
        (check_dpo_loss, overflowing, "あふれます"),
        (check_dpo_gradient, ascending, "逆の符号"),
        (check_dpo_gradient, favouring_the_easy, "順を誤った組ほど"),
        (check_dpo_gradient, not_averaged, "平均します"),
        (check_dpo_gradient, overwriting, "np.add.at"),
    ],
)
def test_wrong_answers_are_explained(check, wrong, message, capsys):
    explains(check, wrong, message, capsys)


@pytest.mark.parametrize("check", [check_dpo_loss, check_dpo_gradient])
def test_stub_is_not_a_failure(check, capsys):
    waits(check, capsys)
