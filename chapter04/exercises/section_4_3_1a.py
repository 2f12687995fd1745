"""4.3.1 節(誘導ヘッド)の演習の採点。"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from shared.learning import Case, grade

Array = NDArray[np.float64]


def check_induction(my_induction: Callable[[list[int]], list[int | None]]) -> None:
    """誘導ヘッドの規則 [A][B] … [A] → [B] で、位置ごとに次の記号を当てる関数を採点する。"""
    after = "いまの記号が前に出た位置の、すぐ後の記号を答えます(同じ記号そのものではありません)"
    nearest = "何度も出ているときは、いちばん近い(後ろの)ほうを使います"
    past = "その位置までに読んだ記号だけを使います(先は読みません)"
    unseen = "前に一度も出ていない記号の次は、None です"
    twice = "同じ記号が続くときは、すぐ前がその記号です。次の記号は、いまの記号になります"
    empty = "空の列には、空の list を返します"

    def case(ids: list[int], edge: str, hint: str) -> Case:
        return Case((ids,), _induction(ids), edge, hint)

    cases = [
        case([7, 8, 9], "くり返しのない列", unseen),
        case([7, 8, 9, 7, 8, 9, 7], "3 つおきの列", f"{after}。{past}"),
        case([1, 2, 3, 1, 4, 5, 1, 2], "続きの変わる列", nearest),
        case([5, 5, 6, 5], "同じ記号の続く列", twice),
        case([2, 9, 4, 2, 8, 9, 1, 8], "組み替わる列", f"{after}。{nearest}"),
        case([], "空の列", empty),
    ]
    grade("4.3.1a 演習 3", my_induction, cases)


def _induction(ids: list[int]) -> list[int | None]:
    """位置 t の予測は、ids[s] = ids[t] となる最後の s < t の、次の記号 ids[s + 1]。"""
    found: list[int | None] = []
    for t, symbol in enumerate(ids):
        earlier = [s for s in range(t) if ids[s] == symbol]
        found.append(ids[earlier[-1] + 1] if earlier else None)
    return found


def check_prefix_matching(my_score: Callable[[Array, list[int]], float]) -> None:
    """注意の重み (n, n) と記号の列から、続きの先頭を見る度合いを求める関数を採点する。"""
    after = "同じ記号の前の位置 s ではなく、そのすぐ後 s + 1 への重みを足します"
    every = "前に何度も出ているときは、そのすべてについて足します"
    some = "平均を取るのは、いまの記号が前に出ている位置だけです"
    rows = "weights[t, s] は、位置 t が位置 s を見る重みです(行がクエリー)"
    earlier = "s < t です。いまの位置そのものは、前の出現に数えません"
    none = "くり返しのない列では、平均を取る位置がないので 0.0 を返します"
    generator = np.random.default_rng(0)
    ids = [3, 1, 4, 3, 1, 4, 3, 1]
    mixed = [2, 5, 2, 7, 5, 2, 2, 7]

    def softmax(n: int) -> Array:
        scores = np.where(np.tri(n, dtype=bool), generator.normal(size=(n, n)), -np.inf)
        weights = np.exp(scores)
        return weights / weights.sum(axis=1, keepdims=True)

    def attends(n: int, back: int) -> Array:
        return np.eye(n)[np.maximum(np.arange(n) - back, 0)]

    def case(weights: Array, row: list[int], edge: str, hint: str) -> Case:
        return Case((weights, row), _prefix_matching(weights, row), edge, hint, 1e-9)

    cases = [
        case(attends(5, 2), [3, 1, 4, 3, 1], "いつも 2 つ前を見る重み", after),
        case(attends(5, 3), [3, 1, 4, 3, 1], "いつも同じ記号を見る重み", after),
        case(softmax(5), [3, 1, 4, 3, 1], "でたらめな重み", f"{some}。{rows}"),
        case(softmax(8), ids, "3 周目まである列", every),
        case(softmax(8), mixed, "周期のない列", f"{every}。{earlier}"),
        case(softmax(4), [1, 2, 3, 4], "くり返しのない列", none),
    ]
    grade("4.3.1a 演習 4", my_score, cases)


def _prefix_matching(weights: Array, ids: list[int]) -> float:
    """前に出た記号の位置 t についての、Σ_{s < t, ids[s] = ids[t]} weights[t, s + 1] の平均。"""
    matched = []
    for t, symbol in enumerate(ids):
        earlier = [s for s in range(t) if ids[s] == symbol]
        if earlier:
            matched.append(sum(float(weights[t, s + 1]) for s in earlier))
    return float(np.mean(matched)) if matched else 0.0
