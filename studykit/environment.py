"""章を動かす仮想環境を作り、直し、見分ける。標準ライブラリーだけで書いてあり、study.py が使う。

土台の環境 .venv に全章のパッケージを一度だけ入れ、章の環境 chapterNN/.venv はそれを .pth で借りる
薄い環境にする。study.py が作った環境には印(`MARK`)を置き、印のない環境は読者のものとして触らない。
"""

import contextlib
import errno
import hashlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from studykit.installer import (
    ME,
    ROOT,
    Stop,
    child_env,
    explain,
    pip_install,
    plan_torch,
    python_of,
    say,
    shown,
    site_of,
)

MARK = "genai-notes.json"
UNFINISHED = {"state": "作りかけ"}
OVERRIDES = {  # JupyterLab の既定値。読者自身の設定があれば、そちらが勝つ
    "@jupyterlab/translation-extension:plugin": {"locale": "ja_JP"},
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
}


def chapters() -> list[Path]:
    """章のフォルダー(requirements.txt があるもの)を順に返す。"""
    found = [*sorted(ROOT.glob("chapter[0-9][0-9]")), ROOT / "appendix"]
    return [folder for folder in found if (folder / "requirements.txt").is_file()]


def jupyter_env(venv: Path, packages: Path, **more: str) -> dict[str, str]:
    """章の環境 `venv` で、`packages` に入っている Jupyter の部品を使うための環境変数。"""
    shares = dict.fromkeys([str(venv / "share" / "jupyter"), str(packages / "share" / "jupyter")])
    return child_env(
        JUPYTER_PATH=os.pathsep.join(shares),
        JUPYTER_CONFIG_PATH=str(packages / "etc" / "jupyter"),
        JUPYTERLAB_DIR=str(packages / "share" / "jupyter" / "lab"),
        **more,
    )


# ---- 環境を見分ける --------------------------------------------------------------------------


def read_mark(venv: Path) -> dict[str, Any] | None:
    """study.py が付けた印を読む(印がなければ None、読めなければ空)。"""
    try:
        return json.loads((venv / MARK).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}


def write_mark(venv: Path, state: dict[str, Any]) -> None:
    """環境の印を書く。"""
    (venv / MARK).write_text(json.dumps(state, ensure_ascii=False), encoding="utf-8")


def python_version() -> str:
    """いま動いている Python の版("3.12" の形)。"""
    return ".".join(map(str, sys.version_info[:2]))


def works(venv: Path, code: str = "import pip") -> bool:
    """仮想環境の Python が動き、いまの Python と同じ版で、`code` も動くか。"""
    check = f"import sys; assert sys.version_info[:2] == {tuple(sys.version_info[:2])}; {code}"
    with contextlib.suppress(OSError):
        command = [python_of(venv), "-c", check]
        done = subprocess.run(command, env=child_env(), capture_output=True, check=False)
        return done.returncode == 0
    return False


def fingerprint(folders: Iterable[Path]) -> dict[str, str]:
    """環境を作り直すべきかを決める要約: 依存の宣言、Python の版、置き場所。"""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = [project.get("dependencies"), project.get("optional-dependencies")]
    files = [*(folder / "requirements.txt" for folder in folders), ROOT / "constraints.txt"]
    declared += [path.read_text(encoding="utf-8") for path in files]
    digest = hashlib.sha256(json.dumps(declared).encode()).hexdigest()
    return {"digest": digest, "python": python_version(), "root": str(ROOT)}


@contextlib.contextmanager
def only_one() -> Iterator[None]:
    """環境を作るプロセスを同時に一つだけにする(OS のロックなので、落ちても残らない)。"""
    with Path(__file__).open("rb") as handle:
        waiting = False
        while not _lock(handle.fileno()):
            if not waiting:
                say("別の study.py が環境を作っています。終わるのを待ちます(Ctrl-C で中止)。")
            waiting = True
            time.sleep(1)
        yield


