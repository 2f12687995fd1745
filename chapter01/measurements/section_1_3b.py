"""1.3b(誤差逆伝播法)の主張の測定。シードは、重みの初期値か、網の大きさを決める。"""

from itertools import product
from typing import NamedTuple

import numpy as np

from chapter01.backprop import (
    SGD,
    Array,
    Dense,
    ReLU,
    Sequential,
    Sigmoid,
    parameters,
    squared_error,
)
from chapter01.backprop_checks import backward_ratio, count_flops

STARTS = 20  # 一つのシードで試す初期値の数
SWEEPS = 3000  # 論文の一例は 1,425 回。その約 2 倍まで待つ


class Symmetry(NamedTuple):
    """左右対称を見分ける学習の結果。`weights` (6, 隠れユニット) は入力から隠れユニットへの重み。"""

    solved: bool
    weights: Array
    errors: list[float]


def symmetry_data() -> tuple[Array, Array]:
    """6 ビットの入力 (64, 6) と、左右対称なら 1 の教師 (64, 1)。"""
    patterns = np.array(list(product([0.0, 1.0], repeat=6)))
    mirrored = (patterns == patterns[:, ::-1]).all(axis=1)
    return patterns, mirrored[:, None].astype(np.float64)


def learn_symmetry(
    n_hidden: int, rng: np.random.Generator, *, rate: float = 0.1, sweeps: int = SWEEPS
) -> Symmetry:
    """左右対称を見分ける網を、論文の図 1 の条件で学習する。

    64 例の勾配をためてから一度動かす。ε = `rate` = 0.1、α = 0.9、初期値は [−0.3, 0.3] の一様分布
    (Rumelhart+ 1986、図 1)。出力がすべての例で 0.5 の正しい側にあれば、解けたとする。
    """
    x, d = symmetry_data()
    hidden, output = Dense(6, n_hidden, rng), Dense(n_hidden, 1, rng)
    network = Sequential([hidden, Sigmoid(), output, Sigmoid()])
    for p in parameters(network):
        p.value[...] = rng.uniform(-0.3, 0.3, p.value.shape)
    optimizer, errors = SGD(parameters(network), rate, momentum=0.9), []
    for _ in range(sweeps):
        y, pull = network(x)
        error, pull_error = squared_error(y, d)
        optimizer.zero_grad()
        pull(pull_error())
        optimizer.step()
        errors.append(error)
    solved = bool(((network(x)[0] > 0.5) == (d > 0.5)).all())
    return Symmetry(solved, hidden.weight.value, errors)


def mirror_gap(weights: Array) -> float:
    """中央をはさんで向かい合う重みの和の大きさ ÷ 重みの大きさ(平均。符号だけ逆なら 0)。"""
    return float(np.abs(weights + weights[::-1]).mean() / np.abs(weights).mean())


def mirror_error(seed: int) -> float:
    """隠れユニット 2 個で解けた網の `mirror_gap` の中央値(無次元)。"""
    rng = np.random.default_rng(seed)
    runs = [learn_symmetry(2, rng) for _ in range(STARTS)]
    return float(np.median([mirror_gap(run.weights) for run in runs if run.solved]))


def solved_share(seed: int) -> float:
    """隠れユニット 4 個の網が、`STARTS` 通りの初期値のうち解けた割合。"""
    rng = np.random.default_rng(seed)
    return sum(learn_symmetry(4, rng).solved for _ in range(STARTS)) / STARTS


def distance_from_two(seed: int) -> float:
    """FFN(d → 4d → d)を 12 から 24 段積んだ網の、|逆向きの FLOPs ÷ 順方向の FLOPs − 2|。"""
    rng = np.random.default_rng(seed)
    depth, d = int(rng.integers(12, 25)), int(rng.integers(16, 65))
    layers = [
        layer
        for _ in range(depth)
        for layer in (Dense(d, 4 * d, rng), ReLU(), Dense(4 * d, d, rng))
    ]
    return abs(backward_ratio(count_flops(Sequential(layers), rng.normal(size=(8, d)))) - 2)
