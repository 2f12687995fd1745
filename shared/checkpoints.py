"""学習の中断と再開。途中の状態を一つのファイルに残し、続きを一ビットも違えずに始める。

状態は、重み・最適化の内部状態・移動平均・乱数・データの位置・記録からなる辞書である。torch.save で
書き、torch.load(weights_only=True) で読むので、ファイルに仕込まれたコードが動くことはない。
"""

import glob
import io
import random
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from shared import parallel
from shared.files import write_atomically

FORMAT = 1  # 辞書の形を変えたら増やす
RandomSource = torch.Generator | np.random.Generator | random.Random


class CheckpointError(ValueError):
    """チェックポイントが壊れている、または別のモデルや設定で作られた。"""


def save(path: Path, state: Mapping[str, Any]) -> None:
    """`state` を `path` に書く。途中で止まっても、前のチェックポイントか新しいものの全体が残る。

    Raises:
        TypeError: weights_only=True では読めない値があるとき(前のファイルは残る)。
        OSError: フォルダーがない、書き込めない、空き容量がないとき。
    """
    buffer = io.BytesIO()
    try:
        torch.save({"format": FORMAT, **state}, buffer)
        _read(buffer)
    except Exception as error:
        raise TypeError(
            "チェックポイントに書けない値があります。モデル・optimizer・batches の state_dict は、"
            f"テンソルと、数・文字列・list・dict だけにしてください({error})"
        ) from error
    write_atomically(path, buffer.getvalue())


def load(path: Path) -> dict[str, Any] | None:
    """`path` の状態を CPU のテンソルとして読む。ファイルがまだなければ None。

    Raises:
        CheckpointError: 壊れている、途中で切れている、チェックポイントではないとき。
        OSError: 読み込めないとき。
    """
    if not path.exists():
        return None
    raw = path.read_bytes()
    try:
        # torch.load は検査和を確かめないので、先に zip として確かめる。
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            broken = archive.testzip()
        if broken is not None:
            raise zipfile.BadZipFile(f"CRC: {broken}")
        state = _read(io.BytesIO(raw))
        if state["format"] != FORMAT:
            raise KeyError("format")
    except Exception as error:
        raise CheckpointError(
            f"チェックポイント {path} を読めません({type(error).__name__}: {error})。壊れているか、"
            "別の形式のファイルです。ファイルはそのまま残してあります。初めから学習し直すなら、"
            "別の場所に移してから、もう一度実行してください"
        ) from error
    return state


def _read(file: io.BytesIO) -> dict[str, Any]:
    file.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 壊れたファイルについての英語の警告
        return torch.load(file, map_location="cpu", weights_only=True)


