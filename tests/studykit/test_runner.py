"""studykit.runner: ノートブックの実行と、import の検査。"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from studykit import runner

MODULE = [sys.executable, "-m", "studykit.runner"]
ROOT = Path(runner.__file__).parent.parent


def write(path: Path, *sources: str) -> Path:
    """コードセル(「#」で始まる一行だけは Markdown)のノートブックを書く。"""
    cells = [
        new_markdown_cell(text) if text.startswith("# ") else new_code_cell(text)
        for text in sources
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=cells), path)
    return path


def test_copies_are_saved_and_the_original_is_untouched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = write(
        tmp_path / "章 2" / "2.3_例.ipynb", "# 題", "import os\nprint(os.getcwd())", "1 + 1"
    )
    before = path.read_bytes(), sorted(path.parent.iterdir())
    out = tmp_path / "保存先" / "chapter02"
    assert runner.run_all(out, [path]) == 0
    assert (path.read_bytes(), sorted(path.parent.iterdir())) == before
    cells = nbformat.read(out / path.name, as_version=4).cells
    assert cells[1].outputs[0].text.strip() == str(path.parent)  # 元の場所で走る
    assert cells[2].outputs[0].data["text/plain"] == "2"
    html = (out / "2.3_例.html").read_text(encoding="utf-8")
    assert "<h1" in html
    assert 'lang="ja"' in html
    shown = capsys.readouterr().out
    assert "2.3_例: セル 2/2" in shown
    assert str(out) in shown


def test_failing_cell_is_named_and_the_rest_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    bad = write(tmp_path / "a.ipynb", "# 題", "x = 1", "# 途中", "1 / 0", "print('来ない')")
    good = write(tmp_path / "b.ipynb", "try:\n    x\nexcept NameError:\n    print('新しい')")
    out = tmp_path / "out"
    assert runner.run_all(out, [bad, good]) == 1
    shown = capsys.readouterr().out
    assert "× a.ipynb のセル 2(In [2])で失敗: ZeroDivisionError: division by zero" in shown
    assert "a: セル 2/3" in shown
    cells = nbformat.read(out / "a.ipynb", as_version=4).cells
    assert cells[3].outputs[0].ename == "ZeroDivisionError"
    assert not cells[4].outputs
    assert nbformat.read(out / "b.ipynb", as_version=4).cells[0].outputs[0].text == "新しい\n"


def test_cell_that_never_ends_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(runner, "CELL_SECONDS", 1)
    path = write(tmp_path / "a.ipynb", "while True: pass")
    assert "1 秒たっても終わりませんでした" in str(runner.run_notebook(path, tmp_path / "."))


@pytest.mark.slow
def test_kernel_that_dies_is_reported(tmp_path: Path):
    (tmp_path / "out").mkdir()
    path = write(tmp_path / "a.ipynb", "import os", "os._exit(9)")
    problem = runner.run_notebook(path, tmp_path / "out")
    assert problem is not None
    assert "セル 2" in problem
    assert "カーネルが落ちました" in problem


def test_line_is_rewritten_only_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for live, term in ((True, "xterm"), (True, "dumb"), (False, "xterm")):
        monkeypatch.setattr(sys.stdout, "isatty", lambda live=live: live, raising=False)
        monkeypatch.setenv("TERM", term)
        progress = runner._Progress("名前", [new_markdown_cell("#"), new_code_cell("1")])
        progress.started(cell=None, cell_index=0)
        assert progress.current == 0
        progress.started(cell=None, cell_index=1)
        assert progress.current == 1
        shown = capsys.readouterr().out
        assert shown.startswith("\r  名前: セル 0/1") is (live and term != "dumb")
        assert "\n" not in shown


@pytest.mark.skipif(os.name == "nt", reason="POSIX のシグナル")
def test_interrupt_ends_quietly_and_stops_the_kernel(tmp_path: Path):
    write(
        tmp_path / "a.ipynb",
        "import os\nopen('pid', 'w').write(str(os.getpid()))\nwhile True: pass",
    )
    process = subprocess.Popen(
        [*MODULE, "run", str(tmp_path / "out"), str(tmp_path / "a.ipynb")],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE,
    )  # fmt: skip
    while not ((tmp_path / "pid").exists() and (tmp_path / "pid").read_text(encoding="utf-8")):
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in errors
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text(encoding="utf-8")), 0)


# ---- import の検査 ----


def test_imports_are_found_wherever_they_hide():
    code = (
        "import a, b.c as d\nfrom e.f import g, h as i\nfrom . import near\n"
        "def late():\n    from j import *\n    import k\n"
    )
    assert runner.imported(code) == {
        ("a", ""), ("b.c", ""), ("e.f", "g"), ("e.f", "h"), ("j", ""), ("k", ""),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("module", "name"),
    [("os", ""), ("os.path", "join"), ("os", "path"), ("xml", "dom"), ("xml.dom", "minidom")],
)
def test_import_that_resolves(module: str, name: str):
    assert runner.missing_import(module, name) is None


@pytest.mark.parametrize(
    ("module", "name"), [("no_such", ""), ("no_such.sub", "x"), ("os", "no_such"), ("os.no", "")]
)
def test_import_that_does_not_resolve(module: str, name: str):
    assert "ModuleNotFoundError" in str(runner.missing_import(module, name))


def test_package_that_breaks_while_importing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "broken_package.py").write_text("raise RuntimeError('壊れた')", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    assert runner.missing_import("broken_package", "") == "RuntimeError: 壊れた"


def test_modules_notebooks_and_solutions_are_all_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "chapter09"
    write(
        folder / "notebooks" / "9.1_a.ipynb",
        "# import markdown_only",
        "%matplotlib inline\nimport os",
    )
    write(folder / "solutions" / "9.1_a.ipynb", "import no_such_solution")
    (folder / "model.py").write_text("import json, no_such_module", encoding="utf-8")
    assert [name for name, _ in runner.sources(folder)] == [
        "model.py",
        "9.1_a.ipynb",
        "9.1_a.ipynb",
    ]
    assert runner.check_imports([folder]) == 1
    shown = capsys.readouterr().out
    assert "chapter09: 4 個の import" in shown
    assert "× chapter09/model.py: no_such_module" in shown
    assert "× chapter09/9.1_a.ipynb: no_such_solution" in shown
    assert shown.count("×") == 2


# ---- コマンド ----


def test_wrong_use_shows_the_usage(capsys: pytest.CaptureFixture[str]):
    for arguments in ([], ["run"], ["run", "out"], ["imports"], ["なに"]):
        assert runner.main(arguments) == 2
        assert "python -m studykit.runner" in capsys.readouterr().err


def test_commands_reach_their_work(monkeypatch: pytest.MonkeyPatch):
    seen: list[Any] = []
    monkeypatch.setattr(runner, "run_all", lambda *given: seen.append(given) or 0)
    monkeypatch.setattr(runner, "check_imports", lambda given: seen.append(given) or 1)
    assert runner.main(["run", "out", "a", "b"]) == 0
    assert runner.main(["imports", "c"]) == 1
    assert seen == [(Path("out"), [Path("a"), Path("b")]), [Path("c")]]


def test_importing_the_runner_needs_no_packages():
    """章の依存を確かめる環境で、足りないパッケージを報告する前に倒れないように。"""
    code = "import sys, studykit.runner; print({name.split('.')[0] for name in sys.modules})"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, encoding="utf-8", check=True
    )
    assert "shared" in done.stdout
    assert not [
        name for name in ("nbformat", "nbclient", "nbconvert", "torch") if name in done.stdout
    ]
