"""shared.checkpoints: いつ止まっても、続きは、止まらなかった場合と 1 ビットも違わない。"""

import multiprocessing
import os
import pickle
import random
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from shared import checkpoints, files, training
from shared.checkpoints import CheckpointError
from shared.training import train

STEPS = 23
X = torch.linspace(-1, 1, 30).reshape(10, 3)
Y = X.sum(1, keepdim=True).sin()


def identical(one: Any, other: Any) -> bool:
    """型も形もビットも同じか。"""
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return [*one] == [*other] and all(identical(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(identical, one, other))
    return one == other


class OwnOrder:
    """読み始めに並べ替え、読むたびに雑音を足す。乱数の出どころを選べる。"""

    def __init__(self, shuffle: Callable[[list[int]], None], noise: Callable[[], float]) -> None:
        self.shuffle, self.noise = shuffle, noise

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = list(range(10))
        self.shuffle(order)
        for i in range(0, 10, 2):
            chosen = order[i : i + 2]
            yield X[chosen] + self.noise(), Y[chosen]


class Stateful:
    """自分で位置を覚えるもの。乱数の状態は残さず、並びは何周目かだけで決まる。"""

    def __init__(self) -> None:
        self.epoch, self.place, self.reads = 0, 0, 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = np.random.default_rng(self.epoch).permutation(10).tolist()
        while self.place < 10:
            self.place += 2
            self.reads += 1
            yield X[order[self.place - 2 : self.place]], Y[order[self.place - 2 : self.place]]
        self.epoch, self.place = self.epoch + 1, 0

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "place": self.place}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.place = state["epoch"], state["place"]


def endless() -> Iterator[tuple[Tensor, Tensor]]:
    """終わらないデータ。"""
    while True:
        x = torch.randn(2, 3)
        yield x, x.sum(1, keepdim=True).sin()


def data_named(name: str) -> tuple[Any, list[Any]]:
    """(バッチの列, それが使う乱数)。"""
    g, own, python = torch.Generator().manual_seed(3), np.random.default_rng(4), random.Random(5)
    data = TensorDataset(X, Y)
    return {
        "list": lambda: ([(X[i : i + 2], Y[i : i + 2]) for i in range(0, 10, 2)], []),
        "loader": lambda: (DataLoader(data, 2, shuffle=True), []),
        "loader, generator": lambda: (DataLoader(data, 2, shuffle=True, generator=g), [g]),
        "python": lambda: (OwnOrder(random.shuffle, random.random), []),
        "numpy": lambda: (OwnOrder(np.random.shuffle, np.random.normal), []),
        "generators": lambda: (OwnOrder(python.shuffle, own.normal), [python, g, own]),
        "stateful": lambda: (Stateful(), []),
        "endless": lambda: (endless(), []),
    }[name]()


DATA = (
    "list",
    "loader",
    "loader, generator",
    "python",
    "numpy",
    "generators",
    "stateful",
    "endless",
)


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, float]]:
    x, y = batch
    return (model(x) - y).square().mean(), {"平均": float(x.mean())}


def job(folder: Path, data: str = "generators", width: int = 6, **changed: Any) -> Any:
    """乱数を使うあらゆるものを詰めこんだ学習。`folder` に c(チェックポイント)と log を書く。"""
    random.seed(0)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(2)
    model = nn.Sequential(
        nn.Linear(3, width), nn.BatchNorm1d(width), nn.Dropout(0.3), nn.ReLU(), nn.Linear(width, 1)
    )
    batches, generators = data_named(data)
    settings: dict[str, Any] = {
        "steps": STEPS, "optimizer": "adamw", "rate": lambda step: 0.02 / step**0.5,
        "weight_decay": 0.1, "clip": 0.5, "accumulate": 2, "ema": 0.8,
        "evaluate": lambda m: {"雑音": float(m(X).sum() + torch.rand(()))}, "evaluate_every": 4,
        "checkpoint": folder / "c", "checkpoint_every": 3, "log": folder / "log",
    }  # fmt: skip
    if changed.pop("freeze", False):
        model[0].requires_grad_(False)
    if "momentum" in changed:
        momentum = changed.pop("momentum")
        settings |= {"weight_decay": 0.0}
        settings["optimizer"] = torch.optim.SGD(model.parameters(), 0.1, momentum)
    return train(model, batches, loss, generators=generators, **(settings | changed))


