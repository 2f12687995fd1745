"""終わりを切り取った文が、疑問文か平叙文かを当てる課題。4.1.1 節の実験をすべてここで行う。

    家賃は月いくら位【ですか。】 →  疑問文
    家賃は月八万円位【です。】   →  平叙文

【 】の中を切り取って渡す。正解は「か」の有無から機械的に決まる。終わり(です、ました、…)ごとに二つの
クラスを同じ数だけ使い、「何」などで終わるものは除くので、切り口だけを見ても分かりにくい。
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from chapter02.byte_level_bpe import ByteLevelBPE
from chapter04 import text
from chapter04.finetune import (
    ClassifierGPT,
    accuracy,
    classification_loss,
    cosine,
    freeze,
    warmup_linear,
)
from chapter04.gpt import GPT, GPTConfig
from shared.checks import require_int
from shared.device import seed_everything
from shared.dropout import use_fast_dropout
from shared.training import Result, train

END = "<|endoftext|>"
SPECIAL_TOKENS = (END,)
CLASSES = ("平叙文", "疑問文")
ENDINGS = ("です", "ます", "ました", "ません", "でした")
_END = re.compile(f"({'|'.join(ENDINGS)})(か[。?]|。)$")
_ASKING = re.compile("(何|なん|なに|誰|だれ|どこ|いつ|いくら|いくつ|どう|どれ|どちら|どっち|なぜ)$")
PER_CLASS = 2000  # 課題に使う文の数(クラスごと)

VOCAB_SIZE = 2000
SIZES = {"context": 48, "d_model": 64, "n_heads": 4, "n_layers": 3, "dropout": 0.1}
STEPS, BATCH_SIZE, WARMUP, PEAK = 500, 16, 60, 1.5e-3  # 事前学習
LABELS, TESTED = 300, 1000  # ラベルのある文の数、試験の文の数
TUNING_STEPS, TUNING_BATCH, TUNING_PEAK = 120, 16, 1e-3  # ファインチューニング


@dataclass(frozen=True)
class Example:
    """終わりを切り取った文と、クラスの番号(`CLASSES`)、元の文。"""

    text: str
    label: int
    original: str


# ---- 課題 -----------------------------------------------------------------------------------


def examples(documents: Sequence[str], per_class: int = PER_CLASS) -> list[Example]:
    """文書から作った例。終わりごとに、疑問文と平叙文の数を揃え、およそ `per_class` 文ずつにする。

    Raises:
        TypeError, ValueError: `per_class` が 1 より小さいとき。
    """
    require_int(per_class, "per_class", minimum=1)
    found: dict[str, tuple[list[Example], list[Example]]] = {e: ([], []) for e in ENDINGS}
    for original in documents:
        match = _END.search(original)
        cut = original[: match.start()] if match else ""
        if match and len(cut) > 3 and not _ASKING.search(cut) and not re.search("[。?!]", cut):
            label = int(match[2] != "。")
            found[match[1]][label].append(Example(cut, label, original))
    numbers = {ending: min(map(len, groups)) for ending, groups in found.items()}
    share = min(1.0, per_class / max(1, sum(numbers.values())))
    balanced: list[Example] = []
    for ending, groups in found.items():
        for group in groups:
            balanced += random.Random(0).sample(group, int(share * numbers[ending]))
    return balanced


def corpus_and_pool(documents: Sequence[str], every: int = 8) -> tuple[list[Example], list[str]]:
    """課題の例と、その元の文を除いた文書を `every` 個に一つ選んだ、事前学習のコーパス。

    Raises:
        TypeError, ValueError: `every` が 1 より小さいとき。
    """
    require_int(every, "every", minimum=1)
    documents = text.deduplicate(documents)
    pool = examples(documents)
    used = {example.original for example in pool}
    return pool, [document for document in documents if document not in used][::every]


def draw(
    pool: Sequence[Example], seed: int, labels: int = LABELS, tested: int = TESTED
) -> tuple[list[Example], list[Example]]:
    """ラベルを使う `labels` 文と、それと重ならない試験の `tested` 文。

    試験の文は先に取るので、`labels` を変えても変わらない。

    Raises:
        TypeError, ValueError: 数が 1 より小さい、`pool` が足りないとき。
    """
    require_int(labels, "labels", minimum=1)
    require_int(tested, "tested", minimum=1)
    if labels + tested > len(pool):
        raise ValueError(f"pool には {labels + tested} 文以上が要ります: {len(pool)} 文")
    shuffled = random.Random(seed).sample(pool, len(pool))
    return shuffled[tested : tested + labels], shuffled[:tested]


def naive_bayes(
    tokenizer: ByteLevelBPE, labelled: Sequence[Example], tested: Sequence[Example]
) -> float:
    """トークンの順を見ない、単純ベイズの正答率。事前学習の値打ちを測る物差しにする。"""
    counts = [Counter[int](), Counter[int]()]
    for example in labelled:
        counts[example.label].update(set(_ids(tokenizer, example.text)))
    sizes = [sum(e.label == label for e in labelled) for label in (0, 1)]

    def evidence(ids: set[int]) -> float:
        rates = [[(counts[k][i] + 1) / (sizes[k] + 2) for i in ids] for k in (0, 1)]
        return sum(math.log(b / a) for a, b in zip(*rates, strict=True))

    right = sum((evidence({*_ids(tokenizer, e.text)}) > 0) == e.label for e in tested)
    return right / len(tested)


# ---- 事前学習 ----------------------------------------------------------------------------------


def build(seed: int, **changes: float) -> GPT:
    """重みが初期値のままの、小さな GPT-1(post-LN)。注意の重みにはドロップアウトを掛けない。"""
    sizes = {"vocab_size": VOCAB_SIZE, **SIZES, **changes}
    return fresh(GPTConfig(norm_first=False, **sizes), seed)  # pyright: ignore[reportArgumentType]


def fresh(config: GPTConfig, seed: int) -> GPT:
    """重みが初期値のままの GPT。注意の重みにはドロップアウトを掛けない。"""
    seed_everything(seed)
    model = GPT(config)
    use_fast_dropout(model)
    return model


def lm_loss(model: GPT, batch: Mapping[str, Tensor]) -> Tensor:
    """次のトークンの交差エントロピー [nat/トークン](Radford+ 2018, 式 (1) の符号を変えた平均)。"""
    return F.cross_entropy(model(batch["inputs"]).flatten(0, 1), batch["targets"].flatten())


def pretrain(
    model: GPT,
    documents: Sequence[Sequence[int]],
    end: int,
    *,
    steps: int = STEPS,
    seed: int = 0,
    progress: bool = False,
) -> Result:
    """文書の id から、次のトークンを当てる学習をする。"""
    generator = torch.Generator().manual_seed(seed)
    batches = text.PackedBatches(documents, end, model.config.context, BATCH_SIZE, generator)
    return train(
        model, batches, lm_loss, steps=steps, optimizer="adamw", rate=cosine(PEAK, WARMUP, steps),
        weight_decay=0.01, clip=1.0, progress=progress,
    )  # fmt: skip


# ---- ファインチューニング ----------------------------------------------------------------------


def transfer(gpt: GPT, n_layers: int, seed: int = 0) -> GPT:
    """埋め込みとはじめの `n_layers` 層だけを `gpt` から写し、残りは初期値のままのモデル。

    Raises:
        TypeError, ValueError: `n_layers` が 0 以上、層の数以下でないとき。
    """
    if require_int(n_layers, "n_layers", minimum=0) > len(gpt.layers):
        raise ValueError(f"n_layers は {len(gpt.layers)} 以下にしてください: {n_layers}")
    model = fresh(gpt.config, seed)
    model.token_embedding.load_state_dict(gpt.token_embedding.state_dict())
    model.position_embedding.load_state_dict(gpt.position_embedding.state_dict())
    for ours, theirs in list(zip(model.layers, gpt.layers, strict=True))[:n_layers]:
        ours.load_state_dict(theirs.state_dict())
    return model


def _ids(tokenizer: ByteLevelBPE, sentence: str) -> list[int]:
    return [tokenizer.special_tokens[END], *tokenizer.encode(sentence)]


def batches(
    tokenizer: ByteLevelBPE, chosen: Sequence[Example], context: int
) -> list[dict[str, Tensor]]:
    """例を、長さの順に `TUNING_BATCH` 文ずつ束ねたバッチ。はじめに END を置く。

    長すぎる文は、終わりのほうを残して切る。
    """
    rows = [(_ids(tokenizer, example.text), example.label) for example in chosen]
    rows = [(ids[-context:], label) for ids, label in rows]
    rows.sort(key=lambda row: len(row[0]))
    made = []
    for start in range(0, len(rows), TUNING_BATCH):
        part = rows[start : start + TUNING_BATCH]
        ids = torch.zeros(len(part), max(len(r) for r, _ in part), dtype=torch.long)
        for i, (row, _) in enumerate(part):
            ids[i, : len(row)] = torch.tensor(row)
        made.append(
            {
                "ids": ids,
                "lengths": torch.tensor([len(row) for row, _ in part]),
                "labels": torch.tensor([label for _, label in part]),
            }
        )
    return made


class _Shuffled:
    """例を 1 周ごとに混ぜ直してから束ねるバッチの列。"""

    def __init__(
        self, tokenizer: ByteLevelBPE, chosen: Sequence[Example], context: int, seed: int
    ) -> None:
        self.arguments = tokenizer, chosen, context
        self.random = random.Random(seed)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        tokenizer, chosen, context = self.arguments
        mixed = self.random.sample(chosen, len(chosen))
        for start in range(0, len(mixed), TUNING_BATCH):
            yield from batches(tokenizer, mixed[start : start + TUNING_BATCH], context)


def finetune(
    gpt: GPT,
    tokenizer: ByteLevelBPE,
    labelled: Sequence[Example],
    *,
    trained: str = "all",
    lm_weight: float = 0.5,
    steps: int = TUNING_STEPS,
    peak: float = TUNING_PEAK,
    seed: int = 0,
) -> ClassifierGPT:
    """`gpt` を、線形写像を付けて分類に学習させる。`gpt` の重みは動く(残すなら写しを渡す)。

    Args:
        gpt: 事前学習したモデル(比べるために、初期値のままのものでもよい)。
        tokenizer: トークナイザー。
        labelled: ラベルのある例。
        trained: 学習する重み("head"・"last"・"all"。`finetune.freeze` を見よ)。
        lm_weight: 補助の損失の重み λ。
        steps, peak: ステップ数と、学習率の頂点。
        seed: 線形写像の初期値と、例の順を決める。
    """
    seed_everything(seed)
    model = ClassifierGPT(gpt, len(CLASSES))
    freeze(model, trained)
    data = _Shuffled(tokenizer, labelled, gpt.config.context, seed)
    train(
        model, data, lambda m, batch: classification_loss(m, batch, lm_weight), steps=steps,
        optimizer="adamw", rate=warmup_linear(peak, steps), weight_decay=0.01, clip=1.0,
        progress=False,
    )  # fmt: skip
    return model.eval()


def score(model: ClassifierGPT, tokenizer: ByteLevelBPE, tested: Sequence[Example]) -> float:
    """試験の文の正答率。"""
    return accuracy(model, batches(tokenizer, tested, model.gpt.config.context))
