"""chapter04.contamination: 手で数えた例、付録の規則、Bloom フィルターの誤りの率の式。"""

import math
import random
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chapter04.contamination import (
    BloomFilter,
    characters,
    compare_clean,
    dirty,
    ngram_overlap,
    ngrams,
    overlap_length,
    remove_overlaps,
    substring_matches,
    words,
)

# ---- n-gram -----------------------------------------------------------------------------


def test_words_ignore_case_and_punctuation():
    """小文字にし、約物と記号を除き、空白で分ける。語の中の記号は、語を分けない。"""
    assert words("The CAT's $5  hat,\n(well-known)!") == ["the", "cats", "5", "hat", "wellknown"]
    assert words("「猫」が、 好き。") == ["猫が", "好き"]
    assert words(" -- ") == []


def test_characters_keep_letters_and_numbers():
    """文字(長音符や繰り返し記号、結合文字も)と数字だけを残す。大文字と小文字は分ける。"""
    assert characters("私は「コーヒー」が、好き々♪ A1\n\u3000\u200b") == list(
        "私はコーヒーが好き々A1"
    )
    assert characters("か\u3099") == ["か", "\u3099"]


def test_ngrams():
    """文字列は語に、ほかの列はそのまま。n 個に満たなければ空。"""
    assert ngrams("A b, c", 2) == [("a", "b"), ("b", "c")]
    assert ngrams([3, 1, 4], 3) == [(3, 1, 4)]
    assert ngrams(characters("私は猫。"), 2) == [("私", "は"), ("は", "猫")]
    assert ngrams("a b", 3) == []
    assert ngrams(np.array([1, 2]), 1) == [(1,), (2,)]


def test_ngram_overlap_is_the_share_found():
    """4 個の 2-gram のうち 3 個。集合でも Bloom フィルターでも同じ。"""
    reference = set(ngrams("the cat sat on the mat", 2))
    assert ngram_overlap("The cat sat on mars", reference, 2) == 3 / 4
    assert ngram_overlap("dogs bark", reference, 2) == 0.0
    assert ngram_overlap("the", reference, 2) == 0.0
    bloom = BloomFilter(5, 1e-6)
    bloom.update(reference)
    assert ngram_overlap("The cat sat on mars", bloom, 2) == 3 / 4
    assert ngram_overlap([1, 2, 3], {(1, 2), (2, 3)}, 2) == 1.0


# ---- GPT-3 ------------------------------------------------------------------------------


def test_overlap_length_is_the_fifth_percentile_between_8_and_13():
    """5 パーセンタイルを 8 から 13 に収める。"""

    def sentence(length):
        return " ".join("x" * length)

    assert overlap_length([sentence(10)] * 20) == 10
    assert overlap_length([sentence(3)] * 20) == 8
    assert overlap_length([sentence(99)] * 20) == 13
    assert overlap_length([sentence(9)] * 10 + [sentence(30)] * 90) == 9
    assert overlap_length([sentence(9)] * 2 + [sentence(12)] * 98) == 12


def test_one_collision_makes_an_example_dirty():
    """N-gram が一つでも、どれかの文書にあれば汚れている。語の順が違えば別のもの。"""
    examples = ["one two three four", "four three two one", "two three four five", "one two"]
    documents = ["zero One, two three!", "nothing here", "three four"]
    assert dirty(examples, documents, 3) == [True, False, False, False]
    assert dirty(examples, iter(documents), 2) == [True, False, True, True]
    assert dirty(examples, documents) == [False] * 4  # N = 8 には短すぎる


def test_dirty_agrees_with_exhaustive_search():
    """すべての問題と文書の組で n-gram を突き合わせたものと一致する。"""
    rng = random.Random(0)
    texts = [[rng.randrange(4) for _ in range(rng.randrange(12))] for _ in range(40)]
    for n in (1, 3, 5):
        expected = [
            any(set(ngrams(e, n)) & set(ngrams(d, n)) for d in texts[20:]) for e in texts[:20]
        ]
        assert dirty(texts[:20], texts[20:], n) == expected


