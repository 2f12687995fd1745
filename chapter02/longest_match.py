"""最長一致による分割。ユニグラム言語モデルの分割(確率の最大)と対照するために使う。"""

from collections.abc import Mapping

from shared.checks import require_number, require_text, shown


def greedy_longest_match(text: str, probabilities: Mapping[str, float]) -> list[str]:
    """左から順に、語彙にある最も長い断片を取る分割を返す(確率は見ない。比較のための対照)。

    どの断片も当てはまらない文字は、その 1 文字を断片とする。

    Raises:
        TypeError, ValueError: `text` が文字列でないとき、`probabilities` が `from_probabilities` の
            受けつけないものであるとき。
    """
    text = require_text(text, "text")
    vocabulary = check_probabilities(probabilities)
    longest = max(map(len, vocabulary))
    pieces: list[str] = []
    start = 0
    while start < len(text):
        end = min(start + longest, len(text))
        while end > start + 1 and text[start:end] not in vocabulary:
            end -= 1
        pieces.append(text[start:end])
        start = end
    return pieces


def check_probabilities(probabilities: Mapping[str, float]) -> dict[str, float]:
    """断片と確率の表を検査し、float に直して返す。例外は `Unigram.from_probabilities` を参照。"""
    if not isinstance(probabilities, Mapping):
        raise TypeError(
            f"probabilities には {{断片: 確率}} の辞書を渡してください: {shown(probabilities)}"
        )
    if not probabilities:
        raise ValueError("probabilities が空です。断片を 1 つ以上入れてください")
    checked: dict[str, float] = {}
    for piece, value in probabilities.items():
        if not require_text(piece, "probabilities の断片"):
            raise ValueError("probabilities に空文字列の断片があります。1 文字以上にしてください")
        name = f"probabilities[{shown(piece)}]"
        checked[piece] = require_number(value, name)
        if not 0.0 < checked[piece] <= 1.0:
            raise ValueError(f"{name} は 0 より大きく 1 以下にしてください: {checked[piece]}")
    return checked
