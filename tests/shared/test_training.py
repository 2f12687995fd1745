"""shared.training: 論文の式どおりに重みが動くか、平らに書いた torch の繰り返しと一致するか。"""

import copy
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from shared import progress
from shared.training import to_device, train, update_ema

Batch = tuple[Tensor, Tensor]


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).double()


def some_batches(n: int = 5, size: int = 4) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    draw = [torch.randn(2, size, 3, generator=generator, dtype=torch.float64) for _ in range(n)]
    return [(x, y[:, :2] * 3 + x[:, :2]) for x, y in draw]


def mse(model: nn.Module, batch: Batch) -> Tensor:
    return (model(batch[0]) - batch[1]).square().mean()


class Scalar(nn.Module):
    """重みが一つの数だけのモデル。"""

    def __init__(self, w: float = 1.0) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w, dtype=torch.float64))


def slope(model: Scalar, batch: float) -> Tensor:
    """勾配がちょうど batch になる損失。"""
    return model.w * batch


def assert_same_weights(one: nn.Module, other: nn.Module, atol: float = 1e-12) -> None:
    for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, atol=atol, rtol=0)


# ---- 重みの更新 ---------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "decay"), [("adam", 0.0), ("adam", 0.3), ("adamw", 0.3)])
def test_update_follows_the_papers(name: str, decay: float):
    """Adam は Kingma and Ba の Algorithm 1。AdamW は減衰を勾配に足さず、重みから直に引く。"""
    gradients, (b1, b2), eps, rate = [0.5, -2.0, 0.1, 3.0], (0.8, 0.95), 0.01, 0.1
    w, m, v = 1.0, 0.0, 0.0
    for t, gradient in enumerate(gradients, start=1):
        g = gradient + (decay * w if name == "adam" else 0.0)
        if name == "adamw":
            w -= rate * decay * w
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        w -= rate * (m / (1 - b1**t)) / ((v / (1 - b2**t)) ** 0.5 + eps)
    model = Scalar()
    train(model, gradients, slope, steps=4, optimizer=name, rate=rate, betas=(b1, b2), eps=eps,
          weight_decay=decay)  # fmt: skip
    assert model.w.item() == pytest.approx(w, abs=1e-12)


@pytest.mark.parametrize("clip", [None, 0.05, 1e9])
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
def test_equals_a_plain_loop(kind: type[torch.optim.Optimizer], clip: float | None):
    plain, batches, losses = network(), some_batches(), []
    optimizer = kind(plain.parameters(), lr=0.02)  # pyright: ignore[reportCallIssue]
    for step in range(8):
        value = mse(plain, batches[step % 5])
        losses.append(value.item())
        optimizer.zero_grad()
        value.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(plain.parameters(), clip)
        optimizer.step()

    model: nn.Module = network()
    given: Any = {torch.optim.Adam: "adam", torch.optim.AdamW: "adamw"}.get(kind)
    decay = 0.01 if given == "adamw" else 0.0  # torch の AdamW が省いたときに使う値
    given = given or kind(model.parameters(), lr=0.02)  # pyright: ignore[reportCallIssue]
    result = train(model, batches, mse, steps=8, optimizer=given, rate=0.02, clip=clip,
                   weight_decay=decay)  # fmt: skip
    assert result.losses == pytest.approx(losses, abs=1e-12)
    assert result.model is model
    assert_same_weights(plain, model)


def test_rate_gets_the_step_from_one_before_the_update():
    model, seen = Scalar(), []

    def rate(step: int) -> float:
        seen.append((step, model.w.item()))
        return step / 10

    unused = nn.Parameter(torch.zeros(1))
    model.register_parameter("unused", unused)
    sgd = torch.optim.SGD([{"params": [unused]}, {"params": [model.w]}], lr=99.0)
    result = train(model, [1.0], slope, steps=3, optimizer=sgd, rate=rate)
    assert [step for step, _ in seen] == [1, 2, 3]
    assert [w for _, w in seen] == pytest.approx([1.0, 0.9, 0.7])
    assert model.w.item() == pytest.approx(0.4)
    assert [record["rate"] for record in result.history] == [0.1, 0.2, 0.3]


