"""chapter03.translation と、その対訳 (parallel_text)・学習データ (translation_data)。"""

import hashlib
import itertools
import tomllib
import unicodedata

import pytest
import sacrebleu
import tomlkit
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from chapter03 import parallel_text, translation_data
from chapter03.parallel_text import fingerprint, is_short, key, normalise, split_pairs
from chapter03.transformer import Transformer, TransformerConfig
from chapter03.translation import (
    BOS,
    EOS,
    MAX_SOURCE,
    PAD,
    UNK,
    LengthBatches,
    Tokenizer,
    Translator,
    character_bleu,
    chrf,
    corpus,
    load_translator,
    prepare_data,
    references,
    weights_name,
)
from shared.archives import DataError

ANIMALS = {"cats": "猫", "dogs": "犬", "birds": "鳥", "fish": "魚", "cows": "牛", "bees": "蜂"}
PEOPLE = {"I": "私", "He": "彼", "She": "彼女", "Tom": "トム", "Mary": "メアリー"}
VERBS = {"like": "が好きです", "see": "を見ます"}
PAIRS = [
    (f"{who} {verb} {animal}.", f"{dare}は{nani}{dousuru}。")
    for (who, dare), (animal, nani), (verb, dousuru) in itertools.product(
        PEOPLE.items(), ANIMALS.items(), VERBS.items()
    )
]


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """小さな対訳と、空のキャッシュ。"""
    monkeypatch.setenv("GENAI_NOTES_DATA", str(tmp_path / "cache"))
    monkeypatch.setattr(parallel_text.datasets, "tatoeba", lambda *languages: list(PAIRS))
    monkeypatch.setattr(parallel_text, "SHARES", {"validation": 0.2, "test": 0.2})
    monkeypatch.setattr(translation_data, "VOCAB_SIZES", {"en": 60, "ja": 48})
    monkeypatch.setattr(translation_data, "COVERAGE", {"en": 1.0, "ja": 1.0})
    return tmp_path


@pytest.fixture(scope="module")
def tokenizers():
    """小さな対訳で学習したトークナイザー。"""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(translation_data, "VOCAB_SIZES", {"en": 60, "ja": 48})
        patch.setattr(translation_data, "COVERAGE", {"en": 1.0, "ja": 1.0})
        english, japanese = zip(*PAIRS, strict=True)
        return {"en": Tokenizer.train(english, "en"), "ja": Tokenizer.train(japanese, "ja")}


# ---- 正規化と分割 ----


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        ("Ｉ  like\tcats .", "en", "I like cats ."),
        ("It’s “fine”", "en", 'It\'s "fine"'),
        ("‘a’", "en", "'a'"),
        ("え?本当!", "ja", "え？本当！"),
        ("え？本当！", "ja", "え？本当！"),
        ("私 は 猫 が 好き", "ja", "私は猫が好き"),
        ("私は Tom Smith が", "ja", "私はTom Smithが"),
        ("ﾈｺ\u3000１２\u200b", "ja", "ネコ12"),
        ("  \n", "ja", ""),
        ("what?", "en", "what?"),
    ],
)
def test_normalise(text, language, expected):
    """全角と半角、空白、引用符、疑問符を揃える。"""
    assert normalise(text, language) == expected


@given(st.text(max_size=30), st.sampled_from(["en", "ja"]))
def test_normalise_twice_changes_nothing_more(text, language):
    """一度正規化した文は、もう動かない(NFKC だけで閉じない記号を除いて)。"""
    if any(c in unicodedata.normalize("NFKC", text) for c in "\u200b"):
        return
    once = normalise(text, language)
    if unicodedata.is_normalized("NFKC", once):
        assert normalise(once, language) == once


def test_normalise_refuses():
    """文字列でないもの、知らない言語は断る。"""
    with pytest.raises(TypeError, match="text には文字列"):
        normalise(3, "en")
    with pytest.raises(ValueError, match=r"language は .*'fr'"):
        normalise("a", "fr")


