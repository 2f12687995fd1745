"""2.4 節(ユニグラム言語モデル)の演習の採点。"""

from collections.abc import Callable, Mapping

from chapter02.unigram import Unigram
from shared.learning import Case, grade

CAT = {"猫": 0.2, "が": 0.1, "好": 0.05, "き": 0.05, "猫が": 0.1, "好き": 0.15, "が好き": 0.3}
ABA = {"a": 0.3, "b": 0.2, "ab": 0.1, "ba": 0.4}


def check_viterbi(my_viterbi: Callable[[str, Mapping[str, float]], list[str]]) -> None:
    """最も確率の高い切り方を求める関数を採点する。"""
    greedy = "左から最長一致で取らず、確率の積が最大の切り方を選びます"
    fewest = "断片の数が少なくても、確率の積が大きいとは限りません"
    underflow = "確率を掛け続けると 0 になります。対数を足しましょう"
    unreadable = "語彙で読めない文字列には、空の list を返します"
    grade(
        "2.4 演習 3",
        my_viterbi,
        [
            Case(("low", {"l": 0.1, "o": 0.1, "w": 0.1, "low": 0.7}), ["low"]),
            Case(("猫が好き", CAT), ["猫", "が好き"], "最長一致が負ける例", greedy),
            Case(("ab", {"a": 0.5, "b": 0.4, "ab": 0.1}), ["a", "b"], "細かいほうが勝つ例", fewest),
            Case(("aba" * 400, ABA), ["a", "ba"] * 400, "長い文字列", underflow),
            Case(("犬", CAT), [], "読めない文字列", unreadable),
            Case(("猫犬", CAT), [], "途中で読めなくなる文字列", unreadable),
            Case(("", CAT), [], "空の文字列"),
        ],
    )


def check_expected_counts(
    my_expected_counts: Callable[[str, Mapping[str, float]], dict[str, float]],
) -> None:
    """全部の切り方にわたる、断片ごとの期待回数を求める関数を採点する。"""
    every = "最良の切り方だけでなく、全部の切り方を確率の分だけ数えます"
    divide = "辺を通る確率の和を、文の確率 P(X) で割ります"
    twice = "同じ断片が 2 か所にあれば、両方を足します"
    absent = "文に現れない断片は入れません"
    cases = [
        ("ab", {"a": 0.5, "b": 0.2}, "切り方が一つの例", divide),
        ("猫が", {"猫": 0.2, "が": 0.3, "猫が": 0.1}, "切り方が二つある例", every),
        ("aba", ABA, "断片が 2 回現れる例", twice),
        ("猫が好き", CAT, "", every),
        ("aaaaaaaa", {"a": 0.4, "aa": 0.3, "aaa": 0.3}, "同じ文字が並ぶ例", twice),
        ("が", CAT, "1 文字の文字列", absent),
        ("", CAT, "空の文字列", absent),
    ]
    grade(
        "2.4 演習 4",
        my_expected_counts,
        [
            Case(
                (text, probabilities),
                Unigram.from_probabilities(probabilities).expected_counts(text),
                edge,
                hint,
                atol=1e-9,
            )
            for text, probabilities, edge, hint in cases
        ],
    )
