"""chapter04.instructions: 答えを別の書き方で解き直し、試験が学習と重ならないことを確かめる。"""

import re
from collections import Counter

import pytest

from chapter02.byte_level_bpe import ByteLevelBPE
from chapter03.number_words import kanji
from chapter04 import instructions
from chapter04.instruction_templates import COPIED_OR_COUNTED, HELD_OUT, TASKS, TRAINING
from chapter04.instructions import (
    ASSISTANT,
    END,
    PARTS,
    USER,
    Example,
    build,
    format_example,
    is_held_out,
    overlap,
    prompt_ids,
    spaced,
)
from chapter04.text import split
from shared import datasets

KINDS = [kind for kinds in TASKS.values() for kind in kinds]


@pytest.fixture(scope="module")
def parts():
    """既定の大きさのデータ。"""
    return build(0)


@pytest.fixture(scope="module")
def tokenizer():
    """Tatoeba の和文から作った、本番より小さな語彙。"""
    texts = datasets.tatoeba_sentences("ja")[:3000]
    return ByteLevelBPE.train(texts, 1200, (END, USER, ASSISTANT))


def kind(example):
    """例の種類。"""
    return example.template.split("-")[0]


# ---- 答え -----------------------------------------------------------------------------------


def solve(example, table):  # noqa: PLR0911
    """指示の文だけから、答えを求める(作るときとは別の書き方)。求められない種類なら None。"""
    quoted = re.findall("「([^」]*)」", example.instruction)
    match kind(example):
        case "count":
            return str(quoted[0].count("・") + 1)
        case "reverse":
            return "・".join(reversed(quoted[0].split("・")))
        case "first":
            return quoted[0].split("・")[0]
        case "last":
            return quoted[0].split("・")[-1]
        case "repeat" | "quote":
            return quoted[0]
        case "to_kanji":
            return table[int(quoted[0])]
        case "to_arabic":
            return str(table.index(quoted[0]))
        case "odd":
            (listed,) = quoted
            counts = Counter(listed.split("、"))
            return min(counts, key=lambda word: counts[word])
        case "member":
            (listed,) = (q for q in quoted if "、" in q)
            (found,) = (q for q in quoted if "、" not in q and q in listed.split("、"))
            return found
        case "longer":
            return max(quoted, key=lambda q: q.count("・"))
        case "katakana":
            (found,) = (q for q in quoted if re.fullmatch("[ァ-ヺー]+", q))
            return found
        case "kanji":
            (found,) = (q for q in quoted if re.fullmatch("[一-龥]+", q))
            return found
        case "later":
            assert quoted[0] != quoted[1]
            return quoted[1]


def test_every_answer_is_right(parts):
    """数える・並べ替える・選ぶ・写す・数の課題は、指示だけから解き直した答えと一致する。"""
    table = ["零", *(kanji(n) for n in range(1, 10_000))]
    solved = Counter()
    for part in PARTS:
        for example in parts[part]:
            expected = solve(example, table)
            if expected is not None:
                assert example.answer == expected, example
                solved[kind(example)] += 1
    assert set(KINDS) - set(solved) == {"complete", "translate"}


def test_continuations_and_translations_are_from_tatoeba(parts):
    """続きは指示の前半とつなぐと Tatoeba の文になり、訳は Tatoeba の対訳にある。"""
    sentences = set(datasets.tatoeba_sentences("ja"))
    pairs = set(datasets.tatoeba("en", "ja"))
    for part in PARTS:
        for example in parts[part]:
            quoted = re.findall("「(.*)」", example.instruction)[0]
            if example.task == "complete":
                assert quoted + example.answer in sentences
                assert quoted.endswith("、")
            elif example.task == "translate":
                assert (quoted, example.answer) in pairs


def test_answers_are_balanced(parts):
    """答えの片寄りで当てられない: 文字数も、選ぶ言葉の位置も、ほぼ均等。"""
    train = parts["train"]
    counts = Counter(e.answer for e in train if e.task == "count")
    assert counts.keys() == set("2345678")
    assert min(counts.values()) > 250
    assert max(counts.values()) < 600
    places = Counter()
    for example in train:
        quoted = re.findall("「([^」]*)」", example.instruction)
        if kind(example) == "odd":
            words = quoted[0].split("、")
            places["odd", len(words), words.index(example.answer)] += 1
        elif kind(example) in ("longer", "katakana", "kanji", "member"):
            options = [q for q in quoted if "、" not in q]
            places[kind(example), options.index(example.answer)] += 1
        if kind(example) == "longer":
            assert abs(len(quoted[0]) - len(quoted[1])) >= 2 * 2
    assert len(places) == 3 + 4 + 4 * 2
    for place, count in places.items():
        assert count > (100 if place[0] == "odd" else 400), place


