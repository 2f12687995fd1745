"""chapter02.distributional: 手計算・総当たり・独立な実装と比べる。"""

from collections import Counter

import numpy as np
import pytest
import torch

from chapter02.distributional import (
    SkipGram,
    context_overlap,
    contexts,
    keep_probability,
    negative_sampling,
    noise_distribution,
)

# ---- 文脈の重なり -----------------------------------------------------------------------

A = ["the", "the", "the", "drink", "hot"]
B = ["the", "hot", "hot", "cup", "drink", "drink", "of"]


def test_overlap_by_type_and_token_by_hand():
    # 異なり: {the, drink, hot} が共通、小さいほうは 3 語。
    assert context_overlap(A, B, unit="type") == 1.0
    # 延べ: the 1 + drink 1 + hot 1 = 3 が共通、小さいほうは 5 語。
    assert context_overlap(A, B, unit="token") == 3 / 5
    assert context_overlap(A, B) == context_overlap(A, B, "type")


def test_the_smaller_side_differs_between_type_and_token():
    long_but_poor = ["a"] * 9 + ["b"]
    short_but_rich = ["a", "c", "d"]
    assert context_overlap(long_but_poor, short_but_rich, "type") == 1 / 2
    assert context_overlap(long_but_poor, short_but_rich, "token") == 1 / 3


@pytest.mark.parametrize("unit", ["type", "token"])
def test_overlap_properties(unit: str):
    rng = np.random.default_rng(0)
    for _ in range(50):
        a = rng.integers(0, 6, size=rng.integers(1, 12)).tolist()
        b = rng.integers(0, 6, size=rng.integers(1, 12)).tolist()
        value = context_overlap(a, b, unit)
        assert value == context_overlap(b, a, unit)
        assert value == context_overlap(a[::-1], b, unit)
        assert 0 <= value <= 1
        assert context_overlap(a, a + b, unit) == 1.0
        assert context_overlap(a, [9, 9], unit) == 0.0
        if unit == "token":
            shared = sum(min(a.count(x), b.count(x)) for x in range(6))
            assert value == shared / min(len(a), len(b))
        else:
            assert value == len({*a} & {*b}) / min(len({*a}), len({*b}))


def test_overlap_accepts_sets_tuples_and_generators():
    assert context_overlap({"a", "b"}, ("b", "c"), "token") == 0.5
    assert context_overlap((x for x in "ab"), ["b"], "type") == 1.0


@pytest.mark.parametrize("bad", ["the cat", b"the", None, 3, {"the": 2}, Counter("ab"), [["a"]]])
def test_overlap_refuses_what_is_no_sequence_of_words(bad):
    with pytest.raises(TypeError, match="contexts_a"):
        context_overlap(bad, ["a"])
    with pytest.raises(TypeError, match="contexts_b"):
        context_overlap(["a"], bad)


@pytest.mark.parametrize("unit", ["types", "", None, 1])
def test_overlap_refuses_other_units(unit):
    with pytest.raises(ValueError, match="unit"):
        context_overlap(["a"], ["a"], unit)


@pytest.mark.parametrize("unit", ["type", "token"])
def test_overlap_refuses_empty_sides(unit: str):
    with pytest.raises(ValueError, match="contexts_a が空"):
        context_overlap([], ["a"], unit)
    with pytest.raises(ValueError, match="contexts_b が空"):
        context_overlap(["a"], set(), unit)


def test_contexts_by_hand():
    tokens = ["a", "b", "x", "c", "d", "x", "e"]
    assert contexts(tokens, "x", 1) == ["b", "c", "d", "e"]
    assert contexts(tokens, "x", 2) == ["a", "b", "c", "d", "c", "d", "e"]
    assert contexts(tokens, "a", 3) == ["b", "x", "c"]
    assert contexts(["a", "b", "x", "c"], "x", 3) == ["a", "b", "c"]
    assert contexts(["x", "x"], "x", 5) == ["x", "x"]
    assert contexts(tokens, "none", 2) == []


def test_contexts_refuses_bad_input():
    with pytest.raises(TypeError, match="tokens"):
        contexts("a b c", "b", 1)
    with pytest.raises(ValueError, match="window"):
        contexts(["a"], "a", 0)
    with pytest.raises(TypeError, match="window"):
        contexts(["a"], "a", 1.5)  # pyright: ignore[reportArgumentType]


# ---- skip-gram ------------------------------------------------------------------------


def test_noise_distribution_is_the_three_quarter_power():
    # 16^{3/4} = 8、1^{3/4} = 1、81^{3/4} = 27
    assert noise_distribution(np.array([81, 16, 1])) == pytest.approx([27 / 36, 8 / 36, 1 / 36])
    assert noise_distribution(np.array([81, 16, 1]), power=0) == pytest.approx([1 / 3] * 3)
    assert noise_distribution(np.array([6, 3, 1]), power=1) == pytest.approx([0.6, 0.3, 0.1])


