"""学習率の予定とラベル平滑化 (Vaswani+ 2017, arXiv:1706.03762v7, 5.3 節と 5.4 節)。"""

import torch
from torch import Tensor

from shared.checks import require_int, require_number, shown

__all__ = ["label_smoothing_loss", "noam_rate"]


def noam_rate(step: int, d_model: int, warmup: int) -> float:
    """`step` 歩目(1 から数える)の学習率。

    lrate = d_model^-0.5 · min(step^-0.5, step · warmup^-1.5) (Vaswani+ 2017, 式 (3))。はじめの
    `warmup` 歩は歩数に比例して上がり、そこで最大 (d_model · warmup)^-0.5 に達し、あとは歩数の平方根
    に反比例して下がる。

    Raises:
        TypeError: 引数が整数でないとき。
        ValueError: 引数が 1 より小さいとき。
    """
    step = require_int(step, "step", minimum=1)
    d_model = require_int(d_model, "d_model", minimum=1)
    warmup = require_int(warmup, "warmup", minimum=1)
    return d_model**-0.5 * min(step**-0.5, step * warmup**-1.5)


def label_smoothing_loss(
    logits: Tensor, target: Tensor, epsilon: float = 0.1, pad: int = 0
) -> Tensor:
    """ラベル平滑化をした交差エントロピーの、詰めもの `pad` を除いた位置にわたる平均 [nat]。

    正解の分布を q'(k) = (1 - ε) δ(k, y) + ε / V に替え、-Σ_k q'(k) log p(k) を損失とする
    (Szegedy+ 2016, arXiv:1512.00567v3, 7 節。u(k) は一様分布で、正解の語も ε / V を受け取る)。
    torch.nn.functional.cross_entropy の label_smoothing と同じ値である。数える位置が一つもなければ
    NaN になるのも同じである。

    Args:
        logits: 正規化する前の点 (..., V)。
        target: 正解の id (...)。
        epsilon: 一様分布に回す割合 ε [0, 1]。
        pad: 数えない id。

    Raises:
        TypeError: `logits` が小数の、`target` が整数のテンソルでないとき。
        ValueError: 形が合わない、`epsilon` が範囲の外、`target` に語彙の外の id があるとき。
    """
    _require_logits_and_target(logits, target, pad)
    if not 0.0 <= require_number(epsilon, "epsilon") <= 1.0:
        raise ValueError(f"epsilon は 0 以上 1 以下にしてください: {epsilon}")
    real = target != pad
    log_p = logits[real].log_softmax(dim=-1)  # (N, V)
    gold = log_p.gather(1, target[real].long().unsqueeze(1)).squeeze(1)  # log p(y) (N,)
    return -((1 - epsilon) * gold + epsilon * log_p.mean(dim=-1)).mean()


def _require_logits_and_target(logits: Tensor, target: Tensor, pad: int) -> None:
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        raise TypeError(f"logits には小数のテンソルを渡してください: {shown(logits)}")
    if (
        not isinstance(target, Tensor)
        or target.is_floating_point()
        or target.is_complex()
        or target.dtype == torch.bool
    ):
        raise TypeError(f"target には整数のテンソルを渡してください: {shown(target)}")
    if logits.dim() < 1 or logits.shape[:-1] != target.shape:
        raise ValueError(
            "logits の形は target の形に語彙の大きさを続けたものにしてください: "
            f"{tuple(logits.shape)} と {tuple(target.shape)}"
        )
    real = target[target != pad]
    if len(real) and not (int(real.min()) >= 0 and int(real.max()) < logits.shape[-1]):
        raise ValueError(
            f"target の id は 0 以上 {logits.shape[-1]} 未満にしてください: "
            f"{int(real.min())} から {int(real.max())}"
        )