def test_rate_left_out():
    """自分で作った optimizer の学習率はそのまま。"adam" なら 1e-3。"""
    one, other = Scalar(), Scalar()
    groups = [{"params": one.parameters(), "lr": 0.5}, {"params": other.parameters()}]
    sgd = torch.optim.SGD(groups, lr=0.25)
    model = nn.ModuleList([one, other])
    result = train(model, [1.0], lambda m, b: (m[0].w + m[1].w) * b, steps=1, optimizer=sgd)
    assert (one.w.item(), other.w.item()) == (0.5, 0.75)
    assert result.history[0]["rate"] == 0.5
    assert train(Scalar(), [1.0], slope, steps=1).history[0]["rate"] == 1e-3


@pytest.mark.parametrize("k", [2, 3])
def test_accumulation_equals_a_larger_batch(k: int):
    batches = some_batches(6)
    large = [tuple(map(torch.cat, zip(*batches[i : i + k], strict=True))) for i in range(0, 6, k)]
    one, other = network(), network()
    small = train(one, batches, mse, steps=9, accumulate=k, clip=0.5)
    assert small.losses == pytest.approx(train(other, large, mse, steps=9, clip=0.5).losses)
    assert_same_weights(one, other)


def test_batches_are_read_again_and_again():
    """accumulate の途中で尽きても、次の周から続ける。"""
    seen: list[float] = []

    def loss(model: Scalar, batch: float) -> Tensor:
        seen.append(batch)
        return slope(model, batch)

    result = train(Scalar(), [1.0, 2.0, 3.0], loss, steps=4, accumulate=2)
    assert seen == [1, 2, 3, 1, 2, 3, 1, 2]
    assert result.losses[0] == 1.5


def test_frozen_weights_and_old_gradients():
    """学習しない重みは動かず、前から残っていた勾配は使わない。"""
    frozen, moving = nn.Linear(3, 3).double().requires_grad_(False), nn.Linear(3, 2).double()
    model = nn.Sequential(frozen, moving)
    before = copy.deepcopy(model)
    moving.weight.grad = torch.full_like(moving.weight, 1e6)
    train(model, some_batches(1), mse, steps=1, rate=1.0, eps=1e6)  # 動きは勾配の 1e-6 倍
    assert_same_weights(frozen, before[0])
    assert 0 < (moving.weight - before.get_parameter("1.weight")).abs().max() < 1e-3


# ---- 移動平均・評価・精度 -----------------------------------------------------------------


def test_ema_formula():
    model, average, seen = Scalar(2.0), 2.0, []
    sgd = torch.optim.SGD(model.parameters())
    result = train(model, [1.0, -3.0], slope, steps=4, optimizer=sgd, rate=0.1, ema=0.9,
                   evaluate=lambda m: seen.append(m.w.item()) or {}, evaluate_every=1)  # fmt: skip
    expected, w = [], 2.0
    for gradient in [1.0, -3.0, 1.0, -3.0]:
        w -= 0.1 * gradient
        average = 0.9 * average + 0.1 * w
        expected.append(average)
    assert seen == pytest.approx(expected, abs=1e-12)
    assert isinstance(result.ema, Scalar)
    assert result.ema.w.item() == pytest.approx(average, abs=1e-12)
    assert model.w.item() == pytest.approx(w, abs=1e-12)
    assert not result.ema.training
    assert not result.ema.w.requires_grad
    assert train(Scalar(), [1.0], slope, steps=1).ema is None


def test_ema_copies_statistics():
    averaged, model = nn.BatchNorm1d(1), nn.BatchNorm1d(1)
    model(torch.tensor([[5.0], [7.0]]))
    nn.init.constant_(model.weight, 3.0)
    update_ema(averaged, model, 0.75)
    assert averaged.weight.item() == 1.5
    assert model.running_mean is not None
    assert torch.equal(averaged.get_buffer("running_mean"), model.running_mean)
    assert averaged.get_buffer("num_batches_tracked") == 1


