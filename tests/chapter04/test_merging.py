"""chapter04.merging: 手計算と、重みについて線形なモデルでの検証。"""

import math

import pytest
import torch
from torch import nn

from chapter04.merging import (
    apply_task_vectors,
    cosine,
    greedy_soup,
    negate,
    task_vector,
    uniform_soup,
)


def state(*values, dtype=torch.float32):
    """手計算に使う、一つのテンソルだけの重み。"""
    return {"w": torch.tensor(values, dtype=dtype)}


def test_uniform_soup_by_hand():
    """(1 + 2 + 6) / 3 = 3。型は変わらず、渡した重みも変わらない。"""
    states = [state(1, 4), state(2, 0), state(6, -1)]
    soup = uniform_soup(states)
    assert torch.equal(soup["w"], torch.tensor([3.0, 1.0]))
    assert soup["w"].dtype == torch.float32
    assert torch.equal(states[0]["w"], torch.tensor([1.0, 4.0]))
    alone = uniform_soup(states[:1])
    alone["w"] += 1
    assert torch.equal(states[0]["w"], torch.tensor([1.0, 4.0]))


def test_soup_of_linear_models_is_their_ensemble():
    """線形なモデルでは、重みの平均の出力は、出力の平均に等しい(深いモデルでは等しくない)。"""
    torch.manual_seed(0)
    linear = [nn.Linear(5, 3).double() for _ in range(4)]
    deep = [nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double() for _ in range(4)]
    x = torch.randn(10, 5, dtype=torch.double)
    for models, equal in ((linear, True), (deep, False)):
        ensemble = torch.stack([model(x) for model in models]).mean(0)
        model = models[0]
        model.load_state_dict(uniform_soup([m.state_dict() for m in models]))
        assert torch.allclose(model(x), ensemble, atol=1e-12) == equal


def test_low_precision_is_averaged_in_double():
    """bf16 のまま足すと 1 が消える所でも、倍精度で足して最後に丸める。"""
    soup = uniform_soup([state(256, dtype=torch.bfloat16)] + 7 * [state(1, dtype=torch.bfloat16)])
    assert soup["w"].item() == torch.tensor(263 / 8).bfloat16().item()
    assert soup["w"].dtype == torch.bfloat16


def test_greedy_soup_by_hand():
    """目標 0 までの距離で測る: -1 から始め、+1 を加えると 0 になり、ほかは悪くするので捨てる。"""
    states = [state(5.0), state(1.25), state(-1.0), state(2.0)]
    calls = []

    def score(weights):
        calls.append(weights["w"].item())
        return -abs(weights["w"].item())

    soup, chosen = greedy_soup(states, score)
    assert chosen == [2, 1]  # 成績の順は -1、1.25、2、5
    assert soup["w"].item() == 0.125
    # 一つずつの成績、次に (-1, 1.25)、(-1, 1.25, 2)、(-1, 1.25, 5) の平均
    assert calls == pytest.approx([5, 1.25, -1, 2, 0.125, 0.75, 1.75])


def test_greedy_soup_keeps_an_equal_candidate():
    """成績が同じなら加える(論文の手順は、以上のときに加える)。同じ成績の材料は番号の順に試す。"""
    soup, chosen = greedy_soup([state(2.0), state(4.0), state(9.0)], lambda weights: 1.0)
    assert chosen == [0, 1, 2]
    assert soup["w"].item() == 5.0


def test_greedy_soup_is_never_worse_than_the_best():
    """乱数の成績の面でも、検証の成績は、いちばんよい材料を下回らない。"""
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        states = [{"w": torch.randn(3, generator=generator)} for _ in range(5)]
        direction = torch.randn(3, generator=generator)

        def score(weights, direction=direction):
            return math.sin(3 * float(weights["w"] @ direction))

        soup, chosen = greedy_soup(states, score)
        assert score(soup) >= max(map(score, states)) - 1e-9
        assert chosen[0] == max(range(5), key=lambda i: score(states[i]))


def test_task_vectors_by_hand():
    """θ_pre = (1, 2)、τ = (2, -1) と (0.5, 3)。λ = 2 なら (1 + 2 × 2.5, 2 + 2 × 2)。"""
    pretrained, first, second = state(1, 2), state(3, 1), state(1.5, 5)
    one, two = task_vector(pretrained, first), task_vector(pretrained, second)
    assert one["w"].tolist() == [2, -1]
    assert two["w"].tolist() == [0.5, 3]
    assert apply_task_vectors(pretrained, [one, two], 2.0)["w"].tolist() == [6, 6]
    assert apply_task_vectors(pretrained, [one])["w"].tolist() == [3, 1]
    forget = apply_task_vectors(pretrained, [negate(one)])
    assert forget["w"].tolist() == [-1, 3]
    assert torch.equal(forget["w"], apply_task_vectors(pretrained, [one], -1.0)["w"])
    assert apply_task_vectors(pretrained, [one], 0.0)["w"].tolist() == [1, 2]
    assert pretrained["w"].tolist() == [1, 2]


