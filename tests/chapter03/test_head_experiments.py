"""chapter03.head_experiments: 課題の正解、パラメーターの数、モデルが組み立てどおりか。"""

import math

import pytest
import torch

from chapter03 import head_experiments
from chapter03.head_experiments import (
    FuturePredictor,
    NeighbourReader,
    future_loss,
    held_out_rows,
    neighbours,
    pair_accuracy,
    pair_loss,
    train_future,
    train_reader,
)
from shared.attention import causal_mask, scaled_dot_product_attention


def look_back(q, k, v):
    return scaled_dot_product_attention(q, k, v, causal_mask(q.shape[-2]))[0]


def test_neighbours_by_hand():
    ids = torch.tensor([[4, 1, 7, 2]])
    assert neighbours(ids).tolist() == [[[4, 7], [1, 2]]]


def test_rows_are_reproducible_and_differ_between_seeds():
    assert held_out_rows(0).shape == (1000, head_experiments.LENGTH)
    assert held_out_rows(0).equal(held_out_rows(0))
    assert not held_out_rows(0).equal(held_out_rows(1))
    assert set(held_out_rows(0).flatten().tolist()) == set(range(head_experiments.SYMBOLS))


def test_size_does_not_depend_on_the_number_of_heads():
    sizes = {sum(p.numel() for p in NeighbourReader(h).parameters()) for h in (1, 2, 4, 8, 16, 32)}
    assert len(sizes) == 1
    deeper = sum(p.numel() for p in NeighbourReader(1, hidden=64).parameters())
    assert deeper > max(sizes)
    with pytest.raises(ValueError, match="hidden"):
        NeighbourReader(1, hidden=-1)


def test_metrics_on_a_model_that_knows_only_the_left():
    model = NeighbourReader(2)

    def forward(ids):
        logits = torch.zeros(*neighbours(ids).shape, head_experiments.SYMBOLS)
        left = neighbours(ids)[..., 0]
        logits[..., 0, :].scatter_(-1, left[..., None], 50.0)
        logits[..., 1, :] = torch.arange(head_experiments.SYMBOLS) * 1e-6
        return logits

    model.forward = forward
    last = (neighbours(held_out_rows(0))[..., 1] == head_experiments.SYMBOLS - 1).float().mean()
    assert pair_accuracy(model, 0) == pytest.approx(float(last))
    assert pair_loss(model, 0) == pytest.approx(math.log(head_experiments.SYMBOLS) / 2, abs=1e-3)


def test_future_predictor_uses_the_given_attention():
    seen = []

    def attend(q, k, v):
        seen.extend([q.shape, k.shape, v.shape])
        return look_back(q, k, v)

    torch.manual_seed(0)
    model = FuturePredictor(attend)
    ids = held_out_rows(0)[:3]
    logits = model(ids)
    assert seen == [(3, 4, 10, 8)] * 3
    changed = ids.clone()
    changed[:, -1] = (changed[:, -1] + 1) % head_experiments.SYMBOLS
    assert logits[:, :-1].equal(model(changed)[:, :-1])
    assert not logits[:, -1].equal(model(changed)[:, -1])


@pytest.mark.slow
def test_two_heads_read_both_sides_and_one_does_not():
    assert pair_accuracy(train_reader(2, 0), 0) > 0.95
    assert pair_accuracy(train_reader(1, 0), 0) < 0.5


@pytest.mark.slow
def test_random_symbols_cannot_be_predicted_without_looking():
    assert future_loss(train_future(look_back, 0), 0) == pytest.approx(math.log(8), abs=0.02)
