"""バイトレベル BPE を、tiktoken(符号化)と tokenizers(学習と tokenizer.json)に照らす。"""

import functools
import itertools
import json
import os
import random
import sys
import time

import numpy as np
import pytest
import regex
import tiktoken
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from chapter02 import byte_level
from chapter02.bpe import ByteLevelBPE
from chapter02.bpe_encoding import MergeTable, merge_step_by_step
from chapter02.bpe_training import _without_overlap, train_merges
from chapter02.byte_level import PATTERNS, bytes_to_chars, chars_to_bytes, split_text
from shared import datasets

NAMES = ["gpt2", "cl100k_base", "o200k_base"]
TRICKY = [
    "",
    " ",
    "Hello world",
    "Hello,  world \n\n  again\t\r\n ",
    "私は猫が好きです",
    "ガギグ と か\u3099き\u3099く\u3099",  # 合成済みの濁点と、結合文字の濁点
    "ＡＢＣ １２３ ｶﾅ",
    "👩‍👩‍👧‍👦👍🏽",  # ZWJ と肌の色
    "e\u0301\u0302 naïve",
    "\x00NUL\x00",
    "I'm we'LL you'VE 'ſ DON'T",  # ſ は大文字小文字を無視すると s に等しい
    "12345 6.78e-9 ²³ ⅷ",
    "\u0295\u0558\u1acf\U0001df90\U000323b0 x",  # Unicode の版で分類が変わる文字
    "\u2028\u00a0\u3000 x \x1c\x85y",
    "\u0295Ba",  # 文字の分類が Unicode 16.0 と違う文字だけを含む
    "a\x1c\x1d b\x1e\x1f\x0b\x0c\x7f",  # ASCII の制御文字のうち、空白とみなすもの、みなさないもの
    "x99 1234567890 3.14",
    "<|endoftext|> <|fim_prefix|>",
    "<div class='a'>/* 注 */</div>\n\n\n//",
]


@functools.cache
def ours(name):
    return ByteLevelBPE.from_pretrained(name)


@functools.cache
def theirs(name):
    os.environ["TIKTOKEN_CACHE_DIR"] = str(datasets.tiktoken_cache())
    return tiktoken.get_encoding(name)


@functools.cache
def small_model():
    text = "".join(itertools.islice(datasets.shakespeare().values(), 1))[:50_000]
    japanese = datasets.tatoeba_sentences("ja")[:500]
    return ByteLevelBPE.train([text, *japanese], 700, ["<|endoftext|>", "<|pad|>"])


# ---- 公開語彙: tiktoken と同じ id --------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", TRICKY)
def test_ids_equal_tiktoken(name, text):
    ids = ours(name).encode(text)
    assert ids == theirs(name).encode(text, disallowed_special=())
    assert ours(name).decode(ids) == text


def test_known_ids():
    assert ours("gpt2").encode("Hello world") == [15496, 995]
    assert ours("cl100k_base").encode("Hello world") == [9906, 1917]
    assert [ours(name).vocab_size for name in NAMES] == [50257, 100277, 200019]


texts = st.lists(
    st.one_of(
        st.text(max_size=12),
        st.text("aA'sSlLtT 19\n\r\t/.", max_size=12),
        st.text(st.characters(max_codepoint=127), max_size=12),
        st.text("あア漢字ー。\u3099ｱ", max_size=12),
        st.characters(min_codepoint=0x10000),
        st.sampled_from(["\u200d", "\u0301", "\x00", " ", "\n", "👩", "<|endoftext|>"]),
    ),
    max_size=8,
).map("".join)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=100, deadline=None)
@given(text=st.text(st.characters(max_codepoint=127), max_size=40))
def test_random_ascii_ids_equal_tiktoken(name, text):
    assert ours(name).encode(text) == theirs(name).encode(text, disallowed_special=())


def test_every_character_beyond_unicode_16_is_noticed():
    for first, last in byte_level._RANGES:
        assert byte_level._SUSPECT.search(chr(first))
        assert byte_level._SUSPECT.search(chr(last))
    assert split_text("\u0295Ba", PATTERNS["o200k_base"]) == ["\u0295", "Ba"]


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=120, deadline=None)
@given(text=texts)
def test_random_ids_equal_tiktoken(name, text):
    ids = ours(name).encode(text)
    assert ids == theirs(name).encode(text, disallowed_special=())
    assert ours(name).decode(ids) == text
    assert ours(name).encode_batch([text, text]) == [ids, ids]