@dataclass
class Snapshot:
    """途中の状態のすべて。`path` が None なら、何も読み書きしない。

    複数のプロセスでは、分けて持つ重みを集めて 0 番が書き、0 番が読んで配る。ファイルの形は
    プロセスの数にも分け方にもよらないので、違う数でも続けられる(ビットまで同じなのは同じ数のとき)。
    """

    path: Path | str | None
    settings: dict[str, Any]
    model: nn.Module
    averaged: nn.Module | None
    optimizer: torch.optim.Optimizer
    data: "Stream"
    generators: Sequence[RandomSource]
    device: torch.device

    def save(self, history: list[dict[str, Any]]) -> None:
        """今の状態をファイルに書く。"""
        if self.path is None:
            return
        state = {
            "settings": self.settings,
            "model": parallel.whole(self.model.state_dict()),
            "optimizer": parallel.whole(self.optimizer.state_dict()),
            "ema": self.averaged and parallel.whole(self.averaged.state_dict()),
            "data": self.data.state_dict(),
            "random": parallel.from_all(random_states(self.generators, self.device)),
            "history": history,
        }
        if parallel.rank() == 0:
            save(Path(self.path), state)

    def load(self, steps: int) -> list[dict[str, Any]]:
        """ファイルがあれば、すべてをその時点に戻して、そこまでの記録を返す。なければ空の list。

        Raises:
            CheckpointError: 壊れているか、別のモデルや設定のもの、`steps` より先のもののとき。
        """
        if self.path is None:
            return []
        path = Path(self.path)
        state = None
        if parallel.rank() == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            for unfinished in path.parent.glob(f"{glob.escape(path.name)}.????????.tmp"):
                unfinished.unlink()  # 書いている途中で止められたもの
            state = load(path)
        state = parallel.from_first(state)
        if state is None:
            return []
        model, groups = self.model.state_dict(), self.optimizer.state_dict()["param_groups"]
        _require_same(path, "設定", state["settings"], self.settings)
        _require_same(path, "モデル", _shapes(state["model"]), _shapes(model))
        before = state["optimizer"]["param_groups"]
        _require_same(path, "最適化の設定", _fixed(before), _fixed(groups))
        if len(state["history"]) > steps:
            raise CheckpointError(
                f"チェックポイント {path} は {len(state['history'])} ステップまで進んでいます。"
                f"steps はそれ以上にしてください: {steps}"
            )
        self.model.load_state_dict(parallel.split(state["model"], model))
        if self.averaged is not None:
            averaged = parallel.split(state["ema"], self.averaged.state_dict())
            self.averaged.load_state_dict(averaged)
        self.optimizer.load_state_dict(self._split_moments(state["optimizer"]))
        self.data.load_state_dict(state["data"])
        states = state["random"]
        restore_random(states[parallel.rank() % len(states)], self.generators, self.device)
        return state["history"]

    def _split_moments(self, stored: dict[str, Any]) -> dict[str, Any]:
        """最適化の内部状態のうち重みと同じ形のものを、その重みと同じように分ける。"""
        weights = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        moments = {}
        for i, values in stored["state"].items():
            same = {name for name, v in values.items() if _shape(v) == _shape(weights[i])}
            likes = {name: weights[i] if name in same else None for name in values}
            moments[i] = parallel.split(values, likes)
        return {**stored, "state": moments}


