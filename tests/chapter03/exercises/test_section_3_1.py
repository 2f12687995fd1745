"""3.1 節の採点が、正しい解を通し、もっともらしい誤りを理由つきで退けるか。"""

import pytest

from chapter03.exercises import check_decoder_only_parameters, check_table_shapes
from tests.grading import accepts, explains, waits


def shapes(batch, src, tgt, d, vocab):
    return (batch, src, d), (batch, tgt, d), (batch, tgt, vocab), (batch, tgt, src)


def shapes_with_swapped_weights(*sizes):
    first, second, third, (batch, tgt, src) = shapes(*sizes)
    return first, second, third, (batch, src, tgt)


def shapes_of_the_source_everywhere(batch, src, tgt, d, vocab):
    return (batch, src, d), (batch, src, d), (batch, src, vocab), (batch, src, src)


def shapes_without_the_batch(*sizes):
    return tuple(shape[1:] for shape in shapes(*sizes))


def count(d, d_ff, n_layers, vocab):
    layer = 4 * d * d + 2 * d * d_ff + d_ff + d + 4 * d
    return vocab * d + n_layers * layer + 2 * d


def count_without_the_last_norm(d, d_ff, n_layers, vocab):
    return count(d, d_ff, n_layers, vocab) - 2 * d


def count_with_cross_attention(d, d_ff, n_layers, vocab):
    return count(d, d_ff, n_layers, vocab) + n_layers * (4 * d * d + 2 * d)


@pytest.mark.parametrize(
    ("check", "solution"),
    [(check_table_shapes, shapes), (check_decoder_only_parameters, count)],
)
def test_solutions_pass(check, solution, capsys):
    accepts(check, solution, capsys)


@pytest.mark.parametrize(
    ("check", "wrong", "message"),
    [
        (check_table_shapes, shapes_with_swapped_weights, "見る側"),
        (check_table_shapes, shapes_of_the_source_everywhere, "場所"),
        (check_table_shapes, shapes_without_the_batch, "長さ"),
        (check_decoder_only_parameters, count_without_the_last_norm, "出口の正規化"),
        (check_decoder_only_parameters, count_with_cross_attention, "交差注意はない"),
    ],
)
def test_wrong_answers_are_explained(check, wrong, message, capsys):
    explains(check, wrong, message, capsys)


@pytest.mark.parametrize("check", [check_table_shapes, check_decoder_only_parameters])
def test_stub_is_not_a_failure(check, capsys):
    waits(check, capsys)
