"""依存の固定表と CI: 読者・CI・手で作った環境が同じ版を使い、CI が全部の OS と Python で走る。"""

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

import study

ROOT = Path(study.__file__).resolve().parent
REQUIREMENTS = sorted(ROOT.glob("chapter[0-9][0-9]/requirements.txt"))


def lines(path: Path) -> list[str]:
    """空行と注釈を除いた行。"""
    text = path.read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def constrained() -> dict[str, str]:
    """固定表の {名前: 版}(どの Python と OS でも一つに揃えてある)。"""
    found = [line.partition(";")[0].strip().split("==") for line in lines(ROOT / "constraints.txt")]
    return {normal(name): version for name, version in found}


@pytest.mark.parametrize("path", REQUIREMENTS, ids=lambda path: path.parent.name)
def test_chapter_pins_what_the_constraints_pin(path: Path):
    *pins, last = lines(path)
    assert last == "-e .."
    assert pins == sorted(pins, key=lambda pin: pin.split("==")[0].lower())
    for pin in pins:
        name, version = pin.split("==")
        assert constrained()[normal(name)] == version, "python .ci/make_constraints.py で作り直す"


def test_every_declared_dependency_is_constrained():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    for requirement in declared:
        name, minimum = requirement.split(">=")
        chosen = constrained()[normal(name)]
        assert list(map(int, chosen.split(".")[:2])) >= list(map(int, minimum.split(".")))


def test_constraints_pin_one_version_each_and_name_no_host():
    entries = lines(ROOT / "constraints.txt")
    names = [normal(re.split("==|;", entry)[0].strip()) for entry in entries]
    assert len(names) == len(set(names))
    for entry in entries:
        assert re.fullmatch(r"[\w.-]+==[\w.]+( ; .+)?", entry), entry
        assert "://" not in entry
        assert "+" not in entry  # 手元の CPU 版などの印


def test_all_supported_pythons_agree_everywhere():
    supported = [f"3.{minor}" for minor in range(study.OLDEST[1], study.NEWEST[1] + 1)]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["requires-python"] == f">={supported[0]},<3.{study.NEWEST[1] + 1}"
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    matrix = workflow["jobs"]["test"]["strategy"]["matrix"]
    assert matrix["python"] == supported
    assert [name.split("-")[0] for name in matrix["os"]] == ["ubuntu", "macos", "windows"]
    script = (ROOT / ".ci/make_constraints.py").read_text(encoding="utf-8")
    assert all(f'"{version}"' in script for version in supported)


def test_workflow_calls_only_commands_that_exist():
    workflow = (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    commands = re.findall(r"study\.py (\w+)", workflow)
    assert {"setup", "test"} <= set(commands) <= set(study.COMMANDS)


@pytest.mark.skipif(os.name == "nt", reason="bash で走らせる")
def test_ci_runs_both_tests_and_remembers_a_failure(tmp_path: Path):
    (tmp_path / ".ci").mkdir()
    script = tmp_path / ".ci" / "run"
    script.write_bytes((ROOT / ".ci/run").read_bytes())
    python = tmp_path / "bin" / "python3"
    python.parent.mkdir()
    python.write_text('#!/bin/sh\necho "$PWD $*"; cat; [ "$*" != "$FAIL" ]\n', encoding="utf-8")
    python.chmod(0o755)
    assert os.access(ROOT / ".ci/run", os.X_OK)
    for fail in ("", "study.py test", "study.py test --isolated"):
        env = os.environ | {"PATH": f"{python.parent}:{os.environ['PATH']}", "FAIL": fail}
        done = subprocess.run(
            ["bash", script], env=env, cwd="/", capture_output=True, encoding="utf-8", check=False
        )
        assert done.returncode == int(bool(fail))
        assert f"{tmp_path} study.py test\n" in done.stdout
        assert f"{tmp_path} study.py test --isolated\n" in done.stdout
        assert re.search(r"#### study\.py test --isolated: \d+ 秒", done.stdout)