def test_key_ignores_case_marks_and_spaces():
    """同じ文とみなす範囲。英語の語の切れ目は残し、記号だけの文は消えない。"""
    assert key("It's  FINE!", "en") == key("its fine", "en") == "its fine"
    assert key("a nice", "en") != key("an ice", "en")
    assert key("はい、そう です。", "ja") == key("はいそうです", "ja")
    assert key("!?", "en") == "!?"


def components(pairs):
    """連結成分を素直に: 同じ鍵を持つ組を、変わらなくなるまで併せる。"""
    groups = [({("en", key(en, "en")), ("ja", key(ja, "ja"))}, [(en, ja)]) for en, ja in pairs]
    merged = True
    while merged:
        merged = False
        for a, b in itertools.combinations(range(len(groups)), 2):
            if groups[a][0] & groups[b][0]:
                (names, rows), (more, others) = groups[a], groups.pop(b)
                groups[a] = (names | more, rows + others)
                merged = True
                break
    return groups


def destination(names, shares):
    """成分の最小の鍵のハッシュ値から、行き先を独立に計算する。"""
    name = min(f"{language}:{text}" for language, text in names)
    number = int(hashlib.sha256(name.encode("utf-8")).hexdigest()[:16], 16) / 2**64
    if number < shares["validation"]:
        return "validation"
    return "test" if number < shares["validation"] + shares["test"] else "train"


words = st.sampled_from(["a", "A!", "b", "c", "d e", "D  e", "f", "g", "h"])
kana = st.sampled_from(["あ", "あ。", "い", "う", "え お", "えお", "か", "き"])


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(words, kana), max_size=9, unique=True), st.randoms())
@example([("b", "あ"), ("c", "い"), ("a", "う"), ("b", "い"), ("c", "う")], None)
def test_split_keeps_components_together(pairs, shuffler):
    """どの連結成分も一つの行き先にまとまり、行の順によらず、鍵の最小のもので決まる。"""
    shares = {"validation": 0.3, "test": 0.3}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel_text, "SHARES", shares)
        parts = split_pairs(pairs)
        shuffled = list(pairs)
        if shuffler:
            shuffler.shuffle(shuffled)
        again = split_pairs(shuffled)
    expected = {"train": [], "validation": [], "test": []}
    for names, rows in components(pairs):
        expected[destination(names, shares)] += rows
    assert {name: sorted(rows) for name, rows in expected.items()} == {
        name: sorted(rows) for name, rows in parts.items()
    }
    assert {name: set(rows) for name, rows in parts.items()} == {
        name: set(rows) for name, rows in again.items()
    }
    for name, rows in parts.items():  # 元の順のまま
        assert rows == [pair for pair in pairs if pair in rows], name
    for one, other in itertools.combinations(parts.values(), 2):
        assert not {key(en, "en") for en, _ in one} & {key(en, "en") for en, _ in other}
        assert not {key(ja, "ja") for _, ja in one} & {key(ja, "ja") for _, ja in other}


def test_split_has_the_planned_shares():
    """独立な対訳の約 0.85 % が検証、約 1.27 % が試験になる。"""
    parts = split_pairs((f"w{i}", f"語{i}") for i in range(20_000))
    assert len(parts["validation"]) / 20_000 == pytest.approx(0.0085, abs=0.0025)
    assert len(parts["test"]) / 20_000 == pytest.approx(0.0127, abs=0.0025)
    assert sum(map(len, parts.values())) == 20_000


