"""文脈内学習と勾配降下: 線形注意は、勾配降下の一歩と同じ計算をする。

前半は双対の形(Dai+ 2023, 2.2 節)。線形層を勾配降下で動かした後の出力は、動かす前の出力に、線形
注意を足したものに等しい。

    (W_0 + ΔW) x = W_0 x + Σ_i e_i (x_i · x)    バリューが誤差 e_i、キーが入力 x_i、クエリーが x

後半は線形回帰(von Oswald+ 2023)。例 (x_1, y_1), ..., (x_N, y_N) と問い x を並べ、文脈だけから y を
当てる。データの流れ(B: 課題の数、N: 例の数、d: 入力の次元):

    tokens (B, N + 1, d + 1)  (x_i, y_i) と、最後に (x, 0)
        → 線形自己注意 → 最後のトークンの y の所の符号を変える → 予測 (B,)

softmax のない注意を使うのは、勾配降下との一致が近似ではなく等式になるからである。
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shared.checks import require_int, require_number
from shared.device import seed_everything
from shared.training import Result, train

DIMENSION, EXAMPLES = 5, 10
BATCH, STEPS, RATE = 256, 1000, 1e-2


# ---- 双対の形 ------------------------------------------------------------------------------


def linear_attention(values: Tensor, keys: Tensor, query: Tensor) -> Tensor:
    """softmax も 1/sqrt(d) もない注意 Σ_i v_i (k_i · q) の出力 (..., d_v)。

    LinearAttn(V, K, q) = V K^T q(Dai+ 2023, 2.2 節。論文は列ベクトル、ここでは行ベクトルを並べる)

    Args:
        values: バリュー (..., N, d_v)。
        keys: キー (..., N, d_k)。
        query: クエリー (..., d_k)。

    Raises:
        ValueError: 個数 N か、次元 d_k が合わないとき。
    """
    if values.shape[-2] != keys.shape[-2] or keys.shape[-1] != query.shape[-1]:
        raise ValueError(
            "values と keys の個数、keys と query の次元を揃えてください: "
            f"{tuple(values.shape)}、{tuple(keys.shape)}、{tuple(query.shape)}"
        )
    scores = keys @ query[..., None]  # (..., N, 1)
    return (values * scores).sum(-2)


def gradient_step(w0: Tensor, xs: Tensor, errors: Tensor, lr: float) -> Tensor:
    """線形層の重み W_0 (d_out, d_in) を、勾配降下で一歩動かした W_0 + ΔW。

    ΔW = -η Σ_i g_i x_i^T(Dai+ 2023, 式 (8)。g_i は出力 W_0 x_i についての損失の勾配)

    Args:
        w0: 動かす前の重み (d_out, d_in)。
        xs: 入力 (N, d_in)。
        errors: 出力についての損失の勾配 g_i を並べたもの (N, d_out)。二乗誤差の半分の和なら
            W_0 x_i - y_i(`xs @ w0.T - ys`)。
        lr: 学習率 η。

    Raises:
        ValueError: 形が合わないとき。
    """
    if errors.shape != (len(xs), len(w0)) or xs.shape[-1] != w0.shape[-1]:
        raise ValueError(
            "xs は (N, d_in)、errors は (N, d_out)、w0 は (d_out, d_in) にしてください: "
            f"{tuple(xs.shape)}、{tuple(errors.shape)}、{tuple(w0.shape)}"
        )
    return w0 - lr * errors.T @ xs


# ---- 文脈内の線形回帰 -----------------------------------------------------------------------


@dataclass(frozen=True)
class Tasks:
    """線形回帰の課題を B 個集めたもの。

    Attributes:
        xs, ys: 例の入力 (B, N, d) と出力 (B, N)。
        x, y: 問いの入力 (B, d) と正解 (B,)。
    """

    xs: Tensor
    ys: Tensor
    x: Tensor
    y: Tensor

    @property
    def tokens(self) -> Tensor:
        """トークンの列 (B, N + 1, d + 1)。例は (x_i, y_i)、問いは (x, 0)。"""
        inputs = torch.cat([self.xs, self.x[:, None]], dim=1)
        outputs = torch.cat([self.ys, torch.zeros_like(self.ys[:, :1])], dim=1)
        return torch.cat([inputs, outputs[..., None]], dim=2)


def regression_tasks(
    generator: torch.Generator,
    n_tasks: int = BATCH,
    *,
    dimension: int = DIMENSION,
    examples: int = EXAMPLES,
    noise: float = 0.0,
) -> Tasks:
    """課題ごとに違う線形関数 y = w · x + ε の例と問い。w と x は N(0, I)、ε は N(0, noise²)。

    Raises:
        TypeError, ValueError: 個数か次元が正の整数でない、`noise` が負のとき。
    """
    b = require_int(n_tasks, "n_tasks", minimum=1)
    d = require_int(dimension, "dimension", minimum=1)
    n = require_int(examples, "examples", minimum=1) + 1
    w = torch.randn(b, d, generator=generator)
    xs = torch.randn(b, n, d, generator=generator)
    ys = torch.einsum("bnd,bd->bn", xs, w)
    ys = ys + require_number(noise, "noise", minimum=0) * torch.randn(b, n, generator=generator)
    return Tasks(xs[:, :-1], ys[:, :-1], xs[:, -1], ys[:, -1])


def squared_error(predictions: Tensor, tasks: Tasks) -> float:
    """予測 (B,) の二乗誤差の平均。"""
    return float((predictions - tasks.y).square().mean())


# ---- 手で解く方法: 勾配降下とリッジ回帰 -------------------------------------------------------


def gradient_descent(tasks: Tasks, rate: float, steps: int = 1) -> Tensor:
    """重み 0 から始めて、例の二乗誤差を勾配降下で減らした線形モデルの、問いへの予測 (B,)。

    w ← w - (η / N) Σ_i (w · x_i - y_i) x_i(von Oswald+ 2023, 式 (3))

    Raises:
        TypeError, ValueError: `steps` が負か整数でない、`rate` が数でないとき。
    """
    require_number(rate, "rate")
    w = torch.zeros_like(tasks.x)
    for _ in range(require_int(steps, "steps", minimum=0)):
        errors = (tasks.xs @ w[..., None])[..., 0] - tasks.ys  # (B, N)
        w = w - rate * (errors[..., None] * tasks.xs).mean(1)
    return (w * tasks.x).sum(-1)


def best_rate(dimension: int, examples: int, noise: float = 0.0) -> float:
    """一歩だけの勾配降下の、損失の期待値をいちばん小さくする学習率。

    w と x が N(0, I) なら、E[X^T X / N] = I、E[(X^T X / N)²] = (1 + (d + 1) / N) I なので、

        損失 = d (1 - 2 η + η² (1 + (d + 1 + σ²) / N)) + σ²、 η = N / (N + d + 1 + σ²)

    Raises:
        TypeError, ValueError: 次元か個数が正の整数でない、`noise` が負のとき。
    """
    n = require_int(examples, "examples", minimum=1)
    variance = require_number(noise, "noise", minimum=0) ** 2
    return n / (n + require_int(dimension, "dimension", minimum=1) + 1 + variance)


def one_step_loss(rate: float, dimension: int, examples: int, noise: float = 0.0) -> float:
    """学習率 `rate` の一歩の、問いでの二乗誤差の期待値(`best_rate` の式)。"""
    d, n, variance = dimension, examples, noise**2
    return d * (1 - 2 * rate + rate**2 * (1 + (d + 1 + variance) / n)) + variance


def ridge(tasks: Tasks, noise: float = 0.0) -> Tensor:
    """事後分布の平均による予測 (B,)。どんな方法でも、二乗誤差の期待値はこれより小さくならない。

    w ~ N(0, I) と雑音の分散 σ² のもとで、ŵ = (X^T X + σ² I)^{-1} X^T y(リッジ回帰)。`noise` が
    0 なら最小二乗法(例が足りなければ、ノルムが最小の解)になる。

    Raises:
        TypeError, ValueError: `noise` が負か、数でないとき。
    """
    xs, ys = tasks.xs, tasks.ys[..., None]
    if require_number(noise, "noise", minimum=0) == 0:
        w = torch.linalg.pinv(xs) @ ys
    else:
        eye = torch.eye(xs.shape[-1], dtype=xs.dtype, device=xs.device)
        w = torch.linalg.solve(xs.mT @ xs + noise**2 * eye, xs.mT @ ys)  # (B, d, 1)
    return (w[..., 0] * tasks.x).sum(-1)


# ---- 線形自己注意 --------------------------------------------------------------------------


class LinearSelfAttention(nn.Module):
    """softmax のない、1 ヘッドの自己注意の層。

    e_j ← e_j + P Σ_i (W_V e_i) (W_K e_i)^T W_Q e_j(von Oswald+ 2023, 2 節)

    論文の構成に合わせて、キーとバリューは例のトークンだけから作る(問いを除く)。

    Args:
        size: トークンの次元 d + 1。
        scale: 重みの初期値の標準偏差。
    """

    def __init__(self, size: int, scale: float = 0.2) -> None:
        super().__init__()
        size = require_int(size, "size", minimum=2)
        self.key, self.query, self.value, self.projection = (
            nn.Parameter(scale * torch.randn(size, size)) for _ in range(4)
        )  # どれも (出力, 入力)

    def forward(self, tokens: Tensor) -> Tensor:
        """トークン (B, N + 1, d + 1) を同じ形に写す。最後の一つが問い。

        Raises:
            ValueError: 形が違うとき。
        """
        if tokens.dim() != 3 or tokens.shape[-1] != len(self.key):
            raise ValueError(
                f"tokens の形は (課題の数, 例の数 + 1, {len(self.key)}) にしてください: "
                f"{tuple(tokens.shape)}"
            )
        examples = tokens[:, :-1]
        k, v = examples @ self.key.T, examples @ self.value.T  # (B, N, d + 1)
        q = tokens @ self.query.T  # (B, N + 1, d + 1)
        return tokens + (q @ k.mT) @ v @ self.projection.T

    def predict(self, tasks: Tasks, layers: int = 1) -> Tensor:
        """この層を `layers` 回くり返し通し、問いの y の所の符号を変えた予測 (B,)。"""
        tokens = tasks.tokens
        for _ in range(require_int(layers, "layers", minimum=1)):
            tokens = self(tokens)
        return -tokens[:, -1, -1]

    @torch.no_grad()
    def step_matrix(self, examples: int) -> Tensor:
        """予測 (1 / N) Σ_i y_i x_i^T M x の行列 M (d, d)。勾配降下の一歩なら η I になる。

        W_K^T W_Q の左上と P W_V の右下(y から y へ)を掛けたもの。予測のうち、この形に書けない
        ほかの項(W_V が x を取り出す分など)は含まない。
        """
        scores, outputs = self.key.T @ self.query, self.projection @ self.value
        return -examples * outputs[-1, -1] * scores[:-1, :-1]


@torch.no_grad()
def gradient_descent_layer(
    rate: float,
    examples: int,
    *,
    dimension: int = DIMENSION,
    w0: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> LinearSelfAttention:
    """例の二乗誤差についての勾配降下の一歩と、同じ計算をする層(von Oswald+ 2023, 付録 A.1)。

    W_K = W_Q = [[I, 0], [0, 0]]、W_V = [[0, 0], [W_0, -1]]、P = (η / N) I

    キーとクエリーは x だけを、バリューは残差 W_0 x - y だけを取り出す。`w0` (d,) を省けば 0 から
    始め、層を k 回通すと勾配降下の k 歩になる。渡すなら、問いのトークンは (x, -w0 · x) にする。

    Raises:
        TypeError, ValueError: `examples` か `dimension` が正の整数でない、`rate` が数でないとき。
    """
    require_number(rate, "rate")
    require_int(dimension, "dimension", minimum=1)
    layer = LinearSelfAttention(dimension + 1).to(dtype)
    for matrix in layer.parameters():
        matrix.zero_()
    layer.key[:-1, :-1] = layer.query[:-1, :-1] = torch.eye(dimension)
    layer.value[-1, -1] = -1.0
    if w0 is not None:
        layer.value[-1, :-1] = w0
    layer.projection.fill_diagonal_(rate / require_int(examples, "examples", minimum=1))
    return layer


def train_linear_attention(
    seed: int,
    *,
    dimension: int = DIMENSION,
    examples: int = EXAMPLES,
    noise: float = 0.0,
    steps: int = STEPS,
) -> Result:
    """毎回新しい課題で、問いの二乗誤差を減らすように、線形自己注意の層を学習する。

    損失は von Oswald+ 2023, 式 (5)。x が標準正規分布なら、その期待値をいちばん小さくする層は、
    勾配降下の一歩と同じ予測をする(Mahankali+ 2024)。
    """
    generator = seed_everything(seed)
    layer = LinearSelfAttention(dimension + 1)

    class Batches:
        def __iter__(self) -> Iterator[Tasks]:
            while True:
                yield regression_tasks(
                    generator, dimension=dimension, examples=examples, noise=noise
                )

    return train(
        layer, Batches(), lambda model, tasks: (model.predict(tasks) - tasks.y).square().mean(),
        steps=steps, rate=lambda step: RATE * 0.5 * (1 + math.cos(math.pi * step / (steps + 1))),
        clip=1.0, generators=[generator], progress=False,
    )  # fmt: skip
