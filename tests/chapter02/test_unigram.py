"""Unigram の公開のふるまいと、学習の検査。"""

import math
import time

import numpy as np
import pytest

from chapter02.unigram import Unigram, greedy_longest_match

TOY = {"a": 0.3, "b": 0.2, "ab": 0.3, "ba": 0.2}
SENTENCES = [
    "私は猫が好きです。",
    "私は犬が好きです。",
    "彼は猫が好きでした。",
    "猫と犬が好きな人は多い。",
    "The cat likes the dog.",
    "The dog likes the cats.",
    "ｶﾞｷﾞと①を  正規化する。",
] * 3


@pytest.fixture(scope="module")
def trained():
    return Unigram.train(SENTENCES, 80, character_coverage=1.0)


def test_pieces_are_taken_literally():
    model = Unigram.from_probabilities({"▁Ａ": 0.5, " ": 0.25, "<0x41>": 0.25})
    assert model.tokenize(" ▁Ａ<0x41> ") == [" ", "▁Ａ", "<0x41>", " "]
    assert model.encode("▁Ａ <0x41>") == [0, 1, 2]
    assert model.decode([1, 0, 2]) == " ▁Ａ<0x41>"


def test_the_best_segmentation_is_not_the_greedy_one():
    probabilities = {"ab": 0.05, "a": 0.3, "bcd": 0.3, "c": 0.05, "d": 0.05, "b": 0.05}
    assert greedy_longest_match("abcd", probabilities) == ["ab", "c", "d"]
    assert Unigram.from_probabilities(probabilities).tokenize("abcd") == ["a", "bcd"]


def test_greedy_longest_match_takes_unknown_characters_one_by_one():
    assert greedy_longest_match("xyabz", TOY) == ["x", "y", "ab", "z"]
    assert greedy_longest_match("", TOY) == []


def test_unknown_characters():
    model = Unigram.from_probabilities(TOY)
    assert model.unknown_log_prob == pytest.approx(math.log(0.2) - 10.0)
    assert model.tokenize("axyb") == ["a", "xy", "b"]
    assert model.encode("axyb") == [0, model.unk_id, 1]
    assert model.decode(model.encode("axyb")) == "a ⁇ b"
    expected = math.log(0.3) + 2 * model.unknown_log_prob + math.log(0.2)
    assert model.log_likelihood("axyb") == pytest.approx(expected, abs=1e-12)
    assert model.expected_counts("x") == {"<unk>": 1.0}


def test_unknown_edges_appear_only_where_the_vocabulary_cannot_read_the_text():
    model = Unigram.from_probabilities({"ab": 0.5, "b": 0.5})
    assert model.log_likelihood("abb") == pytest.approx(2 * math.log(0.5), abs=1e-12)
    assert model.nbest("ab", 5) == [(["ab"], pytest.approx(math.log(0.5)))]
    assert model.tokenize("ba") == ["b", "a"]


def test_byte_fallback():
    model = Unigram.from_probabilities(TOY, byte_fallback=True)
    assert model.vocab_size == 4 + 1 + 256
    assert model.tokenize("a猫") == ["a", "<0xE7>", "<0x8C>", "<0xAB>"]
    ids = model.encode("a猫b👍")
    assert ids[:4] == [0, 5 + 0xE7, 5 + 0x8C, 5 + 0xAB]
    assert model.decode(ids) == "a猫b👍"
    assert model.decode([5 + 0xE7, 5 + 0x8C, 0, 5 + 0x41]) == "\ufffd\ufffdaA"


def test_empty_text():
    model = Unigram.from_probabilities(TOY)
    assert model.tokenize("") == model.encode("") == []
    assert model.decode([]) == ""
    assert model.nbest("", 3) == [([], 0.0)]
    assert model.sample("", 1.0, np.random.default_rng(0)) == []
    assert model.log_likelihood("") == 0.0
    assert model.expected_counts("") == {}


