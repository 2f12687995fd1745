"""配ってある日本語の GPT: 続きを書く、文の確率を求める。

    load → JapaneseGPT(モデル, トークナイザー)
    prompt → 区切り + id → generation.generate → 文字列
    文書 → 区切り + id + 区切り → 1 トークンずつの log P → バイトあたりのビット数

文書の始まりと終わりは、同じ一つの区切り <|endoftext|> で表す。
"""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError

from chapter02.byte_level_bpe import ByteLevelBPE
from chapter03.parallel_text import normalise
from chapter04.generation import generate
from chapter04.gpt import GPT, GPTConfig
from chapter04.text import IGNORED
from shared import weights
from shared.checks import require_int, require_seed, require_text, shown

END, USER, ASSISTANT = SPECIAL_TOKENS = ("<|endoftext|>", "<|user|>", "<|assistant|>")
WEIGHTS = Path(__file__).parent / "weights"
MODEL, TOKENIZER = "japanese_gpt.safetensors", "japanese_gpt_tokenizer.json"
COMMAND = "python -m chapter04.pretrain"


class JapaneseGPT:
    """GPT とそのトークナイザー。`load` で作る。

    Attributes:
        model: 学習済みの GPT。
        tokenizer: バイトレベル BPE(特殊トークン `SPECIAL_TOKENS` を備える)。
        end: 区切り <|endoftext|> の id。
    """

    def __init__(self, model: GPT, tokenizer: ByteLevelBPE) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.end = tokenizer.special_tokens[END]
        self.device = model.token_embedding.weight.device

    def complete(
        self,
        prompt: str = "",
        *,
        max_new_tokens: int = 40,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        n: int = 1,
    ) -> list[str]:
        """`prompt` に続けて書いた文書を `n` 個返す(prompt も含む。区切りが出たら終わる)。

        `prompt` は、学習した和文と同じく 1 行に整える(`normalise`)。改行は、英数字の間では空白に
        なり、ほかでは消える。

        Raises:
            TypeError, ValueError: 引数が `generation.generate` の許す範囲にない、`prompt` が文脈に
                収まらないとき。
        """
        require_int(n, "n", minimum=1)
        generator = torch.Generator(self.device).manual_seed(require_seed(seed))
        ids = [self.end, *self.tokenizer.encode(normalise(require_text(prompt, "prompt"), "ja"))]
        if len(ids) >= (context := self.model.config.context):
            raise ValueError(
                f"prompt は {context - 2} トークン以下にしてください: {len(ids) - 1} トークン"
            )
        made = generate(
            self.model,
            torch.tensor([ids] * n, device=self.device),
            max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            generator=generator,
            stop=self.end,
        )
        return [self._text(row) for row in made[:, 1:].tolist()]

    def _text(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids[: ids.index(self.end)] if self.end in ids else ids)

    def log_prob(self, text: str, given: str = "") -> float:
        """文書が `given` で始まるとき、`text` が続く確率の対数 [nat](終わりの区切りは数えない)。

        `given` と `text` は別々にトークンに分けるので、境目をまたぐ分け方の確率は含まない。

        Raises:
            TypeError: 文字列でないとき。
            ValueError: `text` が空のとき。
        """
        before = [self.end, *self.tokenizer.encode(require_text(given, "given"))]
        ids = self.tokenizer.encode(require_text(text, "text"))
        if not ids:
            raise ValueError(f"text が空です: {shown(text)}")
        return log_probs(self.model, [[*before, *ids]], [len(before)])[0]

    def bits_per_byte(self, texts: Sequence[str]) -> float:
        """文書の並びの、UTF-8 の 1 バイトあたりの負の対数確率 [bit/byte]。終わりの区切りも当てる。

        Raises:
            ValueError: 文書がないか、すべて空のとき。
        """
        encoded = [[self.end, *ids, self.end] for ids in self.tokenizer.encode_batch(texts)]
        n_bytes = sum(len(text.encode()) for text in texts)
        if not n_bytes:
            raise ValueError("texts に文字がありません")
        return -sum(log_probs(self.model, encoded)) / math.log(2) / n_bytes


@torch.no_grad()
def log_probs(
    model: GPT, sequences: Sequence[Sequence[int]], starts: Sequence[int] | None = None
) -> list[float]:
    """列ごとの、`starts[i]` 番目(省けば 1)からのトークンの log P の和 [nat]。

    文脈の長さを超える列は窓に切り、窓のはじめのトークンは、前の窓の終わりのものとする。

    Raises:
        TypeError: id か `starts` が整数でないとき。
        ValueError: 長さが 2 に満たない列がある、id が語彙の外、`starts` が列と合わないとき。
    """
    size = model.config.vocab_size
    if starts is not None and len(starts) != len(sequences):
        raise ValueError(
            f"starts を sequences と同じ数にしてください: {len(starts)} 個と {len(sequences)} 個"
        )
    rows: list[tuple[int, list[int], int]] = []  # (列の番号, 窓, 数え始める位置)
    for i, sequence in enumerate(sequences):
        name = f"sequences[{i}]"
        ids = [require_int(one, name, minimum=0) for one in sequence]
        if len(ids) < 2:
            raise ValueError(f"{name} は 2 トークン以上にしてください: {len(ids)}")
        if max(ids) >= size:
            raise ValueError(f"{name} の id は 0 以上 {size} 未満にしてください: {max(ids)}")
        start = 1 if starts is None else require_int(starts[i], f"starts[{i}]", minimum=1)
        if start >= len(ids):
            raise ValueError(f"starts[{i}] は {name} の長さ {len(ids)} 未満にしてください: {start}")
        for first in range(0, len(ids) - 1, model.config.context):
            cut = ids[first : first + model.config.context + 1]
            rows.append((i, cut, max(start - first, 1)))
    rows.sort(key=lambda row: len(row[1]))
    totals = [0.0] * len(sequences)
    device = model.token_embedding.weight.device
    for begin in range(0, len(rows), 64):
        chosen = rows[begin : begin + 64]
        width = len(chosen[-1][1])
        padded = torch.zeros(len(chosen), width, dtype=torch.long)
        target = torch.full((len(chosen), width - 1), IGNORED)
        for r, (_, cut, start) in enumerate(chosen):
            padded[r, : len(cut)] = torch.tensor(cut)
            target[r, start - 1 : len(cut) - 1] = padded[r, start : len(cut)]
        padded, target = padded.to(device), target.to(device)
        logits = model(padded[:, :-1]).float()  # (B, T, V)
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), target.flatten(), ignore_index=IGNORED, reduction="none"
        )
        for (i, _, _), value in zip(chosen, loss.view(target.shape).sum(1).tolist(), strict=True):
            totals[i] -= value
    return totals


def load(folder: Path = WEIGHTS) -> JapaneseGPT:
    """配ってある重みとトークナイザーを、manifest.toml の SHA-256 と照合して読む。

    Raises:
        FileNotFoundError: ファイルがないとき。
        ValueError: 壊れているとき。
    """
    packed, facts = weights.read(folder, MODEL, COMMAND)
    weights.read(folder, TOKENIZER, COMMAND)
    try:
        model = GPT(GPTConfig(**facts["config"]))
        state = weights.unpack(packed)
        state["output.weight"] = state["token_embedding.weight"]  # 一度だけ書いてある
        model.load_state_dict(state)
    except (SafetensorError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{MODEL} と manifest.toml の config が合いません({error})。git から取り直してください"
        ) from None
    return JapaneseGPT(model, ByteLevelBPE.load(folder / TOKENIZER))
