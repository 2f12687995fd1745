"""数の英語の読みを漢数字に訳す課題。3.6 節の、学習のしかたを変える実験をすべてここで行う。

    42305  →  forty two thousand three hundred and five  →  四 万 二 千 三 百 五

英語は 3 桁ごと(thousand)、日本語は 4 桁ごと(万)に区切るので、語を一つずつ置きかえるだけでは訳せ
ない。正しい訳は num2words で作り、学習に使っていない数の完全一致(一字も違わない割合)で測る。
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from chapter03.decoding import greedy
from chapter03.optim import label_smoothing_loss, noam_rate
from chapter03.transformer import Transformer, TransformerConfig
from chapter03.translation import BOS, EOS, LengthBatches, pad
from shared.checks import require_int, require_text, shown
from shared.device import seed_everything
from shared.training import Result, train

LIMIT = 1_000_000  # 扱う数は 1 以上、これ未満
LONG = (4, 5, 6)  # 検証に使う数の桁数。3 桁以下はすべて学習に使う
PER_LENGTH, FEW = 4000, 400  # 一つの桁数から学習に使う数の個数(ふつう、少ないデータ)
HELD_OUT = 200  # 一つの桁数から検証に使う数の個数
STEPS, SHORT = 800, 400  # ステップ数(最後まで、条件を変えて比べるとき)
MAX_TOKENS = 500  # 一つのバッチの、原文と訳文それぞれのトークン数の上限
D_MODEL, WARMUP, SCALE = 64, 60, 0.2
AVERAGE = 0.98  # 重みの移動平均の減衰率。論文が最後の 5 個の重みを平均する(6.1 節)のに当たる
MAX_LEN = 16  # 訳文の長さの上限(</s> も数える)。最も長い訳文は 12

_SPECIAL = ("<pad>", "<s>", "</s>")
SOURCE_WORDS = (
    *_SPECIAL, "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
    "nineteen", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety",
    "hundred", "thousand", "and",
)  # fmt: skip
TARGET_CHARACTERS = (*_SPECIAL, *"一二三四五六七八九十百千万")
_SOURCE_IDS = {word: i for i, word in enumerate(SOURCE_WORDS)}
_TARGET_IDS = {character: i for i, character in enumerate(TARGET_CHARACTERS)}

Pair = tuple[list[int], list[int]]  # (英語の語の id, 漢数字の id)


# ---- 対訳 ---------------------------------------------------------------------------------


@cache
def english(number: int) -> str:
    """数の英語の読み。語を空白で区切り、読点とハイフンは除く。

    Raises:
        TypeError, ValueError: 1 以上 `LIMIT` 未満の整数でないとき。
    """
    from num2words import num2words  # noqa: PLC0415  対訳を作るときにだけ要る

    return " ".join(re.findall("[a-z]+", num2words(_require_number(number))))


@cache
def kanji(number: int) -> str:
    """数の漢数字。Raises は `english` と同じ。"""
    from num2words import num2words  # noqa: PLC0415

    return num2words(_require_number(number), lang="ja")


def _require_number(number: int) -> int:
    if require_int(number, "number", minimum=1) >= LIMIT:
        raise ValueError(f"number は 1 以上 {LIMIT:,} 未満にしてください: {number:,}")
    return number


def split(seed: int, per_length: int = PER_LENGTH) -> tuple[list[int], list[int]]:
    """数を、学習に使うものと検証に使うものに分ける。

    3 桁以下はすべて学習に使う。4・5・6 桁からは、桁数ごとに `per_length` 個を学習に、`HELD_OUT` 個
    を検証に選ぶ。検証に使う数は `seed` だけで決まり、`per_length` によらない。

    Raises:
        TypeError, ValueError: `per_length` が 1 以上 `PER_LENGTH` 以下の整数でないとき。
    """
    if require_int(per_length, "per_length", minimum=1) > PER_LENGTH:
        raise ValueError(f"per_length は {PER_LENGTH} 以下にしてください: {per_length}")
    generator = random.Random(seed)
    training, held_out = list(range(1, 1000)), []
    for digits in LONG:
        numbers = range(10 ** (digits - 1), 10**digits)
        chosen = generator.sample(numbers, HELD_OUT + PER_LENGTH)
        held_out += chosen[:HELD_OUT]
        training += chosen[HELD_OUT : HELD_OUT + per_length]
    return training, held_out


def encode(text: str) -> list[int]:
    """英語の読みを、語の id の並びにする。

    Raises:
        TypeError: `text` が str でないとき。
        ValueError: 語がないとき、数の読みに使わない語があるとき。
    """
    words = re.findall(r"[^\s,-]+", require_text(text, "text").lower())
    unknown = [word for word in words if word not in SOURCE_WORDS[len(_SPECIAL) :]]
    if unknown or not words:
        raise ValueError(
            "text には、英語の数の読みを 1 語以上渡してください"
            f"({'知らない語 ' + shown(unknown[0]) if unknown else '語がありません'})"
        )
    return [_SOURCE_IDS[word] for word in words]


def pairs(numbers: Sequence[int]) -> list[Pair]:
    """数ごとの対訳 (英語の語の id, 漢数字の id)。訳文に文頭と文末は付けない。"""
    return [(encode(english(n)), [_TARGET_IDS[c] for c in kanji(n)]) for n in numbers]


# ---- 学習 ---------------------------------------------------------------------------------


def noam(step: int) -> float:
    """`step` 歩目の学習率: 式 (3) の `SCALE` 倍。頂点は `WARMUP` 歩目の 0.0032。

    式 (3) の係数は d_model = 512 のモデルを 10 万歩学習するときのもので、そのままでは大きすぎる。
    """
    return SCALE * noam_rate(step, D_MODEL, WARMUP)


def high_noam(step: int) -> float:
    """`noam` の 1.5 倍。これより高いと、ウォームアップがあっても学べないことがある。"""
    return 1.5 * noam(step)


PEAK, HIGH_PEAK = noam(WARMUP), high_noam(WARMUP)


def build(
    *, positions: str = "sinusoidal", n_heads: int = 4, n_layers: int = 2, dropout: float = 0.1
) -> Transformer:
    """論文の base をおよそ 280 分の 1 に縮めたモデル(post-LN、d_model = 64)。"""
    return Transformer(
        TransformerConfig(
            src_vocab_size=len(SOURCE_WORDS), tgt_vocab_size=len(TARGET_CHARACTERS),
            d_model=D_MODEL, n_heads=n_heads, n_layers=n_layers, d_ff=4 * D_MODEL,
            dropout=dropout, max_len=32, positions=positions,
        )
    )  # fmt: skip


def smoothed_loss(epsilon: float) -> Callable[[Transformer, dict[str, Tensor]], Tensor]:
    """ラベル平滑化 ε の損失 [nat/字] を求める関数。"""

    def loss(model: Transformer, batch: dict[str, Tensor]) -> Tensor:
        logits = model(batch["src"], batch["tgt_in"])
        return label_smoothing_loss(logits, batch["tgt_out"], epsilon)

    return loss


def train_variant(
    seed: int,
    *,
    epsilon: float = 0.1,
    rate: float | Callable[[int], float] = noam,
    per_length: int = PER_LENGTH,
    steps: int = SHORT,
    evaluate_every: int = 200,
    progress: bool = False,
    **changes: float | str,
) -> Result:
    """一か所だけを変えたモデルを学習する。成績を測り、使うのは、重みを平均した `ema` のほう。

    Args:
        seed: はじめの重み、ドロップアウト、データの分割と順を決める。
        epsilon: ラベル平滑化の ε。
        rate: 学習率(1 からのステップ番号の関数か、一定の値)。
        per_length: 一つの桁数から学習に使う数の個数(`split`)。
        steps: ステップ数。
        evaluate_every: 検証する間隔。そのステップの `history` に、検証用の数での `scores` が入る。
        progress: 進み具合を表示するか。
        changes: `build` の引数(positions、n_heads、n_layers、dropout)。
    """
    generator = seed_everything(seed)
    training, held_out = split(seed, per_length)
    return train(
        build(**changes),  # pyright: ignore[reportArgumentType]
        LengthBatches(pairs(training), MAX_TOKENS, generator),
        smoothed_loss(epsilon),
        steps=steps,
        rate=rate,
        betas=(0.9, 0.98),
        eps=1e-9,
        ema=AVERAGE,
        evaluate=lambda model: scores(model, held_out),
        evaluate_every=evaluate_every,
        progress=progress,
    )


# ---- 評価 ---------------------------------------------------------------------------------


def translate(model: Transformer, texts: Sequence[str]) -> list[str]:
    """英語の読みを、貪欲法で漢数字に訳す。Raises は `encode` と同じ。"""
    if not texts:
        return []
    found = greedy(model, pad([torch.tensor(encode(text)) for text in texts]), MAX_LEN)
    return ["".join(TARGET_CHARACTERS[i] for i in ids) for ids in found]


@torch.no_grad()
def scores(model: Transformer, numbers: Sequence[int]) -> dict[str, float]:
    """`numbers` での成績。モデルは評価の状態(eval())にして渡す。

    Returns:
        "exact_match": 一字も違わずに訳せた割合(貪欲法)。
        "accuracy": 正しい前半を見せて次の字を当てたときの、正答率。
        "nll": そのときの正しい字の -log p の平均 [nat/字]。exp がパープレキシティになる。
    """
    outputs = translate(model, [english(n) for n in numbers])
    right = sum(a == kanji(n) for a, n in zip(outputs, numbers, strict=True))
    sources, targets = zip(*pairs(numbers), strict=True)
    given = pad([torch.tensor([BOS, *ids]) for ids in targets])
    answer = pad([torch.tensor([*ids, EOS]) for ids in targets])
    logits = model(pad([torch.tensor(ids) for ids in sources]), given)
    real = answer != 0
    return {
        "exact_match": right / len(numbers),
        "accuracy": float((logits.argmax(dim=-1) == answer)[real].float().mean()),
        "nll": float(F.cross_entropy(logits[real], answer[real])),
    }


def order_blind_ceiling() -> float:
    """語の順を見ずに訳すとき、検証用の数で望める完全一致の上限。

    同じ語を並べかえた読み(two thousand three と three thousand two)を区別できないので、語の組ごとに
    訳は一つしか出せない。どの組でも、いちばん現れやすい数を答えたとする。
    """
    generator = np.random.default_rng(0)
    code = {word: int(generator.integers(1 << 60)) for word in SOURCE_WORDS}  # 和が語の組を表す
    part = np.array([0] + [sum(code[w] for w in english(n).split()) for n in range(1, 1000)])
    numbers = np.arange(10 ** (min(LONG) - 1), 10 ** max(LONG))
    high, low = np.divmod(numbers, 1000)
    bags = part[high] + code["thousand"] + part[low]
    bags[(low > 0) & (low < 100)] += code["and"]
    digits = np.searchsorted(10 ** np.arange(1, max(LONG)), numbers, side="right") + 1
    chance = 1 / (len(LONG) * 9 * 10.0 ** (digits - 1))  # 検証用の数に選ばれる確率
    _, bag = np.unique(bags, return_inverse=True)
    best = np.zeros(bag.max() + 1)
    np.maximum.at(best, bag, chance)
    return float(best.sum())
