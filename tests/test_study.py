"""study.py: 動かない機械を早く断り、引数を読み、正しい仕事へ道案内する。"""

import ast
import errno
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import study
from studykit import environment
from studykit.installer import Stop

ROOT = Path(study.__file__).resolve().parent


# ---- Python を入れた直後の機械で動く ----


@pytest.mark.parametrize("minor", [8, 9, 10])
def test_old_pythons_can_parse_it(minor: int):
    ast.parse((ROOT / "study.py").read_text(encoding="utf-8"), feature_version=(3, minor))


@pytest.mark.parametrize("name", ["study.py", "studykit/environment.py", "studykit/installer.py"])
def test_only_the_standard_library_is_needed(name: str):
    tree = ast.parse((ROOT / name).read_text(encoding="utf-8"))
    found = {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    found |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    allowed = sys.stdlib_module_names | {"studykit"}
    assert {module for module in found if module.split(".")[0] not in allowed} == set()


def pretend(code: str, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """`code` で機械の様子を偽ってから、新しい Python で study.py を動かす。"""
    start = (
        f"import sys, runpy; sys.argv[:] = {['study.py', *arguments]!r}\n{code}\n"
        f"runpy.run_path({str(ROOT / 'study.py')!r}, run_name='__main__')"
    )
    return subprocess.run(
        [sys.executable, "-P", "-c", start],
        env=os.environ | env,
        capture_output=True,
        encoding=env.get("PYTHONIOENCODING", "utf-8"),
        check=False,
    )


def test_too_old_python_is_told_before_anything_else():
    done = pretend("sys.version_info = (3, 9, 18, 'final', 0); sys.path[:] = sys.path[1:]", "run")
    assert done.returncode == 1
    assert done.stderr.startswith("× Python 3.9 は古すぎます\n  理由: ")
    assert "3.11 から 3.14" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """動く機械(Apple シリコンの macOS 15、Python 3.13)のふり。"""
    fake = SimpleNamespace(
        version_info=(3, 13, 1),
        maxsize=2**63 - 1,
        platform="darwin",
        argv=["study.py", "run", "02"],
    )
    monkeypatch.setattr(study, "sys", fake)
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    monkeypatch.setattr(platform, "mac_ver", lambda: ("15.1", ("", "", ""), "arm64"))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    return fake


@pytest.mark.parametrize("version", [(3, 11, 0), (3, 12, 3), (3, 14, 9)])
def test_supported_machines(machine: SimpleNamespace, version: tuple[int, ...]):
    machine.version_info = version
    assert study.unsupported() is None


@pytest.mark.parametrize(
    ("version", "word"),
    [((3, 10, 13), "古すぎます"), ((2, 7, 18), "古すぎます"), ((3, 15, 0), "新し")],
)
def test_unsupported_pythons(machine: SimpleNamespace, version: tuple[int, ...], word: str):
    machine.version_info = version
    what, why, then = study.unsupported() or ("", "", "")
    assert word in what
    assert "3.11 から 3.14" in why
    assert "python.org" in then


def test_a_newer_python_at_hand_is_named(machine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch):
    machine.version_info = (3, 9, 0)
    monkeypatch.setattr(shutil, "which", lambda name: name if name == "python3.12" else None)
    assert (study.unsupported() or [""])[-1].endswith(": python3.12 study.py run 02")
    machine.platform = "win32"
    assert "py -0" in (study.unsupported() or [""])[-1]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"maxsize": 2**31 - 1}, "32 ビット"),
        ({"machine": "x86_64"}, "Intel の Mac"),
        ({"mac_ver": "13.6.1"}, "macOS 13.6.1"),
        ({"platform": "win32", "machine": "ARM64"}, "Windows on Arm"),
    ],
)
def test_machines_without_pytorch_are_refused(
    machine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], word: str
):
    machine.__dict__.update({k: v for k, v in change.items() if k in ("maxsize", "platform")})
    if "machine" in change:
        monkeypatch.setattr(platform, "machine", lambda: change["machine"])
    if "mac_ver" in change:
        monkeypatch.setattr(platform, "mac_ver", lambda: (change["mac_ver"], ("", "", ""), ""))
    refusal = study.unsupported()
    assert refusal is not None
    assert word in refusal[0]
    assert all(refusal)


