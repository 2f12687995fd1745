"""chapter04.kneser_ney: 漸化式を素直に書いた実装、手計算、和が 1 になることと照らし合わせる。"""

import itertools
import math
import random
from collections import Counter, defaultdict

import numpy as np
import pytest

from chapter02.byte_level_bpe import ByteLevelBPE
from chapter04.kneser_ney import (
    FALLBACK,
    CharacterCodec,
    KneserNey,
    bits_per_byte,
    measure,
)
from shared import datasets


class PlainKneserNey:
    """論文の漸化式を、組をキーにした辞書だけで書いたもの。"""

    def __init__(self, sequences, order, vocab_size, bos, eos):
        self.order, self.never = order, None if bos == eos else bos
        self.n_tokens = vocab_size - (bos != eos)
        sentences = [(bos, *sequence, eos) for sequence in sequences]
        self.tables = []
        for k in range(1, order + 1):
            raw, left = Counter(), defaultdict(set)
            starting = Counter()
            for sentence in sentences:
                for end in range(max(1, k - 1), len(sentence)):
                    gram = sentence[end - k + 1 : end + 1]
                    raw[gram] += 1
                    if end - k + 1 == 0:
                        starting[gram] += 1
                    else:
                        left[gram].add(sentence[end - k])
            table = raw if k == order else Counter({g: len(v) for g, v in left.items()}) + starting
            self.tables.append(table)
        self.discounts = [self.discount(table) for table in self.tables]

    @staticmethod
    def discount(table):
        n1, n2, n3, n4 = (sum(c == r for c in table.values()) for r in (1, 2, 3, 4))
        if not (n1 and n2 and n3 and n4):
            return FALLBACK
        y = n1 / (n1 + 2 * n2)
        found = (0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
        return found if all(0 <= d <= r for r, d in enumerate(found)) else FALLBACK

    def probability(self, context, token):
        if token == self.never:
            return 0.0
        return self.p(tuple(context)[max(0, len(context) - self.order + 1) :], token)

    def p(self, h, w):
        table, d = self.tables[len(h)], self.discounts[len(h)]
        followers = {g[-1]: c for g, c in table.items() if g[:-1] == h}
        lower = self.p(h[1:], w) if h else 1 / self.n_tokens
        total = sum(followers.values())
        if not total:
            return lower
        gamma = sum(d[min(c, 3)] for c in followers.values()) / total
        count = followers.get(w, 0)
        return (count - d[min(count, 3)]) / total + gamma * lower


def random_sequences(n, vocab, seed=0, longest=8):
    """近い id が続きやすく、偏りのある列。長さ 0 の列も混ざる。"""
    rng = random.Random(seed)
    found = []
    for _ in range(n):
        sequence = []
        for _ in range(rng.randrange(longest)):
            step = rng.choice([0, 1, 1, 2, rng.randrange(vocab)])
            sequence.append(((sequence[-1] if sequence else 0) + step) % vocab)
        found.append(sequence)
    return found


def small(order=3, n=60, vocab=5, same=False):
    """id 0 から vocab - 1、bos = vocab、eos = vocab + 1(same なら bos と同じ)の小さなモデル。"""
    sequences = random_sequences(n, vocab)
    eos = vocab if same else vocab + 1
    keywords = {"vocab_size": eos + 1, "bos": vocab, "eos": eos}
    return sequences, keywords, KneserNey.train(sequences, order, **keywords)


# ---- 手計算 -----------------------------------------------------------------------------


def test_unigram_by_hand():
    """0 が 3 回、1 が 1 回、eos が 2 回。n_4 = 0 なので割り引きは (0.5, 1, 1.5)。"""
    model = KneserNey.train([[0, 0], [0, 1]], 1, vocab_size=5, bos=3, eos=4)
    assert model.discounts == [FALLBACK]
    back = (1.5 + 0.5 + 1.0) / 6 / 4  # γ / 出うる id (0, 1, 2, eos) の数
    expected = [(3 - 1.5) / 6 + back, (1 - 0.5) / 6 + back, back, 0.0, (2 - 1.0) / 6 + back]
    assert [model.probability([], w) for w in range(5)] == pytest.approx(expected)
    assert model.log_prob([2]) == pytest.approx(math.log(expected[2] * expected[4]))


def test_bigram_by_hand():
    """p(1 | 0)。0 の後は 0 が 1 回、1 が 1 回、eos が 1 回。下の次数は左に来る種類の数で数える。"""
    model = KneserNey.train([[0, 0], [0, 1]], 2, vocab_size=5, bos=3, eos=4)
    # 左に来る種類: 0 は {bos, 0}、1 は {0}、eos は {0, 1}
    low = (1 - 0.5) / 5 + (1.0 + 0.5 + 1.0) / 5 / 4
    assert model.probability([], 1) == pytest.approx(low)
    assert model.probability([0], 1) == pytest.approx((1 - 0.5) / 3 + 3 * 0.5 / 3 * low)
    assert model.probability([2], 1) == pytest.approx(low)  # 見たことのない文脈
    start = (2 - 1.0) / 5 + 2.5 / 5 / 4  # p(0)
    assert model.probability([3], 0) == pytest.approx((2 - 1.0) / 2 + 1.0 / 2 * start)


def test_continuation_counts_are_not_frequencies():
    """「フランシスコ」は「サン」の後にだけ多く現れる。頻度が低くても、左の種類が多い語が勝つ。"""
    san, francisco, tea = 0, 1, 2
    sequences = [[san, francisco]] * 20 + [[w, tea] for w in (3, 4, 5, 6, 7)]
    model = KneserNey.train(sequences, 2, vocab_size=10, bos=8, eos=9)
    assert model.probability([1], tea) > model.probability([1], francisco)
    assert model.probability([san], francisco) > 0.8


def test_discounts_by_hand():
    """n_1 = 4、n_2 = 2、n_3 = 1、n_4 = 1: Y = 1/2、D = (1/2, 5/4, 1)。"""
    counts = [1, 1, 1, 1, 2, 2, 3, 4, 9]
    sequences = [[w] for w, c in enumerate(counts) for _ in range(c - (w == 8))]
    model = KneserNey.train(sequences, 1, vocab_size=11, bos=9, eos=10)
    # eos は 23 回現れるが、割り引きは 4 回までの種類数だけで決まる
    assert model.discounts == [pytest.approx((0, 0.5, 1.25, 1.0))]


def test_estimates_out_of_range_are_replaced():
    """n_2 が多いと D_1 = 1 - 2 Y n_2 / n_1 は 0 以上でも、D_2 が負になりうる。"""
    counts = [1] * 9 + [2] + [3] * 5 + [4]
    sequences = [[w] for w, c in enumerate(counts) for _ in range(c)]
    model = KneserNey.train(sequences, 1, vocab_size=18, bos=16, eos=17)
    assert model.discounts == [FALLBACK]


# ---- 独立な実装と -----------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("same", [False, True])
def test_equals_plain_recursion(order, same):
    """すべての短い文脈(文頭のもの、見たことのないものも)で、辞書による実装と一致する。"""
    sequences, keywords, model = small(order, same=same)
    plain = PlainKneserNey(sequences, order, **keywords)
    assert model.discounts == [pytest.approx(d) for d in plain.discounts]
    rng = random.Random(1)
    contexts = [list(c) for k in range(3) for c in itertools.product(range(6), repeat=k)]
    contexts += [[5, *(rng.randrange(5) for _ in range(rng.randrange(7)))] for _ in range(30)]
    contexts += [s[:k] for s in sequences[:10] for k in range(len(s))]
    for context in contexts:
        found = model.distribution(context)
        tokens = range(keywords["vocab_size"])
        expected = [plain.probability(context, token) for token in tokens]
        assert found.tolist() == pytest.approx(expected, abs=1e-12)
        assert model.probability(context, tokens[-1]) == found[-1]


def test_some_discounts_are_estimated():
    """上の比較が、式で決まる割り引きと、決まらない割り引きの両方を含むこと。"""
    discounts = small(4)[2].discounts
    assert FALLBACK in discounts
    assert any(d != FALLBACK for d in discounts)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("same", [False, True])
def test_sums_to_one(order, same):
    """どの文脈でも、語彙の全体での和は 1。bos の確率は 0(eos と同じ id のときを除く)。"""
    _, keywords, model = small(order, same=same)
    contexts = [list(c) for k in range(4) for c in itertools.product(range(6), repeat=k)]
    for context in [*contexts, [0, 1, 2, 3, 4, 0, 1], [5, 0, 1, 1, 2]]:
        p = model.distribution(context)
        assert p.shape == (keywords["vocab_size"],)
        assert p.sum() == pytest.approx(1.0, abs=1e-12)
        assert (p[5] > 0) == same
        assert p[:5].min() > 0


def test_log_prob_is_the_product_of_probabilities():
    """log P は、文頭の bos から eos までの積の対数。何文を一度に渡しても変わらない。"""
    sequences, _, model = small(4)
    tests = [[], [0], [4, 4, 4, 4, 4, 4], *sequences[:5], [3, 1, 4, 1, 0, 2]]
    for sequence, found in zip(tests, model.log_probs(tests), strict=True):
        ids = [5, *sequence, 6]
        p = [model.probability(ids[:t], ids[t]) for t in range(1, len(ids))]
        assert found == pytest.approx(sum(map(math.log, p)))
        assert model.log_prob(sequence) == pytest.approx(found)
    assert model.log_probs([]).tolist() == []


def test_only_the_last_tokens_matter():
    """次数 n のモデルは、直前の n - 1 個だけを見る。"""
    _, _, model = small(3)
    assert model.probability([0, 2, 1, 2], 3) == model.probability([4, 4, 1, 2], 3)
    assert model.probability([1, 1, 2], 3) == model.probability([1, 2], 3)
    assert model.probability([0, 2], 3) != model.probability([1, 2], 3)


def test_numpy_input_and_order_of_sentences():
    """NumPy の列でも、文の順を変えても、同じモデルになる。"""
    sequences, keywords, model = small(3)
    other = KneserNey.train([np.array(s, np.int32) for s in sequences[::-1]], 3, **keywords)
    test = [0, 1, 2, 3]
    assert other.log_prob(test) == pytest.approx(model.log_prob(test), abs=1e-12)
    assert other.counts == model.counts


def test_order_longer_than_every_sentence():
    """どの文よりも長い次数でも動き、使える次数までのモデルになる。"""
    model = KneserNey.train([[0], [1]], 9, vocab_size=4, bos=2, eos=3)
    other = KneserNey.train([[0], [1]], 4, vocab_size=4, bos=2, eos=3)
    for context in ([], [0], [2, 0], [2, 0, 1]):
        assert model.distribution(context).sum() == pytest.approx(1.0)
        assert model.distribution(context).tolist() == other.distribution(context).tolist()


# ---- bits per byte と文字 ---------------------------------------------------------------


def test_bits_per_byte():
    """-Σ log P / ln 2 / バイト数。何も知らない 1-gram に近いモデルでは log2(id の数) になる。"""
    _, _, model = small(2)
    tests = [[0, 1], [2]]
    expected = -sum(model.log_prob(s) for s in tests) / math.log(2) / 7
    assert bits_per_byte(model, tests, 7) == pytest.approx(expected)
    with pytest.raises(ValueError, match="n_bytes は 1 以上"):
        bits_per_byte(model, tests, 0)


def test_character_codec_spells_rare_characters():
    """2 回以上現れる文字は一つの id、ほかは UTF-8 のバイト。id は一つの文に戻る。"""
    codec = CharacterCodec.train(["猫が猫を", "を見た"])
    assert codec.characters == {"を": 256, "猫": 257}
    assert codec.encode("猫が") == [257, *"が".encode()]
    assert (codec.bos, codec.eos, codec.vocab_size) == (258, 259, 260)
    letters = "zyxwvutsrqponmlkjihgfedcba"
    assert list(CharacterCodec(letters).characters) == sorted(letters)  # 並びは集合の順によらない
    assert CharacterCodec("").encode("猫A") == list("猫A".encode())
    spelled = {number: c.encode() for c, number in codec.characters.items()}
    text = "猫を見た、🐈。"
    data = b"".join(spelled.get(i, bytes([i]) if i < 256 else b"") for i in codec.encode(text))
    assert data.decode() == text


def test_measure_counts_in_pieces_of_4096():
    """BPE の単位: 素直な漸化式の log2 の和を、もとの文のバイト数で割ったもの。語彙は 4,096。"""
    rng = random.Random(0)
    words = ["".join(rng.choices("あいうえおかきくけこ", k=6)) for _ in range(1200)]
    train, test = [w + v for w in words for v in words[:2]], [words[0] + "さ", words[1] * 2]
    bpe = ByteLevelBPE.train(train, 4096)
    assert bpe.vocab_size == 4096
    assert max(map(len, bpe.encode_batch(train))) < 12
    plain = PlainKneserNey(bpe.encode_batch(train), 2, 4098, 4096, 4097)
    bits = 0.0
    for sequence in bpe.encode_batch(test):
        ids = [4096, *sequence, 4097]
        bits -= sum(math.log2(plain.probability(ids[:t], ids[t])) for t in range(1, len(ids)))
    n_bytes = (7 + 12) * 3
    assert measure(train, test, "bpe", 2) == pytest.approx(bits / n_bytes)


@pytest.mark.slow
def test_better_than_add_one_and_lower_orders_on_tatoeba():
    """本物の和文では、次数が高いほど、また 1 を足す平滑化より、bits per byte が小さい。"""
    sentences = datasets.tatoeba_sentences("ja")[:60_000]
    random.Random(0).shuffle(sentences)
    train, test = sentences[:-2000], sentences[-2000:]
    codec = CharacterCodec.train(train)
    seen, unseen = ([codec.encode(text) for text in texts] for texts in (train, test))
    n_bytes = sum(len(text.encode()) for text in test)
    ids = {"vocab_size": codec.vocab_size, "bos": codec.bos, "eos": codec.eos}
    found = {
        k: bits_per_byte(KneserNey.train(seen, k, **ids), unseen, n_bytes) for k in (1, 2, 3, 5)
    }
    assert found[5] < 0.95 * found[3] < 0.9 * found[2] < 0.8 * found[1]
    history, pairs = Counter(), Counter()
    for sequence in seen:
        row = [codec.bos, *sequence, codec.eos]
        history.update(row[:-1])
        pairs.update(itertools.pairwise(row))
    size = codec.vocab_size - 1
    add_one = -sum(
        math.log2((pairs[a, b] + 1) / (history[a] + size))
        for sequence in unseen
        for a, b in itertools.pairwise([codec.bos, *sequence, codec.eos])
    )
    assert found[2] < 0.95 * add_one / n_bytes
    assert measure(train, test, "character", 3) == pytest.approx(found[3])
    assert found[3] < measure(train, test, "byte", 5)


# ---- 誤った入力 -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"order": 0}, ValueError, "order は 1 以上"),
        ({"order": 2.0}, TypeError, "order"),
        ({"vocab_size": 0}, ValueError, "vocab_size"),
        ({"bos": 7}, ValueError, "bos は 0 以上 7 未満"),
        ({"eos": -1}, ValueError, "eos"),
        ({"sequences": []}, ValueError, "sequences に、少なくとも一つ"),
        ({"sequences": [[0, 7]]}, ValueError, "0 以上 7 未満"),
        ({"sequences": [[-1]]}, ValueError, "0 以上 7 未満"),
        ({"sequences": [[0, 5]]}, ValueError, "bos と eos を入れない"),
        ({"sequences": [[6, 0]]}, ValueError, "bos と eos を入れない"),
        ({"sequences": [[0.5]]}, TypeError, "整数の列"),
        ({"sequences": ["あ"]}, TypeError, "整数の列"),
        ({"sequences": [[0, True]]}, TypeError, "整数の列.*True"),
        ({"sequences": [np.array([True, False])]}, TypeError, "整数の列.*True"),
    ],
)
def test_bad_training(changes, error, message):
    """誤った引数は、名前と値を述べて断る。"""
    arguments = {"sequences": [[0, 1]], "order": 2, "vocab_size": 7, "bos": 5, "eos": 6} | changes
    with pytest.raises(error, match=message):
        KneserNey.train(**arguments)


def test_bad_queries():
    """確率を尋ねるときも同じ。"""
    model = small(2)[2]
    with pytest.raises(TypeError, match="token"):
        model.probability([0], 1.5)
    with pytest.raises(TypeError, match=r"整数の列.*True"):
        model.probability([True], 1)
    untrained = KneserNey(2, 7, 5, 6)
    for ask in (untrained.distribution, untrained.log_prob):
        with pytest.raises(ValueError, match=r"まだ何も学んでいません。KneserNey\.train"):
            ask([0])
    with pytest.raises(ValueError, match="0 以上 7 未満"):
        model.probability([7], 1)
    with pytest.raises(ValueError, match="bos と eos"):
        model.log_prob([0, 6])
    with pytest.raises(TypeError, match="text"):
        CharacterCodec("").encode(b"a")
    with pytest.raises(ValueError, match="unit"):
        measure(["あ"], ["い"], "word", 2)
    with pytest.raises(ValueError, match="min_count"):
        CharacterCodec.train(["あ"], 0)
