"""3.6 節(学習)の主張の測定。シードは、はじめの重み、検証に回す数、データの順を決める。

表 3 と同じように、基準のモデルから一か所だけを変えて比べる。基準の学習は `STEPS` まで行い、条件を
変えた学習は `SHORT` で止めて、基準の `SHORT` ステップ目と比べる(学習率は総ステップ数によらない)。
ドロップアウトとラベル平滑化は、論文と同じく、同じ文を何度も見る学習(少ないデータ)で比べる。
"""

import math
from functools import cache

from chapter03.number_words import (
    FEW,
    HIGH_PEAK,
    PEAK,
    PER_LENGTH,
    SHORT,
    STEPS,
    high_noam,
    train_variant,
)


def number_words(seed: int) -> float:
    """検証用の数の完全一致の割合(`STEPS` ステップ)。"""
    return variant(seed, step=STEPS)["exact_match"]


def without_positions(seed: int) -> float:
    """位置埋め込みのないモデルの、完全一致の割合。"""
    return variant(seed, positions="none")["exact_match"]


def constant_rate_ratio(seed: int) -> float:
    """完全一致の割合の比、Noam の頂点と同じ学習率で一定 ÷ Noam。"""
    return variant(seed, rate=PEAK)["exact_match"] / variant(seed)["exact_match"]


def high_rate_ratio(seed: int) -> float:
    """学習率を 1.5 倍にしたときの、完全一致の割合の比、頂点と同じ学習率で一定 ÷ Noam。"""
    constant, noam = (
        train_variant(seed, rate=rate, steps=300, evaluate_every=300).history[-1]["exact_match"]
        for rate in (HIGH_PEAK, high_noam)
    )
    return constant / noam


def smoothing_perplexity_ratio(seed: int) -> float:
    """少ないデータでの、1 字あたりのパープレキシティの比、ε = 0.1 ÷ ε = 0。"""
    return math.exp(few(seed)["nll"] - few(seed, epsilon=0.0)["nll"])


def smoothing_gain(seed: int) -> float:
    """少ないデータでの、完全一致の割合の差、ε = 0.1 - ε = 0。"""
    return few(seed)["exact_match"] - few(seed, epsilon=0.0)["exact_match"]


def dropout_gain(seed: int) -> float:
    """少ないデータでの、完全一致の割合の差、P_drop = 0.1 - P_drop = 0。"""
    return few(seed)["exact_match"] - few(seed, dropout=0.0)["exact_match"]


def dropout_gain_after_epochs(seed: int) -> float:
    """少ないデータをおよそ 22 周したときの、完全一致の割合の差、P_drop = 0.1 - P_drop = 0。"""
    with_dropout, without = (
        train_variant(seed, per_length=FEW, steps=STEPS, dropout=rate).history[-1]["exact_match"]
        for rate in (0.1, 0.0)
    )
    return with_dropout - without


def one_head_loss(seed: int) -> float:
    """完全一致の割合の差、1 ヘッド - 4 ヘッド。"""
    return variant(seed, n_heads=1)["exact_match"] - variant(seed)["exact_match"]


def shallow_loss(seed: int) -> float:
    """完全一致の割合の差、1 層ずつ - 2 層ずつ。"""
    return variant(seed, n_layers=1)["exact_match"] - variant(seed)["exact_match"]


def variant(seed: int, step: int = SHORT, **changes: float | str) -> dict[str, float]:
    """一か所を変えて学習したときの、`step` ステップ目の成績。同じ学習は一度しか行わない。"""
    return _scores(seed, PER_LENGTH, **changes)[step]


def few(seed: int, **changes: float | str) -> dict[str, float]:
    """桁数ごとに `FEW` 個だけの数で学習したときの成績。"""
    return _scores(seed, FEW, **changes)[SHORT]


@cache
def _scores(seed: int, per_length: int, **changes: float | str) -> dict[int, dict[str, float]]:
    """{ステップ: 成績}。基準の設定だけは `STEPS` まで学習する。"""
    steps = STEPS if per_length == PER_LENGTH and not changes else SHORT
    result = train_variant(seed, per_length=per_length, steps=steps, **changes)  # pyright: ignore
    return {record["step"]: record for record in result.history if "nll" in record}
