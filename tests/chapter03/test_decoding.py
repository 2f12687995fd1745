"""chapter03.decoding: 全数探索・手計算・素直な探索との一致、キャッシュ、バッチ、終わり方。"""

import itertools
import math

import pytest
import torch

from chapter03.decoding import PAD, Hypothesis, beam_search, exact_search, greedy, length_penalty
from tests.chapter03.test_transformer import marian_twin, shaken

BOS, EOS = 1, 2


class TableModel(torch.nn.Module):
    """次の id の分布を、入力の文と先頭からの列だけで決める偽のモデル。表を渡すか、乱数で作る。

    表にない列は eos で終わる。

    キャッシュには、行ごとに今までの列を覚える。並べ替えを誤れば、ただちに分布が変わる。
    """

    def __init__(self, vocabulary=5, table=None, temperature=1.0):
        super().__init__()
        self.vocabulary, self.table, self.temperature = vocabulary, table, temperature
        self.positions = 0  # decode に渡された位置の数
        self.modes = []

    def encode(self, src):
        self.modes.append(self.training)
        return src[:, :, None].float()

    def new_cache(self):
        return TableCache()

    def logits(self, source, prefix):
        if self.table is not None:
            probabilities = self.table.get(prefix, [0, 0, 1] + [0] * (self.vocabulary - 3))
            return torch.tensor([math.log(p) if p else -1e9 for p in probabilities])
        seed = hash((*source, -1, *prefix)) % (2**31)
        return (
            torch.randn(self.vocabulary, generator=torch.Generator().manual_seed(seed))
            / self.temperature
        )

    def decode(self, tgt_in, memory, src, cache=None):
        self.positions += tgt_in.numel()
        sources = [tuple(i for i in row if i != PAD) for row in src.tolist()]
        assert torch.equal(memory, src[:, :, None].float())
        assert len(tgt_in) == len(src)
        past = [()] * len(src) if cache is None else cache.past or [()] * len(src)
        out = torch.zeros(*tgt_in.shape, self.vocabulary)
        for b, row in enumerate(tgt_in.tolist()):
            for t in range(len(row)):
                out[b, t] = self.logits(sources[b], (past[b] + tuple(row[: t + 1]))[1:])
        if cache is not None:
            cache.past = [p + tuple(row) for p, row in zip(past, tgt_in.tolist(), strict=True)]
        return out


class TableCache:
    def __init__(self):
        self.past = []

    def reorder(self, index):
        self.past = [self.past[i] for i in index.tolist()]


def every_hypothesis(model, source, max_len, alpha):
    """すべての列を score の順に並べる。eos で終わる列と、eos なしで max_len に達した列。"""
    found = []
    words = [i for i in range(model.vocabulary) if i not in (PAD, EOS)]
    for length in range(1, max_len + 1):
        for prefix in itertools.product(words, repeat=length - 1):
            lasts = [EOS] if length < max_len else [EOS, *words]
            for last in lasts:
                ids = (*prefix, last)
                log_p = sum(
                    float(model.logits(source, ids[:t]).log_softmax(-1)[ids[t]])
                    for t in range(length)
                )
                score = log_p / length_penalty(length, alpha)
                found.append(Hypothesis([i for i in ids if i != EOS], score))
    return sorted(found, key=lambda one: -one.score)


def test_length_penalty_by_hand():
    """式 (14) の手計算。|Y| = 1 では 1、alpha = 1 では (5 + |Y|) / 6、alpha = 0 では 1。"""
    assert length_penalty(1, 0.6) == 1.0
    assert length_penalty(7, 1.0) == 2.0
    assert length_penalty(19, 0.5) == 2.0
    assert length_penalty(30, 0.0) == 1.0
    assert length_penalty(7, -1.0) == 0.5
    assert math.isclose(length_penalty(10, 0.6), 2.5**0.6)


