"""4.2.2 節(GPT-4)の主張の測定。

シードは、小さな学習と大きな学習の、はじめの重みと、学習の窓の選び方を決める。試験の文はいつも同じ。
"""

from functools import cache

from chapter04 import predictable_scaling as scaling
from chapter04.predictable_scaling import Run


def prediction_error(seed: int) -> float:
    """大きな学習の損失の、|予測 ÷ 測定 - 1|。"""
    return loss_error(seed, irreducible=True)


def irreducible_gain(seed: int) -> float:
    """損失の誤差の差、c のない式 - c のある式。"""
    return loss_error(seed, irreducible=False) - loss_error(seed, irreducible=True)


def loss_error(seed: int, *, irreducible: bool) -> float:
    """`fit` の式を小さな学習に当てはめたときの、大きな学習の損失の誤差。"""
    small, large = _runs(seed)
    compute, losses = [run.compute for run in small], [run.loss for run in small]
    law = scaling.fit(compute, losses, irreducible=irreducible)
    return abs(float(law(large.compute)) / large.loss - 1)


def pass_rate_error(seed: int) -> float:
    """大きな学習の -E[log 合格率] の、|予測 ÷ 測定 - 1|。"""
    small, large = _runs(seed)
    law = scaling.fit([run.compute for run in small], [mean_log_failure(run) for run in small])
    return abs(float(law(large.compute)) / mean_log_failure(large) - 1)


def mean_log_failure(run: Run) -> float:
    """試験の文の終わりを当てる問の、-E[log 合格率]。"""
    cut = scaling.load_data().held_out
    rates, _ = scaling.solve(run.model, cut, scaling.endings(cut))
    return -float(rates.mean())


@cache
def _runs(seed: int) -> tuple[list[Run], Run]:
    """小さな学習のすべてと、大きな学習。"""
    data = scaling.load_data()
    return scaling.small_runs(data, seed), scaling.train_run(scaling.LARGE, data, seed)
