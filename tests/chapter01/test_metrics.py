"""分類の成績が scikit-learn と一致するか。"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from chapter01 import metrics

LABELS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40)


@given(LABELS)
@settings(max_examples=60, deadline=None)
def test_everything_agrees_with_scikit_learn(pairs):
    """現れないクラス・一度も予測しないクラスがあっても、全クラスの値が一致する。"""
    target, predicted = map(list, zip(*pairs, strict=True))
    m = metrics.confusion_matrix(target, predicted, 5)
    options = {"labels": range(5), "zero_division": 0}
    np.testing.assert_array_equal(m, reference.confusion_matrix(target, predicted, labels=range(5)))
    assert metrics.accuracy(m) == pytest.approx(reference.accuracy_score(target, predicted))
    p, r, f, _ = reference.precision_recall_fscore_support(target, predicted, **options)
    np.testing.assert_allclose(metrics.precision(m), p)
    np.testing.assert_allclose(metrics.recall(m), r)
    np.testing.assert_allclose(metrics.f1(m), f)
    for average, ours in (("macro", metrics.macro(m)), ("micro", metrics.micro(m))):
        theirs = reference.precision_recall_fscore_support(
            target, predicted, average=average, **options
        )
        assert (ours.precision, ours.recall, ours.f1) == pytest.approx(theirs[:3])


def test_rows_are_truth_and_columns_are_predictions():
    """正解 0 を 1 と間違えた一件は、0 行 1 列に入る。"""
    assert metrics.confusion_matrix([0, 1, 1], [1, 1, 1]).tolist() == [[0, 1], [0, 2]]
    assert metrics.confusion_matrix([0], [0], 3).tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]


def test_tensors_are_accepted():
    """PyTorch のテンソルをそのまま渡せる。"""
    assert metrics.confusion_matrix(torch.tensor([0, 1]), torch.tensor([0, 0])).shape == (2, 2)


def test_micro_average_is_accuracy():
    """一件に一つのクラスを答えるとき、マイクロ平均は三つとも正解率に等しい。"""
    m = [[5, 1, 0], [2, 3, 4], [1, 1, 8]]
    micro = metrics.micro(m)
    assert micro.precision == micro.recall == micro.f1 == metrics.accuracy(m) == 16 / 25


def test_macro_f1_is_the_mean_of_f1():
    """マクロ F1 は F1 の平均で、平均どうしの調和平均ではない(Opitz & Burst 2019)。"""
    m = np.array([[1, 9], [0, 10]])
    p, r = metrics.precision(m).mean(), metrics.recall(m).mean()
    assert metrics.macro(m).f1 == pytest.approx((2 / 11 + 20 / 29) / 2)
    assert metrics.macro(m).f1 < 2 * p * r / (p + r) - 0.1


def test_precision_depends_on_prevalence():
    """再現率 90 %・誤報率 10 % なら、半々の集団で 0.9、1 % の集団で 1/12。件数から数えても同じ。"""
    assert metrics.precision_at(0.5, 0.9, 0.1) == pytest.approx(0.9)
    assert metrics.precision_at(0.01, 0.9, 0.1) == pytest.approx(9 / 108)
    assert metrics.precision([[891, 99], [1, 9]])[1] == pytest.approx(9 / 108)
    assert metrics.precision_at(0.3, 0.0, 0.0) == 0.0
    assert metrics.precision_at(0.0, 1.0, 0.0) == 0.0


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: metrics.confusion_matrix([], []), ValueError, "target は 1 件以上"),
        (lambda: metrics.confusion_matrix([0, 1], [0]), ValueError, "長さ.*2 と 1"),
        (lambda: metrics.confusion_matrix([[0]], [0]), ValueError, "target"),
        (lambda: metrics.confusion_matrix([0.5], [0]), TypeError, "target"),
        (lambda: metrics.confusion_matrix([0], [-1]), ValueError, "predicted.*-1"),
        (lambda: metrics.confusion_matrix([0, 3], [0, 1], 3), ValueError, "n_classes = 3.*3"),
        (lambda: metrics.confusion_matrix([0], [0], 0), ValueError, "n_classes"),
        (lambda: metrics.accuracy([[1, 2]]), ValueError, "正方"),
        (lambda: metrics.recall([[0, 0], [0, 0]]), ValueError, "1 件以上"),
        (lambda: metrics.f1([[1, -1], [0, 1]]), ValueError, "0 以上"),
        (lambda: metrics.macro([[0.5, 0.5], [0, 1]]), ValueError, "件数"),
        (lambda: metrics.precision_at(1.5, 0.5, 0.5), ValueError, "prevalence"),
        (lambda: metrics.precision_at(0.5, -0.1, 0.5), ValueError, "recall"),
        (lambda: metrics.precision_at(0.5, 0.5, "x"), TypeError, "false_alarm"),
    ],
)
def test_bad_input_is_explained(call, error, message):
    """誤った入力を、引数の名前を挙げて断る。"""
    with pytest.raises(error, match=message):
        call()
