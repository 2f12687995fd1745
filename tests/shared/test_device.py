"""shared.device: 機器・種・スレッド数・型。"""

import os
import random
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from shared import device
from shared.device import autocast_dtype, pick, prepare, seed_everything, use_threads


@pytest.fixture(autouse=True)
def threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    """CUDA と MPS の有無を選べる、仮の機械。"""

    def build(cuda: int = 0, mps: bool = False) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.delenv("GENAI_DEVICE", raising=False)

    return build


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"),
    [(0, False, "cpu"), (0, True, "mps"), (1, False, "cuda"), (2, True, "cuda")],
)
def test_fastest_device_is_picked(machine: Any, cuda: int, mps: bool, expected: str):
    machine(cuda, mps)
    assert pick() == torch.device(expected)


@pytest.mark.parametrize("name", ["cpu", " CPU ", "cuda", "cuda:1", "mps"])
def test_environment_chooses(machine: Any, monkeypatch: pytest.MonkeyPatch, name: str):
    machine(cuda=2, mps=True)
    monkeypatch.setenv("GENAI_DEVICE", name)
    assert pick() == torch.device(name.strip().lower())


@pytest.mark.parametrize(
    "name", ["tpu", "gpu", "cpu:0", "mps:0", "cuda:", "cuda:x", "cuda:-1", "cuda 1", "0"]
)
def test_unknown_names_are_refused(machine: Any, monkeypatch: pytest.MonkeyPatch, name: str):
    machine(cuda=2, mps=True)
    monkeypatch.setenv("GENAI_DEVICE", name)
    with pytest.raises(
        ValueError, match=r"GENAI_DEVICE に使えるのは cuda, .*mps, cpu です"
    ) as info:
        pick()
    assert repr(name) in str(info.value)


@pytest.mark.parametrize(("cuda", "name"), [(0, "cuda"), (0, "mps"), (2, "cuda:2"), (0, "cuda:0")])
def test_missing_devices_are_refused(
    machine: Any, monkeypatch: pytest.MonkeyPatch, cuda: int, name: str
):
    machine(cuda)
    monkeypatch.setenv("GENAI_DEVICE", name)
    usable = "cuda, cpu" if cuda else "cpu"
    with pytest.raises(
        ValueError, match=f"{name} は、この機械では使えません。使えるのは: {usable}$"
    ):
        pick()


def draws() -> list[float]:
    return [random.random(), float(np.random.rand()), float(torch.rand(()))]  # noqa: NPY002


def test_seed_fixes_all_three_sources():
    seed_everything(7)
    first = draws()
    seed_everything(7)
    assert draws() == first
    seed_everything(8)
    assert all(a != b for a, b in zip(draws(), first, strict=True))


def test_seed_zero_is_the_default():
    seed_everything()
    first = draws()
    seed_everything(0)
    assert draws() == first


def test_generator_is_seeded_and_separate():
    generator = seed_everything(3)
    expected = torch.rand(4)
    assert torch.equal(torch.rand(4, generator=generator), expected)
    assert not torch.equal(torch.rand(4, generator=generator), expected)


@pytest.mark.parametrize(
    ("seed", "error"),
    [(-1, ValueError), (2**32, ValueError), (1.0, TypeError), ("0", TypeError), (True, TypeError)],
)
def test_bad_seeds(seed: Any, error: type[Exception]):
    with pytest.raises(error, match="seed"):
        seed_everything(seed)


def test_largest_seed():
    seed_everything(2**32 - 1)


@pytest.mark.parametrize(("n", "error"), [(0, ValueError), (-2, ValueError), (1.5, TypeError)])
def test_bad_thread_counts(n: Any, error: type[Exception]):
    with pytest.raises(error, match=r"^n (には|は)"):
        use_threads(n)


def test_prepare(monkeypatch: pytest.MonkeyPatch, capsys: Any):
    monkeypatch.delenv("GENAI_THREADS", raising=False)
    use_threads(2)
    assert prepare(5) == torch.device("cpu")
    assert torch.get_num_threads() == 1
    first = draws()
    seed_everything(5)
    assert draws() == first
    assert capsys.readouterr() == ("", "")


def test_number_of_threads(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GENAI_THREADS", "3")
    prepare()
    assert torch.get_num_threads() == 3
    prepare(threads=2)
    assert torch.get_num_threads() == 2
    for text in ("0", "-1", "two", "1.5"):
        monkeypatch.setenv("GENAI_THREADS", text)
        with pytest.raises(ValueError, match=f"GENAI_THREADS には 1 以上の整数.*'{text}'"):
            prepare()


@pytest.mark.parametrize("native", [True, False])
def test_bfloat16_only_where_it_is_fast(monkeypatch: pytest.MonkeyPatch, native: bool):
    asked: list[dict[str, bool]] = []

    def on_cuda(**options: bool) -> bool:
        asked.append(options)
        return native

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", on_cuda)
    capabilities = {"amx_bf16": native, "avx512_bf16": True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    expected = torch.bfloat16 if native else None
    assert autocast_dtype(torch.device("cuda")) is expected
    assert asked == [{"including_emulation": False}]
    assert autocast_dtype(torch.device("cpu")) is expected
    assert autocast_dtype(torch.device("mps")) is None


def test_hardware_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    names = {name: device.hardware(torch.device(name)) for name in ("cpu", "mps", "cuda:1")}
    assert names == {"cpu": "CPU", "mps": "Apple GPU", "cuda:1": "GPU 1"}


def test_autocast_accepts_the_dtype():
    dtype = autocast_dtype(torch.device("cpu"))
    with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        product = torch.ones(4, 4) @ torch.ones(4, 4)
    assert product.dtype == (dtype or torch.float32)


def test_autocast_wants_a_device():
    with pytest.raises(TypeError, match=r"device には torch\.device を渡してください: 'cpu'"):
        autocast_dtype("cpu")  # pyright: ignore[reportArgumentType]


def test_import_does_not_load_torch():
    code = "import sys, shared.device; print('torch' in sys.modules, 'numpy' in sys.modules)"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert answer.stdout.split() == ["False", "False"]
    assert device.DEVICES == ("cuda", "mps", "cpu")
