"""モデルファイルの読み取りを、sentencepiece 自身の分割と比べる。"""

import contextlib
import io
import random
import struct
import unicodedata

import pytest
import sentencepiece

from chapter02.sentencepiece_model import CharsMap, Normalizer, nmt_nfkc, read_model
from chapter02.unigram import Unigram
from shared import datasets

ALPHABET = (
    "aab  \t\n\u3000あああアアガガヴ゙がギーー～~▁１２3①㌔ｶﾞﾊﾟ한각é́e\u0301\u200d\u200b\ufeff👨‍👩‍👧🇯🇵"
    "\0\x01\x7f<sep>。、「」ﬁ𠮟\u0344\u00a8f"
)
SETTINGS = {
    "default": {},
    "identity": {"normalization_rule_name": "identity"},
    "byte": {"byte_fallback": True},
    "identity_byte": {"byte_fallback": True, "normalization_rule_name": "identity"},
    "symbols": {"user_defined_symbols": ["<sep>", "㌔a", "１", "１２"], "control_symbols": ["<c>"]},
    "no_dummy": {"add_dummy_prefix": False, "normalization_rule_name": "nfkc_cf"},
    "keep_spaces": {"remove_extra_whitespaces": False, "unk_surface": "[?]"},
    "suffix": {"treat_whitespace_as_suffix": True, "unk_id": 3, "bos_id": 0, "eos_id": 1},
}


def train(sentences, **settings):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        model_type="unigram",
        num_threads=1,
        minloglevel=2,
        **{"vocab_size": 1500, "character_coverage": 0.98, **settings},
    )
    return model.getvalue()


@pytest.fixture(scope="module")
def sentences():
    return datasets.tatoeba_sentences("ja"), datasets.tatoeba_sentences("en")


def strange_texts(n):
    generator = random.Random(1)
    texts = ["".join(generator.choices(ALPHABET, k=generator.randint(0, 20))) for _ in range(n)]
    texts += ["".join(generator.choices("aあ ▁", k=60)) for _ in range(n // 10)]
    return [*texts, "１２３１３", "", " ", "▁", "▁▁a▁", "\x01", "\x7f \x01", "a" * 500, "あ" * 501]


def assert_same(data, texts, folder, n_random=300):
    library = sentencepiece.SentencePieceProcessor(model_proto=data)
    file = folder / "m.model"
    file.write_bytes(data)
    model = Unigram.from_sentencepiece(file)
    ids = [model.encode(text) for text in texts]
    assert ids == library.encode(texts)
    assert [model.tokenize(t) for t in texts[:500]] == library.encode(texts[:500], out_type=str)
    generator = random.Random(2)
    ids = ids[:2000] + [
        [generator.randrange(model.vocab_size) for _ in range(generator.randint(0, 12))]
        for _ in range(n_random)
    ]
    assert [model.decode(row) for row in ids] == library.decode(ids)
    return model, library


@pytest.mark.parametrize("name", SETTINGS)
def test_ids_and_texts_equal_the_library(name, sentences, tmp_path):
    japanese, english = sentences
    data = train(japanese[:1500] + english[:1500], **SETTINGS[name])
    texts = strange_texts(400) + japanese[50_000:50_300] + english[50_000:50_300]
    model, library = assert_same(data, texts, tmp_path)
    for text in japanese[60_000:60_003]:
        found = model.nbest(text, 5)
        assert [pieces for pieces, _ in found] == library.nbest_encode(
            text, nbest_size=5, out_type=str
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"vocab_size": 8000},
        {"vocab_size": 8000, "normalization_rule_name": "identity"},
        {"vocab_size": 8000, "byte_fallback": True},
        {"vocab_size": 8000, "byte_fallback": True, "normalization_rule_name": "identity"},
    ],
    ids=["nmt_nfkc", "identity", "nmt_nfkc-byte", "identity-byte"],
)
def test_twenty_thousand_sentences_get_the_ids_of_the_library(settings, sentences, tmp_path):
    japanese, english = sentences
    data = train(japanese[:20_000] + english[:20_000], character_coverage=0.995, **settings)
    assert_same(data, japanese[-10_000:] + english[-10_000:], tmp_path)


def test_log_likelihood_uses_the_scores_of_the_model(sentences, tmp_path):
    data = train(sentences[0][:1500])
    model, library = assert_same(data, ["猫が好きです。"], tmp_path)
    (pieces, log_prob), *_ = model.nbest("猫が好きです。", 3)
    assert pieces == library.encode("猫が好きです。", out_type=str)
    scores = [library.get_score(library.piece_to_id(piece)) for piece in pieces]
    assert log_prob == pytest.approx(sum(scores), abs=1e-9)
    assert model.log_likelihood("猫が好きです。") > log_prob


