"""KV キャッシュを使う生成の速さを、使わないときとの比で測る。

    python -m benchmarks.decoding            すべて測り、results/decoding.json に書いて表を出す
    python -m benchmarks.decoding --runs 1   1 回ずつ

どれも同じ重みのモデルで、64 トークンを生成する。文の終わりの id は、選ばれることのない値にする。
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.peer import compare, measure
from benchmarks.report import publish
from chapter03.decoding import beam_search, greedy
from chapter03.transformer import Transformer, TransformerConfig
from shared.files import write_atomically

RESULTS = Path(__file__).resolve().parent / "results" / "decoding.json"
LENGTH, SOURCE, VOCABULARY = 64, 20, 5000
MODEL: dict[str, Any] = {"d_model": 256, "n_heads": 4, "n_layers": 3, "d_ff": 1024}
TASKS = [("greedy", 1), ("greedy", 8), ("greedy", 32), ("beam", 8)]
NAMES = {"greedy": "貪欲法", "beam": "ビームサーチ(幅 4)"}


def prepare(batch: int) -> tuple[Transformer, Tensor]:
    """決まった乱数の重みのモデルと、入力の id (B, S)。"""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = TransformerConfig(src_vocab_size=VOCABULARY, tgt_vocab_size=VOCABULARY, **MODEL)
    return Transformer(config).eval(), torch.randint(3, VOCABULARY, (batch, SOURCE))


def generate(search: str, batch: int, use_cache: bool) -> Callable[[], Any]:
    """計測する仕事。はじめに短く走らせて、下準備を済ませておく。"""
    model, src = prepare(batch)
    options: dict[str, Any] = {"eos": VOCABULARY, "use_cache": use_cache}  # 終わりの来ない id
    if search == "beam":
        beam_search(model, src, 2, **options)
        return lambda: [
            one.ids for found in beam_search(model, src, LENGTH, **options) for one in found[:1]
        ]
    greedy(model, src, 2, **options)
    return lambda: greedy(model, src, LENGTH, **options)


def child(search: str, batch: int, kind: str) -> list[str]:
    return ["python", "-m", "benchmarks.decoding", "--child", search, str(batch), kind]


def table(rows: list[dict]) -> str:
    """Markdown の表。速さの比は、キャッシュなしの時間 ÷ キャッシュありの時間(大きいほどよい)。"""
    lines = [
        "| 探し方 | 同時に解く文の数 | 回数 | 速さの比(最小・中央・最大) | 結果が等しい |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        ratio = {key: 1 / value for key, value in row["seconds_ratio"].items()}
        lines.append(
            f"| {NAMES[row['search']]} | {row['batch']} | {row['runs']} "
            f"| {ratio['max']:.1f}・**{ratio['median']:.1f}**・{ratio['min']:.1f} "
            f"| {'はい' if row['same_result'] else 'いいえ'} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--child", nargs=3)
    arguments = parser.parse_args()
    if arguments.child:
        search, batch, kind = arguments.child
        measure(generate(search, int(batch), kind == "cached"), json.dumps)
        return
    rows = []
    for search, batch in TASKS:
        result = compare(
            child(search, batch, "cached"), child(search, batch, "plain"), arguments.runs
        )
        rows.append({"search": search, "batch": batch, **result})
    RESULTS.parent.mkdir(exist_ok=True)
    write_atomically(RESULTS, json.dumps(rows, ensure_ascii=False, indent=1) + "\n")
    print(table(rows))
    publish("decoding", table(rows))


if __name__ == "__main__":
    main()
