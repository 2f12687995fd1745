"""GPT の書いた文の目隠しの判定: 本物の文と混ぜ、出所を伏せて、日本語として正しいかを答えてもらう。

    python -m chapter04.blind_test sheet     混ぜた 60 文を書き、番号と文だけを表示する
    (判定者ごとに、[[judges]] の name と、正しいと判定した文の番号 correct を書き足す)
    python -m chapter04.blind_test report    判定を集計する

文と判定は docs/runs/4.1_blind_test.toml に、集計は 4.1_blind_test.md に置く。
"""

import random
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomlkit

from chapter04 import japanese_gpt, text
from chapter04.pretrain import RUNS, SAMPLES, TEMPERATURE, TOP_P
from shared.checks import require_int
from shared.files import write_atomically
from shared.run_report import table

NAME = "4.1_blind_test"
QUESTION = "この文は、日本語として正しい(文法に誤りがなく、意味が通る)か"


def mixed(written: Sequence[str], real: Sequence[str], seed: int) -> list[dict[str, Any]]:
    """GPT の書いた文すべてと、`real` から選んだ同じ数の文を混ぜた {"text", "written"} の並び。

    Raises:
        TypeError: `seed` が整数でないとき。
        ValueError: `real` が足りないとき。
    """
    rng = random.Random(require_int(seed, "seed"))
    if len(real) < len(written):
        raise ValueError(f"real には {len(written)} 文以上が要ります: {len(real)} 文")
    items = [{"text": sentence, "written": True} for sentence in written]
    chosen = rng.sample(list(real), len(written))
    items += [{"text": sentence, "written": False} for sentence in chosen]
    rng.shuffle(items)
    return items


def counts(items: Sequence[Mapping[str, Any]], correct: Sequence[int]) -> tuple[int, int]:
    """正しいと判定された (GPT の書いた文, 本物の文) の数。番号は 1 から。

    Raises:
        TypeError, ValueError: 番号が整数でない、範囲の外、重なるとき。
    """
    for number in correct:
        if not 1 <= require_int(number, "correct") <= len(items):
            raise ValueError(f"correct の番号は 1 から {len(items)} にしてください: {number}")
    if len(set(correct)) != len(correct):
        raise ValueError(f"correct に同じ番号があります: {sorted(correct)}")
    chosen = [bool(items[number - 1]["written"]) for number in correct]
    return sum(chosen), len(chosen) - sum(chosen)


def majority(judges: Sequence[Mapping[str, Any]], n: int) -> list[int]:
    """半分より多くの判定者が正しいとした文の番号。"""
    return [
        number
        for number in range(1, n + 1)
        if 2 * sum(number in judge["correct"] for judge in judges) > len(judges)
    ]


def markdown(data: Mapping[str, Any]) -> str:
    """判定の記録の本文。

    Raises:
        TypeError, ValueError: 判定者がいない、番号が誤っているとき。
    """
    items, judges = data["items"], data.get("judges", [])
    if not judges:
        raise ValueError(f"{NAME}.toml に判定 [[judges]] がありません")
    agreed = majority(judges, len(items))
    n = len(items) // 2
    rows = [(judge["name"], judge["correct"]) for judge in judges] + [("多数決", agreed)]
    totals = [
        (name, f"{written} / {n}", f"{real} / {n}")
        for name, correct in rows
        for written, real in [counts(items, correct)]
    ]
    listed = [
        (
            str(number),
            item["text"],
            "GPT" if item["written"] else "本物",
            *("○" if number in correct else "×" for _, correct in rows),
        )
        for number, item in enumerate(items, 1)
    ]
    head = ("判定者", "GPT の文", "本物の文")
    return f"""\
# 4.1 節の日本語の GPT の、目隠しの判定

配ってある GPT が種 0 で書いたままの {n} 文(温度 {TEMPERATURE}、top-p {TOP_P}。\
[学習の記録](4.1_japanese_gpt.md)と同じもの)に、学習に使っていない Tatoeba の {n} 文を混ぜ、\
出所を伏せて、一文ずつ「{QUESTION}」を判定しました。

判定者: {data["judged_by"]}

## 正しいと判定された数

{table(head, totals)}

本物の文の数は、判定の厳しさの目安です。書いた人がいる文でも、短い一文だけでは、不自然に見えることがあります。

## すべての文と判定

{table(("番号", "文", "出所", *(name for name, _ in rows)), listed)}
"""


def sheet(folder: Path, seed: int = 0) -> list[str]:
    """混ぜた文を `folder` に書き、番号つきの文を返す。

    Raises:
        FileNotFoundError, ValueError: 配ってある GPT を読めないとき。
    """
    written = japanese_gpt.load().complete(
        n=SAMPLES, max_new_tokens=60, temperature=TEMPERATURE, top_p=TOP_P, seed=seed
    )
    real = text.split(text.deduplicate(text.documents()))["test"]
    items = mixed(written, real, seed)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / f"{NAME}.toml", tomlkit.dumps({"judged_by": "", "items": items}))
    return [f"{number}\t{item['text']}" for number, item in enumerate(items, 1)]


def main(arguments: list[str], folder: Path = RUNS) -> int:
    """命令の中身。"""
    if arguments == ["sheet"]:
        print("\n".join(sheet(folder)))
    elif arguments == ["report"]:
        data = tomllib.loads((folder / f"{NAME}.toml").read_text(encoding="utf-8"))
        write_atomically(folder / f"{NAME}.md", markdown(data))
    else:
        print("使い方: python -m chapter04.blind_test sheet | report", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
