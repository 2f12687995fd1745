"""4.1.2 節(GPT-2)の演習の採点。"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from shared.learning import Case, grade

Array = NDArray[np.float64]


def check_nucleus(my_nucleus: Callable[[Array, float], Array]) -> None:
    """確率 (V,) と p から、top-p で残したものだけの、和が 1 の確率 (V,) を作る関数を採点する。"""
    order = "確率の高い順に足します。結果は、もとの並びに戻します"
    reach = "和がはじめて p 以上になるところまで(そのトークンも含めて)残します"
    exact = "和がちょうど p になったら、そこで終わりです"
    one = "いちばん高いトークンだけで p に届いても、それは必ず残します"
    whole = "p = 1 なら、確率が 0 より大きいものは、どれも残ります"
    again = "残した確率の和で割り、和を 1 に戻します"

    def case(probabilities: list[float], p: float, edge: str, hint: str) -> Case:
        given = np.array(probabilities)
        return Case((given, p), _nucleus(given, p), edge, hint, 1e-9)

    cases = [
        case([0.5, 0.25, 0.125, 0.125], 0.6, "高い順に並んだ", f"{reach}。{again}"),
        case([0.125, 0.5, 0.0625, 0.25, 0.0625], 0.8, "並んでいない", order),
        case([0.25, 0.5, 0.125, 0.125], 0.75, "和がちょうど p になる", exact),
        case([0.75, 0.125, 0.125], 0.3, "一つで足りる", one),
        case([0.125, 0.5, 0.375], 1.0, "p = 1", whole),
        case([0.0625, 0.0625, 0.125, 0.25, 0.5], 0.9, "低い順に並んだ", f"{order}。{reach}"),
    ]
    grade("4.1.2 演習 3", my_nucleus, cases)


def _nucleus(probabilities: Array, p: float) -> Array:
    order = np.argsort(-probabilities, kind="stable")
    reached = np.cumsum(probabilities[order])
    size = int(np.argmax(reached >= p)) + 1
    kept = np.zeros_like(probabilities)
    kept[order[:size]] = probabilities[order[:size]]
    return kept / kept.sum()


def check_generation_flops(my_flops: Callable[[int, int, int, int, bool], int]) -> None:
    """書き出しと作る数、d、層の数、キャッシュの有無から、層の FLOPs を求める関数を採点する。"""
    each = "一層・一つの位置ごとに、写像と FFN が 24 d^2、注意が 4 × 見る位置の数 × d です"
    past = "i 番目の位置は、自分を含めて i 個の位置を見ます"
    last = "最後に選んだトークンは、もう読みません(計算するのは書き出し + 作る数 - 1 個まで)"
    again = "キャッシュがなければ、1 個選ぶたびに、それまでの位置をすべて計算し直します"
    once = "キャッシュがあれば、どの位置も一度だけ計算します"
    prompt = "書き出しの位置も計算します。キャッシュがあっても、初めの一度は要ります"
    deep = "どの層でも同じだけ計算します"

    def case(edge: str, hint: str, *args: int) -> Case:
        return Case(args, _flops(*args), edge, hint)

    cases = [
        case("書き出しも作る数も 1 つ", f"{each}。{last}", 1, 1, 2, 1, True),
        case("1 つだけ作る", f"{prompt}。{past}", 3, 1, 2, 1, True),
        case("キャッシュあり", f"{once}。{last}。{past}", 2, 3, 4, 1, True),
        case("キャッシュなし", f"{again}。{last}", 2, 3, 4, 1, False),
        case("12 層", deep, 5, 4, 8, 12, True),
        case("GPT-2 の大きさ", f"{each}。{again}", 16, 112, 768, 12, False),
    ]
    grade("4.1.2 演習 4", my_flops, cases)


def _flops(prompt: int, new: int, d_model: int, n_layers: int, use_cache: int) -> int:
    def read(n: int) -> int:
        """位置 1 から n までを一度に計算する。"""
        return n_layers * (24 * d_model**2 * n + 4 * d_model * n * (n + 1) // 2)

    last = prompt + new - 1
    return read(last) if use_cache else sum(read(n) for n in range(prompt, last + 1))
