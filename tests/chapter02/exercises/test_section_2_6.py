"""2.6 節の採点が、正しい解を通し、もっともらしい誤りを理由つきで退けるか。"""

import codecs

import pytest

from chapter02.exercises import check_stream, check_truncate
from tests.grading import accepts, explains, waits


def truncate(tokens, limit):
    for n in range(min(limit, len(tokens)), 0, -1):
        try:
            b"".join(tokens[:n]).decode("utf-8")
        except UnicodeDecodeError:
            continue
        return n
    return 0


def truncate_by_length(tokens, limit):
    return min(limit, len(tokens))


def truncate_by_last_token(tokens, limit):
    n = min(limit, len(tokens))
    while n and "\ufffd" in tokens[n - 1].decode("utf-8", errors="replace"):
        n -= 1
    return n


def truncate_past_the_end(tokens, limit):
    while limit and "\ufffd" in b"".join(tokens[:limit]).decode("utf-8", errors="replace"):
        limit -= 1
    return limit


def stream(tokens):
    decoder = codecs.getincrementaldecoder("utf-8")()
    return [decoder.decode(token) for token in tokens]


def stream_by_hand(tokens):
    """最後の先頭バイトを探し、そこから始まる文字が足りていなければ残す。"""
    texts, rest = [], b""
    for token in tokens:
        rest += token
        end = len(rest)
        for back in range(1, min(4, len(rest)) + 1):
            byte = rest[-back]
            if byte >> 6 != 0b10:
                length = 1 if byte < 0x80 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
                end -= back if length > back else 0
                break
        texts.append(rest[:end].decode("utf-8"))
        rest = rest[end:]
    return texts


def stream_with_replacement(tokens):
    return [token.decode("utf-8", errors="replace") for token in tokens]


def stream_dropping_bytes(tokens):
    return [token.decode("utf-8", errors="ignore") for token in tokens]


def stream_all_or_nothing(tokens):
    texts, rest = [], b""
    for token in tokens:
        rest += token
        try:
            texts.append(rest.decode("utf-8"))
            rest = b""
        except UnicodeDecodeError:
            texts.append("")
    return texts


@pytest.mark.parametrize(
    ("check", "right"),
    [(check_truncate, truncate), (check_stream, stream), (check_stream, stream_by_hand)],
)
def test_right_answers_pass(check, right, capsys):
    accepts(check, right, capsys)


@pytest.mark.parametrize(
    ("check", "wrong", "message"),
    [
        (check_truncate, truncate_by_length, "文字の途中で切れる"),
        (check_truncate, truncate_by_last_token, "文字が完成したところで切る"),
        (check_truncate, truncate_past_the_end, "limit がトークンの数より大きい"),
        (check_stream, stream_with_replacement, "1 バイトずつ届く文字"),
        (check_stream, stream_dropping_bytes, "1 バイトずつ届く文字"),
        (check_stream, stream_all_or_nothing, "その場で返します"),
    ],
)
def test_plausible_mistakes_are_named(check, wrong, message, capsys):
    explains(check, wrong, message, capsys)


@pytest.mark.parametrize("check", [check_truncate, check_stream])
def test_unsolved_is_not_a_failure(check, capsys):
    waits(check, capsys)
