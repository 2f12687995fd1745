"""ファインチューニング: 指示への答え方の学習(SFT)と、GPT-1 の分類。

SFT   format_example → SFTBatches(長さの近い例を束ねる)→ sft_loss(答えだけ)→ train → exact_match
分類  ids → GPT の最後のトークンの状態 → 線形写像 → クラス。補助に言語モデルの損失を足す
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chapter04.generation import generate
from chapter04.gpt import GPT
from chapter04.instructions import END, Example, Tokenizer, format_example, prompt_ids
from shared.checks import require_int, require_number, require_rate, require_seed, shown
from shared.inference import evaluating
from shared.training import Result, train

Row = tuple[Sequence[int], Sequence[bool]]  # (id の並び, 損失に数える所の印)
Batch = Mapping[str, Tensor]


# ---- SFT ------------------------------------------------------------------------------------


def pad_rows(rows: Sequence[Row], pad: int = 0) -> dict[str, Tensor]:
    """長さの違う行を、うしろに `pad` を詰めて揃えた {"ids": (B, T), "mask": (B, T)}。

    詰めた所の印は False になる。因果マスクがあるので、うしろの詰めものは前の位置に影響しない。

    Raises:
        TypeError: `pad` が整数でないとき。
        ValueError: 行がない、id と印の数が違うとき。
    """
    require_int(pad, "pad", minimum=0)
    if not rows:
        raise ValueError("rows に 1 行以上を渡してください: 0 行")
    for index, (ids, mask) in enumerate(rows):
        if len(ids) != len(mask) or not len(ids):
            raise ValueError(
                f"rows[{index}] の id と印を、同じ数(1 個以上)にしてください: "
                f"{len(ids)} 個と {len(mask)} 個"
            )
    width = max(len(ids) for ids, _ in rows)
    padded = torch.full((len(rows), width), pad, dtype=torch.long)
    marks = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, (ids, mask) in enumerate(rows):
        padded[i, : len(ids)] = torch.as_tensor(ids)
        marks[i, : len(mask)] = torch.as_tensor(mask)
    return {"ids": padded, "mask": marks}


class SFTBatches:
    """行を混ぜ、長さの近いものどうしを束ねたバッチの列。1 周ごとに混ぜ直す。"""

    def __init__(
        self, rows: Sequence[Row], batch_size: int, generator: torch.Generator, pad: int = 0
    ) -> None:
        """引数は、行、1 バッチの行の数、順を混ぜる乱数、詰めものの id。

        Raises:
            TypeError, ValueError: `batch_size` が 1 より小さい、行がないとき。
        """
        self.rows = rows
        self.batch_size = require_int(batch_size, "batch_size", minimum=1)
        self.generator = generator
        self.pad = pad
        if not rows:
            raise ValueError("rows に 1 行以上を渡してください: 0 行")

    def __len__(self) -> int:
        return math.ceil(len(self.rows) / self.batch_size)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        noise = 4 * torch.rand(len(self.rows), generator=self.generator)  # 同じ組を繰り返さない
        lengths = torch.tensor([len(ids) for ids, _ in self.rows])
        order = (lengths + noise).argsort().tolist()
        for k in torch.randperm(len(self), generator=self.generator).tolist():
            chosen = order[k * self.batch_size : (k + 1) * self.batch_size]
            yield pad_rows([self.rows[i] for i in chosen], self.pad)


def sft_loss(model: Any, batch: Batch) -> Tensor:
    """答えのトークンだけの、交差エントロピーの平均 [nat/トークン]。

    L = -Σ_t m_t log p(x_t | x_<t) / Σ_t m_t(m_t: 答えと終わりの印の所だけ 1)

    語彙へ写すのは答えの位置だけなので、全部の位置の logits から求めるより速い。値は同じになる。

    Args:
        model: GPT(LoRA を付けたものでもよい)。
        batch: {"ids": (B, T), "mask": (B, T)}。

    Raises:
        ValueError: "ids" と "mask" の形が違う、印が一つもないとき。
    """
    ids, mask = batch["ids"], batch["mask"]
    if ids.shape != mask.shape or mask.dtype != torch.bool:
        raise ValueError(
            f"batch の mask は ids と同じ形 {tuple(ids.shape)} の真偽値にしてください: "
            f"{tuple(mask.shape)} {mask.dtype}"
        )
    answers = mask[:, 1:]  # 位置 t の状態が予測するのは t + 1 のトークン
    if not answers.any():
        raise ValueError("batch の mask に、損失に数える所(True)が 2 番目より後にありません")
    states = model.hidden(ids[:, :-1])[answers]  # (答えのトークンの数, d)
    return F.cross_entropy(model.output(states).float(), ids[:, 1:][answers])


def warmup_linear(peak: float, steps: int, warmup: float = 0.05) -> Callable[[int], float]:
    """`peak` まで直線で上げ、`steps` で 0 になるよう直線で下げる学習率(ステップ番号は 1 から)。

    Raises:
        TypeError, ValueError: `peak` が正でない、`steps` が 1 より小さい、`warmup` が [0, 1) の外。
    """
    if require_number(peak, "peak") <= 0:
        raise ValueError(f"peak は正の数にしてください: {peak}")
    require_int(steps, "steps", minimum=1)
    up = max(1.0, require_rate(warmup, "warmup") * steps)
    return lambda step: peak * min(step / up, (steps + 1 - step) / max(1.0, steps + 1 - up))


def cosine(peak: float, warmup: int, steps: int) -> Callable[[int], float]:
    """0 から `peak` まで `warmup` 歩で上げ、cos の半周期で 0 に下げる学習率(歩数は 1 から)。

    Radford+ 2018, 4.1 節の形。`steps` が `warmup` 以下なら、下げる前に学習が終わる。
    """
    return lambda step: (
        peak
        * (
            step / warmup
            if step <= warmup
            else (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup)))) / 2
        )
    )


def sft(
    model: nn.Module,
    tokenizer: Tokenizer,
    examples: Iterable[Example],
    *,
    steps: int,
    rate: float = 1e-3,
    batch_size: int = 32,
    seed: int = 0,
    **options: Any,
) -> Result:
    """`examples` の答えを、AdamW で `steps` ステップ学習する。

    学習率は `rate` まで上げてから 0 へ下げる。勾配は 1.0 で切り詰める。`options` は train に渡す。

    Raises:
        TypeError, ValueError: 引数が誤っている、`examples` が空のとき。
    """
    rows = [format_example(tokenizer, example) for example in examples]
    generator = torch.Generator().manual_seed(require_seed(seed))
    batches = SFTBatches(rows, batch_size, generator, tokenizer.special_tokens[END])
    settings: dict[str, Any] = {
        "optimizer": "adamw", "rate": warmup_linear(rate, steps), "betas": (0.9, 0.95),
        "clip": 1.0, "progress": False, "generators": [generator],
    }  # fmt: skip
    return train(model, batches, sft_loss, steps=steps, **{**settings, **options})


def answer(
    model: Any, tokenizer: Tokenizer, instructions: Sequence[str], max_new_tokens: int = 24
) -> list[str]:
    """指示への答え(貪欲法)。長さの同じ指示をまとめて解く。

    <|endoftext|> が出るか、`max_new_tokens` 個になるか、文脈が尽きれば、そこで終わる。

    Raises:
        TypeError, ValueError: 指示が文字列でない、空、文脈より長いとき。
    """
    require_int(max_new_tokens, "max_new_tokens", minimum=1)
    end, device = tokenizer.special_tokens[END], next(model.parameters()).device
    prompts = [prompt_ids(tokenizer, instruction) for instruction in instructions]
    groups: dict[int, list[int]] = defaultdict(list)
    for index, prompt in enumerate(prompts):
        groups[len(prompt)].append(index)
    answers = [""] * len(prompts)
    for length, members in groups.items():
        ids = torch.tensor([prompts[i] for i in members], device=device)
        room = max(1, min(max_new_tokens, model.config.context - length))
        written = generate(model, ids, room, top_k=1, stop=end)[:, length:].tolist()
        for i, row in zip(members, written, strict=True):
            answers[i] = tokenizer.decode(row[: row.index(end)] if end in row else row)
    return answers


def exact_match(
    model: Any, tokenizer: Tokenizer, examples: Sequence[Example]
) -> dict[str, tuple[int, int]]:
    """課題ごとの、答えが一字も違わない例の数と、例の数。

    Raises:
        ValueError: `examples` が空のとき。
    """
    if not examples:
        raise ValueError("examples に 1 個以上を渡してください: 0 個")
    found: dict[str, list[bool]] = defaultdict(list)
    answers = answer(model, tokenizer, [example.instruction for example in examples])
    for example, text in zip(examples, answers, strict=True):
        found[example.task].append(text == example.answer)
    return {task: (sum(right), len(right)) for task, right in found.items()}


# ---- 分類 (GPT-1) ---------------------------------------------------------------------------


class ClassifierGPT(nn.Module):
    """GPT の最後のトークンの状態から、クラスを答えるモデル (Radford+ 2018, 3.2 節)。

    P(y | x_1, …, x_m) = softmax(W_y h_m)(h_m: 最後のトークンの、最後の層の状態)

    Args:
        gpt: 事前学習した GPT。重みはそのまま使う(写しはとらない)。
        n_classes: クラスの数。
        dropout: 線形写像の前のドロップアウトの率(公開された実装の既定は 0.1)。

    Raises:
        TypeError, ValueError: 引数が範囲の外のとき。
    """

    def __init__(self, gpt: GPT, n_classes: int, dropout: float = 0.1) -> None:
        super().__init__()
        if not isinstance(gpt, GPT):
            raise TypeError(f"gpt には GPT を渡してください: {shown(gpt)}")
        self.gpt = gpt
        self.dropout = nn.Dropout(require_rate(dropout, "dropout"))
        self.head = nn.Linear(gpt.config.d_model, require_int(n_classes, "n_classes", minimum=2))
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """うしろを詰めた ids (B, T) と、詰めものを除く長さ (B,) から、クラスの logits (B, K)。

        Raises:
            ValueError: `lengths` の形が (B,) でない、1 以上 T 以下でないとき。
        """
        return self._classify(self.gpt.hidden(ids), lengths)

    def _classify(self, states: Tensor, lengths: Tensor) -> Tensor:
        rows, width = states.shape[:2]
        if lengths.shape != (rows,) or lengths.min() < 1 or lengths.max() > width:
            raise ValueError(
                f"lengths は {rows} 個の、1 以上 {width} 以下の整数にしてください: "
                f"{shown(lengths.tolist())}"
            )
        last = states[torch.arange(rows, device=states.device), lengths - 1]  # (B, d)
        return self.head(self.dropout(last))

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """分類の損失 -L_2 と、言語モデルの損失 -L_1(どちらも平均)。

        L_1 は一文ごとにトークンの平均をとり、それを文で平均する(公開された実装と同じ)。

        Args:
            batch: {"ids": (B, T), "lengths": (B,), "labels": (B,)}。長さは 2 以上。
        """
        ids, lengths = batch["ids"], batch["lengths"]
        states = self.gpt.hidden(ids)
        classified = F.cross_entropy(self._classify(states, lengths).float(), batch["labels"])
        real = torch.arange(1, ids.shape[1], device=ids.device) < lengths[:, None]  # (B, T - 1)
        surprise = torch.zeros(real.shape, device=ids.device).masked_scatter(
            real,
            F.cross_entropy(
                self.gpt.output(states[:, :-1][real]).float(), ids[:, 1:][real], reduction="none"
            ),
        )
        return classified, (surprise.sum(1) / real.sum(1)).mean()


def classification_loss(
    model: Any, batch: Batch, lm_weight: float = 0.5
) -> tuple[Tensor, dict[str, float]]:
    """分類に、言語モデルの損失を足したもの (Radford+ 2018, 3.2 節)。

    L_3(C) = L_2(C) + λ L_1(C)。論文はこれを最大にするので、符号を変えて最小にする。λ の既定 0.5 は
    公開された実装と同じ。

    Raises:
        TypeError, ValueError: `lm_weight` が 0 以上の数でないとき。
    """
    weight = require_number(lm_weight, "lm_weight", 0)
    classified, modelled = model.losses(batch)
    total = classified + weight * modelled if weight else classified
    return total, {"classification": classified.item(), "lm": modelled.item()}


def freeze(model: ClassifierGPT, trained: str, n_last: int = 1) -> int:
    """学習する重みを選び、その数を返す。

    Args:
        model: 分類のモデル。
        trained: "head" は線形写像だけ、"last" は最後の `n_last` 層とその後の層正規化も、"all" は
            全部。
        n_last: "last" で学習する層の数。

    Raises:
        TypeError, ValueError: 引数が誤っているとき。
    """
    if not isinstance(model, ClassifierGPT):
        raise TypeError(f"model には ClassifierGPT を渡してください: {shown(model)}")
    if trained not in ("head", "last", "all"):
        raise ValueError(
            f'trained は "head"・"last"・"all" のどれかにしてください: {shown(trained)}'
        )
    layers = len(model.gpt.layers)
    if require_int(n_last, "n_last", minimum=1) > layers:
        raise ValueError(f"n_last は層の数 {layers} 以下にしてください: {n_last}")
    model.requires_grad_(trained == "all")
    parts: list[nn.Module] = [model.head]
    if trained == "last":
        parts += [*model.gpt.layers[layers - n_last :], model.gpt.norm]
    for part in parts:
        part.requires_grad_(True)
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def accuracy(model: ClassifierGPT, batches: Iterable[Batch]) -> float:
    """正しく分類した割合。評価の状態で測り、終われば元に戻す。

    Raises:
        ValueError: バッチが一つもないとき。
    """
    right = total = 0
    with evaluating(model):
        for batch in batches:
            guess = model(batch["ids"], batch["lengths"]).argmax(-1)
            right += int((guess == batch["labels"]).sum())
            total += len(guess)
    if not total:
        raise ValueError("batches にバッチが一つもありません")
    return right / total
