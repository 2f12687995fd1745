"""主張の台帳: 論文の主張を、先に決めた基準で、複数の乱数シードで測って判定する。

chapterNN/claims.toml の `[[claim]]` 一つが一つの主張である。

    id = "2.7-characters-stuck"       # 節の番号で始まる、変わらない名前
    paper = "rajaraman2024"           # references.bib のキー
    where = "2.1 節、図 2"            # 論文の中の場所
    statement = "..."                 # 主張を一文で
    paper_value = "..."               # 論文の値(なければ論文の言い方)
    ours = "..."                      # 何を測るか、単位
    bound = ">= 0.99"                 # 論文の主張から選び、測る前に commit する
    measure = "chapter02.experiments:characters_stuck"   # seed を受け取り一つの数を返す関数
    seeds = [0, 1, 2]                 # ここから下は study.py claims --measure が書く
    values = [0.999, 0.998, 0.999]
    holds = true                      # false のときは why に理由を書く
"""

import argparse
import importlib
import math
import operator
import os
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import tomlkit

from shared.checks import require_number, shown
from shared.files import write_atomically

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- claims:begin -->", "<!-- claims:end -->"
_COMPARE = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
_FIELDS = ("id", "paper", "where", "statement", "paper_value", "ours", "bound", "measure")


def load(chapter: str | None = None) -> list[dict[str, Any]]:
    """台帳を読む。`chapter` は "02" の形、省けば全章。

    Raises:
        ValueError: 台帳に欠けた項目・読めない基準・重なる id があるとき。
    """
    claims: list[dict[str, Any]] = []
    for path in sorted(ROOT.glob(f"chapter{chapter or '[0-9][0-9]'}/claims.toml")):
        for claim in tomllib.loads(path.read_text(encoding="utf-8")).get("claim", []):
            missing = [field for field in _FIELDS if field not in claim]
            if missing:
                name = claim.get("id", "(id なし)")
                raise ValueError(f"{path.name} の主張 {name} に {', '.join(missing)} がありません")
            if claim["id"] in {other["id"] for other in claims}:
                raise ValueError(f"主張の id が重なっています: {claim['id']}")
            satisfies(claim["bound"], 0.0)
            claims.append(claim | {"path": path})
    return claims


def find(claim_id: str) -> dict[str, Any]:
    """id が `claim_id` の主張を返す。

    Raises:
        ValueError: そのような主張が台帳にないとき。
    """
    claims = {claim["id"]: claim for claim in load()}
    if claim_id not in claims:
        known = "、".join(claims) or "(まだ一つもありません)"
        raise ValueError(f"claim_id {shown(claim_id)} は台帳にありません。あるのは: {known}")
    return claims[claim_id]


def satisfies(bound: str, value: float) -> bool:
    """基準 `bound`(">= 0.99" の形)を `value` が満たすか。

    Raises:
        ValueError: 基準が読めないとき。
    """
    match = re.fullmatch(r"(>=|<=|>|<)\s*(-?\d+(?:\.\d+)?(?:e-?\d+)?)", bound.strip())
    if not match:
        raise ValueError(f"bound は '>= 0.99' の形で書いてください: {shown(bound)}")
    return not math.isnan(value) and _COMPARE[match[1]](value, float(match[2]))


def check(claim_id: str, measured: float) -> None:
    """ノートブックで測った値を台帳の判定と比べ、一文を表示する。

    回帰テスト(環境変数 GENAI_NOTES_STRICT)では、判定が台帳と違えば失敗させる。読者の手元では、
    台帳の値・得られた値・考えられる原因を述べるだけにする。

    Raises:
        ValueError: 台帳にない id、まだ測られていない主張、有限でない `measured`。
        AssertionError: 回帰テストで判定が台帳と違うとき。
    """
    claim, measured = find(claim_id), require_number(measured, "measured")
    if "holds" not in claim:
        raise ValueError(
            f"主張 {claim_id} はまだ測られていません: study.py claims --measure {claim_id}"
        )
    holds = satisfies(claim["bound"], measured)
    if holds == claim["holds"]:
        why = "" if holds else f" 理由: {claim['why']}"
        print(f"主張 {claim_id}(基準 {claim['bound']}): {_verdict(holds)}。{why}".rstrip())
        return
    message = (
        f"主張 {claim_id} の判定が台帳と違います。\n"
        f"  主張: {claim['statement']}\n"
        f"  基準: {claim['ours']} {claim['bound']}\n"
        f"  台帳: {_verdict(claim['holds'])}(測定値 {_values(claim)})\n"
        f"  今回: {_verdict(holds)}(測定値 {measured:.4g})"
    )
    if os.environ.get("GENAI_NOTES_STRICT"):
        raise AssertionError(message)
    print(message)
    print(
        "設定を変えたなら、その違いが効いたのかもしれません。変えていないなら、シード・機器・版の違い"
    )
    print("を疑い、カーネルを再起動して上から順に実行し直してみてください。")


