"""4.1.2 節(GPT-2)の主張の測定。

- 深さ・三つの形: chapter03.word_order の小さな和文で学習する。シードは、はじめの重みと文を決める。
- zero-shot: Tatoeba の検証と試験の文から、正しい文と、少しだけ壊した文の組を作る。シードは、使う文
  を決める(大きさを比べる主張では、はじめの重みと学習の順も)。
"""

import itertools
import math
import random
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from chapter03 import word_order
from chapter03.transformer import Transformer, TransformerConfig
from chapter03.word_order import BOS, EOS, PAD, TARGET_WORDS, encode_target, sentence
from chapter04 import japanese_gpt, kneser_ney
from chapter04.bert import Bert, BertConfig, mask_tokens
from chapter04.gpt import GPT, GPTConfig
from chapter04.japanese_gpt import JapaneseGPT
from chapter04.kneser_ney import CharacterCodec, KneserNey
from chapter04.loss import next_token_loss
from chapter04.text import IGNORED, PackedBatches, deduplicate, documents, split
from shared.device import seed_everything
from shared.training import Result, train

Words = tuple[str, ...]
Swap = tuple[str, str]  # (もとの文, 壊した文)
LogProbs = Callable[[Sequence[str]], Sequence[float]]

# ---- 小さな和文 -----------------------------------------------------------------------------

MASK = len(TARGET_WORDS)  # 穴を表す id
VOCAB = MASK + 1
CONTEXT, BATCH = 16, 64


def rows(sentences: Sequence[Words]) -> Tensor:
    """文を、<s> と </s> で挟んで詰めもので揃えた id (B, T) にする。"""
    ids = [torch.tensor([BOS, *encode_target(words).tolist(), EOS]) for words in sentences]
    return pad_sequence(ids, True, PAD)


def batches(seed: int, avoid: Collection[Words] = (), size: int = BATCH) -> Iterator[Tensor]:
    """`avoid` にない文を `size` 個ずつ、限りなく作る。"""
    rng = random.Random(seed)
    made = (sentence(rng).target for _ in itertools.count())
    kept = (words for words in made if words not in avoid)
    while True:
        yield rows(list(itertools.islice(kept, size)))


def lm_loss(model: GPT, ids: Tensor) -> Tensor:
    """次の語の交差エントロピー [nat]。詰めものは数えない。"""
    logits = model(ids[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), ignore_index=PAD)


# ---- 深さ -----------------------------------------------------------------------------------

LAYERS, DEEP_STEPS, DEEP_RATE = 12, 100, 3e-3


def train_deep(norm_first: bool, seed: int, warmup: int = 0, *, xavier: bool = True) -> Result:
    """12 層の GPT を 100 歩学習する。学習率は、`warmup` 歩で上げた後(0 なら初めから)一定。

    層の重みは Xavier の初期値か、`xavier=False` なら GPT のもの。
    """
    seed_everything(seed)
    config = GPTConfig(
        vocab_size=VOCAB, context=CONTEXT, d_model=32, n_heads=2, n_layers=LAYERS, dropout=0.0,
        norm_first=norm_first,
    )  # fmt: skip
    model = GPT(config)
    for parameter in model.layers.parameters():
        if xavier and parameter.dim() == 2:
            torch.nn.init.xavier_uniform_(parameter)
    return train(
        model, batches(seed), lm_loss, steps=DEEP_STEPS, clip=1.0, progress=False,
        rate=lambda step: DEEP_RATE * min(1.0, step / warmup if warmup else 1.0),
    )  # fmt: skip


@torch.no_grad()
def context_gain(model: GPT, seed: int) -> float:
    """前の語を読むことで減らせた損失 [nat/語]: 位置ごとの語の頻度だけで当てる損失との差。"""
    ids = next(batches(10_000 + seed, size=1000))
    return position_entropy(ids[:, 1:]) - float(lm_loss(model, ids))


def position_entropy(targets: Tensor) -> float:
    """位置ごとの語の頻度だけを知る者の、交差エントロピー [nat/語]。"""
    total, count = 0.0, 0
    for column in targets.T:
        counts = column[column != PAD].bincount().double()
        counts = counts[counts > 0]
        total -= float((counts * (counts / counts.sum()).log()).sum())
        count += int(counts.sum())
    return total / count


def pre_ln_depth(seed: int) -> float:
    """ウォームアップなしで減らせた損失の比、post-LN ÷ pre-LN。"""
    post, pre = (context_gain(train_deep(first, seed).model, seed) for first in (False, True))  # pyright: ignore
    return post / pre if pre > 0 else 1.0  # pre-LN も学べなければ、主張は成り立たない