def test_compare_clean_by_hand():
    """全体 0.6、汚れた 1.0、きれい 1/3: きれいな問題では 44 % 悪い。"""
    found = compare_clean([1, 0, 1, 1, 0], [True, False, True, False, False])
    assert found[:3] == pytest.approx((0.6, 1.0, 1 / 3))
    assert (found.n_dirty, found.n_clean) == (2, 3)
    assert found.relative_difference == pytest.approx((1 / 3 - 0.6) / 0.6)
    assert math.isnan(compare_clean([1, 2], [False, False]).dirty)
    assert math.isnan(compare_clean([1, 2], [True, True]).clean)


def test_remove_overlaps_cuts_the_window():
    """重なった語の並びと、その前後 window 文字を除く。短い断片は捨てる。"""
    document = "a" * 30 + " One, two THREE " + "b" * 30 + " c"
    found = remove_overlaps([document, "ok"], ["one two three"], n=3, window=5)
    assert found == [["a" * 26, "b" * 26 + " c"], ["ok"]]  # 重なりのない文書は、短くてもそのまま
    found = remove_overlaps(["aaaaaa p q bbbb"], ["p q"], n=2, window=3)
    assert found == [["aaaa"]]  # うしろの断片は 2 文字しかない
    assert remove_overlaps(["aaaaaaa p q"], ["p q"], n=2, window=4) == [["aaaa"]]
    assert remove_overlaps([document], ["one two three"], n=3, window=27) == [[]]
    assert remove_overlaps([document], ["one two"], n=3, window=5) == [[document]]


def test_remove_overlaps_merges_neighbours():
    """重なりが続いても、窓が重なっても、間に断片を作らない。"""
    document = "x" * 20 + " p q r s t " + "y" * 20
    assert remove_overlaps([document], ["p q r s t"], n=2, window=3) == [["x" * 18, "y" * 18]]
    assert remove_overlaps(["p q", "z p q"], ["p q"], n=2, window=0) == [[], ["z "]]


def test_documents_in_too_many_pieces_are_dropped():
    """断片が max_pieces を超えた文書は、すべて捨てる。"""
    document = " p q ".join(["x" * 9] * 4)
    found = remove_overlaps([document], ["p q"], n=2, window=1, max_pieces=4)
    assert [len(piece) for piece in found[0]] == [9, 9, 9, 9]
    assert remove_overlaps([document], ["p q"], n=2, window=1, max_pieces=3) == [[]]
    short = " p q ".join(["xxxx", "xxx", "x" * 99])  # 数えるのは、短い断片を捨てる前
    assert remove_overlaps([short], ["p q"], n=2, window=2, max_pieces=2) == [[]]
    assert remove_overlaps([short], ["p q"], n=2, window=2, max_pieces=3) == [["xxx", "x" * 98]]


def test_common_phrases_are_ignored():
    """多くの文書に現れる n-gram は、決まり文句として残す。文書の中の繰り返しは数えない。"""
    documents = ["all rights reserved x", "all rights reserved all rights reserved", "all rights"]
    examples = ["all rights reserved"]
    keywords = {"n": 3, "window": 0}
    assert remove_overlaps(documents, examples, max_documents=1, **keywords) == [
        [d] for d in documents
    ]
    found = remove_overlaps(documents, examples, max_documents=2, **keywords)
    assert found == [[" x"], [" "], ["all rights"]]


# ---- GPT-4 ------------------------------------------------------------------------------


def test_substrings_of_fifty_characters():
    """記号と空白を除いて、50 文字がそのまま現れるか。短い問題は全体を使う。"""
    rng = random.Random(0)
    text = "".join(rng.choice("あいうえおかきくけこ") for _ in range(300))
    spaced = "。 ".join(text[i : i + 7] for i in range(0, 300, 7))
    assert substring_matches([text[100:200]], ["前書き", spaced]) == [True]
    assert substring_matches([text[:49] + "X" + text[50:99]], [spaced]) == [False]
    assert substring_matches(["「あ、い」", "あX", "!?"], ["い…あ い"]) == [True, False, False]


def test_substrings_do_not_cross_documents():
    """二つの文書にまたがる文字列は、一致しない。"""
    assert substring_matches(["ab"], ["xa", "by"]) == [False]
    assert substring_matches(["ab"], ["xaby"]) == [True]


