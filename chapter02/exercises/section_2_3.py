"""2.3 節(BPE)の演習の採点。"""

from collections.abc import Callable

from chapter02.bpe import BPE
from shared.learning import Case, grade

Pair = tuple[str, str]


def check_merge(my_merge: Callable[[tuple[str, ...], Pair], tuple[str, ...]]) -> None:
    """記号の列の中の対を、左から重なりなくまとめる関数を採点する。"""
    overlap = "まとめた 2 記号を、次の対にもう一度使っていませんか"
    border = "文字列に直して replace すると、記号の境目が壊れます"
    grade(
        "2.3 演習 3",
        my_merge,
        [
            Case((("n", "e", "w", "e", "s", "t"), ("e", "s")), ("n", "e", "w", "es", "t")),
            Case((("a", "b", "a", "b"), ("a", "b")), ("ab", "ab")),
            Case((("a", "a", "a"), ("a", "a")), ("aa", "a"), "重なる対", overlap),
            Case((("a",) * 4, ("a", "a")), ("aa", "aa"), "重なる対", overlap),
            Case((("the", "s", "k", "y"), ("e", "s")), ("the", "s", "k", "y"), "境目", border),
            Case((("s", "k"), ("e", "s")), ("s", "k"), "対のない列"),
            Case(((), ("e", "s")), (), "空の列"),
        ],
    )


def check_segment(my_segment: Callable[[str, list[Pair]], list[str]]) -> None:
    """単語とマージの list から切り分けを求める関数を採点する。"""
    counts = {"low": 5, "lower": 2, "newest": 6, "widest": 3, "aaaa": 2, "banana": 4}
    model = BPE.train(counts, 20)
    order = "列の左から試すのではなく、順位の最も高い対を先にまとめます"
    words = ["lowest", "newer", "wide", "aaaaa", "banana"]
    grade(
        "2.3 演習 4",
        my_segment,
        [Case((word, model.merges), model.segment(word), hint=order) for word in words]
        + [
            Case(("xyz", model.merges), ["x", "y", "z", "</w>"], "知らない文字"),
            Case(("low", []), ["l", "o", "w", "</w>"], "マージなし"),
            Case(("abc", [("b", "c"), ("a", "b")]), ["a", "bc", "</w>"], "順位が左右逆の対", order),
        ],
    )
