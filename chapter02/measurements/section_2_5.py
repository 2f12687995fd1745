"""2.5 節(SentencePiece)の主張の測定。シードは、学習と検証に使う文の選び方を決める。"""

import io

import numpy as np
import sentencepiece as spm

from chapter02.unigram import Unigram
from shared import datasets

VOCAB_SIZE = 8000


def _split(language: str, seed: int, n_train: int, n_test: int) -> tuple[list[str], list[str]]:
    """シードで選んだ (学習文, 検証文)。同じ文は除いてあり、両者は重ならない。"""
    sentences = sorted(set(datasets.tatoeba_sentences(language)))
    order = np.random.default_rng(seed).permutation(len(sentences))
    chosen = [sentences[i] for i in order[: n_train + n_test]]
    return chosen[:n_train], chosen[n_train:]


def _random_strings(seed: int, n: int) -> list[str]:
    """Unicode の全域から 1-20 文字を選んだ文字列(サロゲートを除く)。"""
    rng = np.random.default_rng(seed)
    strings = []
    for length in rng.integers(1, 21, size=n):
        codes = rng.integers(1, 0x110000 - 0x800, size=length)
        strings.append("".join(chr(c + 0x800 if c >= 0xD800 else c) for c in codes.tolist()))
    return strings


def not_restored(seed: int) -> float:
    """decode(encode(x)) が normalize(x) の空白を戻したものと違う文の割合。"""
    train, test_ja = _split("ja", seed, 20_000, 2_000)
    _, test_en = _split("en", seed, 0, 2_000)
    model = Unigram.train(train, 4000, byte_fallback=True)
    texts = [*test_ja, *test_en, *_random_strings(seed, 2_000)]
    wrong = sum(model.decode(model.encode(x)) != readable(model.normalize(x)) for x in texts)
    return wrong / len(texts)


def readable(normalized: str) -> str:
    """正規化した文字列の `▁` を空白に戻し、文頭に足した 1 個を取り除く。"""
    return normalized.replace("▁", " ").removeprefix(" ")


def train_library(texts: list[str], model_type: str, vocab_size: int = VOCAB_SIZE) -> bytes:
    """ライブラリー sentencepiece で学習した .model の中身(1 スレッド、既定の設定)。"""
    model = io.BytesIO()
    spm.SentencePieceTrainer.Train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type=model_type,
        vocab_size=vocab_size,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def unigram_over_bpe(seed: int) -> float:
    """検証文の記号数の比、ユニグラム(本リポジトリー)÷ BPE(ライブラリー)。"""
    train, test = _split("ja", seed, 40_000, 5_000)
    unigram = Unigram.train(train, VOCAB_SIZE)
    bpe = spm.SentencePieceProcessor(model_proto=train_library(train, "bpe"))
    return sum(len(unigram.encode(x)) for x in test) / sum(len(bpe.encode(x)) for x in test)
