"""2.2 節(サブワードの必要性)の演習の採点。"""

import math
from collections.abc import Callable

from shared.learning import Case, grade


def check_vocabulary_for(my_vocabulary_for: Callable[[dict[str, int], float], int]) -> None:
    """延べの決まった割合を覆うのに要る、最小の語彙の大きさを求める関数を採点する。"""
    order = "出現数の多い順に足し、種類の割合ではなく、延べ(出現数の合計)の割合で数えます"
    exact = "ちょうど届いたところで止めます(以上であって、超過ではありません)"
    counts = {"a": 1, "the": 6, "cat": 2, "of": 3}  # 多い順に足すと 6、9、11、12
    grade(
        "2.2 演習 3",
        my_vocabulary_for,
        [
            Case((counts, 0.6), 2, hint=order),
            Case((counts, 0.9), 3, hint=order),
            Case((counts, 0.5), 1, "ちょうど届く割合", exact),
            Case((counts, 0.75), 2, "ちょうど届く割合", exact),
            Case((counts, 1.0), 4, "すべてを覆うとき"),
            Case((counts, 0.0), 0, "割合が 0", "何も覆わなくてよければ、語彙は 0 です"),
            Case(({"x": 5}, 0.01), 1, "1 種類だけの辞書"),
        ],
    )


def check_expected_types(my_expected_types: Callable[[list[int], int], float]) -> None:
    """無作為に n 語を抜き出したときの、種類の数の期待値を求める関数を採点する。"""
    replace = "戻さずに抜きます。(1 - c/N)^n は、1 語ごとに戻すときの式です"
    count = "現れる種類の数です。一度も現れない種類の数と、取り違えていませんか"
    every = "N 語を全部抜けば、すべての種類が必ず現れます"
    grade(
        "2.2 演習 4",
        my_expected_types,
        [
            # 種類 i が残らず避けられる確率は C(N - c_i, n) / C(N, n)
            Case(([2, 1, 1], 1), 1.0, "1 語だけ抜く", count, atol=1e-9),
            Case(([2, 1, 1], 2), (1 - 1 / 6) + 2 * (1 - 3 / 6), hint=replace, atol=1e-9),
            Case(([2, 1, 1], 4), 3.0, "全部抜く", every, atol=1e-9),
            Case(([8, 1, 1, 1, 1], 11), 4 * 11 / 12 + 1, "1 語だけ残す", replace, atol=1e-9),
            Case(([5, 3, 2], 0), 0.0, "1 語も抜かない", count, atol=1e-9),
            Case(([4], 3), 1.0, "1 種類だけ", atol=1e-9),
            Case(([30, 20, 10], 7), _expected_types([30, 20, 10], 7), hint=replace, atol=1e-9),
        ],
    )


def _expected_types(counts: list[int], n: int) -> float:
    total = sum(counts)
    return sum(1 - math.comb(total - count, n) / math.comb(total, n) for count in counts)
