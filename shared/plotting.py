"""図の書式: 日本語の文字、色覚によらず見分けられる色、単位つきの軸。"""

import io
import os
from itertools import cycle
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import matplotlib_fontja
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from shared.checks import require_text
from shared.files import write_atomically

# 岡部・伊藤の配色 (Okabe and Ito, Color Universal Design)
BLUE = "#0072B2"
ORANGE = "#E69F00"
GREEN = "#009E73"
VERMILION = "#D55E00"
PURPLE = "#CC79A7"
SKY = "#56B4E9"
YELLOW = "#F0E442"  # 白い地では薄いので、線には最後に使う
BLACK = "#000000"
GREY = "#999999"  # 目安の線や、比べるための控えめな線に
COLOURS = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, BLACK, YELLOW)


def setup() -> None:
    """以後の図に共通の書式を適用する(ノートブックの準備のセルで一度呼ぶ)。

    日本語の字形は matplotlib-fontja に含まれる IPAex ゴシックを使うので、OS のフォントによらない。
    線は色だけでなく線種も変え、印刷しても区別できるようにする。
    """
    matplotlib_fontja.japanize()
    styles = [style for style, _ in zip(cycle(["-", "--", "-.", ":"]), COLOURS, strict=False)]
    mpl.rcParams.update(
        {
            "axes.prop_cycle": cycler(color=COLOURS) + cycler(linestyle=styles),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.alpha": 0.3,
            "image.cmap": "cividis",  # 色覚によらず明るさの順に見える
            "legend.frameon": False,
            "figure.figsize": (6.4, 3.6),  # インチ
            "figure.dpi": 100,
            "figure.constrained_layout.use": True,
            "font.size": 10.5,
            "svg.hashsalt": "genai-from-papers-notes",  # 同じ図から同じ SVG を作る
        }
    )


def axes(title: str, xlabel: str, ylabel: str, size: tuple[float, float] | None = None) -> Axes:
    """題名と軸の名前(単位を含める)をつけた、一枚の図の軸を返す。`size` は幅と高さ(インチ)。

    Raises:
        TypeError: 題名か軸の名前が str でないとき。
    """
    _, ax = plt.subplots(figsize=size)
    ax.set_title(require_text(title, "title"))
    ax.set_xlabel(require_text(xlabel, "xlabel"))
    ax.set_ylabel(require_text(ylabel, "ylabel"))
    return ax


def save_svg(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """図を SVG で書き出す。文字は輪郭にするのでフォントがなくても読め、日時は埋めこまない。

    Raises:
        ValueError: `path` の拡張子が .svg でないとき。
        OSError: 書き込めないとき。
    """
    path = Path(path)
    if path.suffix != ".svg":
        raise ValueError(f"path の拡張子は .svg にしてください: {path.name}")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return write_atomically(path, buffer.getvalue())
