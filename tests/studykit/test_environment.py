"""studykit.environment: 環境を作り、使い回し、壊れたら直し、読者のものには触らない。

pip の代わりに呼び出しを記録するだけの関数を置き、venv は本物を作る。
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from studykit import environment
from studykit.environment import read_mark
from studykit.installer import Stop, python_of, site_of

BASE_PYTHON = getattr(sys, "_base_executable", sys.executable)


class House:
    """小さなリポジトリーと、記録するだけの pip。"""

    def __init__(self, root: Path) -> None:
        self.root, self.base = root, root / ".venv"
        self.chapter = root / "chapter02"
        self.calls: list[tuple[list[str], Path]] = []
        self.during: Callable[[], None] = lambda: None

    def lay(self) -> None:
        for name in ("chapter02", "chapter03", "shared", "chapter04"):
            (self.root / name).mkdir(parents=True)
        for name in ("chapter02", "chapter03"):
            self.write(f"{name}/requirements.txt", f"# {name}\n-e ..\n")
        self.write("shared/__init__.py", "")
        self.write("constraints.txt", "torch==1.2.3\n")
        self.write(
            "pyproject.toml", '[project]\ndependencies=["a"]\noptional-dependencies.dev=["b"]'
        )

    def write(self, name: str, text: str) -> None:
        (self.root / name).write_text(text, encoding="utf-8")

    def pip(self, venv: Path, words: list[str], folder: Path) -> None:
        self.calls.append((words, folder))
        self.during()
        (site_of(venv) / "from_base.py").write_text("", encoding="utf-8")

    @property
    def installs(self) -> int:
        return len(self.calls)


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    house = House(tmp_path / "置き 場所" / "本")
    house.lay()
    make = environment._make

    def without_pip(venv: Path, prompt: str, *options: str) -> None:
        make(venv, prompt, *dict.fromkeys([*options, "--without-pip"]))
        if "--without-pip" not in options:
            (site_of(venv) / "pip.py").write_text("", encoding="utf-8")

    monkeypatch.setattr(environment, "ROOT", house.root)
    monkeypatch.setattr("studykit.installer.ROOT", house.root)
    monkeypatch.setattr(environment, "_make", without_pip)
    monkeypatch.setattr(environment, "pip_install", house.pip)
    monkeypatch.setattr(environment, "plan_torch", lambda venv, cpu: ([], 1))
    return house


def output(venv: Path, code: str) -> str:
    command = [str(python_of(venv)), "-I", "-c", code]  # 今いるフォルダーからは読まない
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)
    return done.stdout.strip()


def test_chapters_are_those_with_requirements(house: House):
    assert [folder.name for folder in environment.chapters()] == ["chapter02", "chapter03"]
    (house.root / "appendix").mkdir()
    house.write("appendix/requirements.txt", "")
    assert [f.name for f in environment.chapters()] == ["chapter02", "chapter03", "appendix"]


def test_base_is_made_once_from_all_chapters_inside_a_chapter(house: House):
    assert environment.ensure_base() == house.base
    (words, folder), *more = house.calls
    assert not more
    assert folder == house.chapter  # `-e ..` が解決されるように
    assert words[:2] == ["-c", str(house.root / "constraints.txt")]
    chapters = ("chapter02", "chapter03")
    files = [word for c in chapters for word in ("-r", str(house.root / c / "requirements.txt"))]
    assert words[2:] == files
    environment.ensure_base()
    assert house.installs == 1


def test_jupyterlab_speaks_japanese_without_touching_the_readers_settings(house: House):
    environment.ensure_base()
    path = house.base / "share/jupyter/lab/settings/overrides.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    assert settings["@jupyterlab/translation-extension:plugin"] == {"locale": "ja_JP"}


@pytest.mark.parametrize("changed", ["chapter03/requirements.txt", "constraints.txt"])
def test_changed_needs_are_installed_into_the_same_environment(house: House, changed: str):
    environment.ensure_base()
    (house.base / "残る").touch()
    house.write(changed, "torch==9.9.9\n")
    environment.ensure_base()
    assert house.installs == 2
    assert (house.base / "残る").exists()


def test_project_dependencies_count_but_tool_settings_do_not(house: House):
    environment.ensure_base()
    text = (house.root / "pyproject.toml").read_text(encoding="utf-8")
    house.write("pyproject.toml", text + "\n[tool.ruff]\nline-length = 99\n")
    environment.ensure_base()
    assert house.installs == 1
    for old, new in (('["a"]', '["a2"]'), ('["b"]', '["b2"]')):
        text = text.replace(old, new)
        house.write("pyproject.toml", text)
        environment.ensure_base()
    assert house.installs == 3


def test_dev_tools_are_added_in_place_and_stay(house: House):
    environment.ensure_base()
    (house.base / "残る").touch()
    environment.ensure_base(dev=True)
    assert house.calls[-1][0][-2:] == ["-e", "..[dev]"]
    assert (house.base / "残る").exists()
    environment.ensure_base()
    assert house.installs == 2
    house.write("constraints.txt", "")
    environment.ensure_base()
    assert house.calls[-1][0][-2:] == ["-e", "..[dev]"]


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("before", [False, True])
def test_interrupted_setup_is_started_afresh(house: House, before: bool):
    """最初の用意でも、版の入れ替えでも、途中で止まった環境は信用しない。"""
    if before:
        environment.ensure_base()
        house.write("constraints.txt", "torch==2\n")
    house.during = interrupt
    with pytest.raises(KeyboardInterrupt):
        environment.ensure_base()
    (house.base / "中途半端").touch()
    house.during = lambda: None
    environment.ensure_base()
    assert not (house.base / "中途半端").exists()
    assert environment.ensure_base() == house.base
    assert house.installs == 2 + before


def test_setup_interrupted_before_python_exists_is_started_afresh(house: House):
    house.base.mkdir()
    environment.write_mark(house.base, environment.UNFINISHED)
    environment.ensure_base()
    assert environment.works(house.base)


def lose_python(house: House) -> None:
    python_of(house.base).unlink()


def replace_python(house: House) -> None:
    python_of(house.base).unlink()
    python_of(house.base).write_text("#!/bin/sh\nexit 3\n", encoding="utf-8")
    python_of(house.base).chmod(0o755)


def lose_pip(house: House) -> None:
    (site_of(house.base) / "pip.py").unlink()


def garble_mark(house: House) -> None:
    (house.base / environment.MARK).write_text("{", encoding="utf-8")


def other_python(house: House) -> None:
    mark = read_mark(house.base) or {}
    environment.write_mark(house.base, mark | {"python": "3.10"})


@pytest.mark.parametrize("harm", [lose_python, replace_python, lose_pip, garble_mark, other_python])
def test_broken_environment_is_rebuilt(
    house: House, harm: Callable[[House], None], capsys: pytest.CaptureFixture[str]
):
    environment.ensure_base()
    (house.base / "古い").touch()
    harm(house)
    environment.ensure_base()
    assert environment.works(house.base)
    assert not (house.base / "古い").exists()
    assert house.installs == 2
    assert "作り直します" in capsys.readouterr().out


def test_moved_checkout_is_rebuilt(house: House, monkeypatch: pytest.MonkeyPatch):
    environment.ensure_base()
    (house.base / "古い").touch()
    moved = house.root.with_name("引っ越し先")
    house.root.rename(moved)
    monkeypatch.setattr(environment, "ROOT", moved)
    environment.ensure_base()
    assert house.installs == 2
    assert not (moved / ".venv" / "古い").exists()  # scripts の中の古いパスも残さない
    assert (read_mark(moved / ".venv") or {})["root"] == str(moved)


def test_cpu_build_is_remembered_and_replaces_the_other(house: House):
    environment.ensure_base()
    (house.base / "古い").touch()
    environment.ensure_base(cpu=True)
    assert not (house.base / "古い").exists()
    environment.ensure_base()
    assert house.installs == 2


def test_cpu_torch_goes_first(house: House, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(environment, "plan_torch", lambda venv, cpu: (["torch-first"], 1))
    environment.ensure_base(cpu=True)
    assert house.calls[0][0] == ["torch-first"]
    assert house.installs == 2


def test_environment_of_the_reader_is_left_alone(house: House):
    house.base.mkdir()
    (house.base / "大事").touch()
    with pytest.raises(Stop, match=r"\.venv は study\.py が作った環境ではありません"):
        environment.ensure_base()
    assert (house.base / "大事").exists()
    assert not house.calls


def test_chapter_borrows_from_the_base(house: House):
    venv, packages = environment.ensure_chapter(house.chapter)
    assert (venv, packages) == (house.chapter / ".venv", house.base)
    code = "import from_base, shared, sys; print(from_base.__file__, shared.__file__, sys.prefix)"
    expected = [site_of(house.base) / "from_base.py", house.root / "shared/__init__.py", venv]
    assert output(venv, code) == " ".join(map(str, expected))
    assert house.installs == 1
    (venv / "残る").touch()
    environment.ensure_chapter(house.chapter)
    assert (venv / "残る").exists()


def test_chapter_is_named_for_kernel_pickers(house: House):
    venv, _ = environment.ensure_chapter(house.chapter)
    spec = json.loads((venv / "share/jupyter/kernels/python3/kernel.json").read_text("utf-8"))
    assert spec["display_name"] == "chapter02"
    assert spec["argv"][:3] == ["python", "-m", "ipykernel_launcher"]
    assert "prompt = 'chapter02'" in (venv / "pyvenv.cfg").read_text(encoding="utf-8")


def test_paths_in_pth_files_are_relative_and_ascii(house: House):
    """cp932 の Windows で、日本語のパスを UTF-8 で書いた .pth は Python を起動できなくする。"""

    def editable() -> None:
        path = site_of(house.base) / "_genai_from_papers_notes.pth"
        path.write_text(str(house.root), encoding="utf-8")

    house.during = editable
    venv, _ = environment.ensure_chapter(house.chapter)
    for site in (site_of(venv), site_of(house.base)):
        for path in site.glob("*genai*.pth"):
            assert path.read_text(encoding="utf-8").isascii(), path
            assert "置き" not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("harm", ["python", "base", "mark"])
def test_broken_chapter_environment_is_rebuilt(house: House, harm: str):
    venv, _ = environment.ensure_chapter(house.chapter)
    if harm == "python":
        python_of(venv).unlink()
    elif harm == "base":
        (site_of(venv) / "genai_notes.pth").unlink()
    else:
        environment.write_mark(venv, environment.UNFINISHED)
    environment.ensure_chapter(house.chapter)
    assert output(venv, "import from_base, shared") == ""
    assert house.installs == 1


def test_full_chapter_environment_stands_alone_and_stays(house: House):
    environment.ensure_chapter(house.chapter)
    venv, packages = environment.ensure_chapter(house.chapter, full=True)
    assert venv == packages == house.chapter / ".venv"
    assert house.calls[-1][0][2:] == ["-r", str(house.chapter / "requirements.txt")]
    assert environment.ensure_chapter(house.chapter) == (venv, venv)
    assert house.installs == 2


def test_chapter_environment_made_by_hand_is_used(house: House):
    venv = house.chapter / ".venv"
    subprocess.run([BASE_PYTHON, "-m", "venv", "--without-pip", str(venv)], check=True)
    with pytest.raises(Stop, match="手で作った環境"):
        environment.ensure_chapter(house.chapter)
    for name in ("nbclient", "nbconvert", "ipykernel"):
        (site_of(venv) / f"{name}.py").touch()
    (site_of(venv) / "shared").mkdir()
    (site_of(venv) / "shared" / "runner.py").touch()
    assert environment.ensure_chapter(house.chapter) == (venv, venv)
    assert not house.calls
    assert not house.base.exists()


def test_isolated_environment_ignores_constraints(house: House, tmp_path: Path):
    environment.install(tmp_path / "v", [house.chapter], prompt="x", constrained=False)
    assert "-c" not in house.calls[0][0]


def test_missing_ensurepip_names_the_apt_package(house: House, monkeypatch: pytest.MonkeyPatch):
    find = environment.importlib.util.find_spec

    def without_ensurepip(name: str, *rest: Any) -> Any:
        return None if name == "ensurepip" else find(name, *rest)

    monkeypatch.setattr(environment.importlib.util, "find_spec", without_ensurepip)
    with pytest.raises(Stop, match=r"sudo apt install python3\.\d+-venv"):
        environment.ensure_base()
    assert not house.base.exists()


@pytest.mark.skipif(os.name == "nt", reason="シェルスクリプトを Python の代わりに置く")
def test_venv_module_that_fails_is_explained(house: House, monkeypatch: pytest.MonkeyPatch):
    broken = house.root / "python"
    broken.write_text(
        "#!/bin/sh\necho '[Errno 28] No space left on device'; exit 1\n", encoding="utf-8"
    )
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "_base_executable", str(broken))
    with pytest.raises(Stop, match="ディスクの空きがありません"):
        environment.ensure_base()


def test_too_little_space_is_said_before_the_download(
    house: House, monkeypatch: pytest.MonkeyPatch
):
    usage = shutil.disk_usage(house.root)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**8))
    monkeypatch.setattr(environment, "plan_torch", lambda venv, cpu: ([], 350))
    with pytest.raises(Stop, match=r"空きは 0\.1 GB、要るのは約 1\.7 GB"):
        environment.ensure_base()
    assert not house.calls


def test_environment_in_use_that_cannot_be_removed(house: House, monkeypatch: pytest.MonkeyPatch):
    def refuse(path: Path) -> None:
        raise PermissionError(13, "使用中", str(path))

    environment.ensure_base()
    lose_python(house)
    monkeypatch.setattr(shutil, "rmtree", refuse)
    with pytest.raises(Stop, match="JupyterLab と VSCode を閉じて"):
        environment.ensure_base()


def test_two_setups_wait_for_each_other(tmp_path: Path):
    code = (
        "import sys\nfrom studykit import environment as e\n"
        "handle = open(e.__file__, 'rb')\nsys.exit(e._lock(handle.fileno()))"
    )
    root = Path(environment.__file__).parent.parent
    with environment.only_one():
        assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 1


def test_waiting_is_announced_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    answers = iter([False, False, True])
    monkeypatch.setattr(environment, "_lock", lambda descriptor: next(answers))
    monkeypatch.setattr(environment.time, "sleep", lambda seconds: None)
    with environment.only_one():
        assert capsys.readouterr().out.count("終わるのを待ちます") == 1


def test_jupyter_parts_come_from_the_chapter_first(tmp_path: Path):
    env = environment.jupyter_env(tmp_path / "章", tmp_path / "土台", EXTRA="1")
    shares = [str(tmp_path / name / "share" / "jupyter") for name in ("章", "土台")]
    assert env["JUPYTER_PATH"].split(os.pathsep) == shares
    assert env["JUPYTERLAB_DIR"] == str(tmp_path / "土台" / "share" / "jupyter" / "lab")
    assert env["EXTRA"] == "1"


def test_report_says_what_to_do(house: House, capsys: pytest.CaptureFixture[str]):
    assert environment.report(house.base)
    assert "まだありません" in capsys.readouterr().out
    environment.ensure_base()
    for name in ("nbclient", "matplotlib"):
        (site_of(house.base) / f"{name}.py").touch()
    torch = "__version__ = '9.9'\nclass cuda:\n    is_available = staticmethod(lambda: False)\n"
    (site_of(house.base) / "torch.py").write_text(torch, encoding="utf-8")
    capsys.readouterr()
    assert environment.report(house.base)
    assert capsys.readouterr().out == "○ .venv: PyTorch 9.9、GPU なし\n"
    lose_python(house)
    assert not environment.report(house.base)
    assert "直すには、.venv を消して" in capsys.readouterr().out
    assert environment.every() == [
        house.base, house.chapter / ".venv", house.root / "chapter03" / ".venv",
    ]  # fmt: skip
