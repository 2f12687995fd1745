"""3.2 節の実験: 位置の教え方だけを取り替えた小さなモデルと、二つの課題。

- 写す課題: `SHIFT` 個前の記号を答える。正解は位置の差だけで決まり、記号の種類からは当てられない。
- 文字の課題: シェイクスピアの戯曲の次の文字を当てる(1 文字ずつの言語モデル)。

どちらも、学習で見た長さより長い列を与えると何が起こるかを調べるためのもの。
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chapter03.positional import Alibi, LearnedPositions, RelativeBias, Rotary, sinusoidal
from shared import datasets
from shared.checks import require_int, shown
from shared.transformer import EncoderLayer

METHODS = ("none", "learned", "sinusoidal", "rotary", "relative", "alibi")
SYMBOLS, SHIFT, SHIFT_LENGTH = 16, 3, 32  # 写す課題: 記号の種類、いくつ前か、学習の長さ
MAX_DISTANCE = 8  # 相対位置で区別する距離の上限
TEXT_LENGTH = 64  # 文字の課題: 学習の長さ
CHARACTERS = "\n !',-.:;?abcdefghijklmnopqrstuvwxyz"  # これ以外の文字は改行とみなす
_HELD_OUT_EVERY = 5  # 5 編に 1 編を検証に回す


class TinyTransformer(nn.Module):
    """位置の教え方 `method` だけが違う、小さな Transformer。id (B, n) から logits (B, n, V)。

    Raises:
        ValueError: `method` が METHODS にないとき。
    """

    def __init__(
        self,
        vocab_size: int,
        method: str,
        *,
        n_positions: int,
        d_model: int = 64,
        n_heads: int = 4,
        n_layers: int = 1,
        causal: bool = False,
    ) -> None:
        super().__init__()
        if method not in METHODS:
            raise ValueError(f"method は {', '.join(METHODS)} から選んでください: {shown(method)}")
        hooks = {
            "rotary": lambda: Rotary(d_model // n_heads),
            "relative": lambda: RelativeBias(n_heads, MAX_DISTANCE),
            "alibi": lambda: Alibi(n_heads),
        }
        self.method, self.causal = method, causal
        self.embedding = nn.Embedding(vocab_size, d_model)
        self.learned = LearnedPositions(n_positions, d_model) if method == "learned" else None
        self.layers = nn.ModuleList(
            EncoderLayer(
                d_model,
                n_heads,
                4 * d_model,
                dropout=0.0,
                norm_first=True,
                position=hooks[method]() if method in hooks else None,
            )
            for _ in range(n_layers)
        )
        self.norm = nn.LayerNorm(d_model)
        self.output = nn.Linear(d_model, vocab_size)

    def forward(self, ids: Tensor, maps: list[Tensor] | None = None) -> Tensor:
        """id (B, n) から logits (B, n, V)。`maps` を渡すと、層ごとの注意の重みを末尾に足す。"""
        x = self.embedding(ids)  # (B, n, d)
        if self.method == "sinusoidal":
            x = x + sinusoidal(ids.shape[1], x.shape[-1]).to(x.device)
        elif self.learned is not None:
            x = self.learned(x)
        for layer in self.layers:
            x = layer(x, causal=self.causal, maps=maps)
        return self.output(self.norm(x))


# ---- 写す課題 ----------------------------------------------------------------------------


def train_shift(method: str, seed: int, steps: int = 250) -> TinyTransformer:
    """`SHIFT` 個前の記号を答える 1 層のモデルを、長さ `SHIFT_LENGTH` の無作為な列で学習する。

    Raises:
        TypeError, ValueError: `method` が METHODS にない、`steps` が正の整数でないとき。
    """
    torch.manual_seed(seed)
    model = TinyTransformer(SYMBOLS, method, n_positions=SHIFT_LENGTH)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(require_int(steps, "steps", minimum=1)):
        ids = torch.randint(SYMBOLS, (16, SHIFT_LENGTH), generator=generator)
        loss = _next_loss(model(ids)[:, SHIFT:], ids[:, :-SHIFT]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


@torch.no_grad()
def shift_accuracy(model: TinyTransformer, length: int, seed: int = 1000) -> Tensor:
    """位置ごとの正解率 (length - SHIFT,)。新しい 128 本の列で測る。"""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(SYMBOLS, (128, length), generator=generator)
    right = model(ids)[:, SHIFT:].argmax(dim=-1) == ids[:, :-SHIFT]
    return right.double().mean(dim=0)


# ---- 文字の課題 ----------------------------------------------------------------------------


@cache
def texts() -> tuple[Tensor, Tensor]:
    """学習と検証の、文字の id の列。"""
    plays = list(datasets.shakespeare().values())
    held_out = plays[::_HELD_OUT_EVERY]
    train = [play for i, play in enumerate(plays) if i % _HELD_OUT_EVERY]
    return _encode("".join(train)), _encode("".join(held_out))


def _encode(text: str) -> Tensor:
    table = {character: i for i, character in enumerate(CHARACTERS)}
    return torch.tensor([table.get(character, 0) for character in text.lower()])


def train_text(method: str, seed: int, steps: int = 300) -> TinyTransformer:
    """次の文字を当てる 2 層・8 ヘッドのモデルを、長さ `TEXT_LENGTH` の断片で学習する。

    Raises:
        TypeError, ValueError: `method` が METHODS にない、`steps` が正の整数でないとき。
    """
    torch.manual_seed(seed)
    model = TinyTransformer(
        len(CHARACTERS), method, n_positions=TEXT_LENGTH, n_heads=8, n_layers=2, causal=True
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    warm_then_cool = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps, pct_start=0.2)
    generator = torch.Generator().manual_seed(seed)
    text, window = texts()[0], torch.arange(TEXT_LENGTH + 1)
    for _ in range(require_int(steps, "steps", minimum=1)):
        start = torch.randint(len(text) - TEXT_LENGTH, (8, 1), generator=generator)
        ids = text[start + window]  # (8, 65)
        loss = _next_loss(model(ids[:, :-1]), ids[:, 1:]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        warm_then_cool.step()
    return model


@torch.no_grad()
def text_losses(model: TinyTransformer, length: int, n_characters: int = 65536) -> Tensor:
    """検証用の文章を `length` 文字ずつに切ったときの、位置ごとの平均損失 (length,)、nat。"""
    rows = n_characters // length
    text = texts()[1][: rows * length + 1]
    ids, targets = text[:-1].view(rows, length), text[1:].view(rows, length)
    losses = [
        _next_loss(model(part), target)
        for part, target in zip(ids.split(32), targets.split(32), strict=True)
    ]
    return torch.cat(losses).mean(dim=0)


def _next_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """位置ごとの交差エントロピー (B, n)。"""
    return F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
