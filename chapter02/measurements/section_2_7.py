"""2.7 節(トークナイザーは本当に必要なのか)の主張の測定。

情報源は k = 2 次、p = q = 0.8 のスイッチング情報源(エントロピーレート 0.5004 nat、一記号の
エントロピー 0.6931 nat)。モデルは 1 層、d_model 16、文脈 512 の TinyGPT。シードは、記号列・重みの
初期値・切り出す場所のすべてを決める。
"""

from dataclasses import dataclass

import numpy as np
import torch

from chapter02.language_model import TinyGPT, cross_entropy, train
from chapter02.markov import MarkovSource, PairTokenizer, unigram_cross_entropy

STEPS, LATER_STEPS, VOCAB_SIZE, CONTEXT = 150, 1040, 20, 512


@dataclass(frozen=True)
class Run:
    """一回の学習の結果。損失の単位はどれも、元の一記号あたりの nat。"""

    losses: list[float]  # 学習中の各ステップの損失
    held_out: float  # 学習に使わない 100,000 記号での交差エントロピー
    best_unigram: float  # 同じ 100,000 記号での、最良のユニグラムモデルの交差エントロピー


def learn(
    seed: int,
    vocab_size: int,
    steps: int = STEPS,
    *,
    source: MarkovSource | None = None,
    context: int = CONTEXT,
    batch: int = 8,
) -> Run:
    """トークン(`vocab_size` = 2 なら文字)で小さな GPT を学習し、一記号あたりの損失を返す。

    トークンの損失 (nat/トークン) は、トークンの数 ÷ 記号の数 を掛けて一記号あたりに直す。
    """
    source = source or MarkovSource(order=2, p=0.8, q=0.8)
    rng = np.random.default_rng(seed)
    tokenizer = PairTokenizer.train(source.sample(300_000, rng), vocab_size)
    ids = tokenizer.encode(source.sample(2_000_000, rng))
    test = source.sample(100_000, rng)
    test_ids = tokenizer.encode(test)
    per_symbol = len(test_ids) / len(test)
    torch.manual_seed(seed)
    model = TinyGPT(vocab_size, context=context)
    losses = [loss * per_symbol for loss in train(model, ids, steps, seed, batch=batch)]
    return Run(
        losses,
        cross_entropy(model, test_ids) * per_symbol,
        unigram_cross_entropy(test_ids, len(test)),
    )


def steps_to_escape(run: Run, source: MarkovSource, width: int = 10) -> int:
    """損失の移動平均が、一記号のエントロピーとエントロピーレートの中間を初めて下回るステップ。

    最後まで下回らなければ、学習したステップ数を返す(遅れの下限)。
    """
    halfway = (source.unigram_entropy() + source.entropy_rate()) / 2
    means = np.convolve(run.losses, np.ones(width) / width, mode="valid")
    below = np.flatnonzero(means < halfway)
    return int(below[0]) + width if len(below) else len(run.losses)


def tokens_over_rate(seed: int) -> float:
    """20 個の BPE トークンで 150 ステップ学習した損失 ÷ エントロピーレート。"""
    return learn(seed, VOCAB_SIZE).held_out / MarkovSource().entropy_rate()


def characters_over_unigram(seed: int) -> float:
    """文字のまま 150 ステップ学習した損失 ÷ 一記号のエントロピー。"""
    return learn(seed, vocab_size=2).held_out / MarkovSource().unigram_entropy()


def characters_later_over_rate(seed: int) -> float:
    """文字のまま 1,040 ステップ学習した損失 ÷ エントロピーレート。"""
    return learn(seed, vocab_size=2, steps=LATER_STEPS).held_out / MarkovSource().entropy_rate()


def order_delay(seed: int, orders: tuple[int, int] = (1, 2)) -> float:
    """停滞を抜けるまでのステップ数の比、2 次 ÷ 1 次(文脈 64、バッチ 16、500 ステップ)。"""
    steps = []
    for order in orders:
        source = MarkovSource(order)
        run = learn(seed, vocab_size=2, steps=500, source=source, context=64, batch=16)
        steps.append(steps_to_escape(run, source))
    return steps[1] / steps[0]


def order_delay_beyond_two(seed: int) -> float:
    """停滞を抜けるまでのステップ数の比、4 次 ÷ 2 次(文脈 64、バッチ 16、500 ステップ)。"""
    return order_delay(seed, orders=(2, 4))


def token_unigram_over_rate(seed: int) -> float:
    """20 個の BPE トークンの最良のユニグラムモデルの、一記号あたりの損失 ÷ エントロピーレート。"""
    source, rng = MarkovSource(), np.random.default_rng(seed)
    tokenizer = PairTokenizer.train(source.sample(300_000, rng), VOCAB_SIZE)
    test = source.sample(300_000, rng)
    return unigram_cross_entropy(tokenizer.encode(test), len(test)) / source.entropy_rate()
