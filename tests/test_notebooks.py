"""家の規則: 規則ごとに破った例を必ず見つけること、そして全ノートブックが規則を守ること。"""

from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from tests import house

KERNEL = {"name": "python3", "display_name": "Python 3"}
TITLE = "# 2.3 題\n\n論文: [S+](https://arxiv.org/abs/1508.07909v5)。実行 1 分。本線。"
HEADINGS = (
    "## 前回まで", "## 今回の問い", "### 予想", "### 実験", "### なぜ?",
    "## 論文の主張との比較", "## 原論文との違い", "## 演習", "## まとめ", "## 次の論文が解く不満",
)  # fmt: skip


def code(source: str, text: str = "", tags: tuple[str, ...] = (), image: bool = False):
    """出力つきのコードセル。"""
    cell = new_code_cell(source, metadata={"tags": list(tags)})
    if text:
        cell.outputs.append(new_output("stream", name="stdout", text=text))
    if image:
        cell.outputs.append(new_output("display_data", data={"image/png": "aGk="}))
    return cell


def good() -> NotebookNode:
    """すべての規則を守る最小のノートブック。"""
    cells = [new_markdown_cell(TITLE)]
    cells += [new_markdown_cell(heading) for heading in HEADINGS]
    cells += [
        new_markdown_cell("手で計算 ★ 論文で <details>ヒント</details> 私は猫が好きです"),
        code("N = 3", tags=("parameters",)),
        code("same(a, b)", "確認: 二つの実装は、3 個の値すべてがぴったり一致しました。\n"),
        code("plt.show()", "42\n", image=True),
        code("exercises.check_merge(f)", "まだ解かれていません。\n"),
    ]
    nb = new_notebook(cells=cells, metadata={"kernelspec": KERNEL})
    return renumbered(nb)


def renumbered(nb: NotebookNode) -> NotebookNode:
    """実行番号を 1..n にする。"""
    for number, cell in enumerate([c for c in nb.cells if c.cell_type == "code"], start=1):
        cell.execution_count = number
    return nb


def _append(*cells: NotebookNode) -> Callable[[NotebookNode], None]:
    def change(nb: NotebookNode) -> None:
        nb.cells.extend(cells)
        renumbered(nb)

    return change


def _drop(text: str) -> Callable[[NotebookNode], None]:
    def change(nb: NotebookNode) -> None:
        for cell in nb.cells:
            cell.source = cell.source.replace(text, "")

    return change


def _replace(old: str, new: str) -> Callable[[NotebookNode], None]:
    def change(nb: NotebookNode) -> None:
        for cell in nb.cells:
            cell.source = cell.source.replace(old, new)

    return change


def _second_first(nb: NotebookNode) -> None:
    nb.cells[-1].execution_count = 1


def _never_run(nb: NotebookNode) -> None:
    nb.cells[-1].execution_count = None


def _strip(nb: NotebookNode) -> None:
    for cell in nb.cells:
        if cell.cell_type == "code":
            cell.outputs = []


def _other_kernel(nb: NotebookNode) -> None:
    nb.metadata.kernelspec.name = "chapter02"


def _same_id(nb: NotebookNode) -> None:
    nb.cells[1].id = nb.cells[0].id


def _swap(nb: NotebookNode) -> None:
    nb.cells[3], nb.cells[5] = nb.cells[5], nb.cells[3]


def _output(kind: str, **fields: object) -> NotebookNode:
    cell = code("f()")
    cell.outputs.append(new_output(kind, **fields))
    return cell


IGNORED = (house.IGNORED,)
STDERR = _output("stream", name="stderr", text="UserWarning")
ERROR = _output("error", ename="ValueError", evalue="", traceback=[])
LONG, LONGER = "\n".join(["x = 1"] * 7), "\n".join(["x = 1"] * 31)

