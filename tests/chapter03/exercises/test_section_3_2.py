"""3.2 節の採点が、正しい解を通し、もっともらしい誤りを理由つきで退けるか。"""

import math

import pytest

from chapter03.exercises import check_position, check_rope
from tests.grading import accepts, explains, waits


def position(p, d_model):
    values = []
    for i in range(d_model // 2):
        angle = p / 10000 ** (2 * i / d_model)
        values += [math.sin(angle), math.cos(angle)]
    return values


def position_in_halves(p, d_model):
    values = position(p, d_model)
    return values[0::2] + values[1::2]


def position_with_slow_exponent(p, d_model):
    values = []
    for i in range(d_model // 2):
        angle = p / 10000 ** (i / d_model)
        values += [math.sin(angle), math.cos(angle)]
    return values


def position_in_degrees(p, d_model):
    values = []
    for i in range(d_model // 2):
        angle = math.radians(p / 10000 ** (2 * i / d_model))
        values += [math.sin(angle), math.cos(angle)]
    return values


def position_of_sines(p, d_model):
    return [math.sin(p / 10000 ** (2 * i / d_model)) for i in range(d_model // 2)]


def rope(x, p):
    turned = []
    for i in range(len(x) // 2):
        angle = p * 10000 ** (-2 * i / len(x))
        a, b = x[2 * i], x[2 * i + 1]
        turned += [
            a * math.cos(angle) - b * math.sin(angle),
            a * math.sin(angle) + b * math.cos(angle),
        ]
    return turned


def rope_clockwise(x, p):
    return rope(x, -p)


def rope_at_one_speed(x, p):
    turned = []
    for i in range(len(x) // 2):
        turned += rope(x[2 * i : 2 * i + 2], p)
    return turned


def rope_in_halves(x, p):
    half = len(x) // 2
    turned = rope([value for pair in zip(x[:half], x[half:], strict=True) for value in pair], p)
    return turned[0::2] + turned[1::2]


def rope_by_adding(x, p):
    return [a + b for a, b in zip(x, position(p, len(x)), strict=True)]


@pytest.mark.parametrize(("check", "solution"), [(check_position, position), (check_rope, rope)])
def test_solutions_pass(check, solution, capsys):
    accepts(check, solution, capsys)


@pytest.mark.parametrize(
    ("check", "wrong", "message"),
    [
        (check_position, position_in_halves, "交互"),
        (check_position, position_with_slow_exponent, "場所"),
        (check_position, position_in_degrees, "場所"),
        (check_position, position_of_sines, "長さ"),
        (check_rope, rope_clockwise, "反時計回り"),
        (check_rope, rope_at_one_speed, "速さ"),
        (check_rope, rope_in_halves, "隣どうし"),
        (check_rope, rope_by_adding, "場所"),
    ],
)
def test_wrong_answers_are_explained(check, wrong, message, capsys):
    explains(check, wrong, message, capsys)


@pytest.mark.parametrize("check", [check_position, check_rope])
def test_stub_is_not_a_failure(check, capsys):
    waits(check, capsys)