def contents(folder: Path) -> tuple[Any, str]:
    return checkpoints.load(folder / "c"), (folder / "log").read_text(encoding="utf-8")


def assert_same_run(one: Path, other: Path) -> None:
    (state, log), (other_state, other_log) = contents(one), contents(other)
    assert other_log == log
    assert log.count("\n") == len(state["history"]) == STEPS
    assert identical(state, other_state)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """一度も止まらない学習が書いたフォルダー。"""
    folder = tmp_path_factory.mktemp("straight")
    job(folder)
    return folder


# ---- 止めて、続ける -----------------------------------------------------------------------


@pytest.mark.parametrize("data", DATA)
def test_every_source_of_data_and_randomness(tmp_path: Path, data: str):
    for name, stops in (("straight", [STEPS]), ("stopped", [4, 5, 11, STEPS])):
        (tmp_path / name).mkdir()
        for steps in stops:
            job(tmp_path / name, data, steps=steps)
    assert_same_run(tmp_path / "straight", tmp_path / "stopped")


@pytest.mark.parametrize("options", [{"momentum": 0.9}, {"optimizer": "adam", "ema": None}])
def test_other_optimizers_and_no_ema(tmp_path: Path, options: dict[str, Any]):
    for name, stops in (("straight", [STEPS]), ("stopped", [7, STEPS])):
        (tmp_path / name).mkdir()
        for steps in stops:
            job(tmp_path / name, "list", steps=steps, **options)
    assert_same_run(tmp_path / "straight", tmp_path / "stopped")


def test_position_kept_by_the_data_is_used():
    """state_dict を持つものは、読み直して飛ばさない。"""
    one, other = Stateful(), Stateful()
    stream = checkpoints.Stream(one, [], torch.device("cpu"))
    batches = [next(stream) for _ in range(9)]
    again = checkpoints.Stream(other, [], torch.device("cpu"))
    start = checkpoints.Stream(Stateful(), [], torch.device("cpu"))
    for _ in range(7):
        next(start)
    again.load_state_dict(start.state_dict())
    assert identical([next(again), next(again)], batches[7:])
    assert other.reads == 2
    assert (again.epoch, again.consumed) == (stream.epoch, stream.consumed) == (2, 4)


@pytest.mark.parametrize(("every", "saved"), [(1, 4), (2, 4), (3, 3), (5, 0), (0, 0)])
def test_checkpoint_every(tmp_path: Path, every: int, saved: int):
    """5 ステップ目の途中で止まったときに、残っているもの。"""

    def stop(step: int) -> float:
        if step == 5:
            raise KeyboardInterrupt
        return 0.1

    with pytest.raises(KeyboardInterrupt):
        job(tmp_path, "list", rate=stop, checkpoint_every=every)
    state = checkpoints.load(tmp_path / "c")
    assert (0 if state is None else len(state["history"])) == saved


def test_finished_run_is_only_read(straight: Path, tmp_path: Path):
    (tmp_path / "c").write_bytes((straight / "c").read_bytes())

    result = job(tmp_path, evaluate=lambda m: 1 / 0)
    assert_same_run(straight, tmp_path)
    state = contents(straight)[0]
    assert identical(dict(result.model.state_dict()), state["model"])
    assert identical(dict(result.ema.state_dict()), state["ema"])
    assert result.history == state["history"]


def test_log_with_lines_after_the_checkpoint(straight: Path, tmp_path: Path):
    job(tmp_path, steps=10)
    with (tmp_path / "log").open("a", encoding="utf-8") as file:
        file.write('{"step": 11, "loss": 9.9}\n{"step": 12, "lo')
    job(tmp_path)
    assert_same_run(straight, tmp_path)


def test_unfinished_files_are_removed(tmp_path: Path):
    """書きかけは消す。名前の似た別のチェックポイントの書きかけには触らない。"""
    ours, other = tmp_path / "c.abcd_123.tmp", tmp_path / "c.best.abcd_123.tmp"
    ours.write_bytes(b"half")
    other.write_bytes(b"half")
    job(tmp_path, steps=1)
    assert not ours.exists()
    assert other.exists()


