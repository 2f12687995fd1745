"""BERT(Devlin+ 2019)。穴をあけた文から、穴に入るトークンの logits まで。

データの流れ(B: 文の数、T: 長さ、d: d_model、V: 語彙の大きさ):

    ids (B, T) → トークン・位置・セグメントの埋め込みの和 → 層正規化
               → [自己注意 → FFN] × n_layers(post-LN、因果マスクなし)→ hidden (B, T, d)
    hidden → 線形写像・GELU・層正規化 → 出力(埋め込みの転置)と定数項 → logits (B, T, V)
    hidden の先頭 [CLS] → 線形写像・tanh → 次の文かどうか (B, 2)(`next_sentence=True` のとき)

GPT との違いは三つ。どの位置からも左右の両方が見えること、当てるのが次のトークンではなく穴のトークン
であること、セグメント(文 A か B か)の埋め込みがあること。
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chapter04.gpt import require_loadable
from shared.checks import require_int, require_number, require_rate, shown
from shared.ids import require_ids
from shared.transformer import EncoderLayer
from shared.weights import require_state

PRESETS: dict[str, dict[str, int]] = {
    # Devlin+ 2019, 3 節。語彙は、公開された英語(小文字)のモデルの 30,522。
    "bert-base": {"d_model": 768, "n_heads": 12, "n_layers": 12},
    "bert-large": {"d_model": 1024, "n_heads": 16, "n_layers": 24},
}
IGNORED = -100
"""当てなくてよい位置のラベル(F.cross_entropy の ignore_index の既定値)。"""


@dataclass(frozen=True, kw_only=True)
class BertConfig:
    """モデルの寸法。既定値は BERT-base。

    Attributes:
        vocab_size: 語彙の大きさ V。
        context: 一度に扱えるトークンの数の上限。
        d_model, n_heads, n_layers: ベクトルの次元、ヘッドの数、層の数(論文の H、A、L)。
        d_ff: FFN の中間の次元。None なら 4 d_model になる。
        n_segments: セグメントの種類(文 A と文 B なら 2)。
        dropout: 埋め込み・注意の重み・副層の出力に掛けるドロップアウトの率。
        layer_norm_eps: 層正規化の ε。
        next_sentence: 次の文かどうかを当てる部分(3.1 節の Task #2)を付けるか。

    Raises:
        TypeError, ValueError: 値が範囲の外か、組み合わせられないとき。
    """

    vocab_size: int = 30_522
    context: int = 512
    d_model: int = 768
    n_heads: int = 12
    n_layers: int = 12
    d_ff: int | None = None
    n_segments: int = 2
    dropout: float = 0.1
    layer_norm_eps: float = 1e-12
    next_sentence: bool = False

    def __post_init__(self) -> None:
        if self.d_ff is None:
            object.__setattr__(self, "d_ff", 4 * require_int(self.d_model, "d_model", minimum=1))
        for name in ("vocab_size", "context", "d_model", "n_heads", "n_layers", "n_segments"):
            require_int(getattr(self, name), name, minimum=1)
        require_int(self.d_ff, "d_ff", minimum=1)
        if self.d_model % self.n_heads:
            raise ValueError(
                f"d_model は n_heads で割り切れる数にしてください: {self.d_model} と {self.n_heads}"
            )
        require_rate(self.dropout, "dropout")
        require_number(self.layer_norm_eps, "layer_norm_eps", minimum=0)

    @classmethod
    def preset(cls, name: str, **changes: Any) -> Self:
        """論文の "bert-base" か "bert-large" の寸法。`changes` で一部を変えられる。

        Raises:
            ValueError: 名前がこの二つのどちらでもないとき。
        """
        if name not in PRESETS:
            raise ValueError(f"name は {', '.join(PRESETS)} から選んでください: {shown(name)}")
        return cls(**{**PRESETS[name], **changes})


def n_parameters(config: BertConfig) -> int:
    """パラメーターの数。

    埋め込み (V + C + S) d + 2 d、層 L (4 d² + 2 d d_ff + d_ff + 9 d)、穴を当てる部分 d² + 3 d + V
    (C: 文脈の長さ、S: セグメントの種類)。`next_sentence` なら d² + d と 2 d + 2 が加わる。
    """
    d, d_ff = config.d_model, config.d_ff
    assert d_ff is not None
    embeddings = (config.vocab_size + config.context + config.n_segments) * d + 2 * d
    layer = 4 * d * d + 2 * d * d_ff + d_ff + 9 * d
    head = d * d + 3 * d + config.vocab_size
    next_sentence = (d * d + d) + (2 * d + 2) if config.next_sentence else 0
    return embeddings + config.n_layers * layer + head + next_sentence


class Bert(nn.Module):
    """エンコーダーだけの Transformer。

    Raises:
        TypeError: `config` が BertConfig でないとき。
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        _require_config(config)
        assert config.d_ff is not None
        self.config = config
        d_model, eps = config.d_model, config.layer_norm_eps
        self.token_embedding = nn.Embedding(config.vocab_size, d_model)
        self.position_embedding = nn.Embedding(config.context, d_model)
        self.segment_embedding = nn.Embedding(config.n_segments, d_model)
        self.embedding_norm = nn.LayerNorm(d_model, eps)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(
            EncoderLayer(
                d_model, config.n_heads, config.d_ff, config.dropout, norm_first=False,
                activation="gelu", norm_eps=eps, attention_dropout=config.dropout,
            )
            for _ in range(config.n_layers)
        )  # fmt: skip
        self.transform = nn.Linear(d_model, d_model)
        self.transform_norm = nn.LayerNorm(d_model, eps)
        self.output = nn.Linear(d_model, config.vocab_size)
        self.output.weight = self.token_embedding.weight
        self.pooler = nn.Linear(d_model, d_model) if config.next_sentence else None
        self.is_next = nn.Linear(d_model, 2) if config.next_sentence else None
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                # 標準偏差の 2 倍で切った正規分布(公開されたコードの初期値)。
                nn.init.trunc_normal_(module.weight, std=0.02, a=-0.04, b=0.04)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(
        self, ids: Tensor, segments: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """id (B, T) から、どの位置についても、そこに入るトークンの logits (B, T, V) を計算する。

        Args:
            ids: 穴(mask_id)をあけたトークンの id (B, T)。
            segments: セグメントの番号 (B, T)。省けばすべて 0。
            mask: 詰めものでない所を True にしたもの (B, T)。省けば詰めものはないとみなす。

        Raises:
            TypeError: id と番号が整数の、`mask` が真偽値のテンソルでないとき。
            ValueError: 形が合わない、長さが `context` を超える、id か番号が範囲の外のとき。
        """
        return self.logits(self.hidden(ids, segments, mask))

    def hidden(
        self,
        ids: Tensor,
        segments: Tensor | None = None,
        mask: Tensor | None = None,
        maps: list[Tensor] | None = None,
    ) -> Tensor:
        """最後の層の出力 (B, T, d)。`maps` に、層ごとの注意の重み (B, H, T, T) を足す。"""
        segments = torch.zeros_like(ids) if segments is None else segments
        require_ids(ids, "ids", self.config.vocab_size)
        require_ids(segments, "segments", self.config.n_segments)
        if ids.shape[1] > self.config.context:
            raise ValueError(
                f"ids の長さは context = {self.config.context} 以下にしてください: {ids.shape[1]}"
            )
        if mask is not None and (not isinstance(mask, Tensor) or mask.dtype != torch.bool):
            raise TypeError(f"mask には真偽値のテンソルを渡してください: {shown(mask)}")
        for name, other in (("segments", segments), ("mask", mask)):
            if other is not None and other.shape != ids.shape:
                shapes = f"{tuple(other.shape)} と {tuple(ids.shape)}"
                raise ValueError(f"{name} の形は ids に揃えてください: {shapes}")
        positions = self.position_embedding.weight[: ids.shape[1]]
        x = self.token_embedding(ids) + positions + self.segment_embedding(segments)
        x = self.dropout(self.embedding_norm(x))
        seen = None if mask is None else mask[:, None, None]  # (B, 1, 1, T)
        for layer in self.layers:
            x = layer(x, seen, maps=maps)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """層の出力 (..., d) を、トークンの logits (..., V) にする。"""
        return self.output(self.transform_norm(F.gelu(self.transform(hidden))))

    def next_sentence_logits(self, hidden: Tensor) -> Tensor:
        """層の出力 (B, T, d) の先頭から、文 B が文 A の続きである・でないの logits (B, 2)。

        Raises:
            ValueError: `config.next_sentence` が False のとき。
        """
        if self.pooler is None or self.is_next is None:
            raise ValueError("config の next_sentence を True にしてください")
        return self.is_next(self.pooler(hidden[:, 0]).tanh())

    @torch.no_grad()
    def attention_maps(self, ids: Tensor, mask: Tensor | None = None) -> list[Tensor]:
        """注意の重み (B, H, T, T) を、層の順に並べて返す。"""
        maps: list[Tensor] = []
        self.hidden(ids, mask=mask, maps=maps)
        return maps

    @classmethod
    def from_huggingface(
        cls, state_dict: Mapping[str, Tensor], config: BertConfig | None = None
    ) -> Self:
        """transformers の BertForMaskedLM か BertForPreTraining の重みを写したモデル。

        型は `state_dict` のものになり、テンソルは写しをとる。古い重みの LayerNorm.gamma・beta も
        読める。

        Args:
            state_dict: 名前とテンソルの対応。
            config: 寸法。省けば形から推しはかり、ヘッドの数は公開されたモデルと同じ d_model / 64 と
                する(形からは分からないため)。

        Raises:
            TypeError: 対応でない、型がまちまちか整数、`config` が BertConfig でないとき。
            ValueError: キーが足りない、余る、形が違うとき(すべての名前を挙げる)。出力の重みが
                埋め込みと違うとき。寸法が分からないとき。
        """
        tensors = _renamed(state_dict)
        numbers = {int(m[1]) for name in tensors if (m := re.match(r".*\.layer\.(\d+)\.", name))}
        if config is None:
            n_layers, next_sentence = len(numbers), "cls.seq_relationship.weight" in tensors
        else:
            _require_config(config)
            n_layers, next_sentence = config.n_layers, config.next_sentence
        names = _names(n_layers, next_sentence)
        targets = names | {name: names[same] for name, same in TIED.items()}
        found = {
            "足りないキー": [name for name in names if name not in tensors],
            "余るキー": [name for name in tensors if name not in targets],
        }
        if config is None:
            require_loadable(tensors, found)
            config = _inferred(tensors, n_layers, next_sentence)
        with torch.device("meta"):
            model = cls(config)
        shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        wrong = [
            f"{name} {tuple(tensors[name].shape)}(正しくは {shapes[ours]})"
            for name, ours in targets.items()
            if name in tensors and tuple(tensors[name].shape) != shapes[ours]
        ]
        require_loadable(tensors, found | {"形が違うキー": wrong})
        for name, same in TIED.items():
            if name in tensors and not torch.equal(tensors[name], tensors[same]):
                raise ValueError(f"{name} は {same} と同じでなければなりません")
        loaded = {ours: tensors[name].detach().clone() for name, ours in names.items()}
        loaded["output.weight"] = loaded["token_embedding.weight"]
        model.load_state_dict(loaded, assign=True)
        model.output.weight = model.token_embedding.weight
        return model


TABLES = ("word", "position", "token_type")
TIED = {
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}
"""transformers の重みにある、ほかと同じはずのもの(左)。"""


def _renamed(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """位置の番号の buffer を除き、古い名前を今の名前に替えたもの。"""
    require_state(state_dict, "state_dict")
    tensors = {}
    for key, value in state_dict.items():
        name = key.replace("LayerNorm.gamma", "LayerNorm.weight")
        name = name.replace("LayerNorm.beta", "LayerNorm.bias")
        if name != "bert.embeddings.position_ids":
            tensors[name] = value
    return tensors


def _names(n_layers: int, next_sentence: bool) -> dict[str, str]:
    """transformers での名前と、それが写る先。"""
    modules = {
        "bert.embeddings.LayerNorm": "embedding_norm",
        "cls.predictions.transform.dense": "transform",
        "cls.predictions.transform.LayerNorm": "transform_norm",
    }
    if next_sentence:
        modules |= {"bert.pooler.dense": "pooler", "cls.seq_relationship": "is_next"}
    parts = {
        "attention.self.query": "self_attention.query",
        "attention.self.key": "self_attention.key",
        "attention.self.value": "self_attention.value",
        "attention.output.dense": "self_attention.out",
        "attention.output.LayerNorm": "residual_1.norm",
        "intermediate.dense": "ffn.inner",
        "output.dense": "ffn.outer",
        "output.LayerNorm": "residual_2.norm",
    }
    for i in range(n_layers):
        for theirs, ours in parts.items():
            modules[f"bert.encoder.layer.{i}.{theirs}"] = f"layers.{i}.{ours}"
    names = {
        f"bert.embeddings.{theirs}_embeddings.weight": f"{ours}_embedding.weight"
        for theirs, ours in zip(TABLES, ("token", "position", "segment"), strict=True)
    }
    for theirs, ours in modules.items():
        names |= {f"{theirs}.{kind}": f"{ours}.{kind}" for kind in ("weight", "bias")}
    return {**names, "cls.predictions.bias": "output.bias"}


def _inferred(tensors: dict[str, Tensor], n_layers: int, next_sentence: bool) -> BertConfig:
    """テンソルの形から推しはかった寸法。"""
    tables = [tensors[f"bert.embeddings.{name}_embeddings.weight"] for name in TABLES]
    inner = tensors["bert.encoder.layer.0.intermediate.dense.weight"]
    if any(weight.dim() != 2 for weight in (*tables, inner)) or inner.shape[1] % 64:
        raise ValueError(
            "寸法が分からないので、config を渡してください(省けるのは、重みが 2 次元で、d_model が "
            f"64 の倍数のときだけです): intermediate.dense.weight の形 {tuple(inner.shape)}"
        )
    vocab_size, context, n_segments = (len(table) for table in tables)
    return BertConfig(
        vocab_size=vocab_size, context=context, n_segments=n_segments, d_model=inner.shape[1],
        d_ff=inner.shape[0], n_heads=inner.shape[1] // 64, n_layers=n_layers,
        next_sentence=next_sentence,
    )  # fmt: skip


def _require_config(config: object) -> None:
    if not isinstance(config, BertConfig):
        raise TypeError(f"config には BertConfig を渡してください: {shown(config)}")


def mask_tokens(
    ids: Tensor,
    vocab_size: int,
    mask_id: int,
    special_ids: Collection[int],
    generator: torch.Generator,
    *,
    rate: float = 0.15,
) -> tuple[Tensor, Tensor]:
    """文 (B, T) に穴をあけ、(モデルへの入力, ラベル) を返す(Devlin+ 2019, 3.1 節の Task #1)。

    各文の、特別でないトークンの `rate` を無作為に選び、その 80 % を `mask_id` に、10 % を無作為な
    トークンに替え、10 % はそのままにする。ラベルは、選んだ位置では元の id、ほかでは `IGNORED`。

    選ぶ個数は文ごとに、特別でないトークンの数 × `rate` を四捨五入したもの(少なくとも 1)。無作為な
    トークンは `special_ids` と `mask_id` のほかから選ぶ。公開されたコードは、個数を特別なトークンも
    数えた長さから決め、語彙のすべてから選ぶ。

    Args:
        ids, vocab_size: トークンの id (B, T) と、語彙の大きさ。
        mask_id, special_ids: 穴を表す id と、選ばない id([CLS]、[SEP]、詰めものなど)。
        generator, rate: 乱数と、選ぶ割合。

    Raises:
        TypeError: `ids` が整数のテンソルでない、引数の型が違うとき。
        ValueError: 形が (文の数, 長さ) でない、id が語彙の外、`rate` が (0, 1] の外、語彙のすべてが
            特別なとき。
    """
    require_ids(ids, "ids", require_int(vocab_size, "vocab_size", minimum=1))
    if require_int(mask_id, "mask_id", minimum=0) >= vocab_size:
        raise ValueError(f"mask_id は {vocab_size} 未満にしてください: {mask_id}")
    if not 0 < require_number(rate, "rate") <= 1:
        raise ValueError(f"rate は 0 より大きく 1 以下にしてください: {rate}")
    special = torch.tensor(sorted({*special_ids, mask_id}), device=ids.device)
    ordinary = torch.arange(vocab_size, device=ids.device)
    ordinary = ordinary[~torch.isin(ordinary, special)]
    if not len(ordinary):
        raise ValueError("special_ids に、語彙のすべての id があります")

    def draw() -> Tensor:
        return torch.rand(ids.shape, generator=generator, device=generator.device).to(ids.device)

    candidate = ~torch.isin(ids, special)
    counts = candidate.sum(1, keepdim=True)  # (B, 1)
    wanted = (counts * rate).round().clamp(min=1).minimum(counts)
    order = draw().masked_fill(~candidate, 2.0).argsort(dim=1)  # 選べない位置は最後に並ぶ
    chosen = order.argsort(dim=1) < wanted
    kind = draw()
    random = ordinary[(draw() * len(ordinary)).long().clamp(max=len(ordinary) - 1)]
    inputs = ids.masked_fill(chosen & (kind < 0.8), mask_id)
    inputs = torch.where(chosen & (kind >= 0.8) & (kind < 0.9), random.to(ids.dtype), inputs)
    return inputs, torch.where(chosen, ids, IGNORED)
