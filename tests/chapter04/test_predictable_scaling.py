"""chapter04.predictable_scaling: 素直な窓・格子・生成と照らし合わせる。"""

import hashlib
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from chapter04 import predictable_scaling as scaling
from chapter04.predictable_scaling import CONTEXT, EDGE, OTHER, CharMLP, Data, Law

TEXTS = ["猫が好き", "犬", "私は猫が好きです"]
ALPHABET = "猫が好き犬"
C = np.geomspace(1e8, 6e9, 8)


def ids(text):
    return [ALPHABET.index(c) + 2 if c in ALPHABET else OTHER for c in text]


def naive_windows(texts):
    rows = []
    for text in texts:
        stream = [EDGE] * CONTEXT + ids(text) + [EDGE]
        rows += [stream[i : i + CONTEXT + 1] for i in range(len(text) + 1)]
    return rows


def spread(a, b, c, noise=0.0, seed=0):
    return Law(a, b, c)(C) * np.exp(noise * np.random.default_rng(seed).normal(size=len(C)))


def squared(law, losses):
    return float(((np.log(law(C)) - np.log(losses)) ** 2).sum())


# ---- データ ----


def test_windows_never_look_into_another_sentence():
    found = scaling.windows(TEXTS, ALPHABET)
    assert found.dtype == torch.uint8
    assert found.tolist() == naive_windows(TEXTS)
    assert scaling.windows(TEXTS[:1], ALPHABET).tolist() == naive_windows(TEXTS[:1])


def test_load_data_takes_frequent_letters_and_keeps_the_test_apart(monkeypatch):
    parts = {"train": ["ああい", "うい", "い"], "validation": ["あえ"], "test": ["お"]}
    monkeypatch.setattr(scaling, "documents", list)
    monkeypatch.setattr(scaling, "split", lambda _: parts)
    data = scaling.load_data.__wrapped__()
    assert data.alphabet == "いあう"  # 多い順。え と お は、学習の文にない
    assert data.train.tolist() == scaling.windows(parts["train"], "いあう").tolist()
    assert data.held_out.tolist() == scaling.windows(["あえ", "お"], "いあう").tolist()


def test_alphabet_leaves_room_for_two_symbols(monkeypatch):
    letters = "".join(chr(0x3041 + i) for i in range(80))
    parts = {"train": [letters], "validation": ["あ"], "test": ["あ"]}
    monkeypatch.setattr(scaling, "documents", list)
    monkeypatch.setattr(scaling, "split", lambda _: parts)
    data = scaling.load_data.__wrapped__()
    assert len(data.alphabet) == scaling.SYMBOLS - 2
    assert int(data.train.max()) == scaling.SYMBOLS - 1


# ---- モデルと学習 ----


@pytest.mark.parametrize("width", [4, 8, 36])
def test_parameters_and_compute_are_counted_by_hand(width):
    depth = width // 4
    n = CONTEXT * depth * width + width + width * 64 + 64
    assert CharMLP(width).n_parameters == n
    tokens = scaling.tokens_for(n)
    assert tokens % scaling.BATCH == 0
    assert 0 <= scaling.TOKENS_PER_PARAMETER * n - tokens < scaling.BATCH
    assert scaling.compute_for(width) == 6 * n * tokens


def test_large_is_tens_of_times_beyond_the_small_ones():
    small = [scaling.compute_for(width) for width in scaling.SMALL]
    assert small == sorted(small)
    assert 30 < scaling.compute_for(scaling.LARGE) / small[-1] < 60


def test_model_reads_every_letter_in_order():
    model = CharMLP(8)
    row = torch.arange(2, 2 + CONTEXT)[None]
    base = model(row)
    assert base.shape == (1, scaling.SYMBOLS)
    for place in range(CONTEXT):
        changed = row.clone()
        changed[0, place] = 40
        assert not torch.equal(model(changed), base)
    x = model.embedding(row).flatten(1)
    hidden = F.gelu(x @ model.hidden.weight.T + model.hidden.bias)
    assert torch.allclose(base, hidden @ model.output.weight.T + model.output.bias, atol=1e-6)
    assert base.abs().max() < 0.2  # はじめは一様に近い


def test_loss_is_the_mean_surprise_of_the_last_letter():
    cut, model = scaling.windows(TEXTS, ALPHABET), CharMLP(8)
    p = model(cut[:, :-1].long()).softmax(-1).detach()
    expected = np.mean([-math.log(p[i, t]) for i, t in enumerate(cut[:, -1].tolist())])
    assert scaling.loss(model, cut).item() == pytest.approx(expected, abs=1e-5)


