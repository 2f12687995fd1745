"""修正 Kneser-Ney の n-gram 言語モデル: ニューラルネットを使わない、強い比較相手。

補間する修正 Kneser-Ney (Chen & Goodman 1999) を、整数の列の上で実装する。次数 k の確率は

    p_k(w | h) = (a(h w) - D_k(a(h w))) / Σ_v a(h v) + γ_k(h) p_{k-1}(w | h')
    γ_k(h) = Σ_v D_k(a(h v)) / Σ_v a(h v)
    p_0(w) = 1 / (出うる id の数)

で、h' は h の先頭を除いたもの。見たことのない文脈 h では p_k(w | h) = p_{k-1}(w | h') とする。
割り引く量 D_k(1) = D_1、D_k(2) = D_2、D_k(3 以上) = D_3+ は、次数ごとに、ちょうど r 回の n-gram の
種類数 n_r から決める:

    Y = n_1 / (n_1 + 2 n_2)
    D_1 = 1 - 2 Y n_2 / n_1    D_2 = 2 - 3 Y n_3 / n_2    D_3+ = 3 - 4 Y n_4 / n_3

a は、最高次では出現数、それより低い次数では「左に来うる id の種類」(継続の数)である。ただし文頭で
始まる n-gram には左がないので、どの次数でも出現数とする (Heafield et al. 2013)。
"""

import argparse
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

from shared.checks import require_int, require_text, shown

Ids = NDArray[np.int64]
Numbers = NDArray[np.float64]

FALLBACK = (0.0, 0.5, 1.0, 1.5)
"""n_1 から n_4 のどれかが 0 で、式では決められないときの割り引き(出現数 0, 1, 2, 3 以上)。"""