def test_evaluation():
    model = nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5)).double().eval()
    model[1].train()
    modes: list[Any] = []

    def evaluate(judged: nn.Module) -> dict[str, Any]:
        modes.append((judged is model, judged.training, model[1].training, torch.is_grad_enabled()))
        return {"誤差": torch.tensor(len(modes) / 2)}

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        assert model.training
        assert model[1].training  # pyright: ignore[reportIndexIssue]
        return mse(model, batch)

    result = train(model, some_batches(), loss, steps=7, evaluate=evaluate, evaluate_every=3)
    assert modes == [(True, False, False, False)] * 2
    assert [record.get("誤差") for record in result.history] == [
        None, None, 0.5, None, None, 1.0, None,
    ]  # fmt: skip
    assert not model.training
    assert model[1].training


def test_autocast():
    seen = []

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        out = model(batch[0].float())
        seen.append(out.dtype)
        return (out.float() - batch[1].float()).square().mean()

    def evaluate(model: nn.Module) -> dict[str, float]:
        seen.append(model(torch.zeros(1, 3)).dtype)
        return {}

    model = network().float()
    losses = train(model, some_batches(1), loss, steps=30, autocast=torch.bfloat16, rate=0.05,
                   evaluate=evaluate, evaluate_every=30).losses  # fmt: skip
    assert seen == [torch.bfloat16] * 30 + [torch.float32]
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert losses[-1] < losses[0] / 2


# ---- 記録と表示 ---------------------------------------------------------------------------


def test_log_and_history(tmp_path: Path):
    def loss(model: Scalar, batch: float) -> tuple[Tensor, dict[str, Any]]:
        return slope(model, batch), {"正解率": torch.tensor(batch), "n": 1}

    log = tmp_path / "新しいフォルダー" / "log.jsonl"
    arguments = {"steps": 2, "accumulate": 2, "rate": 0.5, "log": log}
    result = train(Scalar(), [1.0, 3.0], loss, **arguments)
    text = log.read_text(encoding="utf-8")
    assert [json.loads(line) for line in text.splitlines()] == result.history
    assert result.history[0] == {"step": 1, "loss": 2.0, "rate": 0.5, "正解率": 2.0, "n": 1.0}
    assert text.endswith("}\n")
    assert "正解率" in text
    train(Scalar(), [1.0, 3.0], loss, **arguments)  # 初めから学習し直すと、書き直される
    assert log.read_text(encoding="utf-8") == text


def test_progress_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def shown(**options: Any) -> str:
        train(Scalar(), [1.0], slope, steps=3, **options)
        return capsys.readouterr().err

    monkeypatch.delenv("GENAI_NOTES_STRICT", raising=False)
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    assert shown() == ""  # 端末ではない
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert "3/3" in shown()
    assert shown(progress=False) == ""
    monkeypatch.setenv("GENAI_NOTES_STRICT", "1")
    assert shown() == ""
    monkeypatch.delenv("GENAI_NOTES_STRICT")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    monkeypatch.setitem(sys.modules, "ipykernel", ModuleType("ipykernel"))
    assert "3/3" in shown()