def test_train_run_learns_and_repeats():
    cut = scaling.windows(TEXTS * 50, ALPHABET)
    data = Data(ALPHABET, cut, scaling.windows(TEXTS, ALPHABET))
    first, again, other = (scaling.train_run(4, data, seed) for seed in (1, 1, 2))
    assert first.loss == again.loss != other.loss
    assert first.loss < 1.0 < math.log(64)
    assert first.compute == scaling.compute_for(4)
    assert first.loss == pytest.approx(scaling.loss(first.model, data.held_out).item(), abs=1e-6)


def test_small_runs_use_each_width_and_its_own_seeds(monkeypatch):
    monkeypatch.setattr(scaling, "train_run", lambda width, data, seed: (width, seed))
    found = scaling.small_runs(Data("", torch.empty(0), torch.empty(0)), seed=2)
    assert found == [(width, seed) for width in scaling.SMALL for seed in (6, 7, 8)]


# ---- 能力 ----


def test_endings_are_the_last_letters_of_long_sentences():
    texts = ["猫が好き猫が好き犬", "犬犬", "猫が好き猫が好き", "猫猫猫猫猫猫猫猫が私猫", "猫" * 12]
    cut = scaling.windows(texts, ALPHABET)
    found = [cut[rows, -1].tolist() for rows in scaling.endings(cut)]
    assert found == [[*ids("が好き犬"), EDGE], [*ids("猫猫猫猫"), EDGE]]


@pytest.mark.parametrize("steps", [0, 300])
def test_solve_multiplies_letters_and_agrees_with_greedy_writing(steps):
    """学習の前(外れる)も後(当たる)も、一文字ずつ書いた結果と同じ。"""
    torch.manual_seed(0)
    cut = scaling.windows(["猫が好き猫が好き犬", "猫" * 12], ALPHABET)
    model, problems = CharMLP(8), scaling.endings(cut)
    mover = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(steps):
        mover.zero_grad()
        scaling.loss(model, cut).backward()
        mover.step()
    rates, exact = scaling.solve(model, cut, problems)
    assert bool(exact[0]) == (steps > 0)
    with torch.no_grad():
        for k, rows in enumerate(problems.tolist()):
            answer = cut[rows, -1].tolist()
            log_p = [model(cut[r : r + 1, :-1].long()).log_softmax(-1)[0] for r in rows]
            expected = sum(float(p[i]) for p, i in zip(log_p, answer, strict=True))
            assert rates[k].item() == pytest.approx(expected, abs=1e-4)
            written, context = [], cut[rows[0], :-1].long()
            for _ in rows:  # 自分の書いた文字を読みながら続ける
                written.append(int(model(context[None]).argmax()))
                context = torch.cat([context[1:], torch.tensor(written[-1:])])
            assert exact[k].item() == (written == answer)


# ---- 当てはめ ----


@pytest.mark.parametrize(
    ("a", "b", "c"), [(60, 0.23, 1.8), (9.0, 0.06, 0.1), (2000.0, 0.45, 0.5), (30, 0.2, 0.0)]
)
def test_fit_recovers_known_constants(a, b, c):
    law = scaling.fit(C, spread(a, b, c))
    assert (law.b, law.c) == (pytest.approx(b, rel=1e-3), pytest.approx(c, abs=2e-3))
    assert float(law(3e11)) == pytest.approx(float(Law(a, b, c)(3e11)), rel=1e-4)


def test_fit_is_the_least_squares_of_the_logs():
    """素直な格子で探した最小より悪くなく、どの係数をずらしても悪くなる。"""
    losses = spread(60, 0.23, 1.8, noise=0.01)
    law = scaling.fit(C, losses)
    best = squared(law, losses)
    for b in np.linspace(0.02, 0.8, 79):
        for ratio in np.geomspace(1e-6, 1e3, 60):  # c / a
            height = np.log(losses) - np.log(C**-b + ratio)
            assert best <= float(((height - height.mean()) ** 2).sum()) + 1e-12
    for da, db, dc in ((1e-3, 0, 0), (0, 1e-4, 0), (0, 0, 1e-3)):
        for sign in (1, -1):
            moved = Law(law.a * (1 + sign * da), law.b + sign * db, law.c + sign * dc)
            assert squared(moved, losses) > best