@torch.no_grad()
def stream_sizes(n_layers: int, seed: int, scaled: bool = True) -> list[float]:
    """初期化したばかりの pre-LN の GPT の、各層の出口の成分の 2 乗の平均。

    `scaled=False` では、残差に足す写像の 1/sqrt(2 n_layers) 倍をやめる。
    """
    seed_everything(seed)
    config = GPTConfig(vocab_size=100, context=32, d_model=128, n_heads=4, n_layers=n_layers)
    model, sizes = GPT(config).eval(), []
    for layer in model.layers:
        if not scaled:
            for weight in (layer.self_attention.out.weight, layer.ffn.outer.weight):  # pyright: ignore
                weight.mul_(math.sqrt(2 * n_layers))  # pyright: ignore
        layer.register_forward_hook(
            lambda module, given, out: sizes.append(float(out.square().mean()))
        )
    model.hidden(torch.randint(100, (1, 32)))
    return sizes


def scaled_growth(seed: int) -> float:
    """倍率つきの初期値での、最後の層の出口の大きさ、48 層 ÷ 6 層。"""
    return stream_sizes(48, seed)[-1] / stream_sizes(6, seed)[-1]


# ---- 三つの形 --------------------------------------------------------------------------------

PARTICLES = ("が", "を")
CANDIDATES = encode_target(PARTICLES)
HOLE = 4  # <s> 主語 は 目的語 【助詞】 述語 …
SIZE: dict[str, Any] = {"d_model": 48, "n_heads": 4, "n_layers": 2}
FORM_STEPS, FORM_RATE = 300, 2e-3
TESTED = 150  # 試験の文の数(助詞ごと)
TRAVELLER = ("私", "は", "猫", "が", "好き", "です", "。")


def tested_sentences(seed: int) -> list[Words]:
    """「主語 は 目的語 助詞 述語」の文を、助詞が「が」のものと「を」のものから同じ数だけ選ぶ。

    左の「主語 は 目的語」だけでは助詞が決まらない。先頭は「私は猫が好きです」。
    """
    tables = (word_order.SUBJECTS, word_order.OBJECTS, word_order.FEELINGS, word_order.ACTIONS)
    subjects, objects, feelings, actions = (tuple(table.values()) for table in tables)
    starts = list(itertools.product(subjects, ["は"], objects))
    likes = [(*start, "が", verb, "です", "。") for start in starts for verb in feelings]
    acts = [(*start, "を", verb, "。") for start in starts for verb in actions]
    likes.remove(TRAVELLER)
    rng = random.Random(seed)
    return [TRAVELLER, *rng.sample(likes, TESTED - 1), *rng.sample(acts, TESTED)]


def holed(sentences: Sequence[Words]) -> tuple[Tensor, Tensor]:
    """助詞を穴にした id (B, T) と、穴に入る id (B,)。"""
    ids = rows(sentences)
    answers = ids[:, HOLE].clone()
    ids[:, HOLE] = MASK
    return ids, answers


def _rate(step: int) -> float:
    return FORM_RATE * min(step / 40, 1.0, (FORM_STEPS + 1 - step) / 100)


def train_gpt(seed: int, avoid: Collection[Words]) -> GPT:
    """デコーダーだけ: 次の語を当てる。"""
    seed_everything(seed)
    model = GPT(GPTConfig(vocab_size=VOCAB, context=CONTEXT, dropout=0.0, **SIZE))
    train(model, batches(seed, avoid), lm_loss, steps=FORM_STEPS, rate=_rate, progress=False)
    return model.eval()


def train_bert(seed: int, avoid: Collection[Words]) -> Bert:
    """エンコーダーだけ: 15 % の穴を当てる(80/10/10)。"""
    generator = seed_everything(seed)
    model = Bert(BertConfig(vocab_size=VOCAB, context=CONTEXT, dropout=0.0, **SIZE))

    def loss(model: Bert, ids: Tensor) -> Tensor:
        inputs, labels = mask_tokens(ids, VOCAB, MASK, (PAD, BOS, EOS), generator)
        logits = model(inputs, mask=ids != PAD)
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)

    train(model, batches(seed, avoid), loss, steps=FORM_STEPS, rate=_rate, progress=False)
    return model.eval()


