"""2.5 節の採点が、正しい解を通し、もっともらしい誤りを理由つきで退けるか。"""

import unicodedata

import pytest

from chapter02.exercises import check_detokenize, check_normalize
from tests.grading import accepts, explains, waits


def detokenize(pieces):
    return "".join(pieces).replace("▁", " ").removeprefix(" ")


def detokenize_stripping(pieces):
    return "".join(pieces).replace("▁", " ").strip()


def detokenize_underscore(pieces):
    return detokenize(pieces).replace("_", " ")


def detokenize_each(pieces):
    return "".join(piece.replace("▁", " ").removeprefix(" ") for piece in pieces)


def normalize(text):
    return "".join("▁" + word for word in unicodedata.normalize("NFKC", text).split())


def normalize_without_nfkc(text):
    return "".join("▁" + word for word in text.split())


def normalize_each_space(text):
    return "▁" + unicodedata.normalize("NFKC", text).strip().replace(" ", "▁")


def normalize_nfc(text):
    return "".join("▁" + word for word in unicodedata.normalize("NFC", text).split())


@pytest.mark.parametrize(
    ("check", "solution"), [(check_detokenize, detokenize), (check_normalize, normalize)]
)
def test_solutions_pass(check, solution, capsys):
    accepts(check, solution, capsys)


@pytest.mark.parametrize(
    ("check", "wrong", "message"),
    [
        (check_detokenize, detokenize_stripping, "▁ が続く"),
        (check_detokenize, detokenize_underscore, "下線"),
        (check_detokenize, detokenize_each, "長さ"),
        (check_normalize, normalize_without_nfkc, "全角"),
        (check_normalize, normalize_each_space, "余分な空白"),
        (check_normalize, normalize_nfc, "全角"),
    ],
)
def test_wrong_answers_are_explained(check, wrong, message, capsys):
    explains(check, wrong, message, capsys)


@pytest.mark.parametrize("check", [check_detokenize, check_normalize])
def test_stub_is_not_a_failure(check, capsys):
    waits(check, capsys)
