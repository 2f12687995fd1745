"""4.3.2 節前半(SFT と LoRA、モデルのマージ)の主張の測定。

配ってある GPT から始める。歩数、学習率、ドロップアウトの率はシード 100 で、学習用の言い回しの一部を
試験に回して選んだ。数える・写すの学習用の言い回しは、シード 0 の結果を見て増やした。

シードは、指示データ(試験に回す言葉、言い回しと内容の組)、学習の順、LoRA の初期値を決める。

どの測定も、学習用の例のうち最後の 480 個を検証に取りおき、残りで学習する。試験は、新しい言い回し
(test_templates、課題ごとに 120 個)を使う。AMX のある CPU では、学習の計算の一部を bfloat16 でする。

4,000 歩で、どの例も一度だけ見る。はじめは、配ってある差分と同じ一課題 3,000 個を 5 周していたが、
全部の重みが「続きを書く」の文を暗唱して点を得るので、指示に従う力を比べられなかった。
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import mean

import torch
from torch import Tensor

from chapter04 import japanese_gpt
from chapter04.finetune import exact_match, pad_rows, sft, sft_loss
from chapter04.gpt import GPT
from chapter04.instruct import ALPHA, RANK, TARGETS
from chapter04.instruction_templates import COPIED_OR_COUNTED, TASKS
from chapter04.instructions import Example, build, format_example
from chapter04.japanese_gpt import JapaneseGPT
from chapter04.lora import add_lora, spectrum, weight_updates
from chapter04.merging import apply_task_vectors, greedy_soup, task_vector
from shared.device import autocast_dtype, seed_everything
from shared.dropout import set_dropout
from shared.inference import evaluating

FULL_RATE, LORA_RATE, SHORT_RATE = 2e-4, 4e-3, 1e-3
STEPS, SHORT = 4_000, 120
VALIDATION = 480
PER_TASK, PER_TEST = 16_060, 120  # 8 課題から検証を除いた 128,000 個が、4,000 歩 × 32 個で 1 周
SOUP = ((0, 1e-3), (1, 7e-4), (2, 1.4e-3))  # (学習の順の番号, 学習率)
PAIR = ("count", "translate")
SCALES = tuple(k / 10 for k in range(2, 11))  # λ の候補
State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Data:
    """学習・検証・試験の例。"""

    train: list[Example]
    validation: list[Example]
    test: list[Example]


@cache
def data(seed: int) -> Data:
    """シード `seed` の指示データ。"""
    parts = build(seed, PER_TASK, PER_TEST)
    train = parts["train"]
    return Data(train[:-VALIDATION], train[-VALIDATION:], parts["test_templates"])


@cache
def base() -> JapaneseGPT:
    """元の GPT。"""
    return japanese_gpt.load()


def tuned(
    seed: int,
    steps: int,
    *,
    rate: float,
    order: int = 0,
    tasks: Sequence[str] = tuple(TASKS),
    rank: int = 0,
) -> GPT:
    """元の GPT を `tasks` の例で学習したもの。`rank` が 0 なら、LoRA でなく全部の重みを動かす。"""
    seed_everything(1000 * order + seed)
    model = copy.deepcopy(base().model)
    set_dropout(model, 0.0)
    if rank:
        add_lora(model, rank, ALPHA * rank / RANK, TARGETS)
    examples = [example for example in data(seed).train if example.task in tasks]
    precision = autocast_dtype(torch.device("cpu"))
    seed = 1000 * order + seed
    sft(model, base().tokenizer, examples, steps=steps, rate=rate, seed=seed, autocast=precision)
    return model


def loss(model: GPT, examples: Sequence[Example], tasks: Sequence[str] = tuple(TASKS)) -> float:
    """`tasks` の例の、答えのトークンの交差エントロピーの平均 [nat/トークン]。"""
    rows = [format_example(base().tokenizer, e) for e in examples if e.task in tasks]
    rows.sort(key=lambda row: len(row[0]))
    total = count = 0.0
    with evaluating(model):
        for start in range(0, len(rows), 64):
            batch = pad_rows(rows[start : start + 64])
            answers = int(batch["mask"].sum())
            total += answers * float(sft_loss(model, batch))
            count += answers
    return total / count


def with_weights(state: State) -> GPT:
    """`state` の重みを持つ GPT。"""
    model = copy.deepcopy(base().model)
    model.load_state_dict(state)
    return model


# ---- SFT と LoRA ----------------------------------------------------------------------------


@cache
def scores(seed: int, rank: int) -> dict[str, float]:
    """4,000 歩の後の、新しい言い回しでの、課題ごとの完全一致の割合(`rank` が 0 なら全部の重み)。"""
    model = tuned(seed, STEPS, rate=LORA_RATE if rank else FULL_RATE, rank=rank)
    found = exact_match(model, base().tokenizer, data(seed).test)
    return {task: right / total for task, (right, total) in found.items()}


def sft_count(seed: int) -> float:
    """LoRA で学習したモデルの、文字を数える課題の完全一致の割合。"""
    return scores(seed, RANK)["count"]


def sft_choose(seed: int) -> float:
    """LoRA で学習したモデルの、選ぶ課題の完全一致の割合。"""
    return scores(seed, RANK)["choose"]


def sft_copy(seed: int) -> float:
    """LoRA で学習したモデルの、写す課題の完全一致の割合。"""
    return scores(seed, RANK)["copy"]


def lora_gap(seed: int) -> float:
    """8 課題の完全一致の割合の平均の差、全部の重み - LoRA(r = 8)。"""
    return mean(scores(seed, 0).values()) - mean(scores(seed, RANK).values())


# ---- 差分のランク ----------------------------------------------------------------------------


@cache
def short(seed: int, order: int = 0, rate: float = SHORT_RATE) -> GPT:
    """全部の重みを 120 歩学習したもの。"""
    return tuned(seed, SHORT, rate=rate, order=order)


def rank_share(seed: int) -> float:
    """W_q と W_v の差分の二乗和のうち、上位 8 個の特異値が占める割合の平均。"""
    updates = weight_updates(base().model.state_dict(), short(seed).state_dict())
    squares = [spectrum(delta).square() for delta in updates.values()]
    return mean(float(s[:RANK].sum() / s.sum()) for s in squares)


def truncated(before: State, after: State, rank: int) -> dict[str, Tensor]:
    """層の中の線形写像の差分だけを、ランク `rank` に切り詰めた重み。ほかは `after` のまま。"""
    state = {name: value.clone() for name, value in after.items()}
    for name, delta in weight_updates(before, after, TARGETS).items():
        u, s, v = torch.linalg.svd(delta.double(), full_matrices=False)
        kept = (u[:, :rank] * s[:rank]) @ v[:rank]
        state[name] = before[name] + kept.to(delta.dtype)
    return state


def rank_loss(seed: int) -> float:
    """差分をランク 8 に切り詰めても残る、試験(写す・数える・選ぶ)の損失の下がり幅の割合。"""
    before, after = base().model, short(seed)
    cut = with_weights(truncated(before.state_dict(), after.state_dict(), RANK))
    start, full, low = (
        loss(model, data(seed).test, COPIED_OR_COUNTED) for model in (before, after, cut)
    )
    return (start - low) / (start - full)


# ---- モデルのマージ --------------------------------------------------------------------------


def soup_gain(seed: int) -> float:
    """試験の損失の差、貪欲なスープ - 検証でいちばんよい一つ。"""
    found = data(seed)
    states = [short(seed, order, rate).state_dict() for order, rate in SOUP]
    soup, chosen = greedy_soup(states, lambda s: -loss(with_weights(s), found.validation))
    best = with_weights(states[chosen[0]])  # 貪欲なスープは、検証でいちばんよい一つから始まる
    return loss(with_weights(soup), found.test) - loss(best, found.test)


def task_sum(seed: int) -> float:
    """二つの課題の試験の損失の平均の差、片方だけ学習したモデルのよいほう - 課題ベクトルの和。"""
    found, start = data(seed), base().model.state_dict()
    alone = [tuned(seed, SHORT, rate=SHORT_RATE, tasks=(task,)) for task in PAIR]
    vectors = [task_vector(start, model.state_dict()) for model in alone]

    def both(model: GPT, examples: Sequence[Example]) -> float:
        return mean(loss(model, examples, (task,)) for task in PAIR)

    sums = [with_weights(apply_task_vectors(start, vectors, scale)) for scale in SCALES]
    best = min(sums, key=lambda model: both(model, found.validation))
    return min(both(model, found.test) for model in alone) - both(best, found.test)