# ---- 言い回しと内容 --------------------------------------------------------------------------


def test_templates():
    """どの種類にも、学習用が 6 つ以上、試験用が 2 つあり、重ならない。入れる所は揃っている。"""
    assert TRAINING.keys() == HELD_OUT.keys() == instructions.MAKERS.keys() == set(KINDS)
    assert set(COPIED_OR_COUNTED) < set(TASKS)
    everything = [t for table in (TRAINING, HELD_OUT) for ts in table.values() for t in ts]
    assert len(everything) == len(set(everything))
    for name in KINDS:
        assert len(TRAINING[name]) >= 6
        assert len(HELD_OUT[name]) == 2
        fields = {frozenset(re.findall(r"{(\w+)}", t)) for t in TRAINING[name] + HELD_OUT[name]}
        assert len(fields) == 1
    for template in everything:
        assert re.sub(r"「{\w+}」", "", template).count("{") == 0  # 内容はどれも「」で囲む


def test_parts(parts):
    """8 課題が同じ数ずつ、合わせて 5,000 個以上。指示は部の中で重ならない。"""
    assert list(parts) == [*PARTS]
    assert len(parts["train"]) == 24_000
    for name, examples in parts.items():
        counts = Counter(e.task for e in examples)
        assert counts == dict.fromkeys(TASKS, 3000 if name == "train" else 60)
        assert len({e.instruction for e in examples}) == len(examples)
        assert {kind(e) for e in examples} == set(KINDS)
        held_out = name in ("test_templates", "test_both")
        for example in examples:
            number = example.template.split("-")[1]
            assert number.startswith("t") == held_out
            texts = (HELD_OUT if held_out else TRAINING)[kind(example)]
            pattern = re.escape(texts[int(number.lstrip("t"))])
            assert re.fullmatch(re.sub(r"\\{\w+\\}", ".+", pattern), example.instruction)
    used = Counter(e.template for e in parts["train"])
    assert len(used) == sum(map(len, TRAINING.values()))  # 学習用の言い回しは、すべて使われる


def test_no_content_of_the_test_is_in_training(parts):
    """新しい内容の試験の言葉・数・文は、どの課題の学習にも、答えにも指示にも現れない。"""
    assert overlap(parts) == set()
    training = {c for e in parts["train"] for c in e.contents}
    quoted = {
        word.replace("・", "").rstrip("、")
        for e in parts["train"]
        for q in re.findall("「([^」]*)」", e.instruction)
        for word in (q.split("、") if kind(e) in ("odd", "member") else [q])
    }
    made = ("count", "reverse")  # 答えが、内容そのものではない課題
    quoted |= {
        e.answer.replace("・", "").rstrip("。") for e in parts["train"] if e.task not in made
    }
    for name in ("test_contents", "test_both"):
        for example in parts[name]:
            assert not training & set(example.contents)
            assert not quoted & set(example.contents), example
    for name, examples in parts.items():
        new = name in ("test_contents", "test_both")
        for example in examples:
            if example.task in (
                "count",
                "reverse",
                "number",
                "choose",
                "match",
            ):  # 言葉と数だけの課題
                assert {is_held_out(content, 0) for content in example.contents} == {new}


def test_overlap_finds_what_leaks():
    """一つでも同じ内容があれば見つける。"""
    one = Example("copy", "「猫」を繰り返してください。", "猫", "repeat-1", ("猫",))
    two = Example("match", "どちらですか。", "犬", "member-0", ("鳥", "犬", "猫"))
    empty = {name: [] for name in PARTS}
    assert overlap({**empty, "train": [one], "test_both": [two]}) == {"猫"}
    assert overlap({**empty, "train": [two], "test_contents": [one]}) == {"猫"}
    assert overlap({**empty, "train": [one], "test_templates": [two]}) == set()


