"""数の読みの課題。正しい訳は、別に書いた規則と比べる。"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from chapter03 import number_words
from chapter03.number_words import (
    HELD_OUT,
    HIGH_PEAK,
    LIMIT,
    LONG,
    PEAK,
    SHORT,
    SOURCE_WORDS,
    TARGET_CHARACTERS,
    WARMUP,
    build,
    encode,
    english,
    high_noam,
    kanji,
    noam,
    order_blind_ceiling,
    pairs,
    scores,
    smoothed_loss,
    split,
    train_variant,
    translate,
)
from chapter03.translation import LengthBatches

# ---- 対訳 ----


def plain_kanji(number: int) -> str:
    """4 桁ごとに区切って書く。百と十の前の一は省く。"""
    high, low = divmod(number, 10_000)
    text = plain_kanji(high) + "万" if high else ""
    for unit, name in ((1000, "千"), (100, "百"), (10, "十"), (1, "")):
        digit = low // unit % 10
        if digit:
            text += ("" if digit == 1 and name else " 一二三四五六七八九"[digit]) + name
    return text


def plain_english(number: int) -> str:
    """3 桁ごとに区切って書く。百の後と、千の後の 99 以下の前に and を置く。"""
    high, low = divmod(number, 1000)
    text = [*plain_english(high).split(), "thousand"] if high else []
    if low >= 100:
        text += [SOURCE_WORDS[2 + low // 100], "hundred"]
    rest = low % 100
    if rest and (low >= 100 or high):
        text.append("and")
    if rest >= 20:
        text.append(SOURCE_WORDS[22 + rest // 10 - 2])
        rest %= 10
    if rest:
        text.append(SOURCE_WORDS[2 + rest])
    return " ".join(text)


EXAMPLES = (1, 10, 11, 19, 20, 99, 100, 101, 110, 999, 1000, 1001, 1100, 9999, 10_000, 10_010,
            42_305, 100_000, 110_000, 345_678, 700_007, 999_999)  # fmt: skip


@pytest.mark.parametrize("number", EXAMPLES)
def test_both_readings_follow_the_rules(number: int):
    """どちらの読みも、学校で習う規則のとおり。"""
    assert kanji(number) == plain_kanji(number)
    assert english(number) == plain_english(number)


@pytest.mark.parametrize("number", [0, -1, LIMIT])
def test_numbers_outside_the_task_are_refused(number: int):
    with pytest.raises(ValueError, match=r"number は 1 以上"):
        english(number)
    with pytest.raises(ValueError, match=r"number は 1 以上"):
        kanji(number)


def test_split_leaks_nothing_and_keeps_the_held_out_numbers():
    """検証用の数は学習に現れず、学習の個数を変えても同じ。種を変えれば変わる。"""
    training, held_out = split(0)
    few, same = split(0, 10)
    assert held_out == same
    assert not set(training) & set(held_out)
    assert set(range(1, 1000)) < set(few) < set(training)
    assert Counter(len(str(n)) for n in held_out) == dict.fromkeys(LONG, HELD_OUT)
    assert len(few) == 999 + 10 * len(LONG)
    assert split(1)[1] != held_out
    with pytest.raises(ValueError, match="per_length は 4000 以下"):
        split(0, 4001)


def test_encode_reads_what_people_write_and_names_what_it_cannot():
    """大文字・ハイフン・読点があっても読む。知らない語は名を挙げる。"""
    assert encode("Forty-two thousand, three hundred and FIVE") == encode(english(42_305))
    assert [SOURCE_WORDS[i] for i in encode(english(42_305))] == english(42_305).split()
    for wrong, message in (("forty cats", "cats"), ("", "語がありません"), ("<s>", "<s>")):
        with pytest.raises(ValueError, match=message):
            encode(wrong)
    with pytest.raises(TypeError, match="text"):
        encode(42_305)  # pyright: ignore[reportArgumentType]


def test_every_word_and_character_of_the_task_is_known():
    """語彙に足りないものも、余分なものもない。"""
    training, _ = split(0, 400)
    used = [set(), set()]
    for pair in pairs(training):
        for side, ids in zip(used, pair, strict=True):
            side.update(ids)
    assert used == [set(range(3, len(SOURCE_WORDS))), set(range(3, len(TARGET_CHARACTERS)))]


def test_the_ceiling_without_word_order(monkeypatch: pytest.MonkeyPatch):
    """4 桁だけなら、語の組の数 ÷ 数の個数。数え上げと一致する。"""
    assert 0.19 < order_blind_ceiling() < 0.20
    monkeypatch.setattr(number_words, "LONG", (4,))
    bags = {tuple(sorted(english(n).split())) for n in range(1000, 10_000)}
    assert order_blind_ceiling() == pytest.approx(len(bags) / 9000)


# ---- 評価 ----


class Oracle(torch.nn.Module):
    """正しい訳を知っているモデル。`wrong` の数だけは、最後の字を「万」と間違える。"""

    def __init__(self, numbers: Sequence[int], wrong: Sequence[int]) -> None:
        super().__init__()
        self.right = {tuple(source): target for source, target in pairs(numbers)}
        answers = pairs(numbers)
        for (_, target), number in zip(answers, numbers, strict=True):
            if number in wrong:
                target[-1] = TARGET_CHARACTERS.index("万")
        self.answers = {tuple(source): [*target, 2] for source, target in answers}

    def forward(self, src: Tensor, tgt: Tensor) -> Tensor:
        """正しい前半を見せられたはず、つまり `tgt` は文頭の記号と正しい字の並びである。"""
        for row, ids in zip(src.tolist(), tgt.tolist(), strict=True):
            right = [1, *self.right[tuple(i for i in row if i)]]
            assert [i for i in ids if i] == right[: len([i for i in ids if i])]
        return self.predict(src, tgt)

    def predict(self, src: Tensor, tgt: Tensor) -> Tensor:
        logits = torch.zeros(*tgt.shape, len(TARGET_CHARACTERS))
        for row, ids in enumerate(src.tolist()):
            answer = self.answers[tuple(i for i in ids if i)]
            for t in range(min(tgt.shape[1], len(answer))):
                logits[row, t, answer[t]] = 5.0
        return logits

    def encode(self, src: Tensor) -> Tensor:
        return src

    def new_cache(self) -> "Oracle.Cache":
        return self.Cache()

    class Cache:
        length = 0

        def reorder(self, index: Tensor) -> None:
            pass

    def decode(self, tgt: Tensor, memory: Tensor, src: Tensor, cache: "Oracle.Cache") -> Tensor:
        cache.length += tgt.shape[1]
        return self.predict(src, torch.zeros(len(src), cache.length))[:, -tgt.shape[1] :]


def test_scores_count_whole_answers_characters_and_confidence():
    """完全一致は訳ごと、正答率は字ごと。nll は、平滑化しない損失。"""
    numbers = [7, 1234, 42_305, 900_000]
    found = scores(Oracle(numbers, [1234]), numbers)  # pyright: ignore[reportArgumentType]
    characters = sum(len(kanji(n)) + 1 for n in numbers)
    p = torch.tensor([5.0] + [0.0] * (len(TARGET_CHARACTERS) - 1)).softmax(0)
    nll = -((characters - 1) * p[0].log() + p[1].log()) / characters
    assert found["exact_match"] == 3 / 4
    assert found["accuracy"] == pytest.approx((characters - 1) / characters)
    assert found["nll"] == pytest.approx(float(nll), rel=1e-5)


def test_translate_gives_characters():
    model = Oracle([42_305, 7], [])
    assert translate(model, ["seven", english(42_305)]) == ["七", "四万二千三百五"]  # pyright: ignore[reportArgumentType]
    assert translate(model, []) == []  # pyright: ignore[reportArgumentType]


# ---- 学習 ----


def test_the_rate_peaks_at_the_end_of_the_warmup():
    assert max(range(1, SHORT), key=noam) == WARMUP
    assert noam(WARMUP) == PEAK == pytest.approx(0.2 / (64 * 60) ** 0.5)
    assert high_noam(WARMUP) == HIGH_PEAK == pytest.approx(0.3 / (64 * 60) ** 0.5)


def test_without_positions_word_order_is_invisible():
    """位置埋め込みがなければ、語を並べかえても、何も変わらない。あれば変わる。"""
    one, other = (torch.tensor([encode(t)]) for t in ("two thousand three", "three thousand two"))
    tgt = torch.tensor([[1, 4, 13]])
    for positions, blind in (("none", True), ("sinusoidal", False)):
        torch.manual_seed(0)
        model = build(positions=positions).eval()
        assert torch.allclose(model(one, tgt), model(other, tgt), atol=1e-5) == blind


def test_smoothed_loss_ignores_padding_and_shifts_nothing():
    """詰めもので伸ばしても同じ値で、平滑化なしなら交差エントロピー。"""
    torch.manual_seed(0)
    model = build(dropout=0.0)
    batch = next(iter(LengthBatches(pairs([42_305]), 100, torch.Generator())))
    longer = {name: torch.nn.functional.pad(ids, (0, 3)) for name, ids in batch.items()}
    for epsilon in (0.0, 0.1):
        loss = smoothed_loss(epsilon)
        expected = torch.nn.functional.cross_entropy(
            model(batch["src"], batch["tgt_in"])[0], batch["tgt_out"][0], label_smoothing=epsilon
        )
        assert loss(model, batch).item() == pytest.approx(expected.item(), abs=1e-5)
        assert loss(model, longer).item() == pytest.approx(expected.item(), abs=1e-5)


def test_a_variant_is_reproducible_and_records_its_scores():
    """同じ種なら同じ学習。成績は、求めたステップにだけ入る。"""
    runs = [train_variant(3, per_length=1, steps=4, evaluate_every=2, n_layers=1) for _ in "ab"]
    assert runs[0].losses == runs[1].losses
    assert [record["step"] for record in runs[0].history if "nll" in record] == [2, 4]
    assert [record["rate"] for record in runs[0].history] == [noam(step) for step in (1, 2, 3, 4)]
    other = train_variant(3, per_length=1, steps=2, evaluate_every=2, n_layers=1, epsilon=0.0)
    assert other.losses[0] != runs[0].losses[0]


def test_a_variant_hands_its_settings_on(monkeypatch: pytest.MonkeyPatch):
    """Adam の係数は論文のもの。変えた値は学習に届き、ほかは変わらない。"""
    given: dict[str, Any] = {}

    def remember(model: torch.nn.Module, batches: LengthBatches, loss: Any, **settings: Any):
        given.update(settings, model=model, size=len(batches._source))

    monkeypatch.setattr(number_words, "train", remember)
    train_variant(0, per_length=7, steps=5, rate=0.25, dropout=0.5, n_heads=2)
    config = given["model"].config
    assert (given["steps"], given["rate"], given["size"]) == (5, 0.25, 999 + 7 * len(LONG))
    assert (given["betas"], given["eps"], given["ema"]) == ((0.9, 0.98), 1e-9, 0.98)
    assert (config.dropout, config.n_heads, config.n_layers) == (0.5, 2, 2)
    assert (config.d_model, config.norm_first, config.positions) == (64, False, "sinusoidal")


@pytest.mark.slow
def test_the_task_is_learned():
    """200 ステップでは、字の 7 割より多くが当たる。"""
    assert train_variant(0, steps=200).history[-1]["accuracy"] > 0.7