def train_seq2seq(seed: int, avoid: Collection[Words]) -> Transformer:
    """エンコーダー・デコーダー: 一語を穴にした文を読み、穴の語を書く。"""
    generator = seed_everything(seed)
    model = Transformer(
        TransformerConfig(
            src_vocab_size=VOCAB, tgt_vocab_size=VOCAB, d_ff=4 * SIZE["d_model"], dropout=0.0,
            max_len=CONTEXT, norm_first=True, **{**SIZE, "n_layers": 1},
        )
    )  # fmt: skip

    def loss(model: Transformer, ids: Tensor) -> Tensor:
        place = (ids > EOS).double().multinomial(1, generator=generator)  # (B, 1)
        words = ids.gather(1, place)
        given = torch.cat([torch.full_like(words, BOS), words], dim=1)  # <s> 語
        wanted = torch.cat([words, torch.full_like(words, EOS)], dim=1)  # 語 </s>
        logits = model(ids.scatter(1, place, MASK), given)
        return F.cross_entropy(logits.flatten(0, 1), wanted.flatten())

    train(model, batches(seed, avoid), loss, steps=FORM_STEPS, rate=_rate, progress=False)
    return model.eval()


def choose(logits: Tensor) -> Tensor:
    """logits (B, V) のうち、候補の助詞で最大のもの (B,)。"""
    return CANDIDATES[logits[:, CANDIDATES].argmax(dim=-1)]


@torch.no_grad()
def fill_bert(model: Bert, ids: Tensor) -> Tensor:
    """穴の位置の logits から選ぶ (B,)。左右の両方が見える。"""
    return choose(model(ids, mask=ids != PAD)[:, HOLE])


@torch.no_grad()
def fill_seq2seq(model: Transformer, ids: Tensor) -> Tensor:
    """穴のある文をエンコーダーで読み、デコーダーの一語目を選ぶ (B,)。"""
    return choose(model(ids, ids.new_full((len(ids), 1), BOS))[:, 0])


@torch.no_grad()
def fill_left(model: GPT, ids: Tensor) -> Tensor:
    """穴の左だけを読み、次の語を選ぶ (B,)。"""
    return choose(model(ids[:, :HOLE])[:, -1])


@torch.no_grad()
def fill_by_likelihood(model: GPT, ids: Tensor) -> Tensor:
    """候補を一つずつ入れた文の全体の log P を比べて選ぶ (B,)。"""
    scores = []
    for candidate in CANDIDATES.tolist():
        filled = ids.clone()
        filled[:, HOLE] = candidate
        scores.append(sentence_scores(model, filled))
    return CANDIDATES[torch.stack(scores).argmax(dim=0)]


def sentence_scores(model: GPT, ids: Tensor) -> Tensor:
    """文 (B, T) の log P [nat] (B,)。詰めものは数えない。"""
    log_p = model(ids[:, :-1]).log_softmax(dim=-1).gather(-1, ids[:, 1:, None])[..., 0]
    return (log_p * (ids[:, 1:] != PAD)).sum(dim=1)


def bidirectional_gain(seed: int) -> float:
    """左だけでは決まらない助詞の正答率の差、BERT - 穴の左だけを読む GPT。"""
    tested = tested_sentences(seed)
    ids, answers = holed(tested)
    both = fill_bert(train_bert(seed, set(tested)), ids) == answers
    left = fill_left(train_gpt(seed, set(tested)), ids) == answers
    return float(both.float().mean() - left.float().mean())


# ---- zero-shot -------------------------------------------------------------------------------

PAIRS = 150  # 助詞の組の数(「が」の文と「を」の文のそれぞれ)
_EITHER = re.compile("たい|たく|たかっ|でき|れ[るたま]|[欲ほ]し|好き|嫌い|分か|わか|なが")
_CLAUSE = re.compile("([^はをが、]+は)([^はをが、]+を)([^はをが、。？！]+)([。？！])")


@cache
def parts() -> dict[str, list[str]]:
    """Tatoeba の和文を、配ってある GPT の学習と同じように分けたもの。"""
    return split(deduplicate(documents()))


def held_out() -> list[str]:
    """学習に使っていない文。"""
    return parts()["validation"] + parts()["test"]


def particle_pairs(sentences: Sequence[str], seed: int, n: int = PAIRS) -> list[Swap]:
    """「が」か「を」を一つだけ含む文と、それをもう一方に替えた文の組。二つの向きを同じ数にする。

    「〜が欲しい」のように、どちらも言える形を含む文は除く。
    """
    groups: list[list[Swap]] = []
    for particle, other in (("を", "が"), ("が", "を")):
        noun = re.compile(f"[一-龠ァ-ヶー々]{particle}")
        found = [
            (text, text.replace(particle, other))
            for text in sentences
            if len(re.findall("[をが]", text)) == 1
            and noun.search(text)
            and not _EITHER.search(text)
        ]
        groups.append(found)
    rng, n = random.Random(seed), min(n, *map(len, groups))
    return [swap for group in groups for swap in rng.sample(group, n)]