@pytest.mark.parametrize(
    "kind", ["L", "N", "Lu", "Ll", "Lt", "Lm", "Lo", "M", r"\s", "(?i:[sdmt])", "(?i:[lver])"]
)
def test_every_character_has_the_same_class_as_in_tiktoken(kind):
    pattern = kind if len(kind) > 2 or kind == r"\s" else rf"\p{{{kind}}}"
    single = {bytes([byte]): byte for byte in range(256)}
    probe = tiktoken.Encoding("probe", pat_str=pattern, mergeable_ranks=single, special_tokens={})
    everything = "".join(chr(c) for c in range(sys.maxunicode + 1) if not 0xD800 <= c < 0xE000)
    matched = probe.decode_bytes(probe.encode_ordinary(everything)).decode()
    assert "".join(split_text(everything, pattern)) == matched


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_ids_equal_tiktoken_on_all_of_shakespeare(name):
    for text in datasets.shakespeare().values():
        ids = ours(name).encode(text)
        assert ids == theirs(name).encode_ordinary(text)
        assert ours(name).decode(ids) == text


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("language", ["ja", "en", "de", "fr"])
def test_ids_equal_tiktoken_on_tatoeba(name, language):
    sentences = datasets.tatoeba_sentences(language)[:12_500]
    batch = ours(name).encode_batch(sentences)
    for sentence, ids in zip(sentences, batch, strict=True):
        assert ids == theirs(name).encode_ordinary(sentence)
        assert ours(name).decode(ids) == sentence


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("gpt2", "\x00"),
        ("gpt2", "1"),
        ("cl100k_base", "a"),
        ("cl100k_base", " "),
        ("o200k_base", "あ"),
    ],
)
def test_one_megabyte_of_one_character_in_bounded_time(name, unit):
    text = unit * (1_000_000 // len(unit.encode()))
    model = ours(name)
    start = time.process_time()
    ids = model.encode(text)
    assert time.process_time() - start < 10
    assert model.decode(ids) == text


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("unit", ["a", "あ", "ab", "猫が", "=-"])
def test_long_pieces_equal_tiktoken(name, unit):
    text = unit * 3001
    assert ours(name).encode(text) == theirs(name).encode_ordinary(text)


# ---- 特殊トークン ------------------------------------------------------------------------


def test_special_tokens_only_when_allowed():
    model, peer = ours("cl100k_base"), theirs("cl100k_base")
    text = "a<|endoftext|>b<|fim_prefix|><|endofprompt|>"
    plain = model.encode(text)
    assert plain == peer.encode(text, disallowed_special=())
    assert max(plain) < 100256
    chosen = model.encode(text, allowed_special=["<|fim_prefix|>"])
    assert chosen == peer.encode(text, allowed_special={"<|fim_prefix|>"}, disallowed_special=())
    every = model.encode(text, allowed_special="all")
    assert every == peer.encode(text, allowed_special="all")
    assert model.encode_batch([text], allowed_special="all") == [every]
    assert model.decode(plain) == model.decode(chosen) == model.decode(every) == text


def test_the_longest_special_token_wins():
    model = ByteLevelBPE.train(["ab"], 260, ["<a>", "<a><b>", "<"])
    assert model.encode("<a><b>", allowed_special="all") == [1]
    assert model.encode("<a><", allowed_special="all") == [0, 2]


# ---- 符号化の 2 つの実装 ------------------------------------------------------------------


def random_table(seed, size, letters=b"ab"):
    """letters だけからなる記号どうしをでたらめにつないだ、順位の不自然なマージの表。"""
    source = random.Random(seed)
    table = MergeTable([bytes([byte]) for byte in range(256)])
    while len(table.tokens) < 256 + size:
        usable = [*letters, *range(256, len(table.tokens))]
        left, right = source.choice(usable), source.choice(usable)
        if table.tokens[left] + table.tokens[right] not in table.number:
            if not table.compatible(left, right):
                continue  # ほかの分け方が先に選ばれるので、このマージは起きない
            table.add(left, right)
    return table


@pytest.mark.parametrize("seed", range(30))
def test_fast_encoding_equals_the_definition(seed):
    table = random_table(seed, 3 + seed % 12, b"ab" if seed % 2 else b"abc")
    alphabet = b"abc"
    ranks = {token: rank for rank, token in enumerate(table.tokens) if len(token) > 1}
    for length in range(7):
        for letters in itertools.product(alphabet, repeat=length):
            data = bytes(letters)
            expected = merge_step_by_step(data, ranks)
            assert [table.tokens[symbol] for symbol in table.encode(data)] == expected


def test_definition_by_hand():
    assert merge_step_by_step(b"aaaa", {b"aa": 0, b"aaa": 1}) == [b"aa", b"aa"]
    assert merge_step_by_step(b"aaa", {b"aa": 0, b"aaa": 1}) == [b"aaa"]
    assert merge_step_by_step(b"abc", {b"bc": 0, b"ab": 1}) == [b"a", b"bc"]
    assert merge_step_by_step(b"", {}) == []


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=30))
def test_fast_encoding_of_bytes_equals_the_definition(data):
    table = ours("gpt2")._table
    ranks = {token: rank for rank, token in enumerate(table.tokens) if len(token) > 1}
    assert [table.tokens[symbol] for symbol in table.encode(data)] == merge_step_by_step(
        data, ranks
    )


