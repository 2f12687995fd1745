"""1.3 節(PyTorch)の採点が、正しい解を通し、もっともらしい誤りを理由つきで退けるか。"""

import numpy as np
import pytest
import torch
from torch.nn import functional

from chapter01.exercises import check_gru_step, check_scores, check_training_loop
from tests.grading import accepts, explains, waits


def epoch(model, batches, optimizer):
    losses = []
    for x, y in batches:
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def epoch_with_zero_grad_after_step(model, batches, optimizer):
    losses = []
    for x, y in batches:
        loss = functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss)
    return losses


def epoch_without_zero_grad(model, batches, optimizer):
    losses = []
    for x, y in batches:
        loss = functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def epoch_with_softmax(model, batches, optimizer):
    return epoch(lambda x: torch.softmax(model(x), dim=1), batches, optimizer)


def epoch_with_step_first(model, batches, optimizer):
    losses = []
    for x, y in batches:
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x), y)
        optimizer.step()
        loss.backward()
        losses.append(loss.item())
    return losses


def epoch_with_one_loss(model, batches, optimizer):
    return epoch(model, batches, optimizer)[-1:]


def scores(target, predicted, n_classes):
    result = []
    for c in range(n_classes):
        hits = sum(t == p == c for t, p in zip(target, predicted, strict=True))
        said, real = predicted.count(c), target.count(c)
        p = hits / said if said else 0.0
        r = hits / real if real else 0.0
        result.append((p, r, 2 * p * r / (p + r) if p + r else 0.0))
    return result


def scores_swapped(target, predicted, n_classes):
    return scores(predicted, target, n_classes)


def scores_dividing_by_zero(target, predicted, n_classes):
    return [
        (sum(t == p == c for t, p in zip(target, predicted, strict=True)) / predicted.count(c),) * 3
        for c in range(n_classes)
    ]


def scores_of_seen_classes(target, predicted, n_classes):
    return scores(target, predicted, max(*target, *predicted) + 1)


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def gru_step(x, h, weights):
    W, U, b, v = weights
    k = len(h)
    a, s = W @ x + b, U @ h + v
    r, z = sigmoid(a[:k] + s[:k]), sigmoid(a[k : 2 * k] + s[k : 2 * k])
    n = np.tanh(a[2 * k :] + r * s[2 * k :])
    return (1 - z) * n + z * h


def gru_step_of_the_paper(x, h, weights):
    W, U, b, v = weights
    k = len(h)
    a, s = W @ x + b, U @ h + v
    r, z = sigmoid(a[:k] + s[:k]), sigmoid(a[k : 2 * k] + s[k : 2 * k])
    n = np.tanh(a[2 * k :] + U[2 * k :] @ (r * h) + v[2 * k :])
    return (1 - z) * n + z * h


def gru_step_with_z_swapped(x, h, weights):
    signs = np.repeat([1.0, -1.0, 1.0], len(h))  # σ(-a) = 1 - σ(a)
    return gru_step(x, h, tuple((weight.T * signs).T for weight in weights))


def gru_step_as_list(x, h, weights):
    return gru_step(x, h, weights)[:-1]


@pytest.mark.parametrize(
    ("check", "solution"),
    [
        (check_training_loop, epoch),
        (check_training_loop, epoch_with_zero_grad_after_step),
        (check_scores, scores),
        (check_gru_step, gru_step),
    ],
)
def test_solutions_pass(check, solution, capsys):
    accepts(check, solution, capsys)


@pytest.mark.parametrize(
    ("check", "wrong", "message"),
    [
        (check_training_loop, epoch_without_zero_grad, "zero_grad を忘れて"),
        (check_training_loop, epoch_with_softmax, "softmax をかける前"),
        (check_training_loop, epoch_with_step_first, "backward のあとに step"),
        (check_training_loop, epoch_with_one_loss, "長さ"),
        (check_scores, scores_swapped, "適合率は"),
        (check_scores, scores_dividing_by_zero, "ZeroDivisionError"),
        (check_scores, scores_of_seen_classes, "長さ"),
        (check_gru_step, gru_step_of_the_paper, "行列の積"),
        (check_gru_step, gru_step_with_z_swapped, "前の h に"),
        (check_gru_step, gru_step_as_list, "長さ"),
    ],
)
def test_wrong_answers_are_explained(check, wrong, message, capsys):
    explains(check, wrong, message, capsys)


@pytest.mark.parametrize("check", [check_training_loop, check_scores, check_gru_step])
def test_stub_is_not_a_failure(check, capsys):
    waits(check, capsys)
