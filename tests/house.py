"""ノートブックの家の規則。一つの関数が一つの規則で、破れている箇所を述べる文の list を返す。

ここにあるのは design の規則のうちプログラムで調べられるもの。test_notebooks.py が、規則ごとに
「破った例を必ず見つける」ことを示したうえで、リポジトリーのすべてのノートブックに当てはめる。
"""

import ast
import re
import statistics
import tomllib
from collections.abc import Callable
from pathlib import Path

from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
IGNORED = "nbval-ignore-output"
Rule = Callable[[NotebookNode], list[str]]


def _code(nb: NotebookNode) -> list[tuple[int, NotebookNode]]:
    return [(i, cell) for i, cell in enumerate(nb.cells) if cell.cell_type == "code"]


def _markdown(nb: NotebookNode) -> str:
    return "\n".join(cell.source for cell in nb.cells if cell.cell_type == "markdown")


def _tags(cell: NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def _text(cell: NotebookNode) -> str:
    """セルの出力のうち、文字として比べられる部分。"""
    parts = [output.get("text", "") for output in cell.get("outputs", [])]
    parts += [o.get("data", {}).get("text/plain", "") for o in cell.get("outputs", [])]
    return "".join(parts)


def _shows_image(cell: NotebookNode) -> bool:
    return any(
        kind.startswith("image/") for o in cell.get("outputs", []) for kind in o.get("data", {})
    )


def executed_in_order(nb: NotebookNode) -> list[str]:
    """新しいカーネルで上から順に一度だけ実行され、番号が 1..n である。"""
    counts = [cell.execution_count for _, cell in _code(nb)]
    expected = list(range(1, len(counts) + 1))
    return [] if counts == expected else [f"実行番号が 1..{len(counts)} ではない: {counts}"]


def outputs_are_stored(nb: NotebookNode) -> list[str]:
    """print・same・check を最上位で呼ぶセルには出力が保存されている(消すと nbval が素通りする)。"""
    calls = re.compile(r"^(print|same|reveal|predict|claims\.check|exercises\.check_\w+)\(", re.M)
    return [
        f"セル {i}: 出力が保存されていない"
        for i, cell in _code(nb)
        if calls.search(cell.source) and not cell.outputs
    ]


def no_errors_or_warnings(nb: NotebookNode) -> list[str]:
    """例外も標準エラーへの出力も残っていない。"""
    return [
        f"セル {i}: {output.get('ename') or '標準エラーへの出力'}がある"
        for i, cell in _code(nb)
        for output in cell.outputs
        if output.output_type == "error" or output.get("name") == "stderr"
    ]


def cells_are_short(nb: NotebookNode) -> list[str]:
    """コードセルの行数は中央値 6 以下、最大 30。"""
    lengths = [len(cell.source.splitlines()) for _, cell in _code(nb)]
    problems = [f"{n} 行のセルがある(30 行まで)" for n in lengths if n > 30]
    median = statistics.median(lengths or [0])
    return problems + ([f"行数の中央値が {median}(6 まで)"] if median > 6 else [])


def enough_markdown(nb: NotebookNode) -> list[str]:
    """セルの 40 % 以上が Markdown。"""
    share = sum(cell.cell_type == "markdown" for cell in nb.cells) / max(len(nb.cells), 1)
    return [] if share >= 0.4 else [f"Markdown のセルが {share:.0%}(40 % 以上)"]


def _trivial(cell: NotebookNode) -> bool:
    """出力が、決まった文字列を print しただけのものか。"""
    try:
        body = ast.parse(cell.source).body
    except SyntaxError:
        return False
    return bool(body) and all(
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Call)
        and isinstance(node.value.func, ast.Name)
        and node.value.func.id in {"print", "predict"}
        and all(isinstance(argument, ast.Constant) for argument in node.value.args)
        for node in body
    )


def mostly_strict(nb: NotebookNode) -> list[str]:
    """文字の出力があるセルの 2/3 以上が、出力を厳密に比べられる(決まった文の print は数えない)。"""
    shown = [cell for _, cell in _code(nb) if _text(cell).strip() and not _trivial(cell)]
    strict = [cell for cell in shown if IGNORED not in _tags(cell)]
    if len(strict) * 3 >= len(shown) * 2:
        return []
    return [f"厳密に比べるセルが {len(strict)}/{len(shown)}(2/3 以上)"]


