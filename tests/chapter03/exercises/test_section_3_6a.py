"""3.6a の採点が、正しい解を通し、もっともらしい誤りを理由つきで退けるか。"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from chapter03.exercises import check_adam, check_smoothing
from chapter03.optim import label_smoothing_loss
from tests.grading import accepts, explains, waits


def smoothing(logits, target, epsilon, pad):
    """モジュールの損失から床 H(q') を引いたもの。"""
    loss = label_smoothing_loss(torch.tensor(logits), torch.tensor(target), epsilon, pad)
    others = logits.shape[1] - 1
    q = np.array([1 - epsilon + epsilon / (others + 1)] + [epsilon / (others + 1)] * others)
    return float(loss) + float(np.sum(q * np.log(np.maximum(q, 1e-300))))


def without_floor(logits, target, epsilon, pad):
    return float(label_smoothing_loss(torch.tensor(logits), torch.tensor(target), epsilon, pad))


def over_the_wrong_words(logits, target, epsilon, pad):
    vocabulary = logits.shape[1]
    return smoothing(logits, target, epsilon * vocabulary / (vocabulary - 1), pad)


def divided_by_all(logits, target, epsilon, pad):
    return smoothing(logits, target, epsilon, pad) * np.mean(target != pad)


def with_padding(logits, target, epsilon, pad):
    return smoothing(logits, target, epsilon, -1)


def careless(logits, target, epsilon, pad, log=np.log):
    keep = target != pad
    p = np.exp(logits[keep]) / np.exp(logits[keep]).sum(-1, keepdims=True)
    q = np.full_like(p, epsilon / p.shape[1])
    q[np.arange(len(q)), target[keep]] += 1 - epsilon
    return float((q * (log(q) - np.log(p))).sum(-1).mean())


def overflowing(logits, target, epsilon, pad):
    return careless(logits, target, epsilon, pad, lambda q: np.log(np.maximum(q, 1e-300)))


def adam(gradients, rates, beta1, beta2, eps):
    """torch.optim.Adam に、用意した勾配を一歩ずつ渡す。"""
    weights = torch.zeros(gradients.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([weights], betas=(beta1, beta2), eps=eps)
    for gradient, rate in zip(gradients, rates, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        weights.grad = torch.tensor(gradient)
        optimizer.step()
    return weights.detach().numpy()


def plain_adam(gradients, rates, beta1, beta2, eps, *, correct=True, inside=False):
    weights = m = v = np.zeros(gradients.shape[1])
    for t in range(len(gradients)):
        m = beta1 * m + (1 - beta1) * gradients[t]
        v = beta2 * v + (1 - beta2) * gradients[t] ** 2
        c, d = (1 - beta1 ** (t + 1), 1 - beta2 ** (t + 1)) if correct else (1, 1)
        root = np.sqrt(v / d + eps) if inside else np.sqrt(v / d) + eps
        weights = weights - rates[t] * (m / c) / root
    return weights


def uphill(gradients, *settings):
    return -plain_adam(gradients, *settings)


def uncorrected(*settings):
    return plain_adam(*settings, correct=False)


def eps_inside(*settings):
    return plain_adam(*settings, inside=True)


def constant_rate(gradients, rates, *settings):
    return plain_adam(gradients, np.full_like(rates, rates[-1]), *settings)


def without_eps(gradients, rates, beta1, beta2, eps):
    return plain_adam(gradients, rates, beta1, beta2, 0.0)


def clipped(gradients, *settings):
    return plain_adam(np.clip(gradients, -50, 50) + 1e-4, *settings)


@pytest.mark.parametrize(
    ("check", "solution"),
    [(check_smoothing, smoothing), (check_adam, adam), (check_adam, plain_adam)],
)
def test_solutions_pass(check, solution, capsys):
    accepts(check, solution, capsys)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    ("check", "wrong", "message"),
    [
        (check_smoothing, without_floor, "p = q' なら 0"),
        (check_smoothing, over_the_wrong_words, "正しい語も含む V 語"),
        (check_smoothing, divided_by_all, "個数からも除きます"),
        (check_smoothing, with_padding, "個数からも除きます"),
        (check_smoothing, careless, "0 log 0"),
        (check_smoothing, overflowing, "最大値を引きます"),
        (check_adam, uphill, "逆向き"),
        (check_adam, uncorrected, "補正"),
        (check_adam, eps_inside, "平方根の外"),
        (check_adam, constant_rate, "rates[t]"),
        (check_adam, without_eps, "大きな eps"),
        (check_adam, clipped, "一歩目"),
    ],
)
def test_wrong_answers_are_explained(check, wrong, message, capsys):
    explains(check, wrong, message, capsys)


@pytest.mark.parametrize("check", [check_smoothing, check_adam])
def test_stub_is_not_a_failure(check, capsys):
    waits(check, capsys)


def test_the_floor_is_what_torch_leaves_at_the_best_prediction():
    """床を引いた損失は、torch の損失の最小値からの差に等しい。"""
    logits = torch.zeros(1, 5, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=100, tolerance_grad=1e-12)

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(logits, torch.tensor([1]), label_smoothing=0.1)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert abs(smoothing(logits.detach().numpy(), np.array([1]), 0.1, 0)) < 1e-6
    assert abs(float(closure().detach()) - 0.389673) < 1e-6
