"""shared.parallel: N プロセスの学習は 1 プロセスと同じ。プロセスが死ねば、壊さずに終わる。"""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from shared import checkpoints, parallel
from shared.training import train

STEPS = 9


class Model(nn.Module):
    """ModuleList の層と、forward ではないメソッドと、共有した重みを持つ。"""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 4)) for _ in "ab")
        self.out = nn.Linear(4, 7, bias=False)
        self.out.weight = self.embed.weight

    def encode(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for block in self.blocks:
            x = x + block(x).tanh()
        return x


def loss(model: Model, batch: list[Tensor]) -> tuple[Tensor, dict[str, float]]:
    ids, target = batch
    value = nn.functional.cross_entropy(model.out(model.encode(ids)), target)
    return value, {"平均": float(ids.double().mean())}


def noisy(model: Model, batch: list[Tensor]) -> Tensor:
    """プロセスによって違う数の乱数を使う損失。"""
    return loss(model, batch)[0] * (1 + torch.rand(1 + parallel.rank())[-1])


def evaluate(model: Model) -> dict[str, float]:
    return {"評価": float(model.encode(torch.arange(7)).square().sum())}


def job(folder: Path, seed: int = 0, **changed: Any) -> Any:
    """`seed` は、重みの初めの値とデータの並びを決める。1 番のプロセスには別のファイル名を渡す。"""
    mark = "-1" if os.environ.get("RANK") == "1" else ""
    torch.manual_seed(seed)
    ids = torch.arange(42) % 7
    batches = DataLoader(TensorDataset(ids, (ids * ids + 1) % 7), 3, shuffle=True)
    folder.mkdir(exist_ok=True)
    settings: dict[str, Any] = {
        "loss": loss, "steps": STEPS, "rate": 0.03, "clip": 0.7, "accumulate": 4, "ema": 0.7,
        "evaluate": evaluate, "evaluate_every": 4, "checkpoint": folder / f"c{mark}",
        "log": folder / f"log{mark}",
    }  # fmt: skip
    return train(Model().double(), batches, **(settings | changed))


def member(rank: int, port: int, folder: Path) -> None:
    """2 個のうち `rank` 番のプロセスの仕事。種は、プロセスごとに変えても 0 番に揃う。"""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    job(folder / "DDP", seed=rank)
    result = job(folder / "FSDP2", seed=rank, shard=True)
    assert all(isinstance(p, parallel.DTensor) for p in result.model.parameters())
    for steps in (3, STEPS):
        job(folder / "FSDP2, resumed", seed=rank, shard=True, steps=steps)
    job(folder / "1 to FSDP2", seed=rank, shard=True)
    job(folder / "1 to DDP", seed=rank)
    job(folder / "FSDP2 to 1", seed=rank, shard=True, steps=5)
    for name, stops in (("noisy", [STEPS]), ("noisy, resumed", [4, STEPS])):
        for steps in stops:
            job(folder / name, seed=rank, loss=noisy, steps=steps)
    job(folder / "no EMA", seed=rank, shard=True, ema=None, clip=None)
    try:
        job(folder / "odd", accumulate=3)
    except ValueError as error:
        (folder / f"odd-{rank}.txt").write_text(str(error), encoding="utf-8")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1 プロセスの学習と、2 プロセスの学習の結果。"""
    folder = tmp_path_factory.mktemp("parallel")
    job(folder / "one")
    job(folder / "one, no EMA", ema=None, clip=None)
    for name in ("1 to FSDP2", "1 to DDP"):
        job(folder / name, steps=5)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context: Any = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo", "shared.training"])
    members = [context.Process(target=member, args=(rank, port, folder)) for rank in range(2)]
    for process in members:
        process.start()
    for process in members:
        process.join(300)
    assert [process.exitcode for process in members] == [0, 0]
    job(folder / "FSDP2 to 1")
    return folder


def assert_same_run(one: Path, other: Path) -> None:
    first, second = checkpoints.load(one / "c"), checkpoints.load(other / "c")
    assert first is not None
    assert second is not None
    assert len(first["history"]) == len(second["history"]) == STEPS
    for a, b in zip(first["history"], second["history"], strict=True):
        assert a.keys() == b.keys()
        assert b == pytest.approx(a, abs=1e-9)
    assert second["settings"] == first["settings"]
    assert second["optimizer"]["param_groups"] == first["optimizer"]["param_groups"]
    for part in (lambda s: s["model"], lambda s: s["optimizer"]["state"], lambda s: s["ema"] or {}):
        torch.testing.assert_close(part(second), part(first), rtol=0, atol=1e-9)
    log = (other / "log").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in log] == second["history"]
    assert sorted(path.name for path in other.iterdir()) == ["c", "log"]  # 1 番は書かない


RUNS = ("DDP", "FSDP2", "FSDP2, resumed", "1 to FSDP2", "1 to DDP", "FSDP2 to 1")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="forkserver と gloo のない環境がある")
@pytest.mark.parametrize("name", RUNS)
def test_two_processes_equal_one(folder: Path, name: str):
    assert_same_run(folder / "one", folder / name)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="forkserver と gloo のない環境がある")
def test_two_processes_without_ema(folder: Path):
    assert_same_run(folder / "one, no EMA", folder / "no EMA")
    for rank in range(2):
        message = (folder / f"odd-{rank}.txt").read_text(encoding="utf-8")
        assert "accumulate はプロセスの数 2 の倍数にしてください: 3" in message


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="forkserver と gloo のない環境がある")
def test_every_process_gets_its_own_randomness_back(folder: Path):
    """乱数を使う学習も、同じ数のプロセスで続ければ 1 ビットも違わない。"""
    one, other = (checkpoints.load(folder / n / "c") for n in ("noisy", "noisy, resumed"))
    assert one is not None
    assert other is not None
    assert other["history"] == one["history"]
    torch.testing.assert_close(other["model"], one["model"], rtol=0, atol=0)
    assert not torch.equal(one["random"][0]["torch"], one["random"][1]["torch"])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="kill -9 と gloo のない環境がある")
def test_killed_worker_ends_the_job(folder: Path):
    """torchrun の一人が死ねば、全体が 0 でない終了コードで終わり、そこから続けられる。"""
    target = folder / "killed"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [__file__, str(target)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode != 0
    assert "SIGKILL" in done.stderr or "-9" in done.stderr
    state = checkpoints.load(target / "c")
    assert state is not None
    assert len(state["history"]) == 6
    assert [path.name for path in sorted(target.iterdir())] == ["c", "log"]
    job(target)
    assert_same_run(folder / "one", target)


def fatal(model: Model, batch: list[Tensor]) -> tuple[Tensor, dict[str, float]]:
    """1 番のプロセスは、7 ステップ目に自分を kill -9 する。"""
    fatal.calls += 1  # pyright: ignore[reportFunctionMemberAccess]
    if parallel.rank() == 1 and fatal.calls == 13:  # pyright: ignore[reportFunctionMemberAccess]
        os.kill(os.getpid(), signal.SIGKILL)
    return loss(model, batch)


if __name__ == "__main__":  # torchrun がこのファイルを動かすとき
    fatal.calls = 0  # pyright: ignore[reportFunctionMemberAccess]
    job(Path(sys.argv[1]), loss=fatal, checkpoint_every=2)