def test_merges_are_recovered_from_ranks():
    pairs = datasets.gpt2_files()[1].decode().splitlines()[1:]
    expected = [tuple(chars_to_bytes(part) for part in line.split(" ")) for line in pairs]
    assert ours("gpt2").merges == expected


# ---- 学習: tokenizers と同じマージ --------------------------------------------------------


def library(texts, vocab_size, special_tokens=()):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def library_merges(tokenizer):
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [tuple(chars_to_bytes(part) for part in pair) for pair in merges]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.text("ab a\nあい", max_size=30), max_size=6),
    st.integers(0, 60),
    st.sampled_from([(), ("<s>",), ("<s>", "ab", "</s>"), ("a", "b b")]),
)
def test_random_training_equals_tokenizers(texts, extra, special_tokens):
    vocab_size = 256 + len(special_tokens) + extra
    peer = library(texts, vocab_size, special_tokens)
    model = ByteLevelBPE.train(texts, vocab_size, special_tokens)
    assert model.merges == library_merges(peer)
    assert model.vocab_size == peer.get_vocab_size()
    assert model.special_tokens == {token: peer.token_to_id(token) for token in special_tokens}
    for text in texts:
        if not any(token in text for token in special_tokens):
            assert model.encode(text) == peer.encode(text).ids


@pytest.mark.parametrize("corpus", ["en", "ja"])
def test_training_on_real_text_equals_tokenizers(corpus):
    texts = (
        [text[:20_000] for text in datasets.shakespeare().values()][:4]
        if corpus == "en"
        else datasets.tatoeba_sentences("ja")[:1_500]
    )
    assert ByteLevelBPE.train(texts, 3000).merges == library_merges(library(texts, 3000))


@pytest.mark.slow
@pytest.mark.parametrize("corpus", ["en", "ja"])
def test_training_on_everything_equals_tokenizers(corpus):
    texts = (
        list(datasets.shakespeare().values())
        if corpus == "en"
        else datasets.tatoeba_sentences("ja")
    )
    assert ByteLevelBPE.train(texts, 8192).merges == library_merges(library(texts, 8192))


def test_overlapping_positions():
    def kept(places, length):
        return _without_overlap(np.array(places, np.int32), length).tolist()

    assert kept([], 1) == []
    assert kept([4], 1) == [4]
    assert kept([0, 1, 2, 3], 1) == [0, 2]
    assert kept([0, 1, 2, 7, 8, 10], 1) == [0, 2, 7, 10]
    assert kept([0, 3, 6, 7], 3) == [0, 6, 7]


def test_counts_beyond_32_bits():
    assert train_merges({"ab": 2**40, "bc": 2**40 - 1, "cd": 1}, 258, ())[1][0][:2] == (64, 65)
    assert train_merges({"bc": 2**31 - 1, "ab": 1, "xbcx": 2**31 - 1}, 257, ())[1] == [
        (65, 66, 256)
    ]


def test_ids_of_a_trained_model():
    model = small_model()
    assert model.vocab_size == 700
    assert model.special_tokens == {"<|endoftext|>": 0, "<|pad|>": 1}
    assert model.encode("!") == [2]
    for text in TRICKY:
        assert model.decode(model.encode(text)) == text


# ---- tokenizer.json ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "trained",
        "gpt2",
        pytest.param("cl100k_base", marks=pytest.mark.slow),
        pytest.param("o200k_base", marks=pytest.mark.slow),
    ],
)
def test_tokenizers_opens_a_saved_file(name, tmp_path):
    model = small_model() if name == "trained" else ours(name)
    path = model.save(tmp_path / "tokenizer.json")
    peer = Tokenizer.from_file(str(path))
    for text in [*TRICKY, *datasets.tatoeba_sentences("ja")[:100]]:
        if "\u0295" in text:  # tokenizers の正規表現の Unicode の版は、また別である
            continue
        assert peer.encode(text).ids == model.encode(text, allowed_special="all")
        assert peer.decode(model.encode(text)) == text
    specials = "a" + "b".join(model.special_tokens)
    assert peer.encode(specials).ids == model.encode(specials, allowed_special="all")
    again = ByteLevelBPE.load(path)
    assert again.merges == model.merges
    assert again.special_tokens == model.special_tokens
    assert again.vocab_size == model.vocab_size
    for text in TRICKY:
        assert again.encode(text) == model.encode(text)
    assert [file.name for file in tmp_path.iterdir()] == ["tokenizer.json"]


