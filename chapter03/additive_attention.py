"""Bahdanau らの注意機構と、それを使う小さな翻訳器 RNNsearch (Bahdanau+ 2015, arXiv:1409.0473v7)。

データの流れ(B: 文の数、S: 入力の長さ、T: 訳文の長さ、n: 隠れ状態の次元):

    src (B, S) ─埋め込み→ 双方向 GRU → 注釈 h_1 … h_S (B, S, 2n)
                                          │ 注意: e_ij = v^T tanh(W s_{i-1} + U h_j)
    tgt_in (B, T) ─埋め込み→ GRU セル ←── 文脈 c_i = Σ_j α_ij h_j (B, 2n)
                              └→ 隠れ状態 s_i (B, n) → 次の語のロジット (B, T, V)

`attention=False` にすると、c_i をいつも同じ一本のベクトルにする(RNN Encoder-Decoder)。
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.checks import require_int, shown


class AdditiveAttention(nn.Module):
    """加法的な注意: 小さな全結合ネットワークで、隠れ状態と注釈の相性を測る。

    e_ij = v^T tanh(W s_{i-1} + U h_j)、α_ij = softmax_j(e_ij)、c_i = Σ_j α_ij h_j
    (Bahdanau+ 2015, 式 (5)・(6)、A.1.2 節)

    Args:
        state_size: デコーダーの隠れ状態 s の次元。
        annotation_size: エンコーダーの注釈 h の次元。
        hidden_size: tanh の層の次元 n'。

    Raises:
        TypeError, ValueError: 引数が正の整数でないとき。
    """

    def __init__(self, state_size: int, annotation_size: int, hidden_size: int) -> None:
        super().__init__()
        hidden_size = require_int(hidden_size, "hidden_size", minimum=1)
        self.state_size = require_int(state_size, "state_size", minimum=1)
        self.annotation_size = require_int(annotation_size, "annotation_size", minimum=1)
        self.W = nn.Linear(state_size, hidden_size, bias=False)
        self.U = nn.Linear(annotation_size, hidden_size)
        self.v = nn.Linear(hidden_size, 1, bias=False)

    def forward(
        self,
        state: Tensor,
        annotations: Tensor,
        mask: Tensor | None = None,
        projected: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """文脈 c (B, annotation_size) と重み α (B, S)。

        Args:
            state: 一つ前の隠れ状態 s_{i-1} (B, state_size)。
            annotations: 注釈 h (B, S, annotation_size)。
            mask: 真偽値 (B, S)。True のところだけを見る。
            projected: あらかじめ求めた U h (B, S, hidden_size)。i によらないので、訳文の 1 語ごとに
                計算し直さずに済む(論文 A.1.2 節)。

        Raises:
            ValueError: 形が合わないとき、どこも見られない文があるとき。
        """
        _require_shapes(state, annotations, mask, self.state_size, self.annotation_size)
        projected = self.U(annotations) if projected is None else projected
        energies = self.v(torch.tanh(self.W(state).unsqueeze(1) + projected)).squeeze(2)  # (B, S)
        if mask is not None:
            energies = energies.masked_fill(~mask, -math.inf)
        weights = energies.softmax(dim=1)
        return torch.bmm(weights.unsqueeze(1), annotations).squeeze(1), weights


class RNNSearch(nn.Module):
    """双方向 GRU で読み、注意を向けながら GRU で書く翻訳器(Bahdanau+ 2015, 3 節・A.2 節)。

    Args:
        src_vocab_size, tgt_vocab_size: 語彙の大きさ(id 0 は詰めもの)。
        d_embedding: 埋め込みの次元(論文の m)。
        d_hidden: 隠れ状態の次元(論文の n。注釈は 2n)。
        attention: False なら文脈を固定し、注釈の両端 [→h_S ; ←h_1] をいつも渡す。

    Raises:
        TypeError, ValueError: 大きさが正の整数でないとき。
    """

    def __init__(
        self,
        src_vocab_size: int,
        tgt_vocab_size: int,
        d_embedding: int = 32,
        d_hidden: int = 64,
        attention: bool = True,
    ) -> None:
        super().__init__()
        d_embedding = require_int(d_embedding, "d_embedding", minimum=1)
        self.d_hidden = n = require_int(d_hidden, "d_hidden", minimum=1)
        src_vocab_size = require_int(src_vocab_size, "src_vocab_size", minimum=1)
        tgt_vocab_size = require_int(tgt_vocab_size, "tgt_vocab_size", minimum=1)
        self.src_embedding = nn.Embedding(src_vocab_size, d_embedding)
        self.forwards = nn.GRU(d_embedding, n, batch_first=True)
        self.backwards = nn.GRU(d_embedding, n, batch_first=True)
        self.start = nn.Linear(n, n)  # s_0 = tanh(W_s ←h_1)
        self.attention = AdditiveAttention(n, 2 * n, n) if attention else None
        self.tgt_embedding = nn.Embedding(tgt_vocab_size, d_embedding)
        self.cell = nn.GRUCell(d_embedding + 2 * n, n)  # s_i = f(s_{i-1}, y_{i-1}, c_i)
        self.out = nn.Linear(n + d_embedding + 2 * n, tgt_vocab_size)  # g(y_{i-1}, s_i, c_i)

    def encode(self, src: Tensor) -> tuple[Tensor, Tensor]:
        """注釈 h (B, S, 2n) と、詰めものでない位置のマスク (B, S)。

        Raises:
            ValueError: `src` が (B, S) の id でないとき、語が一つもない文があるとき。
        """
        if src.dim() != 2 or src.is_floating_point() or not src.numel():
            raise ValueError(f"src は空でない (文の数, 長さ) の id にしてください: {shown(src)}")
        mask = src != 0
        if not mask.any(dim=1).all():
            raise ValueError("src に、詰めもの (id 0) だけの文があります")
        embedded = self.src_embedding(src)
        turned = _turn(mask)[:, :, None]  # 文ごとに、語の並びだけを逆にする番号
        ahead, _ = self.forwards(embedded)
        behind, _ = self.backwards(embedded.gather(1, turned.expand_as(embedded)))
        annotations = torch.cat([ahead, behind.gather(1, turned.expand_as(behind))], dim=2)
        return annotations, mask

    def forward(self, src: Tensor, tgt_in: Tensor) -> tuple[Tensor, Tensor]:
        """次の語のロジット (B, T, V) と注意の重み (B, T, S)。注意のないモデルでは重みは 0。

        Args:
            src: 入力の id (B, S)。詰めもの (id 0) は右に置く。
            tgt_in: 一つ右へずらした訳文の id (B, T)(先頭は文頭記号)。
        """
        annotations, mask = self.encode(src)
        state, projected = self._begin(annotations)
        embedded = self.tgt_embedding(tgt_in)  # (B, T, m)
        states, contexts, weights = [], [], []
        for previous in embedded.unbind(dim=1):
            state, context, weight = self._step(state, previous, annotations, mask, projected)
            states.append(state)
            contexts.append(context)
            weights.append(weight)
        features = [torch.stack(states, 1), embedded, torch.stack(contexts, 1)]
        return self.out(torch.cat(features, dim=2)), torch.stack(weights, 1)

    @torch.no_grad()
    def translate(
        self, src: Tensor, max_len: int, bos: int = 1, eos: int = 2
    ) -> tuple[list[list[int]], Tensor]:
        """各文について、ロジットが最大の語を選びながら書いた訳文の id と、注意の重み (B, T, S)。

        返す id に文頭・文末の記号は入らない。重みの行 i は、訳文の i 番の語を選んだときのもの。

        Raises:
            ValueError: `max_len` が 1 より小さいとき。
        """
        annotations, mask = self.encode(src)
        state, projected = self._begin(annotations)
        word = torch.full((len(src),), bos, device=src.device)
        words, weights = [], []
        ended = torch.zeros(len(src), dtype=torch.bool, device=src.device)
        for _ in range(require_int(max_len, "max_len", minimum=1)):
            previous = self.tgt_embedding(word)
            state, context, weight = self._step(state, previous, annotations, mask, projected)
            word = self.out(torch.cat([state, previous, context], dim=1)).argmax(dim=1)
            words.append(word)
            weights.append(weight)
            ended |= word == eos
            if ended.all():
                break
        rows = torch.stack(words, 1).tolist()
        ids = [row[: row.index(eos)] if eos in row else row for row in rows]
        return ids, torch.stack(weights, 1)

    def _begin(self, annotations: Tensor) -> tuple[Tensor, Tensor | None]:
        """はじめの隠れ状態 s_0 = tanh(W_s ←h_1) (B, n) と、使い回す U h。"""
        state = torch.tanh(self.start(annotations[:, 0, self.d_hidden :]))
        return state, None if self.attention is None else self.attention.U(annotations)

    def _step(
        self,
        state: Tensor,
        previous: Tensor,
        annotations: Tensor,
        mask: Tensor,
        projected: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """一語ぶん進めた隠れ状態 s_i (B, n)、文脈 c_i (B, 2n)、重み (B, S)。"""
        if self.attention is None:
            context = _both_ends(annotations, mask, self.d_hidden)
            weights = torch.zeros(mask.shape, device=mask.device)
        else:
            context, weights = self.attention(state, annotations, mask, projected)
        return self.cell(torch.cat([previous, context], dim=1), state), context, weights


def translation_loss(model: RNNSearch, batch: tuple[Tensor, Tensor]) -> Tensor:
    """次の語の交差エントロピー(1 語あたりの nat)。詰めもの (id 0) は数えない。

    Args:
        model: 翻訳器。
        batch: 入力の id (B, S) と、文頭・文末の記号で挟んだ訳文の id (B, T)。
    """
    src, tgt = batch
    scores, _ = model(src, tgt[:, :-1])
    return F.cross_entropy(scores.flatten(0, 1), tgt[:, 1:].flatten(), ignore_index=0)


def _turn(mask: Tensor) -> Tensor:
    """語の並びを文ごとに逆にする番号 (B, S)。詰めものは動かさない(もう一度使うと元に戻る)。"""
    positions = torch.arange(mask.shape[1], device=mask.device)
    return torch.where(mask, mask.sum(dim=1, keepdim=True) - 1 - positions, positions)


def _both_ends(annotations: Tensor, mask: Tensor, n: int) -> Tensor:
    """文全体を表す一本のベクトル [→h_S ; ←h_1] (B, 2n)。"""
    last = mask.sum(dim=1) - 1
    rows = torch.arange(len(mask), device=mask.device)
    return torch.cat([annotations[rows, last, :n], annotations[:, 0, n:]], dim=1)


def _require_shapes(
    state: Tensor, annotations: Tensor, mask: Tensor | None, state_size: int, annotation_size: int
) -> None:
    if state.dim() != 2 or state.shape[1] != state_size:
        raise ValueError(
            f"state の形は (文の数, {state_size}) にしてください: {tuple(state.shape)}"
        )
    if annotations.shape[::2] != (len(state), annotation_size) or annotations.dim() != 3:
        raise ValueError(
            f"annotations の形は ({len(state)}, 長さ, {annotation_size}) にしてください: "
            f"{tuple(annotations.shape)}"
        )
    if mask is not None and (mask.shape != annotations.shape[:2] or mask.dtype != torch.bool):
        raise ValueError(
            f"mask は形 {tuple(annotations.shape[:2])} の真偽値にしてください: "
            f"{tuple(mask.shape)} {mask.dtype}"
        )
    if mask is not None and not mask.any(dim=1).all():
        raise ValueError("mask に、True が一つもない文があります")
