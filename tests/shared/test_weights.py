"""shared.weights の検査: 書いて読むと同じ、素性が残る、壊れたものは断る。"""

import hashlib
import tomllib

import pytest
import torch
from torch import nn

from shared import weights


def test_weights_return_as_float32(tmp_path):
    """bfloat16 に丸めた重みが、float32 で戻る。除いた名前は書かれない。"""
    torch.manual_seed(0)
    model = nn.Linear(3, 5)
    weights.store(tmp_path, "a.safetensors", weights.pack(model, leave_out=["bias"]), {"seed": 7})
    data, facts = weights.read(tmp_path, "a.safetensors", "命令")
    state = weights.unpack(data)
    assert [*state] == ["weight"]
    assert state["weight"].dtype == torch.float32
    assert torch.equal(state["weight"], model.weight.detach().bfloat16().float())
    assert facts == {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data), "seed": 7}


def test_other_entries_survive(tmp_path):
    """二つ目を書いても、一つ目の項目は残る。同じ名前は書き直される。"""
    for name, facts in (("a", {"x": 1}), ("b", {"y": 2}), ("a", {"x": 3})):
        weights.store(tmp_path / "w", name, name, facts)
    manifest = tomllib.loads((tmp_path / "w" / "manifest.toml").read_text(encoding="utf-8"))
    assert {name: entry.get("x") for name, entry in manifest.items()} == {"a": 3, "b": None}
    assert weights.read(tmp_path / "w", "b", "")[0] == b"b"


@pytest.mark.parametrize("name", ["manifest.toml", "a"])
def test_missing_file_names_the_remedy(tmp_path, name):
    """ないファイルの名前と、作る命令を述べる。"""
    weights.store(tmp_path, "a", "x", {})
    with pytest.raises(FileNotFoundError, match=r"nothing .*python -m make で作って"):
        weights.read(tmp_path, "nothing", "python -m make")
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name} .*python -m make で作って"):
        weights.read(tmp_path, "a", "python -m make")


def test_flipped_bit_is_noticed(tmp_path):
    """1 ビットでも違えば断る。"""
    weights.store(tmp_path, "a", b"abc", {})
    (tmp_path / "a").write_bytes(b"abb")
    with pytest.raises(ValueError, match=r"a が壊れています.*取り直して"):
        weights.read(tmp_path, "a", "")


@pytest.mark.parametrize("content", [b"[broken", b"\xff", b"a = 1", b"[a]\nsha256 = 3"])
def test_broken_manifest_is_refused(tmp_path, content):
    """読めない、SHA-256 のない manifest.toml を断る。"""
    weights.store(tmp_path, "a", "x", {})
    (tmp_path / "manifest.toml").write_bytes(content)
    with pytest.raises(ValueError, match=r"manifest\.toml"):
        weights.read(tmp_path, "a", "")


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (
            nn.Linear(1, 1),
            r"^state には名前とテンソルの対応を.*Linear。.*\.state_dict\(\) を付けて",
        ),
        ([torch.zeros(1)], "^state には名前とテンソルの対応を渡してください: list$"),
        ({"a": torch.zeros(1), "b": 0.5}, r"^state の b はテンソルにしてください: 0\.5$"),
    ],
)
def test_what_is_not_a_state_is_refused(state, words):
    with pytest.raises(TypeError, match=words):
        weights.require_state(state, "state")