def test_corpus_limits_lengths_and_drops_repeats(tiny, monkeypatch):
    """学習は 12 語・30 字まで、評価は 8 語まで。正規化して同じ行は一つ、空の行はなし。"""
    rows = [(" ".join(["w"] * n) + str(n), "字" * n + str(n)) for n in range(1, 40)]
    rows += [("w1", "字1"), ("Ｗ1", "字1"), ("", "空"), ("x", " ")]
    monkeypatch.setattr(parallel_text.datasets, "tatoeba", lambda *languages: rows)
    parts = corpus()
    everything = [pair for part in parts.values() for pair in part]
    assert len(set(everything)) == len(everything)
    assert all(en and ja for en, ja in everything)
    assert parts["train"]
    assert all(is_short(pair) for pair in parts["train"])
    assert max(len(en.split()) for part in ("validation", "test") for en, _ in parts[part]) <= 8


@pytest.mark.parametrize(
    ("n_words", "n_characters", "expected"),
    [(12, 30, True), (13, 30, False), (12, 31, False)],
)
def test_is_short(n_words, n_characters, expected):
    """境目の長さは含む。"""
    assert is_short((" ".join(["w"] * n_words), "字" * n_characters)) is expected


def test_fingerprint_sees_every_change():
    """一文字でも、行き先でも、変われば別の値になる。"""
    base = fingerprint({"train": [("a", "b")], "test": []})
    assert base == fingerprint({"train": [("a", "b")], "test": []})
    assert base != fingerprint({"train": [("a", "c")], "test": []})
    assert base != fingerprint({"train": [], "test": [("a", "b")]})


def test_references_collects_every_answer():
    """原文ごとに、訳のすべてを集める。"""
    pairs = [("a", "あ"), ("b", "い"), ("a", "う")]
    assert references(pairs, "en-ja") == {"a": ["あ", "う"], "b": ["い"]}
    assert references(pairs, "ja-en") == {"あ": ["a"], "い": ["b"], "う": ["a"]}
    with pytest.raises(ValueError, match=r"direction は .*'en-fr'"):
        references(pairs, "en-fr")


# ---- トークナイザー ----


def test_tokenizer_ids_and_round_trip(tokenizers):
    """id は 0 から 3 が特別で、学習した文は元に戻る。"""
    assert (PAD, BOS, EOS, UNK) == (0, 1, 2, 3)
    for column, (language, size) in enumerate({"en": 60, "ja": 48}.items()):
        tokenizer = tokenizers[language]
        assert tokenizer.vocab_size == size
        assert tokenizer.pieces(range(4)) == ["<pad>", "<s>", "</s>", "<unk>"]
        for pair in PAIRS:
            ids = tokenizer.encode(pair[column])
            assert all(UNK < i < size for i in ids)
            assert tokenizer.decode([BOS, *ids, EOS, PAD]) == pair[column]
            joined = "".join(tokenizer.pieces(ids)).replace("\u2581", " ")
            assert joined.strip() == pair[column]


def test_unknown_characters(tokenizers):
    """知らない文字は UNK になり、復号では ⁇ になる。"""
    ids = tokenizers["ja"].encode("龍")
    assert ids == [UNK]
    assert tokenizers["ja"].decode(ids) == "⁇"


def test_japanese_has_no_leading_space_mark(tokenizers):
    """文頭の「猫」も文中の「猫」も同じ断片。英語では文頭に空白の記号がつく。"""
    assert tokenizers["ja"].pieces(tokenizers["ja"].encode("猫"))[0][0] != "\u2581"
    assert tokenizers["en"].pieces(tokenizers["en"].encode("cats"))[0][0] == "\u2581"


def test_tokenizer_json(tokenizers):
    """JSON にして戻しても、id は変わらない。壊れた JSON は断る。"""
    for column, language in enumerate(("en", "ja")):
        again = Tokenizer.from_json(tokenizers[language].to_json())
        assert again.to_json() == tokenizers[language].to_json()
        assert again.language == language
        for pair in PAIRS:
            assert again.encode(pair[column]) == tokenizers[language].encode(pair[column])
    for broken in ("{", "[]", "{}", '{"pieces": [], "log_probs": [], "language": "en"}'):
        with pytest.raises(ValueError, match="トークナイザーの JSON が壊れています"):
            Tokenizer.from_json(broken)