def test_keep_probability_of_equation_5():
    # f = 0.9 と 0.1、t = 0.1 なら、捨てる確率は 1 - sqrt(1/9) = 2/3 と 0。
    assert keep_probability(np.array([90, 10]), 0.1) == pytest.approx([1 / 3, 1.0])
    assert keep_probability(np.array([90, 10]), 0.4) == pytest.approx([2 / 3, 1.0])
    with pytest.raises(ValueError, match="threshold"):
        keep_probability(np.array([1]), -1.0)
    with pytest.raises(ValueError, match="counts"):
        keep_probability(np.array([3, 0]), 0.1)


def test_loss_and_gradients_match_autograd():
    generator = torch.Generator().manual_seed(0)
    v, u, negatives = (
        torch.randn(*shape, dtype=torch.float64, generator=generator, requires_grad=True)
        for shape in ((4, 3), (4, 3), (4, 5, 3))
    )
    positive = torch.nn.functional.logsigmoid((u * v).sum(-1))
    negative = torch.nn.functional.logsigmoid(-(negatives @ v[:, :, None])[..., 0])
    expected = -positive.sum() - negative.sum()
    expected.backward()
    loss, grad_v, grad_u = negative_sampling(*(x.detach().numpy() for x in (v, u, negatives)))
    assert loss == pytest.approx(expected.item(), abs=1e-10)
    assert v.grad is not None
    assert u.grad is not None
    assert negatives.grad is not None
    np.testing.assert_allclose(grad_v, v.grad.numpy(), atol=1e-10)
    np.testing.assert_allclose(grad_u[:, 0], u.grad.numpy(), atol=1e-10)
    np.testing.assert_allclose(grad_u[:, 1:], negatives.grad.numpy(), atol=1e-10)


def test_loss_of_zero_vectors_and_of_huge_scores():
    zero = np.zeros((2, 3), dtype=np.float32)
    loss, grad_v, grad_u = negative_sampling(zero, zero, np.zeros((2, 5, 3), dtype=np.float32))
    assert loss == pytest.approx(2 * 6 * np.log(2), rel=1e-6)
    assert not grad_v.any()
    assert not grad_u.any()
    big = np.full((1, 1), 100.0, dtype=np.float32)
    loss, grad_v, _ = negative_sampling(big, big, big[:, None])
    assert loss == pytest.approx(10_000.0)  # 正例は 0、負例は u·v そのもの
    assert grad_v[0, 0] == pytest.approx(100.0)


TOY = [["a", "b", "c", "d"], ["e"], ["a", "f"]]


def test_pairs_with_a_window_of_one():
    model = SkipGram(TOY, window=1, min_count=1, threshold=1e9)
    names = list(model.counts)
    pairs = Counter((names[c], names[o]) for c, o in zip(*model.pairs(), strict=True))
    assert pairs == Counter(map(tuple, ["ab", "ba", "bc", "cb", "cd", "dc", "af", "fa"]))


def test_pairs_respect_the_window_and_the_sentence():
    model = SkipGram([list("abcdefgh"), list("hgfedcba")], window=3, min_count=1, threshold=1e9)
    names = list(model.counts)
    seen: Counter[int] = Counter()
    for _ in range(300):
        centers, around = model.pairs()
        for c, o in zip(centers, around, strict=True):
            seen[abs(ord(names[c]) - ord(names[o]))] += 1
    # 窓の幅は 1..3 で一様なので、距離 1, 2, 3 の組は 1, 2/3, 1/3 の確率で使われる。
    assert set(seen) == {1, 2, 3}
    assert seen[2] / seen[1] == pytest.approx(2 / 3 * 6 / 7, rel=0.03)
    assert seen[3] / seen[1] == pytest.approx(1 / 3 * 5 / 7, rel=0.05)


def test_the_window_belongs_to_the_center():
    # 中心の語が距離 r の語を使うなら、それより近い語もすべて使う。
    model = SkipGram([list("abcdefgh")], window=4, min_count=1, threshold=1e9)
    for _ in range(20):
        centers, around = model.pairs()
        for c in range(8):
            reached = {abs(int(o) - c) for o in around[centers == c]}
            assert reached == set(range(1, max(reached) + 1))


def test_frequent_words_are_thinned():
    # f(a) = 0.9、t = 0.1 なら a は 1/3 だけ残り、文の中の組は (1/3)^2 に減る。
    model = SkipGram([["a", "a"]] * 9000 + [["b", "b"]] * 1000, window=1, threshold=0.1)
    centers, _ = model.pairs()
    assert np.sum(centers == 0) == pytest.approx(18_000 / 9, rel=0.1)
    assert np.sum(centers == 1) == 2000


def test_rare_words_are_dropped_before_windows_are_laid():
    model = SkipGram([["a", "x", "b"], ["a", "b"]], window=1, min_count=2, threshold=1e9)
    assert set(model.counts) == {"a", "b"}
    assert len(model.pairs()[0]) == 4


