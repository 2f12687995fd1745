"""4.1.1 節(GPT-1)の主張の測定。

シードは、はじめの重み、バッチの順、ラベルのある文と試験の文を決める。事前学習のコーパスには、課題の
元になった文を含めない。配ってある GPT では、試験の文はその GPT の検証と試験の文から作れるすべてで、
ラベルのある文は学習の文から選ぶ。
"""

import copy
from functools import cache

from chapter02.byte_level_bpe import ByteLevelBPE
from chapter04 import japanese_gpt, text
from chapter04 import questions as task
from chapter04.gpt import GPT


def pretraining_gain(seed: int) -> float:
    """正答率の差、事前学習あり - なし。"""
    return tuned(seed) - tuned(seed, start="scratch")


def auxiliary_gain(seed: int) -> float:
    """正答率の差、λ = 0.5 - λ = 0。"""
    return tuned(seed, lm_weight=0.5) - tuned(seed)


def layers_gain(seed: int) -> float:
    """正答率の差、すべての層を移す - 埋め込みだけを移す。"""
    return tuned(seed) - tuned(seed, start="embeddings")


@cache
def tuned(seed: int, *, start: str = "pretrained", lm_weight: float = 0.0) -> float:
    """ラベルのある文でファインチューニングしたモデルの、試験の文の正答率。"""
    pool, tokenizer, _ = _prepared()
    labelled, tested = task.draw(pool, seed)
    if start == "scratch":
        gpt = task.build(seed)
    elif start == "embeddings":
        gpt = task.transfer(_pretrained(seed), 0, seed)
    else:
        gpt = copy.deepcopy(_pretrained(seed))
    model = task.finetune(gpt, tokenizer, labelled, lm_weight=lm_weight, seed=seed)
    return task.score(model, tokenizer, tested)


@cache
def _prepared() -> tuple[list[task.Example], ByteLevelBPE, list[list[int]]]:
    """課題の例、トークナイザー、コーパスの id。"""
    pool, corpus = task.corpus_and_pool(text.documents())
    corpus = text.split(corpus)["train"]
    tokenizer = ByteLevelBPE.train(corpus, task.VOCAB_SIZE, task.SPECIAL_TOKENS)
    return pool, tokenizer, tokenizer.encode_batch(corpus)


@cache
def _pretrained(seed: int) -> GPT:
    _, tokenizer, ids = _prepared()
    gpt = task.build(seed)
    task.pretrain(gpt, ids, tokenizer.special_tokens[task.END], seed=seed)
    return gpt


def stored_gain(seed: int) -> float:
    """正答率の差、配ってある GPT から - 同じ形の初期値から。"""
    return stored_tuned(seed) - stored_tuned(seed, start="scratch")


def stored_layers_gain(seed: int) -> float:
    """正答率の差、配ってある GPT のすべての層を移す - 埋め込みだけを移す。"""
    return stored_tuned(seed) - stored_tuned(seed, start="embeddings")


@cache
def stored_tuned(seed: int, *, start: str = "pretrained") -> float:
    """配ってある GPT(か、その形の初期値)から始めたときの、試験の文の正答率。"""
    stored, labelled, tested = stored_task(seed)
    gpt = task.fresh(stored.model.config, seed)
    if start == "embeddings":
        gpt = task.transfer(stored.model, 0, seed)
    elif start == "pretrained":
        gpt.load_state_dict(stored.model.state_dict())
    model = task.finetune(gpt, stored.tokenizer, labelled, lm_weight=0.0, seed=seed)
    return task.score(model, stored.tokenizer, tested)


def stored_task(
    seed: int,
) -> tuple[japanese_gpt.JapaneseGPT, list[task.Example], list[task.Example]]:
    """配ってある GPT、ラベルのある文、その GPT の読んでいない試験の文。"""
    stored, seen, tested = _stored()
    return stored, task.draw(seen, seed)[0], tested


@cache
def _stored() -> tuple[japanese_gpt.JapaneseGPT, list[task.Example], list[task.Example]]:
    parts = text.split(text.deduplicate(text.documents()))
    unread = parts["validation"] + parts["test"]
    return japanese_gpt.load(), task.examples(parts["train"]), task.examples(unread)
