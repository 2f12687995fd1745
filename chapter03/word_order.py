"""語順の違う、小さな英日対訳を作る。どの語がどの語に対応するかが、作り方から正確にわかる。

一文は次の形をしている。英語の [ ] は省かれることがある。

    英語    主語 動詞 目的語 [in the 場所] [時] .
    日本語  [時] 主語 は [場所 で] 目的語 助詞 動詞 。

    she bought apples in the park yesterday .  →  昨日 彼女 は 公園 で りんご を 買いました 。

時は文末から文頭へ、動詞は主語の隣から文末へ動く。助詞は動詞で決まる(like なら「が」)。
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from shared.checks import require_int, shown

SUBJECTS = {
    "i": "私", "you": "あなた", "he": "彼", "she": "彼女", "we": "私たち", "they": "彼ら",
    "ken": "健", "hanako": "花子", "mother": "母", "father": "父", "grandpa": "祖父",
    "grandma": "祖母",
}  # fmt: skip
OBJECTS = {
    "cats": "猫", "dogs": "犬", "birds": "鳥", "horses": "馬", "apples": "りんご", "flowers": "花",
    "books": "本", "letters": "手紙", "pictures": "絵", "shoes": "靴", "hats": "帽子",
    "cups": "茶碗", "stones": "石", "boats": "舟", "dolls": "人形", "cakes": "ケーキ",
}  # fmt: skip
ACTIONS = {
    "saw": "見ました", "bought": "買いました", "drew": "描きました", "found": "見つけました",
    "lost": "なくしました", "sold": "売りました", "chose": "選びました", "sent": "送りました",
    "sought": "探しました", "showed": "見せました",
}  # fmt: skip
FEELINGS = {"like": "好き", "hate": "嫌い"}
MOVES = {"went": "行きました", "returned": "戻りました"}
PLACES = {
    "park": "公園", "station": "駅", "school": "学校", "bank": "銀行", "town": "町", "garden": "庭",
    "library": "図書館", "village": "村",
}  # fmt: skip
TIMES = {"yesterday": "昨日", "today": "今日", "recently": "最近", "again": "また"}

PAD, BOS, EOS = 0, 1, 2
_MARKS = ("<pad>", "<s>", "</s>")
_WORDS = (SUBJECTS, OBJECTS, ACTIONS, FEELINGS, MOVES, PLACES, TIMES)
SOURCE_WORDS = (*_MARKS, ".", "in", "to", "the", *(en for table in _WORDS for en in table))
TARGET_WORDS = (
    *_MARKS, "。", "は", "を", "が", "に", "で", "です",
    *(ja for table in _WORDS for ja in table.values()),
)  # fmt: skip
_SOURCE_IDS = {word: i for i, word in enumerate(SOURCE_WORDS)}
_TARGET_IDS = {word: i for i, word in enumerate(TARGET_WORDS)}


@dataclass(frozen=True)
class Pair:
    """対訳の一組。`alignment[i]` は、訳文の i 番の語に対応する入力の語の位置(なければ None)。"""

    source: tuple[str, ...]
    target: tuple[str, ...]
    alignment: tuple[int | None, ...]


def sentence(rng: random.Random) -> Pair:
    """一文を作る。"""
    subject = rng.choice(list(SUBJECTS))
    kind = rng.choices(["action", "feeling", "move"], [6, 2, 2])[0]
    source = [subject]
    if kind == "move":
        verb, place = rng.choice(list(MOVES)), rng.choice(list(PLACES))
        source += [verb, "to", "the", place]
        middle = [(PLACES[place], 4), ("に", None), (MOVES[verb], 1)]
    else:
        verbs = ACTIONS if kind == "action" else FEELINGS
        verb, thing = rng.choice(list(verbs)), rng.choice(list(OBJECTS))
        source += [verb, thing]
        middle = [(OBJECTS[thing], 2), ("を" if kind == "action" else "が", None), (verbs[verb], 1)]
        if kind == "feeling":
            middle.append(("です", None))
        elif rng.random() < 0.5:
            place = rng.choice(list(PLACES))
            source += ["in", "the", place]
            middle = [(PLACES[place], 5), ("で", None), *middle]
    words = [(SUBJECTS[subject], 0), ("は", None), *middle]
    if kind != "feeling" and rng.random() < 0.5:
        time = rng.choice(list(TIMES))
        words.insert(0, (TIMES[time], len(source)))
        source.append(time)
    words.append(("。", len(source)))
    return Pair((*source, "."), tuple(w for w, _ in words), tuple(i for _, i in words))


def passage(rng: random.Random, n_sentences: int) -> Pair:
    """`n_sentences` 個の文を並べた文章を作る。

    Raises:
        TypeError: `n_sentences` が整数でないとき。
        ValueError: 1 より小さいとき。
    """
    source: list[str] = []
    target: list[str] = []
    alignment: list[int | None] = []
    for _ in range(require_int(n_sentences, "n_sentences", minimum=1)):
        pair = sentence(rng)
        alignment += [None if i is None else i + len(source) for i in pair.alignment]
        source += pair.source
        target += pair.target
    return Pair(tuple(source), tuple(target), tuple(alignment))


def passages(seed: int, n: int, n_sentences: int) -> list[Pair]:
    """`n_sentences` 文の文章を `n` 個作る。同じ `seed` からは、いつも同じものができる。"""
    rng = random.Random(f"{seed}/{n_sentences}")
    return [passage(rng, n_sentences) for _ in range(require_int(n, "n", minimum=1))]


def encode_source(words: Sequence[str]) -> Tensor:
    """英語の語の列を id の列 (S,) にする。

    Raises:
        ValueError: 語彙にない語があるとき。
    """
    return _encode(words, _SOURCE_IDS, "words")


def encode_target(words: Sequence[str]) -> Tensor:
    """日本語の語の列を id の列 (T,) にする。

    Raises:
        ValueError: 語彙にない語があるとき。
    """
    return _encode(words, _TARGET_IDS, "words")


def decode_target(ids: Sequence[int]) -> list[str]:
    """id の列を日本語の語の列に戻す。"""
    return [TARGET_WORDS[i] for i in ids]


def batch(pairs: Sequence[Pair]) -> tuple[Tensor, Tensor]:
    """対訳を、詰めもの 0 で揃えた id (B, S) と、<s> と </s> で挟んだ訳文の id (B, T) にする。"""
    ends = torch.tensor([BOS]), torch.tensor([EOS])
    sources = [encode_source(pair.source) for pair in pairs]
    targets = [torch.cat([ends[0], encode_target(pair.target), ends[1]]) for pair in pairs]
    return pad_sequence(sources, True, PAD), pad_sequence(targets, True, PAD)


def lessons(seed: int, steps: int, longest: int, size: int = 96) -> list[tuple[Tensor, Tensor]]:
    """学習に使うバッチを `steps` 個、使う順に作る。

    はじめは一文だけの文章から始め、前半をかけて `longest` 文まで長くする。一つのバッチの文章は同じ
    文の数で、文の総数をおよそ `size` に揃える(短い文章なら、その分だけ多くを並べる)。
    """
    rng = random.Random(seed)
    made = []
    for step in range(require_int(steps, "steps", minimum=1)):
        limit = min(longest, 1 + 2 * longest * step // steps)
        n_sentences = max(rng.randint(1, limit), rng.randint(1, limit))  # 長いほうに重みを置く
        n = max(1, size // n_sentences)
        made.append(batch([passage(rng, n_sentences) for _ in range(n)]))
    return made


def correct_sentences(pairs: Sequence[Pair], outputs: Sequence[Sequence[str]]) -> float:
    """訳文 `outputs` のうち、正しい訳と一字も違わない文の割合(順番の同じ文どうしを比べる)。

    Raises:
        ValueError: 対訳と訳文の数が違うとき。
    """
    right = total = 0
    for pair, output in zip(pairs, outputs, strict=True):
        expected, got = (_sentences(words) for words in (pair.target, output))
        right += sum(a == b for a, b in zip(expected, got, strict=False))
        total += len(expected)
    return right / total


def alignment_accuracy(pairs: Sequence[Pair], weights: Sequence[Tensor]) -> float:
    """訳文の内容語のうち、重みが最大の入力語が正しい対応先である割合。

    Args:
        pairs: 対訳。
        weights: 文章ごとの注意の重み (T, S)。行 i は、訳文の i 番の語を選ぶときのもの。

    Raises:
        ValueError: 対訳と重みの数が違うとき。
    """
    hits = [
        int(weight[i].argmax()) == place
        for pair, weight in zip(pairs, weights, strict=True)
        for i, place in enumerate(pair.alignment)
        if place is not None and pair.target[i] != "。"
    ]
    return sum(hits) / len(hits)


def _sentences(words: Sequence[str]) -> list[str]:
    """語の列を「。」で区切った文の list(「。」で終わらない最後の切れ端は除く)。"""
    return "".join(words).split("。")[:-1]


def _encode(words: Sequence[str], ids: dict[str, int], name: str) -> Tensor:
    unknown = [word for word in words if word not in ids]
    if unknown:
        raise ValueError(f"{name} に、語彙にない語があります: {shown(unknown[0])}")
    return torch.tensor([ids[word] for word in words])
