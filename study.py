"""study.py: この学習リポジトリーの、ただ一つの入口。

    python3 study.py run 02        (Windows では py study.py run 02)

標準ライブラリーだけで書いてあり、Python を入れた直後の機械で動く。Python 3.9 でも構文解析でき、
「古すぎます」と言える。仮想環境のことは studykit/environment.py に、パッケージが要る仕事は、用意
した環境の Python が走らせる studykit/runner.py と shared/ のモジュールにある。
"""

import errno
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import date
from functools import partial
from pathlib import Path

OLDEST, NEWEST = (3, 11), (3, 14)
HELP = """使い方: {me} コマンド

はじめに
  run 02            第2章のノートブックをすべて実行する(環境もデータも自動で用意する)
  lab 02            第2章を JupyterLab で開く(日本語メニュー)
  start 2.3         2.3 節のノートブックを my/chapter02/ に写す(自由に書きかえるため)
  log 2.3           2.3 節の学習ログ logs/2.3.md を作る
  progress          解いた演習・説明できた問い・学習ログの数を見る

環境とデータ
  setup [02|all]    環境を作る。--cpu: PyTorch の CPU 版(Linux)、--full: 章ごとに独立した環境
  data fetch        データを先に取っておく(data list: 一覧、data verify: 検査)
  doctor            環境の具合を調べる

確かめる
  test [02]         すべての検査。--fast: 2 分以内の検査、--isolated: 章の依存だけで動くかの検査
  claims [02]       論文の主張と判定。--measure ID --seeds 3: 測り直す
  bench [02]        既存の実装と速さを比べる

run には --out フォルダー で保存先を、lab には JupyterLab のオプションを付けられます。
"""


def unsupported():
    """この Python と機械で動かない理由を (何が, なぜ, 次に) で返す(動くなら None)。"""
    version, machine = tuple(sys.version_info[:2]), platform.machine().lower()
    site = "https://www.python.org/downloads/"
    if not OLDEST <= version <= NEWEST:
        names = ["python3.%d" % minor for minor in (14, 13, 12, 11)]
        found = [name for name in names if shutil.which(name)]
        then = "%s から Python 3.13 を入れて、もう一度" % site
        if sys.platform == "win32":
            then += "(py -0 で、入っている版の一覧が出ます。選ぶには: py -3.13 study.py)"
        elif found:
            then = "この機械にある %s で: %s study.py %s" % (found[0], found[0], _typed())
        return (
            "Python %d.%d は%s" % (*version, "古すぎます" if version < OLDEST else "新しすぎます"),
            "PyTorch などが対応している Python %d.%d から %d.%d が要ります" % (OLDEST + NEWEST),
            then,
        )
    if sys.maxsize < 2**32:
        return (
            "32 ビット版の Python では動きません",
            "PyTorch は 64 ビット版だけを配布しています",
            "%s から 64 ビット版の Python を入れて、もう一度" % site,
        )
    if sys.platform == "darwin" and machine == "x86_64":
        return (
            "Intel の Mac(または Rosetta の中の Python)では動きません",
            "PyTorch は、Intel の Mac 向けの配布を終えています",
            "Apple シリコンなら arm64 版の Python を入れて。Intel の Mac なら GitHub Codespaces で",
        )
    if sys.platform == "darwin" and int(platform.mac_ver()[0].split(".")[0] or 14) < 14:
        return (
            "macOS %s では動きません" % platform.mac_ver()[0],
            "PyTorch が対応しているのは macOS 14 以降です",
            "macOS を新しくするか、GitHub Codespaces で",
        )
    if sys.platform == "win32" and machine.startswith("arm"):
        return (
            "Windows on Arm では動きません",
            "PyTorch のこの版は、arm64 の Windows 向けを配布していません",
            "WSL(Ubuntu)の中か、GitHub Codespaces で",
        )
    return None


def _typed():
    return " ".join(sys.argv[1:])


for stream in (sys.stdout, sys.stderr):
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="replace")  # pyright: ignore
        # cp932 などで表せない文字があっても止まらない
if unsupported():
    sys.exit("× %s\n  理由: %s\n  次に: %s" % unsupported())
sys.path.insert(0, str(Path(__file__).resolve().parent))
from studykit import environment  # noqa: E402
from studykit.installer import ME, ROOT, Stop, child_env, python_of, say, shown  # noqa: E402

# ---- 引数を読む ------------------------------------------------------------------------------


def parse(arguments: list, flags: tuple = (), options: tuple = ()) -> tuple:
    """引数を (位置引数の list, {フラグやオプション: 値}) に分ける。"""
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
            raise Stop(what % word, then="%s で使い方の一覧を見る" % ME)
        else:
            words.append(word)
    return words, given


