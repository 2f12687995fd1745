"""翻訳の学習データ: トークナイザー、id にした対訳、長さごとのバッチ。

    対訳(parallel_text)→ ユニグラム言語モデルで id に(prepare_data)→ LengthBatches → 学習

id は 0 が詰めもの、1 が文頭、2 が文末、3 が未知で、4 からが断片である。
"""

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from chapter02.sentencepiece_model import Normalizer
from chapter02.unigram import Unigram
from chapter02.unigram_training import train_unigram
from chapter03.parallel_text import Pair, corpus, fingerprint, require_direction
from shared.archives import DataError, cache_folder
from shared.checks import require_int
from shared.files import write_atomically

PAD, BOS, EOS, UNK = range(4)
VOCAB_SIZES = {"en": 4000, "ja": 5000}
COVERAGE = {"en": 0.9999, "ja": 0.9990}  # これに漏れたまれな文字は <unk> になる

Value = TypeVar("Value")


class Tokenizer:
    """第 2 章のユニグラム言語モデルに、詰めもの・文頭・文末の id を加えたもの。

    Attributes:
        unigram: 語彙と対数確率。その id に 3 を足したものが、このトークナイザーの id である。
        language: "en" か "ja"。
    """

    def __init__(self, unigram: Unigram, language: str) -> None:
        if unigram.unk_id != 0:
            raise ValueError(f"unigram の <unk> の id は 0 にしてください: {unigram.unk_id}")
        self.unigram = unigram
        self.language = language

    @classmethod
    def train(cls, sentences: Sequence[str], language: str) -> Self:
        """正規化した文から、id の総数が `VOCAB_SIZES` のものを学習する。

        `Unigram.train` との違いは、日本語では文頭に空白の記号を足さないことだけである。
        """
        normalizer = _normalizer(language)
        learned = train_unigram(
            map(normalizer.normalize, sentences),
            VOCAB_SIZES[language] - UNK,
            n_special=1,
            character_coverage=COVERAGE[language],
            seed_size=200_000,
            max_piece_length=16,
            shrinking_factor=0.75,
            num_sub_iterations=2,
            split_by_whitespace=True,
            split_by_unicode_script=True,
            split_by_number=True,
        )
        pieces, log_probs = ["<unk>", *learned], [0.0, *learned.values()]
        return cls(Unigram(pieces, log_probs, 0, normalizer=normalizer), language)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """`to_json` の文字列から作る。

        Raises:
            ValueError: 壊れているとき。
        """
        try:
            table = json.loads(text)
            pieces, log_probs, language = table["pieces"], table["log_probs"], table["language"]
            unigram = Unigram(pieces, log_probs, 0, normalizer=_normalizer(language))
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise ValueError(f"トークナイザーの JSON が壊れています: {error}") from None
        return cls(unigram, language)

    def to_json(self) -> str:
        """断片と対数確率を JSON にする(対数確率は、学習した値を単精度に丸めたもの)。"""
        log_probs = [round(float(p), 6) for p in self.unigram.log_probs]
        table = {"language": self.language, "pieces": self.unigram.pieces, "log_probs": log_probs}
        return json.dumps(table, ensure_ascii=False) + "\n"

    @property
    def vocab_size(self) -> int:
        """id の総数(詰めもの・文頭・文末・未知も数える)。"""
        return self.unigram.vocab_size + UNK

    def encode(self, text: str) -> list[int]:
        """正規化した文を id の並びにする(文頭と文末は付けない)。知らない文字は `UNK` になる。"""
        return [i + UNK for i in self.unigram.encode(text)]

    def decode(self, ids: Iterable[int]) -> str:
        """id の並びを文に戻す。詰めもの・文頭・文末は除き、未知は「⁇」になる。"""
        text = self.unigram.decode(int(i) - UNK for i in ids if int(i) >= UNK)
        return " ".join(text.split())

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """id ごとの断片の表記(図の目盛りに使う)。"""
        names = ["<pad>", "<s>", "</s>", *self.unigram.pieces]
        return [names[int(i)] for i in ids]


def _normalizer(language: str) -> Normalizer:
    """語を空白で分けない日本語では、文頭に空白の記号を足さない(文頭の語も文中の語も同じ断片)。"""
    return Normalizer(str, add_dummy_prefix=language == "en")


@dataclass(frozen=True)
class Dataset:
    """学習に要るもののすべて: 分割した対訳、二つのトークナイザー、id にした学習の対訳。"""

    parts: dict[str, list[Pair]]
    sha256: str
    tokenizers: dict[str, Tokenizer]
    encoded: list[tuple[list[int], list[int]]]  # parts["train"] と同じ順の (英語, 日本語)

    def training_pairs(self, direction: str) -> list[tuple[list[int], list[int]]]:
        """(原文の id + 文末, 訳文の id) の並び。訳文に未知の文字があるものは除く。

        訳文の <unk> を一度も見せなければ、翻訳器は <unk> を出さない。
        """
        forward = require_direction(direction) == "en-ja"
        pairs = self.encoded if forward else [(ja, en) for en, ja in self.encoded]
        return [([*source, EOS], target) for source, target in pairs if UNK not in target]


