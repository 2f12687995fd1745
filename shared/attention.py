"""注意機構: 論文の式のとおりのスケール化内積注意と、全章で使うマルチヘッド注意。

データの流れ(B: 文の数、n: クエリーの数、m: キーの数、H: ヘッドの数):

    x (B, n, d) ──query──→ q (B, H, n, d_k) ───┐
    memory (B, m, d) ─key, value→ k, v (B, H_kv, m, d_k) ─ キャッシュ ─┤
                          スコア (B, H, n, m) → マスク → softmax → 重み付き和 ──out──→ (B, n, d)

マスクはどこでも真偽値で、True は「見てよい」を表す。
"""

from __future__ import annotations

import math
from typing import Protocol, cast, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.checks import require_int, require_rate, shown

PLAIN_LIMIT = {torch.float32: 0, torch.bfloat16: 256}
"""CPU で素直な行列積を使う、キーの数 m の上限。長ければ SDPA を使う(docs/benchmarks.md の測定)。"""


def scaled_dot_product_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """スケール化内積注意の出力 (..., n, d_v) と重み (..., n, m)。

    Attention(Q, K, V) = softmax(Q K^T / sqrt(d_k)) V (Vaswani+ 2017, 式 (1))

    Args:
        q: クエリー (..., n, d_k)。
        k: キー (..., m, d_k)。
        v: バリュー (..., m, d_v)。
        mask: (..., n, m) に広げられる真偽値。True のところだけを見る。一つも見られない行の出力と
            重みは 0 になる(NaN にはならない)。

    Raises:
        TypeError: テンソルでない、`mask` が真偽値でないとき。
        ValueError: 形が合わないとき。
    """
    _require_qkv(q, k, v)
    _require_mask(mask, (*q.shape[:-1], k.shape[-2]))
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (..., n, m)
    weights = _masked_softmax(scores, mask)
    return weights @ v, weights


def _masked_softmax(scores: Tensor, mask: Tensor | None) -> Tensor:
    """`mask` が True のところだけでの softmax。すべて False の行は 0 にする。"""
    if mask is None:
        return scores.softmax(dim=-1)
    reachable = mask.any(dim=-1, keepdim=True)
    # すべて -inf の行は 0/0 になるので、いったん塞がずに計算し、後で 0 にする。
    scores = scores.masked_fill(~mask & reachable, -math.inf)
    return scores.softmax(dim=-1).masked_fill(~reachable, 0.0)


def causal_mask(n: int, m: int | None = None, device: torch.device | None = None) -> Tensor:
    """因果マスク (n, m)。末尾を揃え、クエリー i はキー j <= i + m - n だけを見る(`m` を省けば n)。

    Raises:
        TypeError: `n` か `m` が整数でないとき。
        ValueError: 負のとき、`m` が `n` より小さいとき。
    """
    n = require_int(n, "n", minimum=0)
    m = n if m is None else require_int(m, "m", minimum=n)
    return torch.ones(n, m, dtype=torch.bool, device=device).tril(m - n)


def padding_mask(ids: Tensor, pad: int = 0) -> Tensor:
    """id の列 (B, m) のうち、詰めもの `pad` でないところを True にしたマスク (B, 1, 1, m)。

    Raises:
        TypeError: `ids` が整数のテンソルでないとき。
        ValueError: `ids` が 2 次元でないとき。
    """
    if not isinstance(ids, Tensor) or ids.is_floating_point() or ids.dtype == torch.bool:
        raise TypeError(f"ids には整数のテンソルを渡してください: {shown(ids)}")
    if ids.dim() != 2:
        raise ValueError(f"ids の形は (文の数, 長さ) にしてください: {tuple(ids.shape)}")
    return (ids != pad)[:, None, None, :]


