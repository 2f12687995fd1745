"""4.3.1 節(文脈内学習)の主張の測定。

誘導ヘッドでは、シードが、はじめの重み、学習と試験の列を決める。線形自己注意では、はじめの重みと学習の
課題を決め、どのシードも同じ 20,000 個の課題で試す。
"""

from functools import cache
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from chapter04.in_context import (
    DIMENSION,
    EXAMPLES,
    LinearSelfAttention,
    Tasks,
    best_rate,
    gradient_descent,
    regression_tasks,
    squared_error,
    train_linear_attention,
)
from chapter04.induction import (
    InductionModel,
    ablated,
    accuracy,
    held_out_rows,
    predictable,
    prefix_matching,
    train_induction,
)

INDUCTION_HEAD = 0.5
"""誘導ヘッドとみなす、続きの先頭を見る度合いの下限(見るべき所に、重みの半分以上を置く)。"""


def two_layers(seed: int) -> float:
    """注意だけの 2 層のモデルの正解率。"""
    return accuracy(_induction(2, seed), seed)


def one_layer(seed: int) -> float:
    """注意だけの 1 層のモデルの正解率。"""
    return accuracy(_induction(1, seed), seed)


def smeared_keys(seed: int) -> float:
    """キーに一つ前のキーを混ぜた、注意だけの 1 層のモデルの正解率。"""
    return accuracy(_induction(1, seed, smeared=True), seed)


def ablated_share(seed: int) -> float:
    """文脈内学習の得点の比、誘導ヘッドを切り落とした後 ÷ 前(2 層のモデル)。"""
    model = _induction(2, seed)
    with ablated(model, induction_heads(model, seed)):
        left = in_context_score(model, seed)
    return left / in_context_score(model, seed)


def induction_heads(model: InductionModel, seed: int) -> list[tuple[int, int]]:
    """続きの先頭を見る度合いが `INDUCTION_HEAD` 以上の (層, ヘッド)。"""
    found = (prefix_matching(model, *held_out_rows(seed)) >= INDUCTION_HEAD).nonzero()
    return [(layer, head) for layer, head in found.tolist()]


@torch.no_grad()
def in_context_score(model: InductionModel, seed: int) -> float:
    """文脈内学習の得点 [nat]: 1 周目の損失の平均から、続きが決まる位置の損失の平均を引いたもの。

    論文の「50 番目と 500 番目のトークンの損失の差」にあたる。
    """
    ids, periods = held_out_rows(seed)
    losses = F.cross_entropy(model(ids)[:, :-1].mT, ids[:, 1:], reduction="none")
    known = predictable(ids, periods)
    return float(losses[~known].mean() - losses[known].mean())


def linear_loss_ratio(seed: int) -> float:
    """問いの二乗誤差の比、学習した線形自己注意 ÷ 最良の学習率での勾配降下の一歩。"""
    learned, one_step = _predictions(seed)
    return squared_error(learned, _tasks()) / squared_error(one_step, _tasks())


def linear_correlation(seed: int) -> float:
    """問いへの予測の相関係数、学習した線形自己注意と勾配降下の一歩。"""
    return float(torch.corrcoef(torch.stack(_predictions(seed)))[0, 1])


@cache
def _induction(n_layers: int, seed: int, *, smeared: bool = False) -> InductionModel:
    model = train_induction(n_layers, seed, smeared=smeared, evaluate_every=300).model
    return cast(InductionModel, model.eval())


@cache
def _tasks() -> Tasks:
    return regression_tasks(torch.Generator().manual_seed(20_000), 20_000)


@cache
def _predictions(seed: int) -> tuple[Tensor, Tensor]:
    """学習した層の予測と、勾配降下の一歩の予測。"""
    layer = cast(LinearSelfAttention, train_linear_attention(seed).model)
    one_step = gradient_descent(_tasks(), best_rate(DIMENSION, EXAMPLES))
    with torch.no_grad():
        return layer.predict(_tasks()), one_step