def _lock(descriptor: int) -> bool:
    with contextlib.suppress(OSError):
        if sys.platform == "win32":
            import msvcrt  # noqa: PLC0415

            os.lseek(descriptor, 2**30, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl  # noqa: PLC0415

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def every() -> list[Path]:
    """土台と、すべての章の環境の置き場所。"""
    return [ROOT / ".venv", *(folder / ".venv" for folder in chapters())]


def report(venv: Path) -> bool:
    """環境の具合を一行で述べる。壊れていれば、直し方を添えて False を返す。"""
    if not venv.exists():
        say(f"・ {shown(venv)} はまだありません(run や setup が作ります)")
        return True
    code = "import nbclient, matplotlib, torch; print('PyTorch', torch.__version__, end='、GPU ')"
    code += "; print('あり' if torch.cuda.is_available() else 'なし')"
    try:
        done = subprocess.run(
            [python_of(venv), "-c", code],
            env=child_env(),
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
        sound, detail = done.returncode == 0 and works(venv), done.stdout or done.stderr
    except OSError as error:
        sound, detail = False, str(error)
    say(f"{'○' if sound else '×'} {shown(venv)}: {(detail.splitlines() or [''])[-1]}")
    if not sound:
        say(f"    直すには、{shown(venv)} を消して {ME} setup")
    return sound


# ---- 環境を作る ------------------------------------------------------------------------------


def ensure_base(dev: bool = False, cpu: bool = False) -> Path:
    """全章の土台 .venv を用意し、そのフォルダーを返す。

    `dev` なら検査の道具も入れ、`cpu` なら PyTorch の CPU 版を選ぶ。

    Raises:
        Stop: 用意できないとき。
    """
    return _ensure(ROOT / ".venv", chapters(), prompt="genai-notes", dev=dev, cpu=cpu)


def ensure_chapter(folder: Path, cpu: bool = False, full: bool = False) -> tuple[Path, Path]:
    """章の環境を用意し、(章の環境, パッケージが入っている環境) を返す。

    ふつうは土台を借りる薄い環境。`full` で作った環境と読者が手で作った環境では、二つは同じ。

    Raises:
        Stop: 用意できないとき。
    """
    venv = folder / ".venv"
    mark = read_mark(venv)
    if mark is None and venv.exists():
        if not works(venv, "import nbclient, nbconvert, ipykernel, studykit.runner"):
            raise Stop(
                f"{shown(venv)}(手で作った環境)では動かせません",
                "パッケージが足りないか、Python の版が違います",
                "その環境で pip install -r requirements.txt、またはフォルダーを消してもう一度",
            )
        return venv, venv
    if full or (mark or {}).get("full"):
        if mark and not mark.get("full"):
            _remove(venv)
        return _ensure(venv, [folder], prompt=folder.name, dev=False, cpu=cpu, full=True), venv
    base = ensure_base(cpu=cpu)
    wanted = {"python": python_version(), "borrows": os.path.relpath(base, venv)}
    with only_one():
        if read_mark(venv) != wanted or not works(venv):
            _make(venv, folder.name, "--without-pip")
            _link(venv, site_of(base), ROOT)
            _name_kernel(venv, folder)
            write_mark(venv, wanted)
            say(f"章の環境 {shown(venv)} を作りました(カーネルの名前は {folder.name})。")
    return venv, base


def _ensure(
    venv: Path, folders: list[Path], *, prompt: str, dev: bool, cpu: bool, full: bool = False
) -> Path:
    """ふつうの環境が宣言どおりならそのまま使い、古い・壊れた・作りかけのものは直す。"""
    with only_one():
        old = read_mark(venv)
        if old is None and venv.exists():
            raise Stop(
                f"{shown(venv)} は study.py が作った環境ではありません",
                "読者のものかもしれないので、触らずにおきます",
                "名前を変えるか消してから、もう一度同じコマンド",
            )
        old = old or {}
        dev, cpu = dev or old.get("dev", False), cpu or old.get("cpu", False)
        wanted = fingerprint(folders) | {"dev": dev, "cpu": cpu, "full": full}
        sound = works(venv)
        if sound and old == wanted:
            return venv
        if venv.exists() and not (sound and all(old.get(k) == wanted[k] for k in _KEPT)):
            say(f"環境 {shown(venv)} は作りかけか、壊れているか、条件が違うので、作り直します。")
            _remove(venv)
        start = time.monotonic()
        install(venv, folders, prompt=prompt, dev=dev, cpu=cpu)
        write_mark(venv, wanted)
        say(f"  できました({time.monotonic() - start:.0f} 秒)。")
        return venv


_KEPT = ("python", "root", "cpu", "full")  # これらが同じなら、パッケージの入れ替えだけで済む


def install(
    venv: Path,
    folders: list[Path],
    *,
    prompt: str,
    dev: bool = False,
    cpu: bool = False,
    constrained: bool = True,
) -> None:
    """`folders` の requirements.txt のとおりに `venv` を作る(あれば宣言に合わせる)。

    Raises:
        Stop: 用意できないとき。
    """
    if not works(venv):
        say(f"仮想環境 {shown(venv)} を作ります(Python {platform.python_version()})。")
        _make(venv, prompt)
    write_mark(venv, UNFINISHED)  # ここから先で止まったら、次回は最初から作り直す
    torch_first, megabytes = plan_torch(venv, cpu)
    _require_space(venv, megabytes := megabytes + 95 * dev)
    say(f"  パッケージを入れます。ダウンロードは約 {megabytes} MB です(取得済みのものは省きます)。")
    if torch_first:
        pip_install(venv, torch_first, ROOT)
    # 版を固定しない環境は、import を確かめたら捨てるので、全モジュールのコンパイルは省く
    words = ["-c", str(ROOT / "constraints.txt")] if constrained else ["--no-compile"]
    words += [word for folder in folders for word in ("-r", str(folder / "requirements.txt"))]
    # requirements.txt の最後の行 `-e ..` は今いるフォルダーから解決されるので、章の中で実行する
    pip_install(venv, words + (["-e", "..[dev]"] if dev else []), folders[0])
    _link(venv, ROOT)
    overrides = venv / "share" / "jupyter" / "lab" / "settings" / "overrides.json"
    overrides.parent.mkdir(parents=True, exist_ok=True)
    overrides.write_text(json.dumps(OVERRIDES), encoding="utf-8")


def _make(venv: Path, prompt: str, *options: str) -> None:
    """空の仮想環境を作る。先に印を付けるので、途中で止まっても study.py のものと分かる。"""
    if not (importlib.util.find_spec("venv") and importlib.util.find_spec("ensurepip")):
        raise Stop(
            "仮想環境を作る部品(venv と ensurepip)がありません",
            "Ubuntu や Debian では、Python 本体と別のパッケージになっています",
            f"sudo apt update && sudo apt install python{python_version()}-venv"
            "   そのあと、もう一度同じコマンド",
        )
    _remove(venv)
    venv.mkdir(parents=True)
    write_mark(venv, UNFINISHED)
    python = getattr(sys, "_base_executable", None) or sys.executable
    command = [python, "-m", "venv", "--prompt", prompt, *options, str(venv)]
    done = subprocess.run(command, env=child_env(), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise explain("仮想環境を作れませんでした", (done.stdout + done.stderr).splitlines())


def _remove(venv: Path) -> None:
    try:
        if venv.is_symlink() or venv.is_file():
            venv.unlink()
        elif venv.exists():
            shutil.rmtree(venv)
    except OSError as error:
        if error.errno == errno.EROFS:  # 読むだけの場所であることは study.py が述べる
            raise
        raise Stop(
            f"古い環境 {shown(venv)} を消せません",
            f"使っているプログラムがあるか、権限がありません({error})",
            "JupyterLab と VSCode を閉じてから、もう一度同じコマンド",
        ) from None


def _link(venv: Path, *targets: Path) -> None:
    """`targets` を import できるようにする .pth を書く。

    相対パスなので ASCII で済む(日本語のパスを UTF-8 で書いた .pth を、cp932 の Windows では Python
    3.12 までは読めない)。`-e` が書いた絶対パスの .pth も、同じ理由で置きかえる。
    """
    site = site_of(venv)
    text = "".join(os.path.relpath(target, site) + "\n" for target in targets)
    for path in [site / "genai_notes.pth", *site.glob("_genai_from_papers_notes.pth")]:
        path.write_text(text, encoding="utf-8")


def _name_kernel(venv: Path, folder: Path) -> None:
    """カーネルの一覧で、章の名前が見えるようにする。"""
    kernel = venv / "share" / "jupyter" / "kernels" / "python3" / "kernel.json"
    kernel.parent.mkdir(parents=True)
    argv = ["python", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": argv, "display_name": folder.name, "language": "python"}
    kernel.write_text(json.dumps(spec), encoding="utf-8")


def _require_space(venv: Path, megabytes: int) -> None:
    free, needed = shutil.disk_usage(venv).free / 1e9, 0.9 + megabytes * 2.2 / 1e3  # 展開した分も
    if free < needed:
        raise Stop(
            "ディスクの空きが足りません",
            f"空きは {free:.1f} GB、要るのは約 {needed:.1f} GB です",
            "空きを作ってから、もう一度同じコマンド",
        )
