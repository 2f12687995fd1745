"""chapter04.japanese_gpt の検査: 確率の足し方、続きの書き方、重みの読み書き。"""

import math
from dataclasses import asdict

import pytest
import torch

from chapter02.byte_level_bpe import ByteLevelBPE
from chapter04 import japanese_gpt
from chapter04.gpt import GPT, GPTConfig
from chapter04.japanese_gpt import MODEL, SPECIAL_TOKENS, TOKENIZER, JapaneseGPT, load, log_probs
from shared import weights

TEXTS = ["私は猫が好きです。", "猫は私が嫌いです。", "犬も好きです。", "雨が降る。"]


@pytest.fixture(scope="module")
def gpt():
    torch.manual_seed(0)
    tokenizer = ByteLevelBPE.train(TEXTS, 280, SPECIAL_TOKENS)
    config = GPTConfig(
        vocab_size=tokenizer.vocab_size, context=16, d_model=16, n_heads=2, n_layers=2, dropout=0.1
    )
    model = GPT(config)
    for parameter in model.parameters():
        parameter.data.mul_(8)  # 初期値のままでは、確率がほとんど一様になる
    return JapaneseGPT(model, tokenizer)


@torch.no_grad()
def one_by_one(model, ids, start):
    """定義どおり: 窓のはじめから順に、1 トークンずつの log P を足す。"""
    total, context = 0.0, model.config.context
    for t in range(start, len(ids)):
        first = (t - 1) // context * context
        logits = model(torch.tensor([ids[first:t]]))[0, -1]
        total += float(logits.log_softmax(-1)[ids[t]])
    return total


def test_log_probs_equal_the_plain_sum(gpt):
    """長さの違う列、文脈より長い列、途中から数える列のどれも、1 つずつ足した値に等しい。"""
    generator = torch.Generator().manual_seed(1)
    lengths, starts = [2, 5, 16, 17, 18, 33, 40], [1, 3, 1, 1, 17, 20, 1]
    rows = [torch.randint(280, (n,), generator=generator).tolist() for n in lengths]
    expected = [one_by_one(gpt.model, row, s) for row, s in zip(rows, starts, strict=True)]
    assert log_probs(gpt.model, rows, starts) == pytest.approx(expected, abs=1e-4)
    assert log_probs(gpt.model, rows[:1]) == pytest.approx(expected[:1], abs=1e-4)


@pytest.mark.parametrize(
    ("bad", "error", "words"),
    [
        ([3], ValueError, "は 2 トークン以上"),
        ([3, -1], ValueError, "は 0 以上.*-1"),
        ([3, 280], ValueError, "の id は 0 以上 280 未満.*280"),
        ([3, 1.5], TypeError, r"には整数.*1\.5"),
        ([3, True], TypeError, "には整数.*True"),
        ("猫が", TypeError, "には整数.*猫"),
    ],
)
def test_log_probs_refuse_other_ids(gpt, bad, error, words):
    with pytest.raises(error, match=rf"sequences\[1\] {words}"):
        log_probs(gpt.model, [[1, 2], bad])


@pytest.mark.parametrize(
    ("starts", "error", "words"),
    [
        ([1], ValueError, "starts を sequences と同じ数.*1 個と 2 個"),
        ([1, 0], ValueError, r"starts\[1\] は 1 以上"),
        ([1, 3], ValueError, r"starts\[1\] は sequences\[1\] の長さ 3 未満.*3"),
        ([1, 1.0], TypeError, r"starts\[1\] には整数"),
    ],
)
def test_log_probs_refuse_starts_outside_the_rows(gpt, starts, error, words):
    with pytest.raises(error, match=words):
        log_probs(gpt.model, [[1, 2], [1, 2, 3]], starts)


def test_many_rows_keep_their_order(gpt):
    """64 列を超えても、値はもとの順に並ぶ。"""
    rows = [[i % 280, (7 * i) % 280, *([5] * (i % 9))] for i in range(130)]
    alone = [log_probs(gpt.model, [row])[0] for row in rows]
    assert log_probs(gpt.model, rows) == pytest.approx(alone, abs=1e-4)


def test_bits_per_byte_by_definition(gpt):
    """区切りで始め、終わりの区切りまで当てる。バイト数に区切りは数えない。"""
    total = 0.0
    for sentence in TEXTS[:2]:
        ids = [gpt.end, *gpt.tokenizer.encode(sentence), gpt.end]
        total -= one_by_one(gpt.model, ids, 1)
    n_bytes = sum(len(sentence.encode()) for sentence in TEXTS[:2])
    assert gpt.bits_per_byte(TEXTS[:2]) == pytest.approx(total / math.log(2) / n_bytes, rel=1e-5)
    with pytest.raises(ValueError, match="texts"):
        gpt.bits_per_byte([""])