@pytest.mark.parametrize(("system", "name"), [("win32", "AMD64"), ("linux", "aarch64")])
def test_neighbours_of_the_refused_machines_work(
    machine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, system: str, name: str
):
    machine.platform = system
    monkeypatch.setattr(platform, "machine", lambda: name)
    assert study.unsupported() is None


def test_refusal_stops_the_program():
    done = pretend("import platform; sys.platform = 'darwin'; platform.machine = lambda: 'x86_64'")
    assert done.returncode == 1
    assert "Intel の Mac" in done.stderr


# ---- 使い方 ----


@pytest.mark.parametrize("arguments", [[], ["help"], ["--help"], ["run", "--help"]])
def test_help_is_japanese_and_complete(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    assert study.main(arguments) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("使い方: ")
    assert all(re.search(rf"^  {name}\b", shown, re.MULTILINE) for name in study.COMMANDS)


@pytest.mark.parametrize("encoding", ["cp932", "ascii"])
def test_narrow_consoles_do_not_break_it(encoding: str):
    done = pretend("", PYTHONIOENCODING=encoding, PYTHONUTF8="0")
    assert done.returncode == 0, done.stderr
    assert "run 02" in done.stdout
    assert encoding == "ascii" or "使い方" in done.stdout


def test_called_from_another_directory(tmp_path: Path):
    command = [sys.executable, str(ROOT / "study.py"), "run", "99"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, encoding="utf-8", check=False,
        env=os.environ | {"PYTHONUTF8": "1"},
    )  # fmt: skip
    assert done.returncode == 1
    chapters = "、".join(path.name[-2:] for path in sorted(ROOT.glob("chapter[0-9][0-9]")))
    assert done.stdout == f"× 99 という章はありません\n  理由: いまある章は: {chapters}\n"


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["なに"], "なに というコマンドはありません"),
        (["run"], "章の番号"),
        (["lab"], "章の番号"),
        (["lab", "--port"], "章の番号"),
        (["run", "2.3"], "2.3 という章はありません"),
        (["run", "chapter99"], "chapter99 という章"),
        (["run", "02", "--quick"], "知らないオプションです: --quick"),
        (["run", "02", "--out"], "--out には値が要ります"),
        (["test", "--fast=1"], "知らないオプション"),
        (["start"], "節の番号"),
        (["start", "2"], "節の番号"),
        (["start", "2.3", "2.4"], "節の番号"),
        (["start", "../2.3"], "節の番号"),
        (["start", "2.99"], "2.99 節のノートブックは"),
        (["log", "A.1"], "appendix という章"),
        (["bench", "99"], "99 という章"),
    ],
)
def test_mistakes_are_answered_kindly(
    arguments: list[str], word: str, capsys: pytest.CaptureFixture[str]
):
    assert study.main(arguments) == 1
    shown = capsys.readouterr().out
    assert shown.startswith("× ")
    assert word in shown.replace("A という", "appendix という")


def test_parse_reads_flags_options_and_words():
    words, given = study.parse(["02", "--cpu", "--out", "a b", "x"], ("--cpu",), ("--out",))
    assert (words, given) == (["02", "x"], {"--cpu": True, "--out": "a b"})
    assert study.parse(["--out=a=b"], (), ("--out",)) == ([], {"--out": "a=b"})


# ---- 小さなリポジトリーで ----


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """章が二つある小さなリポジトリー。環境を作らず、呼ばれた Python の引数を記録する。"""
    root = tmp_path / "本 棚"
    for name in ("chapter02/notebooks", "chapter02/notes", "chapter03", "docs", "tests/chapter02"):
        (root / name).mkdir(parents=True)
    for name in ("chapter02", "chapter03"):
        (root / name / "requirements.txt").write_text("-e ..\n", encoding="utf-8")
    for name in ("2.10_x", "2.3_bpe", "2.3.1_more"):
        text = '"[ノート](../notes/2.3.md)"'
        (root / "chapter02/notebooks" / f"{name}.ipynb").write_text(text, encoding="utf-8")
    shutil.copy(ROOT / "docs" / "study_log_template.md", root / "docs")
    for module in (study, environment):
        monkeypatch.setattr(module, "ROOT", root)
    monkeypatch.setattr("studykit.installer.ROOT", root)
    monkeypatch.setattr(environment, "ensure_base", lambda dev=False, cpu=False: root / ".venv")
    venvs = (root / "chapter02" / ".venv", root / ".venv")
    monkeypatch.setattr(environment, "ensure_chapter", lambda *given: venvs)
    return root


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """call に渡った (仮想環境の親, Python の引数...) の記録。"""
    seen: list[tuple[str, ...]] = []

    def record(venv: Path, *words: str, cwd: Any = None, **more: str) -> int:
        seen.append((venv.parent.name, *words))
        return 0

    monkeypatch.setattr(study, "call", record)
    return seen


