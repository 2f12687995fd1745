"""事前学習の文書: 整える、重複を除く、分ける、詰めてバッチにする。

ファイルか Tatoeba の和文 → documents → deduplicate → split → トークナイザーで id に
→ PackedBatches(文書を混ぜ、区切りを挟んで 1 本につなぎ、窓で切る)→ 入力と目標の対
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from chapter03.parallel_text import key, normalise
from shared import datasets
from shared.archives import DataError
from shared.checks import require_int, require_many, require_rate, require_text

SHARES = {"validation": 0.01, "test": 0.01}  # 検証と試験に回す文書の割合
REACH = 4  # 繰り返す文書を選ぶ、近さ
IGNORED = -100  # 目標のうち、損失に数えない所(F.cross_entropy の既定)


def clean(text: str) -> str:
    """NFKC 正規化をし、改行を LF に、行末の空白と制御文字を除き、3 行以上の空行を 1 行にする。

    Raises:
        TypeError: `text` が str でないとき。
    """
    text = unicodedata.normalize("NFKC", require_text(text, "text"))
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = "".join(c for c in text if c in "\n\t" or unicodedata.category(c)[0] != "C")
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+\n", "\n", text)).strip()


def documents(path: Path | str | None = None) -> list[str]:
    """`path` のファイルを文書の並びにする。省けば、Tatoeba の和文を 1 文 1 文書とする。

    ファイルは UTF-8 とし、空行で区切った 1 まとまりを(空行がなければ 1 行を)1 文書とする。

    Raises:
        DataError: ファイルを読めない、UTF-8 でない、文書が一つもない、Tatoeba を用意できないとき。
    """
    if path is None:
        return [normalise(text, "ja") for text in datasets.tatoeba_sentences("ja")]
    try:
        text = clean(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        reason = "ファイルではなくフォルダーです" if Path(path).is_dir() else error.strerror
        raise DataError(f"コーパス {path} を読めません: {reason}") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"コーパス {path} は UTF-8 ではありません({error.start} バイト目)。UTF-8 で"
            "保存し直してください"
        ) from None
    found = [part.strip() for part in re.split("\n\n+" if "\n\n" in text else "\n", text)]
    if not any(found):
        raise DataError(f"コーパス {path} に文書がありません(空か、空白だけです)")
    return [part for part in found if part]


def deduplicate(texts: Iterable[str]) -> list[str]:
    """大文字と小文字・記号・空白を除いて同じ文書は、はじめの一つだけを残す。

    Raises:
        TypeError: `texts` が、文書の並びでなく一つの文字列のとき。
    """
    require_many(texts, "texts", "文書の並び")
    kept: dict[str, str] = {}
    for text in texts:
        kept.setdefault(key(text, "ja"), text)
    return [*kept.values()]


def split(texts: Iterable[str], shares: Mapping[str, float] = SHARES) -> dict[str, list[str]]:
    """文書を "train" と `shares` の各部に分ける。

    行き先は `key` のハッシュ値だけで決まるので、ほかの文書が増えても、順が変わっても同じである。

    Raises:
        TypeError: `texts` が、文書の並びでなく一つの文字列のとき。
        ValueError: 割合が 0 以上 1 未満でない、和が 1 以上のとき。
    """
    require_many(texts, "texts", "文書の並び")
    if sum(require_rate(share, name) for name, share in shares.items()) >= 1:
        raise ValueError(f"shares の和は 1 未満にしてください: {dict(shares)}")
    parts: dict[str, list[str]] = {"train": [], **{name: [] for name in shares}}
    for text in texts:
        digest = hashlib.sha256(key(text, "ja").encode()).digest()
        number, chosen = int.from_bytes(digest[:8], "big") / 2**64, "train"
        for name, share in shares.items():
            if number < share:
                chosen = name
                break
            number -= share
        parts[chosen].append(text)
    return parts


def windows(ids: Sequence[int] | Tensor, context: int, stride: int) -> tuple[Tensor, Tensor]:
    """1 本の列から、入力 (窓の数, context) と、1 つ先を並べた目標 (同じ形) を切り出す。

    窓のはじめは 0, stride, 2 stride, … とし、目標まで収まるものだけを取る。

    Raises:
        TypeError: `context` か `stride` が整数でないとき。
        ValueError: 1 より小さいとき、`ids` が context + 1 個に満たないとき。
    """
    require_int(context, "context", minimum=1)
    require_int(stride, "stride", minimum=1)
    ids = torch.as_tensor(ids)
    if len(ids) <= context:
        raise ValueError(f"ids は context + 1 = {context + 1} 個以上にしてください: {len(ids)} 個")
    cut = ids.unfold(0, context + 1, stride)  # (窓の数, context + 1)
    return cut[:, :-1], cut[:, 1:]


class PackedBatches:
    """文書を詰めたバッチの列。1 周ごとに、文書の順を混ぜ直す。

    混ぜた文書を「区切り 文書 区切り 文書 …」とつなぎ、`context` 個ずつの窓に切る。文書の途中で
    切れたら、続きは次の窓のはじめに来る。余りは使わない。`repeat` を渡すと、一つ置くたびに
    その確率で、終わりの `REACH` 個の文書の一つをもう一度置き、写すことを学ばせる。

    Attributes:
        tokens: つないだ列の長さ [トークン]。
    """

    def __init__(
        self,
        documents: Sequence[Sequence[int]],
        separator: int,
        context: int,
        batch_size: int,
        generator: torch.Generator,
        *,
        repeat: float = 0.0,
    ) -> None:
        """引数は、文書の id、区切り、窓の長さ、バッチの窓の数、順を混ぜる乱数、あとは上のとおり。

        Raises:
            TypeError, ValueError: 文書がない、数が 1 より小さい、バッチが一つもできないとき。
        """
        self.separator = require_int(separator, "separator", minimum=0)
        self.context = require_int(context, "context", minimum=1)
        self.batch_size = require_int(batch_size, "batch_size", minimum=1)
        self.repeat = require_rate(repeat, "repeat")
        self.documents = [torch.tensor([separator, *ids]) for ids in documents]
        self.tokens = sum(map(len, self.documents))
        self.generator = generator
        if len(self) == 0:
            raise ValueError(
                f"文書が足りず、バッチを一つも作れません: {self.tokens} トークン"
                f"({batch_size * context + 1} 以上が要ります)"
            )

    def __len__(self) -> int:
        return (self.tokens - 1) // (self.context * self.batch_size)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        numbers = torch.randperm(len(self.documents), generator=self.generator).tolist()
        if self.repeat:
            numbers = self._repeated(numbers)
        stream = torch.cat([self.documents[i] for i in numbers])
        inputs, targets = windows(stream, self.context, self.context)
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            rows = slice(start, start + self.batch_size)
            yield {"inputs": inputs[rows], "targets": targets[rows]}

    def _repeated(self, numbers: list[int]) -> list[int]:
        again = torch.rand(len(numbers), generator=self.generator) < self.repeat
        back = torch.randint(REACH, (len(numbers),), generator=self.generator)
        made: list[int] = []
        for number, twice, distance in zip(numbers, again.tolist(), back.tolist(), strict=True):
            made.append(number)
            if twice:
                made.append(made[-1 - min(distance, len(made) - 1)])
        return made