# ---- 学習データ ----


def test_prepare_data(tiny):
    """2 度目はキャッシュから同じものを読み、訳文に未知のある組は学習に使わない。"""
    data, again = prepare_data(), prepare_data()
    assert data.encoded == again.encoded
    assert data.sha256 == again.sha256 == fingerprint(data.parts)
    assert len(data.encoded) == len(data.parts["train"])
    for (en, ja), ids in zip(data.parts["train"], data.encoded, strict=True):
        assert ids == (data.tokenizers["en"].encode(en), data.tokenizers["ja"].encode(ja))
    assert data.training_pairs("en-ja") == [([*en, EOS], ja) for en, ja in data.encoded]
    assert data.training_pairs("ja-en") == [([*ja, EOS], en) for en, ja in data.encoded]
    data.encoded[0] = (data.encoded[0][0], [UNK])
    data.encoded[1] = ([UNK], data.encoded[1][1])
    kept = data.training_pairs("en-ja")
    assert len(kept) == len(data.encoded) - 1
    assert kept[0] == ([UNK, EOS], data.encoded[1][1])


@pytest.mark.parametrize("name", ["tokenizer_ja.json", "train_en.npz"])
def test_broken_cache_is_named(tiny, name):
    """壊れたキャッシュは、その場所と、作り直し方を述べる。"""
    prepare_data()
    [path] = (tiny / "cache").rglob(name)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DataError, match=f"{name} が壊れています.*作り直します"):
        prepare_data()