@pytest.mark.parametrize(
    "length", [100_000, pytest.param(1_000_000, marks=pytest.mark.slow)], ids=["100KB", "1MB"]
)
def test_a_long_run_of_one_character_takes_time_in_proportion(length):
    model = Unigram.from_probabilities(TOY | {"aa": 0.1, "aaaa": 0.05})
    start = time.process_time()
    assert len(model.tokenize("a" * length)) == length // 4
    assert model.tokenize("z" * length) == ["z" * length]
    assert time.process_time() - start < 4e-5 * length


@pytest.mark.parametrize("text", [None, b"ab", 3, ["a"]])
def test_text_of_another_type_is_refused(text):
    model = Unigram.from_probabilities(TOY)
    for call in (model.tokenize, model.encode, model.log_likelihood, model.expected_counts):
        with pytest.raises(TypeError, match="text"):
            call(text)
    with pytest.raises(TypeError, match="text"):
        model.nbest(text, 2)
    with pytest.raises(TypeError, match="text"):
        model.sample(text, 1.0, np.random.default_rng(0))
    with pytest.raises(TypeError, match="text"):
        greedy_longest_match(text, TOY)


def test_lone_surrogates_are_refused():
    with pytest.raises(ValueError, match=r"text.*サロゲート"):
        Unigram.from_probabilities(TOY).tokenize("a\ud800")


@pytest.mark.parametrize(
    ("probabilities", "error"),
    [
        ({}, ValueError),
        ({"": 0.5}, ValueError),
        ({"a": 0.0}, ValueError),
        ({"a": -0.1}, ValueError),
        ({"a": 1.5}, ValueError),
        ({"a": math.nan}, ValueError),
        ({"a": math.inf}, ValueError),
        ({"a": None}, TypeError),
        ({b"a": 0.5}, TypeError),
        ({"\udc00": 0.5}, ValueError),
        ([("a", 0.5)], TypeError),
        (None, TypeError),
    ],
)
def test_bad_probabilities_are_refused(probabilities, error):
    with pytest.raises(error, match="probabilities"):
        Unigram.from_probabilities(probabilities)
    with pytest.raises(error, match="probabilities"):
        greedy_longest_match("a", probabilities)


def test_bad_arguments_are_refused_by_name():
    model = Unigram.from_probabilities(TOY)
    generator = np.random.default_rng(0)
    for alpha in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="alpha"):
            model.sample("ab", alpha, generator)
    with pytest.raises(TypeError, match="alpha"):
        model.sample("ab", "1", generator)
    with pytest.raises(TypeError, match="generator"):
        model.sample("ab", 1.0, 42)
    for n in (0, -1):
        with pytest.raises(ValueError, match="n は 1"):
            model.nbest("ab", n)
    with pytest.raises(TypeError, match="n には整数"):
        model.nbest("ab", 1.5)
    for ids in ([0, 5], [-1]):
        with pytest.raises(ValueError, match=r"ids\["):
            model.decode(ids)
    with pytest.raises(TypeError, match=r"ids\[1\]"):
        model.decode([0, "a"])
    for ids in ("ab", None, 3):
        with pytest.raises(TypeError, match="ids"):
            model.decode(ids)


def test_training_learns_a_distribution_over_pieces(trained):
    assert trained.vocab_size == 80
    assert trained.pieces[0] == "<unk>"
    assert trained.unk_id == 0
    probabilities = np.exp(trained.log_probs[1:])
    assert probabilities.sum() == pytest.approx(1.0, abs=1e-9)
    assert (np.diff(probabilities) <= 0).all()
    assert "が好き" in "|".join(trained.pieces)


def test_training_normalizes_and_decoding_restores_the_normalized_text(trained):
    assert trained.normalize("ｶﾞｷﾞと①を  正規化する。") == "▁ガギと1を▁正規化する。"
    for text in SENTENCES:
        ids = trained.encode(text)
        assert trained.unk_id not in ids
        assert trained.decode(ids) == trained.normalize(text)[1:].replace("▁", " ")