class KneserNey:
    """補間する修正 Kneser-Ney の n-gram 言語モデル。`train` で作る。

    文は bos id_1 … id_T eos とみなし、id_1 から eos までを予測する。`bos` は予測しない(`eos` と同じ
    id にしたときを除く)。

    Attributes:
        order: 次数 n。直前の n - 1 個までを見る。
        discounts: 次数 k の割り引き (0, D_1, D_2, D_3+) が discounts[k - 1]。
        counts: 次数 k の n-gram の種類数(bos だけのものも含む)が counts[k - 1]。
    """

    def __init__(self, order: int, vocab_size: int, bos: int, eos: int) -> None:
        """まだ何も学んでいないモデル(ふつうは `train` を使う)。"""
        self.order = require_int(order, "order", minimum=1)
        self.vocab_size = require_int(vocab_size, "vocab_size", minimum=1)
        self.bos, self.eos = require_int(bos, "bos"), require_int(eos, "eos")
        for name, number in (("bos", bos), ("eos", eos)):
            if not 0 <= number < vocab_size:
                raise ValueError(f"{name} は 0 以上 {vocab_size} 未満にしてください: {number}")
        self._uniform = 1 / max(1, vocab_size - (bos != eos))
        self.discounts: list[tuple[float, ...]] = []
        # 次数 k の n-gram は「k - 1 個目までの番号 × vocab_size + 最後の id」を並べた表の行番号で
        # 表す。次数 1 の番号は id そのもの。
        self._keys: list[Ids] = [np.arange(vocab_size)]
        self._alpha: list[Numbers] = []  # (a - D(a)) / Σ a、n-gram ごと
        self._gamma: list[Numbers] = []  # γ、文脈ごと

    @classmethod
    def train(
        cls,
        sequences: Iterable[Sequence[int]],
        order: int = 5,
        *,
        vocab_size: int,
        bos: int,
        eos: int,
    ) -> Self:
        """id の列(bos と eos を含まない)を数えて、モデルを作る。

        Raises:
            TypeError: 列や数が整数でないとき。
            ValueError: 列が一つもない、id が範囲の外、列の中に bos か eos があるとき。
        """
        model = cls(order, vocab_size, bos, eos)
        ids, position = model._joined(sequences)
        if not len(ids):
            raise ValueError("sequences に、少なくとも一つの列を入れてください")
        grams = ids  # その位置で終わる k-gram の番号。文頭に満たなければ -1
        raw = np.bincount(ids[position > 0], minlength=vocab_size)
        for k in range(1, order + 1):
            starts = grams[position == k - 1] if k > 1 else grams[:0]  # 文頭で始まる k-gram
            if k == order:
                model._add_order(raw)
                break
            longer = np.flatnonzero(position >= k)
            keys, first, inverse, raw_longer = np.unique(
                grams[longer - 1] * vocab_size + ids[longer],
                return_index=True,
                return_inverse=True,
                return_counts=True,
            )
            left = np.bincount(grams[longer[first]], minlength=len(model._keys[-1]))
            model._add_order(left + np.bincount(starts, minlength=len(left)))
            grams = np.full(len(ids), -1)
            grams[longer] = inverse
            raw = raw_longer
            model._keys.append(keys)
        return model

    def _add_order(self, counts: Ids) -> None:
        """次の次数の調整した出現数 a (n-gram の数,) から、割り引きと重みを求める。"""
        k = len(self._alpha) + 1
        discounts = _discounts(counts)
        amounts = np.array(discounts)[np.minimum(counts, 3)]
        contexts = self._keys[-1] // self.vocab_size  # 次数 1 ではすべて 0
        size = len(self._keys[k - 2]) if k > 1 else 1
        total = np.bincount(contexts, weights=counts, minlength=size)
        taken = np.bincount(contexts, weights=amounts, minlength=size)
        with np.errstate(invalid="ignore", divide="ignore"):
            alpha = np.where(counts > 0, (counts - amounts) / total[contexts], 0.0)
            gamma = np.where(total > 0, taken / total, 1.0)  # 後に何も来ない文脈は 1
        # 行番号 -1 (見たことがない)で引くと、alpha は 0、gamma は 1 になるようにしておく。
        self._alpha.append(np.append(alpha, 0.0))
        self._gamma.append(np.append(gamma, 1.0))
        self.discounts.append(discounts)

    @property
    def counts(self) -> list[int]:
        return [len(keys) for keys in self._keys]

    def probability(self, context: Sequence[int], token: int) -> float:
        """`context` の次に `token` が来る確率。文頭からの文脈なら、先頭に `bos` を置く。

        Raises:
            TypeError, ValueError: id が整数でない、0 以上 `vocab_size` 未満でない、まだ何も学んで
                いないとき。
        """
        token = require_int(token, "token")
        history = self._checked([*context, token], "context と token")
        history = history[max(0, len(history) - self.order) :]
        return float(self._probabilities(history, np.arange(len(history)))[-1])

    def distribution(self, context: Sequence[int]) -> Numbers:
        """`context` の次に来る id の確率 (vocab_size,)。和は 1。文脈は `probability` と同じ。

        Raises:
            TypeError, ValueError: `probability` と同じ。
        """
        history = self._checked([*context], "context")
        history = history[max(0, len(history) - self.order + 1) :]
        rows = np.tile(np.append(history, 0), (self.vocab_size, 1))  # (id の数, 文脈の長さ + 1)
        rows[:, -1] = np.arange(self.vocab_size)
        position = np.tile(np.arange(rows.shape[1]), self.vocab_size)
        return self._probabilities(rows.ravel(), position).reshape(rows.shape)[:, -1]

    def log_prob(self, sequence: Sequence[int]) -> float:
        """log P(sequence eos | bos) [nat]。

        Raises:
            TypeError, ValueError: `train` の列と同じ。
        """
        return float(self.log_probs([sequence])[0])

    def log_probs(self, sequences: Iterable[Sequence[int]]) -> Numbers:
        """列ごとの log P(sequence eos | bos) [nat](一度に渡すほうがずっと速い)。

        Raises:
            TypeError, ValueError: `train` の列と同じ。
        """
        ids, position = self._joined(sequences)
        if not len(ids):
            return np.zeros(0)
        logs = np.log(np.where(position > 0, self._probabilities(ids, position), 1.0))
        return np.add.reduceat(logs, np.flatnonzero(position == 0))

    def _probabilities(self, ids: Ids, position: Ids) -> Numbers:
        """つないだ id の列の、各位置の id の確率。`position` は列の先頭からの位置。"""
        if len(self._alpha) < self.order:
            raise ValueError("まだ何も学んでいません。KneserNey.train で作ってください")
        p = np.full(len(ids), self._uniform)
        if self.bos != self.eos:
            p[ids == self.bos] = 0.0
        context = np.zeros_like(ids)  # 直前までの (k - 1)-gram の番号
        for k in range(1, self.order + 1):
            grams = np.where(context >= 0, self._find(k, context * self.vocab_size + ids), -1)
            p = self._alpha[k - 1][grams] + self._gamma[k - 1][context] * p
            context = np.where(position >= k, np.roll(grams, 1), -1)
        return p

    def _find(self, k: int, wanted: Ids) -> Ids:
        """次数 k の表での行番号。なければ -1。"""
        keys = self._keys[k - 1]
        if not len(keys):
            return np.full(len(wanted), -1)
        rows = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        return np.where(keys[rows] == wanted, rows, -1)

    def _joined(self, sequences: Iterable[Sequence[int]]) -> tuple[Ids, Ids]:
        """bos 列 eos を一本につないだもの (N,) と、それぞれの列の先頭からの位置 (N,)。"""
        flat: list[int] = []
        lengths: list[int] = []
        for sequence in sequences:
            flat.append(self.bos)
            flat.extend(sequence)
            flat.append(self.eos)
            lengths.append(len(sequence) + 2)
        ids = self._checked(flat, "sequences")
        starts = np.cumsum([0, *lengths])[:-1]
        position = np.arange(len(ids)) - np.repeat(starts, lengths)
        inside = (position > 0) & (np.repeat(lengths, lengths) - position > 1)
        if np.isin(ids[inside], (self.bos, self.eos)).any():
            raise ValueError("sequences の列には、bos と eos を入れないでください(自動で付きます)")
        return ids, position

    def _checked(self, values: list[int], name: str) -> Ids:
        """範囲の中の整数だけでできた配列にする。"""
        ids = np.asarray(values) if values else np.zeros(0, np.int64)
        booleans = {bool, np.bool_} & set(map(type, values))  # 整数と混ざると、0 と 1 になる
        if ids.ndim != 1 or ids.dtype.kind not in "iu" or booleans:
            raise TypeError(f"{name} には整数の列を渡してください: {shown(values)}")
        if len(ids) and not 0 <= ids.min() <= ids.max() < self.vocab_size:
            raise ValueError(
                f"{name} の id は 0 以上 {self.vocab_size} 未満にしてください: "
                f"{ids.min()} から {ids.max()}"
            )
        return ids.astype(np.int64)


