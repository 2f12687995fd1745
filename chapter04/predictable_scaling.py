"""大きな学習の損失を、小さな学習だけから言い当てる (GPT-4, OpenAI 2023, 3 節)。

前の `CONTEXT` 文字から次の文字を当てる小さな多層パーセプトロン(CharMLP)を、幅だけを変えて学習
する。学習に使う文字の数 D はパラメーターの数 N に比例させるので、計算量 C = 6 N D が一つ決まれば、
ほかもすべて決まる。

    load_data → train_run(幅) → Run(N, D, 損失) → fit(C, 損失) → Law: L(C) = a C^-b + c → commit

論文の式は L(C) = a C^b + c (3.1 節)で、その b は負。ここでは符号を外に出し、b を正の数とする。
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import least_squares
from torch import Tensor, nn
from torch.nn import functional as F

from chapter04.text import documents, split
from shared.checks import require_int
from shared.device import seed_everything
from shared.training import train

Array = NDArray[np.float64]

CONTEXT = 6
EDGE, OTHER = 0, 1  # 文の外(始まりの前と、終わり)、表にない文字
SYMBOLS = 64  # EDGE と OTHER と、よく出る 62 文字
SMALL, LARGE = (8, 12, 16, 20, 28, 36), 120  # 当てはめに使う幅と、言い当てる幅
REPLICAS = 3  # 小さな学習は、幅ごとに乱数を変えて 3 回
TOKENS_PER_PARAMETER, BATCH = 50, 128
PEAK = 0.16  # 学習率の最大は PEAK / sqrt(幅)
ANSWER = 5  # 一問で当てる文字の数(終わりの印も数える)

# ---- データとモデル ----


@dataclass(frozen=True)
class Data:
    """文字の表と、そこから切り出した窓。

    Attributes:
        alphabet: よく出る文字(id は 2 から)。
        train: 学習の窓 (窓の数, CONTEXT + 1)。終わりの列が、当てる文字。
        held_out: 学習に使わない文の窓。
    """

    alphabet: str
    train: Tensor
    held_out: Tensor


@cache
def load_data() -> Data:
    """Tatoeba の和文を、学習の窓と、試験(検証も合わせる)の窓にする。

    Raises:
        DataError: Tatoeba を用意できないとき。
    """
    parts = split(documents())
    counts = Counter("".join(parts["train"]))
    ranked = sorted(counts, key=lambda letter: (-counts[letter], letter))
    alphabet = "".join(ranked[: SYMBOLS - 2])
    held_out = parts["validation"] + parts["test"]
    return Data(alphabet, windows(parts["train"], alphabet), windows(held_out, alphabet))


def windows(texts: Sequence[str], alphabet: str) -> Tensor:
    """文ごとに、文字と終わりの印を当てる窓 (窓の数, CONTEXT + 1) を作る。型は uint8。

    文の間に EDGE を CONTEXT 個はさむので、窓が前の文をのぞくことはない。
    """
    table = {letter: number for number, letter in enumerate(alphabet, start=2)}
    pad = bytes(CONTEXT)
    stream = pad + pad.join(bytes(table.get(c, OTHER) for c in text) for text in texts) + pad
    cut = torch.frombuffer(bytearray(stream), dtype=torch.uint8).unfold(0, CONTEXT + 1, 1)
    # 終わりの印は、文字の直後の EDGE だけ。すき間を埋める EDGE は当てさせない。
    return cut[(cut[:, -1] != EDGE) | (cut[:, -2] != EDGE)]


class CharMLP(nn.Module):
    """前の CONTEXT 文字の埋め込みを並べ、一つの隠れ層を通して、次の文字の logits を出す。"""

    def __init__(self, width: int):
        """`width` は隠れ層の幅。埋め込みの次元は width / 4。

        Raises:
            TypeError, ValueError: `width` が 4 以上の整数でないとき。
        """
        super().__init__()
        depth = require_int(width, "width", minimum=4) // 4
        self.embedding = nn.Embedding(SYMBOLS, depth)
        self.hidden = nn.Linear(CONTEXT * depth, width)
        self.output = nn.Linear(width, SYMBOLS)
        nn.init.normal_(self.output.weight, std=0.01)  # はじめは、どの文字も同じ確率に近い
        nn.init.zeros_(self.output.bias)

    def forward(self, context: Tensor) -> Tensor:
        """id (B, CONTEXT) から logits (B, SYMBOLS)。"""
        return self.output(F.gelu(self.hidden(self.embedding(context).flatten(1))))

    @property
    def n_parameters(self) -> int:
        """埋め込みの表(引くだけで、掛け算をしない)を除いた、パラメーターの数 N。"""
        layers = (self.hidden, self.output)
        return sum(p.numel() for layer in layers for p in layer.parameters())


def loss(model: nn.Module, cut: Tensor) -> Tensor:
    """窓 (B, CONTEXT + 1) の終わりの文字の交差エントロピー [nat/文字]。"""
    cut = cut.long()
    return F.cross_entropy(model(cut[:, :-1]), cut[:, -1])


# ---- 一回の学習 ----


@dataclass(frozen=True)
class Run:
    """一回の学習: 幅、パラメーターの数 N、学習した文字の数 D、試験の損失 [nat/文字]。"""

    width: int
    parameters: int
    tokens: int
    loss: float
    model: nn.Module

    @property
    def compute(self) -> float:
        """学習の計算量 C = 6 N D [FLOP]。前向きに 2 N D、後ろ向きにその 2 倍とみなす。"""
        return 6.0 * self.parameters * self.tokens


def tokens_for(n_parameters: int) -> int:
    """N に比例させた、学習する文字の数 D(バッチの大きさの倍数)。"""
    return TOKENS_PER_PARAMETER * n_parameters // BATCH * BATCH


def compute_for(width: int) -> float:
    """幅 `width` の学習に使う計算量 [FLOP]。学習しなくても分かる。"""
    n = CharMLP(width).n_parameters
    return 6.0 * n * tokens_for(n)


def train_run(width: int, data: Data, seed: int = 0) -> Run:
    """幅 `width` のモデルを一回学習する。シードは、はじめの重みと、学習の窓の選び方を決める。

    学習率は、はじめの 5 % で PEAK / sqrt(幅) まで上げ、終わりへまっすぐ 0 に下げる。どの幅でも
    同じ手順であることが、損失がなめらかに並ぶための条件である。
    """
    seed_everything(seed)
    model = CharMLP(width)
    tokens = tokens_for(model.n_parameters)
    steps = tokens // BATCH
    peak = PEAK / width**0.5

    def rate(step: int) -> float:
        return peak * min(step / (0.05 * steps), (steps - step + 1) / (0.95 * steps), 1.0)

    batches = _stream(data.train, torch.Generator().manual_seed(seed))
    train(model, batches, loss, steps=steps, rate=rate, progress=False)
    with torch.no_grad():
        measured = float(loss(model.eval(), data.held_out))
    return Run(width, model.n_parameters, tokens, measured, model)


def small_runs(data: Data, seed: int = 0) -> list[Run]:
    """当てはめに使う学習。`SMALL` の幅ごとに `REPLICAS` 回。"""
    seeds = range(seed * REPLICAS, (seed + 1) * REPLICAS)
    return [train_run(width, data, each) for width in SMALL for each in seeds]


def _stream(cut: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
    while True:
        yield cut[torch.randint(len(cut), (BATCH,), generator=generator)]


# ---- 能力: 文の終わりを、一字も違えずに書けるか ----


def endings(cut: Tensor) -> Tensor:
    """問題 (問の数, ANSWER): 文の終わりの ANSWER 個を当てる窓の番号。

    `cut` は `windows` が作った窓。ANSWER の 2 倍より短い文と、答えに OTHER が入る文は除く。
    """
    ends = (cut[:, -1] == EDGE).nonzero().flatten()
    lengths = ends.diff(prepend=torch.tensor([-1]))
    problems = ends[lengths >= 2 * ANSWER, None] + torch.arange(1 - ANSWER, 1)
    return problems[(cut[problems, -1] != OTHER).all(dim=1)]


@torch.no_grad()
def solve(model: nn.Module, cut: Tensor, problems: Tensor) -> tuple[Tensor, Tensor]:
    """問ごとの log 合格率(無作為に続きを書いて正解する確率の対数)と、貪欲に書いて完全一致するか。

    正解は一つなので、合格率は文字の確率の積に等しい。サンプリングして数えるまでもない。
    """
    rows = cut[problems.flatten()].long()
    logits = model(rows[:, :-1])
    chosen = logits.log_softmax(-1).gather(1, rows[:, -1:]).view(problems.shape)
    exact = (logits.argmax(-1) == rows[:, -1]).view(problems.shape).all(dim=1)
    return chosen.sum(dim=1), exact


# ---- 当てはめと、予言 ----


@dataclass(frozen=True)
class Law:
    """スケーリング則 L(C) = a C^-b + c。c は、いくら計算しても減らない損失。"""

    a: float
    b: float
    c: float

    def __call__(self, compute: ArrayLike) -> Array:
        """計算量 [FLOP] から損失 [nat/文字]。"""
        return self.a * np.asarray(compute, dtype=np.float64) ** -self.b + self.c


def fit(compute: ArrayLike, losses: ArrayLike, *, irreducible: bool = True) -> Law:
    """Σ (log L - log L(C))^2 を最小にする Law を、いくつもの出発点から探す。

    Args:
        compute: 計算量 (n,)。
        losses: 損失 (n,)。
        irreducible: False なら c = 0 とし、両対数の直線を当てはめる。

    Raises:
        ValueError: 長さが違う、正の有限な数でない、計算量の種類が式の未知数より少ないとき。
    """
    x, y = _checked(compute, losses, 3 if irreducible else 2)
    centre = float(np.log(x).mean())
    u = np.log(x) - centre  # 対数の計算量を 0 のまわりに置くと、a と b の値が絡みにくい
    if not irreducible:
        slope, height = np.polyfit(u, np.log(y), 1)
        return Law(float(np.exp(height - slope * centre)), float(-slope), 0.0)

    def residuals(p: Array) -> Array:
        return np.log(np.exp(p[0] - p[1] * u) + p[2]) - np.log(y)

    def slopes(p: Array) -> Array:  # residuals の、log a・b・c による微分
        reducible = np.exp(p[0] - p[1] * u)
        columns = np.stack([reducible, -u * reducible, np.ones_like(u)], axis=1)
        return columns / (reducible + p[2])[:, None]

    # c は 0 から損失の最小値まで。その中の二点と、急と緩やかの二つの傾きから出発する。
    lowest = float(y.min())
    starts = [
        (np.log(np.median(y) - share * lowest), slope, share * lowest)
        for share in (0.2, 0.8)
        for slope in (0.1, 0.4)
    ]
    bounds = ([-50.0, 1e-6, 0.0], [50.0, 10.0, lowest])
    options = {"bounds": bounds, "x_scale": (1.0, 0.1, lowest), "max_nfev": 200}
    tolerances = {"xtol": 1e-10, "ftol": 1e-12, "gtol": 1e-12}
    found = [
        least_squares(residuals, start, slopes, **options, **tolerances)  # pyright: ignore
        for start in starts
    ]
    log_a, b, c = min(found, key=lambda result: result.cost).x
    return Law(float(np.exp(log_a + b * centre)), float(b), float(c))


def bootstrap(
    compute: ArrayLike, losses: ArrayLike, target: float, draws: int = 100, seed: int = 0
) -> Array:
    """残差を選び直して当てはめ直した、計算量 `target` での予測 (draws,)。小さい順に並べる。

    ばらつきのうち、小さな学習の乱数によるものだけを表す。式の形が誤っていても、幅には現れない。

    Raises:
        TypeError, ValueError: `draws` が 1 以上の整数でないとき、`fit` が受け取らない値のとき。
    """
    draws = require_int(draws, "draws", minimum=1)
    law, generator = fit(compute, losses), np.random.default_rng(seed)
    expected = law(compute)
    noise = np.log(np.asarray(losses, dtype=np.float64) / expected)
    noise *= np.sqrt(len(noise) / max(len(noise) - 3, 1))  # 未知数 3 個の分だけ縮んだ残差を戻す
    found = [
        fit(compute, expected * np.exp(generator.choice(noise, len(noise))))(target)
        for _ in range(draws)
    ]
    return np.sort(np.array(found))


def commit(record: Mapping[str, object]) -> str:
    """予言の記録の SHA-256(16 進 64 文字)。先に公開すれば、後から書き換えたことが分かる。"""
    text = json.dumps(record, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _checked(compute: ArrayLike, losses: ArrayLike, unknowns: int) -> tuple[Array, Array]:
    x, y = (np.asarray(values, dtype=np.float64) for values in (compute, losses))
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(f"compute と losses は、同じ長さの列にしてください: {x.shape}、{y.shape}")
    for name, values in (("compute", x), ("losses", y)):
        if not (np.isfinite(values).all() and (values > 0).all()):
            raise ValueError(f"{name} には、正の有限な数だけを入れてください: {values.tolist()}")
    if len(np.unique(x)) < unknowns:
        raise ValueError(
            f"compute には {unknowns} 種類以上の計算量を入れてください(未知数が {unknowns} 個): "
            f"{len(np.unique(x))} 種類"
        )
    return x, y
