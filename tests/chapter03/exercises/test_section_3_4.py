"""3.4 節の採点が、正しい解を通し、もっともらしい誤りを理由つきで退けるか。"""

import numpy as np
import pytest

from chapter03.exercises import check_layer_norm, check_memory
from tests.grading import accepts, explains, waits


def layer_norm(x, gain, bias, eps):
    mean = x.mean(axis=-1, keepdims=True)
    return gain * (x - mean) / np.sqrt(x.var(axis=-1, keepdims=True) + eps) + bias


def unbiased(x, gain, bias, eps):
    mean = x.mean(axis=-1, keepdims=True)
    return gain * (x - mean) / np.sqrt(x.var(axis=-1, ddof=1, keepdims=True) + eps) + bias


def whole_array(x, gain, bias, eps):
    return gain * (x - x.mean()) / np.sqrt(x.var() + eps) + bias


def eps_outside(x, gain, bias, eps):
    mean = x.mean(axis=-1, keepdims=True)
    return gain * (x - mean) / (x.std(axis=-1, keepdims=True) + eps) + bias


def without_gain(x, gain, bias, eps):
    return layer_norm(x, 1.0, 0.0, eps)


def bias_before_gain(x, gain, bias, eps):
    return gain * (layer_norm(x, 1.0, 0.0, eps) + bias)


def rms_norm(x, gain, bias, eps):
    return gain * x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps) + bias


def memory(embedding, facts):
    a, b, c = np.array(facts).T
    return embedding[a] + embedding[b], -np.ones(len(facts)), embedding[c].T


def higher_threshold(embedding, facts):
    w1, b1, w2 = memory(embedding, facts)
    return w1, 1.5 * b1, 2 * w2


def no_threshold(embedding, facts):
    w1, b1, w2 = memory(embedding, facts)
    return w1, 0 * b1, w2 / 2


def too_strong(embedding, facts):
    w1, b1, w2 = memory(embedding, facts)
    return w1, b1 / 2, w2


def untransposed(embedding, facts):
    w1, b1, w2 = memory(embedding, facts)
    return w1, b1, w2.T


def one_hot_only(embedding, facts):
    return memory(np.eye(embedding.shape[1]), facts)


@pytest.mark.parametrize(
    ("check", "solution"),
    [
        (check_layer_norm, layer_norm),
        (check_memory, memory),
        (check_memory, higher_threshold),
    ],
)
def test_solutions_pass(check, solution, capsys):
    accepts(check, solution, capsys)


@pytest.mark.parametrize(
    ("check", "wrong", "message"),
    [
        (check_layer_norm, unbiased, "d - 1"),
        (check_layer_norm, whole_array, "語をまたいで"),
        (check_layer_norm, eps_outside, "平方根の中"),
        (check_layer_norm, without_gain, "gain"),
        (check_layer_norm, bias_before_gain, "gain"),
        (check_layer_norm, rms_norm, "一語"),
        (check_memory, no_threshold, "片方だけ"),
        (check_memory, too_strong, "倍率"),
        (check_memory, untransposed, "W2 の形"),
        (check_memory, one_hot_only, "embedding の行"),
    ],
)
def test_wrong_answers_are_explained(check, wrong, message, capsys):
    explains(check, wrong, message, capsys)


@pytest.mark.parametrize("check", [check_layer_norm, check_memory])
def test_stub_is_not_a_failure(check, capsys):
    waits(check, capsys)
