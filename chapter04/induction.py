"""誘導ヘッド(Olsson+ 2022): 繰り返しの続きを当てるモデルと、ヘッドの働きの測り方。

乱数の記号の列を、行ごとに違う周期で繰り返す。

    A C B | A C B | A ...    周期 3。2 周目からは、続きが文脈だけから決まる

続きを当てるには、いまの記号 (A) が前に出た所を探し、そのすぐ後 (C) を写せばよい。二つの層が
それを分担する。

    1 層目 前を見るヘッド: 各位置に「一つ前の記号」を書き込む
    2 層目 誘導ヘッド:     「一つ前の記号」が、いまの記号と同じ位置を見て、そこの記号を写す

周期がまちまちなので、「何個前を見る」という位置だけの決め打ちでは当たらない。

ヘッドの得点と `ablated` は、`layers[i].self_attention`・`norm`・`output`・`attention_maps(ids)` を
備えたモデル(`InductionModel` と chapter04.gpt.GPT)ならどれにも使える。
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chapter03.positional import Rotary
from shared.attention import MultiHeadAttention
from shared.checks import require_int
from shared.device import seed_everything
from shared.ids import require_ids
from shared.training import Result, train
from shared.transformer import FeedForward, Residual

SYMBOLS, LENGTH, PERIODS = 32, 48, (8, 20)
D_MODEL, N_HEADS = 64, 2
BATCH, STEPS, RATE = 64, 300, 3e-3


# ---- 繰り返しの列 --------------------------------------------------------------------------


def repeated_rows(
    generator: torch.Generator,
    rows: int = BATCH,
    *,
    length: int = LENGTH,
    symbols: int = SYMBOLS,
    periods: tuple[int, int] = PERIODS,
) -> tuple[Tensor, Tensor]:
    """周期のまちまちな繰り返しの列 (rows, length) と、行ごとの周期 (rows,)。

    一つの周期の中の記号は互いに異なる(乱数の並べ替えの先頭)。だから 2 周目の 2 個目からは、いまの
    記号だけで続きが一つに決まる。周期は `periods` の両端を含む範囲から、同じ確率で選ぶ。

    Raises:
        TypeError, ValueError: `rows` か周期が正の整数でない、`symbols` が周期より少ない、2 周が
            `length` に収まらないとき。
    """
    require_int(rows, "rows", minimum=1)
    shortest, longest = periods
    require_int(shortest, "periods[0]", minimum=1)
    require_int(longest, "periods[1]", minimum=shortest)
    require_int(symbols, "symbols", minimum=longest)
    require_int(length, "length", minimum=2 * longest)
    drawn = torch.randint(shortest, longest + 1, (rows,), generator=generator)
    shuffled = torch.rand(rows, symbols, generator=generator).argsort(dim=1)
    return shuffled.gather(1, torch.arange(length) % drawn[:, None]), drawn


def predictable(ids: Tensor, periods: Tensor) -> Tensor:
    """続きが文脈から決まる位置 t を True にしたもの (B, n - 1)。2 周目の先頭から後 (t >= 周期)。

    1 周目の終わり(t = 周期 - 1)は含まない。そこまでには、どの記号もまだ繰り返されていない。
    """
    return torch.arange(ids.shape[1] - 1, device=ids.device) >= periods[:, None]


# ---- モデル --------------------------------------------------------------------------------


class SmearedKeys(nn.Module):
    """キーに一つ前の位置のキーを混ぜてから、RoPE で回す(Olsson+ 2022, Argument 2 の smeared key)。

    k_j ← σ(α) k_j + (1 - σ(α)) k_{j-1}、α はヘッドごとに学習する(先頭の位置は混ぜない)

    「一つ前の記号」がキーに初めから入るので、前を見る層がなくても誘導ヘッドができる。
    """

    def __init__(self, n_heads: int, rotary: Rotary) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(n_heads, 1, 1))
        self.rotary = rotary

    def rotate(
        self, q: Tensor, k: Tensor, q_positions: Tensor, k_positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """q (B, H, n, d_k) と k (B, H, m, d_k) を、位置 (n,) と (m,) に応じて変えて返す。"""
        previous = torch.cat([k[:, :, :1], k[:, :, :-1]], dim=2)
        smeared = torch.lerp(previous, k, self.alpha.sigmoid())
        return self.rotary.rotate(q, smeared, q_positions, k_positions)


class Block(nn.Module):
    """pre-LN の層。`ffn` が False なら注意だけ。"""

    def __init__(
        self, d_model: int, n_heads: int, *, ffn: bool, position: Rotary | SmearedKeys
    ) -> None:
        super().__init__()
        self.self_attention = MultiHeadAttention(d_model, n_heads, position=position)
        self.residual_1 = Residual(d_model, 0.0, norm_first=True)
        self.ffn = FeedForward(d_model, 4 * d_model, activation="gelu_tanh") if ffn else None
        self.residual_2 = Residual(d_model, 0.0, norm_first=True) if ffn else None

    def forward(self, x: Tensor, maps: list[Tensor] | None) -> Tensor:
        """x (B, n, d) を (B, n, d) へ。`maps` を渡すと、注意の重み (B, H, n, n) を末尾に足す。"""

        def attend(normed: Tensor) -> Tensor:
            y, weights = self.self_attention(normed, causal=True, return_weights=maps is not None)
            if maps is not None and weights is not None:
                maps.append(weights)
            return y

        x = self.residual_1(x, attend)
        return x if self.residual_2 is None else self.residual_2(x, cast(nn.Module, self.ffn))


class InductionModel(nn.Module):
    """次の記号を当てる、pre-LN の因果的なモデル。位置は RoPE で表す。

    Args:
        n_layers: 層の数。
        ffn: FFN を付けるか(付けなければ、注意だけのモデル)。
        smeared: キーに一つ前のキーを混ぜるか(`SmearedKeys`)。
        symbols: 記号の種類。
        d_model, n_heads: ベクトルの次元と、一層のヘッドの数。

    Raises:
        TypeError, ValueError: `n_layers` が正の整数でない、寸法が範囲の外のとき。
    """

    def __init__(
        self,
        n_layers: int,
        *,
        ffn: bool = False,
        smeared: bool = False,
        symbols: int = SYMBOLS,
        d_model: int = D_MODEL,
        n_heads: int = N_HEADS,
    ) -> None:
        super().__init__()
        require_int(n_layers, "n_layers", minimum=1)
        require_int(n_heads, "n_heads", minimum=1)
        self.embedding = nn.Embedding(symbols, d_model)
        rotary = Rotary(d_model // n_heads)
        self.layers = nn.ModuleList(
            Block(d_model, n_heads, ffn=ffn, position=position)
            for position in (
                SmearedKeys(n_heads, rotary) if smeared else rotary for _ in range(n_layers)
            )
        )
        self.norm = nn.LayerNorm(d_model)
        self.output = nn.Linear(d_model, symbols, bias=False)

    def forward(self, ids: Tensor, maps: list[Tensor] | None = None) -> Tensor:
        """記号の列 (B, n) から、次の記号の logits (B, n, symbols)。

        Raises:
            TypeError, ValueError: 整数のテンソルでない、形が違う、記号が範囲の外のとき。
        """
        require_ids(ids, "ids", self.embedding.num_embeddings)
        x = self.embedding(ids)
        for layer in self.layers:
            x = layer(x, maps)
        return self.output(self.norm(x))

    @torch.no_grad()
    def attention_maps(self, ids: Tensor) -> list[Tensor]:
        """注意の重み (B, H, n, n) を、層の順に並べて返す。"""
        maps: list[Tensor] = []
        self(ids, maps)
        return maps


# ---- 学習と正解率 --------------------------------------------------------------------------


def train_induction(
    n_layers: int,
    seed: int,
    *,
    ffn: bool = False,
    smeared: bool = False,
    steps: int = STEPS,
    evaluate_every: int = 25,
) -> Result:
    """毎回新しい列で、次の記号を当てる学習をする。`history` に正解率 accuracy も記録する。

    損失はすべての位置の交差エントロピーの平均。1 周目は当てようがないので、正解率が 1 でも 0 には
    ならない。
    """
    generator = seed_everything(seed)
    model = InductionModel(n_layers, ffn=ffn, smeared=smeared)
    return train(
        model, _Rows(generator), _loss, steps=steps, rate=lambda step: RATE * min(step / 50, 1.0),
        optimizer="adamw", weight_decay=0.01, generators=[generator], progress=False,
        evaluate=lambda m: {"accuracy": accuracy(m, seed)}, evaluate_every=evaluate_every,
    )  # fmt: skip


class _Rows:
    """繰り返しの列を、尽きることなく出す。"""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def __iter__(self) -> Iterator[Tensor]:
        while True:
            yield repeated_rows(self.generator)[0]


def _loss(model: nn.Module, ids: Tensor) -> Tensor:
    return F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def held_out_rows(seed: int, rows: int = 256) -> tuple[Tensor, Tensor]:
    """学習に使わない列 (rows, LENGTH) と周期。"""
    return repeated_rows(torch.Generator().manual_seed(10_000 + seed), rows)


@torch.no_grad()
def accuracy(model: Any, seed: int) -> float:
    """学習に使わない列で、続きが決まる位置(`predictable`)の次の記号が当たった割合。"""
    ids, periods = held_out_rows(seed)
    right = model(ids)[:, :-1].argmax(-1) == ids[:, 1:]
    return float(right[predictable(ids, periods)].float().mean())


# ---- ヘッドの得点 (Olsson+ 2022, Data Collection の "Head activation evaluators") ---------------


def previous_token(model: Any, ids: Tensor) -> Tensor:
    """前を見る度合い (層の数, H): 位置 t から t - 1 への注意の重みの平均。0 から 1。"""
    maps = torch.stack(model.attention_maps(ids))  # (層, B, H, n, n)
    return maps.diagonal(offset=-1, dim1=-2, dim2=-1).mean(dim=(1, 3))


def prefix_matching(model: Any, ids: Tensor, periods: Tensor) -> Tensor:
    """続きの先頭を見る度合い (層の数, H): 誘導ヘッドが見るはずの位置への重みの平均。0 から 1。

    2 周目から後の位置 t について、いまの記号が前に出た位置の、すぐ後への重みを合計する。

        Σ_{k=1, 2, ...} A[t, t - k × 周期 + 1]

    論文の説明は「同じ記号のすぐ前」とも読めるが、続きを写すという定義に合うのは、すぐ後である。
    何周も前の分を合計するのは本実装の読み方で、どの周を見ていても満点になる。
    """
    maps = torch.stack(model.attention_maps(ids))  # (層, B, H, n, n)
    t = torch.arange(ids.shape[1], device=ids.device)
    back = t[:, None] - t + 1  # (n, n) クエリー t からキー s の一つ前 (s >= 1) まで、いくつ戻るか
    after = (back % periods[:, None, None] == 0) & (back > 0) & (t > 0)  # (B, n, n)
    second_lap = t >= periods[:, None]  # (B, n)
    scores = (maps * after[None, :, None]).sum(-1)  # (層, B, H, n)
    return (scores * second_lap[:, None]).sum(dim=(1, 3)) / second_lap.sum()


@torch.no_grad()
def copying(model: Any, ids: Tensor) -> Tensor:
    """写す度合い (層の数, H): 見ている記号の logit を、ほかより押し上げるか。-1 から 1。

    ヘッドの出力を、後の層を通さずに logit に直し、平均を引いて負を 0 にする。列にある記号すべての
    合計を b、見ている記号の分(注意の重みで平均する)を a とする。a / (a + b) は 0 から 0.5 なので、
    4 a / (a + b) - 1 を得点とする。どの記号も同じだけ押し上げるヘッドは、列にある記号が m 種類なら
    4 / (m + 1) - 1 になる。最後の層正規化は、割り算だけを省いて通す(比には影響しない)。
    """
    inputs: list[Tensor] = []  # 層ごとの、ヘッドの出力を並べたもの (B, n, d)
    with ExitStack() as hooks:
        for layer in model.layers:
            hook = lambda _, args: inputs.append(args[0])  # noqa: E731
            hooks.enter_context(layer.self_attention.out.register_forward_pre_hook(hook))
        maps = model.attention_maps(ids)
    present = torch.zeros(len(ids), model.output.out_features, dtype=torch.bool, device=ids.device)
    present = present.scatter(1, ids, True)[:, None, None]  # (B, 1, 1, V) 列にある記号
    scores = []
    for layer, heads, weights in zip(model.layers, inputs, maps, strict=True):
        attention = layer.self_attention
        out = attention.out.weight.unflatten(1, (attention.n_heads, -1))  # (d, H, d_k)
        written = torch.einsum("bnhk,dhk->bhnd", heads.unflatten(-1, out.shape[1:]), out)
        if isinstance(model.norm, nn.LayerNorm):
            written = (written - written.mean(-1, keepdim=True)) * model.norm.weight
        logits = model.output(written)  # (B, H, n, V)
        raised = (logits - logits.mean(-1, keepdim=True)).relu()
        seen = raised.gather(-1, ids[:, None, None].expand_as(weights))  # (B, H, n, n)
        a = (weights * seen).sum(dim=(0, 2, 3))
        b = (raised * present).sum(dim=(0, 2, 3))
        scores.append(4 * a / (a + b).clamp_min(torch.finfo(a.dtype).tiny) - 1)
    return torch.stack(scores)


@contextmanager
def ablated(model: Any, heads: Iterable[tuple[int, int]]) -> Iterator[None]:
    """with の間だけ、`heads`(0 から数えた (層, ヘッド) の組)の出力を 0 にする。

    論文の full ablation で、後の層の注意の重みも変わる。

    Raises:
        ValueError: モデルにない層かヘッドのとき。
    """
    with ExitStack() as hooks:
        for layer, head in heads:
            if not 0 <= require_int(layer, "layer") < len(model.layers):
                raise ValueError(f"層は 0 以上 {len(model.layers)} 未満にしてください: {layer}")
            attention = cast(MultiHeadAttention, model.layers[layer].self_attention)
            if not 0 <= require_int(head, "head") < attention.n_heads:
                raise ValueError(f"ヘッドは 0 以上 {attention.n_heads} 未満にしてください: {head}")
            hook = _Silencer(head * attention.d_k, attention.d_k)
            hooks.enter_context(attention.out.register_forward_pre_hook(hook))
        yield


class _Silencer:
    """ヘッドの出力を並べたもの (B, n, d) のうち、一つのヘッドの分を 0 にする。"""

    def __init__(self, start: int, size: int) -> None:
        self.part = slice(start, start + size)

    def __call__(self, _: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        x = args[0].clone()
        x[..., self.part] = 0.0
        return (x,)
