"""study.py: この学習リポジトリーの、ただ一つの入口。

    python3 study.py run 02        (Windows では py study.py run 02)

標準ライブラリーだけで書いてあり、Python を入れた直後の機械で動く。ここにあるのは環境の用意と道案内だけで、
パッケージが要る仕事は、用意した環境の Python が shared/ のモジュールとして行う。
Python 3.9 でも構文解析でき、「古すぎます」と言える。
"""

import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import urllib.request
from collections import deque
from contextlib import contextmanager
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parent
BASE = ROOT / ".venv"
MARK = "genai-notes.json"  # study.py が作った環境の印。無い環境は読者のものなので、消さない
LOG = ROOT / "build" / "setup.log"
WINDOWS, LINUX = os.name == "nt", sys.platform.startswith("linux")
ME = "py study.py" if WINDOWS else "python3 study.py"
OLDEST, NEWEST = (3, 11), (3, 14)
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
TORCH = "torch==2.13.0"
OVERRIDES = {  # JupyterLab の既定値。読者自身の設定があれば、そちらが勝つ
    "@jupyterlab/translation-extension:plugin": {"locale": "ja_JP"},
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
}
HELP = """使い方: {me} コマンド

はじめに
  run 02            第2章のノートブックをすべて実行する(環境もデータも自動で用意する)
  lab 02            第2章を JupyterLab で開く(日本語メニュー)
  start 2.3         2.3 節のノートブックを my/chapter02/ に写す(自由に書きかえるため)
  log 2.3           2.3 節の学習ログ logs/2.3.md を作る
  progress          解いた演習・説明できた問い・学習ログの数を見る

環境とデータ
  setup [02|all]    環境を作る。--cpu: PyTorch の CPU 版(Linux)  --full: 章ごとに独立した環境
  data fetch        データを先に取っておく(data list: 一覧、data verify: 検査)
  doctor            環境の具合を調べる

確かめる
  test [02]         すべての検査。--fast: 2 分以内の検査だけ  --isolated: 章ごとの依存だけで動くか
  claims [02]       論文の主張と判定。--measure ID --seeds 3: 測り直す
  bench [02]        既存の実装と速さを比べる

run には --out フォルダー で保存先を、lab には JupyterLab のオプションを付けられます。
"""


class Stop(Exception):
    """何が起きたか・なぜか・次に何を打つかを読者に伝えて終わる。"""

    def __init__(self, what, why="", then=""):
        lines = ["× " + what]
        lines += ["  理由: " + why] if why else []
        lines += ["  次に: " + then] if then else []
        super().__init__("\n".join(lines))


# ---- この機械で動くか ------------------------------------------------------------------------


def unsupported():
    """この Python と機械で動かない理由を Stop として返す(動くなら None)。"""
    version, machine = sys.version_info[:2], platform.machine().lower()
    wanted = "%d.%d から %d.%d" % (OLDEST + NEWEST)
    if not OLDEST <= version <= NEWEST:
        age = "古すぎます" if version < OLDEST else "新しすぎ、PyTorch がまだ対応していません"
        names = ["python3.%d" % minor for minor in range(NEWEST[1], OLDEST[1] - 1, -1)]
        found = [name for name in names if shutil.which(name)]
        then = "https://www.python.org/downloads/ から %s を入れて、もう一度" % wanted
        if found:
            then = "この機械にある %s を使って: %s study.py" % (found[0], found[0])
        elif WINDOWS:
            then += "(py -0 で、入っている版の一覧が出ます。py -3.13 study.py のように選べます)"
        return Stop("Python %d.%d は%s" % (version + (age,)), "要るのは Python " + wanted, then)
    if sys.maxsize < 2**32:
        return Stop(
            "32 ビット版の Python では動きません",
            "PyTorch は 64 ビット版だけを配布しています",
            "https://www.python.org/downloads/ から 64 ビット版の Python を入れて、もう一度",
        )
    if sys.platform == "darwin" and machine == "x86_64":
        return Stop(
            "Intel の Mac(または Rosetta の Python)では動きません",
            "PyTorch は 2.3 以降、Intel の Mac 向けを配布していません",
            "Apple シリコンの Mac なら arm64 版の Python を。Intel の Mac なら GitHub Codespaces で",
        )
    if sys.platform == "darwin" and int(platform.mac_ver()[0].split(".")[0] or 14) < 14:
        return Stop(
            "macOS %s では動きません" % platform.mac_ver()[0],
            "PyTorch は macOS 14 以降だけに対応しています",
            "macOS を更新するか、GitHub Codespaces で",
        )
    if WINDOWS and "arm" in machine:
        return Stop(
            "Windows on Arm(arm64 版の Python)では動きません",
            "PyTorch のこの版は、arm64 の Windows 向けを配布していません",
            "WSL(Ubuntu)の中か、GitHub Codespaces で",
        )
    return None