BAD: list[tuple[house.Rule, str, Callable[[NotebookNode], None]]] = [
    (house.executed_in_order, "順番が違う", _second_first),
    (house.executed_in_order, "未実行", _never_run),
    (house.outputs_are_stored, "出力を消した", _strip),
    (house.outputs_are_stored, "判定の出力がない", _append(code('claims.check("2.3-x", r)'))),
    (house.no_errors_or_warnings, "警告", _append(STDERR)),
    (house.no_errors_or_warnings, "例外", _append(ERROR)),
    (house.cells_are_short, "31 行", _append(code(LONGER))),
    (house.cells_are_short, "中央値 7", _append(*[code(LONG) for _ in range(9)])),
    (house.enough_markdown, "コードばかり", _append(*[code("x = 1") for _ in range(30)])),
    (house.mostly_strict, "比べない", _append(*[code("f()", "1", IGNORED) for _ in range(4)])),
    (
        house.mostly_strict,
        "決まった文の print で水増し",
        _append(
            *[code("f()", "1", IGNORED) for _ in range(2)],
            *[code('print("はい")', "はい") for _ in range(9)],
        ),
    ),
    (house.ignored_cells_are_judged, "判定がない", _append(code("f()", "1", IGNORED))),
    (
        house.ignored_cells_are_judged,
        "次も比べない",
        _append(code("f()", "1", IGNORED), code("g()", "2", IGNORED)),
    ),
    (house.images_have_numbers, "図だけ", _append(code("plt.show()", image=True))),
    (
        house.images_have_numbers,
        "図の大きさは数に数えない",
        _append(code("plt.show()", "<Figure size 640x480 with 1 Axes>", image=True)),
    ),
    (house.output_is_portable, "パス", _append(code("f()", "/home/me/x"))),
    (house.output_is_portable, "Windows のパス", _append(code("f()", "C:\\x"))),
    (house.output_is_portable, "秒", _append(code("f()", "1.5 秒"))),
    (house.output_is_portable, "機器", _append(code("f()", "device: cuda"))),
    (house.output_is_portable, "進行表示", _append(code("f()", "30%|███ 5.1it/s"))),
    (house.output_is_portable, "番地", _append(code("f()", "<object at 0x7f00aa11>"))),
    (house.no_installs_or_shell, "pip", _append(code("!pip install x"))),
    (house.no_installs_or_shell, "マジック", _append(code("%matplotlib inline"))),
    (house.opens_safely, "open", _append(code('open("x")'))),
    (house.opens_safely, "read_text", _append(code('Path("x").read_text()'))),
    (house.opens_safely, "torch.load", _append(code('torch.load("x")'))),
    (
        house.no_remote_pictures,
        "よその図",
        _append(new_markdown_cell("![](https://example.com/a.png)")),
    ),
    (
        house.no_remote_pictures,
        "img 要素",
        _append(new_markdown_cell('<img src="https://example.com/a.png">')),
    ),
    (house.kernel_is_python3, "章の名のカーネル", _other_kernel),
    (house.ids_are_unique, "同じ id", _same_id),
    (house.titled, "節の番号がない", _replace("# 2.3 題", "# 題")),
    (house.titled, "論文がない", _drop("](https://arxiv.org/abs/1508.07909v5)")),
    (house.titled, "版がない", _drop("v5")),
    (house.titled, "所要時間がない", _drop("1 分")),
    (house.titled, "本線か発展かがない", _drop("本線")),
    *[
        (house.has_all_parts, f"「{heading}」がない", _drop(heading))
        for heading in HEADINGS
        if heading != "## 演習"
    ],
    (house.has_all_parts, "順序が違う", _swap),
    (house.has_exercises, "手計算がない", _drop("手で計算")),
    (house.has_exercises, "論文の問いがない", _drop("論文で")),
    (house.has_exercises, "難しさがない", _drop("★")),
    (house.has_exercises, "ヒントがない", _drop("<details>")),
    (house.has_exercises, "採点がない", _drop("exercises.check_merge(f)")),
    (house.writes_twice, "same がない", _drop("same(a, b)")),
    (house.has_changeable_cell, "値のセルがない", _drop("N = 3")),
    (house.has_changeable_cell, "代入以外がある", _replace("N = 3", "print(3)")),
    (house.sentence_travels, "一文がない", _drop("私は猫が好きです")),
    (house.claims_are_in_ledger, "台帳にない", _append(code('claims.check("9.9-x", 1)', "1"))),
]


@pytest.mark.parametrize("rule", house.LESSONS, ids=lambda rule: rule.__name__)
def test_good_example_passes(rule: house.Rule) -> None:
    assert rule(good()) == []


@pytest.mark.parametrize(
    ("rule", "what", "break_it"), BAD, ids=[f"{r.__name__}: {w}" for r, w, _ in BAD]
)
def test_rule_rejects_bad_example(
    rule: house.Rule, what: str, break_it: Callable[[NotebookNode], None]
) -> None:
    nb = good()
    break_it(nb)
    assert rule(nb), f"規則 {rule.__name__} が「{what}」を見逃した"


def test_every_rule_has_a_bad_example() -> None:
    assert {rule for rule, _, _ in BAD} == set(house.LESSONS)


@pytest.mark.parametrize("rule", house.LESSONS, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("path", house.lessons(), ids=lambda path: path.stem)
def test_lesson(path: Path, rule: house.Rule) -> None:
    assert rule(nbformat.read(path, 4)) == []


@pytest.mark.parametrize("rule", house.EVERY_NOTEBOOK, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize(
    "path", [*house.solutions(), house.ROOT / "tour.ipynb"], ids=lambda p: p.stem
)
def test_solution(path: Path, rule: house.Rule) -> None:
    assert rule(nbformat.read(path, 4)) == []


def test_each_lesson_has_a_solution_and_a_note() -> None:
    lessons = {path.name for path in house.lessons()}
    assert lessons
    assert lessons == {path.name for path in house.solutions()}
    for path in house.lessons():  # 3.3a のノートは 3.3.md か、分けて書いた 3.3.1.md、3.3.2.md、...
        number = path.name.split("_")[0].rstrip("abcdef")
        notes = path.parent.parent / "notes"
        assert [*notes.glob(f"{number}.md"), *notes.glob(f"{number}.[0-9].md")], path.name


def test_modules_are_short() -> None:
    """どのモジュールも 400 行まで(study.py と検査は除く)。"""
    modules = [
        p for d in ("shared", "chapter*", "benchmarks") for p in house.ROOT.glob(f"{d}/**/*.py")
    ]
    modules = [p for p in modules if ".venv" not in p.parts]
    lengths = {
        str(p.relative_to(house.ROOT)): len(p.read_text(encoding="utf-8").splitlines())
        for p in modules
    }
    assert {name: n for name, n in lengths.items() if n > 400} == {}


def test_packages_have_init() -> None:
    """同じ名のフォルダーが隣にあっても import が迷わないよう、__init__.py を必ず置く。"""
    packages = [house.ROOT / "shared", *house.ROOT.glob("chapter[0-9][0-9]")]
    assert [str(p) for p in packages if not (p / "__init__.py").is_file()] == []
