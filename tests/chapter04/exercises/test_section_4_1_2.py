"""4.1.2 の採点が、正しい解を通し、もっともらしい誤りを理由つきで退けるか。"""

import numpy as np
import pytest
import torch

from chapter04.exercises import check_generation_flops, check_nucleus
from chapter04.generation import filter_logits
from tests.grading import accepts, explains, waits


def by_module(probabilities, p):
    """モジュールの filter_logits による。"""
    logits = torch.tensor(probabilities).log()
    return filter_logits(logits, top_p=p).softmax(-1).numpy()


def nucleus(probabilities, p, *, extra=0, divide=True, back=True, strict=False):
    """一つずつ足していく、素直な解。"""
    order = sorted(range(len(probabilities)), key=lambda i: -probabilities[i])
    kept, total = np.zeros_like(probabilities), 0.0
    for rank, i in enumerate(order):
        enough = total > p if strict else total >= p
        if enough and not extra:
            break
        extra -= int(enough)
        kept[i if back else rank] = probabilities[i]
        total += probabilities[i]
    return kept / kept.sum() if divide else kept


def not_divided(probabilities, p):
    return nucleus(probabilities, p, divide=False)


def left_sorted(probabilities, p):
    return nucleus(probabilities, p, back=False)


def past_the_edge(probabilities, p):
    return nucleus(probabilities, p, strict=True)


def one_too_many(probabilities, p):
    return nucleus(probabilities, p, extra=1)


def without_crossing(probabilities, p):
    """p を超えるトークンを捨て、いちばん高いものだけは残す。"""
    order = np.argsort(-probabilities)
    inside = np.cumsum(probabilities[order]) <= p
    inside[0] = True
    kept = np.zeros_like(probabilities)
    kept[order[inside]] = probabilities[order[inside]]
    return kept / kept.sum()


def threshold(probabilities, p):
    kept = np.where(probabilities >= 1 - p, probabilities, 0.0)
    return kept / max(kept.sum(), 1e-12)


def flops(prompt, new, d_model, n_layers, use_cache, *, last=-1, triangle=True, mixing=4):
    """位置と層を一つずつ回る、素直な解。"""
    total = 0
    for n in range(prompt, prompt + new + last + 1):
        fresh = use_cache and n > prompt
        for i in range(n if fresh else 1, n + 1):
            total += n_layers * (24 * d_model**2 + mixing * d_model * (i if triangle else n))
    return total


def reads_the_last(*arguments):
    return flops(*arguments, last=0)


def without_attention(*arguments):
    return flops(*arguments, mixing=0)


def half_the_attention(*arguments):
    return flops(*arguments, mixing=2)


def whole_square(*arguments):
    return flops(*arguments, triangle=False)


def without_prompt(prompt, new, d_model, n_layers, use_cache):
    skipped = flops(prompt - 1, 1, d_model, n_layers, True) if prompt > 1 else 0
    return flops(prompt, new, d_model, n_layers, use_cache) - skipped


def always_cached(prompt, new, d_model, n_layers, use_cache):
    return flops(prompt, new, d_model, n_layers, True)


def one_layer(prompt, new, d_model, n_layers, use_cache):
    return flops(prompt, new, d_model, 1, use_cache)


@pytest.mark.parametrize(
    ("check", "solution"),
    [(check_nucleus, nucleus), (check_nucleus, by_module), (check_generation_flops, flops)],
)
def test_solutions_pass(check, solution, capsys):
    accepts(check, solution, capsys)


@pytest.mark.parametrize(
    ("check", "wrong", "message"),
    [
        (check_nucleus, not_divided, "和を 1 に戻します"),
        (check_nucleus, left_sorted, "もとの並びに戻します"),
        (check_nucleus, past_the_edge, "ちょうど p"),
        (check_nucleus, one_too_many, "そのトークンも含めて"),
        (check_nucleus, without_crossing, "はじめて p 以上"),
        (check_nucleus, threshold, "はじめて p 以上"),
        (check_generation_flops, reads_the_last, "もう読みません"),
        (check_generation_flops, without_attention, "24 d^2"),
        (check_generation_flops, half_the_attention, "24 d^2"),
        (check_generation_flops, whole_square, "i 個の位置を見ます"),
        (check_generation_flops, without_prompt, "書き出しの位置も計算します"),
        (check_generation_flops, always_cached, "計算し直します"),
        (check_generation_flops, one_layer, "どの層でも"),
    ],
)
def test_wrong_answers_are_explained(check, wrong, message, capsys):
    explains(check, wrong, message, capsys)


@pytest.mark.parametrize("check", [check_nucleus, check_generation_flops])
def test_stub_is_not_a_failure(check, capsys):
    waits(check, capsys)