def test_live_plot(monkeypatch: pytest.MonkeyPatch):
    """ノートブックでは一つの図を描き直す。検査のとき (GENAI_NOTES_STRICT) と端末では描かない。"""
    pytest.importorskip("IPython")
    drawn: list[list[float]] = []

    def display(figure: Any, display_id: bool) -> SimpleNamespace:
        def update(figure: Any) -> None:
            drawn.append(figure.axes[0].lines[0].get_ydata().tolist())

        assert display_id
        update(figure)
        return SimpleNamespace(update=update)

    monkeypatch.setattr("IPython.display.display", display)
    monkeypatch.setattr(progress, "REDRAW_EVERY", 0.0)
    monkeypatch.delenv("GENAI_NOTES_STRICT", raising=False)
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    train(Scalar(), [1.0], slope, steps=2, plot=True, progress=False)
    assert drawn == []
    monkeypatch.setitem(sys.modules, "ipykernel", ModuleType("ipykernel"))
    losses = train(Scalar(), [1.0], slope, steps=2, plot=True, progress=False).losses
    assert drawn == [losses[:1], losses, losses]
    monkeypatch.setenv("GENAI_NOTES_STRICT", "1")
    train(Scalar(), [1.0], slope, steps=2, plot=True)
    assert len(drawn) == 3


class Pair(NamedTuple):
    x: Tensor
    y: Any


def test_batches_move_to_the_device_of_the_model():
    x = torch.ones(2)
    batch = {"a": [x, (x, "文字列")], "b": Pair(x, None), "c": 3}
    moved = to_device(batch, torch.device("meta"))
    assert moved["a"][0].is_meta
    assert moved["a"][1][0].is_meta
    assert moved["a"][1][1] == "文字列"
    assert isinstance(moved["b"], Pair)
    assert moved["b"].x.is_meta
    assert (moved["b"].y, moved["c"]) == (None, 3)


# ---- 止まるとき ---------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_stops_on_a_bad_loss_before_the_weights_move(bad: float, tmp_path: Path):
    model, file = Scalar(), tmp_path / "checkpoint"
    batches = [1.0, 1.0, 1.0, 1.0, bad]
    weights = []

    def loss(model: Scalar, batch: float) -> Tensor:
        weights.append(model.w.item())
        return slope(model, batch)

    with pytest.raises(
        FloatingPointError, match=r"損失が -?(nan|inf) .*ステップ 3、1 周目の 5 番目"
    ):
        train(model, batches, loss, steps=9, accumulate=2, checkpoint=file, checkpoint_every=1)
    assert model.w.item() == weights[-1]
    with pytest.raises(FloatingPointError):  # 続きからでも、同じ所で止まる
        train(Scalar(), batches, loss, steps=9, accumulate=2, checkpoint=file, checkpoint_every=1)
    assert len(weights) == 6


@pytest.mark.parametrize("clip", [None, 2.0])
def test_stops_on_a_bad_gradient_before_the_weights_move(clip: float | None):
    """w = 0 での √w は、値は有限で勾配だけが無限大になる。"""
    model = Scalar()
    sgd = torch.optim.SGD(model.parameters())

    def loss(model: Scalar, batch: str) -> Tensor:
        return model.w.sqrt() if batch == "√w" else model.w * 1.0

    with pytest.raises(
        FloatingPointError, match=r"勾配の大きさが inf .*ステップ 2、1 周目の 2 番目"
    ):
        train(model, ["w", "√w"], loss, steps=3, optimizer=sgd, rate=1.0, clip=clip)
    assert model.w.item() == 0.0


def test_modes_are_restored_after_an_error():
    model = network().eval()
    with pytest.raises(ZeroDivisionError):
        train(model, [1], lambda m, b: 1 / 0, steps=1)  # pyright: ignore[reportArgumentType]
    assert not any(module.training for module in model.modules())


class Shrinking:
    """二周目には空になる。"""

    left = 1

    def __iter__(self) -> Iterator[float]:
        self.left -= 1
        return iter([1.0] * (self.left + 1))


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "batches が空です"),
        (iter([]), "batches が空です"),
        (Shrinking(), r"batches が空です(2 周目)"),
        (iter([1.0, 1.0]), "batches が 2 バッチで終わりました。一度しか読めないイテレーター"),
    ],
)
def test_batches_run_out(batches: Any, message: str):
    with pytest.raises(ValueError, match=message.replace("(", r"\(").replace(")", r"\)")):
        train(Scalar(), batches, slope, steps=3)


