"""配る重み: ファイルと、その素性(命令・データ・種・成績・SHA-256)を書いた manifest.toml。

学習の命令 → pack → store → chapterNN/weights → read(照合)→ unpack → モデル
"""

import hashlib
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import tomlkit
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from shared.checks import shown
from shared.files import write_atomically

MANIFEST = "manifest.toml"


def pack(model: nn.Module, leave_out: Collection[str] = ()) -> bytes:
    """`model` の重みを bfloat16 の safetensors にする。`leave_out` の名前の重みは書かない。"""
    return save(
        {
            name: value.to("cpu", torch.bfloat16).contiguous()
            for name, value in model.state_dict().items()
            if name not in leave_out
        }
    )


def unpack(data: bytes) -> dict[str, Tensor]:
    """`pack` の中身を float32 の重みに戻す。

    Raises:
        safetensors.SafetensorError: safetensors でないとき。
    """
    return {name: value.float() for name, value in load(data).items()}


def require_state(state: object, name: str) -> None:
    """`state` が、名前とテンソルの対応(state_dict)か確かめる。

    Raises:
        TypeError: 対応でない、値がテンソルでないとき。
    """
    if not isinstance(state, Mapping):
        hint = "。モデルには .state_dict() を付けてください" if isinstance(state, nn.Module) else ""
        raise TypeError(
            f"{name} には名前とテンソルの対応を渡してください: {type(state).__name__}{hint}"
        )
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} の {key} はテンソルにしてください: {shown(value)}")


def store(folder: Path, name: str, data: bytes | str, facts: Mapping[str, Any]) -> None:
    """`data` を `folder` の `name` に書き、`facts` と SHA-256 を manifest.toml の [name] に記す。

    manifest.toml のほかの項目は変えない。

    Raises:
        OSError: 書き込めないとき。
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / MANIFEST
    manifest = (
        tomlkit.parse(path.read_text(encoding="utf-8")) if path.exists() else tomlkit.document()
    )
    raw = data.encode() if isinstance(data, str) else data
    write_atomically(folder / name, raw)
    digest = hashlib.sha256(raw).hexdigest()
    manifest[name] = {"sha256": digest, "bytes": len(raw), **facts}
    write_atomically(path, tomlkit.dumps(manifest))


def read(folder: Path, name: str, remedy: str) -> tuple[bytes, dict[str, Any]]:
    """`folder` の `name` の中身と、manifest.toml の項目。SHA-256 が違えば断る。

    `remedy` は、ファイルがないときに勧める命令。

    Raises:
        FileNotFoundError: ファイルか、manifest.toml の項目がないとき。
        ValueError: manifest.toml が読めない、SHA-256 がない、中身と違うとき。
    """
    advice = f"git から取り直すか、{remedy} で作ってください"
    try:
        manifest = tomllib.loads(_bytes(folder / MANIFEST, advice).decode("utf-8"))
    except ValueError as error:  # UTF-8 でない、TOML でない
        raise ValueError(
            f"{MANIFEST} が壊れています({error})。git から取り直してください"
        ) from None
    if name not in manifest:
        raise FileNotFoundError(f"{MANIFEST} に {name} がありません。{advice}")
    entry = manifest[name]
    expected = entry.get("sha256") if isinstance(entry, dict) else None
    if not isinstance(expected, str):
        raise ValueError(f"{MANIFEST} の {name} に sha256 がありません。{advice}")
    data = _bytes(folder / name, advice)
    found = hashlib.sha256(data).hexdigest()
    if found != expected:
        raise ValueError(
            f"{name} が壊れています(SHA-256 が {found[:12]}… で、{MANIFEST} の "
            f"{expected[:12]}… と違います)。git から取り直してください"
        )
    return data, entry


def _bytes(path: Path, advice: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(
            f"学習済みの {path.name} が {path.parent} にありません。{advice}"
        ) from None
