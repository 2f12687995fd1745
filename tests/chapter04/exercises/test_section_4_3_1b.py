"""4.3.1b の採点が、正しい解を通し、もっともらしい誤りを理由つきで退けるか。"""

import numpy as np
import pytest
import torch

from chapter04.exercises import check_dual_form, check_layers
from chapter04.in_context import gradient_descent_layer, regression_tasks
from tests.grading import accepts, explains, waits


def dual(w0, xs, ys, lr, x):
    """例を一つずつ読み、誤差に似ている度合いを掛けて足す。"""
    out = w0 @ x
    for x_i, y_i in zip(xs, ys, strict=True):
        out = out - lr * (w0 @ x_i - y_i) * (x_i @ x)
    return out


def moved(w0, xs, ys, lr, x):
    """重みを作って動かす。"""
    return (w0 - lr * (xs @ w0.T - ys).T @ xs) @ x


def uphill(w0, xs, ys, lr, x):
    return dual(w0, xs, ys, -lr, x)


def without_w0(w0, xs, ys, lr, x):
    return dual(w0, xs, ys, lr, x) - w0 @ x


def values_are_answers(w0, xs, ys, lr, x):
    return w0 @ x + lr * (xs @ x) @ ys


def averaged(w0, xs, ys, lr, x):
    return dual(w0, xs, ys, lr / len(xs), x)


def softmaxed(w0, xs, ys, lr, x):
    weights = np.exp(xs @ x) / np.exp(xs @ x).sum()
    return w0 @ x - lr * weights @ (xs @ w0.T - ys)


def at_least_a_little(w0, xs, ys, lr, x):
    return dual(w0, xs, ys, max(lr, 1e-3), x)


def layers_of_residuals(xs, ys, x, rate, layers):
    """y を残差に替えながら、問いの予測を足していく。"""
    scores, residual, prediction = xs @ xs.T, ys.copy(), 0.0
    for _ in range(layers):
        prediction += rate * float(residual @ (xs @ x)) / len(xs)
        residual = residual - rate * scores @ residual / len(xs)
    return prediction


def never_updates_the_examples(xs, ys, x, rate, layers):
    return rate * layers * float(ys @ (xs @ x)) / len(xs)


def one_by_one(xs, ys, x, rate, layers):
    """更新した y を、その場で次の例に使ってしまう。"""
    residual, prediction = ys.copy(), 0.0
    for _ in range(layers):
        prediction += rate * float(residual @ (xs @ x)) / len(xs)
        for i in range(len(xs)):
            residual[i] -= rate * float((xs @ xs[i]) @ residual) / len(xs)
    return prediction


def summed(xs, ys, x, rate, layers):
    return layers_of_residuals(xs, ys, x, rate * len(xs), layers)


def negative(xs, ys, x, rate, layers):
    return -layers_of_residuals(xs, ys, x, rate, layers)


def grows(xs, ys, x, rate, layers):
    """残差の符号を取り違える。"""
    scores, residual, prediction = xs @ xs.T, ys.copy(), 0.0
    for _ in range(layers):
        prediction += rate * float(residual @ (xs @ x)) / len(xs)
        residual = residual + rate * scores @ residual / len(xs)
    return prediction


def at_least_one_layer(xs, ys, x, rate, layers):
    return layers_of_residuals(xs, ys, x, rate, max(layers, 1))


@pytest.mark.parametrize(
    ("check", "solution"),
    [(check_dual_form, dual), (check_dual_form, moved), (check_layers, layers_of_residuals)],
)
def test_solutions_pass(check, solution, capsys):
    accepts(check, solution, capsys)


@pytest.mark.parametrize(
    ("check", "wrong", "message"),
    [
        (check_dual_form, uphill, "-η × 誤差"),
        (check_dual_form, without_w0, "W_0 x に、線形注意"),
        (check_dual_form, values_are_answers, "答え y_i そのものではありません"),
        (check_dual_form, averaged, "バリューは"),
        (check_dual_form, softmaxed, "線形注意"),
        (check_dual_form, at_least_a_little, "η = 0 なら"),
        (check_layers, never_updates_the_examples, "例の y_i も残差"),
        (check_layers, one_by_one, "すべて同時に"),
        (check_layers, summed, "例の数 N で割ります"),
        (check_layers, negative, "足します"),
        (check_layers, grows, "例の y_i も残差"),
        (check_layers, at_least_one_layer, "予測 0.0"),
    ],
)
def test_wrong_answers_are_explained(check, wrong, message, capsys):
    explains(check, wrong, message, capsys)


@pytest.mark.parametrize("check", [check_dual_form, check_layers])
def test_stub_is_not_a_failure(check, capsys):
    waits(check, capsys)


def test_the_exercise_agrees_with_the_constructed_layer():
    """演習の予測は、組み立てた線形自己注意の層を重ねたものに等しい。"""
    tasks = regression_tasks(torch.Generator().manual_seed(0), 4, dimension=3, examples=6)
    predictions = gradient_descent_layer(0.3, 6, dimension=3).predict(tasks, 5).tolist()
    for b, expected in enumerate(predictions):
        xs, ys, x = (t[b].double().numpy() for t in (tasks.xs, tasks.ys, tasks.x))
        assert layers_of_residuals(xs, ys, x, 0.3, 5) == pytest.approx(expected, abs=1e-4)