def _discounts(counts: Ids) -> tuple[float, ...]:
    """調整した出現数から、割り引き (0, D_1, D_2, D_3+) を求める (Chen & Goodman 1999, 式 (26))。"""
    n = np.bincount(np.minimum(counts, 5), minlength=6).tolist()
    if 0 in n[1:5]:
        return FALLBACK
    y = n[1] / (n[1] + 2 * n[2])
    found = (0.0, *(r - (r + 1) * y * n[r + 1] / n[r] for r in (1, 2, 3)))
    return found if all(0 <= d <= r for r, d in enumerate(found)) else FALLBACK


def bits_per_byte(model: KneserNey, sequences: Iterable[Sequence[int]], n_bytes: int) -> float:
    """1 バイトあたりのビット数 -Σ log2 P(列 eos | bos) / `n_bytes`。

    単位(バイト、文字、サブワード)の違うモデルを比べるための物差し。`n_bytes` は、もとの文の
    UTF-8 のバイト数の合計で、eos は数えない(eos を当てるビット数は分子に入る)。

    Raises:
        TypeError, ValueError: `n_bytes` が 1 以上の整数でないとき。`log_probs` と同じとき。
    """
    n_bytes = require_int(n_bytes, "n_bytes", minimum=1)
    return float(-model.log_probs(sequences).sum() / math.log(2) / n_bytes)


