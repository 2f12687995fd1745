"""3.2 節の実験の道具: 課題の正解、因果マスク、位置の教え方の取り替え。"""

import pytest
import torch
from torch import nn

from chapter03 import position_experiments as lab


class Oracle(nn.Module):
    """`back` 個前の記号を、必ず答えるモデル。"""

    def __init__(self, back: int) -> None:
        super().__init__()
        self.back = back

    def forward(self, ids):
        return nn.functional.one_hot(ids.roll(self.back, dims=1), lab.SYMBOLS).float()


def test_accuracy_is_one_for_the_right_answer_only():
    """3 つ前を答えれば 1、2 つ前なら当てずっぽうと同じ。"""
    assert lab.shift_accuracy(Oracle(lab.SHIFT), 20).tolist() == [1.0] * (20 - lab.SHIFT)
    assert float(lab.shift_accuracy(Oracle(2), 200).mean()) == pytest.approx(1 / 16, abs=0.01)


@pytest.mark.parametrize("method", lab.METHODS)
def test_only_positions_tell_the_order(method):
    """「なし」だけが、入力を並べ替えても出力を並べ替えるだけになる。"""
    torch.manual_seed(0)
    model = lab.TinyTransformer(16, method, n_positions=9)
    for layer in model.layers:
        table = getattr(layer.self_attention.position, "table", None)  # pyright: ignore
        if table is not None:
            nn.init.normal_(table)  # 始めは 0 なので、まだ何も教えない
    ids, order = torch.randint(16, (2, 9)), torch.randperm(9)
    same = torch.allclose(model(ids)[:, order], model(ids[:, order]), atol=1e-5)
    assert same is (method == "none")


@pytest.mark.parametrize("method", lab.METHODS)
def test_causal_models_do_not_look_ahead(method):
    """後ろの文字を替えても、前の文字の予測は変わらない。"""
    torch.manual_seed(0)
    model = lab.TinyTransformer(16, method, n_positions=8, n_layers=2, causal=True)
    ids = torch.randint(16, (1, 8))
    changed = ids.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % 16
    assert torch.allclose(model(ids)[:, :5], model(changed)[:, :5], atol=1e-6)
    assert not torch.allclose(model(ids)[:, 5:], model(changed)[:, 5:], atol=1e-3)


def test_training_is_repeatable_and_learns():
    """同じシードなら同じ重みになり、少しの学習でも当てずっぽうを上回る。"""
    first, second = (lab.train_shift("rotary", seed=1, steps=60) for _ in range(2))
    assert torch.equal(first.output.weight, second.output.weight)
    assert float(lab.shift_accuracy(first, lab.SHIFT_LENGTH).mean()) > 2 / lab.SYMBOLS


def test_text_losses_are_per_position(monkeypatch):
    """何も知らないモデルの損失は、どの位置でも ln V。"""
    monkeypatch.setattr(lab, "texts", lambda: (torch.zeros(500).long(), torch.arange(500) % 36))
    model = lab.TinyTransformer(len(lab.CHARACTERS), "sinusoidal", n_positions=8, causal=True)
    nn.init.zeros_(model.output.weight)
    nn.init.zeros_(model.output.bias)
    losses = lab.text_losses(model, 10, n_characters=400)
    assert losses.shape == (10,)
    assert torch.allclose(losses, torch.tensor(float(len(lab.CHARACTERS))).log().expand(10))
    lab.train_text("none", seed=0, steps=2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: lab.train_shift("rope", 0), ValueError, "method は"),
        (lambda: lab.train_shift("none", 0, steps=0), ValueError, "steps"),
        (lambda: lab.TinyTransformer(4, "learned", n_positions=2)(torch.zeros(1, 3).long()),
         ValueError, "n_positions = 2"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_in_japanese(call, error, message):
    with pytest.raises(error, match=message):
        call()
