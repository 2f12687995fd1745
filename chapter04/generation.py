"""文の続きの生成: 温度・top-k・top-p・繰り返しの抑制と、KV キャッシュ。

一歩の流れ(B: 文の数、V: 語彙の大きさ):

    logits (B, V) → 繰り返しの抑制 → ÷ 温度 → top-k → top-p → softmax → 一つ選ぶ

キャッシュがあれば、二つ目からは新しいトークン一つ分だけを計算する。小さな行列ではモジュールを呼ぶ手間の
ほうが長くかかるので、`single_token` が、同じ計算を関数だけで書き下す。
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chapter04.gpt import GPT, GPTCache
from shared.attention import KVCache, MultiHeadAttention
from shared.checks import require_int, require_number, shown
from shared.dropout import ByteDropout
from shared.inference import evaluating
from shared.transformer import ACTIVATIONS, EncoderLayer, FeedForward, Residual

Step = Callable[[Tensor], Tensor]
Sublayer = Callable[[Tensor, Tensor], Tensor]  # (h, x) から x + 副層(h)
PLAIN = {
    GPT, nn.ModuleList, EncoderLayer, Residual, MultiHeadAttention, FeedForward,
    nn.Linear, nn.Embedding, nn.LayerNorm, nn.Identity, nn.Dropout, ByteDropout,
}  # fmt: skip


def generate(  # noqa: PLR0917
    model: GPT,
    ids: Tensor,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
    use_cache: bool = True,
    *,
    repetition_penalty: float = 1.0,
    stop: int | None = None,
) -> Tensor:
    """`ids` (B, T) の続きを `max_new_tokens` 個ずつ選んだ id (B, T + max_new_tokens)。

    `top_k=1` なら、いちばん確率の高いものを選ぶ(貪欲法。乱数は使わない)。ほかは、`filter_logits` の
    分布から無作為に選ぶ。モデルは評価の状態で使い、元の状態に戻す。

    Args:
        model: GPT。
        ids: 書き出しの id (B, T)。
        max_new_tokens: 選ぶトークンの数。T との和が `model.config.context` を超えてはならない。
        temperature, top_k, top_p: `filter_logits` を見よ。
        generator: 乱数の出所。同じ種からは同じ文ができる。
        use_cache: KV キャッシュを使うか。使わなくても結果は同じ。
        repetition_penalty: `penalize_repetition` の θ。1 なら何もしない。
        stop: この id を選んだ文はそこで終わりとし、残りも同じ id で埋める。

    Raises:
        TypeError: `ids` が整数のテンソルでない、ほかの引数が数でないとき。
        ValueError: `ids` の形か値が範囲の外、生成が文脈の長さを超える、ほかの引数が範囲の外のとき。
            モデルの logits が有限でないとき。
    """
    _require_filter(temperature, top_k, top_p)
    _require_positive(repetition_penalty, "repetition_penalty")
    if stop is not None and require_int(stop, "stop", minimum=0) >= model.config.vocab_size:
        raise ValueError(f"stop は {model.config.vocab_size} 未満の id にしてください: {stop}")
    total = _require_room(model, ids, max_new_tokens)
    with evaluating(model):
        tokens = ids.new_full((len(ids), total), stop or 0, dtype=torch.int64)
        tokens[:, : ids.shape[1]] = ids
        finished = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
        cache = model.new_cache() if use_cache else None
        logits = model.output(model.hidden(tokens[:, : ids.shape[1]], cache)[:, -1])  # (B, V)
        # 重みが壊れていれば、はじめから壊れている
        _require_finite(logits, "model の logits が有限ではありません。重みを確かめてください")
        advance = _advance(model, cache, total)
        for end in range(ids.shape[1], total):
            seen = tokens[:, :end]
            logits = penalize_repetition(logits.float(), seen, repetition_penalty)
            if top_k == 1:
                chosen = logits.argmax(dim=-1)
            else:
                kept = filter_logits(logits, temperature, top_k, top_p)
                chosen = kept.softmax(dim=-1).multinomial(1, generator=generator)[:, 0]
            if stop is not None:
                chosen = chosen.masked_fill(finished, stop)
                finished = chosen == stop  # 終わった文にも stop を置くので、終わったまま
                if finished.all():
                    break
            tokens[:, end] = chosen
            if end + 1 < total:
                logits = advance(tokens, end + 1)
    return tokens.clone()  # 勾配の計算にも使える、ふつうのテンソルにする


def filter_logits(
    logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    """logits (..., V) を温度で割り、選ばないものを -inf にする。softmax をとれば、選ぶ確率になる。

    Args:
        logits: 次のトークンの logits (..., V)。
        temperature: 温度。1 より小さければ高い確率がさらに高くなる。
        top_k: 上位 k 個だけを残す(k 番目と同じ値はどれも残す。Fan+ 2018)。
        top_p: 確率の高い順に足して、和がはじめて p 以上になるところまでを残す(nucleus sampling、
            Holtzman+ 2020。少なくとも一つは残る)。

    Raises:
        TypeError, ValueError: 引数が範囲の外のとき(温度で割ると logits があふれるときも)。
    """
    _require_filter(temperature, top_k, top_p)
    if temperature != 1:
        logits = logits / temperature
        _require_finite(logits, f"temperature が小さすぎて、logits があふれます: {temperature}")
    if top_k is not None and top_k < logits.shape[-1]:
        threshold = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < threshold, -math.inf)
    if top_p is not None and top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True, stable=True)
        p = ordered.softmax(dim=-1)
        enough = p.cumsum(dim=-1) - p >= top_p  # 自分より上だけで、もう足りている
        logits = logits.masked_fill(enough.scatter(-1, order, enough), -math.inf)
    return logits


def penalize_repetition(logits: Tensor, ids: Tensor, penalty: float) -> Tensor:
    """これまでに出た `ids` (B, T) の logits (B, V) を、正なら θ で割り、負なら θ 倍する。

    Keskar+ 2019 の式は、どちらも割る。負の値を割ると確率が上がってしまうので、transformers と同じく
    負なら掛ける。

    Raises:
        TypeError, ValueError: `penalty` が正の数でないとき(0 に近すぎるか大きすぎて、logits が
            あふれるときも)。
    """
    _require_positive(penalty, "repetition_penalty")
    if penalty == 1:
        return logits
    seen = logits.gather(-1, ids)
    logits = logits.scatter(-1, ids, torch.where(seen < 0, seen * penalty, seen / penalty))
    _require_finite(logits, f"repetition_penalty が極端で、logits があふれます: {penalty}")
    return logits


def single_token(model: GPT, cache: GPTCache, capacity: int) -> Step:
    """次の位置のトークン (B,) から logits (B, V) を求める関数。続けて呼ぶと、一つずつ先へ進む。

    GPT にキャッシュを渡すのと同じ計算である。クエリー・キー・バリューの写像を一つの行列に
    まとめ、キーとバリューの置き場をはじめに全部とっておく。そのため、作った後に重みや `cache` を
    変えても反映されない。

    Args:
        model: `is_plain` が成り立つ GPT。
        cache: 書き出しを計算し終えたキャッシュ。
        capacity: 位置の数の上限。
    """
    sublayers: list[tuple[Sublayer, Step]] = []
    for module, stored in zip(model.layers, cache.layers, strict=True):
        layer = cast(EncoderLayer, module)
        attend = _single_attention(layer.self_attention, stored, capacity)
        sublayers.append((attend, _single_norm(layer.residual_1.norm)))
        sublayers.append((_single_ffn(layer.ffn), _single_norm(layer.residual_2.norm)))
    norm_first, position = model.config.norm_first, cache.length
    last = _single_norm(model.norm) if isinstance(model.norm, nn.LayerNorm) else model.norm
    embedding, positions = model.token_embedding.weight, model.position_embedding.weight

    def step(token: Tensor) -> Tensor:
        nonlocal position
        x = F.embedding(token, embedding) + positions[position]  # (B, d)
        position += 1
        for sublayer, norm in sublayers:
            x = sublayer(norm(x), x) if norm_first else norm(sublayer(x, x))
        return F.linear(last(x), model.output.weight, model.output.bias)

    return step


def _single_attention(attention: MultiHeadAttention, cache: KVCache, capacity: int) -> Sublayer:
    """x + 注意(h)。キーは、q K^T を並べ替えずに計算できるよう (B, H, d_k, 上限) に置く。"""
    stored_keys, stored_values = cache.stored()  # (B, H, これまでの長さ, d_k)
    rows, heads, end, d_k = stored_keys.shape
    keys = stored_keys.new_empty(rows, heads, d_k, capacity)
    values = stored_keys.new_empty(rows, heads, capacity, d_k)
    keys[..., :end], values[:, :, :end] = stored_keys.transpose(2, 3), stored_values
    keys_by_head, values_by_head = keys.flatten(0, 1), values.flatten(0, 1)
    maps = (attention.query, attention.key, attention.value)
    weight, bias = (torch.cat([getattr(m, kind) for m in maps]) for kind in ("weight", "bias"))
    for part in (weight, bias):
        part[: attention.d_model] /= d_k**0.5  # スコアを sqrt(d_k) で割る代わりに、q を割っておく
    out = _single_residual(attention.out)

    def attend(h: Tensor, x: Tensor) -> Tensor:
        nonlocal end
        qkv = F.linear(h, weight, bias).view(rows, 3, heads, d_k)
        q, keys[..., end], values[:, :, end] = qkv.unbind(1)
        end += 1
        scores = torch.bmm(q.reshape(-1, 1, d_k), keys_by_head[:, :, :end])  # (B H, 1, 長さ)
        return out(torch.bmm(scores.softmax(-1), values_by_head[:, :end]).view(rows, -1), x)

    return attend


def _single_ffn(ffn: FeedForward) -> Sublayer:
    """x + FFN(h)。"""
    weight, bias, outer = ffn.inner.weight, ffn.inner.bias, _single_residual(ffn.outer)
    activation = ACTIVATIONS[ffn.activation]
    return lambda h, x: outer(activation(F.linear(h, weight, bias)), x)


def _single_residual(linear: nn.Linear) -> Sublayer:
    """x + (W h + b)。W h を、出力の置き場にそのまま足しこむ。"""
    weight, bias = linear.weight.t(), linear.bias
    return lambda h, x: (x + bias).addmm_(h, weight)


def _single_norm(norm: nn.LayerNorm) -> Step:
    settings = (norm.normalized_shape, norm.weight, norm.bias, norm.eps)
    return lambda x: torch.native_layer_norm(x, *settings)[0]


def is_plain(model: nn.Module) -> bool:
    """GPT そのままで、取り替えられた部品(LoRA など)もフックもないか。"""
    return all(
        type(m) in PLAIN and not m._forward_hooks and not m._forward_pre_hooks
        for m in model.modules()
    )


def _advance(model: GPT, cache: GPTCache | None, capacity: int) -> Callable[[Tensor, int], Tensor]:
    """id (B, 上限) と、決まった数 `end` から、その次の logits (B, V) を求める関数。"""
    if cache is None:
        return lambda tokens, end: model.output(model.hidden(tokens[:, :end])[:, -1])
    if not is_plain(model):
        return lambda tokens, end: model(tokens[:, end - 1 : end], cache)[:, -1]
    step = single_token(model, cache, capacity)
    return lambda tokens, end: step(tokens[:, end - 1])


def _require_positive(value: float, name: str) -> None:
    if require_number(value, name) <= 0:
        raise ValueError(f"{name} は 0 より大きい数にしてください: {shown(value)}")


def _require_finite(logits: Tensor, message: str) -> None:
    """どの行にも、選べるものがあるか確かめる(-inf は、選ばないものの印なのでよい)。"""
    if not logits.amax(dim=-1).isfinite().all():
        raise ValueError(message)


def _require_filter(temperature: float, top_k: int | None, top_p: float | None) -> None:
    _require_positive(temperature, "temperature")
    if top_k is not None:
        require_int(top_k, "top_k", minimum=1)
    if top_p is not None and not 0 < require_number(top_p, "top_p") <= 1:
        raise ValueError(f"top_p は 0 より大きく 1 以下にしてください: {shown(top_p)}")


def _require_room(model: GPT, ids: Tensor, max_new_tokens: int) -> int:
    """生成し終えたときの長さ。文脈に収まらなければ断る。"""
    context = model.config.context
    model.require_ids(ids)
    total = ids.shape[1] + require_int(max_new_tokens, "max_new_tokens", minimum=1)
    if total > context:
        raise ValueError(
            f"生成が文脈の長さ context = {context} を超えます: 書き出しが {ids.shape[1]} 個なので、"
            f"max_new_tokens は {context - ids.shape[1]} 以下にしてください: {max_new_tokens}"
        )
    return total
