"""constraints.txt を作り直す: 検査済みの、すべての依存の版(全 OS・Python 3.11-3.14 に共通)。

    python .ci/make_constraints.py [--upgrade]          (uv が要る: pip install uv)

章の requirements.txt の版を出発点に、pyproject.toml の下限を満たす版を uv が選ぶ。いまの版がまだ
使えればそのままにし、--upgrade なら最新にする。
版は Python ごとに分けず、どの Python にも wheel がある一つに揃える。書いたあと、OS と Python の
すべての組で wheel だけから解けることを確かめる。配布元の名前はファイルに残さない。
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
PLATFORMS = ("linux", "aarch64-unknown-linux-gnu", "windows", "aarch64-apple-darwin")
# どこでもコンパイルなしに入ること。num2words の使う docopt は、Python だけの小さなソースしかない。
WHEELS = ("--only-binary", ":all:", "--no-binary", "docopt")
HEADER = """\
# 検査済みの、すべての依存の版。手で書きかえず、python .ci/make_constraints.py で作り直す。
# study.py が pip install -c で使う。章の requirements.txt だけでも環境は作れる。
"""


def direct_requirements() -> str:
    """全章の requirements.txt から、このリポジトリー自身(-e ..)を除いた行。"""
    paths = [*ROOT.glob("chapter[0-9][0-9]/requirements.txt"), *ROOT.glob("appendix/req*.txt")]
    lines = {line for path in paths for line in path.read_text(encoding="utf-8").splitlines()}
    return "\n".join(sorted(line for line in lines if line and line[0] not in "-#")) + "\n"


def solve(inputs: list[str], *options: str) -> None:
    """uv に版を選ばせる(`-o` で書き出す)。"""
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if uv is None:
        sys.exit("uv が見つかりません。入れてから、もう一度: python -m pip install uv")
    command = [uv, "pip", "compile", "--quiet", "--no-header", "--no-annotate", *options, *inputs]
    env = dict(os.environ, MACOSX_DEPLOYMENT_TARGET="14.0")
    done = subprocess.run(command, env=env, cwd=ROOT, stdout=subprocess.DEVNULL, check=False)
    if done.returncode != 0:
        sys.exit(f"版を決められませんでした: {' '.join(options)}")


def main() -> None:
    """版を決め、全 OS と全 Python で確かめてから、constraints.txt を置きかえる。"""
    with tempfile.TemporaryDirectory() as folder:
        requirements = Path(folder) / "requirements.in"
        requirements.write_text(direct_requirements(), encoding="utf-8")
        inputs = ["pyproject.toml", str(requirements)]
        common = ["--extra", "dev"]
        chosen = Path(folder) / "constraints.txt"
        if (ROOT / "constraints.txt").exists():
            shutil.copyfile(ROOT / "constraints.txt", chosen)  # uv は -o の今の版を優先する
        where = ["--universal", "--python-version", PYTHONS[0], "--fork-strategy", "fewest"]
        solve(inputs, *common, *where, *sys.argv[1:], "-o", str(chosen))
        text = chosen.read_text(encoding="utf-8")
        chosen.write_text(HEADER + text, encoding="utf-8")
        for python in PYTHONS:
            for platform in PLATFORMS:
                where = ["--python-version", python, "--python-platform", platform]
                solve(inputs, *common, *where, *WHEELS, "-c", str(chosen))
        shutil.copyfile(chosen, ROOT / "constraints.txt")
    print(f"constraints.txt: {len(text.splitlines())} 個の版を書きました")


if __name__ == "__main__":
    main()