rows = st.lists(st.integers(3, 9), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(
    pairs=st.lists(st.tuples(rows, rows), min_size=1, max_size=30),
    max_tokens=st.integers(13, 60),
    seed=st.integers(0, 99),
)
def test_length_batches(pairs, max_tokens, seed):
    """一周でどの組もちょうど一度。詰めものは後ろだけ、大きさは上限まで、tgt は 1 ずれる。"""
    batches = LengthBatches(pairs, max_tokens, torch.Generator().manual_seed(seed))
    seen = []
    found = list(batches)
    assert len(found) == len(batches)
    for batch in found:
        src, tgt_in, tgt_out = batch["src"], batch["tgt_in"], batch["tgt_out"]
        assert max(src.numel(), tgt_out.numel()) <= max_tokens
        assert all((ids[:, -1] != PAD).any() for ids in (src, tgt_in, tgt_out))  # 余りがない
        for source, into, out in zip(src.tolist(), tgt_in.tolist(), tgt_out.tolist(), strict=True):
            length = sum(i != PAD for i in out)
            assert into[0] == BOS
            assert out[length - 1] == EOS
            assert into[1:length] == out[: length - 1]
            assert not any(into[length:])
            assert not any(out[length:])
            n = sum(i != PAD for i in source)
            assert not any(source[n:])
            seen.append((source[:n], out[: length - 1]))
    assert sorted(seen) == sorted((list(s), list(t)) for s, t in pairs)


def test_length_batches_follow_the_generator():
    """乱数の状態が同じなら同じ列、次の周は違う列。len は周によらない。"""
    pairs = [([3 + i % 5] * (1 + i % 4), [4 + i] * (1 + i % 3)) for i in range(60)]

    def epochs(seed):
        batches = LengthBatches(pairs, 12, torch.Generator().manual_seed(seed))
        return [[batch["tgt_out"].tolist() for batch in batches] for _ in range(2)]

    first, second = epochs(0)
    assert epochs(0) == [first, second]
    assert first != second != epochs(1)[0]
    assert len(first) == len(second)
    lengths = [len(batch[0]) for batch in first]
    assert lengths != sorted(lengths)  # バッチの順も乱数
    state = torch.Generator().manual_seed(0)
    LengthBatches(pairs, 12, state)
    assert torch.equal(state.get_state(), torch.Generator().manual_seed(0).get_state())


def test_length_batches_fill_the_limit():
    """もう一つ足せば上限を超えるところまで詰める。長さの近い組が一緒になる。"""
    pairs = [([3] * 2, [4] * 2)] * 7 + [([3] * 2, [4] * 9)] * 2
    batches = LengthBatches(pairs, 12, torch.Generator())
    shapes = sorted(tuple(batch["tgt_out"].shape) for batch in batches)
    assert shapes == [(1, 10), (1, 10), (3, 3), (4, 3)] or shapes.count((4, 3)) == 1
    assert max(n * m for n, m in shapes) == 12


def test_length_batches_refuse():
    """空の対訳と、収まらない文は断る。"""
    with pytest.raises(ValueError, match="pairs が空"):
        LengthBatches([], 10, torch.Generator())
    with pytest.raises(ValueError, match=r"最も長い文の 5 以上.*: 4"):
        LengthBatches([([3], [4] * 4)], 4, torch.Generator())
    with pytest.raises(TypeError, match="max_tokens"):
        LengthBatches([([3], [4])], 1.5, torch.Generator())


# ---- 評価 ----

HYPOTHESES = ["私は猫が好きです。", "彼は犬を見ます", "鳥"]
ANSWERS = [
    ["私は猫が好きだ。", "僕は猫が好きです。"],
    ["彼は犬を見ます。"],
    ["鳥です", "鳥", "小鳥"],
]
PADDED = [row + row[:1] * (3 - len(row)) for row in ANSWERS]  # 同じ正解を重ねても値は同じ


def test_bleu_and_chrf_equal_sacrebleu():
    """sacrebleu を直接呼んだ値に等しい。正解の数が文ごとに違ってもよい。"""
    columns = [list(column) for column in zip(*PADDED, strict=True)]
    char = sacrebleu.BLEU(tokenize="char").corpus_score(HYPOTHESES, columns).score
    assert character_bleu(HYPOTHESES, PADDED) == pytest.approx(char, rel=1e-12)
    assert character_bleu(HYPOTHESES, ANSWERS) == pytest.approx(char, rel=1e-12)
    expected = sacrebleu.CHRF().corpus_score(HYPOTHESES, columns).score
    assert chrf(HYPOTHESES, PADDED) == pytest.approx(expected, rel=1e-12)
    assert chrf(HYPOTHESES, ANSWERS) == pytest.approx(expected, rel=1e-12)
    english = ["I like cats.", "He is here, isn't he?"]
    answers = [["I like a cat."], ["He is here, is he not?"]]
    words = sacrebleu.BLEU(tokenize="13a").corpus_score(english, [[a[0] for a in answers]]).score
    assert character_bleu(english, answers, "en") == pytest.approx(words, rel=1e-12)


def test_perfect_translations_score_100():
    """正解のどれかと同じ訳は満点で、正解の順によらない。"""
    perfect = [row[-1] for row in ANSWERS]
    assert character_bleu(perfect, ANSWERS) == pytest.approx(100)
    assert chrf(perfect, ANSWERS) == pytest.approx(100)
    assert character_bleu(perfect, [row[::-1] for row in ANSWERS]) == pytest.approx(100)


@pytest.mark.parametrize("score", [character_bleu, chrf])
def test_scores_refuse(score):
    """文がない、数が合わない、正解が並びでない、空のときは断る。"""
    for hypotheses, answers in (([], []), (["a"], [["b"], ["c"]])):
        with pytest.raises(ValueError, match="hypotheses と references は同じ数"):
            score(hypotheses, answers)
    for answers in (["b"], [[]]):
        with pytest.raises(ValueError, match=r"references\[0\] には"):
            score(["a"], answers)


def test_bleu_refuses_other_languages():
    """数え方を決めていない言語は断る。"""
    with pytest.raises(ValueError, match=r"language は .*'fr'"):
        character_bleu(["a"], [["a"]], "fr")


# ---- 翻訳器 ----


def write_translator(folder, tokenizers, **changes):
    """乱数の重みの翻訳器を、train_translator と同じ形で `folder` に書く。"""
    torch.manual_seed(1)
    sizes = {"d_model": 16, "n_heads": 2, "n_layers": 1, "d_ff": 16, "max_len": 256}
    config = {"src_vocab_size": 60, "tgt_vocab_size": 48, **sizes}
    model = Transformer(TransformerConfig(**config)).eval()
    state = {k: v.to(torch.bfloat16) for k, v in model.state_dict().items()}
    del state["output.weight"]
    files = {weights_name("en-ja"): save({k: v.contiguous() for k, v in state.items()})}
    for language, tokenizer in tokenizers.items():
        files[f"tokenizer_{language}.json"] = tokenizer.to_json().encode()
    manifest = {}
    for name, data in files.items():
        (folder / name).write_bytes(data)
        manifest[name] = {"sha256": hashlib.sha256(data).hexdigest()}
    manifest[weights_name("en-ja")]["config"] = {**config, **changes}
    (folder / "manifest.toml").write_text(tomlkit.dumps(manifest), encoding="utf-8")
    return {name: value.float() for name, value in state.items()}


@pytest.fixture
def translator(tmp_path, tokenizers) -> Translator:
    """乱数の重みの翻訳器。"""
    write_translator(tmp_path, tokenizers)
    return load_translator("en-ja", tmp_path)


def test_loaded_weights_are_the_stored_ones(tmp_path, tokenizers):
    """書いた重みがそのまま読め、出力の写像は出力側の埋め込みと同じもの。"""
    stored = write_translator(tmp_path, tokenizers)
    loaded = load_translator("en-ja", tmp_path)
    found = loaded.model.state_dict()
    assert all(torch.equal(found[name], value) for name, value in stored.items())
    assert set(found) == {*stored, "output.weight"}
    assert loaded.model.output.weight is loaded.model.tgt_embedding.weight
    assert not loaded.model.training
    assert (loaded.source.language, loaded.target.language) == ("en", "ja")


def test_translate_and_explain_agree(translator):
    """一文ずつ、まとめて、候補つきの三つが同じ訳文になり、交差注意の形と和が合う。"""
    texts = ["I like cats.", "I like dogs.", "I see cats."]
    assert len({len(translator.source.encode(text)) for text in texts}) == 1  # 訳の長さの上限も同じ
    one_by_one = [translator.translate(text, beam_size=3) for text in texts]
    assert translator.translate_all(texts, beam_size=3) == one_by_one
    for text, expected in zip(texts, one_by_one, strict=True):
        found = translator.explain(text, beam_size=3)
        assert found.text == expected == found.candidates[0][0]
        scores = [score for _, score in found.candidates]
        assert len(scores) == 3
        assert scores == sorted(scores, reverse=True)
        assert found.source_pieces[-1] == found.target_pieces[-1] == "</s>"
        shape = (2, len(found.target_pieces), len(found.source_pieces))
        assert [tuple(weights.shape) for weights in found.cross_attention] == [shape]
        total = found.cross_attention[0].sum(-1)
        torch.testing.assert_close(total, torch.ones_like(total))
    assert translator.translate_all([]) == []


def test_translator_normalises_and_reads_unknown_characters(translator):
    """全角の英字や余分な空白は揃えてから訳し、知らない文字でも止まらない。"""
    assert translator.translate("Ｉ  like cats.") == translator.translate("I like cats.")
    assert isinstance(translator.translate("龍"), str)


@pytest.mark.parametrize("text", ["", "  \n", "\u3000"])
def test_translator_refuses_empty_text(translator, text):
    """空の文は断る。"""
    for call in (translator.translate, translator.explain):
        with pytest.raises(ValueError, match="text が空です"):
            call(text)
    with pytest.raises(ValueError, match="text が空です"):
        translator.translate_all(["I", text])


def test_translator_refuses_long_text_and_other_types(translator):
    """63 トークンまでは訳し、64 からは断る。文字列でないもの、並びでないものも断る。"""
    assert len(translator.source.encode("I " * (MAX_SOURCE - 1))) == MAX_SOURCE - 1 == 63
    assert isinstance(translator.translate("I " * 63, beam_size=1), str)
    with pytest.raises(ValueError, match=r"text は 63 トークン以下.*: 64 トークン"):
        translator.translate("I " * 64)
    for bad in (None, 3, b"cats", ["cats"]):
        with pytest.raises(TypeError, match="text には文字列"):
            translator.translate(bad)
    with pytest.raises(TypeError, match="texts には文の並び"):
        translator.translate_all("cats")
    with pytest.raises(ValueError, match="beam_size"):
        translator.translate("cats", beam_size=0)


@pytest.mark.parametrize(
    "name", ["translator_en-ja.safetensors", "tokenizer_en.json", "tokenizer_ja.json"]
)
def test_flipped_byte_is_noticed(tmp_path, tokenizers, name):
    """一ビットでも違えば、ファイルの名前と二つの SHA-256 を述べて断る。"""
    write_translator(tmp_path, tokenizers)
    data = bytearray((tmp_path / name).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / name).write_bytes(data)
    found = hashlib.sha256(data).hexdigest()[:12]
    with pytest.raises(ValueError, match=f"{name} が壊れています.*{found}.*取り直してください"):
        load_translator("en-ja", tmp_path)


@pytest.mark.parametrize(
    "name", ["manifest.toml", "translator_en-ja.safetensors", "tokenizer_ja.json"]
)
def test_missing_file_is_named(tmp_path, tokenizers, name):
    """ないファイルの名前と、作る命令を述べる。"""
    write_translator(tmp_path, tokenizers)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name} .*--direction en-ja で作って"):
        load_translator("en-ja", tmp_path)


