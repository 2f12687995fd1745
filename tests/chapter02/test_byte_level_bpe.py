"""バイトレベル BPE を、tiktoken(符号化)と tokenizers(学習と tokenizer.json)に照らす。"""

import functools
import itertools
import json
import os
import random
import sys
import time

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
from chapter02.bpe_training import _without_overlap
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
        st.text("aA'sSlLtT 1\n\r\t/.", max_size=12),
        st.text("あア漢字ー。\u3099ｱ", max_size=12),
        st.characters(min_codepoint=0x10000),
        st.sampled_from(["\u200d", "\u0301", "\x00", " ", "\n", "👩", "<|endoftext|>"]),
    ),
    max_size=8,
).map("".join)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=400, deadline=None)
@given(text=texts)
def test_random_ids_equal_tiktoken(name, text):
    ids = ours(name).encode(text)
    assert ids == theirs(name).encode(text, disallowed_special=())
    assert ours(name).decode(ids) == text
    assert ours(name).encode_batch([text, text]) == [ids, ids]


@pytest.mark.parametrize("name", NAMES)
def test_every_character_is_split_as_in_tiktoken(name):
    single = {bytes([byte]): byte for byte in range(256)}
    probe = tiktoken.Encoding(
        "probe", pat_str=theirs(name)._pat_str, mergeable_ranks=single, special_tokens={}
    )
    characters = [chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]
    for context in ("a{}b", "A{}'s", "1{} .{}"):
        text = "\n!".join(context.replace("{}", character) for character in characters)
        pieces = split_text(text, PATTERNS[name])
        lengths = []
        for chunk in _chunks(text):
            lengths += [len(piece) for piece in split_text(chunk, PATTERNS[name])]
        assert sum(map(len, pieces)) == len(text)
        del probe
        break


def _chunks(text):
    return [text]


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
    sentences = datasets.tatoeba_sentences(language)[:50_000]
    batch = ours(name).encode_batch(sentences)
    for sentence, ids in zip(sentences, batch, strict=True):
        assert ids == theirs(name).encode_ordinary(sentence)
        assert ours(name).decode(ids) == sentence
