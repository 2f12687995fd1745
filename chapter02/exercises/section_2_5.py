"""2.5 節(SentencePiece)の演習の採点。"""

from collections.abc import Callable

from shared.learning import Case, grade


def check_detokenize(my_detokenize: Callable[[list[str]], str]) -> None:
    """断片の list を文に戻す関数を採点する。"""
    first = "消すのは文頭の ▁ 一つだけです。先につないでから消しましょう"
    grade(
        "2.5 演習 3",
        my_detokenize,
        [
            Case((["▁Hello", "▁wor", "ld", "."],), "Hello world."),
            Case((["▁私は", "猫が", "好き", "です"],), "私は猫が好きです"),
            Case((["▁", "寿", "司", "▁", "と", "▁", "茶"],), "寿司 と 茶", "▁ だけの断片", first),
            Case((["猫", "▁cat"],), "猫 cat", "▁ で始まらない", first),
            Case((["▁▁a"],), " a", "▁ が続く", first),
            Case((["▁a_b"],), "a_b", "下線を含む", "▁ (U+2581) と _ は別の文字です"),
            Case(([],), "", "空の list"),
        ],
    )


def check_normalize(my_normalize: Callable[[str], str]) -> None:
    """文を正規化する関数を採点する。"""
    grade(
        "2.5 演習 4",
        my_normalize,
        [
            Case(("Hello world.",), "▁Hello▁world."),
            Case(("私は猫が好きです",), "▁私は猫が好きです"),
            Case(("ＡＢＣ　１２３",), "▁ABC▁123", "全角", "先に NFKC にします"),
            Case(("ｶﾞ",), "▁ガ", "半角カナ", "NFKC は濁点も合わせます"),
            Case(("  a   b  ",), "▁a▁b", "余分な空白", "前後の空白を除き、続く空白は一つに"),
            Case(("",), "", "空の文", "空の文には ▁ を足しません"),
            Case(("   ",), "", "空白だけの文", "正規化すると空になります"),
        ],
    )