@pytest.mark.parametrize("name", NAMES)
def test_every_pattern_is_saved(name, tmp_path):
    small = small_model()
    model = ByteLevelBPE(small._table, small._ids, small.special_tokens, PATTERNS[name])
    path = model.save(tmp_path / "tokenizer.json")
    peer = Tokenizer.from_file(str(path))
    assert ByteLevelBPE.load(path).pattern == PATTERNS[name]
    for text in [*TRICKY, *datasets.tatoeba_sentences("en")[:50], "HELLO's I'LLx 12345//\n"]:
        if "\u0295" not in text:  # tokenizers の正規表現の Unicode の版は、また別である
            assert peer.encode(text).ids == model.encode(text, allowed_special="all")


def test_a_file_of_tokenizers_is_loaded(tmp_path):
    peer = library(TRICKY, 300, ["<s>"])
    peer.save(str(tmp_path / "tokenizer.json"))
    model = ByteLevelBPE.load(tmp_path / "tokenizer.json")
    for text in TRICKY:
        assert model.encode(text, "all") == peer.encode(text).ids


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = small_model().save(tmp_path / "tokenizer.json")
    before = path.read_bytes()

    def fail(*_):
        raise OSError("空き容量がない")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="空き容量"):
        ByteLevelBPE.train(["x"], 256).save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["tokenizer.json"]


def damaged(change):
    def apply(content):
        change(content)
        return json.dumps(content)

    return apply


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: "",
        lambda content: "[]",
        lambda content: "null",
        lambda content: json.dumps(content)[:-100],
        lambda content: b"\xff\xfe",
        damaged(lambda content: content.pop("model")),
        damaged(lambda content: content["model"].update(type="Unigram")),
        damaged(lambda content: content["model"].update(byte_fallback=True)),
        damaged(lambda content: content["model"]["vocab"].pop("!")),
        damaged(lambda content: content["model"]["vocab"].update({"!": "x"})),
        damaged(lambda content: content["model"]["vocab"].update({"!": 5})),
        damaged(lambda content: content["model"]["vocab"].update({"!": -1})),
        damaged(lambda content: content["model"]["vocab"].update({"xyzzy": 9999})),
        damaged(lambda content: content["model"]["merges"].reverse()),
        damaged(lambda content: content["model"]["merges"].append(["a"])),
        damaged(lambda content: content["model"]["merges"].append("猫 犬")),
        damaged(lambda content: content["model"]["merges"].append(7)),
        damaged(lambda content: content["model"].update(vocab=[])),
        damaged(lambda content: content.update(normalizer={"type": "NFC"})),
        damaged(lambda content: content.update(pre_tokenizer=None)),
        damaged(lambda content: content["pre_tokenizer"].update(add_prefix_space=True)),
        damaged(lambda content: content["pre_tokenizer"].update(use_regex=False)),
        damaged(lambda content: content["added_tokens"][0].update(id=5)),
        damaged(lambda content: content["added_tokens"][0].pop("content")),
    ],
)
def test_invalid_files_are_refused(damage, tmp_path):
    path = small_model().save(tmp_path / "tokenizer.json")
    changed = damage(json.loads(path.read_text(encoding="utf-8")))
    path.write_bytes(changed if isinstance(changed, bytes) else changed.encode())
    with pytest.raises(ValueError, match="path のファイルを読めません"):
        ByteLevelBPE.load(path)


