"""Sennrich らの BPE を、論文の Algorithm 1 をそのまま写した実装と比べる。"""

import re
import time
from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chapter02.bpe import BPE, merge_pair

TOY = {"low": 5, "lower": 2, "newest": 6, "widest": 3}


def algorithm_1(word_counts, num_merges, end_of_word="</w>"):
    """論文の Algorithm 1(語を空白区切りの文字列で持ち、正規表現でつなぐ)。"""
    end = [end_of_word] if end_of_word else []
    vocab = {" ".join([*word, *end]): count for word, count in word_counts.items()}
    merges = []
    for _ in range(num_merges):
        pairs = defaultdict(int)
        for word, freq in vocab.items():
            symbols = word.split(" ")
            for i in range(len(symbols) - 1):
                pairs[symbols[i], symbols[i + 1]] += freq
        if not pairs:
            break
        best = max(pairs, key=pairs.get)  # 同数なら、先に数えはじめた対
        pattern = re.compile(r"(?<!\S)" + re.escape(" ".join(best)) + r"(?!\S)")
        vocab = {pattern.sub("".join(best), word): freq for word, freq in vocab.items()}
        merges.append(best)
    return merges, [word.split(" ") for word in vocab]


def test_toy_example_of_the_paper():
    model = BPE.train(TOY, 10)
    assert model.merges[:6] == [
        ("e", "s"),
        ("es", "t"),
        ("est", "</w>"),
        ("l", "o"),
        ("lo", "w"),
        ("n", "e"),
    ]
    assert model.segment("lowest") == ["low", "est</w>"]
    assert model.segment("low") == ["low</w>"]


words = st.text("abc", min_size=1, max_size=8)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(words, st.integers(1, 4), max_size=8), st.integers(0, 40))
def test_merges_equal_the_literal_algorithm(word_counts, num_merges):
    merges, segmented = algorithm_1(word_counts, num_merges)
    model = BPE.train(word_counts, num_merges)
    assert model.merges == merges
    assert [model.segment(word) for word in word_counts] == segmented


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.text("</w>x", min_size=1, max_size=10), st.integers(1, 3), max_size=6))
def test_words_that_spell_the_end_symbol(word_counts):
    assert BPE.train(word_counts, 30).merges == algorithm_1(word_counts, 30)[0]


def test_ties_go_to_the_first_pair_met():
    assert BPE.train({"cd": 1, "ab": 1}, 1, "").merges == [("c", "d")]
    assert BPE.train({"ab": 1, "cd": 1}, 1, "").merges == [("a", "b")]
    assert BPE.train({"xay": 1, "bcbc": 1, "ayay": 1}, 1, "").merges == [("a", "y")]


def test_first_occurrence_is_that_of_the_present_segmentation():
    # (b, c) は 1 語目にも現れていたが、(a, b) のマージで消え、2 語目の (d, e) が先になる。
    counts = {"abc": 3, "ab": 3, "dede": 1, "bcbc": 1, "x": 1}
    assert BPE.train(counts, 3, "").merges == algorithm_1(counts, 3, "")[0]


def test_repeated_letters_merge_from_the_left_without_overlap():
    assert merge_pair(list("aaa"), ("a", "a")) == ["aa", "a"]
    assert merge_pair(list("aaaa"), ("a", "a")) == ["aa", "aa"]
    assert merge_pair(list("baab"), ("a", "b")) == ["b", "a", "ab"]
    assert BPE([("a", "a")], "").segment("aaaaa") == ["aa", "aa", "a"]


def test_earlier_merges_are_applied_first():
    model = BPE([("b", "c"), ("a", "b")], "")
    assert model.segment("abc") == ["a", "bc"]
    assert BPE([("a", "b"), ("b", "c")], "").segment("abc") == ["ab", "c"]
    assert BPE([("a", "b"), ("b", "c"), ("a", "b")], "").segment("abc") == ["ab", "c"]


def test_training_stops_when_no_pair_is_left():
    model = BPE.train({"ab": 2}, 100)
    assert model.merges == [("a", "b"), ("ab", "</w>")]
    assert BPE.train({}, 5).merges == []
    assert BPE.train({"ab": 0}, 5).merges == []
    assert BPE.train({"ab": 1}, 0).merges == []


def test_unknown_characters_stay_single():
    assert BPE.train(TOY, 10).segment("猫low") == ["猫", "low</w>"]
    assert BPE.train(TOY, 10).segment("") == ["</w>"]
    assert BPE.train(TOY, 10, "").segment("") == []


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=20))
def test_segments_join_to_the_word(word):
    assert "".join(BPE.train(TOY, 10).segment(word)) == word + "</w>"


def test_training_does_not_recount_everything():
    counts = {f"{number:x}" * 3: number % 7 + 1 for number in range(4096, 24096)}
    start = time.process_time()
    assert len(BPE.train(counts, 2000).merges) == 2000
    assert time.process_time() - start < 20  # 毎回数え直すと、この 20 倍かかる


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ((None, 5), TypeError, "word_counts"),
        ((["low"], 5), TypeError, "word_counts"),
        (({b"low": 5}, 5), TypeError, "word_counts"),
        (({"low": 1.5}, 5), TypeError, "low"),
        (({"low": -1}, 5), ValueError, "low"),
        (({"\ud800": 1}, 5), ValueError, "word_counts"),
        ((TOY, -1), ValueError, "num_merges"),
        ((TOY, 2.5), TypeError, "num_merges"),
        ((TOY, None), TypeError, "num_merges"),
        ((TOY, 5, None), TypeError, "end_of_word"),
    ],
)
def test_bad_input_is_refused(arguments, error, said):
    with pytest.raises(error, match=said):
        BPE.train(*arguments)


@pytest.mark.parametrize("word", [None, b"low", 3])
def test_bad_words_are_refused(word):
    with pytest.raises(TypeError, match="word"):
        BPE.train(TOY, 3).segment(word)