def test_one_step_follows_the_gradient_even_when_rows_repeat():
    model = SkipGram(TOY, dim=4, negatives=2, min_count=1, threshold=1e9)
    rng = np.random.default_rng(0)
    model.v[:] = rng.normal(size=model.v.shape)
    model.u[:] = rng.normal(size=model.u.shape)
    centers, around = np.array([0, 0, 1]), np.array([1, 1, 0])
    v = torch.tensor(model.v, requires_grad=True)
    u = torch.tensor(model.u, requires_grad=True)
    draws = np.random.Generator(type(model._rng.bit_generator)())
    draws.bit_generator.state = model._rng.bit_generator.state
    noise = noise_distribution(np.array(list(model.counts.values())))
    # 累積分布が初めて乱数を超える番号が負例。
    negatives = np.array(
        [[np.sum(np.cumsum(noise) < x) for x in row] for row in draws.random((3, 2))]
    )
    scores = torch.einsum("bd,bkd->bk", v[centers], u[negatives])
    loss = -torch.nn.functional.logsigmoid((v[centers] * u[around]).sum(-1)).sum()
    loss = loss - torch.nn.functional.logsigmoid(-scores).sum()
    loss.backward()
    assert v.grad is not None
    assert u.grad is not None
    measured = model._step(centers, around, 0.5)
    assert measured == pytest.approx(loss.item(), rel=1e-5)
    np.testing.assert_allclose(model.v, (v - 0.5 * v.grad).detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(model.u, (u - 0.5 * u.grad).detach().numpy(), atol=1e-5)


def test_negatives_follow_the_noise_distribution():
    model = SkipGram([["a"] * 81 + ["b"] * 16 + ["c"]], dim=1, min_count=1, negatives=10)
    model.v[:], model.u[:] = 1.0, 0.0
    before = model.u.copy()
    model._step(np.zeros(20_000, dtype=np.int64), np.zeros(20_000, dtype=np.int64), 1.0)
    # u = 0 なら負例一つごとに -1/2、正例一つごとに +1/2 動く。
    moved = (before - model.u)[:, 0] * 2
    moved[0] += 20_000
    assert moved / 200_000 == pytest.approx([27 / 36, 8 / 36, 1 / 36], abs=5e-3)


def test_words_in_the_same_contexts_become_similar():
    rng = np.random.default_rng(0)
    groups = {"x": ["cat", "dog"], "y": ["car", "bus"]}
    around = {"x": ["eats", "sleeps", "furry"], "y": ["drives", "wheels", "fuel"]}
    sentences = []
    for _ in range(3000):
        kind = "xy"[rng.integers(2)]
        sentence = [str(rng.choice(groups[kind])), *map(str, rng.choice(around[kind], 2))]
        sentences.append(sentence)
    model = SkipGram(sentences, dim=8, threshold=1.0)
    losses = model.train(epochs=4, batch=64)
    assert losses[-1] < losses[0] < 6 * np.log(2)
    assert model.nearest("cat", 1)[0][0] == "dog"
    assert model.nearest("bus", 1)[0][0] == "car"
    vectors = model.embeddings()
    assert (vectors["cat"] == model.v[list(model.counts).index("cat")]).all()
    assert vectors.similarity("cat", "dog") > vectors.similarity("cat", "bus") + 0.5


def test_training_is_reproducible_and_depends_on_the_seed():
    models = [SkipGram(TOY, dim=4, min_count=1, threshold=1.0, seed=seed) for seed in (3, 3, 4)]
    losses = [model.train(epochs=2, batch=4) for model in models]
    assert losses[0] == losses[1]
    assert (models[0].v == models[1].v).all()
    assert (models[0].v != models[2].v).any()


def test_divergence_is_reported():
    model = SkipGram([list("abab") * 50] * 20, dim=4, threshold=1.0)
    with pytest.raises(ValueError, match="発散"):
        model.train(lr=1e6)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"dim": 0}, ValueError),
        ({"window": 0}, ValueError),
        ({"negatives": 0}, ValueError),
        ({"min_count": 0}, ValueError),
        ({"threshold": -1.0}, ValueError),
        ({"power": float("nan")}, ValueError),
        ({"dim": 1.5}, TypeError),
    ],
)
def test_bad_options_are_refused(options, error):
    with pytest.raises(error, match=next(iter(options))):
        SkipGram(TOY, **({"min_count": 1} | options))


def test_bad_sentences_are_refused():
    with pytest.raises(TypeError, match="sentences"):
        SkipGram("the cat sat")
    with pytest.raises(ValueError, match="回以上"):
        SkipGram(TOY, min_count=100)
    with pytest.raises(ValueError, match="epochs"):
        SkipGram(TOY, min_count=1).train(epochs=0)