def _require_same(path: Path, name: str, stored: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """チェックポイントの `name` の項目が今のものと一致しなければ、最初の食い違いを述べて断る。"""
    for key in [*now, *stored]:
        before, after = stored.get(key, "なし"), now.get(key, "なし")
        if before != after:
            raise CheckpointError(
                f"チェックポイント {path} は、別の{name}で作られています。{key} が、ファイルでは "
                f"{before}、今は {after} です。続きから始めるには同じ{name}を、初めから学習するには"
                "別の checkpoint を渡してください"
            )


def _shape(value: Any) -> list[int] | None:
    return list(value.shape) if isinstance(value, torch.Tensor) else None


def _shapes(state: Mapping[str, Any]) -> dict[str, list[int] | None]:
    return {name: _shape(value) for name, value in state.items()}


def _fixed(groups: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """最適化の設定のうち、続きから始めるときに同じでなければならないもの。

    学習率は動くもので、foreach や fused などは計算の手順だけを変えるものなので、除く。
    """
    free = {"lr", "initial_lr", "foreach", "fused", "capturable", "differentiable"}
    return {
        f"param_groups[{i}].{key}": list(value) if isinstance(value, tuple) else value
        for i, group in enumerate(groups)
        for key, value in group.items()
        if key not in free
    }


def random_states(generators: Sequence[RandomSource], device: torch.device) -> dict[str, Any]:
    """今の乱数の状態をすべて集める(Python・NumPy・PyTorch・`device`・`generators`)。"""
    other = None if device.type == "cpu" else torch.get_device_module(device).get_rng_state()
    return {
        "python": random.getstate(),
        "numpy": _plain(np.random.get_state(legacy=False)),  # noqa: NPY002
        "torch": torch.get_rng_state(),
        "device": (device.type, other),
        "generators": [_state_of(generator) for generator in generators],
    }


def restore_random(
    states: Mapping[str, Any], generators: Sequence[RandomSource], device: torch.device
) -> None:
    """`random_states` の状態に戻す。機器の種類が変わったときは、その機器の乱数だけは戻せない。"""
    random.setstate(states["python"])
    np.random.set_state(_arrays(states["numpy"]))  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    kind, state = states["device"]
    if kind == device.type != "cpu":
        torch.get_device_module(device).set_rng_state(state)
    for generator, state in zip(generators, states["generators"], strict=True):
        if isinstance(generator, torch.Generator):
            generator.set_state(state)
        elif isinstance(generator, np.random.Generator):
            generator.bit_generator.state = _arrays(state)
        else:
            generator.setstate(state)


def _state_of(generator: RandomSource) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, np.random.Generator):
        return _plain(generator.bit_generator.state)
    return generator.getstate()


def _plain(tree: Any) -> Any:
    """NumPy の配列をテンソルに替える(weights_only=True で読めるように)。"""
    if isinstance(tree, Mapping):
        return {key: _plain(value) for key, value in tree.items()}
    return torch.from_numpy(tree.copy()) if isinstance(tree, np.ndarray) else tree


def _arrays(tree: Any) -> Any:
    """`_plain` の逆。"""
    if isinstance(tree, Mapping):
        return {key: _arrays(value) for key, value in tree.items()}
    return tree.numpy() if isinstance(tree, torch.Tensor) else tree


class Stream(Iterator[Any]):
    """`batches` を何周でも読み、どこまで読んだかを覚えている。

    周の途中から再開できるように、周の始めの乱数の状態と、その周で読んだバッチの数を残す。再開では、
    乱数を周の始めに戻して読み直し、読んだ数だけ飛ばす。`batches` が state_dict と load_state_dict
    を持つなら、位置はそれに任せる。
    """

    def __init__(
        self, batches: Iterable[Any], generators: Sequence[RandomSource], device: torch.device
    ) -> None:
        self.batches, self.generators, self.device = batches, generators, device
        self.epoch = 0  # 何周目か(1 から)
        self.consumed = 0  # その周で読んだバッチの数
        self.at_start: dict[str, Any] = {}  # 周の始めの乱数の状態
        self.iterator: Iterator[Any] | None = None
        self.keeps_position = hasattr(batches, "load_state_dict") and hasattr(batches, "state_dict")

    def __next__(self) -> Any:
        if self.iterator is None:
            self._start_epoch()
        assert self.iterator is not None
        while True:
            try:
                batch = next(self.iterator)
            except StopIteration:
                if self.consumed == 0:
                    raise ValueError(
                        f"batches が空です({self.epoch} 周目)。1 つ以上のバッチを、何周でも返す"
                        "ものを渡してください"
                    ) from None
                self._start_epoch()
            else:
                self.consumed += 1
                return batch

    def _start_epoch(self) -> None:
        if self.iterator is not None and self.iterator is self.batches:
            raise ValueError(
                f"batches が {self.consumed} バッチで終わりました。一度しか読めないイテレーター"
                "なので、次の周を始められません。list や DataLoader のように、何度でも読み直せる"
                "ものを渡してください"
            )
        self.epoch, self.consumed = self.epoch + 1, 0
        self.at_start = parallel.from_first(random_states(self.generators, self.device))
        if parallel.world() > 1:  # どのプロセスでも同じ順に並ぶように
            restore_random(self.at_start, self.generators, self.device)
        self.iterator = iter(self.batches)

    def state_dict(self) -> dict[str, Any]:
        """今の位置。"""
        state = {"epoch": self.epoch, "consumed": self.consumed, "at_start": self.at_start}
        if self.keeps_position:
            state["batches"] = self.batches.state_dict()  # pyright: ignore[reportAttributeAccessIssue]
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """`state` の位置まで進める。乱数の状態も動くので、この後で今の状態に戻す。

        Raises:
            ValueError: `batches` が、前に読んだ数より短いとき。
        """
        self.epoch, self.at_start = state["epoch"], state["at_start"]
        restore_random(self.at_start, self.generators, self.device)
        if self.keeps_position:
            self.batches.load_state_dict(state["batches"])  # pyright: ignore[reportAttributeAccessIssue]
        self.iterator = iter(self.batches)
        self.consumed = state["consumed"]
        for read in range(0 if self.keeps_position else self.consumed):
            if next(self.iterator, self) is self:
                raise ValueError(
                    f"batches が {read} バッチで終わりました。前回は同じ周で {self.consumed} "
                    "バッチまで読んでいます。再開には、前回と同じ batches を渡してください"
                )