# ---- kill -9 ------------------------------------------------------------------------------

CONTEXT: Any = multiprocessing.get_context("spawn" if sys.platform == "win32" else "forkserver")
if sys.platform != "win32":
    CONTEXT.set_forkserver_preload(["torch._dynamo", "shared.training"])  # 一度だけ読みこむ
WATCHED = {module.__file__ for module in (training, checkpoints, files)}


def die() -> None:
    os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))


def run_until(folder: Path, line: int) -> int:
    """学習の `line` 行目を実行する直前に自分を kill -9 する。実行した行の数を返す。"""
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        if frame.f_code.co_filename not in WATCHED:
            return None
        count += event == "line"
        if count == line:
            die()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        job(folder)
    finally:
        sys.settrace(before)
    return count


class HalfFile:
    """半分だけ書いて、自分を kill -9 する。"""

    def __init__(self, file: Any) -> None:
        self.file = file

    def __enter__(self) -> "HalfFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, raw: bytes) -> None:
        self.file.write(raw[: len(raw) // 2])
        self.file.flush()
        die()


def run_until_write(folder: Path, n: int) -> None:
    """ファイルへの `n` 回目の書き込み(1 回目は log)の途中で、自分を kill -9 する。"""
    opened, real = 0, os.fdopen

    def fdopen(descriptor: int, mode: str) -> Any:
        nonlocal opened
        opened += 1
        file = real(descriptor, mode)
        return HalfFile(file) if opened == n else file

    files.os.fdopen = fdopen  # pyright: ignore[reportAttributeAccessIssue]
    job(folder)


def exit_code(function: Callable[..., Any], *arguments: Any) -> int:
    process = CONTEXT.Process(target=function, args=arguments)
    process.start()
    process.join(300)
    assert process.exitcode is not None
    return process.exitcode


@pytest.mark.slow
def test_kill_at_random_moments(straight: Path, tmp_path_factory: pytest.TempPathFactory):
    """学習・checkpoints・files の、乱数で選んだ行で何度も殺し、そのたびに続ける。"""
    lines = run_until(tmp_path_factory.mktemp("count"), -1)
    choose, kills = random.Random(0), 0
    for _ in range(2):
        folder = tmp_path_factory.mktemp("killed")
        while exit_code(run_until, folder, choose.randint(1, lines // 2)) != 0:
            kills += 1
            state = checkpoints.load(folder / "c")  # いつ見ても壊れていない
            assert state is None or len(state["history"]) % 3 == 0
        assert_same_run(straight, folder)
    assert kills >= 6


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 2, 5])
def test_kill_during_a_write(straight: Path, tmp_path: Path, n: int):
    assert exit_code(run_until_write, tmp_path, n) != 0
    unfinished = [path.name for path in tmp_path.glob("*.tmp")]
    assert len(unfinished) == 1
    state = checkpoints.load(tmp_path / "c")
    assert (0 if state is None else len(state["history"])) == max(0, n - 2) * 3
    assert exit_code(job, tmp_path) == 0
    assert_same_run(straight, tmp_path)
    assert not [*tmp_path.glob("c.*.tmp")]


# ---- 壊れたもの、別のもの -----------------------------------------------------------------


def refused(folder: Path, message: str, **changed: Any) -> None:
    """断られ、ファイルは元のまま残る。"""
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(CheckpointError, match=message) as caught:
        job(folder, **changed)
    assert str(folder / "c") in str(caught.value)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99, 0.9999])
def test_truncated(straight: Path, tmp_path: Path, share: float):
    raw = (straight / "c").read_bytes()
    (tmp_path / "c").write_bytes(raw[: int(len(raw) * share)])
    (tmp_path / "log").write_text("大切な記録", encoding="utf-8")
    refused(tmp_path, "を読めません")


