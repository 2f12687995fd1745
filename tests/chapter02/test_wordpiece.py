"""WordPiece を、tokenizers の分割と、毎回すべてを数え直す学習に照らす。"""

import json
from collections import Counter
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from chapter02.bpe import BPE
from chapter02.wordpiece import WordPiece

COURSE = {"hug": 10, "pug": 5, "pun": 12, "bun": 4, "hugs": 5}


def library(vocabulary, max_chars=100):
    vocab = {unit: number for number, unit in enumerate(vocabulary)}
    tokenizer = Tokenizer(
        models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=max_chars)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


pieces = st.text("abあ#", min_size=1, max_size=4)
vocabularies = st.sets(st.one_of(pieces, pieces.map("##".__add__)), max_size=25).map(
    lambda units: ["[UNK]", *sorted(units)]
)


@settings(max_examples=500, deadline=None)
@given(vocabularies, st.text("abあ# \n\u3000", max_size=24), st.integers(1, 8))
def test_tokenization_equals_the_library(vocabulary, text, max_chars):
    model = WordPiece(vocabulary, max_chars_per_word=max_chars)
    assert model.tokenize(text) == library(vocabulary, max_chars).encode(text).tokens


def test_tokenization_by_hand():
    vocabulary = ["[UNK]", "un", "una", "##aff", "##able", "##ff", "want", "##ed", "私", "##は"]
    model = WordPiece(vocabulary)
    assert model.tokenize("unwanted") == ["[UNK]"]  # 途中の "##want" がない
    assert model.tokenize("wanted unaffable") == ["want", "##ed", "una", "##ff", "##able"]
    assert model.tokenize("私は 猫") == ["私", "##は", "[UNK]"]
    assert model.tokenize("") == []
    assert model.vocab["##aff"] == 3


def test_greedy_search_does_not_go_back():
    model = WordPiece(["[UNK]", "a", "ab", "##bc", "##c"])
    assert model.tokenize("abc") == ["ab", "##c"]
    assert WordPiece(["[UNK]", "a", "ab", "##bc"]).tokenize("abc") == ["[UNK]"]


def test_long_words_are_unknown():
    vocabulary = ["[UNK]", "a", "##a"]
    assert WordPiece(vocabulary).tokenize("a" * 100) == ["a", *["##a"] * 99]
    assert WordPiece(vocabulary).tokenize("a" * 101) == ["[UNK]"]
    assert WordPiece(vocabulary, max_chars_per_word=2).tokenize("aa aaa") == ["a", "##a", "[UNK]"]


def recounted(word_counts, vocab_size, min_count=1):
    """毎回すべての単位と対を数え直し、分数のまま比べる学習。"""
    corpus = [([w[0], *("##" + c for c in w[1:])], n) for w, n in word_counts.items()]
    vocabulary = ["[UNK]", *sorted({unit for units, _ in corpus for unit in units})]
    while len(vocabulary) < vocab_size:
        units, pairs = Counter(), Counter()
        for word, count in corpus:
            for unit in word:
                units[unit] += count
            for pair in pairwise(word):
                pairs[pair] += count
        scored = [
            (-Fraction(n, units[a] * units[b]), -n, (a, b))
            for (a, b), n in pairs.items()
            if n >= min_count
        ]
        if not scored:
            break
        *_, (left, right) = min(scored)
        for word, _ in corpus:
            place = 0
            while place + 1 < len(word):
                if (word[place], word[place + 1]) == (left, right):
                    word[place : place + 2] = [left + right[2:]]
                place += 1
        vocabulary.append(left + right[2:])
    return vocabulary


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(st.text("abc", min_size=1, max_size=7), st.integers(1, 6), max_size=8),
    st.integers(0, 25),
    st.integers(1, 3),
)
def test_training_equals_recounting(word_counts, extra, min_count):
    size = len(recounted(word_counts, 0)) + extra
    model = WordPiece.train(word_counts, size, min_count=min_count)
    assert [*model.vocab] == recounted(word_counts, size, min_count)
    if min_count == 1:
        assert all("[UNK]" not in model.tokenize(word) for word in word_counts)