def choose(words: list) -> list:
    """「02」「2」「chapter02」の並びを章のフォルダーにする。何もないか「all」なら全章。"""
    known = {folder.name: folder for folder in environment.chapters()}
    if not words or words == ["all"]:
        return list(known.values())
    names = ["chapter%02d" % int(word) if word.isdecimal() else word for word in words]
    for word, name in zip(words, names):  # noqa: B905  strict は Python 3.10 から
        if name not in known:
            numbers = "、".join(known).replace("chapter", "")
            raise Stop("%s という章はありません" % word, "いまある章は: " + numbers)
    return [known[name] for name in names]


def section(words: list, command: str) -> tuple:
    """「2.3」や「3.3a」を (章のフォルダー, 節の番号) にする。"""
    text = words[0] if len(words) == 1 else ""
    if not re.fullmatch(r"([0-9]+|A)(\.[0-9]+){1,2}[a-z]?", text):
        raise Stop("節の番号を一つ書いてください", then="%s %s 2.3 のように" % (ME, command))
    number = text.split(".")[0]
    return choose(["appendix" if number == "A" else number])[0], text


def notebooks(folder: Path, number: str = "") -> list:
    """章のノートブック(`number` があれば、その節のもの)を順に返す。"""
    found = folder.glob("notebooks/*.ipynb")
    found = [path for path in found if not number or re.match(number + "(?![0-9])", path.name)]
    return sorted(found, key=_order)


def _order(path: Path) -> tuple:
    """2.10 が 2.9 のあとに、3.3b が 3.3a のあとに来る順。"""
    return list(map(int, re.findall("[0-9]+", path.name.split("_")[0]))), path.name


def call(venv: Path, *words: str, cwd: "Path | str" = ROOT, **more: str) -> int:
    """仮想環境の Python で `python words...` を実行し、終了コードを返す。

    Ctrl-C は子にも届くので、子の後始末を待ってから中断する(もう一度押されたら止める)。
    """
    command = [str(python_of(venv)), *words]
    process, interrupted = subprocess.Popen(command, cwd=str(cwd), env=child_env(**more)), False
    while True:
        try:
            code = process.wait()
            break
        except KeyboardInterrupt:
            if interrupted:
                process.terminate()
            interrupted = True
    if interrupted:
        raise KeyboardInterrupt
    return code


# ---- 読む・動かす ----------------------------------------------------------------------------


def setup(arguments: list) -> int:
    """環境を作る。"""
    words, given = parse(arguments, ("--cpu", "--full"))
    for folder in choose(words):
        environment.ensure_chapter(folder, "--cpu" in given, "--full" in given)
    say("○ 環境の用意ができています。次に: %s run 02、または %s lab 02" % (ME, ME))
    return 0


def run(arguments: list) -> int:
    """章のノートブックをすべて実行する。"""
    words, given = parse(arguments, ("--cpu",), ("--out",))
    if not words:
        raise Stop("章の番号を書いてください", then="%s run 02" % ME)
    failed = 0
    for folder in choose(words):
        found = notebooks(folder)
        if not found:
            raise Stop("%s には、まだノートブックがありません" % folder.name)
        out = Path(given.get("--out") or ROOT / "build" / "run").absolute() / folder.name
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=str(out)).close()  # 書き込めない場所なら、ここで分かる
        venv, packages = environment.ensure_chapter(folder, "--cpu" in given)
        if call(venv, "-m", "shared.datasets", "fetch"):
            say("  (揃わないデータがあります。手元にあるもので続けます)")
        say("%s のノートブック %d 本を、順に実行します。" % (folder.name, len(found)))
        env = environment.jupyter_env(venv, packages)
        failed += call(venv, "-m", "studykit.runner", "run", str(out), *map(str, found), **env)
        say("この章で確かめた主張:")
        failed += call(venv, "-m", "shared.claims", folder.name.replace("chapter", ""))
    return int(failed > 0)


def lab(arguments: list) -> int:
    """章を JupyterLab で開く。章の後の引数は JupyterLab に渡す。"""
    if not arguments or arguments[0].startswith("-"):
        raise Stop("章の番号を書いてください", then="%s lab 02" % ME)
    folder = choose(arguments[:1])[0]
    venv, packages = environment.ensure_chapter(folder)
    say("JupyterLab を開きます。終えるには、この画面で Ctrl-C を 2 回押します。")
    options = ["--log-level=WARN", "--ServerApp.root_dir=%s" % ROOT]
    options += ["--FileContentsManager.preferred_dir=%s" % folder]
    env = environment.jupyter_env(venv, packages)
    return call(venv, "-m", "jupyterlab", *options, *arguments[1:], **env)


