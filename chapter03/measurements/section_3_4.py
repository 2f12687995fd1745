"""3.4 節(Transformer の層)の主張の測定。シードは、はじめの重み、データの順を決める。

- 勾配: 初期化したばかりのモデルの勾配の大きさ。学習はしない(Xiong+ 2020)。
- 記憶: 文字の言語モデルを十数秒だけ学習し、FFN の中を覗く(Geva+ 2021)。
"""

import math
from collections import Counter
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chapter03.positional import sinusoidal
from chapter03.transformer import Transformer, TransformerConfig
from shared import datasets
from shared.device import seed_everything
from shared.training import train
from shared.transformer import Encoder, FeedForward

# ---- 初期化したときの勾配 ------------------------------------------------------------------

D_MODEL, N_HEADS, D_FF, LENGTH, VOCAB, REPEATS = 128, 4, 512, 32, 1000, 4
SHALLOW, DEEP, SENTENCES = 6, 24, 128


def ffns(model: nn.Module) -> list[FeedForward]:
    """`model` の中の FFN を、層の順に。"""
    return [module for module in model.modules() if isinstance(module, FeedForward)]


def initial_loss(n_layers: int, norm_first: bool, seed: int) -> tuple[Encoder, Tensor]:
    """初期化したばかりのモデルと、位置ごとの損失 (LENGTH,)。

    入力は標準正規分布のベクトル、正解は一様に選んだ語とする(Xiong+ 2020, 3.3 節の設定)。出力の
    写像は、埋め込みと同じ N(0, 1/d) の行列で、入力とは独立に選ぶ。
    """
    seed_everything(seed)
    model = Encoder(n_layers, D_MODEL, N_HEADS, D_FF, 0.0, norm_first=norm_first)
    x = torch.randn(1, LENGTH, D_MODEL)
    output = torch.randn(VOCAB, D_MODEL) * D_MODEL**-0.5
    targets = torch.randint(VOCAB, (LENGTH,))
    logits = model(x, causal=True)[0] @ output.T  # (LENGTH, VOCAB)
    return model, F.cross_entropy(logits, targets, reduction="none")


def last_layer_gradient(n_layers: int, norm_first: bool, seed: int) -> float:
    """最後の FFN の W_2 の、位置ごとの損失の勾配の大きさ(フロベニウスノルム)の平均。"""
    norms = []
    for repeat in range(REPEATS):
        model, losses = initial_loss(n_layers, norm_first, REPEATS * seed + repeat)
        weight = ffns(model)[-1].outer.weight
        for loss in losses:
            (gradient,) = torch.autograd.grad(loss, weight, retain_graph=True)
            norms.append(gradient.norm().item())
    return sum(norms) / len(norms)


def layer_gradients(norm_first: bool, seed: int) -> dict[str, list[float]]:
    """6 層ずつの Transformer の、各層の FFN の W_2 の期待勾配の大きさ(フロベニウスノルム)。

    Xiong+ 2020, 3.4 節と同じく、たくさんの文で平均した勾配の大きさを測る。ここでは和文 128 個を、
    別の和文を読みながら書く損失を使う(学習の前なので、訳になっている必要はない)。
    """
    seed_everything(seed)
    size = len(corpus().characters)
    config = TransformerConfig(
        src_vocab_size=size, tgt_vocab_size=size, d_model=D_MODEL, n_heads=N_HEADS,
        n_layers=SHALLOW, d_ff=D_FF, dropout=0.0, norm_first=norm_first, share_embeddings=True,
    )  # fmt: skip
    model = Transformer(config)
    ids = corpus().ids[SENTENCES * seed : SENTENCES * (seed + 1)]
    logits = model(ids.flip(0), ids[:, :-1])
    loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), ignore_index=PAD)
    weights = [ffn.outer.weight for part in (model.encoder, model.decoder) for ffn in ffns(part)]
    gradients = torch.autograd.grad(loss, weights)
    norms = [gradient.norm().item() for gradient in gradients]
    return {"encoder": norms[:SHALLOW], "decoder": norms[SHALLOW:]}


def post_ln_change(seed: int) -> float:
    """post-LN の最後の FFN の勾配の、24 層と 6 層の比(大きいほう ÷ 小さいほう)。"""
    ratio = last_layer_gradient(DEEP, False, seed) / last_layer_gradient(SHALLOW, False, seed)
    return max(ratio, 1 / ratio)


def pre_ln_change(seed: int) -> float:
    """pre-LN の最後の FFN の勾配の、24 層 ÷ 6 層。"""
    return last_layer_gradient(DEEP, True, seed) / last_layer_gradient(SHALLOW, True, seed)


def post_ln_first_over_last(seed: int) -> float:
    """post-LN のデコーダー(6 層)の FFN の勾配、1 層目 ÷ 6 層目。"""
    gradients = layer_gradients(False, seed)["decoder"]
    return gradients[0] / gradients[-1]


def pre_ln_spread(seed: int) -> float:
    """pre-LN のデコーダー(6 層)の FFN の勾配、最大の層 ÷ 最小の層。"""
    gradients = layer_gradients(True, seed)["decoder"]
    return max(gradients) / min(gradients)


# ---- FFN の記憶 -----------------------------------------------------------------------------

PAD, BOS, EOS = 0, 1, 2
SHORTEST, LONGEST, CHARACTERS = 6, 14, 600
STEPS, BATCH, PROBED = 400, 64, 2000