def test_cosine_by_hand():
    """(3, 4) と (4, 3) なら 24 / 25。キーの並びにはよらない。"""
    assert cosine(state(3, 4), state(4, 3)) == pytest.approx(0.96)
    assert cosine(state(3, 4), negate(state(3, 4))) == pytest.approx(-1)
    first = {"a": torch.tensor([1.0]), "b": torch.tensor([0.0])}
    second = {"b": torch.tensor([0.0]), "a": torch.tensor([2.0])}
    assert cosine(first, second) == pytest.approx(1)


def test_disjoint_tasks_add_up_in_a_linear_model():
    """線形回帰で、二つの課題が別々の入力だけを使うなら、足したモデルはどちらも解き、引けば忘れる。"""
    torch.manual_seed(0)
    x = torch.randn(50, 4, dtype=torch.double)
    tasks = [x * torch.tensor([1.0, 1, 0, 0]), x * torch.tensor([0.0, 0, 1, 1])]
    target = torch.tensor([[2.0, -1, 0.5, 3]], dtype=torch.double)
    pretrained = {"w": torch.zeros(1, 4, dtype=torch.double)}

    def error(weights, inputs):
        return float((inputs @ (weights["w"] - target).T).square().mean())

    finetuned = [
        {"w": torch.linalg.lstsq(inputs, inputs @ target.T, driver="gelsd").solution.T}
        for inputs in tasks
    ]
    vectors = [task_vector(pretrained, weights) for weights in finetuned]
    both = apply_task_vectors(pretrained, vectors)
    assert max(error(both, inputs) for inputs in tasks) < 1e-20
    forgotten = apply_task_vectors(both, [negate(vectors[0])])
    assert error(forgotten, tasks[0]) == pytest.approx(error(pretrained, tasks[0]))
    assert error(forgotten, tasks[1]) < 1e-20


def test_integer_tensors_are_kept():
    """整数の buffer は、等しければそのまま残り、課題ベクトルには入らない。"""
    whole = {"w": torch.ones(1), "n": torch.tensor(3)}
    assert uniform_soup([whole, whole])["n"].item() == 3
    vector = task_vector(whole, whole)
    assert vector.keys() == {"w"}
    assert apply_task_vectors(whole, [vector])["n"].item() == 3
    with pytest.raises(ValueError, match=r"states\[1\] の n は整数なのに"):
        uniform_soup([whole, {"w": torch.ones(1), "n": torch.tensor(4)}])


def test_every_mismatch_is_named():
    """合わないキー・形・型を、すべて一つのメッセージに挙げる。"""
    good = {"a": torch.ones(2), "b": torch.ones(2), "c": torch.ones(2)}
    bad = {"a": torch.ones(3), "b": torch.ones(2).double(), "d": torch.ones(1)}
    with pytest.raises(ValueError, match="finetuned") as caught:
        task_vector(good, bad)
    for part in (
        "finetuned の a の形が違います((2,) と (3,))",
        "finetuned の b の型が違います(torch.float32 と torch.float64)",
        "finetuned に c がありません",
        "finetuned の d は余分です",
    ):
        assert part in str(caught.value)
    for call in (
        lambda: uniform_soup([good, good, bad]),
        lambda: greedy_soup([good, bad], lambda weights: 0.0),
        lambda: apply_task_vectors(good, [bad]),
        lambda: cosine(good, bad),
    ):
        with pytest.raises(ValueError, match="d は余分です"):
            call()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: uniform_soup([]), ValueError, "states に重みを一つ以上"),
        (lambda: uniform_soup(state(1)), TypeError, "states"),
        (lambda: uniform_soup([{"w": 1.0}]), TypeError, r"states\[0\]"),
        (lambda: uniform_soup([{}]), ValueError, r"states\[0\] にテンソルがありません"),
        (lambda: greedy_soup([state(1)], lambda w: math.nan), ValueError, r"score\(states\[0\]\)"),
        (lambda: apply_task_vectors(state(1), []), ValueError, "vectors"),
        (lambda: apply_task_vectors(state(1), [state(1)], math.inf), ValueError, "scale"),
        (lambda: apply_task_vectors(state(1), [state(1)], "1"), TypeError, "scale"),
        (lambda: task_vector(nn.Linear(1, 1), state(1)), TypeError, "pretrained"),
        (lambda: negate({}), ValueError, "vector"),
        (lambda: cosine(state(0), state(1)), ValueError, "0 でない"),
    ],
)
def test_bad_input(call, error, message):
    """誤った引数は、引数名を述べて断る。"""
    with pytest.raises(error, match=message):
        call()


def test_integer_tensors_are_copied():
    """できた重みの整数のテンソルを変えても、元は変わらない。"""
    whole = {"w": torch.ones(1), "n": torch.tensor(3)}
    for made in (uniform_soup([whole, whole]), apply_task_vectors(whole, [{"w": torch.ones(1)}])):
        made["n"] += 1
        assert whole["n"].item() == 3