def test_pieces_respect_spaces_and_scripts(trained):
    for piece in trained.pieces[1:]:
        assert "▁" not in piece[1:]
        assert not (any(c.isascii() for c in piece) and any(ord(c) > 0x3000 for c in piece))
        assert not (any(c in "。." for c in piece) and any(c.isalpha() for c in piece))


def test_training_options():
    identity = Unigram.train(SENTENCES, 80, character_coverage=1.0, normalization="identity")
    assert identity.normalize("①  Ａ") == "▁①▁Ａ"
    byte = Unigram.train(SENTENCES, 340, character_coverage=1.0, byte_fallback=True)
    assert byte.vocab_size <= 340
    assert byte.decode(byte.encode("猫は𠮟る")) == "猫は𠮟る"
    short = Unigram.train(SENTENCES, 90, character_coverage=1.0, max_piece_length=2)
    assert max(len(piece) for piece in short.pieces[1:]) == 2
    rare = Unigram.train(SENTENCES, 80, character_coverage=0.9)
    assert len([p for p in rare.pieces[1:] if len(p) == 1]) < 40
    assert rare.unk_id in rare.encode("化")
    mixed = Unigram.train(["abc1猫"] * 4, 30, split_by_unicode_script=False)
    assert "▁abc1猫" in mixed.pieces
    assert Unigram.train(["ab1"] * 4, 30, split_by_number=False).tokenize("ab1") == ["▁ab1"]
    assert Unigram.train(["ab1"] * 4, 30).tokenize("ab1") == ["▁ab", "1"]
    spaced = Unigram.train(["a b"] * 4, 30, split_by_whitespace=False)
    assert spaced.tokenize("a b") == ["▁a▁b"]


def test_training_is_deterministic():
    first, second = (Unigram.train(SENTENCES, 70, character_coverage=1.0) for _ in range(2))
    assert first.pieces == second.pieces
    assert first.log_probs == second.log_probs


def test_a_megabyte_of_one_character_can_be_trained_on():
    start = time.process_time()
    model = Unigram.train(["a" * 1_000_000], 10)
    assert time.process_time() - start < 10.0
    assert "a" in model.pieces


@pytest.mark.parametrize(
    ("texts", "options", "error", "name"),
    [
        ("文字列", {}, TypeError, "texts"),
        (None, {}, TypeError, "texts"),
        (["a", b"b"], {}, TypeError, r"texts\[1\]"),
        (["a\ud800"], {}, ValueError, r"texts\[0\]"),
        ([], {}, ValueError, "texts"),
        ([" ", ""], {}, ValueError, "texts"),
        (SENTENCES, {"vocab_size": 20}, ValueError, "vocab_size は .* 以上"),
        (SENTENCES, {"vocab_size": 0}, ValueError, "vocab_size"),
        (SENTENCES, {"vocab_size": 80.0}, TypeError, "vocab_size"),
        (SENTENCES, {"character_coverage": 0.0}, ValueError, "character_coverage"),
        (SENTENCES, {"character_coverage": math.nan}, ValueError, "character_coverage"),
        (SENTENCES, {"shrinking_factor": 1.0}, ValueError, "shrinking_factor"),
        (SENTENCES, {"num_sub_iterations": 0}, ValueError, "num_sub_iterations"),
        (SENTENCES, {"max_piece_length": 0}, ValueError, "max_piece_length"),
        (SENTENCES, {"seed_size": -1}, ValueError, "seed_size"),
        (SENTENCES, {"normalization": "nfd"}, ValueError, "normalization"),
    ],
)
def test_bad_training_arguments_are_refused(texts, options, error, name):
    with pytest.raises(error, match=name):
        Unigram.train(texts, **({"vocab_size": 80} | options))


def test_the_smallest_vocabulary_is_the_alphabet():
    with pytest.raises(ValueError, match="vocab_size") as error:
        Unigram.train(SENTENCES, 2, character_coverage=1.0)
    needed = int(str(error.value).split("は ")[1].split(" ")[0])
    model = Unigram.train(SENTENCES, needed, character_coverage=1.0)
    assert model.vocab_size == needed
    assert all(len(piece) == 1 for piece in model.pieces[1:])