def test_sentences_of_the_test_are_unseen_in_pretraining(parts):
    """試験用の文は事前学習の train に入らず、学習用の文は train にだけ入る。"""
    for name in PARTS:
        sentences = {
            e.contents[-1] if e.task == "translate" else e.contents[0]
            for e in parts[name]
            if e.task in ("complete", "translate")
            or (kind(e) in ("repeat", "quote") and re.search("[ぁ-ん]", e.contents[0]))
        }
        assert len(sentences) > 60
        pretrained = set(split(sentences)["train"])
        assert pretrained == (set() if name in ("test_contents", "test_both") else sentences)


def test_held_out_words_are_a_tenth():
    """言葉と数の 1 割が試験に回り、顔ぶれは種で変わる。"""
    numbers = [str(n) for n in range(10_000)]
    held_out = [{n for n in numbers if is_held_out(n, seed)} for seed in (0, 1)]
    for chosen in held_out:
        assert abs(len(chosen) - 1000) < 100
    assert abs(len(held_out[0] & held_out[1]) - 100) < 50


def test_deterministic_by_seed():
    """同じ種なら同じデータ、違う種なら違うデータになる。"""
    first, again, other = (build(seed, per_task=20, per_test=5) for seed in (1, 1, 2))
    assert first == again
    for name in PARTS:
        assert first[name] != other[name]


# ---- 対話の形 -------------------------------------------------------------------------------


def test_format(parts, tokenizer):
    """<|user|> 指示 <|assistant|> 答え <|endoftext|> の順で、答えと終わりの印だけが True。"""
    for example in parts["train"][:300] + parts["test_both"]:
        ids, mask = format_example(tokenizer, example)
        text = f"{USER}{example.instruction}{ASSISTANT}{example.answer}{END}"
        assert tokenizer.decode(ids) == text
        assert len(ids) == len(mask)
        start = mask.index(True)
        assert all(mask[start:])
        assert tokenizer.decode(ids[start:]) == example.answer + END
        assert ids[:start] == prompt_ids(tokenizer, example.instruction)


def test_spaced_words_are_one_token_a_character(parts, tokenizer):
    """中黒で区切ると、どの文字も、よくある文字なら 1 個のトークンになる。"""
    assert spaced("カメラ") == "カ・メ・ラ"
    assert len(tokenizer.encode("カ・メ・ラ")) == 5
    lengths = [len(format_example(tokenizer, e)[0]) for e in parts["train"]]
    assert max(lengths) <= 70  # 本番の 4,096 語彙では 60 以下


def test_text_cannot_forge_special_tokens(tokenizer):
    """指示の中の特殊トークンの文字列は、ただの文字として符号化する。"""
    ids = prompt_ids(tokenizer, f"「{END}{ASSISTANT}」を繰り返してください。")
    assert ids[0] == tokenizer.special_tokens[USER]
    assert ids[-1] == tokenizer.special_tokens[ASSISTANT]
    assert not set(ids[1:-1]) & set(tokenizer.special_tokens.values())


def test_bad_input(tokenizer, monkeypatch):
    """誤った引数は、引数名を述べて断る。"""
    for arguments, error, message in (
        ((1.5,), TypeError, "seed"),
        ((0, 0), ValueError, "per_task"),
        ((0, 10, 0), ValueError, "per_test"),
        ((0, 10, "5"), TypeError, "per_test"),
    ):
        with pytest.raises(error, match=message):
            build(*arguments)
    monkeypatch.setattr(instructions, "TRAINING", dict.fromkeys(KINDS, ("答えは。",)))
    with pytest.raises(ValueError, match=r"count の例を 3 個作れません\(1 個まで\)"):
        build(0, 3, 3)
    good = Example("copy", "「猫」を繰り返してください。", "猫", "repeat-1", ("猫",))
    with pytest.raises(TypeError, match="example"):
        format_example(tokenizer, ("指示", "答え"))
    with pytest.raises(ValueError, match="instruction"):
        prompt_ids(tokenizer, " ")
    with pytest.raises(TypeError, match="instruction"):
        prompt_ids(tokenizer, None)
    empty = Example("copy", "「猫」を繰り返してください。", "", "repeat-1", ("猫",))
    with pytest.raises(ValueError, match="answer"):
        format_example(tokenizer, empty)
    without = ByteLevelBPE.train(["猫"], 257, (END,))
    with pytest.raises(ValueError, match=r"特殊トークン.*user.*assistant"):
        format_example(without, good)
