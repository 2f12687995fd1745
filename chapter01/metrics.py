"""分類の成績: 混同行列、正解率、適合率、再現率、F1、マクロ平均とマイクロ平均(1.3 節)。

すべて混同行列 M (C, C) から求める。行が正解、列が予測で、M[i, j] は正解が i で予測が j だった件数。
0 で割ることになる比(一度も予測しなかったクラスの適合率など)は 0 とする。
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shared.checks import require_int, require_number

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]


def confusion_matrix(
    target: ArrayLike, predicted: ArrayLike, n_classes: int | None = None
) -> Counts:
    """正解 `target` (N,) と予測 `predicted` (N,) の混同行列 (C, C)。行が正解、列が予測。

    `n_classes` を省けば、現れた最大の番号 + 1 とする。

    Raises:
        TypeError: 番号が整数でないとき。
        ValueError: 空のとき、長さが違うとき、番号が 0 以上 C 未満でないとき。
    """
    truth, guess = _labels(target, "target"), _labels(predicted, "predicted")
    if len(truth) != len(guess):
        raise ValueError(
            f"target と predicted の長さを揃えてください: {len(truth)} と {len(guess)}"
        )
    largest = int(max(truth.max(), guess.max()))
    size = largest + 1 if n_classes is None else require_int(n_classes, "n_classes", minimum=1)
    if largest >= size:
        raise ValueError(f"クラスの番号は n_classes = {size} より小さくしてください: {largest}")
    return np.bincount(truth * size + guess, minlength=size * size).reshape(size, size)


def accuracy(matrix: ArrayLike) -> float:
    """正解率: 当たった件数(対角の和)÷ 全件数。

    Raises:
        ValueError: 混同行列でないとき。
    """
    m = _matrix(matrix)
    return float(np.trace(m) / m.sum())


def precision(matrix: ArrayLike) -> Floats:
    """クラスごとの適合率 (C,): そのクラスと予測したうち、本当にそうだった割合(列で割る)。

    Raises:
        ValueError: 混同行列でないとき。
    """
    m = _matrix(matrix)
    return _ratio(np.diag(m), m.sum(axis=0))


def recall(matrix: ArrayLike) -> Floats:
    """クラスごとの再現率 (C,): 本当にそのクラスであるうち、見つけた割合(行で割る)。

    Raises:
        ValueError: 混同行列でないとき。
    """
    m = _matrix(matrix)
    return _ratio(np.diag(m), m.sum(axis=1))


def f1(matrix: ArrayLike) -> Floats:
    """クラスごとの F1 (C,): 適合率と再現率の調和平均 2PR / (P + R) = 2TP / (2TP + FP + FN)。

    Raises:
        ValueError: 混同行列でないとき。
    """
    m = _matrix(matrix)
    return _ratio(2 * np.diag(m), m.sum(axis=0) + m.sum(axis=1))


@dataclass(frozen=True)
class Scores:
    """全クラスをまとめた成績。"""

    precision: float
    recall: float
    f1: float


def macro(matrix: ArrayLike) -> Scores:
    """マクロ平均: クラスごとの値の単純な平均。件数の少ないクラスも同じ重みで数える。

    F1 は、クラスごとの F1 の平均(Opitz & Burst 2019 の式 2)。平均した適合率と再現率の調和平均とは
    別の値になる。

    Raises:
        ValueError: 混同行列でないとき。
    """
    m = _matrix(matrix)
    return Scores(float(precision(m).mean()), float(recall(m).mean()), float(f1(m).mean()))


def micro(matrix: ArrayLike) -> Scores:
    """マイクロ平均: 全クラスの件数を足してから比を求める。

    一件に一つのクラスを答える問題では、FP の和も FN の和も外れた件数なので、どれも正解率と等しい。

    Raises:
        ValueError: 混同行列でないとき。
    """
    m = _matrix(matrix)
    hits = np.trace(m)
    false_positives, false_negatives = m.sum() - hits, m.sum() - hits
    p = float(hits / (hits + false_positives))
    r = float(hits / (hits + false_negatives))
    return Scores(p, r, float(2 * hits / (2 * hits + false_positives + false_negatives)))


def precision_at(prevalence: float, recall: float, false_alarm: float) -> float:
    """陽性の割合が `prevalence` の集団での適合率。`false_alarm` は陰性を陽性と言う割合。

    ベイズの定理から、適合率 = 再現率 × π / (再現率 × π + 誤報率 × (1 - π))。再現率と誤報率が同じ
    検出器でも、陽性が珍しい集団では適合率が下がる。陽性と言うことがなければ 0 とする。

    Raises:
        TypeError: 数でないとき。
        ValueError: 0 から 1 の範囲にないとき。
    """
    values = {"prevalence": prevalence, "recall": recall, "false_alarm": false_alarm}
    for name, value in values.items():
        if require_number(value, name, minimum=0) > 1:
            raise ValueError(f"{name} は 1 以下にしてください: {value}")
    found = recall * prevalence
    alarms = found + false_alarm * (1 - prevalence)
    return found / alarms if alarms else 0.0


def _labels(values: ArrayLike, name: str) -> Counts:
    labels = np.asarray(values)
    if labels.ndim != 1 or not len(labels):
        raise ValueError(f"{name} は 1 件以上の番号の並びにしてください: 形 {labels.shape}")
    if not np.issubdtype(labels.dtype, np.integer):
        raise TypeError(f"{name} にはクラスの番号(整数)を並べてください: {labels.dtype}")
    if labels.min() < 0:
        raise ValueError(f"{name} の番号は 0 以上にしてください: {labels.min()}")
    return labels.astype(np.int64)


def _matrix(matrix: ArrayLike) -> Counts:
    m = np.asarray(matrix)
    if m.ndim != 2 or m.shape[0] != m.shape[1]:
        raise ValueError(f"matrix は正方の混同行列にしてください: 形 {m.shape}")
    if not np.issubdtype(m.dtype, np.integer) or m.min(initial=0) < 0 or m.sum() == 0:
        raise ValueError("matrix には 0 以上の件数(整数)を入れ、合計を 1 件以上にしてください")
    return m.astype(np.int64)


def _ratio(numerator: Counts, denominator: Counts) -> Floats:
    safe = np.where(denominator > 0, denominator, 1)
    return np.where(denominator > 0, numerator / safe, 0.0)