def test_iterator_with_enough_batches():
    assert len(train(Scalar(), iter([1.0] * 3), slope, steps=3).history) == 3


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"model": len}, TypeError, "model"),
    ({"model": nn.Tanh()}, ValueError, "model"),
    ({"model": Scalar().requires_grad_(False)}, ValueError, "model"),
    ({"batches": 3}, TypeError, "batches"),
    ({"loss": None}, TypeError, "loss"),
    ({"loss": lambda m, b: 1.0}, TypeError, "loss"),
    ({"loss": lambda m, b: m.w.detach()}, ValueError, "loss"),
    ({"loss": lambda m, b: m.w.expand(2)}, ValueError, "loss"),
    ({"loss": lambda m, b: (m.w, 1.0)}, TypeError, "loss"),
    ({"loss": lambda m, b: (m.w, {"rate": 1.0})}, ValueError, "rate"),
    ({"steps": 0}, ValueError, "steps"),
    ({"steps": 2.5}, TypeError, "steps"),
    ({"steps": True}, TypeError, "steps"),
    ({"accumulate": 0}, ValueError, "accumulate"),
    ({"optimizer": "sgd"}, ValueError, "optimizer"),
    ({"optimizer": torch.optim.SGD}, ValueError, "optimizer"),
    ({"optimizer": torch.optim.SGD(Scalar().parameters())}, ValueError, "optimizer"),
    ({"rate": -0.1}, ValueError, "rate"),
    ({"rate": "0.1"}, TypeError, "rate"),
    ({"rate": lambda step: float("nan")}, ValueError, "rate"),
    ({"rate": lambda step: None}, TypeError, "rate"),
    ({"betas": 0.9}, TypeError, "betas"),
    ({"betas": (0.9, 1.0)}, ValueError, "betas"),
    ({"eps": -1e-8}, ValueError, "eps"),
    ({"weight_decay": -1}, ValueError, "weight_decay"),
    ({"clip": 0.0}, ValueError, "clip"),
    ({"clip": float("nan")}, ValueError, "clip"),
    ({"autocast": torch.float16}, ValueError, "autocast"),
    ({"autocast": True}, ValueError, "autocast"),
    ({"ema": 0.0}, ValueError, "ema"),
    ({"ema": 1.0}, ValueError, "ema"),
    ({"ema": "0.9"}, TypeError, "ema"),
    ({"evaluate_every": 5}, ValueError, "evaluate"),
    ({"evaluate": dict}, ValueError, "evaluate_every"),
    ({"evaluate": 3, "evaluate_every": 1}, TypeError, "evaluate"),
    ({"evaluate": lambda m: 0.5, "evaluate_every": 1}, TypeError, "evaluate"),
    ({"evaluate": lambda m: {"loss": 0.5}, "evaluate_every": 1}, ValueError, "loss"),
    ({"evaluate_every": -1}, ValueError, "evaluate_every"),
    ({"checkpoint_every": 5}, ValueError, "checkpoint"),
    ({"generators": [0]}, TypeError, "generators"),
    ({"generators": torch.Generator()}, TypeError, "generators"),
]


@pytest.mark.parametrize(("wrong", "error", "name"), WRONG)
def test_wrong_arguments(wrong: dict[str, Any], error: type[Exception], name: str):
    good: dict[str, Any] = {"model": Scalar(), "batches": [1.0], "loss": slope, "steps": 1}
    with pytest.raises(error, match=name) as caught:
        train(**(good | wrong))
    assert any("ぁ" <= letter <= "ん" for letter in str(caught.value))


@pytest.mark.parametrize(
    ("wrong", "name"),
    [({"weight_decay": 0.1, "eps": 1.0}, "eps・weight_decay"), ({"shard": True}, "shard")],
)
def test_options_that_an_own_optimizer_would_ignore(wrong: dict[str, Any], name: str):
    model = Scalar()
    sgd = torch.optim.SGD(model.parameters())
    with pytest.raises(ValueError, match=name):
        train(model, [1.0], slope, steps=1, optimizer=sgd, **wrong)
