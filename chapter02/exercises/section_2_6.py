"""2.6 節(バイト単位の BPE)の演習の採点。"""

from collections.abc import Callable

from shared.learning import Case, grade

CAT = "猫".encode()  # E7 8C AB
SMILE = "😀".encode()  # F0 9F 98 80


def check_truncate(my_truncate: Callable[[list[bytes], int], int]) -> None:
    """文字の途中で切れないように、残せる先頭のトークンの数を求める関数を採点する。"""
    middle = "つないだバイト列が UTF-8 として読めなければ、もう一つ手前で切ります"
    together = "トークンを一つずつ調べるのではなく、先頭からつないだ全体を調べます"
    split = [b"I ", CAT[:1], CAT[1:2], CAT[2:], b"s"]
    straddle = [b"a" + SMILE[:2], SMILE[2:] + b"b", CAT]
    grade(
        "2.6 演習 3",
        my_truncate,
        [
            Case(([b"low", b"er", b"est"], 2), 2),
            Case((split, 3), 1, "文字の途中で切れる", middle),
            Case((split, 4), 4, "文字が完成したところで切る", together),
            Case((straddle, 1), 0, "先頭のトークンが文字の途中で終わる", middle),
            Case((straddle, 2), 2, "文字の後半から始まるトークンで終わる", together),
            Case((split, 9), 5, "limit がトークンの数より大きい"),
            Case((split, 0), 0, "limit が 0"),
            Case(([], 3), 0, "空の列"),
        ],
    )


def check_stream(my_stream: Callable[[list[bytes]], list[str]]) -> None:
    """届いたバイトをためながら、完成した文字だけを順に返す関数を採点する。"""
    wait = "文字が途中までのバイトは、続きが届くまで手元に残します"
    early = "完成した文字はためこまず、その場で返します"
    grade(
        "2.6 演習 4",
        my_stream,
        [
            Case(([b"low", b"er"],), ["low", "er"]),
            Case(([CAT[:1], CAT[1:2], CAT[2:]],), ["", "", "猫"], "1 バイトずつ届く文字", wait),
            Case(
                ([b"a" + CAT[:2], CAT[2:] + SMILE[:3], SMILE[3:] + b"z"],),
                ["a", "猫", "😀z"],
                "文字をまたぐトークン",
                early,
            ),
            Case(([CAT + CAT[:1], CAT[1:]],), ["猫", "猫"], "完成した文字と途中の文字", early),
            Case((["é".encode(), "𠮟".encode()],), ["é", "𠮟"], "2 バイトと 4 バイトの文字"),
            Case(([b"", b"a", b""],), ["", "a", ""], "空のトークン"),
            Case(([],), [], "空の列"),
        ],
    )
