"""3.5 節(出力と探索)の主張の測定。シードは、はじめの重み、データの順、評価に回す英文を決める。"""

import re
from collections import Counter
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from chapter03.decoding import beam_search, exact_search, greedy
from chapter03.optim import label_smoothing_loss
from chapter03.transformer import Transformer, TransformerConfig
from chapter03.translation import EOS, LengthBatches, pad
from shared import datasets
from shared.device import seed_everything
from shared.training import train

MAX_WORDS, MAX_CHARACTERS, MIN_COUNT = 4, 10, 5
STEPS, TEST, MAX_LEN = 400, 200, 12
SPECIAL = ["<pad>", "<s>", "</s>"]  # id 0, 1, 2

Pair = tuple[tuple[str, ...], str]  # (英語の語の並び, 和文)


def short_pairs() -> list[Pair]:
    """Tatoeba の英日のうち、4 語以下・10 字以下で、まれな語も字も含まない対訳(重なりは除く)。"""
    rows: dict[Pair, None] = {}
    for en, ja in datasets.tatoeba("en", "ja"):
        if en.count(" ") < MAX_WORDS and len(ja) <= MAX_CHARACTERS:
            words = tuple(re.findall(r"[a-z']+|[?!]", en.lower()))
            if words:
                rows[words, ja] = None
    words = Counter(word for en, _ in rows for word in en)
    characters = Counter(character for _, ja in rows for character in ja)
    return [
        (en, ja)
        for en, ja in rows
        if min(words[word] for word in en) >= MIN_COUNT
        and min(characters[character] for character in ja) >= MIN_COUNT
    ]


@dataclass
class Toy:
    """小さな翻訳器。語彙は id の順、`test` は学習に使っていない英文とその訳。"""

    model: Transformer
    words: list[str]
    characters: list[str]
    test: list[tuple[tuple[str, ...], list[str]]]

    def source(self, sentences: list[tuple[str, ...]]) -> Tensor:
        """英文を、文末を付けた id (B, S) にする。"""
        number = {word: i for i, word in enumerate(self.words)}
        return pad([torch.tensor([number[word] for word in s] + [EOS]) for s in sentences])

    def text(self, ids: list[int]) -> str:
        """訳文の id を文字列にする。"""
        return "".join(self.characters[i] for i in ids)


@cache
def toy_translator(seed: int) -> Toy:
    """英語の短い文を日本語の文字に訳すモデルを、ラベル平滑化 0.1(論文の 5.4 節)で学習する。"""
    generator = seed_everything(seed)
    pairs = short_pairs()
    words = SPECIAL + sorted({word for en, _ in pairs for word in en})
    characters = SPECIAL + sorted({character for _, ja in pairs for character in ja})
    sentences = sorted({en for en, _ in pairs})
    chosen = torch.randperm(len(sentences), generator=generator)[:TEST].tolist()
    test = {sentences[i]: [ja for en, ja in pairs if en == sentences[i]] for i in chosen}
    word_id = {word: i for i, word in enumerate(words)}
    character_id = {character: i for i, character in enumerate(characters)}
    training = [
        ([word_id[word] for word in en] + [EOS], [character_id[c] for c in ja])
        for en, ja in pairs
        if en not in test
    ]
    model = Transformer(
        TransformerConfig(
            src_vocab_size=len(words), tgt_vocab_size=len(characters), d_model=64, n_heads=4,
            n_layers=2, d_ff=256, max_len=32, norm_first=True,
        )
    )  # fmt: skip

    for embedding in (model.src_embedding, model.tgt_embedding):  # 引く順を決めて、再現できるように
        torch.nn.init.normal_(embedding.weight, std=64**-0.5, generator=generator)

    def loss(model: Transformer, batch: dict[str, Tensor]) -> Tensor:
        return label_smoothing_loss(model(batch["src"], batch["tgt_in"]), batch["tgt_out"])

    def rate(step: int) -> float:
        return 3e-3 * min(step / 100, 1 - step / (STEPS + 1))

    train(
        model, LengthBatches(training, 1000, generator), loss,
        steps=STEPS, rate=rate, clip=1.0, progress=False,
    )  # fmt: skip
    return Toy(model.eval(), words, characters, list(test.items()))


@cache
def _searches(seed: int) -> tuple[list[bool], list[bool], list[bool]]:
    """文ごとに、貪欲法が取り逃がしたか、幅 10 のビームが取り逃がしたか、最良の列が空か。"""
    toy = toy_translator(seed)
    src = toy.source([en for en, _ in toy.test])
    exact = [one.ids for one in exact_search(toy.model, src, MAX_LEN)]
    narrow = greedy(toy.model, src, MAX_LEN)
    wide = [found[0].ids for found in beam_search(toy.model, src, MAX_LEN, 10, alpha=0)]
    return (
        [a != b for a, b in zip(narrow, exact, strict=True)],
        [a != b for a, b in zip(wide, exact, strict=True)],
        [not ids for ids in exact],
    )


def search_error_ratio(seed: int) -> float:
    """確率が最大の列を取り逃がした文の数の比、幅 10 のビーム ÷ 貪欲法。"""
    narrow, wide, _ = _searches(seed)
    return sum(wide) / sum(narrow)


def empty_share(seed: int) -> float:
    """確率が最大の列が空である文の割合。"""
    return sum(_searches(seed)[2]) / TEST


def unpenalised_length(seed: int) -> float:
    """幅 4 のビームが選ぶ訳の長さの合計の比、alpha = 0 ÷ alpha = 0.6。"""
    toy = toy_translator(seed)
    src = toy.source([en for en, _ in toy.test])
    short, long = (
        sum(len(found[0].ids) for found in beam_search(toy.model, src, MAX_LEN, alpha=alpha))
        for alpha in (0.0, 0.6)
    )
    return short / long