def ignored_cells_are_judged(nb: NotebookNode) -> list[str]:
    """出力を比べないセルの後ろ 2 つ以内に、判定を表示するコードセルがある。"""
    code = _code(nb)
    problems = []
    for place, (i, cell) in enumerate(code):
        if IGNORED in _tags(cell):
            following = [other for _, other in code[place + 1 : place + 3]]
            if not any(IGNORED not in _tags(o) and _text(o).strip() for o in following):
                problems.append(f"セル {i}: 比べない出力の後に判定がない")
    return problems


def images_have_numbers(nb: NotebookNode) -> list[str]:
    """図を出すセルか次のコードセルに、比べられる文字の出力がある(nbval は図を比べない)。"""
    code = _code(nb)
    problems = []
    for place, (i, cell) in enumerate(code):
        nearby = [cell] + [other for _, other in code[place + 1 : place + 2]]
        checked = any(IGNORED not in _tags(c) and _numbers(c) for c in nearby)
        if _shows_image(cell) and not checked:
            problems.append(f"セル {i}: 図のそばに数の検査がない")
    return problems


def _numbers(cell: NotebookNode) -> bool:
    text = re.sub(r"<Figure size .*?>", "", _text(cell))
    return bool(re.search(r"\d", text))


def output_is_portable(nb: NotebookNode) -> list[str]:
    """比べる出力に、時間・パス・機器名・版・進行表示がない。"""
    pattern = re.compile(
        r"(/home/|/Users/|/tmp/|/root/|[A-Z]:\\|site-packages|\bcuda\b|\bmps\b|it/s\b|\d%\|"
        r"|\d+(\.\d+)?\s?(秒|ミリ秒|ms|seconds?)(?![ぁ-んァ-ヶ一-龠])|0x[0-9a-f]{6,})"
    )
    problems = []
    for i, cell in _code(nb):
        found = pattern.search(_text(cell))
        if found and IGNORED not in _tags(cell):
            problems.append(f"セル {i}: 機械ごとに変わる出力「{found[0]}」")
    return problems


def no_installs_or_shell(nb: NotebookNode) -> list[str]:
    """pip やシェルを呼ばない。"""
    return [
        f"セル {i}: シェルかマジックを呼んでいる"
        for i, cell in _code(nb)
        if re.search(r"^\s*[!%]+\w|subprocess|os\.system", cell.source, re.M)
    ]


def opens_safely(nb: NotebookNode) -> list[str]:
    """open と read_text には encoding、torch.load には weights_only=True がある。"""
    problems = []
    for i, cell in _code(nb):
        for call in (n for n in ast.walk(_parsed(cell)) if isinstance(n, ast.Call)):
            name = call.func.attr if isinstance(call.func, ast.Attribute) else ""
            name = call.func.id if isinstance(call.func, ast.Name) else name
            given = {keyword.arg for keyword in call.keywords}
            if name in {"open", "read_text", "write_text"} and "encoding" not in given:
                problems.append(f"セル {i}: {name} に encoding がない")
            if ast.unparse(call.func) == "torch.load" and "weights_only" not in given:
                problems.append(f"セル {i}: torch.load に weights_only=True がない")
    return problems


def _parsed(cell: NotebookNode) -> ast.Module:
    try:
        return ast.parse(cell.source)
    except SyntaxError:
        return ast.Module([], [])


def no_remote_pictures(nb: NotebookNode) -> list[str]:
    """よそのサーバーの図を貼らない。"""
    links = re.findall(
        r"!\[[^\]]*\]\((https?:[^)]*)\)|<img[^>]*src=.(https?:[^\"']*)", _markdown(nb)
    )
    return [f"よそのサーバーの図: {''.join(link)}" for link in links]


def kernel_is_python3(nb: NotebookNode) -> list[str]:
    """カーネル名は python3(知らない名前のカーネルは、読者の手元で開けない)。"""
    name = nb.metadata.get("kernelspec", {}).get("name")
    return [] if name == "python3" else [f"カーネル名が {name}"]


def ids_are_unique(nb: NotebookNode) -> list[str]:
    """セルの id が重ならない。"""
    ids = [cell.get("id") for cell in nb.cells]
    return [] if len(set(ids)) == len(ids) and all(ids) else ["セルの id が重なるか、欠けている"]


