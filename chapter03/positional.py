"""位置埋め込み: 順番を知らない注意機構に、位置を教えるやり方を六つ並べる。

| 名前 | どこに効くか | 学習する値 | 出典 |
|---|---|---|---|
| `sinusoidal` | 入力に足す | なし | Vaswani+ 2017, 3.5 節 |
| `LearnedPositions` | 入力に足す | 位置ごとに d 個 | 同、表 3 (E) |
| `ShawRelative` | キーとバリューに足す | 距離ごとに 2 d_k 個 | Shaw+ 2018, 式 (3)(4) |
| `RelativeBias` | 点に足す | 距離とヘッドごとに 1 個 | Raffel+ 2020, 2.1 節(を簡単にした) |
| `Alibi` | 点に足す | なし | Press+ 2022, 3 節 |
| `Rotary` | クエリーとキーを回す | なし | Su+ 2021, 式 (34) |

`RelativeBias`・`Alibi`・`Rotary` は `shared.attention.MultiHeadAttention(position=...)` に渡せる。
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from shared.checks import require_int, require_number, shown

BASE = 10000.0
"""最も長い波の長さは、おおよそ 2π × BASE になる(Vaswani+ 2017, 3.5 節)。"""


# ---- 足し算の位置埋め込み ----------------------------------------------------------------


def frequencies(d_model: int, base: float = BASE, name: str = "d_model") -> Tensor:
    """組 i = 0..d/2-1 の角周波数 w_i = base^(-2i/d)(ラジアン / 位置)、形 (d/2,)、倍精度。

    Raises:
        TypeError, ValueError: `d_model` が正の偶数でない、`base` が 1 以下のとき。
    """
    d_model = require_int(d_model, name, minimum=2)
    if d_model % 2:
        raise ValueError(f"{name} は偶数にしてください(sin と cos の組を作ります): {d_model}")
    if require_number(base, "base") <= 1:
        raise ValueError(f"base は 1 より大きくしてください: {base}")
    return base ** (-torch.arange(0, d_model, 2, dtype=torch.float64) / d_model)


def sinusoidal(n_positions: int, d_model: int, base: float = BASE) -> Tensor:
    """位置 0..n-1 の位置埋め込み (n, d)、単精度。

    PE(p, 2i) = sin(p w_i)、PE(p, 2i+1) = cos(p w_i)、w_i = base^(-2i/d)(Vaswani+ 2017, 3.5 節)

    角度は倍精度で求める。単精度では、位置が大きいとき p w_i の丸め誤差が目に見える大きさになる。

    Raises:
        TypeError, ValueError: `n_positions` が負、`d_model` が正の偶数でない、`base` が
            1 以下のとき。
    """
    n_positions = require_int(n_positions, "n_positions", minimum=0)
    w = frequencies(d_model, base)
    angles = torch.arange(n_positions, dtype=torch.float64)[:, None] * w  # (n, d/2)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1).float()


def rotation(k: int, d_model: int, base: float = BASE) -> Tensor:
    """どの位置 p でも PE(p + k) = PE(p) R_k となる行列 R_k (d, d)、倍精度。

    R_k は 2 × 2 の回転を対角に並べたもので、p を含まない。行ベクトルに右から掛ける。

        (sin a, cos a) [[cos b, -sin b], [sin b, cos b]] = (sin(a + b), cos(a + b))、b = k w_i

    Raises:
        TypeError, ValueError: `k` が整数でない、`d_model` か `base` が `frequencies` の範囲の外の
            とき。
    """
    angles = require_int(k, "k") * frequencies(d_model, base)
    sin, cos = angles.sin(), angles.cos()
    blocks = torch.stack([cos, -sin, sin, cos], dim=-1).view(-1, 2, 2)  # (d/2, 2, 2)
    return torch.block_diag(*blocks)


class LearnedPositions(nn.Module):
    """位置ごとのベクトルを学習し、入力に足す (Vaswani+ 2017, 表 3 (E))。

    Raises:
        TypeError, ValueError: 引数が正の整数でないとき。
    """

    def __init__(self, n_positions: int, d_model: int) -> None:
        super().__init__()
        self.n_positions = require_int(n_positions, "n_positions", minimum=1)
        d_model = require_int(d_model, "d_model", minimum=1)
        self.table = nn.Parameter(torch.randn(n_positions, d_model) * d_model**-0.5)

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """位置 `start` から始まる列 x (..., n, d) に、位置のベクトルを足す。

        Raises:
            ValueError: 位置が表の外に出るとき(学習していない位置のベクトルはない)。
        """
        end = require_int(start, "start", minimum=0) + x.shape[-2]
        if end > self.n_positions:
            raise ValueError(
                f"x の最後の位置は n_positions = {self.n_positions} より前にしてください: {end - 1}"
            )
        return x + self.table[start:end]


# ---- 相対位置: 差 j - i だけを使う ---------------------------------------------------------


def offsets(q_positions: Tensor, k_positions: Tensor) -> Tensor:
    """クエリーの位置 (n,) から見たキーの位置 (m,) の差 j - i、形 (n, m)。左が負、右が正。"""
    return k_positions[None, :] - q_positions[:, None]


class ShawRelative(nn.Module):
    """距離ごとのベクトルを、キーとバリューに足す注意 (Shaw+ 2018, 式 (3)(4))。

    e_ij = q_i (k_j + a^K_ij)^T / sqrt(d_k)、z_i = Σ_j α_ij (v_j + a^V_ij)、α = softmax(e)
    a_ij は差 clip(j - i, -c, c) ごとに一つ(論文の 3.2 節)。点にクエリーが関わるので、位置だけで
    決まる `bias` の差し込み口には収まらず、注意の計算ごと置き換える。

    Args:
        d_k: ヘッドの次元。ヘッドの間では共有する。
        max_distance: 区別する距離の上限 c。これより遠い位置は、c だけ離れたものとして扱う。

    Raises:
        TypeError, ValueError: 引数が整数でない、`d_k` が 1 より、`max_distance` が 0 より小さい
            とき。
    """

    def __init__(self, d_k: int, max_distance: int) -> None:
        super().__init__()
        self.max_distance = require_int(max_distance, "max_distance", minimum=0)
        d_k, rows = require_int(d_k, "d_k", minimum=1), 2 * max_distance + 1
        self.keys = nn.Parameter(torch.randn(rows, d_k) * d_k**-0.5)
        self.values = nn.Parameter(torch.randn(rows, d_k) * d_k**-0.5)

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """q (..., n, d_k) と k, v (..., m, d_k) から、出力 (..., n, d_k) と重み (..., n, m)。"""
        positions = torch.arange(max(q.shape[-2], k.shape[-2]), device=q.device)
        distance = offsets(positions[: q.shape[-2]], positions[: k.shape[-2]])
        index = distance.clamp(-self.max_distance, self.max_distance) + self.max_distance
        by_offset = q @ self.keys.T  # (..., n, 2c+1): 距離ごとの点を先に求め、(n, m) に配る
        relative = by_offset.gather(-1, index.expand(*q.shape[:-1], -1))
        scores = (q @ k.transpose(-2, -1) + relative) / math.sqrt(q.shape[-1])
        if mask is not None:
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        weights = scores.softmax(dim=-1)
        if mask is not None:
            weights = weights.masked_fill(~mask, 0.0)  # 一つも見られない行は 0 にする
        mass = torch.zeros_like(by_offset).scatter_add(-1, index.expand_as(weights), weights)
        return weights @ v + mass @ self.values, weights


class RelativeBias(nn.Module):
    """差 clip(j - i, -c, c) とヘッドごとに学習した一つの数を、点に足す (Raffel+ 2020, 2.1 節)。

    論文(T5)は遠い距離を対数で粗く区切るが、ここでは Shaw+ 2018 と同じ切り詰めだけにする。

    Raises:
        TypeError, ValueError: 引数が整数でない、`n_heads` が 1 より、`max_distance` が 0 より
            小さいとき。
    """

    def __init__(self, n_heads: int, max_distance: int) -> None:
        super().__init__()
        self.max_distance = require_int(max_distance, "max_distance", minimum=0)
        n_heads = require_int(n_heads, "n_heads", minimum=1)
        self.table = nn.Parameter(torch.zeros(n_heads, 2 * max_distance + 1))

    def bias(self, q_positions: Tensor, k_positions: Tensor) -> Tensor:
        """位置 (n,) と (m,) から、点に足す値 (H, n, m)。"""
        limit = self.max_distance
        return self.table[:, offsets(q_positions, k_positions).clamp(-limit, limit) + limit]


def alibi_slopes(n_heads: int) -> Tensor:
    """ALiBi の傾き (H,)。H が 2 の冪なら 2^(-8/H) から始まり、公比も 2^(-8/H) の等比数列。

    2 の冪でないときは、H を超えない最大の 2 の冪 P の数列に、2P の数列を一つおきに継ぎ足す
    (著者のコードの決め方)。

    Raises:
        TypeError, ValueError: `n_heads` が正の整数でないとき。
    """
    n_heads = require_int(n_heads, "n_heads", minimum=1)
    power = 1 << (n_heads.bit_length() - 1)
    first = [2.0 ** (-8 * h / power) for h in range(1, power + 1)]
    between = [2.0 ** (-4 * h / power) for h in range(1, 2 * power, 2)]
    return torch.tensor((first + between)[:n_heads])


class Alibi:
    """離れているほど点を下げる ALiBi: 点に -s_h |i - j| を足す (Press+ 2022, 3 節)。

    論文は因果マスクとともに使うので左(j <= i)だけを定める。ここでは右にも同じだけ下げる。

    Raises:
        TypeError, ValueError: `n_heads` が正の整数でないとき。
    """

    def __init__(self, n_heads: int) -> None:
        self.slopes = alibi_slopes(n_heads)

    def bias(self, q_positions: Tensor, k_positions: Tensor) -> Tensor:
        """位置 (n,) と (m,) から、点に足す値 (H, n, m)。"""
        slopes = self.slopes.to(q_positions.device)
        return slopes[:, None, None] * -offsets(q_positions, k_positions).abs()


# ---- 回転位置埋め込み (RoPE) -----------------------------------------------------------------


class Rotary:
    """クエリーとキーを、位置に比例した角度だけ回す RoPE (Su+ 2021, 3.4.2 節、式 (34))。

    成分の組 (x_1, x_2) を角度 p θ_i だけ回す。θ_i = base^(-2i/d_k) は `frequencies` と同じ。

        (x_1 cos - x_2 sin, x_1 sin + x_2 cos)

    位置 m のクエリーと位置 n のキーの内積は n - m だけで決まる。バリューは回さない。

    Args:
        d_k: ヘッドの次元(偶数)。
        base: 論文は 10000。大きくすると、遅い組がいっそう遅くなる。
        layout: 組にする成分。"adjacent" は論文どおり隣どうし (0, 1), (2, 3), ...、"halves" は
            前半と後半 (0, d/2), (1, d/2 + 1), ...(transformers の Llama など)。重みの並べ方が
            違うだけなので、学習済みの重みを読むときは揃える。

    Raises:
        TypeError, ValueError: `d_k` か `base` が `frequencies` の範囲の外、`layout` が二つの
            どちらでもないとき。
    """

    def __init__(
        self,
        d_k: int,
        base: float = BASE,
        layout: Literal["adjacent", "halves"] = "adjacent",
    ) -> None:
        self.theta = frequencies(d_k, base, name="d_k").float()
        if layout not in ("adjacent", "halves"):
            raise ValueError(f'layout は "adjacent" か "halves" にしてください: {shown(layout)}')
        self.layout = layout

    def rotate(
        self, q: Tensor, k: Tensor, q_positions: Tensor, k_positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """q (..., n, d_k) を位置 (n,) に、k (..., m, d_k) を位置 (m,) に応じて回す。

        Raises:
            ValueError: q か k の最後の次元が `d_k` でないとき。
        """
        return self.turn(q, q_positions), self.turn(k, k_positions)

    def turn(self, x: Tensor, positions: Tensor) -> Tensor:
        """x (..., n, d_k) を、位置 (n,) に応じて回す。"""
        if x.shape[-1] != 2 * len(self.theta):
            raise ValueError(
                f"最後の次元は d_k = {2 * len(self.theta)} にしてください: {tuple(x.shape)}"
            )
        # 角度は必ず単精度で求める。bf16 では 257 が表せず、遠い位置が隣と重なってしまう。
        angles = positions[:, None].float() * self.theta.to(x.device)  # (n, d_k/2)
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        pairs = -1 if self.layout == "adjacent" else -2
        shape = (-1, 2) if self.layout == "adjacent" else (2, -1)
        x1, x2 = x.unflatten(-1, shape).unbind(pairs)
        return torch.stack([x1 * cos - x2 * sin, x1 * sin + x2 * cos], dim=pairs).flatten(-2)