@pytest.mark.parametrize("words", [["02"], ["2"], ["chapter02"]])
def test_chapters_may_be_named_in_three_ways(house: Path, words: list[str]):
    assert [folder.name for folder in study.choose(words)] == ["chapter02"]


def test_all_chapters(house: Path):
    for words in ([], ["all"]):
        assert [folder.name for folder in study.choose(words)] == ["chapter02", "chapter03"]
    assert study.choose(["03", "02"])[0].name == "chapter03"


def test_run_executes_every_notebook_and_prints_the_claims(
    house: Path, calls: list[tuple[str, ...]]
):
    assert study.main(["run", "02"]) == 0
    data, runner, claims = calls
    assert data[1:] == ("-m", "shared.datasets", "fetch")
    assert runner[:5] == (
        "chapter02", "-m", "studykit.runner", "run", str(house / "build/run/chapter02"),
    )  # fmt: skip
    names = [Path(word).name for word in runner[5:]]
    assert names == ["2.3_bpe.ipynb", "2.3.1_more.ipynb", "2.10_x.ipynb"]
    assert claims[1:] == ("-m", "shared.claims", "02")


def test_run_saves_where_the_reader_says(
    house: Path, calls: list[tuple[str, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert study.main(["run", "02", "--out", "結果"]) == 0
    assert calls[1][4] == str(tmp_path / "結果" / "chapter02")


@pytest.mark.parametrize("failing", ["shared.datasets", "studykit.runner", "shared.claims"])
def test_run_fails_when_a_notebook_or_the_claims_fail(
    house: Path, monkeypatch: pytest.MonkeyPatch, failing: str
):
    """データが揃わなくても、ノートブックが動くなら失敗ではない。"""
    monkeypatch.setattr(study, "call", lambda venv, *words, **more: int(failing in words))
    assert study.main(["run", "02"]) == (0 if failing == "shared.datasets" else 1)


def test_chapter_without_notebooks(house: Path, capsys: pytest.CaptureFixture[str]):
    assert study.main(["run", "03"]) == 1
    assert "まだノートブックがありません" in capsys.readouterr().out


def test_lab_opens_the_repository_at_the_chapter(house: Path, calls: list[tuple[str, ...]]):
    assert study.main(["lab", "02", "--port", "9999"]) == 0
    (words,) = calls
    assert words[:3] == ("chapter02", "-m", "jupyterlab")
    assert f"--ServerApp.root_dir={house}" in words
    assert f"--FileContentsManager.preferred_dir={house / 'chapter02'}" in words
    assert words[-2:] == ("--port", "9999")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["claims", "--measure", "x", "--seeds", "3"], ["shared.claims", "--measure", "x"]),
        (["data", "verify"], ["shared.datasets", "verify"]),
        (["progress"], ["shared.learning", "progress"]),
    ],
)
def test_other_commands_are_passed_on(
    house: Path, calls: list[tuple[str, ...]], arguments: list[str], words: list[str]
):
    assert study.main(arguments) == 0
    assert list(calls[0][2 : 2 + len(words)]) == words


def test_start_copies_once_and_repairs_links(house: Path, capsys: pytest.CaptureFixture[str]):
    assert study.main(["start", "2.3"]) == 0
    mine = house / "my" / "chapter02"
    assert sorted(path.name for path in mine.iterdir()) == ["2.3.1_more.ipynb", "2.3_bpe.ipynb"]
    copy = mine / "2.3_bpe.ipynb"
    link = re.search(r"\]\((.*)\)", copy.read_text(encoding="utf-8"))
    assert link is not None
    assert (mine / link[1]).resolve() == house / "chapter02/notes/2.3.md"
    copy.write_text("書きかけ", encoding="utf-8")
    assert study.main(["start", "2.3"]) == 0
    assert copy.read_text(encoding="utf-8") == "書きかけ"
    assert "もうあるので、そのままにしました" in capsys.readouterr().out


