"""studykit.installer: pip の実行、失敗の説明、PyTorch の CPU 版の選び方。"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from studykit import installer
from studykit.installer import Stop, explain

NETWORK = "ERROR: Could not install packages due to an OSError: "


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        (NETWORK + "[Errno 28] No space left on device", "ディスクの空き"),
        (NETWORK + "[Errno 28] デバイスに空き領域がありません", "ディスクの空き"),
        ("OSError: [WinError 112] ディスクに十分な空き領域がありません。", "ディスクの空き"),
        (
            "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError'\n"
            "ERROR: No matching distribution found for numpy==2.4.6",
            "ネットワーク",
        ),
        ("pip._vendor.urllib3.exceptions.ReadTimeoutError: Read timed out.", "ネットワーク"),
        ("SSLError(SSLCertVerificationError(1, 'CERTIFICATE_VERIFY_FAILED'))", "証明書"),
        (
            "WARNING: Retrying after connection broken by 'SSLError(SSLCertVerificationError)'",
            "証明書",
        ),
        (NETWORK + "[Errno 30] Read-only file system: '/x'", "書き込めない"),
        ("ERROR: No version satisfies hatchling>=1.27 (from versions: none)", "ネットワーク"),
        ("ERROR: No matching distribution found for numpy==0 (from versions: 1.0)", "下の出力"),
        (NETWORK + "[Errno 280] 別の番号", "下の出力"),
    ],
)
def test_causes_are_told_apart(output: str, reason: str):
    message = str(explain("入れられませんでした", output.splitlines(), "全文は log"))
    what, why, then, *rest = message.splitlines()
    assert what == "× 入れられませんでした"
    assert why.startswith("  理由: ")
    assert reason in why
    assert then.startswith("  次に: ")
    assert rest[-1] == "  全文は log"
    assert output.splitlines()[-1][:40] in message


def test_only_the_end_of_a_long_output_is_shown():
    message = str(explain("だめ", [f"行{n}" for n in range(100)]))
    assert "行99" in message
    assert "行93" not in message


def test_stop_leaves_out_what_is_not_known():
    assert str(Stop("だめ")) == "× だめ"
    assert str(Stop("だめ", "なぜ", "こう")) == "× だめ\n  理由: なぜ\n  次に: こう"


# ---- pip を実行する ----


@pytest.fixture
def fake_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`python -m pip` の代わりに tmp_path/pip.py を実行する。"""
    monkeypatch.setattr(installer, "ROOT", tmp_path)
    monkeypatch.setattr(installer, "python_of", lambda venv: Path(sys.executable))
    monkeypatch.setattr(installer, "child_env", lambda **more: {**os.environ, "PYTHONPATH": "."})
    return tmp_path / "pip.py"


def test_pip_runs_in_the_folder_and_keeps_a_log(
    tmp_path: Path, fake_python: Path, capsys: pytest.CaptureFixture[str]
):
    fake_python.write_text(
        "import sys, pathlib\nprint(sys.argv[1:], pathlib.Path.cwd().name)\n"
        "print('Downloading a.whl (1.5 MB)')\nprint('Downloading b.metadata (4 kB)')\n"
        "print('日本語', sys.stdin.read())",
        encoding="utf-8",
    )
    installer.pip_install(tmp_path, ["-r", "名前 空白.txt"], tmp_path)
    assert capsys.readouterr().out == "    Downloading a.whl (1.5 MB)\n"
    log = (tmp_path / "build" / "setup.log").read_text(encoding="utf-8")
    assert "'install', '--no-input', '--progress-bar', 'off', '-r', '名前 空白.txt'" in log
    assert tmp_path.name in log
    assert "日本語" in log


def test_failure_of_pip_is_explained_with_the_log(tmp_path: Path, fake_python: Path):
    fake_python.write_text("print('[Errno 28] No space left on device'); 1 / 0", encoding="utf-8")
    with pytest.raises(Stop, match=r"ディスクの空き[\s\S]*全文は build.setup\.log"):
        installer.pip_install(tmp_path, [], tmp_path)


def test_unwritable_log_does_not_hide_the_reason(tmp_path: Path, fake_python: Path):
    (tmp_path / "build").write_text("フォルダーではない", encoding="utf-8")
    fake_python.write_text("raise SystemExit('Read-only file system')", encoding="utf-8")
    with pytest.raises(Stop, match="書き込めない"):
        installer.pip_install(tmp_path, [], tmp_path)


def test_live_line_is_one_line_without_escape_codes(
    tmp_path: Path,
    fake_python: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr(installer, "is_live", lambda: True)
    fake_python.write_text(
        "import time\nprint('Collecting ' + 'x' * 200, flush=True)\ntime.sleep(1)", encoding="utf-8"
    )
    installer.pip_install(tmp_path, [], tmp_path)
    shown = capsys.readouterr().out
    assert "Collecting xxx" in shown
    assert "\n" not in shown
    assert "\x1b" not in shown
    assert max(map(len, shown.split("\r"))) <= 76


@pytest.mark.parametrize(
    ("tty", "term", "live"), [(True, "xterm", True), (True, "dumb", False), (False, "xterm", False)]
)
def test_live_only_on_a_terminal(monkeypatch: pytest.MonkeyPatch, tty: bool, term: str, live: bool):
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(isatty=lambda: tty))
    monkeypatch.setenv("TERM", term)
    assert installer.is_live() is live


