"""Transformer(Vaswani+ 2017)。入力の id から、次の語の logits まで。

データの流れ(B: 文の数、S: 入力の長さ、T: 出力の長さ、d: d_model、V: 出力側の語彙の大きさ):

    src (B, S) → 埋め込み × sqrt(d) + 位置 → エンコーダー → memory (B, S, d) ─┐
    tgt (B, T) → 埋め込み × sqrt(d) + 位置 → デコーダー ←────────┘→ E^T → logits (B, T, V)

id 0 は詰めもの(padding)である。`src` の詰めものはマスクで隠す。`tgt` の詰めものは文の後ろにだけ置け
ば、因果マスクがあるので、前の語の結果に影響しない。
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from chapter03.positional import sinusoidal
from shared.attention import padding_mask
from shared.checks import require_int, shown
from shared.ids import require_ids
from shared.transformer import Decoder, DecoderCache, Encoder

POSITIONS = ("sinusoidal", "learned", "none")


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """モデルの寸法。既定値は論文の base(表 3 の 1 行目)である。

    Attributes:
        src_vocab_size, tgt_vocab_size: 入力側と出力側の語彙の大きさ(特別な id も数える)。
        d_model, n_heads, n_layers, d_ff: 表 3 の d_model、h、N、d_ff。
        dropout: 副層の出力と埋め込みに掛けるドロップアウトの率 P_drop。
        max_len: 一度に扱える長さの上限。
        norm_first: True なら pre-LN、False なら論文どおりの post-LN。
        activation: FFN の活性化関数。
        attention_bias: 注意の線形写像に定数項を付けるか(論文の式にはない)。
        positions: 位置の表し方。"sinusoidal"・"learned"(表 3 の (E))・"none"。
        share_embeddings: 入力側と出力側の埋め込みを共有するか(論文の英独。語彙も一つにする)。
        tie_output: 出力の線形写像に、出力側の埋め込みを使うか(3.4 節)。

    Raises:
        TypeError, ValueError: 値が範囲の外か、組み合わせられないとき。
    """

    src_vocab_size: int
    tgt_vocab_size: int
    d_model: int = 512
    n_heads: int = 8
    n_layers: int = 6
    d_ff: int = 2048
    dropout: float = 0.1
    max_len: int = 5000
    norm_first: bool = False
    activation: str = "relu"
    attention_bias: bool = False
    positions: str = "sinusoidal"
    share_embeddings: bool = False
    tie_output: bool = True

    def __post_init__(self) -> None:
        for name in ("src_vocab_size", "tgt_vocab_size", "d_model", "n_heads", "n_layers"):
            require_int(getattr(self, name), name, minimum=1)
        require_int(self.d_ff, "d_ff", minimum=1)
        require_int(self.max_len, "max_len", minimum=1)
        if self.d_model % self.n_heads:
            raise ValueError(
                f"d_model は n_heads で割り切れる数にしてください: {self.d_model} と {self.n_heads}"
            )
        if self.positions not in POSITIONS:
            raise ValueError(
                f"positions は {', '.join(POSITIONS)} から選んでください: {shown(self.positions)}"
            )
        if self.positions == "sinusoidal" and self.d_model % 2:
            raise ValueError(
                f'positions="sinusoidal" では d_model を偶数にしてください: {self.d_model}'
            )
        if self.share_embeddings and self.src_vocab_size != self.tgt_vocab_size:
            raise ValueError(
                "share_embeddings では src_vocab_size と tgt_vocab_size を揃えてください: "
                f"{self.src_vocab_size} と {self.tgt_vocab_size}"
            )

    @classmethod
    def base(cls, src_vocab_size: int, tgt_vocab_size: int, **changes: Any) -> Self:
        """論文の base(表 3): d_model 512、8 ヘッド、6 層、d_ff 2048、P_drop 0.1。"""
        return cls(src_vocab_size=src_vocab_size, tgt_vocab_size=tgt_vocab_size, **changes)

    @classmethod
    def big(cls, src_vocab_size: int, tgt_vocab_size: int, **changes: Any) -> Self:
        """論文の big(表 3): d_model 1024、16 ヘッド、6 層、d_ff 4096、P_drop 0.3。"""
        size = {"d_model": 1024, "n_heads": 16, "d_ff": 4096, "dropout": 0.3}
        return cls.base(src_vocab_size, tgt_vocab_size, **{**size, **changes})


class Transformer(nn.Module):
    """エンコーダー・デコーダーの Transformer。

    Raises:
        TypeError: `config` が TransformerConfig でないとき。
    """

    positions: Tensor

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        if not isinstance(config, TransformerConfig):
            raise TypeError(f"config には TransformerConfig を渡してください: {shown(config)}")
        self.config = config
        d_model = config.d_model
        self.src_embedding = nn.Embedding(config.src_vocab_size, d_model)
        self.tgt_embedding = (
            self.src_embedding
            if config.share_embeddings
            else nn.Embedding(config.tgt_vocab_size, d_model)
        )
        for embedding in dict.fromkeys((self.src_embedding, self.tgt_embedding)):  # 順を決めておく
            nn.init.normal_(embedding.weight, std=d_model**-0.5)  # sqrt(d) 倍して分散 1 になる
        if config.positions == "learned":
            self.positions = nn.Parameter(torch.randn(config.max_len, d_model) * d_model**-0.5)
        elif config.positions == "sinusoidal":
            table = sinusoidal(config.max_len, d_model)
            self.register_buffer("positions", table, persistent=False)
        self.dropout = nn.Dropout(config.dropout)
        sizes = (config.n_layers, d_model, config.n_heads, config.d_ff, config.dropout)
        options: dict[str, Any] = {
            "norm_first": config.norm_first,
            "activation": config.activation,
            "bias": config.attention_bias,
        }
        self.encoder = Encoder(*sizes, **options)
        self.decoder = Decoder(*sizes, **options)
        self.output = nn.Linear(d_model, config.tgt_vocab_size, bias=False)
        if config.tie_output:
            self.output.weight = self.tgt_embedding.weight
        else:
            nn.init.normal_(self.output.weight, std=d_model**-0.5)

    def forward(self, src: Tensor, tgt: Tensor) -> Tensor:
        """入力の id (B, S) と、一つ右へずらした出力の id (B, T) から、logits (B, T, V) を計算する。

        Raises:
            TypeError: id が整数のテンソルでないとき。
            ValueError: 形が (文の数, 長さ) でない、長さが 0 か `max_len` を超える、文の数が違う、
                id が語彙の外のとき。
        """
        return self.decode(tgt, self.encode(src), src)

    def encode(self, src: Tensor, maps: list[Tensor] | None = None) -> Tensor:
        """入力の id (B, S) を memory (B, S, d) にする。"""
        x = self._embed(src, self.src_embedding, "src")
        return self.encoder(x, _visible(src), maps=maps)

    def decode(
        self, tgt: Tensor, memory: Tensor, src: Tensor, cache: DecoderCache | None = None
    ) -> Tensor:
        """出力の id (B, T) と memory から logits (B, T, V) を計算する。

        `cache`(`new_cache()` で作る)を渡すときの `tgt` は、まだ計算していない位置だけにする。
        """
        return self.output(self.decode_hidden(tgt, memory, src, cache=cache))

    def decode_hidden(
        self,
        tgt: Tensor,
        memory: Tensor,
        src: Tensor,
        *,
        cache: DecoderCache | None = None,
        maps: tuple[list[Tensor], list[Tensor]] | None = None,
    ) -> Tensor:
        """`decode` の、語彙へ写す前の値 (B, T, d)。"""
        if len(tgt) != len(memory):
            raise ValueError(f"src と tgt の文の数を揃えてください: {len(memory)} と {len(tgt)}")
        start = cache.length if cache is not None else 0
        x = self._embed(tgt, self.tgt_embedding, "tgt", start)
        return self.decoder(x, memory, _visible(src), cache=cache, maps=maps)

    def new_cache(self) -> DecoderCache:
        """`decode` に渡す、空のキャッシュ。"""
        return self.decoder.new_cache()

    @torch.no_grad()
    def attention_maps(self, src: Tensor, tgt: Tensor) -> dict[str, list[Tensor]]:
        """注意の重みを、層の順に並べて返す。

        Returns:
            "encoder": (B, H, S, S) の list、"decoder": (B, H, T, T)、"cross": (B, H, T, S)。
        """
        encoder, decoder, cross = [], [], []
        memory = self.encode(src, maps=encoder)
        self.decode_hidden(tgt, memory, src, maps=(decoder, cross))
        return {"encoder": encoder, "decoder": decoder, "cross": cross}

    def _embed(self, ids: Tensor, embedding: nn.Embedding, name: str, start: int = 0) -> Tensor:
        """id (B, n) を、位置を足したベクトル (B, n, d) にする (3.4 節・3.5 節)。"""
        self._require_ids(ids, embedding.num_embeddings, name, start)
        x = embedding(ids) * math.sqrt(self.config.d_model)
        if self.config.positions != "none":
            x = x + self.positions[start : start + ids.shape[1]]
        return self.dropout(x)

    def _require_ids(self, ids: Tensor, vocab_size: int, name: str, start: int) -> None:
        require_ids(ids, name, vocab_size)
        if start + ids.shape[1] > self.config.max_len:
            raise ValueError(
                f"{name} の長さは max_len = {self.config.max_len} 以下にしてください: "
                f"{start + ids.shape[1]}"
            )


def _visible(src: Tensor) -> Tensor | None:
    """入力の詰めもの以外を True にしたマスク (B, 1, 1, S)。詰めものがなければ None(速い)。"""
    mask = padding_mask(src)
    return None if bool(mask.all()) else mask
