"""機器・乱数・スレッド数。ノートブックは、はじめのセルで `prepare()` を一度呼ぶ。

torch の読みこみには数秒かかるので、この module を import しただけでは読みこまない。
"""
# ruff: noqa: PLC0415  torch を関数の中で import するため

from __future__ import annotations

import ctypes
import os
import random
import sys
from typing import TYPE_CHECKING

from shared.checks import require_int, require_seed, shown

if TYPE_CHECKING:
    import torch

DEVICES = ("cuda", "mps", "cpu")


def prepare(seed: int = 0, threads: int | None = None) -> torch.device:
    """乱数の種とスレッド数を決め、使う機器を返す(ノートブックの準備のセルから呼ぶ)。

    `threads` を省けば環境変数 GENAI_THREADS、それもなければ 1 にする。小さなモデルでは 1 で足り、
    ほかのプロセスとコアを取り合う機械では、増やすとかえって何十倍も遅くなることがある。スレッドの
    数と種が同じなら、同じ機械の CPU では毎回同じ結果になる。

    Raises:
        TypeError: `seed` か `threads` が整数でないとき。
        ValueError: `seed`・`threads`・GENAI_THREADS・GENAI_DEVICE が許される範囲にないとき。
    """
    device = pick()
    use_threads(_default_threads() if threads is None else threads)
    seed_everything(seed)
    return device


def pick() -> torch.device:
    """使う機器を返す。環境変数 GENAI_DEVICE が優先し、なければ CUDA、MPS、CPU の順に探す。

    Raises:
        ValueError: GENAI_DEVICE の値が cuda・cuda:番号・mps・cpu でないとき、その機器がないとき。
    """
    import torch

    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    chosen = os.environ.get("GENAI_DEVICE", "").strip().lower()
    if not chosen:
        return torch.device(next(name for name in DEVICES if available[name]))
    kind, _, number = chosen.partition(":")
    if kind not in DEVICES or (":" in chosen and (kind != "cuda" or not number.isdecimal())):
        raise ValueError(
            "環境変数 GENAI_DEVICE に使えるのは cuda, cuda:番号, mps, cpu です: "
            f"{shown(os.environ['GENAI_DEVICE'])}"
        )
    if not available[kind] or (number and int(number) >= torch.cuda.device_count()):
        usable = ", ".join(name for name in DEVICES if available[name])
        raise ValueError(
            f"環境変数 GENAI_DEVICE の {chosen} は、この機械では使えません。使えるのは: {usable}"
        )
    return torch.device(chosen)


def seed_everything(seed: int = 0) -> torch.Generator:
    """Python・NumPy・PyTorch の乱数の種を揃え、同じ種の CPU の Generator を返す。

    Raises:
        TypeError: `seed` が整数でないとき。
        ValueError: `seed` が 0 から 2^32 - 1 の範囲にないとき。
    """
    import numpy as np
    import torch

    random.seed(require_seed(seed))
    np.random.seed(seed)  # noqa: NPY002  旧来の np.random を使うライブラリーのため
    torch.manual_seed(seed)  # CUDA と MPS の種も決まる
    return torch.Generator().manual_seed(seed)


def hardware(device: torch.device) -> str:
    """機器の名前(CUDA なら GPU の製品名、ほかは CPU か Apple GPU)。学習の素性に記す。"""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return {"cpu": "CPU", "mps": "Apple GPU"}[device.type]


def use_threads(n: int) -> None:
    """PyTorch の計算に使うスレッドの数を `n` にする。

    Raises:
        TypeError: `n` が整数でないとき。
        ValueError: `n` が 1 より小さいとき。
    """
    import torch

    torch.set_num_threads(require_int(n, "n", minimum=1))


def keep_memory() -> None:
    """大きなテンソルのメモリーを、毎回 OS に返さずに使い回す(glibc だけ。学習が 1 割ほど速い)。"""
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
            mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD


def _default_threads() -> int:
    text = os.environ.get("GENAI_THREADS", "").strip() or "1"
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"環境変数 GENAI_THREADS には 1 以上の整数を入れてください: {shown(text)}")
    return int(text)


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """torch.autocast に渡す型。低い精度が速くならない機器では None(float32 のまま使う)。

    CUDA は bfloat16 の演算命令を、CPU は bfloat16 の行列演算器(AMX)を備えるときだけ bfloat16 と
    する(AMX のない CPU では float32 のほうが速い。docs/benchmarks.md)。bfloat16 の指数部は float32
    と同じ 8 bit なので、勾配に倍率をかけて下位あふれを避ける工夫が要らない。その工夫が要る
    float16 は使わないので、float16 しか速くない古い CUDA と、MPS では None とする。

    Raises:
        TypeError: `device` が torch.device でないとき。
    """
    import torch

    if not isinstance(device, torch.device):
        raise TypeError(
            f"device には torch.device を渡してください: {shown(device)} ({type(device).__name__})"
        )
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # 命令の一覧を返す関数は、古い版の torch にはない。
        capabilities = getattr(torch.cpu, "get_capabilities", dict)()
        native = device.type == "cpu" and bool(capabilities.get("amx_bf16"))
    return torch.bfloat16 if native else None
