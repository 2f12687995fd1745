"""複数のプロセスでの学習。torchrun で起動すると、一つの学習を N プロセスで分け合う。

    torchrun --nproc-per-node 2 script.py

普通に起動したプロセスは「1 個のうちの 0 番」で、通信は一切しない。
"""

import io
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel


class Call(nn.Module):
    """`function(model, ...)` を forward にする包み。

    DDP と FSDP は forward の前後で通信する。損失の計算を丸ごと forward にすれば、その中で model の
    どのメソッドを呼んでもよい。
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(self.model, *arguments)


def rank() -> int:
    """このプロセスの番号(0 から)。"""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """プロセスの数。"""
    return dist.get_world_size() if dist.is_initialized() else 1


def start(model: nn.Module, accumulate: int) -> torch.device:
    """torchrun の下なら、通信を始めて重みを 0 番のプロセスに揃える。学習に使う機器を返す。

    Raises:
        ValueError: `accumulate` 個のバッチを、プロセスに等しく分けられないとき。
    """
    device = next(model.parameters()).device
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    if accumulate % world() != 0:
        raise ValueError(
            f"accumulate はプロセスの数 {world()} の倍数にしてください: {accumulate}"
            "(1 ステップのバッチを、プロセスで等しく分けるため)"
        )
    if world() > 1:
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(device)
            model.to(device)
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, src=0)
    return device


def spread(
    model: nn.Module, averaged: nn.Module | None, shard: bool
) -> tuple[nn.Module, nn.Module]:
    """モデルをプロセスに配り、学習用と評価用の、`f(関数, 引数...)` と呼べる形にする。

    既定では重みを全員が持ち(DDP)、勾配は backward の中で平均される(どの重みにも勾配が届くことが
    前提)。`shard` なら、重み・勾配・最適化の状態をプロセスの数に分けて持つ(FSDP2)。評価用は
    `averaged`、なければ `model`。
    """
    trained = Call(model)
    judged = trained if averaged is None else Call(averaged)
    if world() == 1:
        return trained, judged
    if not shard:
        return DistributedDataParallel(trained), judged
    _shard(trained)
    if judged is not trained:
        _shard(judged)
    return trained, judged


def _shard(call: Call) -> None:
    """nn.ModuleList に並ぶ層を一つずつの単位として、使う直前に集め、使い終えたら手放す。"""
    for module in reversed(list(call.modules())):
        if isinstance(module, nn.ModuleList):
            for block in module:
                if any(True for _ in block.parameters()):
                    fully_shard(block)
    fully_shard(call, reshard_after_forward=True)  # 省くと、評価の後に全体を持ったままになる


def without_sync(trained: nn.Module, wanted: bool) -> AbstractContextManager[None]:
    """`wanted` なら、DDP がこの中の backward で勾配を平均しない(足しこむ間は通信を省く)。"""
    if wanted and isinstance(trained, DistributedDataParallel):
        return trained.no_sync()
    return nullcontext()


def average(numbers: dict[str, float]) -> dict[str, float]:
    """名前ごとの、全員の平均。"""
    if world() == 1:
        return numbers
    device = torch.cuda.current_device() if dist.get_backend() == "nccl" else "cpu"
    total = torch.tensor(list(numbers.values()), dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return dict(zip(numbers, (total / world()).tolist(), strict=True))


def from_first(value: Any) -> Any:
    """0 番のプロセスの値を全員に配る。"""
    if world() == 1:
        return value
    box = [_pack(value)]
    dist.broadcast_object_list(box, src=0)
    return _unpack(box[0])


def from_all(value: Any) -> list[Any]:
    """全員の値を、番号の順に並べる。"""
    if world() == 1:
        return [value]
    box = [b""] * world()
    dist.all_gather_object(box, _pack(value))
    return [_unpack(raw) for raw in box]


def _pack(value: Any) -> bytes:
    """値をバイト列にする(pickle では、NumPy の乱数の状態にある uint32 のテンソルを送れない)。"""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _unpack(raw: bytes) -> Any:
    return torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)


def whole(tree: Any) -> Any:
    """分けて持っているテンソルを、全体を集めたものに替える(全員で呼ぶ)。"""
    if isinstance(tree, DTensor):
        return tree.full_tensor().cpu()
    if isinstance(tree, Mapping):
        return {key: whole(value) for key, value in tree.items()}
    return tree


def split(tree: Any, like: Any) -> Any:
    """`whole` の逆。`like` の同じ場所のテンソルと同じように分ける。"""
    if isinstance(tree, Mapping):
        return {key: split(value, like[key]) for key, value in tree.items()}
    if isinstance(like, DTensor):
        return distribute_tensor(tree.to(like.device), like.device_mesh, like.placements)
    return tree