def test_closed_index_is_a_network_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """本物の pip を、誰も聞いていない自分の機械のポートへ向ける。"""
    monkeypatch.setattr(installer, "ROOT", tmp_path)
    monkeypatch.setattr(installer, "python_of", lambda venv: Path(sys.executable))
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    words = ["--index-url", "http://127.0.0.1:9/simple", "--retries", "1", "genai-notes-nothing"]
    with pytest.raises(Stop, match="ネットワーク"):
        installer.pip_install(tmp_path, ["--dry-run", *words], tmp_path)


# ---- 環境変数と場所 ----


def test_children_run_on_one_thread_without_foreign_settings(monkeypatch: pytest.MonkeyPatch):
    for name in ("PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "__PYVENV_LAUNCHER__"):
        monkeypatch.setenv(name, "よそ")
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    env = installer.child_env(NEW="1")
    for name in ("OMP", "MKL", "OPENBLAS", "RAYON"):
        assert env[name + "_NUM_THREADS"] == "1"
    assert not {"PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "__PYVENV_LAUNCHER__"} & env.keys()
    assert (env["PYTHONUTF8"], env["PIP_USER"], env["NEW"]) == ("1", "0", "1")


def test_site_packages_are_where_the_environment_looks(tmp_path: Path):
    venv = tmp_path / "環 境"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    done = subprocess.run(
        [installer.python_of(venv), "-c", code],
        capture_output=True,
        encoding="utf-8",
        env=installer.child_env(),
        check=True,
    )
    assert Path(done.stdout.strip()) == installer.site_of(venv)


# ---- PyTorch の CPU 版 ----


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """機械の様子: OS、pip が CPU 版を選ぶか、CPU 版の配布元に届くか、GPU があるか。"""
    state: dict[str, Any] = {"platform": "linux", "pip": False, "index": True, "gpu": False}
    monkeypatch.setattr(installer, "sys", SimpleNamespace(platform="linux"))
    monkeypatch.setattr(installer, "_pip_finds_cpu_torch", lambda venv: state["pip"])
    monkeypatch.setattr(installer, "_answers", lambda url: state["index"])
    monkeypatch.setattr(shutil, "which", lambda name: name if state["gpu"] else None)
    return state


def test_cpu_build_comes_from_the_public_index(machine: dict[str, Any], tmp_path: Path):
    words, megabytes = installer.plan_torch(tmp_path, cpu=True)
    assert words[:3] == ["--index-url", installer.CPU_INDEX, "--no-deps"]
    assert words[-1].startswith("torch==")
    assert megabytes == 350


def test_unreachable_cpu_index_falls_back_and_says_so(
    machine: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    machine["index"] = False
    assert installer.plan_torch(tmp_path, cpu=True) == ([], 2700)
    assert "届かないので" in capsys.readouterr().out


@pytest.mark.parametrize("cpu", [False, True])
def test_pip_that_finds_a_cpu_build_itself_is_left_alone(
    machine: dict[str, Any], tmp_path: Path, cpu: bool, capsys: pytest.CaptureFixture[str]
):
    machine["pip"] = True
    assert installer.plan_torch(tmp_path, cpu) == ([], 350)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("gpu", [False, True])
def test_cpu_build_is_offered_without_a_gpu(
    machine: dict[str, Any], tmp_path: Path, gpu: bool, capsys: pytest.CaptureFixture[str]
):
    machine["gpu"] = gpu
    assert installer.plan_torch(tmp_path, cpu=False) == ([], 2700)
    offered = "setup --cpu" in capsys.readouterr().out
    assert offered is (not gpu and not Path("/proc/driver/nvidia").exists())


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_other_systems_need_no_choice(
    machine: dict[str, Any], tmp_path: Path, platform: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(installer, "sys", SimpleNamespace(platform=platform))
    words, megabytes = installer.plan_torch(tmp_path, cpu=True)
    assert words == []
    assert megabytes < 300


@pytest.mark.parametrize(
    ("report", "found"),
    [
        ('{"install": [{"metadata": {"version": "2.13.0+cpu"}}]}', True),
        ('{"install": [{"metadata": {"version": "2.13.0"}}]}', False),
        ('{"install": []}', False),
        ("", False),
        ("[]", False),
    ],
)
def test_report_of_pip_decides(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, report: str, found: bool
):
    done = SimpleNamespace(stdout=report.encode())
    monkeypatch.setattr(subprocess, "run", lambda *words, **more: done)
    assert installer._pip_finds_cpu_torch(tmp_path) is found


def test_pip_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def hang(*words: Any, **more: Any) -> None:
        assert more["timeout"] <= 120
        raise subprocess.TimeoutExpired("pip", more["timeout"])

    monkeypatch.setattr(subprocess, "run", hang)
    assert installer._pip_finds_cpu_torch(tmp_path) is False


def test_closed_index_does_not_answer():
    assert installer._answers("http://127.0.0.1:9/") is False


def test_pin_of_torch_is_the_tested_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    assert installer._torch_pin() == "torch==2.13.0"
    monkeypatch.setattr(installer, "ROOT", tmp_path)
    (tmp_path / "constraints.txt").write_text("torchvision==1\n", encoding="utf-8")
    assert installer._torch_pin() == "torch"