def require_venv_module():
    """仮想環境を作る部品(ensurepip)が Python に付いているか。"""
    if importlib.util.find_spec("venv") and importlib.util.find_spec("ensurepip"):
        return
    name = "python%d.%d-venv" % sys.version_info[:2]
    raise Stop(
        "仮想環境を作る部品(venv と ensurepip)がありません",
        "Ubuntu や Debian では、Python 本体と別のパッケージになっています",
        "sudo apt update && sudo apt install %s   そのあと、もう一度同じコマンド" % name,
    )


# ---- 小さな道具 ------------------------------------------------------------------------------


def say(text=""):
    print(text, flush=True)


def is_live():
    """一行を書きかえながら進みぐあいを見せてよい端末か。"""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def parse(arguments, flags=(), options=()):
    """引数を (位置引数, {フラグ: True, オプション: 値}) に分ける。"""
    words, given, queue = [], {}, list(arguments)
    while queue:
        word = queue.pop(0)
        name, equals, value = word.partition("=")
        if name in flags and not equals:
            given[name] = True
        elif name in options and (equals or queue):
            given[name] = value if equals else queue.pop(0)
        elif word.startswith("-"):
            what = "%s には値が要ります" if name in options else "知らないオプションです: %s"
            raise Stop(what % word, then=ME + " で、使い方の一覧が出ます")
        else:
            words.append(word)
    return words, given


def chapters():
    """章のフォルダー(requirements.txt があるもの)を順に返す。"""
    found = sorted(ROOT.glob("chapter[0-9][0-9]")) + [ROOT / "appendix"]
    return [folder for folder in found if (folder / "requirements.txt").is_file()]


def choose(words):
    """"02"・"2"・"chapter02" の並びを章のフォルダーにする。省略と "all" は全章。"""
    if not words or words == ["all"]:
        return chapters()
    known = {folder.name: folder for folder in chapters()}
    chosen = []
    for word in words:
        name = "chapter%02d" % int(word) if re.fullmatch("[0-9]+", word) else word
        if name not in known:
            raise Stop(
                "%s という章はありません" % word,
                "いまあるのは " + ("、".join(n.replace("chapter", "") for n in known) or "まだなし"),
                ME + " run 02 のように番号で",
            )
        chosen.append(known[name])
    return chosen


def section(words, command):
    """"2.3" を (章のフォルダー, 節の番号) にする。"""
    match = re.fullmatch(r"([0-9]+|A)\.[0-9]+(?:\.[0-9]+)?", words[0] if len(words) == 1 else "")
    if not match:
        raise Stop("節の番号を一つ書いてください", then="%s %s 2.3" % (ME, command))
    return choose(["appendix" if match.group(1) == "A" else match.group(1)])[0], words[0]


@contextmanager
def only_one():
    """環境を作る study.py を同時に一つだけにする(OS のロックなので、途中で落ちても残らない)。"""
    with open(__file__, "rb") as handle:
        waiting = False
        while True:
            try:
                if WINDOWS:
                    import msvcrt

                    handle.seek(2**30)
                    msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)
                else:
                    import fcntl

                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if not waiting:
                    say("別の study.py が環境を作っています。終わるのを待ちます(Ctrl-C で中止)。")
                waiting = True
                time.sleep(1)
        yield


# ---- 仮想環境 --------------------------------------------------------------------------------


def python_of(venv):
    return venv / ("Scripts/python.exe" if WINDOWS else "bin/python")


def site_of(venv):
    """仮想環境の site-packages。"""
    return Path(sysconfig.get_path("purelib", "venv", {"base": str(venv)}))