class CharacterCodec:
    """文字を id にする。まれな文字は UTF-8 のバイトに綴るので、どの文も表せる。

    id 0 から 255 がバイト、次が文字(コードポイントの順)、最後の二つが `bos` と `eos`。

    Attributes:
        characters: id を持つ文字 → id。
    """

    def __init__(self, characters: Iterable[str]) -> None:
        """`characters` の文字に id を付ける。空なら、すべてをバイトに綴る。"""
        self.characters = {c: 256 + i for i, c in enumerate(sorted(set(characters)))}
        self.bos = 256 + len(self.characters)
        self.eos, self.vocab_size = self.bos + 1, self.bos + 2

    @classmethod
    def train(cls, texts: Iterable[str], min_count: int = 2) -> Self:
        """`min_count` 回以上現れる文字に id を付ける。

        Raises:
            TypeError, ValueError: 文が str でない、`min_count` が 1 以上の整数でないとき。
        """
        require_int(min_count, "min_count", minimum=1)
        counts = Counter(c for text in texts for c in require_text(text, "texts"))
        return cls(c for c, count in counts.items() if count >= min_count)

    def encode(self, text: str) -> list[int]:
        """文を id の列にする。

        Raises:
            TypeError, ValueError: str でない、単独のサロゲートを含むとき。
        """
        ids: list[int] = []
        for c in require_text(text, "text"):
            number = self.characters.get(c)
            ids.extend(c.encode()) if number is None else ids.append(number)
        return ids


def measure(train: Sequence[str], test: Sequence[str], unit: str, order: int) -> float:
    """`train` で学んだ `order`-gram の、`test` での bits per byte。

    `unit` は "byte"、"character"(2 回以上現れる文字。ほかはバイト)、"bpe"(バイトレベル BPE、語彙は
    4,096)。

    Raises:
        ValueError: `unit` がほかのもののとき。
    """
    if unit == "bpe":
        from chapter02.byte_level_bpe import ByteLevelBPE  # noqa: PLC0415

        bpe = ByteLevelBPE.train(train, 4096)
        bos, eos, size = bpe.vocab_size, bpe.vocab_size + 1, bpe.vocab_size + 2
        seen, unseen = bpe.encode_batch(train), bpe.encode_batch(test)
    elif unit in ("byte", "character"):
        codec = CharacterCodec.train(train) if unit == "character" else CharacterCodec("")
        bos, eos, size = codec.bos, codec.eos, codec.vocab_size
        seen, unseen = ([codec.encode(text) for text in texts] for texts in (train, test))
    else:
        raise ValueError(f"unit は byte、character、bpe のどれかにしてください: {shown(unit)}")
    model = KneserNey.train(seen, order, vocab_size=size, bos=bos, eos=eos)
    return bits_per_byte(model, unseen, sum(len(text.encode()) for text in test))


def main() -> None:
    """第4章の GPT と同じ分け方の Tatoeba で、単位と次数ごとの bits per byte を表示する。"""
    from chapter04.text import deduplicate, documents, split  # noqa: PLC0415

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--part", default="test", choices=["validation", "test"])
    parser.add_argument("--unit", default=["byte", "character", "bpe"], nargs="+")
    parser.add_argument("--order", default=[5], nargs="+", type=int)
    options = parser.parse_args()
    parts = split(deduplicate(documents()))
    for unit in options.unit:
        for order in options.order:
            bits = measure(parts["train"], parts[options.part], unit, order)
            print(f"{unit}\t{order}-gram\t{bits:.4f} ビット/バイト", flush=True)


if __name__ == "__main__":
    main()