def test_log_prob_is_a_chain(gpt):
    """log P(書き出し) + log P(続き | 書き出し) は、つないだ id の log P に等しい。"""
    first, rest = "私は", "猫"
    ids = [gpt.end, *gpt.tokenizer.encode(first), *gpt.tokenizer.encode(rest)]
    whole = log_probs(gpt.model, [ids])[0]
    chain = gpt.log_prob(first) + gpt.log_prob(rest, given=first)
    assert chain == pytest.approx(whole, abs=1e-4)
    with pytest.raises(ValueError, match="text が空"):
        gpt.log_prob("")


def test_complete_keeps_the_prompt_and_stops_at_the_end(gpt):
    """書き出しは残り、区切りから先は捨てる。同じ種からは同じ文ができる。"""
    made = gpt.complete("犬も", n=40, max_new_tokens=6, seed=3)
    assert all(sentence.startswith("犬も") for sentence in made)
    assert not any("<|endoftext|>" in sentence for sentence in made)
    assert made == gpt.complete("犬も", n=40, max_new_tokens=6, seed=3)
    assert made != gpt.complete("犬も", n=40, max_new_tokens=6, seed=4)
    assert gpt._text([5, gpt.end, 6]) == gpt.tokenizer.decode([5])
    assert gpt.complete("犬も?", n=1, max_new_tokens=1)[0].startswith("犬も？")
    assert gpt.complete("犬\n\nも", max_new_tokens=1)[0].startswith("犬も")
    assert gpt.complete("a\nb", max_new_tokens=1)[0].startswith("a b")


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"max_new_tokens": 100}, ValueError, "max_new_tokens"),
        ({"n": 0}, ValueError, "n は"),
        ({"prompt": 3}, TypeError, "prompt には文字列"),
        ({"prompt": "\ud800"}, ValueError, "prompt の 0 文字目"),
        ({"prompt": "a" * 15}, ValueError, "prompt は 14 トークン以下.*15"),
        ({"seed": 1.5}, TypeError, "seed には整数"),
        ({"seed": -1}, ValueError, "seed は 0 以上"),
    ],
)
def test_complete_names_the_argument(gpt, given, error, words):
    with pytest.raises(error, match=words):
        gpt.complete(**{"prompt": "犬", **given})
    assert gpt.complete("a" * 14, max_new_tokens=1)[0].startswith("a" * 14)


def stored(gpt, folder):
    facts = {"config": asdict(gpt.model.config)}
    weights.store(folder, MODEL, weights.pack(gpt.model, ["output.weight"]), facts)
    path = gpt.tokenizer.save(folder / "x.json")
    weights.store(folder, TOKENIZER, path.read_bytes(), {})


def test_loaded_model_is_the_stored_one(gpt, tmp_path):
    """書いて読むと、bfloat16 に丸めた重みと、同じトークナイザーが戻る。"""
    stored(gpt, tmp_path)
    loaded = load(tmp_path)
    for name, value in gpt.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], value.bfloat16().float()), name
    assert loaded.model.output.weight is loaded.model.token_embedding.weight
    assert loaded.tokenizer.encode(TEXTS[0]) == gpt.tokenizer.encode(TEXTS[0])
    assert not loaded.model.training


@pytest.mark.parametrize("name", [MODEL, TOKENIZER])
def test_broken_files_are_refused(gpt, tmp_path, name):
    """壊れたファイル、ないファイルは、名前と命令を述べて断る。"""
    stored(gpt, tmp_path)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[:-1])
    with pytest.raises(ValueError, match=f"{name} が壊れています"):
        load(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name} .*python -m chapter04.pretrain"):
        load(tmp_path)


def test_other_shape_is_refused(gpt, tmp_path):
    """manifest.toml の寸法と重みが合わなければ断る。"""
    stored(gpt, tmp_path)
    facts = {"config": {**asdict(gpt.model.config), "d_model": 32}}
    weights.store(tmp_path, MODEL, weights.pack(gpt.model, ["output.weight"]), facts)
    with pytest.raises(ValueError, match="config が合いません"):
        load(tmp_path)


def test_special_tokens_come_first():
    """区切りは id 0。"""
    tokenizer = ByteLevelBPE.train(["a"], 259, SPECIAL_TOKENS)
    assert [tokenizer.special_tokens[name] for name in SPECIAL_TOKENS] == [0, 1, 2]
    assert japanese_gpt.END == "<|endoftext|>"