def child_env(**more):
    """子プロセスの環境変数: 一スレッド、UTF-8、よその Python の設定を持ち込まない。"""
    env = dict(os.environ, PYTHONUTF8="1", PIP_USER="0", PIP_DISABLE_PIP_VERSION_CHECK="1")
    for name in ("OMP", "MKL", "OPENBLAS", "RAYON"):
        env[name + "_NUM_THREADS"] = "1"
    for name in ("PYTHONHOME", "PYTHONPATH", "PIP_TARGET", "PIP_PREFIX", "__PYVENV_LAUNCHER__"):
        env.pop(name, None)
    env.update(more)
    return env


def mark_of(venv):
    """study.py が付けた印を読む(無ければ None、壊れていれば空)。"""
    try:
        return json.loads((venv / MARK).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        return {}


def mark(venv, **state):
    (venv / MARK).write_text(json.dumps(state, ensure_ascii=False), encoding="utf-8")


def works(venv, code="import pip"):
    """仮想環境の Python が動き、いまの Python と同じ版で、`code` も動くか。"""
    check = "import sys; assert sys.version_info[:2] == %r; %s" % (tuple(sys.version_info[:2]), code)
    try:
        done = subprocess.run(
            [str(python_of(venv)), "-c", check], env=child_env(), capture_output=True, check=False
        )
    except OSError:
        return False
    return done.returncode == 0


def fingerprint(folders, **more):
    """環境を作り直すべきかを決める要約: 依存の宣言・Python の版・置き場所。"""
    import tomllib  # Python 3.11 から

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = [project.get("dependencies"), project.get("optional-dependencies")]
    files = [folder / "requirements.txt" for folder in folders] + [ROOT / "constraints.txt"]
    declared += [path.read_text(encoding="utf-8") for path in files]
    digest = hashlib.sha256(json.dumps(declared).encode()).hexdigest()
    return dict(more, digest=digest, python=sys.version.split()[0], root=str(ROOT))


def make_venv(venv, prompt, *options):
    """空の仮想環境を作る。先に印を付けるので、途中で止まっても study.py のものと分かる。"""
    remove(venv)
    venv.mkdir(parents=True)
    mark(venv, state="作りかけ")
    interpreter = getattr(sys, "_base_executable", None) or sys.executable
    command = [interpreter, "-m", "venv", "--prompt", prompt, *options, str(venv)]
    done = subprocess.run(command, env=child_env(), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise explain_failure("仮想環境を作れませんでした", (done.stdout + done.stderr).splitlines())


def remove(venv):
    try:
        if venv.is_symlink() or venv.is_file():
            venv.unlink()
        elif venv.exists():
            shutil.rmtree(venv)
    except OSError as error:
        raise Stop(
            "古い環境 %s を消せません" % venv.relative_to(ROOT),
            "使っているプログラムがあるか、権限がありません(%s)" % error,
            "JupyterLab と VSCode を閉じてから、もう一度同じコマンド",
        ) from None


def pip(python, *arguments, cwd=ROOT):
    """pip install を実行する。進みぐあいを一行で見せ、全文を build/setup.log に残す。"""
    command = [str(python), "-m", "pip", "install", "--no-input", "--progress-bar", "off"]
    process = subprocess.Popen(
        [*command, *arguments], cwd=str(cwd), env=child_env(PYTHONUNBUFFERED="1"),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        encoding="utf-8", errors="replace",
    )  # fmt: skip
    lines, start, finished = deque(maxlen=4000), time.monotonic(), threading.Event()

    def tick():
        while not finished.wait(0.5):
            last = lines[-1].strip() if lines else ""
            seconds = "  %4d 秒  " % (time.monotonic() - start)
            print("\r" + (seconds + last)[:76].ljust(76), end="", flush=True)

    ticker = threading.Thread(target=tick, daemon=True)
    if is_live():
        ticker.start()
    try:
        for line in process.stdout:
            lines.append(line.rstrip())
            if not is_live() and re.match("Downloading .* MB|Installing collected", line.strip()):
                say("    " + line.strip()[:100])
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        raise
    finally:
        finished.set()
        if is_live():
            ticker.join()
            print("\r" + " " * 76 + "\r", end="")
    code = process.wait()
    try:
        LOG.parent.mkdir(exist_ok=True)
        LOG.write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError:
        pass  # 空きがないときは、画面に出す末尾だけにする
    if code != 0:
        raise explain_failure("パッケージを入れられませんでした", lines)


def explain_failure(what, lines):
    """pip などの出力から原因を見分け、次の一手とともに Stop にする。"""
    text = "\n".join(lines)
    again = "もう一度同じコマンド(取得済みのものは再利用します)"
    if re.search(r"No space left|Errno 28|WinError 112|Disk quota", text):
        free = shutil.disk_usage(str(ROOT)).free / 1e9
        why, then = "ディスクの空きがありません(残り %.1f GB)" % free, "空きを作ってから、" + again
    elif "CERTIFICATE_VERIFY_FAILED" in text:
        why = "配布元の証明書を確かめられません(社内のプロキシーなど)"
        then = "管理者に証明書の設定(環境変数 PIP_CERT)を尋ねてから、" + again
    elif re.search(r"NewConnection|Max retries|NameResolution|Connect\w*Timeout|ReadTimeout|"
                   r"ProxyError|ConnectionError|connection broken|Failed to establish", text):
        why = "パッケージの配布元に届きません(ネットワーク)"
        then = "接続(社内なら環境変数 HTTPS_PROXY も)を確かめてから、" + again
    elif re.search(r"Read-only file system|Permission denied|Errno 13|WinError 5\b", text):
        why, then = "書き込めない場所があります", "書き込めるフォルダーにリポジトリーを写してから、" + again
    else:
        why, then = "下の出力を見てください", "%s doctor で具合を調べ、直らなければ issue で" % ME
    tail = "\n".join("    " + line[:200] for line in list(lines)[-8:])
    kept = "\n  全文: %s" % LOG.relative_to(ROOT) if LOG.exists() else ""
    return Stop(what, why, then + "\n  出力の末尾:\n" + tail + kept)


# ---- PyTorch の CPU 版と、ダウンロードの大きさ -------------------------------------------------


def has_gpu():
    return bool(shutil.which("nvidia-smi")) or Path("/proc/driver/nvidia").exists()


def pip_finds_cpu_torch(python):
    """pip がそのままで CPU 版の PyTorch を選ぶか(手元の wheel や社内の配布元など)。"""
    command = [str(python), "-m", "pip", "--timeout", "10", "--retries", "0", "install", "--quiet"]
    command += ["--dry-run", "--ignore-installed", "--no-deps", "--report", "-", TORCH]
    try:
        done = subprocess.run(
            command, env=child_env(), capture_output=True, timeout=120, check=False
        )
        return json.loads(done.stdout)["install"][0]["metadata"]["version"].endswith("+cpu")
    except (subprocess.TimeoutExpired, ValueError, LookupError):
        return False


def cpu_index_answers():
    try:
        with urllib.request.urlopen(CPU_INDEX + "/torch/", timeout=5):
            return True
    except (OSError, ValueError):
        return False


def torch_arguments(python, cpu):
    """(CPU 版の PyTorch を先に入れる pip の引数, 全体のおよその MB) を決め、読者に知らせる。"""
    if not LINUX:  # Windows と macOS では、ふつうに入る PyTorch が CPU(macOS は GPU も)用
        return [], 270 if WINDOWS else 230
    if pip_finds_cpu_torch(python):
        return [], 350
    if cpu and cpu_index_answers():
        return ["--index-url", CPU_INDEX, "--no-deps", TORCH], 350
    if cpu:
        say("  PyTorch の CPU 版の配布元に届かないので、ふつうの配布元から入れます。")
    elif not has_gpu():
        say("  NVIDIA の GPU が見当たりません。CPU 版の PyTorch なら約 350 MB で済みます:")
        say("    Ctrl-C で止めて  %s setup --cpu" % ME)
    return [], 2700


def build(venv, folders, prompt, dev=False, cpu=False, constrained=True):
    """`folders` の requirements.txt から、ふつうの仮想環境を作る(または今の宣言に合わせる)。"""
    require_venv_module()
    name = venv.relative_to(ROOT) if ROOT in venv.parents else venv.name
    if not works(venv):
        say("仮想環境 %s を作ります(Python %s)。" % (name, platform.python_version()))
        make_venv(venv, prompt)
    python = python_of(venv)
    mark(venv, state="作りかけ")  # ここで止まったら、次回は最初から作り直す
    first, megabytes = torch_arguments(python, cpu)
    megabytes += 95 if dev else 0
    free = shutil.disk_usage(str(venv)).free / 1e6
    if free < megabytes * 3.5:
        raise Stop(
            "ディスクの空きが足りません",
            "空き %.1f GB、要るのは約 %.1f GB" % (free / 1e3, megabytes * 3.5 / 1e3),
            "空きを作ってから、もう一度同じコマンド",
        )
    say("  パッケージを入れます。ダウンロードは最大で約 %d MB です(取得済みのものは省きます)。" % megabytes)
    constraints = ["-c", str(ROOT / "constraints.txt")] if constrained else []
    if first:
        pip(python, *first)
    wanted = [word for folder in folders for word in ("-r", str(folder / "requirements.txt"))]
    # requirements.txt の最後の行 `-e ..` は今いるフォルダーから解決されるので、章の中で実行する
    pip(python, *constraints, *wanted, *(["-e", "..[dev]"] if dev else []), cwd=folders[0])
    link(venv, ROOT)
    overrides = venv / "share" / "jupyter" / "lab" / "settings" / "overrides.json"
    overrides.parent.mkdir(parents=True, exist_ok=True)
    overrides.write_text(json.dumps(OVERRIDES), encoding="utf-8")
    return python


def link(venv, *targets):
    """`targets` を import できるようにする .pth を書く。

    相対パスなので ASCII で済む(日本語のパスを書くと、cp932 の Windows の Python 3.11-3.12 は読めない)。
    -e が書いた絶対パスの .pth も、同じ理由で置きかえる。
    """
    site = site_of(venv)
    text = "".join(os.path.relpath(str(target), str(site)) + "\n" for target in targets)
    for path in [site / "genai_notes.pth", *site.glob("_genai_from_papers_notes.pth")]:
        path.write_text(text, encoding="utf-8")


def ensure(venv, folders, prompt, dev=False, cpu=False):
    """環境が宣言どおりならそのまま使い、古い・壊れた・作りかけのものは直して、Python を返す。"""
    with only_one():
        old = mark_of(venv)
        if old is None and venv.exists():
            raise Stop(
                "%s は study.py が作った環境ではありません" % venv.relative_to(ROOT),
                "中身が分からないので、触らずにおきます",
                "名前を変えるか消してから、もう一度同じコマンド",
            )
        old = old or {}
        dev, cpu = dev or old.get("dev", False), cpu or old.get("cpu", False)
        wanted = fingerprint(folders, dev=dev, cpu=cpu)
        if old == wanted and works(venv):
            return python_of(venv)
        same_place = [old.get(k) == wanted[k] for k in ("python", "root", "cpu")]
        if venv.exists() and not (all(same_place) and works(venv)):
            say("環境 %s は、作りかけか、壊れているか、別の条件で作ったものです。作り直します。"
                % venv.relative_to(ROOT))
            remove(venv)
        start = time.monotonic()
        python = build(venv, folders, prompt, dev, cpu)
        mark(venv, **wanted)
        say("  できました(%d 秒)。" % (time.monotonic() - start))
        return python


def ensure_base(dev=False, cpu=False):
    """全章の土台になる環境 .venv を用意する。"""
    if not chapters():
        raise Stop("章がまだありません", then="リポジトリーを clone し直してください")
    return ensure(BASE, chapters(), "genai-notes", dev, cpu)


def ensure_chapter(folder, cpu=False, full=False):
    """章の環境を用意し、(章の Python, パッケージが入っている環境) を返す。

    ふつうは土台の site-packages を .pth で借りる薄い環境。--full か手で作った環境は、それ自身。
    """
    venv = folder / ".venv"
    old = mark_of(venv)
    if old is None and venv.exists():
        if not works(venv, "import nbclient, nbconvert, ipykernel, shared.runner"):
            raise Stop(
                "%s/.venv(手で作った環境)では動かせません" % folder.name,
                "パッケージが足りないか、Python の版が違います",
                "その環境で pip install -r requirements.txt、またはフォルダーを消してもう一度",
            )
        return python_of(venv), venv
    if full or (old or {}).get("kind") == "full":
        with only_one():
            if (old or {}).get("kind") != "full":
                remove(venv)
                venv.mkdir()
                mark(venv, kind="full")
        return ensure(venv, [folder], folder.name, cpu=cpu), venv
    ensure_base(cpu=cpu)
    return venv, BASE
