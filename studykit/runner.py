"""ノートブックを実行して写しを保存し、章の import が揃っているかを調べる。

study.py が、章の仮想環境の Python で呼ぶ。

    python -m studykit.runner run 保存先 ノートブック...
    python -m studykit.runner imports 章のフォルダー...
"""

import ast
import asyncio
import contextlib
import importlib
import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shared.files import write_atomically

CELL_SECONDS = 900  # 一つのセルがこれより長くかかったら止める


class _Progress:
    """一つのノートブックの進みぐあいを、端末の一行に出す。"""

    def __init__(self, name: str, cells: list[Any]) -> None:
        self.name, self.start, self.current = name, time.monotonic(), 0
        self.code = [i for i, cell in enumerate(cells) if cell.cell_type == "code"]
        self.live = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"

    def started(self, cell: Any, cell_index: int) -> None:
        if cell_index in self.code:
            self.current = self.code.index(cell_index) + 1
        if self.live:
            print("\r" + self.line(), end="", flush=True)

    def line(self) -> str:
        seconds = time.monotonic() - self.start
        return f"  {self.name}: セル {self.current}/{len(self.code)}  {seconds:.0f} 秒  "

    def finish(self, verdict: str) -> None:
        print(("\r" if self.live else "") + self.line() + verdict, flush=True)


def run_notebook(path: Path, folder: Path) -> str | None:
    """`path` を新しいカーネルで実行し、実行済みの写しと HTML を `folder` に保存する。

    元のファイルには触れない。失敗したセルがあれば、番号とエラーを述べる文を返す(写しは保存する)。
    カーネルは名前 "python3" のもので、作業フォルダーはノートブックのある場所。
    """
    import nbformat  # noqa: PLC0415  imports の検査では要らない
    from nbclient import NotebookClient  # noqa: PLC0415
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError  # noqa: PLC0415

    notebook = nbformat.read(path, as_version=4)
    progress = _Progress(path.stem, notebook.cells)
    client = NotebookClient(
        notebook,
        timeout=CELL_SECONDS,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
        on_notebook_start=_take_back_interrupt,
        on_cell_start=progress.started,
        extra_arguments=["--IPKernelApp.log_level=50"],  # カーネル自身の警告は出さない
    )
    problem = None
    try:
        client.execute()
    except CellExecutionError as error:
        problem = f"{error.ename}: {error.evalue}"
    except CellTimeoutError:
        problem = f"{CELL_SECONDS} 秒たっても終わりませんでした"
    except DeadKernelError:
        problem = "カーネルが落ちました(メモリー不足のことが多い)"
    _save(notebook, folder / path.name)
    progress.finish(f"× セル {progress.current} で失敗" if problem else "○")
    if problem is None:
        return None
    return f"{path.name} のセル {progress.current}(In [{progress.current}])で失敗: {problem}"


def _take_back_interrupt(notebook: Any) -> None:
    """nbclient が握った Ctrl-C を、ふつうの KeyboardInterrupt に戻す(カーネルは終了時に止まる)。"""
    with contextlib.suppress(NotImplementedError):  # Windows では、はじめから握られない
        asyncio.get_running_loop().remove_signal_handler(signal.SIGINT)


def _save(notebook: Any, target: Path) -> None:
    """実行済みのノートブックと、そのままブラウザーで開ける HTML を保存する。"""
    import nbformat  # noqa: PLC0415
    from nbconvert import HTMLExporter  # noqa: PLC0415

    write_atomically(target, nbformat.writes(notebook) + "\n")
    html, _ = HTMLExporter(language_code="ja").from_notebook_node(notebook)
    write_atomically(target.with_suffix(".html"), html)


def run_all(folder: Path, notebooks: list[Path]) -> int:
    """ノートブックを順に実行する。失敗が一つでもあれば、まとめて述べて 1 を返す。"""
    folder.mkdir(parents=True, exist_ok=True)
    problems = [problem for path in notebooks if (problem := run_notebook(path, folder))]
    print(f"実行済みの写しと HTML: {folder}", flush=True)
    for problem in problems:
        print(f"× {problem}", flush=True)
    return int(bool(problems))


# ---- import の検査 ---------------------------------------------------------------------------


def sources(folder: Path) -> Iterator[tuple[str, str]]:
    """章のモジュールとノートブックの (名前, Python のコード) を順に返す。"""
    for path in sorted(folder.glob("*.py")):
        yield path.name, path.read_text(encoding="utf-8")
    for path in sorted([*folder.glob("notebooks/*.ipynb"), *folder.glob("solutions/*.ipynb")]):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        yield path.name, re.sub(r"^[%!].*$", "", "\n\n".join(code), flags=re.MULTILINE)


def imported(code: str) -> set[tuple[str, str]]:
    """コードの import を (モジュール, そこから取る名前) の集合にする(名前が要らなければ空)。"""
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found |= {(alias.name, "") for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {(node.module, alias.name.strip("*")) for alias in node.names}
    return found


def missing_import(module: str, name: str) -> str | None:
    """`from module import name` ができない理由を返す(できれば None)。"""
    try:
        if not name or hasattr(importlib.import_module(module), name):
            importlib.import_module(module)
        else:
            importlib.import_module(f"{module}.{name}")
    except Exception as error:  # 壊れたパッケージは import の途中で何でも投げる
        return f"{type(error).__name__}: {error}"
    return None


def check_imports(folders: list[Path]) -> int:
    """章のすべての import がこの環境で解決するかを調べる。できないものがあれば 1 を返す。"""
    problems = []
    for folder in folders:
        checked: set[tuple[str, str]] = set()
        for source, code in sources(folder):
            fresh = imported(code) - checked
            checked |= fresh
            for module, name in sorted(fresh):
                if reason := missing_import(module, name):
                    problems.append(f"{folder.name}/{source}: {module} {name}: {reason}")
        print(f"{folder.name}: {len(checked)} 個の import を確かめました", flush=True)
    for problem in problems:
        print(f"× {problem}")
    return int(bool(problems))


def main(arguments: list[str]) -> int:
    """コマンドの入口。"""
    command, *paths = arguments or [""]
    if command == "run" and len(paths) > 1:
        return run_all(Path(paths[0]), [Path(path) for path in paths[1:]])
    if command == "imports" and paths:
        return check_imports([Path(path) for path in paths])
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
