"""chapter03.word_order: 対応の正しさ、語順、再現、採点。"""

import random

import pytest
import torch

from chapter03 import word_order
from chapter03.word_order import BOS, EOS, Pair

DICTIONARY = {en: ja for table in word_order._WORDS for en, ja in table.items()} | {".": "。"}


@pytest.mark.parametrize("n_sentences", [1, 3])
def test_alignment_joins_words_with_their_translations(n_sentences):
    """対応先の語は、辞書でその語の訳。辞書の語と「。」は、ちょうど一度ずつ対応する。"""
    for pair in word_order.passages(0, 200, n_sentences):
        used = [place for place in pair.alignment if place is not None]
        for word, place in zip(pair.target, pair.alignment, strict=True):
            if place is None:
                assert word in {"は", "を", "が", "に", "で", "です"}
            else:
                assert DICTIONARY[pair.source[place]] == word
        content = [i for i, word in enumerate(pair.source) if word in DICTIONARY]
        assert sorted(used) == content


def test_word_order_and_particles():
    """時は文頭、動詞は文末。助詞は動詞で決まる。"""
    seen = set()
    for pair in word_order.passages(1, 500, 1):
        text = "".join(pair.target)
        verb = pair.source[1]
        if verb in word_order.FEELINGS:
            assert text.endswith(f"が{word_order.FEELINGS[verb]}です。")
        elif verb in word_order.MOVES:
            assert f"に{word_order.MOVES[verb]}。" in text
        else:
            assert f"を{word_order.ACTIONS[verb]}。" in text
        if pair.source[-2] in word_order.TIMES:
            assert pair.target[0] == word_order.TIMES[pair.source[-2]]
            seen.add("時")
        if "in" in pair.source:
            assert "で" in pair.target
            seen.add("場所")
        seen.add(verb)
    assert len(seen) == 2 + 10 + 2 + 2


def test_the_two_sentences_of_the_book_can_be_written():
    """「私は猫が好きです」と「彼は銀行に行きました」が語彙の中にある。"""
    ids = word_order.encode_target(["私", "は", "猫", "が", "好き", "です", "。"])
    assert word_order.decode_target(ids.tolist()) == ["私", "は", "猫", "が", "好き", "です", "。"]
    assert len(word_order.encode_source(["he", "went", "to", "the", "bank", "."])) == 6


def test_words_are_unique():
    for words in (word_order.SOURCE_WORDS, word_order.TARGET_WORDS):
        assert len(set(words)) == len(words)
        assert words[:3] == ("<pad>", "<s>", "</s>")


def test_same_seed_same_passages():
    assert word_order.passages(5, 10, 2) == word_order.passages(5, 10, 2)
    assert word_order.passages(5, 10, 2) != word_order.passages(6, 10, 2)
    first = word_order.sentence(random.Random(0))
    assert word_order.sentence(random.Random(0)) == first


def test_batch_pads_right_and_marks_both_ends():
    short = Pair(("i", "."), ("私", "。"), (0, 1))
    long = Pair(("he", "saw", "cats", "."), ("彼", "猫", "。"), (0, 2, 3))
    src, tgt = word_order.batch([short, long])
    assert src.tolist()[0][2:] == [0, 0]
    assert word_order.SOURCE_WORDS[src[1, 2]] == "cats"
    assert tgt.tolist()[0] == [BOS, *word_order.encode_target(["私", "。"]).tolist(), EOS, 0]
    assert tgt.tolist()[1][0] == BOS
    assert tgt.tolist()[1][-1] == EOS


def test_lessons_grow_longer():
    """はじめは一文、半ばからは最も長い文章まで現れ、文の総数はほぼ一定。"""
    made = word_order.lessons(0, 40, 4, size=24)
    stop = word_order.encode_source(["."]).item()
    counts = [((src == stop).sum(1)).unique().tolist() for src, _ in made]
    assert all(len(count) == 1 for count in counts)
    assert [n for (n,) in counts[:5]] == [1] * 5
    assert max(n for (n,) in counts) == max(n for (n,) in counts[:30]) == 4
    assert all(len(src) == 24 // n for (src, _), (n,) in zip(made, counts, strict=True))


def test_correct_sentences_compares_place_by_place():
    pair = word_order.passages(0, 1, 3)[0]
    words, stops = list(pair.target), [i for i, w in enumerate(pair.target) if w == "。"]
    assert word_order.correct_sentences([pair], [words]) == 1
    assert word_order.correct_sentences([pair], [words[: stops[0] + 1]]) == pytest.approx(1 / 3)
    assert word_order.correct_sentences([pair], [words[: stops[1]]]) == pytest.approx(1 / 3)
    assert word_order.correct_sentences([pair], [words[stops[0] + 1 :]]) == 0
    assert word_order.correct_sentences([pair], [[]]) == 0


def test_alignment_accuracy_looks_at_content_words_only():
    """助詞と「。」は数えず、内容語の最大の重みだけを見る。"""
    pair = Pair(("i", "like", "cats", "."), ("私", "は", "猫", "。"), (0, None, 2, 3))
    weights = torch.tensor([[0.9, 0.1, 0, 0], [0, 0, 0, 1], [0, 0.6, 0.4, 0], [1, 0, 0, 0]])
    assert word_order.alignment_accuracy([pair], [weights]) == 0.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: word_order.passages(0, 0, 1), "n "),
        (lambda: word_order.passages(0, 1, 0), "n_sentences"),
        (lambda: word_order.encode_source(["unicorns"]), "unicorns"),
        (lambda: word_order.encode_target(["一角獣"]), "一角獣"),
        (lambda: word_order.lessons(0, 0, 4), "steps"),
    ],
)
def test_bad_input_is_explained(call, message):
    with pytest.raises(ValueError, match=message):
        call()