def test_three_random_substrings():
    """一部だけが混入した問題は、選んだ場所しだい。数を増やせば見つけやすい。乱数の種で決まる。"""
    text = "".join(chr(0x4E00 + i) for i in range(1000))
    examples, documents = [text] * 400, [text[:250]]  # 951 の始まりのうち 201 で一致する
    found = substring_matches(examples, documents, seed=1)
    expected = 1 - (1 - 201 / 951) ** 3
    assert sum(found) / 400 == pytest.approx(expected, abs=0.08)
    one = substring_matches(examples, documents, seed=1, count=1)
    assert sum(one) / 400 == pytest.approx(201 / 951, abs=0.07)
    assert substring_matches(examples, documents, seed=1) == found
    assert substring_matches(examples, documents, seed=2) != found
    assert all(substring_matches([text[:50]] * 9, documents))
    ends = substring_matches([text[:51]] * 50, [text[1:51]], count=1)  # 始まりは 0 と 1 の二つ
    assert 10 < sum(ends) < 40


# ---- Bloom フィルター -------------------------------------------------------------------

ITEMS = st.recursive(
    st.one_of(st.text(), st.binary(), st.integers()),
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=5,
)


@settings(max_examples=100, deadline=None)
@given(st.lists(ITEMS, min_size=1, max_size=30), st.floats(1e-9, 0.9), st.integers(1, 40))
def test_never_misses(items, error_rate, capacity):
    """入れた物は、容量を超えて入れても、一つずつでもまとめてでも、必ず「ある」。"""
    bloom = BloomFilter(capacity, error_rate)
    for item in items[::2]:
        bloom.add(item)
    bloom.update(iter(items[1::2]))
    assert all(item in bloom for item in items)
    assert bloom.contains(items).all()
    assert bloom.n_added == len(items)