def test_training_by_hand():
    # n(##g ##s) / (n(##g) n(##s)) = 5 / (20 x 5) が最大で、最も多い対 (##u, ##g) ではない。
    # 次は (h, ##u)、(p, ##u)、(b, ##u) がどれも 1/36 で並び、最も多い (p, ##u) を選ぶ。
    model = WordPiece.train(COURSE, 11)
    assert [*model.vocab][-3:] == ["##gs", "pu", "hu"]


def test_bpe_and_the_library_choose_by_frequency_instead():
    assert BPE.train(COURSE, 1, "").merges == [("u", "g")]
    tokenizer = library(["[UNK]"])
    trainer = trainers.WordPieceTrainer(vocab_size=13, show_progress=False)
    tokenizer.train_from_iterator([word for word, n in COURSE.items() for _ in range(n)], trainer)
    letters = ["b", "g", "h", "n", "p", "s", "u", "##g", "##n", "##s", "##u"]
    learned = json.loads(tokenizer.to_str())["model"]["vocab"].keys() - {*letters}
    assert learned == {"##ug", "##un"}
    assert "##ug" not in WordPiece.train(COURSE, 9).vocab


def test_special_tokens_come_first():
    model = WordPiece.train({"ab": 1}, 6, special_tokens=["[PAD]", "[UNK]", "[CLS]"])
    assert [*model.vocab] == ["[PAD]", "[UNK]", "[CLS]", "##b", "a", "ab"]
    assert model.unk_token == "[PAD]"
    assert model.tokenize("x") == ["[PAD]"]


def test_another_prefix():
    model = WordPiece.train({"ab": 1, "b": 2}, 5, prefix="~")
    assert [*model.vocab] == ["[UNK]", "a", "b", "~b", "ab"]
    assert model.tokenize("abb") == ["ab", "~b"]


@pytest.mark.parametrize(
    ("arguments", "options", "error", "said"),
    [
        ((None, 10), {}, TypeError, "word_counts"),
        ((["a"], 10), {}, TypeError, "word_counts"),
        (({b"a": 1}, 10), {}, TypeError, "word_counts"),
        (({"": 1}, 10), {}, ValueError, "word_counts"),
        (({"a": -1}, 10), {}, ValueError, "word_counts"),
        (({"a": 0.5}, 10), {}, TypeError, "word_counts"),
        (({"ab": 1}, 2), {}, ValueError, "vocab_size.*3"),
        (({"ab": 1}, "9"), {}, TypeError, "vocab_size"),
        (({"ab": 1}, 9), {"min_count": 0}, ValueError, "min_count"),
        (({"ab": 1}, 9), {"special_tokens": ()}, ValueError, "special_tokens"),
        (({"ab": 1}, 9), {"special_tokens": ["x", "x"]}, ValueError, "special_tokens"),
        (({"ab": 1}, 9), {"special_tokens": [""]}, ValueError, "special_tokens"),
        (({"ab": 1}, 9), {"special_tokens": "[UNK]"}, TypeError, "special_tokens"),
        (({"ab": 1}, 9), {"prefix": None}, TypeError, "prefix"),
    ],
)
def test_bad_training_input_is_refused(arguments, options, error, said):
    with pytest.raises(error, match=said):
        WordPiece.train(*arguments, **options)


@pytest.mark.parametrize(
    ("vocabulary", "options", "error", "said"),
    [
        (None, {}, TypeError, "vocabulary"),
        (["[UNK]", b"a"], {}, TypeError, "vocabulary"),
        (["[UNK]", "a", "a"], {}, ValueError, "vocabulary"),
        (["a"], {}, ValueError, "unk_token"),
        (["[UNK]"], {"max_chars_per_word": 0}, ValueError, "max_chars_per_word"),
    ],
)
def test_bad_vocabularies_are_refused(vocabulary, options, error, said):
    with pytest.raises(error, match=said):
        WordPiece(vocabulary, **options)


@pytest.mark.parametrize(
    ("text", "error"), [(None, TypeError), (b"a", TypeError), ("\ud800", ValueError)]
)
def test_bad_texts_are_refused(text, error):
    with pytest.raises(error, match="text"):
        WordPiece(["[UNK]"]).tokenize(text)