def test_fit_does_not_depend_on_units_or_order():
    losses = spread(60, 0.23, 1.8, noise=0.01)
    law, other = scaling.fit(C, losses), scaling.fit(C[::-1] / 1e9, losses[::-1])
    assert (other.b, other.c) == (pytest.approx(law.b, abs=1e-5), pytest.approx(law.c, abs=1e-4))


def test_pure_power_law_is_a_straight_line_and_overshoots():
    line = scaling.fit(C, spread(7, 0.05, 0), irreducible=False)
    assert (line.a, line.b, line.c) == (pytest.approx(7), pytest.approx(0.05), 0.0)
    bent = spread(60, 0.23, 1.8)
    assert float(scaling.fit(C, bent, irreducible=False)(3e11)) < 0.95 * float(
        scaling.fit(C, bent)(3e11)
    )


def test_bootstrap_measures_the_spread():
    quiet = scaling.bootstrap(C, spread(60, 0.23, 1.8), 3e11, draws=5)
    assert quiet == pytest.approx(float(Law(60, 0.23, 1.8)(3e11)), rel=1e-3)
    noisy = spread(60, 0.23, 1.8, noise=0.005)
    found = scaling.bootstrap(C, noisy, 3e11, draws=15)
    assert found.shape == (15,)
    assert (np.diff(found) >= 0).all()
    assert found.tolist() == scaling.bootstrap(C, noisy, 3e11, draws=15).tolist()
    assert found.tolist() != scaling.bootstrap(C, noisy, 3e11, draws=15, seed=1).tolist()
    near = scaling.bootstrap(C, noisy, 6e9, draws=15)
    assert np.ptp(found) > 2 * np.ptp(near) > 0  # 遠い予測ほど広がる


def test_bootstrap_restores_the_shrunken_residuals():
    """未知数 3 個の分を戻すので、8 点なら残差は sqrt(8 / 5) 倍になる。"""
    losses = spread(60, 0.23, 1.8, noise=0.01)
    seen = []
    original = scaling.fit

    def spy(compute, values, **options):
        seen.append(np.asarray(values))
        return original(compute, values, **options)

    scaling.fit = spy
    try:
        scaling.bootstrap(C, losses, 1e11, draws=3)
    finally:
        scaling.fit = original
    law = original(C, losses)
    allowed = np.log(losses / law(C)) * math.sqrt(8 / 5)
    for values in seen[1:]:
        for noise in np.log(values / law(C)):
            assert np.abs(allowed - noise).min() < 1e-9


# ---- 予言 ----


def test_commit_is_sha256_and_ignores_the_order_of_keys():
    text = '{"予測": 1.93, "幅": 120}'
    expected = hashlib.sha256(text.encode()).hexdigest()
    assert scaling.commit({"幅": 120, "予測": 1.93}) == expected
    assert scaling.commit({"予測": 1.93, "幅": 120}) == expected
    assert scaling.commit({"予測": 1.94, "幅": 120}) != expected


# ---- 誤った入力 ----


@pytest.mark.parametrize(
    ("compute", "losses", "message"),
    [
        ([1, 2, 3], [1, 2], "同じ長さ"),
        ([[1, 2, 3]], [[3, 2, 1]], "同じ長さ"),
        ([1, 2, 0], [3, 2, 1], "compute には、正の有限な数"),
        ([1, 2, 3], [3, 2, math.nan], "losses には、正の有限な数"),
        ([1, 2, 3], [3, 2, -1], "losses には、正の有限な数"),
        ([1, 1, 2], [3, 3, 2], "3 種類以上"),
    ],
)
def test_fit_refuses_bad_numbers(compute, losses, message):
    with pytest.raises(ValueError, match=message):
        scaling.fit(compute, losses)


def test_other_bad_input():
    assert scaling.fit([1, 2], [2, 1], irreducible=False).b == pytest.approx(1)
    with pytest.raises(ValueError, match="2 種類以上"):
        scaling.fit([1, 1], [2, 1], irreducible=False)
    with pytest.raises(ValueError, match="width"):
        CharMLP(3)
    with pytest.raises(ValueError, match="draws"):
        scaling.bootstrap(C, spread(60, 0.23, 1.8), 1e11, draws=0)
    with pytest.raises(ValueError, match="JSON"):
        scaling.commit({"予測": math.nan})