# ---- 誤った入力 --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ((None, 300), TypeError, "texts"),
        (("abc", 300), TypeError, "texts"),
        (([b"abc"], 300), TypeError, r"texts\[0\].*decode"),
        ((["a", None], 300), TypeError, r"texts\[1\]"),
        ((["\udc00"], 300), ValueError, "サロゲート"),
        ((["abc"], 255), ValueError, "vocab_size.*256"),
        ((["abc"], 256, ["<s>"]), ValueError, "vocab_size.*257"),
        ((["abc"], -1), ValueError, "vocab_size"),
        ((["abc"], 300.0), TypeError, "vocab_size"),
        ((["abc"], None), TypeError, "vocab_size"),
        ((["abc"], True), TypeError, "vocab_size"),
        ((["abc"], 300, "<s>"), TypeError, "special_tokens"),
        ((["abc"], 300, [""]), ValueError, "special_tokens.*空"),
        ((["abc"], 300, ["<s>", "<s>"]), ValueError, "special_tokens.*2 度"),
        ((["abc"], 300, [None]), TypeError, "special_tokens"),
        ((["abc"], 300, ["é"]), ValueError, "special_tokens.*é"),
    ],
)
def test_bad_training_input_is_refused(arguments, error, said):
    with pytest.raises(error, match=said):
        ByteLevelBPE.train(*arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ((None,), TypeError, "text"),
        ((b"abc",), TypeError, "text.*decode"),
        (("a\ud800",), ValueError, "text.*サロゲート"),
        (("abc", "<|endoftext|>"), TypeError, "allowed_special"),
        (("abc", ["<|unknown|>"]), ValueError, "allowed_special"),
        (("abc", [["x"]]), TypeError, "allowed_special"),
        (("abc", None), TypeError, "allowed_special"),
    ],
)
def test_bad_encoding_input_is_refused(arguments, error, said):
    with pytest.raises(error, match=said):
        small_model().encode(*arguments)
    if said.startswith("text"):
        with pytest.raises(error, match=said.replace("text", r"texts\[1\]", 1)):
            small_model().encode_batch(["a", *arguments])


@pytest.mark.parametrize(
    ("ids", "error"),
    [
        ([700], ValueError),
        ([-1], ValueError),
        ([0, 10**30], ValueError),
        ([1.0], TypeError),
        (["a"], TypeError),
        ([None], TypeError),
        (None, TypeError),
        ("12", TypeError),
        (b"12", TypeError),
        (5, TypeError),
    ],
)
def test_bad_ids_are_refused(ids, error):
    for decode in (small_model().decode, small_model().decode_bytes):
        with pytest.raises(error, match="ids"):
            decode(ids)


def test_unused_ids_are_refused():
    with pytest.raises(ValueError, match=r"ids.*100256"):
        ours("cl100k_base").decode([100256])


@pytest.mark.parametrize(("name", "error"), [("gpt-2", ValueError), (None, TypeError)])
def test_unknown_vocabularies_are_refused(name, error):
    with pytest.raises(error, match="name"):
        ByteLevelBPE.from_pretrained(name)


def test_bytes_in_the_middle_of_a_character():
    model = ours("gpt2")
    ids = model.encode("猫")
    assert len(ids) > 1
    assert model.decode_bytes(ids[:1]) == "猫".encode()[: len(model.decode_bytes(ids[:1]))]
    assert model.decode(ids[:1]) == "\ufffd"
    assert model.decode([]) == ""
    assert model.decode_bytes(iter(ids)) == "猫".encode()


# ---- バイトと文字の対応、語彙ファイル ------------------------------------------------------


def test_byte_alphabet_is_that_of_gpt2():
    assert set(byte_level.BYTE_TO_CHAR) == set(pre_tokenizers.ByteLevel.alphabet())
    assert bytes_to_chars(b" the\n") == "ĠtheĊ"
    everything = bytes(range(256))
    assert chars_to_bytes(bytes_to_chars(everything)) == everything
    pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for text in TRICKY[1:]:
        assert bytes_to_chars(text.encode()) == pre_tokenizer.pre_tokenize_str(text)[0][0]
    with pytest.raises(ValueError, match="バイトに対応しない"):
        chars_to_bytes("猫")


@pytest.mark.parametrize("raw", [b"IQ==", b"IQ== x", b"!!! 0", b"IQ== 1", b"IQ== 0\nIQ== 1"])
def test_invalid_tiktoken_files_are_refused(raw):
    with pytest.raises(ValueError, match="raw"):
        byte_level.parse_tiktoken(raw)


def test_invalid_gpt2_files_are_refused():
    encoder, merges = datasets.gpt2_files()
    with pytest.raises(ValueError, match="食い違"):
        byte_level.parse_gpt2(encoder, merges[:-20].rsplit(b"\n", 1)[0])
    with pytest.raises(ValueError, match="GPT-2"):
        byte_level.parse_gpt2(b"{", merges)
    with pytest.raises(ValueError, match="GPT-2"):
        byte_level.parse_gpt2(encoder, b"#\na b c\n")


def test_patterns_are_readable_by_both_engines():
    for pattern in PATTERNS.values():
        regex.compile(pattern)
        tokenizers.Regex(pattern)