# 貪欲法が逃す例。id は 3 = 猫、4 = 犬、5 = が、6 = は。
TRAP = {
    (): [0, 0, 0, 0.6, 0.4, 0, 0],
    (3,): [0, 0, 0.2, 0, 0, 0.4, 0.4],
    (4,): [0, 0, 0, 0, 0, 0.9, 0.1],
    (3, 5): [0, 0, 1, 0, 0, 0, 0],
    (3, 6): [0, 0, 1, 0, 0, 0, 0],
    (4, 5): [0, 0, 1, 0, 0, 0, 0],
    (4, 6): [0, 0, 1, 0, 0, 0, 0],
}


def test_greedy_misses_what_a_beam_of_two_finds():
    """手計算: 貪欲法は 0.6 × 0.4 = 0.24、幅 2 のビームは 0.4 × 0.9 = 0.36 を見つける。"""
    model, src = TableModel(7, TRAP), torch.tensor([[9]])
    assert greedy(model, src, 3) == [[3, 5]]
    best = beam_search(model, src, 3, beam_size=2, alpha=0)[0][0]
    assert best.ids == [4, 5]
    assert math.isclose(best.score, math.log(0.36), abs_tol=1e-6)


def test_length_penalty_changes_the_winner():
    """手計算: 補正なしでは短い列、alpha = 1 では長い列が勝つ。|Y| は eos も数える。"""
    table = {(): [0, 0, 0.4, 0.6], (3,): [0, 0, 0.5, 0.5], (3, 3): [0, 0, 1, 0]}
    model, src = TableModel(4, table), torch.tensor([[9]])
    short = beam_search(model, src, 3, beam_size=3, alpha=0, n_best=3)[0]
    assert [one.ids for one in short] == [[], [3], [3, 3]]
    long = beam_search(model, src, 3, beam_size=3, alpha=2, n_best=3)[0]
    assert [one.ids for one in long] == [[3, 3], [3], []]
    expected = [math.log(0.3) / (8 / 6) ** 2, math.log(0.3) / (7 / 6) ** 2, math.log(0.4)]
    assert [one.score for one in long] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0, 3.0, -0.5])
@pytest.mark.parametrize("use_cache", [True, False])
def test_wide_beam_is_exhaustive_search(alpha, use_cache):
    """すべての列が入る幅なら、順位も score も全数探索と一致する(終わり方が何も逃さない)。"""
    model, src = TableModel(5), torch.tensor([[7, 8], [9, 7]])
    results = beam_search(model, src, 4, 5**4, alpha, use_cache=use_cache, n_best=20)
    for source, result in zip(src.tolist(), results, strict=True):
        expected = every_hypothesis(model, source, 4, alpha)[:20]
        assert [one.ids for one in result[:20]] == [one.ids for one in expected]
        scores = [one.score for one in expected]
        assert [one.score for one in result[:20]] == pytest.approx(scores, abs=1e-5)


@pytest.mark.parametrize("max_len", [1, 2, 3])
def test_exact_search_finds_the_best(max_len):
    """全数探索の 1 位と一致する。分布が平らなので、貪欲法も幅 4 のビームも取り逃がすことがある。"""
    model, src = TableModel(10, temperature=2.0), torch.arange(30).view(15, 2)
    exact = exact_search(model, src, max_len)
    for source, one in zip(src.tolist(), exact, strict=True):
        best = every_hypothesis(model, [i for i in source if i != PAD], max_len, 0)[0]
        assert one.ids == best.ids
        assert one.score == pytest.approx(best.score, abs=1e-5)
    beams = [found[0].ids for found in beam_search(model, src, max_len, alpha=0)]
    for found in (greedy(model, src, max_len), beams):
        missed = [ids != one.ids for ids, one in zip(found, exact, strict=True)]
        assert any(missed) == (max_len > 1)


@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0, -1.0])
@pytest.mark.parametrize("n_best", [1, 2, 3])
def test_stopping_misses_nothing(alpha, n_best, monkeypatch):
    """途中で終えても、上位 n_best 個は、最後まで探したときと同じ。しかも、たいてい早く終わる。"""
    src = torch.tensor([[s, 3] for s in range(20)])
    early = TableModel(5, temperature=0.5)
    stopped = beam_search(early, src, 12, 3, alpha, n_best=n_best)
    full = TableModel(5, temperature=0.5)
    monkeypatch.setattr("chapter03.decoding._can_improve", lambda *arguments: True)
    complete = beam_search(full, src, 12, 3, alpha, n_best=n_best)
    assert [r[:n_best] for r in stopped] == [r[:n_best] for r in complete]
    assert early.positions < full.positions


def test_beam_of_one_is_greedy():
    """幅 1・補正なしは貪欲法。補正ありでも、score は貪欲法の列を下回らない。"""
    model, src = TableModel(6, temperature=0.4), torch.arange(60).view(30, 2)
    chosen = greedy(model, src, 8)
    assert chosen == [r[0].ids for r in beam_search(model, src, 8, 1, alpha=0)]
    for source, ids, result in zip(
        src.tolist(), chosen, beam_search(model, src, 8, 1, alpha=1.0), strict=True
    ):
        path = [*ids, EOS][:8]
        words = [i for i in source if i != PAD]
        steps = [
            float(model.logits(words, tuple(path[:t])).log_softmax(-1)[i])
            for t, i in enumerate(path)
        ]
        assert result[0].score >= sum(steps) / length_penalty(len(path), 1.0) - 1e-5


@pytest.mark.parametrize("alpha", [0.0, 0.6])
def test_cache_changes_nothing_but_the_work(alpha):
    """キャッシュの有無で結果は同じ。計算する位置の数は、1 文なら T(T + 1) / 2 から T に減る。"""
    src = torch.arange(40).view(20, 2)
    cached, plain = TableModel(6, temperature=0.5), TableModel(6, temperature=0.5)
    assert greedy(cached, src, 9) == greedy(plain, src, 9, use_cache=False)
    found = beam_search(cached, src, 9, 4, alpha)
    assert found == beam_search(plain, src, 9, 4, alpha, use_cache=False)
    table = {(3,) * t: [0, 0, 0.1, 0.9] for t in range(8)}
    cached, plain = TableModel(4, table), TableModel(4, table)
    greedy(cached, src[:1], 8)
    greedy(plain, src[:1], 8, use_cache=False)
    assert (cached.positions, plain.positions) == (8, 36)


def test_rows_of_a_batch_do_not_touch_each_other():
    """行を入れ替えれば結果も入れ替わり、一文ずつ解いても、詰めものを足しても変わらない。"""
    model, src = TableModel(6, temperature=0.5), torch.arange(3, 43).view(20, 2)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    padded = torch.cat([src, torch.zeros(20, 3, dtype=torch.long)], dim=1)
    for search in (greedy, beam_search):
        results = search(model, src, 9)
        assert search(model, src[order], 9) == [results[i] for i in order]
        assert [search(model, row[None], 9)[0] for row in src] == results
        assert search(model, padded, 9) == results


def test_padding_is_never_chosen():
    """詰めものの確率がいちばん高くても選ばず、log P は配り直さない。"""
    model, src = (
        TableModel(4, {(): [0.9, 0, 0.06, 0.04], (3,): [0.9, 0, 0.1, 0]}),
        torch.tensor([[5]]),
    )
    assert greedy(model, src, 2) == [[]]
    found = beam_search(model, src, 2, 4, alpha=0, n_best=4)[0]
    assert [one.ids for one in found][:2] == [[], [3]]
    assert found[0].score == pytest.approx(math.log(0.06), abs=1e-6)
    assert all(PAD not in one.ids for one in found)


def test_max_len_counts_eos():
    """eos が来なければ max_len 個で止め、eos は max_len 個目でもよい。"""
    endless = TableModel(4, {(3,) * t: [0, 0, 0, 1] for t in range(6)})
    src = torch.tensor([[5]])
    assert greedy(endless, src, 4) == [[3, 3, 3, 3]]
    assert beam_search(endless, src, 4)[0][0].ids == [3, 3, 3, 3]
    ends = TableModel(4, {(): [0, 0, 0, 1], (3,): [0, 0, 1, 0]})
    assert greedy(ends, src, 2) == [[3]]
    assert beam_search(ends, src, 2)[0][0] == Hypothesis([3], 0.0)


def test_other_ids_for_bos_and_eos():
    """bos と eos の id を変えられる。"""
    model = TableModel(5, {(): [0, 0.1, 0.6, 0.2, 0.1], (2,): [0, 0.1, 0.2, 0.1, 0.6]})
    src = torch.tensor([[5]])
    assert greedy(model, src, 2, bos=3, eos=4) == [[2]]
    assert beam_search(model, src, 2, bos=3, eos=4)[0][0].ids == [2]


def test_state_of_the_model_is_restored():
    """評価の状態で使い、終われば(途中で例外が起きても)元に戻す。勾配は記録しない。"""
    model, src = TableModel(5), torch.tensor([[5]])
    model.train()
    greedy(model, src, 3)
    beam_search(model, src, 3)
    assert model.modes == [False, False]
    assert model.training
    model.decode = lambda *a, **k: 1 / 0
    with pytest.raises(ZeroDivisionError):
        greedy(model, src, 3)
    assert model.training
    model.eval()
    assert not model.training


def test_empty_batch_gives_empty_list():
    """文が一つもなければ、空の list を返す。"""
    src = torch.zeros(0, 4, dtype=torch.long)
    assert greedy(TableModel(), src, 3) == []
    assert beam_search(TableModel(), src, 3) == []
    assert exact_search(TableModel(), src, 3) == []


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"src": [[1, 2]]}, TypeError, "src"),
        ({"src": torch.ones(1, 2)}, TypeError, "src"),
        ({"src": torch.ones(2, dtype=torch.long)}, ValueError, r"src の形.*\(2,\)"),
        ({"max_len": 0}, ValueError, "max_len は 1 以上"),
        ({"max_len": 2.5}, TypeError, "max_len"),
        ({"bos": 0}, ValueError, "詰めもの"),
        ({"eos": 0}, ValueError, "詰めもの"),
        ({"eos": "2"}, TypeError, "eos"),
    ],
)
def test_bad_arguments_of_both(changes, error, message):
    """共通の引数の誤りは、引数名と値を述べて断る。"""
    arguments = {"src": torch.tensor([[5]]), "max_len": 3} | changes
    for search in (greedy, beam_search, exact_search):
        with pytest.raises(error, match=message):
            search(TableModel(), **arguments)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"beam_size": 0}, ValueError, "beam_size は 1 以上"),
        ({"alpha": float("nan")}, ValueError, "alpha"),
        ({"alpha": "0.6"}, TypeError, "alpha"),
        ({"n_best": 5}, ValueError, "n_best は 1 以上 beam_size = 4 以下"),
        ({"n_best": 0}, ValueError, "n_best"),
    ],
)
def test_bad_arguments_of_beam_search(changes, error, message):
    """ビームサーチだけの引数の誤りも断る。"""
    with pytest.raises(error, match=message):
        beam_search(TableModel(), torch.tensor([[5]]), 3, **changes)
    with pytest.raises(ValueError, match="length"):
        length_penalty(-1, 0.6)


# ---- 本物の Transformer と ----------------------------------------------------------------


def batch_of_sources(rows=12):
    """長さの違う原文を、うしろに詰めものをして揃えたもの。"""
    generator = torch.Generator().manual_seed(0)
    src = torch.randint(3, 11, (rows, 6), generator=generator)
    lengths = torch.randint(1, 7, (rows, 1), generator=generator)
    return src.masked_fill(torch.arange(6) >= lengths, PAD)


def lively(seed=0, **changes):
    """原文によって違う列になり、いろいろな長さで eos が出る、乱数の重みのモデル。"""
    model = shaken(seed, **changes).requires_grad_(False)
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.weight.fill_(1)
            module.bias.zero_()
    model.tgt_embedding.weight *= 0.5
    return model


def test_cache_with_reordering_gives_the_same_logits():
    """一つずつ、並べ替えや取捨をはさんで計算しても、列の全体を一度に渡したときと同じ logits。"""
    model, src = lively(), batch_of_sources(6)
    generator = torch.Generator().manual_seed(1)
    memory, cache = model.encode(src), model.new_cache()
    ids = torch.full((6, 1), BOS)
    with torch.no_grad():
        for rows in (6, 9, 9, 4, 4, 7, 2):
            logits = model.decode(ids[:, -1:], memory, src, cache=cache)[:, 0]
            full = model.decode(ids, memory, src)[:, -1]
            torch.testing.assert_close(logits, full, atol=1e-10, rtol=0)
            index = torch.randint(0, len(ids), (rows,), generator=generator)
            cache.reorder(index)
            token = torch.randint(3, 13, (rows, 1), generator=generator)
            memory, src, ids = memory[index], src[index], torch.cat([ids[index], token], dim=1)


@pytest.mark.parametrize("norm_first", [False, True])
def test_searches_of_a_real_model_do_not_depend_on_how_they_run(norm_first):
    """キャッシュ、文の順、原文の詰めもののどれを変えても、列も score も変わらない。"""
    model, src = lively(norm_first=norm_first), batch_of_sources()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(2))
    padded = torch.cat([src, torch.zeros(12, 4, dtype=torch.long)], dim=1)
    expected = greedy(model, src, 11)
    assert greedy(model, src, 11, use_cache=False) == expected
    assert greedy(model, padded, 11) == expected
    assert greedy(model, src[order], 11) == [expected[i] for i in order]
    found = beam_search(model, src, 11, n_best=4)
    for other in (
        beam_search(model, src, 11, n_best=4, use_cache=False),
        beam_search(model, padded, 11, n_best=4),
        [beam_search(model, row[None, row != PAD], 11, n_best=4)[0] for row in src],
    ):
        assert [[one.ids for one in r] for r in other] == [[one.ids for one in r] for r in found]
        scores = [one.score for r in found for one in r]
        assert [one.score for r in other for one in r] == pytest.approx(scores, abs=1e-5)


def test_score_is_the_teacher_forced_log_probability():
    """score は、できた列を教師強制で一度に採点した log P を lp で割ったもの。"""
    model, src = lively(), batch_of_sources()
    for row, found in zip(src, beam_search(model, src, 11, n_best=4), strict=True):
        for one in found:
            ids = torch.tensor([BOS, *one.ids, EOS][:12])
            log_p = model(row[None], ids[None, :-1])[0].log_softmax(-1)
            total = float(log_p.gather(1, ids[1:, None]).sum())
            assert one.score == pytest.approx(total / length_penalty(len(ids) - 1, 0.6), abs=1e-5)


@pytest.mark.parametrize("seed", [0, 1, 3])
@pytest.mark.parametrize("power", [0.0, 0.6, 2.0])
@pytest.mark.parametrize("beam_size", [1, 2, 5])
def test_equals_generate_of_transformers(seed, power, beam_size, monkeypatch):
    """重みを写した MarianMTModel の generate と、返る列も score も一致する。

    transformers は log P を |Y|^length_penalty で割る(式 (14) の 5 がない)ので、指数が 0 でない
    ときはその式に差し替えて比べる。取り逃がさないのは early_stopping="never" だけである。
    """
    if power:
        monkeypatch.setattr("chapter03.decoding.length_penalty", lambda n, alpha: n**alpha)
    ours = lively(seed, tgt_vocab_size=11, share_embeddings=True, attention_bias=True)
    theirs, src = marian_twin(ours), batch_of_sources()
    theirs.generation_config.forced_eos_token_id = None
    output = theirs.generate(
        input_ids=src, attention_mask=(src != PAD).long(), max_new_tokens=8, num_beams=beam_size,
        num_return_sequences=beam_size, length_penalty=power, early_stopping="never",
        do_sample=False, bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD,
        suppress_tokens=[PAD], return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    expected = [[i for i in row if i not in (PAD, EOS)] for row in output.sequences[:, 1:].tolist()]
    found = beam_search(ours, src, 8, beam_size, power, n_best=beam_size)
    if beam_size == 1:  # generate は幅 1 を貪欲法にする
        found = [[Hypothesis(ids, 0.0)] for ids in greedy(ours, src, 8)]
    assert [one.ids for row in found for one in row] == expected
    if beam_size > 1:
        scores = [one.score for row in found for one in row]
        assert scores == pytest.approx(output.sequences_scores.tolist(), abs=1e-5)
