"""shared.checks: 誤った入力の断り方。"""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from shared.checks import (
    require_int,
    require_many,
    require_number,
    require_rate,
    require_seed,
    require_text,
    shown,
)

# ---- shown ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("猫", "'猫'"),
        ("a\nb", r"'a\nb'"),
        ("\ud800", r"'\ud800'"),
        ("\u202e", r"'\u202e'"),  # 文字の向きを変える、見えない文字
        (None, "None"),
        (3.5, "3.5"),
        ("あ" * 58, "'" + "あ" * 58 + "'"),
        ("あ" * 59, "'" + "あ" * 56 + "..."),
        (b"a" * 100, "b'" + "a" * 55 + "..."),
    ],
)
def test_shown(value: object, expected: str):
    assert shown(value) == expected
    assert len(shown(value)) <= 60


# ---- require_text -----------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "猫", "\0", "e\u0301", "👨\u200d👩\u200d👧", "𠮷", "\uffff"])
def test_text_comes_back_unchanged(text: str):
    assert require_text(text, "text") is text


@pytest.mark.parametrize("value", [None, 1, ["a"], np.array(["a"])])
def test_only_str_is_text(value: Any):
    with pytest.raises(TypeError, match=rf"^name には文字列.*\({type(value).__name__}\)$"):
        require_text(value, "name")


@pytest.mark.parametrize("value", [b"abc", bytearray(b"abc"), memoryview(b"abc")])
def test_bytes_come_with_a_hint(value: Any):
    with pytest.raises(TypeError, match=r"name には文字列.*\.decode\('utf-8'\)"):
        require_text(value, "name")


@pytest.mark.parametrize(
    ("text", "position", "point"),
    [("\ud83d", 0, "D83D"), ("猫\udc00", 1, "DC00"), ("\ude00\ud83d", 0, "DE00")],
)
def test_lone_surrogates_are_located(text: str, position: int, point: str):
    with pytest.raises(ValueError, match=rf"name の {position} 文字目.*U\+{point}") as caught:
        require_text(text, "name")
    str(caught.value).encode("utf-8")


# ---- require_int ------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, -3, 10**30, np.int64(5), np.uint8(255)])
def test_integers_become_int(value: Any):
    result = require_int(value, "n")
    assert result == value
    assert type(result) is int


@pytest.mark.parametrize(
    "value", [True, False, 1.0, "1", None, Fraction(1), math.nan, np.float64(2), [1]]
)
def test_other_things_are_no_integer(value: Any):
    with pytest.raises(TypeError, match=rf"^n には整数.*\({type(value).__name__}\)$"):
        require_int(value, "n")


def test_minimum_of_integers():
    assert require_int(2, "n", minimum=2) == 2
    assert require_int(0, "n", minimum=0) == 0
    with pytest.raises(ValueError, match=r"^n は 2 以上にしてください: 1$"):
        require_int(1, "n", minimum=2)
    with pytest.raises(ValueError, match=r"^n は 0 以上にしてください: -1$"):
        require_int(-1, "n", minimum=0)


# ---- require_number ---------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, -1.5, 10**10, Fraction(1, 2), np.float32(0.5), np.int8(3)])
def test_numbers_become_float(value: Any):
    result = require_number(value, "x")
    assert result == value
    assert type(result) is float


@pytest.mark.parametrize("value", [True, "1.5", None, 1j, [1.0], b"1"])
def test_other_things_are_no_number(value: Any):
    with pytest.raises(TypeError, match=rf"^x には数.*\({type(value).__name__}\)$"):
        require_number(value, "x")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float64("nan")])
def test_numbers_are_finite(value: Any):
    with pytest.raises(ValueError, match=r"^x は有限の数にしてください"):
        require_number(value, "x", minimum=0)


def test_minimum_of_numbers():
    assert require_number(0.0, "x", minimum=0) == 0.0
    assert require_number(-0.0, "x", minimum=0) == 0.0
    with pytest.raises(ValueError, match=r"^x は 0 以上にしてください: -1e-09$"):
        require_number(-1e-9, "x", minimum=0)


@pytest.mark.parametrize(
    "value",
    [
        np.True_,
        np.array(True),
        np.array([1, 2]),
        np.array([1.0]),
        torch.tensor(True),
        torch.tensor(1.5),
        torch.tensor([1, 2]),
    ],
)
def test_arrays_and_fractions_are_no_integer(value: Any):
    with pytest.raises(TypeError, match=r"^n には整数"):
        require_int(value, "n")


@pytest.mark.parametrize("value", [np.array(3), torch.tensor(3), torch.tensor([3])])
def test_integer_of_a_library(value: Any):
    assert require_int(value, "n") == 3


@pytest.mark.parametrize(
    "value", [np.True_, np.array([1.0, 2.0]), torch.tensor(True), torch.tensor([1.0, 2.0])]
)
def test_arrays_are_no_number(value: Any):
    with pytest.raises(TypeError, match=r"^x には数"):
        require_number(value, "x")


def test_huge_integer_is_not_finite():
    with pytest.raises(ValueError, match=r"^x は有限の数"):
        require_number(10**400, "x")


def test_a_rate_is_from_0_to_just_below_1():
    assert [require_rate(value, "p") for value in (0, 0.5, 0.999)] == [0.0, 0.5, 0.999]
    for value in (-0.1, 1, 1.5):
        with pytest.raises(ValueError, match=rf"^p は 0 以上 1 未満にしてください: {value}$"):
            require_rate(value, "p")
    with pytest.raises(TypeError, match="p には数を"):
        require_rate("0.1", "p")


def test_require_many():
    """並びは通し、一つの文字列と、並びでないものは断る。"""
    for values in ([], ("a",), iter("ab"), {"a": 1}):
        require_many(values, "texts")
    for value in ("猫", b"a", 3, None):
        with pytest.raises(TypeError, match=r"texts には文書の並びを.*\[ \] に入れる"):
            require_many(value, "texts", "文書の並び")


def test_require_seed():
    assert require_seed(0) == 0
    assert require_seed(2**32 - 1) == 2**32 - 1
    for value, error in ((-1, ValueError), (2**32, ValueError), (1.0, TypeError)):
        with pytest.raises(error, match=f"seed .*{value}"):
            require_seed(value)