def test_notebooks_of_a_section_may_carry_letters(house: Path):
    for name in ("3.3b_multi_head", "3.3a_attention", "3.10_last", "3.3.1_x"):
        path = house / "chapter03/notebooks" / f"{name}.ipynb"
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}", encoding="utf-8")
    found = [path.stem for path in study.notebooks(house / "chapter03")]
    assert found == ["3.3a_attention", "3.3b_multi_head", "3.3.1_x", "3.10_last"]
    assert study.main(["start", "3.3a"]) == 0
    assert [path.stem for path in (house / "my/chapter03").iterdir()] == ["3.3a_attention"]


def test_log_is_made_once_from_the_template(house: Path, capsys: pytest.CaptureFixture[str]):
    note = house / "chapter02/notes/2.3.md"
    note.write_text("# 2.3 バイト対符号化\n\n要約", encoding="utf-8")
    assert study.main(["log", "2.3"]) == 0
    log = house / "logs" / "2.3.md"
    text = log.read_text(encoding="utf-8")
    assert text.startswith("# 2.3 バイト対符号化\n")
    assert re.search(r"日付: 20\d\d-\d\d-\d\d", text)
    assert not re.search(r"\{\w+\}", text)
    log.write_text("書きかけ", encoding="utf-8")
    assert study.main(["log", "2.3"]) == 0
    assert log.read_text(encoding="utf-8") == "書きかけ"
    assert "続きを書いてください" in capsys.readouterr().out


def test_existing_files_are_never_overwritten(tmp_path: Path):
    study._write_new(tmp_path / "a", "一")
    with pytest.raises(FileExistsError):
        study._write_new(tmp_path / "a", "二")


def test_bench_runs_the_programs_that_use_the_chapter(house: Path, calls: list[tuple[str, ...]]):
    assert study.main(["bench"]) == 1
    (house / "benchmarks").mkdir()
    programs = {"bpe": "chapter02 __main__", "vit": "chapter03 __main__", "peer": "chapter02"}
    for name, text in programs.items():
        (house / "benchmarks" / f"{name}.py").write_text(text, encoding="utf-8")
    assert study.main(["bench", "02"]) == 0
    assert [words[-1] for words in calls] == ["benchmarks.bpe"]
    assert study.main(["bench"]) == 0
    assert [words[-1] for words in calls[1:]] == ["benchmarks.bpe", "benchmarks.vit"]


# ---- 検査 ----


def names_of(house: Path, *arguments: Any) -> list[str]:
    return [name for name, _ in study.test_steps(study.choose([]), *arguments)]


def test_full_test_has_every_step_in_order(house: Path):
    assert names_of(house, False, False) == [
        "ruff check", "ruff format", "basedpyright", "import の向き", "データ", "単体テスト",
        "家の規則", "ノートブック", "主張の表",
    ]  # fmt: skip
    steps = dict(study.test_steps(study.choose([]), False, False))
    notebooks = " ".join(steps["ノートブック"])
    for option in ("--nbval ", "--nbval-current-env", "-n 2 --dist loadfile", "cell-timeout=300"):
        assert option in notebooks
    assert notebooks.endswith("chapter02/notebooks")
    assert "not slow" not in steps["単体テスト"]


def test_fast_test_leaves_out_what_is_slow(house: Path):
    names = names_of(house, False, True)
    assert "ノートブック" not in names
    assert "データ" not in names
    assert "家の規則" in names
    assert "not slow" in dict(study.test_steps(study.choose([]), False, True))["単体テスト"]


def test_one_chapter_is_tested_alone(house: Path):
    (house / "tour.ipynb").touch()
    steps = dict(study.test_steps(study.choose(["02"]), True, False))
    assert steps["ruff check"][-1] == "chapter02"
    assert steps["単体テスト"][-1] == "tests/chapter02"
    assert steps["ノートブック"][-1] == "chapter02/notebooks"
    assert "単体テスト" not in dict(study.test_steps(study.choose(["03"]), True, False))
    assert dict(study.test_steps([], False, False))["ノートブック"][-1] == "tour.ipynb"


def test_every_step_runs_and_one_failure_is_enough(
    house: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    ran = []

    def record(venv: Path, *words: str, **more: str) -> int:
        ran.append(words)
        return 3 if "basedpyright" in words else 0

    monkeypatch.setattr(study, "call", record)
    assert study.main(["test"]) == 1
    assert len(ran) == 9
    shown = capsys.readouterr().out
    assert re.search(r"^  ×     0 秒  basedpyright$", shown, re.MULTILINE)
    assert re.search(r"^  ○     0 秒  主張の表$", shown, re.MULTILINE)
    assert shown.endswith("× 通らなかった検査: basedpyright\n")


def test_equal_requirements_share_one_isolated_environment(
    house: Path, monkeypatch: pytest.MonkeyPatch, calls: list[tuple[str, ...]]
):
    made = []
    monkeypatch.setattr(
        environment, "install", lambda venv, folders, **more: made.append((folders, more))
    )
    assert study.main(["test", "--isolated"]) == 0
    assert len(made) == 1
    assert made[0][1]["constrained"] is False
    assert [Path(word).name for word in calls[0][-2:]] == ["chapter02", "chapter03"]
    (house / "chapter03" / "requirements.txt").write_text("x\n-e ..\n", encoding="utf-8")
    assert study.main(["test", "--isolated"]) == 0
    assert len(made) == 3


# ---- 途中で止まる ----


def raising(error: BaseException):
    def command(arguments: list[str]) -> int:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (Stop("だめ", "なぜ", "こう"), 1, ["× だめ", "理由: なぜ", "次に: こう"]),
        (KeyboardInterrupt(), 130, ["中断しました", "もう一度"]),
        (OSError(errno.ENOSPC, "空きなし", "f"), 1, ["ディスクの空きがありません", "空きなし(f)"]),
        (OSError(errno.EROFS, "読むだけ", "f"), 1, ["書き込めない場所です", "--out"]),
        (PermissionError(errno.EACCES, "だめ", "f"), 1, ["書き込めない場所です"]),
        (FileNotFoundError(errno.ENOENT, "ない", "f"), 1, ["ファイルを扱えませんでした", "doctor"]),
    ],
)
def test_every_ending_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    words: list[str],
):
    monkeypatch.setitem(study.COMMANDS, "doctor", raising(error))
    assert study.main(["doctor"]) == code
    shown = capsys.readouterr().out
    assert all(word in shown for word in words)


@pytest.mark.skipif(os.name == "nt", reason="POSIX のシグナル")
def test_interrupt_waits_for_the_child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
):
    """Ctrl-C は端末の全員に届く。子が片づけを終える前に study.py が先に消えてはならない。"""
    child = (
        "import os, signal, time, pathlib\n"
        "try:\n    os.kill(os.getppid(), signal.SIGINT); time.sleep(30)\n"
        "except BaseException: pass\n"
    )
    tidy = "import os, signal, time; os.kill(os.getppid(), 2); time.sleep(1); open('片づけた', 'w')"
    monkeypatch.setattr(study, "python_of", lambda venv: Path(sys.executable))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # 背景で走ると無視されている
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    with pytest.raises(KeyboardInterrupt):
        study.call(tmp_path, "-c", tidy, cwd=tmp_path)
    assert (tmp_path / "片づけた").exists()
    twice = child.replace(
        "time.sleep(30)", "time.sleep(1); os.kill(os.getppid(), 2); time.sleep(30)"
    )
    with pytest.raises(KeyboardInterrupt):
        study.call(tmp_path, "-c", twice, cwd=tmp_path)


def test_doctor_changes_nothing(
    house: Path, calls: list[tuple[str, ...]], capsys: pytest.CaptureFixture[str]
):
    before = sorted(house.rglob("*"))
    assert study.main(["doctor"]) == 0
    assert sorted(house.rglob("*")) == before
    shown = capsys.readouterr().out
    assert shown.startswith("Python 3.")
    assert shown.count("まだありません") == 3