def measure(claim_id: str, n_seeds: int) -> dict[str, Any]:
    """主張をシード 0..n_seeds-1 で測り、値と判定を台帳に書く。

    判定は、すべてのシードで基準を満たすときだけ「成り立つ」。基準 `bound` には触れない。

    Raises:
        ValueError: シードが 3 個より少ないとき、測定値が有限でないとき。
    """
    if n_seeds < 3:
        raise ValueError(f"seeds は 3 以上にしてください: {n_seeds}")
    claim = find(claim_id)
    module, function = claim["measure"].split(":")
    run = getattr(importlib.import_module(module), function)
    values = []
    for seed in range(n_seeds):
        values.append(round(require_number(run(seed), f"シード {seed} の測定値"), 6))
        print(f"{claim_id} シード {seed}: {values[-1]}", flush=True)
    document = tomlkit.parse(claim["path"].read_text(encoding="utf-8"))
    table = next(entry for entry in document["claim"] if entry["id"] == claim_id)  # pyright: ignore
    table["seeds"] = list(range(n_seeds))  # pyright: ignore
    table["values"] = values  # pyright: ignore
    table["holds"] = all(satisfies(claim["bound"], value) for value in values)  # pyright: ignore
    write_atomically(claim["path"], tomlkit.dumps(document))
    return find(claim_id)


def _verdict(holds: bool) -> str:
    return "成り立つ" if holds else "この規模では成り立たない"


def _values(claim: dict[str, Any]) -> str:
    return ", ".join(f"{value:.4g}" for value in claim["values"])


def table(claims: list[dict[str, Any]]) -> str:
    """主張の表を Markdown で返す(README に入れるもの)。"""
    rows = ["| 主張 | 論文 | 論文の値 | 測ったもの | 基準 | 測定値 | 判定 |", "|" + "---|" * 7]
    for claim in claims:
        measured = "holds" in claim
        verdict = "未測定"
        if measured:
            verdict = (
                "✅ 成り立つ" if claim["holds"] else f"❌ 成り立たない: {claim.get('why', '')}"
            )
        cells = [
            f"`{claim['id']}` {claim['statement']}",
            f"{claim['paper']} {claim['where']}",
            claim["paper_value"],
            claim["ours"],
            claim["bound"].replace("<", "&lt;").replace(">", "&gt;"),
            _values(claim) if measured else "-",
            verdict,
        ]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def refreshed_readme(readme: str) -> str:
    """README の印の間を今の表に置きかえた全文を返す。

    Raises:
        ValueError: 印が一組でないとき。
    """
    if readme.count(BEGIN) != 1 or readme.count(END) != 1:
        raise ValueError(f"README.md には {BEGIN} と {END} が一つずつ必要です")
    head, rest = readme.split(BEGIN)
    return f"{head}{BEGIN}\n{table(load())}\n{END}{rest.split(END)[1]}"


def main(arguments: list[str]) -> int:
    """`study.py claims` の中身。表が古い(--check)ときは 1 を返す。"""
    parser = argparse.ArgumentParser(prog="study.py claims", description="論文の主張の台帳")
    parser.add_argument("chapter", nargs="?", help="02 のような章の番号(省けば全章)")
    parser.add_argument("--measure", metavar="ID", help="この主張を測り直して台帳に書く")
    parser.add_argument("--seeds", type=int, default=3, help="シードの数(3 以上)")
    parser.add_argument("--check", action="store_true", help="README の表が最新かだけを調べる")
    options = parser.parse_args(arguments)
    if options.measure:
        try:
            claim = measure(options.measure, options.seeds)
        except ValueError as error:
            print(error, file=sys.stderr)
            return 2
        print(f"{claim['id']}: {_verdict(claim['holds'])}")
    path = ROOT / "README.md"
    readme = path.read_text(encoding="utf-8")
    fresh = refreshed_readme(readme)
    if options.check:
        if fresh != readme:
            print("README.md の主張の表が古くなっています。次で更新: python3 study.py claims")
        return int(fresh != readme)
    for claim in load(options.chapter):
        verdict = _verdict(claim["holds"]) if "holds" in claim else "未測定"
        values = f"(測定値 {_values(claim)})" if "holds" in claim else ""
        print(f"{claim['id']}: {verdict} {claim['bound']}{values}\n    {claim['statement']}")
    if fresh != readme and not options.chapter:
        write_atomically(path, fresh)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
