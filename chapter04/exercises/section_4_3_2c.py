"""4.3.2 節(DPO)の演習の採点。"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from shared.learning import Case, grade

Array = NDArray[np.float64]
Indices = NDArray[np.int64]


def check_dpo_loss(my_loss: Callable[[Array, Array, Array, Array, float], float]) -> None:
    """方策と元の方策の、好まれた答えとそうでない答えの対数確率 (N,) から、DPO の損失を採点する。"""
    start = "方策が元の方策と同じなら、どの組でも log 2 です"
    ratio = "元の方策との比の対数を使います。log π(y_w) - log π_ref(y_w) を β 倍したものが r̂_w です"
    sign = "-log σ(r̂_w - r̂_l) です。好まれたほうの比が上がると、損失は下がります"
    mean = "組について平均します"
    huge = "差がとても大きい組では exp があふれます。np.logaddexp(0, -差) を使います"
    four = np.random.default_rng(0).normal(-5, 2, size=(4, 5))
    far = np.array([[-900.0], [-10.0], [-10.0], [-10.0]])

    def case(x: Array, beta: float, edge: str, hint: str) -> Case:
        return Case((*x, beta), _dpo_loss(x[0], x[1], x[2], x[3], beta), edge, hint, 1e-9)

    same = np.stack([four[0], four[1], four[0], four[1]])
    one = np.array([[-2.0], [-4.0], [-3.0], [-3.0]])
    cases = [
        case(same, 0.1, "学習前", start),
        case(one, 0.5, "一組だけ", f"{sign}。{ratio}"),
        case(four, 1.0, "五組", f"{mean}。{ratio}"),
        case(four, 0.1, "β = 0.1", ratio),
        case(far, 1.0, "大きく誤った組", huge),
    ]
    grade("4.3.2c 演習 3", my_loss, cases)


def _dpo_loss(
    policy_chosen: Array,
    policy_rejected: Array,
    ref_chosen: Array,
    ref_rejected: Array,
    beta: float,
) -> float:
    """-log σ(r̂_w - r̂_l) の平均 (Rafailov+ 2023, 式 (7))。"""
    margin = beta * ((policy_chosen - ref_chosen) - (policy_rejected - ref_rejected))
    return float(np.logaddexp(0, -margin).mean())


def check_dpo_gradient(my_gradient: Callable[[Array, Array, Indices, float], Array]) -> None:
    """表の方策 π = softmax(logits) の、DPO の損失の logits (Y,) での勾配を採点する。

    `log_ref` (Y,) は元の方策の対数確率、`pairs` (N, 2) は (好まれた答え, そうでない答え)の番号。
    """
    cancels = "log π(w) - log π(l) = logits[w] - logits[l] で、softmax の分母は消えます"
    weight = (
        "一組の勾配は、w に -β σ(r̂_l - r̂_w)、l にその逆の符号です。順を誤った組ほど大きくなります"
    )
    average = "組について平均します(足すだけではありません)"
    repeated = "同じ答えが何組にも出ます。足し合わせるには np.add.at を使います"
    untouched = "どの組にも出ない答えの勾配は 0 です"
    log_ref = np.log([0.4, 0.3, 0.2, 0.1])
    logits = np.array([0.5, -1.0, 0.0, 2.0])

    def case(x: Array, pairs: list[list[int]], beta: float, edge: str, hint: str) -> Case:
        y = np.array(pairs)
        return Case((x, log_ref, y, beta), _dpo_gradient(x, log_ref, y, beta), edge, hint, 1e-9)

    cases = [
        case(log_ref, [[0, 1]], 0.5, "学習前の一組", f"{weight}。{untouched}"),
        case(logits, [[1, 3]], 0.5, "順を誤った一組", f"{weight}。{cancels}"),
        case(logits, [[0, 1], [2, 3], [1, 2]], 1.0, "三組", average),
        case(logits, [[0, 1], [0, 1], [0, 3]], 1.0, "同じ答えの続く組", repeated),
        case(logits + 100, [[3, 2], [1, 0]], 0.1, "logits に 100 を足した例", cancels),
    ]
    grade("4.3.2c 演習 4", my_gradient, cases)


def _dpo_gradient(logits: Array, log_ref: Array, pairs: Indices, beta: float) -> Array:
    """-β σ(r̂_l - r̂_w) (e_w - e_l) の平均。"""
    chosen, rejected = pairs[:, 0], pairs[:, 1]
    margin = beta * ((logits - log_ref)[chosen] - (logits - log_ref)[rejected])
    weight = beta / (1 + np.exp(margin)) / len(pairs)
    gradient = np.zeros_like(logits)
    np.add.at(gradient, chosen, -weight)
    np.add.at(gradient, rejected, weight)
    return gradient
