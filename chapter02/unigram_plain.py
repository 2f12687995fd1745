"""Kudo (2018) 3.2 節の数式を、そのまま短く書いたもの。

小さな例を手で追うことと、速い実装を確かめることに使う。大きなコーパスには `Unigram.train` を使う。
"""

import math
from collections.abc import Iterable, Iterator, Mapping

from chapter02.unigram import Unigram
from shared.checks import require_text


def segmentations(text: str, vocabulary: Iterable[str]) -> Iterator[list[str]]:
    """`text` を語彙の断片に分けるすべての分割 S(X) を列挙する(最大 2^(文字数 - 1) 個)。"""
    vocabulary = set(vocabulary)
    if not require_text(text, "text"):
        yield []
    for end in range(1, len(text) + 1):
        if text[:end] in vocabulary:
            for rest in segmentations(text[end:], vocabulary):
                yield [text[:end], *rest]


def corpus_log_likelihood(probabilities: Mapping[str, float], texts: Iterable[str]) -> float:
    """対数尤度 L = Σ_s log Σ_{x ∈ S(X^(s))} P(x) [nat] を返す。EM 算法が大きくする量である。"""
    model = Unigram.from_probabilities(probabilities)
    return sum(model.log_likelihood(text) for text in texts)


def em_step(probabilities: Mapping[str, float], texts: Iterable[str]) -> dict[str, float]:
    """EM 算法を 1 回進めた確率を返す。L は決して下がらない。

    E ステップで期待回数 c(v) = Σ_s Σ_x P(x | X^(s)) #(v, x) を求め、M ステップで
    p(v) = c(v) / Σ_u c(u) とする。確率が 0 になった断片(浮動小数点の下限を下回ったものも)
    は語彙から外れる。
    """
    model = Unigram.from_probabilities(probabilities)
    counts = dict.fromkeys(probabilities, 0.0)
    for text in texts:
        for piece, count in model.expected_counts(text).items():
            counts[piece] = counts.get(piece, 0.0) + count
    total = sum(counts[piece] for piece in probabilities)
    new = {piece: counts[piece] / total for piece in probabilities}
    return {piece: p for piece, p in new.items() if p > 0.0}


def pruning_losses(probabilities: Mapping[str, float], texts: Iterable[str]) -> dict[str, float]:
    """2 文字以上の断片それぞれについて、それを語彙から除いたときの L の減少 loss_i [nat] を返す。

    論文のとおり、ほかの断片の確率は変えずに、除く前と後の L を比べる。1 文字の断片は、未知の文字を
    作らないために除かないので、結果に含めない。
    """
    texts = list(texts)
    before = corpus_log_likelihood(probabilities, texts)
    losses: dict[str, float] = {}
    for piece in probabilities:
        if len(piece) > 1:
            without = {other: p for other, p in probabilities.items() if other != piece}
            losses[piece] = before - corpus_log_likelihood(without, texts)
    return losses


def path_log_prob(pieces: Iterable[str], probabilities: Mapping[str, float]) -> float:
    """分割 1 つの対数確率 log P(x) = Σ log p(x_i) [nat] を返す。"""
    return sum(math.log(probabilities[piece]) for piece in pieces)