class TinyLM(nn.Module):
    """文字の言語モデル。pre-LN の 2 層(d = 64、d_ff = 256)で、埋め込みは出力と共有する。"""

    positions: Tensor

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, 64)
        nn.init.normal_(self.embedding.weight, std=64**-0.5)
        self.register_buffer("positions", sinusoidal(LONGEST + 2, 64))
        self.blocks = Encoder(2, 64, 4, 256, 0.0, norm_first=True)

    def forward(self, ids: Tensor) -> Tensor:
        """id (B, n) から、次の文字の logits (B, n, V)。"""
        x = self.embedding(ids) * math.sqrt(64) + self.positions[: ids.shape[1]]
        return self.blocks(x, causal=True) @ self.embedding.weight.T


@dataclass
class Corpus:
    """短い和文を、文頭と文末の印をつけた id (文の数, LONGEST + 2) にしたもの。"""

    ids: Tensor
    characters: list[str]  # id から文字へ(0 から 2 は印)

    def text(self, ids: Tensor) -> str:
        """印を除いた文字列。"""
        return "".join(self.characters[i] for i in ids.tolist() if i > EOS)


@cache
def corpus() -> Corpus:
    """Tatoeba の和文のうち、6 字から 14 字で、よく出る 600 字だけでできたもの。"""
    short = [s for s in datasets.tatoeba_sentences("ja") if SHORTEST <= len(s) <= LONGEST]
    counts = Counter(character for sentence in short for character in sentence)
    characters = ["<pad>", "<s>", "</s>"] + [c for c, _ in counts.most_common(CHARACTERS)]
    number = {character: i for i, character in enumerate(characters)}
    rows = [
        [BOS, *(number[c] for c in sentence), EOS] + [PAD] * (LONGEST - len(sentence))
        for sentence in short
        if all(c in number for c in sentence)
    ]
    return Corpus(torch.tensor(rows), characters)


def next_character_loss(model: nn.Module, ids: Tensor) -> Tensor:
    """次の文字の交差エントロピー(nat / 文字、文末を含む)。"""
    return F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten(), ignore_index=PAD)


@cache
def trained_lm(seed: int, steps: int = STEPS) -> TinyLM:
    """`steps` ステップだけ学習した文字の言語モデル。"""
    generator = seed_everything(seed)
    model = TinyLM(len(corpus().characters))
    order = torch.randperm(len(corpus().ids), generator=generator)
    batches = corpus().ids[order].split(BATCH)
    train(model, batches, next_character_loss, steps=steps, rate=3e-3, progress=False)
    return model.eval().requires_grad_(False)


def coefficients(model: TinyLM, ids: Tensor, layer: int) -> Tensor:
    """`layer` 層目の FFN の記憶の係数 ReLU(x k_i + b_i)、形 (B, n, d_ff)。"""
    kept: list[Tensor] = []

    def keep(module: nn.Module, given: Any, output: Tensor) -> None:
        kept.append(output)

    handle = ffns(model)[layer].inner.register_forward_hook(keep)
    model(ids)
    handle.remove()
    return kept[0].relu()


def triggers(model: TinyLM, layer: int, top: int) -> tuple[Tensor, Tensor]:
    """各キーを最も強く引き起こした `top` 個の例の、文の番号と終わりの位置 (d_ff, top)。

    例は、コーパスのはじめの 2,000 文の、2 字以上の先頭部分(次の文字か文末が続くもの)とする。
    """
    ids = corpus().ids[:PROBED]
    memory = coefficients(model, ids[:, :-1], layer)  # (B, n, d_ff)
    usable = ids[:, 1:] != PAD  # 次がある位置
    usable[:, :2] = False  # 文頭の印と 1 字目
    memory = memory.masked_fill(~usable[..., None], -1.0).flatten(0, 1)
    best = memory.topk(top, dim=0).indices.T  # (d_ff, top)
    return best // usable.shape[1], best % usable.shape[1]


def drops(model: TinyLM, layer: int, top: int = 50) -> tuple[float, float]:
    """上位の例から、初めの字・終わりの字を消したときの、記憶の係数の下がる割合の平均。"""
    ids = corpus().ids[:PROBED]
    sentence, end = triggers(model, layer, top)
    key = torch.arange(len(sentence))[:, None]
    memory = coefficients(model, ids[:, :-1], layer)
    shifted = torch.cat([ids[:, :1], ids[:, 2:-1]], dim=1)  # 1 字目を消した文
    before = memory[sentence, end, key]
    without_first = coefficients(model, shifted, layer)[sentence, end - 1, key]
    without_last = memory[sentence, end - 1, key]
    alive = before[:, -1] > 0  # 上位の例のすべてで働くキー
    falls = [1 - (after / before)[alive] for after in (without_first, without_last)]
    return falls[0].mean().item(), falls[1].mean().item()


def agreement(model: TinyLM, layer: int) -> tuple[float, float]:
    """バリューがいちばん推す文字が、最も強い例の次の文字と一致する割合と、組を入れ替えたときの値。"""
    sentence, end = triggers(model, layer, 1)
    following = corpus().ids[sentence[:, 0], end[:, 0] + 1]  # (d_ff,)
    values = ffns(model)[layer].outer.weight  # (d, d_ff)
    favourite = (model.embedding.weight @ values).argmax(dim=0)  # (V, d_ff) → (d_ff,)
    matched = (favourite == following).float().mean().item()
    shuffled = (favourite[:, None] == following).float().mean().item()
    return matched, shuffled


def first_over_last_token(seed: int) -> float:
    """1 層目のキーで、初めの字を消したときの下がり方 ÷ 終わりの字を消したときの下がり方。"""
    first, last = drops(trained_lm(seed), 0)
    return first / last


def agreement_over_chance(seed: int) -> float:
    """最後の層での一致の割合が、語彙から一様に選んだときの何倍か。"""
    matched, _ = agreement(trained_lm(seed), 1)
    return matched * len(corpus().characters)
