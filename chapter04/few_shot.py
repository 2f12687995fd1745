"""few-shot の実験: 重みを動かさず、文脈に並べた例だけから規則を当てる。

文書は「三→か、八→い、…」のように、漢数字と答えのかなの対を `PAIRS` 個並べたもの。規則は
`tables` の暗号表で、文書ごとに一枚を選んで使う。どの表を使ったかは書かれていないので、前に並んだ対
から見当をつけるしかない。漢数字は文書の中で一度ずつしか現れず、答えを書き写すことはできない。

    表を選ぶ → documents (B, 2 PAIRS) → GPT → 答えの位置ごとの正解率 accuracies (PAIRS,)

k 番目の対の正解率が、例が k 個のときの正解率になる(k = 0, 1, …)。論文の図 1.2 にならった、人工の
課題であって、自然な文ではない。
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from chapter04.gpt import GPT, GPTConfig
from shared.checks import require_int, require_seed
from shared.device import seed_everything
from shared.training import Result, train

DIGITS, KANA = "〇一二三四五六七八九", "あいうえおか"
TABLES, PAIRS = 8, 9
SIZES = {"小": (1, 8), "中": (2, 16), "大": (2, 32)}  # 名前: (層の数, d_model)
STEPS, BATCH, PEAK = 400, 64, 5e-3


def tables(seed: int = 0) -> Tensor:
    """暗号表 (TABLES, 10)。値は `KANA` の番号で、表ごと・漢数字ごとに独立に選ぶ。

    Raises:
        TypeError, ValueError: `seed` が 0 から 2^32 - 1 の整数でないとき。
    """
    generator = torch.Generator().manual_seed(require_seed(seed))
    return torch.randint(len(KANA), (TABLES, len(DIGITS)), generator=generator)


def documents(book: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """文書 (n, 2 PAIRS)。偶数番目が漢数字の id(0 から 9)、奇数番目がかなの id(10 から)。

    Raises:
        TypeError, ValueError: `n` が 1 以上の整数でないとき。
    """
    n = require_int(n, "n", minimum=1)
    chosen = torch.randint(len(book), (n, 1), generator=generator)  # 文書ごとに一枚
    digits = torch.rand(n, len(DIGITS), generator=generator).argsort(1)[:, :PAIRS]
    return torch.stack([digits, len(DIGITS) + book[chosen, digits]], dim=-1).flatten(1)


def show(document: Tensor) -> str:
    """文書 (2 PAIRS,) を「三→か、八→い」の形に直す。"""
    letters = [(DIGITS + KANA)[i] for i in document.tolist()]
    return "、".join(f"{x}→{y}" for x, y in zip(letters[::2], letters[1::2], strict=True))


def bayes(book: Tensor, docs: Tensor) -> Tensor:
    """暗号表をすべて知る者の、答えの分布 (文書の数, PAIRS, かなの数)。これを超える予測はない。

    p(y | x_{k+1}, 例) = Σ_f 1[表 f が k 個の例に合う] 1[f(x_{k+1}) = y] / Σ_f 1[表 f が例に合う]
    """
    digits, kana = docs[:, ::2], docs[:, 1::2] - len(DIGITS)
    answers = book.T[digits]  # (B, PAIRS, TABLES): 表 f の答え
    wrong = (answers != kana[..., None]).long()
    fits = (wrong.cumsum(1) - wrong) == 0  # k 番目までの例に合うか
    votes = (F.one_hot(answers, len(KANA)) * fits[..., None]).sum(2).float()
    return votes / votes.sum(-1, keepdim=True)


def loss(model: GPT, docs: Tensor) -> Tensor:
    """かなの位置だけの交差エントロピー [nat]。"""
    logits = model(docs[:, :-1])[:, ::2]  # (B, PAIRS, V)
    return F.cross_entropy(logits.flatten(0, 1), docs[:, 1::2].flatten())


@torch.no_grad()
def accuracies(model: GPT, docs: Tensor) -> Tensor:
    """例が 0, 1, …, PAIRS - 1 個のときの正解率 (PAIRS,)。重みは動かさない。"""
    guesses = model(docs[:, :-1])[:, ::2].argmax(-1)
    return (guesses == docs[:, 1::2]).float().mean(0)


def train_size(size: str, seed: int = 0, steps: int = STEPS) -> Result:
    """`SIZES` の一つを学習する。シードは、暗号表、はじめの重み、文書を決める。

    Raises:
        ValueError: `size` が `SIZES` にないとき。
    """
    if size not in SIZES:
        raise ValueError(f"size は {'、'.join(SIZES)} から選んでください: {size!r}")
    n_layers, d_model = SIZES[size]
    seed_everything(seed)
    model = GPT(
        GPTConfig(
            vocab_size=len(DIGITS) + len(KANA), context=2 * PAIRS, d_model=d_model,
            n_heads=max(1, d_model // 16), n_layers=n_layers, dropout=0.0,
        )
    )  # fmt: skip

    def rate(step: int) -> float:
        return PEAK * min(step / 30, 1.0, (steps - step) / (0.4 * steps) + 0.02)

    batches = _stream(tables(seed), torch.Generator().manual_seed(seed))
    return train(model, batches, loss, steps=steps, rate=rate, clip=1.0, progress=False)


def held_out(seed: int = 0, n: int = 1000) -> Tensor:
    """学習とは別の乱数で作った文書 (n, 2 PAIRS)。"""
    return documents(tables(seed), n, torch.Generator().manual_seed(10_000 + seed))


def _stream(book: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
    while True:
        yield documents(book, BATCH, generator)