@pytest.mark.parametrize("error_rate", [0.3, 0.05, 0.01, 0.002])
def test_rate_is_within_twenty_percent_of_the_formula(error_rate):
    """入れていない物を「ある」と答える率は、容量まででも、半分でも、倍でも、式の 20 % 以内。"""
    capacity, added = 5000, 0
    bloom = BloomFilter(capacity, error_rate)
    for n in (capacity // 2, capacity, 2 * capacity):
        bloom.update(f"in{i}" for i in range(added, n))
        added = n
        expected = bloom.false_positive_rate()
        assert expected == bloom.false_positive_rate(n)
        if expected * 80_000 < 150:  # 数が足りず、偶然のばらつきのほうが大きい
            continue
        found = bloom.contains(f"out{i}" for i in range(80_000)).mean()
        assert found == pytest.approx(expected, rel=0.2)
    assert bloom.false_positive_rate(capacity) == pytest.approx(error_rate, rel=0.05)


def test_size_by_hand():
    """n = 1,000、p = 0.01: m = 9,585.06 を切り上げて 9,586、k = 6.64 を丸めて 7。"""
    bloom = BloomFilter(1000, 0.01)
    assert (bloom.n_bits, bloom.n_hashes) == (9586, 7)
    assert bloom.false_positive_rate(1000) == pytest.approx((1 - math.exp(-7000 / 9586)) ** 7)
    assert bloom.false_positive_rate(0) == bloom.false_positive_rate() == 0.0
    tiny = BloomFilter(1, 0.99)
    assert (tiny.n_bits, tiny.n_hashes) == (1, 1)


def test_all_hashes_are_used():
    """一つ入れると、およそ k 個のビットが立つ(k 個が同じ所に重ならない)。"""
    for item in ("猫", 3, ("a", "b")):
        bloom = BloomFilter(10_000, 1e-4)
        assert item not in bloom
        bloom.add(item)
        assert bloom.n_hashes == 13
        assert 12 <= np.unpackbits(bloom._bits).sum() <= 13


def test_different_items_are_told_apart():
    """種類や区切りの違うものを混同しない。等しいものは同じとみなす。"""
    items = ["a", b"a", ("a",), 1, "1", ("1",), (1,), ("a", "b"), ("ab",), ("a", ("b",)), (), ""]
    items += [("a", "sb"), ("as", "b"), ("assb",)]
    for i, item in enumerate(items):
        bloom = BloomFilter(100, 1e-9)
        bloom.add(item)
        assert [j for j, other in enumerate(items) if other in bloom] == [i]
    bloom.add((np.int64(7), "x"))
    assert (7, "x") in bloom


def test_long_streams_are_cut_into_chunks():
    """まとめて処理する数(65,536)を超えても、一つずつと同じ。"""
    bloom = BloomFilter(100_000, 0.01)
    bloom.update(range(70_000))
    assert bloom.n_added == 70_000
    assert bloom.contains(range(70_000)).all()
    assert bloom.contains(range(70_000, 140_000)).mean() < 0.01
    assert bloom.contains([]).shape == (0,)


def test_the_same_in_every_process():
    """ハッシュは Python の hash と違い、プロセスによらない。"""
    code = (
        "from chapter04.contamination import BloomFilter as B; b = B(9, 1e-3);"
        "b.update(['猫', ('a', 1)]); print(b._bits.tolist())"
    )
    bloom = BloomFilter(9, 1e-3)
    bloom.update(["猫", ("a", 1)])
    run = subprocess.run(
        [sys.executable, "-X", "utf8", "-c", code], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == str(bloom._bits.tolist())


# ---- 誤った入力 -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: words(b"a"), TypeError, "text"),
        (lambda: ngrams("a", 0), ValueError, "n は 1 以上"),
        (lambda: ngrams(5, 1), TypeError, "text_or_tokens"),
        (lambda: ngrams(b"abc", 1), TypeError, "text_or_tokens"),
        (lambda: ngram_overlap("a", "abc", 1), TypeError, "reference_ngrams"),
        (lambda: ngram_overlap("a", None, 1), TypeError, "reference_ngrams"),
        (lambda: overlap_length([]), ValueError, "examples に"),
        (lambda: dirty(["a"], ["b"], 0), ValueError, "n は 1 以上"),
        (lambda: dirty("a b", ["a b"], 1), TypeError, "examples には並び.*'a b'"),
        (lambda: dirty(["a b"], "a b", 1), TypeError, "documents には並び"),
        (lambda: compare_clean([1], [True, False]), ValueError, "1 と 2"),
        (lambda: compare_clean([], []), ValueError, "0 と 0"),
        (lambda: remove_overlaps(["a"], ["a"], window=-1), ValueError, "window"),
        (lambda: remove_overlaps([3], ["a"]), TypeError, "documents"),
        (lambda: remove_overlaps("ab", ["a"]), TypeError, "documents には並び"),
        (lambda: remove_overlaps(["ab"], "a"), TypeError, "examples には並び"),
        (lambda: substring_matches("ab", ["ab"]), TypeError, "examples には並び"),
        (lambda: substring_matches(["ab"], "ab"), TypeError, "documents には並び"),
        (lambda: substring_matches(["a"], ["a"], length=0), ValueError, "length は 1 以上"),
        (lambda: substring_matches(["a"], ["a"], count=0), ValueError, "count は 1 以上"),
        (lambda: BloomFilter(0, 0.1), ValueError, "capacity は 1 以上"),
        (lambda: BloomFilter(1.5, 0.1), TypeError, "capacity"),
        (lambda: BloomFilter(5, 0), ValueError, "error_rate は 0 より大きく"),
        (lambda: BloomFilter(5, 1.0), ValueError, "error_rate"),
        (lambda: BloomFilter(5, math.nan), ValueError, "error_rate"),
        (lambda: BloomFilter(5, 0.1).add(1.5), TypeError, r"item には.*1\.5"),
        (lambda: BloomFilter(5, 0.1).add(True), TypeError, "item"),
        (lambda: BloomFilter(5, 0.1).add(("a", None)), TypeError, "item"),
        (lambda: [1] in BloomFilter(5, 0.1), TypeError, "item"),
        (lambda: BloomFilter(5, 0.1).update("abc"), TypeError, "items には並び"),
        (lambda: BloomFilter(5, 0.1).contains(3), TypeError, "items"),
        (lambda: BloomFilter(5, 0.1).false_positive_rate(-1), ValueError, "n は 0 以上"),
    ],
)
def test_bad_arguments(call, error, message):
    """誤った引数は、名前と値を述べて断る。"""
    with pytest.raises(error, match=message):
        call()


def test_percentile_rounds_down():
    assert overlap_length([["x"] * 9, ["x"] * 10]) == 9