def order_pairs(sentences: Sequence[str]) -> list[Swap]:
    """「〜は〜を…。」の形の文と、目的語と述語を入れ替えた「〜は…〜を。」の組。"""
    matches = [_CLAUSE.fullmatch(text) for text in sentences]
    return [(m[0], m[1] + m[3] + m[2] + m[4]) for m in matches if m]


def preferred(log_probs: LogProbs, swaps: Sequence[Swap]) -> float:
    """もとの文に、壊した文より高い確率を与える割合。"""
    scores = log_probs([text for swap in swaps for text in swap])
    right = [a > b for a, b in zip(scores[::2], scores[1::2], strict=True)]
    return sum(right) / len(right)


def of_stored(gpt: JapaneseGPT) -> LogProbs:
    """文の log P(終わりの区切りも含む)を、配ってある GPT で求める関数。"""

    def log_probs(texts: Sequence[str]) -> Sequence[float]:
        encoded = gpt.tokenizer.encode_batch(texts)
        return japanese_gpt.log_probs(gpt.model, [[gpt.end, *ids, gpt.end] for ids in encoded])

    return log_probs


@cache
def _stored() -> JapaneseGPT:
    return japanese_gpt.load()


def zero_shot_particle(seed: int) -> float:
    """配ってある GPT が、正しい助詞の文を選ぶ割合。"""
    return preferred(of_stored(_stored()), particle_pairs(held_out(), seed))


SMALL: dict[str, Any] = {"d_model": 16, "n_layers": 1}
LARGE: dict[str, Any] = {"d_model": 64, "n_layers": 2}


def zero_shot_larger(seed: int) -> float:
    """文字の GPT を同じ歩数だけ学習したときの、正しい助詞を選ぶ割合の差、大 - 小。"""
    swaps = particle_pairs(held_out(), seed)
    large, small = (preferred(of_characters(size, seed), swaps) for size in (LARGE, SMALL))
    return large - small


def of_characters(size: dict[str, Any], seed: int, steps: int = 300) -> LogProbs:
    """文字の GPT を `steps` 歩学習し、文の log P を求める関数を返す。"""
    codec, ids = _characters()
    generator = seed_everything(seed)
    config = GPTConfig(
        vocab_size=codec.vocab_size, context=32, n_heads=size["d_model"] // 16, dropout=0.0, **size
    )
    model = GPT(config)
    train(
        model, PackedBatches(ids, codec.eos, 32, 32, generator),
        lambda model, batch: next_token_loss(model, batch["inputs"], batch["targets"]),
        steps=steps, rate=lambda step: 3e-3 * min(step / 30, 1.0), clip=1.0, progress=False,
    )  # fmt: skip
    model.eval()

    def log_probs(texts: Sequence[str]) -> Sequence[float]:
        encoded = [[codec.eos, *codec.encode(text), codec.eos] for text in texts]
        return japanese_gpt.log_probs(model, encoded)

    return log_probs


@cache
def _characters() -> tuple[CharacterCodec, list[list[int]]]:
    chosen = parts()["train"][:40_000]
    codec = CharacterCodec.train(chosen, min_count=20)
    return codec, [codec.encode(text) for text in chosen]


# ---- バイトあたりのビット数 -------------------------------------------------------------------


def bits_ratio(seed: int) -> float:
    """ビット/バイトの比、配ってある GPT ÷ 文字の 5-gram(試験の文を三つに分けた、seed 番目)。"""
    texts = parts()["test"][seed % 3 :: 3]
    codec, model = _five_gram()
    n_bytes = sum(len(text.encode()) for text in texts)
    baseline = kneser_ney.bits_per_byte(model, [codec.encode(text) for text in texts], n_bytes)
    return _stored().bits_per_byte(texts) / baseline


@cache
def _five_gram() -> tuple[CharacterCodec, KneserNey]:
    learned = parts()["train"]
    codec = CharacterCodec.train(learned)
    ids = (codec.encode(text) for text in learned)
    model = KneserNey.train(ids, 5, vocab_size=codec.vocab_size, bos=codec.bos, eos=codec.eos)
    return codec, model