def start(arguments: list) -> int:
    """節のノートブックを my/ に写す。読者の書きかけは上書きしない。"""
    folder, number = section(arguments, "start")
    found = notebooks(folder, number)
    if not found:
        raise Stop("%s 節のノートブックは、%s にありません" % (number, folder.name))
    for path in found:
        target = ROOT / "my" / folder.name / path.name
        if target.exists():
            say("%s はもうあるので、そのままにしました。" % shown(target))
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text(encoding="utf-8").replace("](../", "](../../%s/" % folder.name)
        _write_new(target, text)
        say("%s に写しました。自由に書きかえてください。" % shown(target))
    say("開くには: %s lab %s" % (ME, folder.name.replace("chapter", "")))
    return 0


def log(arguments: list) -> int:
    """節の学習ログを雛形から作る。読者の書きかけは上書きしない。"""
    folder, number = section(arguments, "log")
    target, note = ROOT / "logs" / (number + ".md"), folder / "notes" / (number + ".md")
    if target.exists():
        say("%s はもうあるので、そのままにしました。続きを書いてください。" % shown(target))
        return 0
    title = number
    if note.is_file():
        title = note.read_text(encoding="utf-8").splitlines()[0].lstrip("# ") or number
    template = (ROOT / "docs" / "study_log_template.md").read_text(encoding="utf-8")
    for name, value in (("{title}", title), ("{date}", date.today().isoformat())):
        template = template.replace(name, value)
    target.parent.mkdir(exist_ok=True)
    _write_new(target, template)
    say("%s を作りました。書きこんでみましょう。" % shown(target))
    return 0


def _write_new(path: Path, text: str) -> None:
    """すでにあるファイルを決して上書きせずに書く。"""
    with path.open("x", encoding="utf-8", newline="\n") as file:
        file.write(text)


def passed_on(module: str, *first: str, dev: bool = False):
    """引数をそのまま shared のモジュールに渡すコマンドを作る。"""

    def command(arguments: list) -> int:
        return call(environment.ensure_base(dev), "-m", module, *first, *arguments)

    return command


def doctor(arguments: list) -> int:
    """環境の具合を調べて並べる。何も変えない。"""
    parse(arguments)
    say("Python %s(%s)" % (platform.python_version(), sys.executable))
    say("%s、空き容量 %.1f GB" % (platform.platform(), shutil.disk_usage(str(ROOT)).free / 1e9))
    say("%s 書きこめる場所か: %s" % ("○" if os.access(str(ROOT), os.W_OK) else "×", ROOT))
    sound = [environment.report(venv) for venv in environment.every()]
    base = ROOT / ".venv"
    if base.exists() and all(sound):
        return call(base, "-m", "shared.datasets", "verify")
    return int(not all(sound))


# ---- 確かめる --------------------------------------------------------------------------------


def test(arguments: list) -> int:
    """検査を順に走らせ(失敗しても続け)、秒数と結果の表を出す。"""
    words, given = parse(arguments, ("--fast", "--isolated", "--cpu"))
    folders, cpu = choose(words), "--cpu" in given
    if "--isolated" in given:
        steps = [("、".join(f.name for f in g) + " だけの環境", g) for g in same_needs(folders)]
        return timed((name, partial(isolated, group, cpu)) for name, group in steps)
    base = environment.ensure_base(dev=True, cpu=cpu)
    env = environment.jupyter_env(base, base)
    steps = test_steps(folders, bool(words), "--fast" in given)
    return timed((name, partial(call, base, *command, **env)) for name, command in steps)


def timed(steps) -> int:
    """(名前, 終了コードを返す関数) を順に実行し、一つでも失敗なら 1 を返す。"""
    start, results = time.monotonic(), []
    for name, step in steps:
        say("\n==== %s" % name)
        begun = time.monotonic()
        code = step()
        results.append((name, time.monotonic() - begun, "× " if code else "○ "))
        say("---- %s%s、%.0f 秒" % (results[-1][2], name, results[-1][1]))
    say("\n検査のまとめ(%.0f 秒)" % (time.monotonic() - start))
    for name, seconds, verdict in results:
        say("  %s%5.0f 秒  %s" % (verdict, seconds, name))
    failed = [name for name, _, verdict in results if verdict == "× "]
    say("× 通らなかった検査: %s" % "、".join(failed) if failed else "○ すべて通りました")
    return int(bool(failed))


