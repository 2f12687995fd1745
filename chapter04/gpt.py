"""GPT(Radford+ 2018, 2019、Brown+ 2020)。トークンの id から、次のトークンの logits まで。

データの流れ(B: 文の数、T: 長さ、d: d_model、V: 語彙の大きさ):

    ids (B, T) → トークンの埋め込み + 位置の埋め込み → [因果つき自己注意 → FFN] × n_layers
               → 層正規化(pre-LN のときだけ)→ 出力(ふつうは埋め込みの転置)→ logits (B, T, V)

GPT-1 は post-LN(`norm_first=False`)、GPT-2 と GPT-3 は pre-LN で、ほかの造りは同じである。
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from shared.attention import KVCache
from shared.checks import require_int, require_number, require_rate, shown
from shared.ids import require_ids
from shared.transformer import ACTIVATIONS, EncoderLayer
from shared.weights import require_state

GPT2_VOCABULARY = 50_257
PRESETS: dict[str, dict[str, Any]] = {
    # Radford+ 2018, 4.1 節。語彙は BPE の 40,000 回のマージと文字など 478 個。
    "gpt1": {"vocab_size": 40_478, "context": 512, "norm_first": False},
    # Radford+ 2019, 表 2(n_heads は公開された重みの設定)。
    "gpt2": {"d_model": 768, "n_heads": 12, "n_layers": 12},
    "gpt2-medium": {"d_model": 1024, "n_heads": 16, "n_layers": 24},
    "gpt2-large": {"d_model": 1280, "n_heads": 20, "n_layers": 36},
    "gpt2-xl": {"d_model": 1600, "n_heads": 25, "n_layers": 48},
    # Brown+ 2020, 表 2.1。XL と 13B は、互いに合わない数を直してある(下の CORRECTED)。
    "gpt3-small": {"context": 2048, "d_model": 768, "n_heads": 12, "n_layers": 12},
    "gpt3-medium": {"context": 2048, "d_model": 1024, "n_heads": 16, "n_layers": 24},
    "gpt3-large": {"context": 2048, "d_model": 1536, "n_heads": 16, "n_layers": 24},
    "gpt3-xl": {"context": 2048, "d_model": 2048, "n_heads": 16, "n_layers": 24},
    "gpt3-2.7b": {"context": 2048, "d_model": 2560, "n_heads": 32, "n_layers": 32},
    "gpt3-6.7b": {"context": 2048, "d_model": 4096, "n_heads": 32, "n_layers": 32},
    "gpt3-13b": {"context": 2048, "d_model": 5120, "n_heads": 40, "n_layers": 40},
    "gpt3": {"context": 2048, "d_model": 12_288, "n_heads": 96, "n_layers": 96},
}
CORRECTED = {
    "gpt3-xl": "表 2.1 の 24 ヘッド × d_head 128 は d_model 2048 と合わないので、16 ヘッド",
    "gpt3-13b": "表 2.1 の d_model 5140 は 40 ヘッド × d_head 128 と合わないので、d_model 5120",
}
"""論文の表の数が互いに合わない寸法と、その直し方。"""


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """モデルの寸法。`vocab_size` のほかの既定値は GPT-2 のいちばん小さいもの。

    Attributes:
        vocab_size: 語彙の大きさ V。
        context: 一度に扱えるトークンの数の上限(文脈の長さ)。
        d_model, n_heads, n_layers: ベクトルの次元、ヘッドの数、層の数。
        d_ff: FFN の中間の次元。None なら 4 d_model になる。
        dropout: 埋め込み・注意の重み・副層の出力に掛けるドロップアウトの率。
        norm_first: True なら pre-LN(GPT-2 から)、False なら post-LN(GPT-1)。
        activation: FFN の活性化関数。"gelu_tanh" は GPT の近似式。
        tie_output: 出力の線形写像に、トークンの埋め込みを使うか。
        layer_norm_eps: 層正規化の ε。

    Raises:
        TypeError, ValueError: 値が範囲の外か、組み合わせられないとき。
    """

    vocab_size: int
    context: int = 1024
    d_model: int = 768
    n_heads: int = 12
    n_layers: int = 12
    d_ff: int | None = None
    dropout: float = 0.1
    norm_first: bool = True
    activation: str = "gelu_tanh"
    tie_output: bool = True
    layer_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.d_ff is None:
            object.__setattr__(self, "d_ff", 4 * require_int(self.d_model, "d_model", minimum=1))
        for name in ("vocab_size", "context", "d_model", "n_heads", "n_layers", "d_ff"):
            require_int(getattr(self, name), name, minimum=1)
        if self.d_model % self.n_heads:
            raise ValueError(
                f"d_model は n_heads で割り切れる数にしてください: {self.d_model} と {self.n_heads}"
            )
        require_rate(self.dropout, "dropout")
        if require_number(self.layer_norm_eps, "layer_norm_eps") <= 0:
            raise ValueError(f"layer_norm_eps は正の数にしてください: {shown(self.layer_norm_eps)}")
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"activation は {', '.join(ACTIVATIONS)} から選んでください: "
                f"{shown(self.activation)}"
            )
        for name in ("norm_first", "tie_output"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(
                    f"{name} には True か False を渡してください: {shown(getattr(self, name))}"
                )

    @classmethod
    def preset(cls, name: str, **changes: Any) -> Self:
        """論文の寸法。`changes` で一部を変えられる。

        "gpt1"、"gpt2"・"gpt2-medium"・"gpt2-large"・"gpt2-xl"、"gpt3-small"・…・"gpt3-13b"・
        "gpt3"(175B)。GPT-3 の疎な注意(層を一つおき)は含まない。

        Raises:
            ValueError: 名前がこの中にないとき。
        Warns:
            UserWarning: 論文の表の数が互いに合わず、直して使うとき(gpt3-xl と gpt3-13b)。
        """
        if name not in PRESETS:
            raise ValueError(f"name は {', '.join(PRESETS)} から選んでください: {shown(name)}")
        if name in CORRECTED:
            warnings.warn(f"{name}: {CORRECTED[name]} とします", stacklevel=2)
        return cls(**{"vocab_size": GPT2_VOCABULARY, **PRESETS[name], **changes})


def n_parameters(config: GPTConfig) -> int:
    """パラメーターの数。

    (V + C) d + L (4 d² + 2 d d_ff + d_ff + 9 d)、pre-LN なら最後の層正規化の 2 d、出力を埋め込みと
    共有しなければ V d が加わる(C: 文脈の長さ、L: 層の数)。
    """
    d, d_ff = config.d_model, config.d_ff
    assert d_ff is not None
    attention, ffn, norms = 4 * (d * d + d), 2 * d * d_ff + d_ff + d, 2 * 2 * d
    embeddings = (config.vocab_size + config.context) * d
    last = (2 * d if config.norm_first else 0) + (0 if config.tie_output else config.vocab_size * d)
    return embeddings + config.n_layers * (attention + ffn + norms) + last


class GPTCache:
    """モデル全体の KV キャッシュ(`GPT.new_cache` が作る)。"""

    def __init__(self, n_layers: int) -> None:
        self.layers = [KVCache() for _ in range(n_layers)]

    @property
    def length(self) -> int:
        """これまでに計算した位置の数。"""
        return self.layers[0].length

    def reorder(self, index: Tensor) -> None:
        """文の並びを `index` (B',) の順に取り直す。"""
        for cache in self.layers:
            cache.reorder(index)


class GPT(nn.Module):
    """デコーダーだけの Transformer。

    Raises:
        TypeError: `config` が GPTConfig でないとき。
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        _require_config(config)
        assert config.d_ff is not None
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.position_embedding = nn.Embedding(config.context, config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(
            EncoderLayer(
                config.d_model, config.n_heads, config.d_ff, config.dropout,
                norm_first=config.norm_first, activation=config.activation,
                norm_eps=config.layer_norm_eps, attention_dropout=config.dropout,
            )
            for _ in range(config.n_layers)
        )  # fmt: skip
        eps = config.layer_norm_eps
        self.norm = nn.LayerNorm(config.d_model, eps) if config.norm_first else nn.Identity()
        self.output = nn.Linear(config.d_model, config.vocab_size, bias=False)
        if config.tie_output:
            self.output.weight = self.token_embedding.weight
        self._initialize()

    def _initialize(self) -> None:
        """重みを N(0, 0.02²) にする。GPT-2 では、残差に足す写像を 1/sqrt(2 n_layers) 倍する。

        GPT-1 は Radford+ 2018, 4.1 節、GPT-2 は Radford+ 2019, 2.3 節(残差の層の数は、注意と FFN の
        二つずつで 2 n_layers)。
        """
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        if self.config.norm_first:
            for name, parameter in self.named_parameters():
                if name.endswith(("self_attention.out.weight", "ffn.outer.weight")):
                    nn.init.normal_(parameter, std=0.02 / (2 * self.config.n_layers) ** 0.5)

    def forward(
        self, ids: Tensor, cache: GPTCache | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """id (B, T) から、位置ごとに次のトークンの logits (B, T, V) を計算する。

        Args:
            ids: トークンの id (B, T)。`cache` を渡すときは、まだ計算していない位置だけにする。
            cache: `new_cache()` で作ったキャッシュ(勾配の計算には使えない)。
            mask: 因果マスクに重ねる真偽値 (B, H, T, 過去も含む長さ)。True は「見てよい」。

        Raises:
            TypeError: id が整数のテンソルでないとき。
            ValueError: 形が (文の数, 長さ) でない、長さが 0 か(過去も含めて)`context` を超える、
                id が語彙の外のとき。
        """
        return self.output(self.hidden(ids, cache, mask))

    def hidden(
        self,
        ids: Tensor,
        cache: GPTCache | None = None,
        mask: Tensor | None = None,
        maps: list[Tensor] | None = None,
    ) -> Tensor:
        """`forward` の、語彙へ写す前の値 (B, T, d)。`maps` に、層ごとの注意の重みを足す。"""
        start = cache.length if cache is not None else 0
        self.require_ids(ids, start)
        positions = self.position_embedding.weight[start : start + ids.shape[1]]
        x = self.dropout(self.token_embedding(ids) + positions)  # (B, T, d)
        caches = cache.layers if cache is not None else [None] * len(self.layers)
        for layer, layer_cache in zip(self.layers, caches, strict=True):
            x = layer(x, mask, causal=True, cache=layer_cache, maps=maps)
        return self.norm(x)

    def new_cache(self) -> GPTCache:
        """空のキャッシュ。"""
        return GPTCache(len(self.layers))

    @torch.no_grad()
    def attention_maps(self, ids: Tensor) -> list[Tensor]:
        """注意の重み (B, H, T, T) を、層の順に並べて返す。"""
        maps: list[Tensor] = []
        self.hidden(ids, maps=maps)
        return maps

    def require_ids(self, ids: Tensor, start: int = 0, name: str = "ids") -> None:
        """`ids` が、位置 `start` から置ける id (B, T) か確かめる(例外は `forward` と同じ)。"""
        require_ids(ids, name, self.config.vocab_size)
        if start + ids.shape[1] > self.config.context:
            raise ValueError(
                f"{name} の長さは context = {self.config.context} 以下にしてください: "
                f"{start + ids.shape[1]}"
            )

    @classmethod
    def from_huggingface(
        cls, state_dict: Mapping[str, Tensor], config: GPTConfig | None = None
    ) -> Self:
        """transformers の GPT2LMHeadModel か OpenAIGPTLMHeadModel の重みを写したモデル。

        どちらの並びかは、キーの名前で見分ける。"transformer." の有無は問わない。因果マスクの buffer
        (attn.bias など)は読み飛ばす。型は `state_dict` のものになり、テンソルは写しをとる。

        Args:
            state_dict: 名前とテンソルの対応。
            config: 寸法。省けば形から推しはかり、ヘッドの数は公開されたモデルと同じ d_model / 64 と
                する(形からは分からないため)。

        Raises:
            TypeError: 対応でない、型がまちまちか整数、`config` が GPTConfig でないとき。
            ValueError: キーが足りない、余る、形が違うとき(すべての名前を挙げる)。寸法が分からない
                とき。
        """
        tensors = _without_prefix(state_dict)
        tokens, positions = ("tokens_embed.weight", "positions_embed.weight")
        if gpt2 := tokens not in tensors:
            tokens, positions = ("wte.weight", "wpe.weight")
        head = tensors.get("lm_head.weight")
        tied = head is None or (tokens in tensors and torch.equal(head, tensors[tokens]))
        if config is None:
            numbers = {m[1] for name in tensors if (m := re.match(r"h\.(\d+)\.", name))}
            n_layers, norm_first, tie_output = max(len(numbers), 1), gpt2, tied
        else:
            _require_config(config)
            n_layers, norm_first, tie_output = config.n_layers, config.norm_first, config.tie_output
        names = {tokens: ["token_embedding.weight"], positions: ["position_embedding.weight"]}
        names |= _huggingface_names(n_layers, norm_first)
        if head is not None or not tie_output:
            names["lm_head.weight"] = ["output.weight"]
        found = {
            "足りないキー": [name for name in names if name not in tensors],
            "余るキー": [name for name in tensors if name not in names],
        }
        if config is None:
            require_loadable(tensors, found)
            sources = (tokens, positions, "h.0.mlp.c_fc.weight")
            config = GPTConfig(
                **_inferred(*(tensors[name] for name in sources)),
                n_layers=n_layers, norm_first=norm_first, tie_output=tie_output,
            )  # fmt: skip
        with torch.device("meta"):
            model = cls(config)
        wrong, loaded = _converted(tensors, names, model.state_dict())
        require_loadable(tensors, found | {"形が違うキー": wrong})
        if tie_output and not tied:
            raise ValueError(
                "lm_head.weight がトークンの埋め込みと違います。"
                "config の tie_output を False にしてください"
            )
        model.load_state_dict(loaded, assign=True, strict=False)
        if tie_output:
            model.output.weight = model.token_embedding.weight
        return model


def require_loadable(tensors: Mapping[str, Tensor], problems: Mapping[str, list[str]]) -> None:
    """問題 {種類: キー} が一つもなく、どの重みも同じ浮動小数点数の型か確かめる。"""
    if any(problems.values()):
        found = "。".join(f"{kind}: {', '.join(keys)}" for kind, keys in problems.items() if keys)
        raise ValueError(f"state_dict がモデルと合いません。{found}")
    kinds = {value.dtype: name for name, value in tensors.items()}
    if len(kinds) > 1 or not all(dtype.is_floating_point for dtype in kinds):
        found = "、".join(f"{name} は {dtype}" for dtype, name in kinds.items())
        raise TypeError(f"state_dict は、同じ浮動小数点数の型に揃えてください: {found}")


def _require_config(config: object) -> None:
    if not isinstance(config, GPTConfig):
        raise TypeError(f"config には GPTConfig を渡してください: {shown(config)}")


def _without_prefix(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """名前から "transformer." を、中身から因果マスクなどの buffer を除いたもの。"""
    require_state(state_dict, "state_dict")
    tensors = {}
    for key, value in state_dict.items():
        name = key.removeprefix("transformer.")
        if not re.fullmatch(r"h\.\d+\.attn\.(bias|masked_bias)|position_ids", name):
            tensors[name] = value.detach()
    return tensors


def _huggingface_names(n_layers: int, norm_first: bool) -> dict[str, list[str]]:
    """埋め込み以外の、transformers での名前と、それが写る先(c_attn だけは三つに分かれる)。"""
    modules = {
        "ln_1": ["residual_1.norm"],
        "attn.c_attn": [f"self_attention.{part}" for part in ("query", "key", "value")],
        "attn.c_proj": ["self_attention.out"],
        "ln_2": ["residual_2.norm"],
        "mlp.c_fc": ["ffn.inner"],
        "mlp.c_proj": ["ffn.outer"],
    }
    names: dict[str, list[str]] = {}
    for kind in ("weight", "bias"):
        for i in range(n_layers):
            for theirs, ours in modules.items():
                names[f"h.{i}.{theirs}.{kind}"] = [f"layers.{i}.{one}.{kind}" for one in ours]
        if norm_first:
            names[f"ln_f.{kind}"] = [f"norm.{kind}"]
    return names


def _inferred(tokens: Tensor, positions: Tensor, inner: Tensor) -> dict[str, Any]:
    """二つの埋め込みと、FFN の一つ目の重みの形から推しはかった寸法。"""
    if any(weight.dim() != 2 for weight in (tokens, positions, inner)) or tokens.shape[1] % 64:
        raise ValueError(
            "寸法が分からないので、config を渡してください(省けるのは、d_model が 64 の倍数で、"
            f"ヘッドの数が d_model / 64 のときだけです): 埋め込みの形 {tuple(tokens.shape)}"
        )
    return {
        "vocab_size": len(tokens),
        "context": len(positions),
        "d_model": tokens.shape[1],
        "n_heads": tokens.shape[1] // 64,
        "d_ff": inner.shape[1],
    }


def _converted(
    tensors: dict[str, Tensor], names: dict[str, list[str]], model: dict[str, Tensor]
) -> tuple[list[str], dict[str, Tensor]]:
    """形が違うキーの説明と、モデルの名前・並べ方にした重みの写し。"""
    wrong, loaded = [], {}
    for name, targets in names.items():
        if name not in tensors:
            continue
        # transformers の Conv1D の重みは (入力, 出力) の形で、nn.Linear とは転置の関係にある。
        flip = re.search(r"\.c_(attn|proj|fc)\.weight$", name) is not None
        shapes = [tuple(model[target].shape) for target in targets]
        rows, *rest = shapes[0]
        expected = (len(shapes) * rows, *rest)
        expected = expected[::-1] if flip else expected
        if tuple(tensors[name].shape) != expected:
            wrong.append(f"{name} {tuple(tensors[name].shape)}(正しくは {expected})")
            continue
        parts = (tensors[name].T if flip else tensors[name]).chunk(len(targets))
        for target, part in zip(targets, parts, strict=True):
            loaded[target] = part.clone(memory_format=torch.contiguous_format)
    return wrong, loaded
