"""3.3 節(注意機構)の主張の測定。シードは、はじめの重みと、学習・検証に使う文章を決める。"""

import math
from functools import cache

import torch

from chapter03 import word_order
from chapter03.additive_attention import RNNSearch, translation_loss
from shared.training import train

STEPS = 320
LONGEST = 4  # 学習と検証に使う、最も長い文章の文の数
PEAK_RATE = 1e-2
N_TEST = 50  # 長さごとの、検証用の文章の数


def rate(step: int) -> float:
    """はじめの 30 ステップで上げ、そのあとまっすぐ下げる学習率。"""
    return PEAK_RATE * min(1.0, step / 30) * max(0.05, 1 - step / STEPS)


@cache
def trained(attention: bool, seed: int) -> RNNSearch:
    """一つの設定で学習した翻訳器。"""
    torch.manual_seed(seed)
    sizes = len(word_order.SOURCE_WORDS), len(word_order.TARGET_WORDS)
    model = RNNSearch(*sizes, attention=attention)
    batches = word_order.lessons(seed, STEPS, LONGEST)
    train(model, batches, translation_loss, steps=STEPS, rate=rate, clip=1.0, progress=False)
    return model


def accuracy(model: RNNSearch, seed: int, n_sentences: int) -> float:
    """`n_sentences` 文の検証用の文章での、文の正解率。"""
    pairs = word_order.passages(1000 + seed, N_TEST, n_sentences)
    ids, _ = model.translate(word_order.batch(pairs)[0], max_len=10 * n_sentences + 5)
    return word_order.correct_sentences(pairs, [word_order.decode_target(row) for row in ids])


@torch.no_grad()
def alignment(seed: int) -> float:
    """内容語のうち、重みが最大の入力語が正しい対応先である割合。"""
    pairs = [
        pair
        for n_sentences in range(1, LONGEST + 1)
        for pair in word_order.passages(1000 + seed, N_TEST, n_sentences)
    ]
    src, tgt = word_order.batch(pairs)
    _, weights = trained(True, seed)(src, tgt[:, :-1])
    return word_order.alignment_accuracy(pairs, list(weights))


def fixed_vector_drop(seed: int) -> float:
    """固定長のベクトルに頼るモデルの、最も長い文章での正解率 ÷ 最も短い文章での正解率。"""
    return _long_over_short(False, seed)


def attention_keeps_length(seed: int) -> float:
    """注意機構を持つモデルの、最も長い文章での正解率 ÷ 最も短い文章での正解率。"""
    return _long_over_short(True, seed)


def _long_over_short(attention: bool, seed: int) -> float:
    model = trained(attention, seed)
    return accuracy(model, seed, LONGEST) / accuracy(model, seed, 1)


def unscaled_gradient(seed: int, d_k: int = 512, n_keys: int = 16, n: int = 1000) -> float:
    """ヤコビ行列 diag(p) - p^T p の Frobenius ノルムの中央値の、縮めないときと縮めたときの比。"""
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(n, 1, d_k, generator=generator)
    k = torch.randn(n, n_keys, d_k, generator=generator)
    scores = (q @ k.transpose(1, 2)).squeeze(1)  # (n, n_keys)
    raw, scaled = (_jacobian_norm(s).median() for s in (scores, scores / math.sqrt(d_k)))
    return (raw / scaled).item()


def _jacobian_norm(scores: torch.Tensor) -> torch.Tensor:
    p = scores.softmax(dim=1)
    return (torch.diag_embed(p) - p[:, :, None] * p[:, None, :]).flatten(1).norm(dim=1)