def test_steps(folders: list, narrowed: bool, fast: bool) -> list:
    """検査の (名前, Python の引数) を順に並べる。`narrowed` なら、その章に関わるものだけ。"""
    places = [folder.name for folder in folders] if narrowed else []
    tests = ["tests/" + name for name in places if (ROOT / "tests" / name).exists()]
    houses = "tests/test_notebooks.py"
    contracts = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())"
    two = ["-m", "pytest", "-n", "2", "--dist", "loadfile", "--durations=5"]
    nbval = ["--nbval", "--nbval-current-env", "--nbval-cell-timeout=300"]
    stored = [folder.name + kind for folder in folders for kind in ("/notebooks", "/solutions")]
    stored = [place for place in stored if any((ROOT / place).glob("*.ipynb"))]
    if (ROOT / "tour.ipynb").exists() and not narrowed:
        stored.append("tour.ipynb")
    steps = [
        ("ruff check", ["-m", "ruff", "check", *places]),
        ("ruff format", ["-m", "ruff", "format", "--check", *places]),
        ("basedpyright", ["-m", "basedpyright", *places]),
        ("import の向き", ["-c", contracts]),
    ]
    if not fast:
        steps.append(("データ", ["-m", "shared.datasets", "fetch"]))
    if tests or not narrowed:
        chosen = ["-m", "not slow"] if fast else []
        steps.append(("単体テスト", [*two, *chosen, "--ignore=" + houses, *(tests or ["tests"])]))
    steps.append(("家の規則", ["-m", "pytest", houses]))
    if stored and not fast:
        steps.append(("ノートブック", [*two, *nbval, *stored]))
    return [*steps, ("主張の表", ["-m", "shared.claims", "--check"])]


def same_needs(folders: list) -> list:
    """requirements.txt の中身が同じ章をまとめる。"""
    groups: dict = {}
    for folder in folders:
        text = (folder / "requirements.txt").read_text(encoding="utf-8")
        groups.setdefault(text, []).append(folder)
    return list(groups.values())


def isolated(group: list, cpu: bool) -> int:
    """章の requirements.txt だけから環境を作り(版の固定表は使わない)、import が揃うかを見る。"""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        venv = Path(place) / group[0].name
        environment.install(venv, group[:1], prompt=group[0].name, cpu=cpu, constrained=False)
        words = ["-m", "studykit.runner", "imports", *map(str, group)]
        return call(venv, *words, cwd=Path(place))


def bench(arguments: list) -> int:
    """既存の実装との比を測る(章を書けば、その章を使うプログラムだけ)。"""
    words, _ = parse(arguments)
    texts = {p.stem: p.read_text(encoding="utf-8") for p in sorted(ROOT.glob("benchmarks/*.py"))}
    names = [folder.name for folder in choose(words)] if words else [""]
    found = [name for name, text in texts.items() if "__main__" in text]
    found = [name for name in found if any(chapter in texts[name] for chapter in names)]
    if not found:
        raise Stop("測るプログラムがありません", "benchmarks/ に、その章を使うものがありません")
    base = environment.ensure_base(dev=True)
    return max(call(base, "-m", "benchmarks." + name) for name in found)


# ---- 入口 ------------------------------------------------------------------------------------

COMMANDS = {
    "setup": setup, "run": run, "lab": lab, "start": start, "log": log, "test": test,
    "bench": bench, "doctor": doctor, "claims": passed_on("shared.claims"),
    "data": passed_on("shared.datasets"), "progress": passed_on("shared.learning", "progress"),
}  # fmt: skip


def main(arguments: list) -> int:
    """コマンドを選んで実行し、終了コードを返す。"""
    name, *rest = arguments or ["help"]
    try:
        if name in ("help", "-h", "--help") or "--help" in rest:
            say(HELP.format(me=ME))
            return 0
        if name not in COMMANDS:
            raise Stop("%s というコマンドはありません" % name, then="%s で使い方の一覧を見る" % ME)
        return COMMANDS[name](rest)
    except Stop as stop:
        say(str(stop))
    except KeyboardInterrupt:
        say("\n中断しました。続けるには、もう一度: %s %s" % (ME, _typed()))
        return 130
    except BrokenPipeError:  # 出力を受け取っていた側(less など)が先に終わった
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
    except OSError as error:
        say(str(_explain(error)))
    return 1


def _explain(error: OSError) -> Stop:
    """ファイルの読み書きの失敗を、読者の言葉にする。"""
    why = "%s(%s)" % (error.strerror, error.filename)
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        then = (
            "書き込めるフォルダーにリポジトリーを写して、もう一度(run は --out で保存先を選べます)"
        )
        return Stop("書き込めない場所です", why, then)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Stop("ディスクの空きがありません", why, "空きを作ってから、もう一度同じコマンド")
    return Stop("ファイルを扱えませんでした", why, "%s doctor で具合を調べる" % ME)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