def titled(nb: NotebookNode) -> list[str]:
    """最初のセルに、節の題、論文(版つき arXiv か DOI などのリンク)、所要分、本線か発展がある。"""
    title = nb.cells[0].source if nb.cells else ""
    wanted = {
        "`# 2.3 題` の形の見出し": r"^# (\d\.\d|A\.\d)\S* \S",
        "論文へのリンク": r"\]\(https?://",
        "所要時間(分)": r"\d+ ?分",
        "本線か発展": r"本線|発展",
    }
    problems = [
        f"表題のセルに{what}がない" for what, p in wanted.items() if not re.search(p, title)
    ]
    bare = re.findall(r"arxiv\.org/abs/\d{4}\.\d{4,5}(?!\d|v\d)", title)
    return problems + [f"版のない arXiv リンク: {link}" for link in bare]


def has_all_parts(nb: NotebookNode) -> list[str]:
    """前回までから「次の論文」まで、決まった見出しが決まった順にある。"""
    parts = (
        "前回まで", "今回の問い", "予想", "実験", "なぜ", "論文の主張との比較", "原論文との違い",
        "演習", "まとめ", "次の論文",
    )  # fmt: skip
    headings = "\n".join(re.findall(r"^#{1,6} .*$", _markdown(nb), re.M))
    problems, position = [], 0
    for part in parts:
        found = headings.find(part, position)
        if found < 0:
            problems.append(f"見出し「{part}」がない(順序も見る)")
        position = max(found, position)
    return problems


def has_exercises(nb: NotebookNode) -> list[str]:
    """手計算・論文から答える問い・コードの演習があり、難しさと折りたたんだヒントが添えてある。"""
    text = _markdown(nb)
    wanted = {"手で計算": "手計算", "論文で": "論文から", "★": "★", "<details>": "折りたたみ"}
    problems = [f"演習に{what}がない" for mark, what in wanted.items() if mark not in text]
    checks = [cell for _, cell in _code(nb) if re.search(r"\bcheck_\w+\(", cell.source)]
    return problems + ([] if checks else ["コードの演習の check_... がない"])


def writes_twice(nb: NotebookNode) -> list[str]:
    """素直な実装と速い実装の一致を same で確かめている。"""
    used = any(re.search(r"\bsame\(", cell.source) for _, cell in _code(nb))
    return [] if used else ["same(...) がない"]


def has_changeable_cell(nb: NotebookNode) -> list[str]:
    """読者が変えたくなる値だけを置いたセル(タグ parameters)がある。"""
    cells = [cell for _, cell in _code(nb) if "parameters" in _tags(cell)]
    problems = [] if cells else ["タグ parameters のセルがない"]
    for cell in cells:
        nodes = _parsed(cell).body
        if not nodes or not all(isinstance(n, ast.Assign | ast.AnnAssign) for n in nodes):
            problems.append("タグ parameters のセルに代入以外がある")
    return problems


def sentence_travels(nb: NotebookNode) -> list[str]:
    """全章を旅する一文「私は猫が好きです」が出てくる。"""
    everything = "\n".join(cell.source for cell in nb.cells)
    return [] if "私は猫が好きです" in everything else ["「私は猫が好きです」が出てこない"]


def claims_are_in_ledger(nb: NotebookNode) -> list[str]:
    """claims.check の id が台帳にある。"""
    return [
        f"台帳にない主張 {claim}"
        for _, cell in _code(nb)
        for claim in re.findall(r"claims\.check\(\s*[\"']([^\"']+)", cell.source)
        if claim not in _ledger()
    ]


def _ledger() -> set[str]:
    return {
        claim["id"]
        for path in ROOT.glob("chapter*/claims.toml")
        for claim in tomllib.loads(path.read_text(encoding="utf-8")).get("claim", [])
    }


EVERY_NOTEBOOK: tuple[Rule, ...] = (
    executed_in_order, outputs_are_stored, no_errors_or_warnings, cells_are_short,
    mostly_strict, ignored_cells_are_judged, images_have_numbers, output_is_portable,
    no_installs_or_shell, opens_safely, no_remote_pictures, kernel_is_python3, ids_are_unique,
    claims_are_in_ledger,
)  # fmt: skip
LESSONS: tuple[Rule, ...] = (
    *EVERY_NOTEBOOK, enough_markdown, titled, has_all_parts, has_exercises, writes_twice,
    has_changeable_cell, sentence_travels,
)  # fmt: skip


def lessons() -> list[Path]:
    """本文のノートブック。"""
    return sorted(ROOT.glob("chapter*/notebooks/*.ipynb"))


def solutions() -> list[Path]:
    """演習の解答。"""
    return sorted(ROOT.glob("chapter*/solutions/*.ipynb"))