@runtime_checkable
class Rotation(Protocol):
    """位置の差し込み口の一つ。クエリーとキーを、スコアを求める前に位置に応じて回す(RoPE など)。"""

    def rotate(
        self, q: Tensor, k: Tensor, q_positions: Tensor, k_positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """q (B, H, n, d_k) と k (B, H_kv, m, d_k) を、位置 (n,) と (m,) に応じて変えて返す。"""
        ...


@runtime_checkable
class ScoreBias(Protocol):
    """位置の差し込み口の一つ。スコアに足す値を、二つの位置から決める(ALiBi、相対位置など)。"""

    def bias(self, q_positions: Tensor, k_positions: Tensor) -> Tensor:
        """位置 (n,) と (m,) から、スコアに足す値 (H, n, m) を返す。"""
        ...


class KVCache:
    """一つの注意層が覚えておくキーとバリュー。生成のとき、過去の分を計算し直さないために使う。

    置き場は倍々に広げるので、一語ずつ足しても全体を写し直す回数は log2(長さ) で済む。
    勾配の計算には使えない(`torch.no_grad()` の中で使う)。
    """

    def __init__(self) -> None:
        self.length = 0
        self._keys: Tensor | None = None  # (B, H_kv, 置き場の大きさ, d_k)
        self._values: Tensor | None = None

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """新しい k, v (B, H_kv, n, d_k) を足し、これまでのすべて (B, H_kv, length, d_k) を返す。

        Raises:
            ValueError: 文の数が、これまでと違うとき。
        """
        if self._keys is None or self._values is None:
            self._keys, self._values, self.length = k, v, k.shape[2]
            return k, v
        if len(k) != len(self._keys):
            raise ValueError(
                f"キャッシュの文の数 {len(self._keys)} と、渡された {len(k)} が違います"
            )
        start, self.length = self.length, self.length + k.shape[2]
        keys, values = self._keys, self._values
        if self.length > keys.shape[2]:
            room = (0, 0, 0, max(self.length, 16))  # 長さの次元のうしろを空ける
            keys, values = F.pad(keys, room), F.pad(values, room)
        keys[:, :, start : self.length], values[:, :, start : self.length] = k, v
        self._keys, self._values = keys, values
        return self.stored()

    def stored(self) -> tuple[Tensor, Tensor]:
        """覚えているキーとバリュー (B, H_kv, length, d_k)。

        Raises:
            ValueError: まだ何も覚えていないとき。
        """
        if self._keys is None or self._values is None:
            raise ValueError("キャッシュはまだ空です")
        return self._keys[:, :, : self.length], self._values[:, :, : self.length]

    def reorder(self, index: Tensor) -> None:
        """文の並びを `index` (B',) の順に取り直す(ビームの並べ替え・取捨に使う)。"""
        if self._keys is not None and self._values is not None:
            self._keys, self._values = self._keys[index], self._values[index]


class MultiHeadAttention(nn.Module):
    """マルチヘッド注意 (Vaswani+ 2017, 3.2.2 節)。自己注意にも交差注意にも使う。

    MultiHead(Q, K, V) = Concat(head_1, ..., head_H) W^O
    head_i = Attention(Q W_i^Q, K W_i^K, V W_i^V)

    `n_kv_heads` を減らすと、キーとバリューをいくつかのヘッドで共有する(1 なら MQA, Shazeer 2019;
    その間なら GQA, Ainslie+ 2023)。`position` には位置の差し込み口(`Rotation` か `ScoreBias`、
    または両方を備えた物)を渡す。

    Args:
        d_model: 入出力の次元 d。
        n_heads: ヘッドの数 H。
        n_kv_heads: キーとバリューのヘッドの数(省けば H)。
        dropout: 重みに掛けるドロップアウトの率。論文にはないので、既定は 0。
        bias: 四つの線形写像に定数項を付けるか。
        position: 位置の差し込み口。

    Raises:
        TypeError, ValueError: 引数が範囲の外、`d_model` が `n_heads` で割り切れない、`n_heads` が
            `n_kv_heads` で割り切れないとき。
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        n_kv_heads: int | None = None,
        *,
        dropout: float = 0.0,
        bias: bool = True,
        position: Rotation | ScoreBias | None = None,
    ) -> None:
        super().__init__()
        self.d_model = require_int(d_model, "d_model", minimum=1)
        self.n_heads = require_int(n_heads, "n_heads", minimum=1)
        self.n_kv_heads = require_int(
            n_heads if n_kv_heads is None else n_kv_heads, "n_kv_heads", minimum=1
        )
        if d_model % n_heads:
            raise ValueError(
                f"d_model は n_heads で割り切れる数にしてください: {d_model} と {n_heads}"
            )
        if n_heads % self.n_kv_heads:
            raise ValueError(
                f"n_heads は n_kv_heads で割り切れる数にしてください: {n_heads} と {n_kv_heads}"
            )
        if position is not None and not isinstance(position, Rotation | ScoreBias):
            raise TypeError(
                f"position には rotate か bias を備えた物を渡してください: {shown(position)}"
            )
        self.d_k = d_model // n_heads
        self.dropout = require_rate(dropout, "dropout")
        self.position = position
        self._rotates = isinstance(position, Rotation)  # 呼び出しのたびに調べると、生成が 1 割遅い
        self._biases = isinstance(position, ScoreBias)
        self.query = nn.Linear(d_model, d_model, bias)
        self.key = nn.Linear(d_model, self.n_kv_heads * self.d_k, bias)
        self.value = nn.Linear(d_model, self.n_kv_heads * self.d_k, bias)
        self.out = nn.Linear(d_model, d_model, bias)
        for linear in (self.query, self.key, self.value, self.out):
            nn.init.xavier_uniform_(linear.weight)
            if bias:
                nn.init.zeros_(linear.bias)

    def forward(
        self,
        x: Tensor,
        memory: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        causal: bool = False,
        cache: KVCache | None = None,
        return_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """出力 (B, n, d) と、`return_weights` なら重み (B, H, n, m)(でなければ None)。

        Args:
            x: クエリーの側 (B, n, d)。
            memory: キーとバリューの側 (B, m, d)。省けば `x`(自己注意)。
            mask: (B, H, n, m) に広げられる真偽値。True のところだけを見る。
            causal: 因果マスクも掛けるか。
            cache: 渡すと、自己注意では過去のキーとバリューの続きとして計算し、交差注意では初めの
                一度だけ計算したものを使い回す。
            return_weights: 重みも返すか。

        Raises:
            TypeError: テンソルでない、`mask` が真偽値でないとき。
            ValueError: 形が合わないとき。
        """
        _require_sequence(x, "x", self.d_model)
        if memory is not None:
            _require_sequence(memory, "memory", self.d_model)
            if len(memory) != len(x):
                raise ValueError(f"x と memory の文の数を揃えてください: {len(x)} と {len(memory)}")
        q = self._split(self.query(x), self.n_heads)  # (B, H, n, d_k)
        q, k, v, bias = self._keys_and_values(q, x, memory, cache)
        n, m = q.shape[2], k.shape[2]
        _require_mask(mask, (*q.shape[:3], m))
        if self.n_kv_heads < self.n_heads:
            group = self.n_heads // self.n_kv_heads
            k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        if causal and n == 1:
            causal = False  # 最後の一つは、過去のすべてを見てよい
        dropout = self.dropout if self.training else 0.0
        plain = return_weights or backend(q, m) == "plain"
        attend = _attend_plain if plain else _attend_sdpa
        output, weights = attend(q, k, v, mask, causal=causal, bias=bias, dropout=dropout)
        output = self.out(output.transpose(1, 2).reshape(x.shape))
        return output, weights if return_weights else None

    def _keys_and_values(
        self, q: Tensor, x: Tensor, memory: Tensor | None, cache: KVCache | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """位置を反映した q と、キャッシュの分も合わせた k, v (B, H_kv, m, d_k)、スコアに足す値。"""
        start = cache.length if cache is not None and memory is None else 0
        if cache is not None and memory is not None and cache.length:
            k, v = cache.stored()
        else:
            source = x if memory is None else memory
            k = self._split(self.key(source), self.n_kv_heads)
            v = self._split(self.value(source), self.n_kv_heads)
            if self._rotates:
                q_positions = torch.arange(start, start + q.shape[2], device=q.device)
                k_positions = torch.arange(start, start + k.shape[2], device=q.device)
                q, k = cast(Rotation, self.position).rotate(q, k, q_positions, k_positions)
            if cache is not None:
                k, v = cache.append(k, v)
        bias = None
        if self._biases:
            q_positions = torch.arange(start, start + q.shape[2], device=q.device)
            bias = cast(ScoreBias, self.position).bias(
                q_positions, torch.arange(k.shape[2], device=q.device)
            )
        return q, k, v, bias

    def _split(self, x: Tensor, n_heads: int) -> Tensor:
        """(B, n, n_heads * d_k) を、ヘッドごとの (B, n_heads, n, d_k) に分ける。"""
        return x.view(*x.shape[:2], n_heads, self.d_k).transpose(1, 2)


def backend(q: Tensor, m: int) -> str:
    """この機器・型・キーの数 `m` で速いほうの計算の仕方: "plain"(行列積と softmax)か "sdpa"。"""
    if q.device.type == "cpu" and m <= PLAIN_LIMIT.get(q.dtype, 0):
        return "plain"
    return "sdpa"


def _attend_plain(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    *,
    causal: bool,
    bias: Tensor | None,
    dropout: float,
) -> tuple[Tensor, Tensor | None]:
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (B, H, n, m)
    if bias is not None:
        scores = scores + bias
    weights = _masked_softmax(scores, _with_causal(mask, q, k) if causal else mask)
    return F.dropout(weights, dropout).to(v.dtype) @ v, weights


def _attend_sdpa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    *,
    causal: bool,
    bias: Tensor | None,
    dropout: float,
) -> tuple[Tensor, Tensor | None]:
    if mask is None and bias is None and (not causal or q.shape[2] == k.shape[2]):
        return F.scaled_dot_product_attention(q, k, v, None, dropout, causal), None
    mask = _with_causal(mask, q, k) if causal else mask
    if mask is None:
        assert bias is not None
        return F.scaled_dot_product_attention(q, k, v, bias.to(q.dtype), dropout), None
    reachable = mask.any(dim=-1, keepdim=True)
    seen = mask | ~reachable  # 何も見られない行は、いったん全部を見せ、後で 0 にする
    if bias is not None:
        seen = bias.to(q.dtype).masked_fill(~seen, -math.inf)
    output = F.scaled_dot_product_attention(q, k, v, seen, dropout)
    return output.masked_fill(~reachable, 0.0), None


def _with_causal(mask: Tensor | None, q: Tensor, k: Tensor) -> Tensor:
    causal = causal_mask(q.shape[2], k.shape[2], q.device)
    return causal if mask is None else mask & causal


def _require_qkv(q: Tensor, k: Tensor, v: Tensor) -> None:
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} にはテンソルを渡してください: {type(tensor).__name__}")
        if tensor.dim() < 2:
            raise ValueError(
                f"{name} の形は (..., 長さ, 次元) にしてください: {tuple(tensor.shape)}"
            )
    if q.shape[-1] != k.shape[-1]:
        raise ValueError(
            f"q と k の最後の次元を揃えてください: {tuple(q.shape)} と {tuple(k.shape)}"
        )
    if k.shape[-2] != v.shape[-2]:
        raise ValueError(f"k と v の長さを揃えてください: {tuple(k.shape)} と {tuple(v.shape)}")


def _require_sequence(x: Tensor, name: str, d_model: int) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} にはテンソルを渡してください: {type(x).__name__}")
    if x.dim() != 3 or x.shape[-1] != d_model:
        raise ValueError(
            f"{name} の形は (文の数, 長さ, d_model = {d_model}) にしてください: {tuple(x.shape)}"
        )


def _require_mask(mask: Tensor | None, shape: tuple[int, ...]) -> None:
    if mask is None:
        return
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"mask には真偽値のテンソル(True は「見てよい」)を渡してください: {kind}")
    try:
        fits = torch.broadcast_shapes(mask.shape, shape) == torch.Size(shape)
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(
            f"mask の形 {tuple(mask.shape)} を、スコアの形 {tuple(shape)} に広げられません"
        )