@pytest.mark.parametrize("content", [b"[broken", b"\xff\xfe", b'a = "x'])
def test_broken_manifest_is_named(tmp_path, tokenizers, content):
    """読めない manifest.toml は、日本語で断る。"""
    write_translator(tmp_path, tokenizers)
    (tmp_path / "manifest.toml").write_bytes(content)
    with pytest.raises(ValueError, match=r"manifest\.toml が壊れています.*取り直してください"):
        load_translator("en-ja", tmp_path)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda m, n: m.pop(n), FileNotFoundError, r"manifest\.toml に {n} がありません"),
        (lambda m, n: m[n].pop("sha256"), ValueError, "{n} に sha256 がありません"),
        (lambda m, n: m[n].update(sha256="0" * 64), ValueError, "{n} が壊れています.*000000000000"),
        (lambda m, n: m[n].pop("config"), ValueError, "{n} と manifest.toml の config が合い"),
        (lambda m, n: m[n]["config"].update(d_model=8), ValueError, "{n} と manifest.toml"),
        (lambda m, n: m[n]["config"].update(n_layers=2), ValueError, "{n} と manifest.toml"),
        (lambda m, n: m[n]["config"].update(layers=2), ValueError, "{n} と manifest.toml"),
    ],
)
def test_wrong_manifest_is_named(tmp_path, tokenizers, change, error, message):
    """項目がない、値が違う manifest.toml は、何が合わないかを述べて断る。"""
    write_translator(tmp_path, tokenizers)
    path, name = tmp_path / "manifest.toml", weights_name("en-ja")
    manifest = tomllib.loads(path.read_text(encoding="utf-8"))
    change(manifest, name)
    path.write_text(tomlkit.dumps(manifest), encoding="utf-8")
    with pytest.raises(error, match=message.format(n=name)):
        load_translator("en-ja", tmp_path)


def test_unknown_direction_is_refused():
    """知らない向きは断る。"""
    with pytest.raises(ValueError, match=r"direction は .*'en-de'"):
        load_translator("en-de")