def prepare_data() -> Dataset:
    """対訳を分割し、トークナイザーを学習し、学習の対訳を id にする(2 度目からはキャッシュを読む)。

    Raises:
        DataError: 書庫を用意できないとき、キャッシュのファイルが壊れているとき。
    """
    parts = corpus()
    sha256 = fingerprint(parts)
    setting = f"1 {sha256} {VOCAB_SIZES} {COVERAGE}"
    folder = cache_folder() / "translator" / hashlib.sha256(setting.encode()).hexdigest()[:12]
    folder.mkdir(parents=True, exist_ok=True)
    tokenizers: dict[str, Tokenizer] = {}
    columns: list[list[list[int]]] = []
    for column, language in enumerate(("en", "ja")):
        sentences = [pair[column] for pair in parts["train"]]
        path = folder / f"tokenizer_{language}.json"
        if not path.exists():
            write_atomically(path, Tokenizer.train(sentences, language).to_json())
        tokenizers[language] = _loaded(path, Tokenizer.from_json)
        path = folder / f"train_{language}.npz"
        if not path.exists():
            _store_ids(path, [tokenizers[language].encode(text) for text in sentences])
        columns.append(_loaded(path, _ids_from))
    encoded = list(zip(*columns, strict=True))
    return Dataset(parts, sha256, tokenizers, encoded)


def _store_ids(path: Path, rows: list[list[int]]) -> None:
    buffer = io.BytesIO()
    lengths = np.array([len(row) for row in rows], dtype=np.int32)
    np.savez_compressed(
        buffer, ids=np.array([*chain.from_iterable(rows)], dtype=np.int32), lengths=lengths
    )
    write_atomically(path, buffer.getvalue())


def _ids_from(data: bytes) -> list[list[int]]:
    with np.load(io.BytesIO(data)) as file:
        ids, ends = file["ids"], np.cumsum(file["lengths"])
    return [row.tolist() for row in np.split(ids, ends[:-1])]


def _loaded(path: Path, read: Callable[[bytes], Value]) -> Value:
    """キャッシュのファイルを読む。壊れていれば、作り直し方を述べて断る。"""
    try:
        return read(path.read_bytes())
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"キャッシュの {path} が壊れています({error})。消してからもう一度実行すると作り直します"
        ) from None


class LengthBatches:
    """長さの近い文を集めたバッチの列。`for` で回すたびに、並びと組み合わせを引き直す。

    文を長さの順に並べ(同じ長さの中の順は乱数)、詰めものも数えて原文・訳文とも `max_tokens` に収まる
    ように切り、バッチの順を乱数で入れ替える。乱数は回し始めに `generator` から引くだけなので、回し
    始めの状態が同じなら同じ列になる。

    Args:
        pairs: (原文の id の並び, 訳文の id の並び)。訳文に文頭と文末は要らない。
        max_tokens: 一つのバッチの訳文(文末も数える)と原文の、それぞれのトークン数の上限。
        generator: 並びを決める乱数。

    Raises:
        ValueError: `pairs` が空、または `max_tokens` に収まらない長い文があるとき。
    """

    def __init__(
        self,
        pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
        max_tokens: int,
        generator: torch.Generator,
    ) -> None:
        if not pairs:
            raise ValueError("pairs が空です。対訳を一つ以上渡してください")
        self.max_tokens = require_int(max_tokens, "max_tokens", minimum=1)
        self.generator = generator
        self._source = [torch.tensor(source, dtype=torch.long) for source, _ in pairs]
        self._target = [torch.tensor([BOS, *target, EOS]) for _, target in pairs]
        self._lengths = torch.tensor([[len(t) + 1, len(s)] for s, t in pairs])
        if int(self._lengths.max()) > self.max_tokens:
            raise ValueError(
                f"max_tokens は最も長い文の {int(self._lengths.max())} 以上にしてください: "
                f"{self.max_tokens}"
            )
        order = self._order(torch.arange(len(pairs)))
        lengths = self._lengths[order].tolist()
        self._ends: list[int] = []  # 並べた列を切る位置
        start = widest = 0
        for end, pair in enumerate(lengths):
            if max(widest, *pair) * (end + 1 - start) > self.max_tokens:
                self._ends.append(end)
                start, widest = end, 0
            widest = max(widest, *pair)
        self._ends.append(len(lengths))

    def __len__(self) -> int:
        return len(self._ends)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        order = self._order(torch.randperm(len(self._source), generator=self.generator))
        for i in torch.randperm(len(self), generator=self.generator).tolist():
            start = self._ends[i - 1] if i else 0
            yield self._batch(order[start : self._ends[i]].tolist())

    def _order(self, shuffled: Tensor) -> Tensor:
        """`shuffled` の順を保ったまま、(訳文の長さ, 原文の長さ) の順に並べる。"""
        lengths = self._lengths[shuffled]
        rank = lengths[:, 0] * (int(self._lengths[:, 1].max()) + 1) + lengths[:, 1]
        return shuffled[rank.argsort(stable=True)]

    def _batch(self, chosen: list[int]) -> dict[str, Tensor]:
        source = pad([self._source[i] for i in chosen])
        target = [self._target[i] for i in chosen]
        tgt_in, tgt_out = pad([t[:-1] for t in target]), pad([t[1:] for t in target])
        return {"src": source, "tgt_in": tgt_in, "tgt_out": tgt_out}


def pad(rows: Sequence[Tensor]) -> Tensor:
    """長さの違う id の列を、うしろに `PAD` を詰めて (文の数, 最大の長さ) に揃える。"""
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=PAD)