def test_nmt_nfkc_equals_the_rules_in_the_library_for_every_character(sentences):
    model = read_model(train(sentences[1][:500], vocab_size=300), "m")
    library = model.normalizer.replace
    differ = [
        code
        for code in range(0x110000)
        if not 0xD800 <= code < 0xE000
        and unicodedata.category(chr(code)) != "Cn"
        and library(chr(code)) != nmt_nfkc(chr(code))
    ]
    # 組み込みの規則より新しい Unicode で増えた文字だけが違う。
    assert len(differ) < 200
    assert all(library(chr(code)) == chr(code) for code in differ)
    for text in ("か\u3099", "ハ\u309a", "e\u0301", "ｶﾞ", "㌔～~", "한", "\u1112\u1161\u11ab"):
        assert library(text) == nmt_nfkc(text)


def test_spaces_are_tidied_and_marked():
    normalizer = Normalizer(nmt_nfkc)
    assert normalizer.normalize("  a \t b\u3000") == "▁a▁b"
    assert normalizer.normalize(" \n ") == ""
    assert Normalizer(str, add_dummy_prefix=False).normalize("a b ") == "a▁b"
    assert Normalizer(str, remove_extra_whitespaces=False).normalize("a  ") == "▁a▁▁"
    assert Normalizer(str, escape_whitespaces=False).normalize("a  b") == " a b"
    assert Normalizer(str, whitespace_as_suffix=True).normalize("a b") == "a▁b▁"


def field(number, payload):
    """長さつきのフィールドを 1 つ書く(テスト用の最小の符号化)。"""
    assert len(payload) < 128
    return bytes([number << 3 | 2, len(payload)]) + payload


def piece(text, score, kind):
    body = field(1, text.encode()) + b"\x15" + struct.pack("<f", score) + bytes([0x18, kind])
    return field(1, body)


SMALL = piece("<unk>", 0.0, 2) + piece("a", -1.0, 1) + piece("ab", -1.5, 1)


def test_a_hand_written_model_is_read(tmp_path):
    model = read_model(SMALL, "m")
    assert model.pieces == ["<unk>", "a", "ab"]
    assert model.scores == [0.0, -1.0, -1.5]
    assert not model.byte_fallback
    assert model.normalizer.add_dummy_prefix
    file = tmp_path / "small.model"
    file.write_bytes(SMALL + piece("b", -9.0, 5))  # 使われない断片 (UNUSED)
    assert Unigram.from_sentencepiece(str(file)).encode("abb") == [0, 2, 0]


def test_user_defined_pieces_get_the_bonus_of_the_library(tmp_path):
    data = SMALL + piece("b", -4.0, 1) + piece("abb", 0.0, 4)
    file = tmp_path / "m.model"
    file.write_bytes(data)
    model = Unigram.from_sentencepiece(file)
    library = sentencepiece.SentencePieceProcessor(model_proto=data)
    assert model.log_probs[4] == pytest.approx(3 * -1.0 - 0.1, abs=1e-6)
    for text in ("abb", "aabb", "abbabb"):
        assert model.encode(text) == library.encode(text)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a model",
        b"\xff" * 40,
        SMALL[:-1],
        SMALL[:9],
        piece("a", -1.0, 1),  # <unk> がない
        piece("<unk>", 0.0, 2),  # 通常の断片がない
        SMALL + piece("a", -2.0, 1),  # 重複
        SMALL + piece("", -2.0, 1),
        SMALL + piece("c", float("nan"), 1),
        SMALL + piece("c", -1.0, 9),  # 知らない種類
        SMALL + field(1, field(1, b"\xff\xfe")),  # UTF-8 でない
        SMALL + field(2, b"\x18\x02"),  # model_type = BPE
        SMALL + field(2, b"\x98\x02\x01"),  # byte_fallback なのにバイトの断片がない
        SMALL + field(3, field(2, b"\x08\x00\x00\x00abc")),  # charsmap の大きさが合わない
        SMALL + field(5, field(2, b"abcd")),  # denormalizer_spec
        SMALL + b"\x08\x01",  # 断片が整数
    ],
)
def test_corrupted_models_are_refused(data, tmp_path):
    file = tmp_path / "broken.model"
    file.write_bytes(data)
    with pytest.raises(ValueError, match=r"model_file .*broken\.model"):
        Unigram.from_sentencepiece(file)


def test_every_truncation_of_a_real_model_is_refused_or_consistent(sentences):
    data = train(sentences[1][:300], vocab_size=200)
    for size in random.Random(0).sample(range(len(data)), 60):
        with contextlib.suppress(ValueError):  # ほかの例外なら失敗する
            model = read_model(data[:size], "m")
            assert len(model.pieces) == len(model.scores) == len(model.kinds)


def test_a_broken_trie_is_reported_when_it_is_used():
    blob = struct.pack("<I4I", 16, 1 << 10, 5, 6, 7) + b"\0"
    with pytest.raises(ValueError, match="precompiled_charsmap"):
        CharsMap(blob).replace("あ")


def test_other_arguments_are_refused(tmp_path):
    for wrong in (None, 3, b"m.model"):
        with pytest.raises(TypeError, match="model_file"):
            Unigram.from_sentencepiece(wrong)
    with pytest.raises(FileNotFoundError):
        Unigram.from_sentencepiece(tmp_path / "none.model")
