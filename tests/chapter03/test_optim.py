"""chapter03.optim: 学習率の予定は式 (3) と、ラベル平滑化は PyTorch と定義に一致する。"""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from chapter03.optim import label_smoothing_loss, noam_rate

# ---- 学習率の予定 ----


def test_noam_rate_by_hand():
    """d_model = 4, warmup = 4: 前半は step / 16、後半は 1 / (2 sqrt(step))。"""
    rates = [noam_rate(step, d_model=4, warmup=4) for step in (1, 2, 4, 16, 64)]
    assert rates == pytest.approx([1 / 16, 2 / 16, 1 / 4, 1 / 8, 1 / 16], rel=1e-12)


def test_noam_rate_of_the_paper():
    """論文の base(d_model 512、warmup 4,000)の最大は約 7.0e-4。"""
    assert noam_rate(4000, 512, 4000) == pytest.approx(6.987712e-4, rel=1e-6)


@given(step=st.integers(1, 10**6), d_model=st.integers(1, 4096), warmup=st.integers(1, 10**5))
def test_noam_rate_is_equation_3(step, d_model, warmup):
    """式 (3) の二つの項のうち、どちらを使うかは step と warmup の大小で決まる。"""
    expected = 1 / math.sqrt(step) if step >= warmup else step / (warmup * math.sqrt(warmup))
    assert noam_rate(step, d_model, warmup) == pytest.approx(
        expected / math.sqrt(d_model), rel=1e-12
    )


@pytest.mark.parametrize("warmup", [1, 7, 400])
def test_noam_rate_peaks_at_warmup(warmup):
    """最大は warmup 歩目だけで、そこまでは増え、そこからは減る。"""
    rates = np.array([noam_rate(step, 64, warmup) for step in range(1, 3 * warmup + 2)])
    assert rates.argmax() == warmup - 1
    assert rates.max() == pytest.approx((64 * warmup) ** -0.5, rel=1e-12)
    assert (np.diff(rates[:warmup]) > 0).all()
    assert (np.diff(rates[warmup - 1 :]) < 0).all()


@pytest.mark.parametrize("name", ["step", "d_model", "warmup"])
def test_noam_rate_refuses_bad_numbers(name):
    """0、小数、真偽値は、引数の名前を述べて断る。"""
    good = {"step": 3, "d_model": 4, "warmup": 5}
    with pytest.raises(ValueError, match=f"{name} は 1 以上にしてください: 0"):
        noam_rate(**{**good, name: 0})
    for bad in (1.5, True, "1"):
        with pytest.raises(TypeError, match=f"{name} には整数を"):
            noam_rate(**{**good, name: bad})


# ---- ラベル平滑化 ----


def test_label_smoothing_by_hand():
    """V = 4、ε = 0.2: 正解に 0.85、ほかの三つに 0.05 ずつ。詰めものの位置は数えない。"""
    p = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.97, 0.01, 0.01, 0.01]])
    found = label_smoothing_loss(p.log(), torch.tensor([3, 0]), epsilon=0.2)
    expected = -(0.85 * math.log(0.4) + 0.05 * sum(map(math.log, (0.1, 0.2, 0.3))))
    assert found.item() == pytest.approx(expected, rel=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    size=st.integers(2, 12),
    epsilon=st.floats(0, 1),
    pad=st.integers(-1, 1),
)
def test_label_smoothing_equals_torch(seed, size, epsilon, pad):
    """値も勾配も、cross_entropy(label_smoothing, ignore_index) と等しい。"""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 5, size, generator=generator, dtype=torch.float64) * 3
    target = torch.randint(size, (3, 5), generator=generator)
    target[0, 0] = size - 1 if pad != size - 1 else 0  # 数える位置が一つはある
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss = label_smoothing_loss(ours, target, epsilon, pad)
    expected = F.cross_entropy(
        theirs.flatten(0, 1), target.flatten(), ignore_index=pad, label_smoothing=epsilon
    )
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-12)


def test_gradient_is_probability_minus_smoothed_target():
    """logits についての勾配は (p - q') / N で、詰めものの位置では 0。"""
    logits = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([2, 0, 4, 1])
    label_smoothing_loss(logits, target, epsilon=0.1).backward()
    q = 0.9 * F.one_hot(target, 5).double() + 0.1 / 5
    expected = (logits.detach().softmax(-1) - q) / 3 * (target != 0)[:, None]
    torch.testing.assert_close(logits.grad, expected, rtol=1e-10, atol=1e-12)


def test_smoothed_loss_is_least_at_the_smoothed_target():
    """損失が最小になるのは、p が q' のとき。最小値は q' のエントロピーで、0 ではない。"""
    q = torch.tensor([[0.025, 0.925, 0.025, 0.025]], dtype=torch.float64)
    target = torch.tensor([1])
    least = label_smoothing_loss(q.log(), target, epsilon=0.1)
    assert least.item() == pytest.approx(-(q * q.log()).sum().item(), rel=1e-12)
    for _ in range(20):
        other = q.log() + 0.3 * torch.randn(1, 4, dtype=torch.float64)
        assert label_smoothing_loss(other, target, epsilon=0.1) > least


def test_defaults_are_the_papers():
    """既定は ε = 0.1、詰めものは 0。"""
    logits, target = torch.randn(6, 7), torch.tensor([0, 1, 2, 3, 0, 6])
    assert label_smoothing_loss(logits, target) == label_smoothing_loss(logits, target, 0.1, 0)


def test_all_padding_gives_nan_and_int32_is_accepted():
    """数える位置がなければ NaN。int32 の正解も受け取る。"""
    logits = torch.randn(2, 5)
    assert label_smoothing_loss(logits, torch.tensor([0, 0])).isnan()
    assert label_smoothing_loss(logits, torch.tensor([1, 2], dtype=torch.int32)).isfinite()


@pytest.mark.parametrize(
    ("logits", "target", "options", "error", "message"),
    [
        ([[0.0]], torch.tensor([0]), {}, TypeError, "logits には小数のテンソル"),
        (torch.zeros(2, 3, dtype=torch.long), torch.tensor([1, 1]), {}, TypeError, "logits"),
        (torch.zeros(2, 3), torch.tensor([1.0, 2.0]), {}, TypeError, "target には整数"),
        (torch.zeros(2, 3), torch.tensor([True, False]), {}, TypeError, "target には整数"),
        (torch.zeros(2, 3), torch.tensor([1]), {}, ValueError, r"\(2, 3\) と \(1,\)"),
        (torch.zeros(2, 3), torch.tensor([1, 3]), {}, ValueError, "0 以上 3 未満.*1 から 3"),
        (torch.zeros(2, 3), torch.tensor([1, -1]), {}, ValueError, "-1 から 1"),
        (torch.zeros(2, 3), torch.tensor([1, 2]), {"epsilon": 1.1}, ValueError, "epsilon.*1.1"),
        (torch.zeros(2, 3), torch.tensor([1, 2]), {"epsilon": -0.1}, ValueError, "epsilon"),
        (torch.zeros(2, 3), torch.tensor([1, 2]), {"epsilon": "a"}, TypeError, "epsilon"),
    ],
)  # fmt: skip
def test_label_smoothing_refuses_bad_input(logits, target, options, error, message):
    """誤った入力は、引数の名前と値を述べて断る。"""
    with pytest.raises(error, match=message):
        label_smoothing_loss(logits, target, **options)
