"""shared.dropout の検査: 落とす率、期待値、独立性、勾配、置き換え。"""

import math

import pytest
import torch
from torch import nn

from shared.dropout import ByteDropout, set_dropout, use_byte_dropout
from shared.transformer import EncoderLayer


def test_byte_dropout_rate_and_expectation():
    """落とす率は 26/256、残りは 256/230 倍で、期待値は変わらない。"""
    torch.manual_seed(0)
    layer, x = ByteDropout(0.1), torch.full((401, 501), 3.0)
    y = layer(x)
    assert y.unique().tolist() == pytest.approx([0.0, 3 * 256 / 230])
    n = x.numel()
    dropped, rate = (y == 0).sum().item(), 26 / 256
    assert abs(dropped / n - rate) < 5 * math.sqrt(rate * (1 - rate) / n)
    assert y.mean().item() == pytest.approx(3.0, abs=0.01)
    rows, columns = (y == 0).float().mean(1), (y == 0).float().mean(0)
    assert max(rows.max(), columns.max()) < 0.2  # どの行・列も偏らない
    assert not torch.equal(layer(x), y)


def test_byte_dropout_uses_every_byte():
    """8 個の要素は、一つの 64 ビットの乱数の別々のバイトを使い、互いに独立に落ちる。"""
    torch.manual_seed(0)
    kept = ByteDropout(0.5)(torch.ones(20_000, 8)).bool().float()
    assert (kept.mean(0) - 0.5).abs().max() < 0.02
    assert (torch.corrcoef(kept.T) - torch.eye(8)).abs().max() < 0.04


def test_byte_dropout_is_identity_when_evaluating():
    """eval では何もしない。率が 0 なら学習中も何もしない。"""
    x = torch.randn(3, 5)
    assert ByteDropout(0.5).eval()(x) is x
    assert ByteDropout(0.0)(x) is x


def test_byte_dropout_gradient_follows_the_mask():
    """勾配は、落とした所で 0、残した所で 256/(256 - 落とす数)。dtype も保つ。"""
    x = torch.ones(7, 11, dtype=torch.float64, requires_grad=True)
    y = ByteDropout(0.25)(x)
    y.sum().backward()
    assert y.dtype == torch.float64
    assert torch.equal(x.grad, y.detach())
    assert set(x.grad.unique().tolist()) == {0.0, 256 / 192}


@pytest.mark.parametrize("rate", [-0.1, 1.0, 0.999, math.nan])
def test_byte_dropout_refuses(rate):
    """0 より小さい率、すべてを落とす率は断る。"""
    with pytest.raises(ValueError, match="rate は"):
        ByteDropout(rate)


def test_every_dropout_is_replaced():
    """入れ子の中も、率を保って置き換える。ほかの層はそのまま。"""
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5), nn.Sequential(nn.Dropout(0.25)))
    use_byte_dropout(model)
    assert [m.dropped for m in model.modules() if isinstance(m, ByteDropout)] == [128, 64]
    assert not any(type(m) is nn.Dropout for m in model.modules())
    assert isinstance(model[0], nn.Linear)


def test_set_dropout_changes_every_rate():
    """副層も注意の重みも、率が変わる。0 なら、学習中も出力が決まる。"""
    layer, x = EncoderLayer(8, 2, 16, 0.5, attention_dropout=0.5), torch.randn(1, 5, 8)
    assert not torch.equal(layer(x), layer(x))
    set_dropout(layer, 0.0)
    assert torch.equal(layer(x), layer(x))
    set_dropout(layer, 0.25)
    rates = {module.p for module in layer.modules() if isinstance(module, nn.Dropout)}
    assert rates | {layer.self_attention.dropout} == {0.25}
    with pytest.raises(ValueError, match="rate は"):
        set_dropout(layer, 1.5)