def test_flipped_bits(straight: Path, tmp_path: Path):
    """どのビットが化けても、断られるか、同じ内容が読める(詰めもののビットのとき)。"""
    raw, choose, caught = (straight / "c").read_bytes(), random.Random(0), 0
    state = checkpoints.load(straight / "c")
    for place in choose.sample(range(len(raw)), 150):
        broken = bytearray(raw)
        broken[place] ^= 1 << choose.randrange(8)
        (tmp_path / "c").write_bytes(broken)
        try:
            assert identical(checkpoints.load(tmp_path / "c"), state)
        except CheckpointError:
            caught += 1
    assert caught > 75


class Harmful:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("harm"),)


def test_code_in_a_file_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    for write in (torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))):
        write({"format": 1, "x": Harmful()}, tmp_path / "own" / "c")
        refused(tmp_path / "own", "を読めません")
        assert not (tmp_path / "harm").exists()


def test_other_formats(straight: Path, tmp_path: Path):
    state = checkpoints.load(straight / "c")
    torch.save([state], tmp_path / "c")
    refused(tmp_path, "を読めません")
    torch.save({**(state or {}), "format": 2}, tmp_path / "c")
    refused(tmp_path, "を読めません")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"width": 7}, r"別のモデルで.*。0\.weight が.*\[6, 3\].*\[7, 3\]"),
        ({"optimizer": "adam"}, "別の設定で.*。optimizer が.*adamw.*adam "),
        ({"betas": (0.9, 0.98)}, r"別の設定で.*。betas が.*0\.999.*0\.98"),
        ({"eps": 1e-9}, "別の設定で.*。eps が"),
        ({"weight_decay": 0.2}, r"別の設定で.*。weight_decay が.*0\.1.*0\.2"),
        ({"clip": None}, r"別の設定で.*。clip が.*0\.5.*None"),
        ({"accumulate": 1}, "別の設定で.*。accumulate が"),
        ({"ema": None}, "別の設定で.*。ema が"),
        ({"ema": 0.9}, "別の設定で.*。ema が"),
        ({"data": "list"}, "別の設定で.*。generators が"),
        ({"momentum": 0.9}, "別の設定で.*。optimizer が.*SGD"),
        ({"freeze": True}, r"別の最適化の設定で.*。param_groups\[0\]\.params が"),
        ({"steps": STEPS - 1}, f"{STEPS} ステップまで進んでいます.*{STEPS - 1}"),
    ],
)
def test_another_configuration(
    straight: Path, tmp_path: Path, changed: dict[str, Any], message: str
):
    for name in ("c", "log"):
        (tmp_path / name).write_bytes((straight / name).read_bytes())
    refused(tmp_path, message, **changed)


def test_own_optimizer_with_other_options(tmp_path: Path):
    job(tmp_path, steps=3, momentum=0.9)
    refused(tmp_path, r"別の最適化の設定.*\.momentum が.*0\.9.*0\.5", momentum=0.5)


def test_shorter_data_than_before(tmp_path: Path):
    batches = [(X[:2], Y[:2])] * 9

    def run(n: int) -> Any:
        return train(nn.Linear(3, 1), batches[:n], loss, steps=n, checkpoint=tmp_path / "c")

    run(5)
    with pytest.raises(ValueError, match=r"batches が 3 バッチで終わりました.*5"):
        train(nn.Linear(3, 1), batches[:3], loss, steps=9, checkpoint=tmp_path / "c")


def test_state_that_cannot_be_read_back_is_refused(tmp_path: Path):
    """書けても読めない状態で、読めるチェックポイントを上書きしない。"""
    stateful = Stateful()

    def run(steps: int) -> Any:
        return train(nn.Linear(3, 1), stateful, loss, steps=steps, checkpoint=tmp_path / "c")

    run(3)
    before = (tmp_path / "c").read_bytes()
    stateful.state_dict = lambda: {"epoch": np.float64(1.0)}  # type: ignore[method-assign]
    with pytest.raises(TypeError, match=r"チェックポイントに書けない値.*state_dict"):
        run(4)
    assert (tmp_path / "c").read_bytes() == before


def test_folder_in_place_of_the_checkpoint(tmp_path: Path):
    (tmp_path / "c").mkdir()
    with pytest.raises(OSError, match="c"):
        job(tmp_path)
