"""shared.plotting: 日本語の字形、色、再現できる SVG。"""

import warnings
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest
from matplotlib.colors import to_hex

from shared import plotting


@pytest.fixture(autouse=True)
def own_settings() -> Iterator[None]:
    """この検査の書式を、ほかの検査に残さない。"""
    backend = mpl.get_backend()
    plt.switch_backend("Agg")
    with mpl.rc_context():
        mpl.rcdefaults()  # matplotlib_fontja は import されるだけでも字形を変える
        plotting.setup()
        yield
    plt.close("all")
    plt.switch_backend(backend)


def sample() -> plt.Axes:
    ax = plotting.axes("語彙の大きさ", "語彙(トークン)", "損失(nat/文字)")
    ax.plot([0, 1], [-1, 1], label="測定「私は猫が好きです」")
    ax.legend()
    return ax


def test_japanese_is_drawn_without_missing_glyphs(tmp_path: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # 字形がないと matplotlib は警告する
        sample().figure.savefig(tmp_path / "figure.png")
    assert mpl.rcParams["font.family"] == ["IPAexGothic"]


def test_axes_carry_the_names():
    ax = sample()
    assert ax.get_title() == "語彙の大きさ"
    assert ax.get_xlabel() == "語彙(トークン)"
    assert ax.get_ylabel() == "損失(nat/文字)"
    assert plotting.axes("a", "b", "c", size=(3, 2)).figure.get_size_inches().tolist() == [3, 2]


@pytest.mark.parametrize("position", range(3))
def test_names_must_be_text(position: int):
    names: list[Any] = ["a", "b", "c"]
    names[position] = None
    with pytest.raises(TypeError, match=["title", "xlabel", "ylabel"][position]):
        plotting.axes(*names)


def test_lines_differ_in_colour_and_style():
    cycle = mpl.rcParams["axes.prop_cycle"].by_key()
    assert cycle["color"] == list(plotting.COLOURS)
    assert all(a != b for a, b in pairwise(cycle["linestyle"]))


def test_colours_are_those_of_okabe_and_ito():
    library = {to_hex(colour).upper() for colour in mpl.color_sequences["okabe_ito"]}
    assert set(plotting.COLOURS) == library
    assert len(plotting.COLOURS) == 8
    assert (plotting.BLUE, plotting.ORANGE, plotting.GREEN) == ("#0072B2", "#E69F00", "#009E73")
    assert plotting.VERMILION == "#D55E00"


def test_svg_is_reproducible_and_needs_no_font(tmp_path: Path):
    first = plotting.save_svg(sample().figure, tmp_path / "図 1.svg")
    second = plotting.save_svg(sample().figure, str(tmp_path / "2.svg"))
    assert first == tmp_path / "図 1.svg"
    assert first.read_bytes() == second.read_bytes()
    text = first.read_text(encoding="utf-8")
    assert "</svg>" in text
    assert "<text" not in text
    assert "dc:date" not in text


def test_other_suffixes_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"path の拡張子は \.svg にしてください: a\.png"):
        plotting.save_svg(sample().figure, tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []
