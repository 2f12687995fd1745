"""仮想環境の中で pip を実行し、進みぐあいを見せ、失敗の原因を読者の言葉で述べる。

標準ライブラリーだけで書いてあり、studykit/environment.py が使う。
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WINDOWS = os.name == "nt"
ME = "py study.py" if WINDOWS else "python3 study.py"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"


class Stop(Exception):
    """何が起きたか・なぜか・次に何をするかを読者に伝えて終わる。"""

    def __init__(self, what: str, why: str = "", then: str = "") -> None:
        labelled = [f"× {what}", why and f"  理由: {why}", then and f"  次に: {then}"]
        super().__init__("\n".join(line for line in labelled if line))


def shown(path: Path) -> str:
    """読者に見せるパス: リポジトリーの中なら、そこからの相対パス。"""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def python_of(venv: Path) -> Path:
    """仮想環境の Python。"""
    return venv / ("Scripts/python.exe" if WINDOWS else "bin/python")


def site_of(venv: Path) -> Path:
    """仮想環境の site-packages。"""
    return Path(sysconfig.get_path("purelib", "venv", {"base": str(venv)}))


def child_env(**more: str) -> dict[str, str]:
    """子プロセスの環境変数: 計算は 1 スレッド、文字は UTF-8、よその Python の設定は除く。"""
    env = dict(os.environ, PYTHONUTF8="1", PIP_USER="0", PIP_DISABLE_PIP_VERSION_CHECK="1")
    env |= {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS", "RAYON")}
    for name in ("PYTHONHOME", "PYTHONPATH", "PIP_TARGET", "PIP_PREFIX", "__PYVENV_LAUNCHER__"):
        env.pop(name, None)
    return env | more


# ---- pip を実行する --------------------------------------------------------------------------


def say(text: str = "") -> None:
    """一行を、ためずに画面に出す。"""
    print(text, flush=True)


def is_live() -> bool:
    """一行を書きかえながら進みぐあいを見せてよい端末か。"""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def pip_install(venv: Path, words: list[str], folder: Path) -> None:
    """`folder` で pip install を実行する。進みぐあいを見せ、全文を build/setup.log に残す。"""
    command = [str(python_of(venv)), "-m", "pip", "install", "--no-input", "--progress-bar", "off"]
    process = subprocess.Popen(
        command + words,
        cwd=folder,
        env=child_env(PYTHONUNBUFFERED="1"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    )
    lines: deque[str] = deque(maxlen=5000)
    with _ticking(lines):
        try:
            for line in process.stdout or ():
                lines.append(line.strip())
                if not is_live() and re.match(r"Downloading .* MB|Installing coll", lines[-1]):
                    say("    " + lines[-1][:90])
        except KeyboardInterrupt:
            process.terminate()
            raise
        finally:
            code = process.wait()
    log = ROOT / "build" / "setup.log"
    with contextlib.suppress(OSError):  # 空きがないときは、画面に出す末尾だけにする
        log.parent.mkdir(exist_ok=True)
        log.write_text("\n".join([*lines, ""]), encoding="utf-8")
    if code != 0:
        raise explain("パッケージを入れられませんでした", lines, f"全文は {shown(log)}")


@contextlib.contextmanager
def _ticking(lines: deque[str]) -> Iterator[None]:
    """経過秒と最後の行を、端末の同じ行に出し続ける。"""
    start, finished = time.monotonic(), threading.Event()

    def tick() -> None:
        while not finished.wait(0.5):
            text = f"  {time.monotonic() - start:4.0f} 秒  {lines[-1] if lines else ''}"
            print("\r" + text[:74].ljust(74), end="", flush=True)
        print("\r" + " " * 76 + "\r", end="", flush=True)

    ticker = threading.Thread(target=tick, daemon=True)
    if is_live():
        ticker.start()
    try:
        yield
    finally:
        finished.set()
        if ticker.is_alive():
            ticker.join()


_CAUSES = (  # (出力に現れる文字列, 理由, 次にすること)
    (
        r"No space left|Errno 28\b|WinError 112\b|not enough space|Disk quota",
        "ディスクの空きがありません",
        "空きを作ってから、",
    ),
    (
        r"CERTIFICATE_VERIFY_FAILED|SSLCertVerification",
        "配布元の証明書を確かめられません(組織のプロキシーなど)",
        "管理者に証明書の設定(環境変数 PIP_CERT)を尋ねてから、",
    ),
    (
        r"NewConnection|Max retries|NameResolution|ConnectTimeout|ReadTimeout|ProxyError"
        r"|ConnectionError|connection broken|Failed to establish|from versions: none",
        "パッケージの配布元に届きません(ネットワーク)",
        "接続を(組織の中なら環境変数 HTTPS_PROXY も)確かめてから、",
    ),
    (
        r"Read-only file system|Permission denied|Errno 13\b|WinError 5\b",
        "書き込めない場所です",
        "書き込めるフォルダーにリポジトリーを写してから、",
    ),
)


def explain(what: str, lines: Iterable[str], where: str = "") -> Stop:
    """pip や venv の出力から原因を見分け、次の一手を添えた Stop を返す。"""
    lines = [line for line in lines if line.strip()]
    text = "\n".join(lines)
    why, then = (
        "原因は下の出力にあります",
        f"{ME} doctor で具合を調べる。直らなければ issue で相談を",
    )
    for pattern, reason, remedy in _CAUSES:
        if re.search(pattern, text):
            why, then = reason, remedy + "もう一度同じコマンド(取得済みのものは再利用します)"
            break
    tail = "".join(f"\n    {line[:160]}" for line in lines[-6:])
    return Stop(what, why, f"{then}\n  出力の末尾:{tail}" + (f"\n  {where}" if where else ""))


# ---- PyTorch の CPU 版 -----------------------------------------------------------------------


def plan_torch(venv: Path, cpu: bool) -> tuple[list[str], int]:
    """(CPU 版の PyTorch を先に入れる pip の引数, 全体のおよその MB) を決める。"""
    if not sys.platform.startswith("linux"):  # ふつうに入る PyTorch が、はじめから小さい
        return [], 270 if WINDOWS else 230
    if _pip_finds_cpu_torch(venv):
        return [], 350
    if cpu and _answers(CPU_INDEX + "/torch/"):
        return ["--index-url", CPU_INDEX, "--no-deps", _torch_pin()], 350
    if cpu:
        say("  PyTorch の CPU 版の配布元に届かないので、ふつうの配布元から入れます。")
    elif not (shutil.which("nvidia-smi") or Path("/proc/driver/nvidia").exists()):
        say("  NVIDIA の GPU が見当たりません。CPU 版の PyTorch なら、約 350 MB で済みます。")
        say(f"  そうするには、Ctrl-C で止めて: {ME} setup --cpu")
    return [], 2700


def _torch_pin() -> str:
    """constraints.txt にある PyTorch の版("torch==2.13.0" の形)。"""
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    match = re.search(r"^torch==[\w.]+", text, re.MULTILINE)
    return match[0] if match else "torch"


def _pip_finds_cpu_torch(venv: Path) -> bool:
    """pip がそのままで CPU 版の PyTorch を選ぶか(手元の wheel や、組織の中の配布元など)。"""
    command = [python_of(venv), "-m", "pip", "--timeout", "10", "--retries", "0", "install", "-q"]
    command += ["--dry-run", "--ignore-installed", "--no-deps", "--report", "-", _torch_pin()]
    try:
        done = subprocess.run(
            command, env=child_env(), capture_output=True, timeout=120, check=False
        )
        return json.loads(done.stdout)["install"][0]["metadata"]["version"].endswith("+cpu")
    except (subprocess.TimeoutExpired, ValueError, LookupError, TypeError):
        return False


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except (OSError, ValueError):
        return False
