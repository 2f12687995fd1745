"""shared.files: 書きかけのファイルを残さない書き込み。"""

import errno
import os
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from shared import files
from shared.files import write_atomically


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("data", [b"", b"\0\xff\r\n", "猫\r\n\n\0", "", "𠮷"])
def test_content_is_written_unchanged(tmp_path: Path, data: bytes | str):
    path = write_atomically(tmp_path / "名前 と 空白.txt", data)
    assert path == tmp_path / "名前 と 空白.txt"
    assert path.read_bytes() == (data if isinstance(data, bytes) else data.encode("utf-8"))
    assert names(tmp_path) == ["名前 と 空白.txt"]


def test_path_may_be_text_and_replaces_the_old_file(tmp_path: Path):
    (tmp_path / "a").write_text("古い内容のほうが長い", encoding="utf-8")
    write_atomically(str(tmp_path / "a"), "新")
    assert (tmp_path / "a").read_text(encoding="utf-8") == "新"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows の権限は別の仕組みである")
def test_others_may_read(tmp_path: Path):
    path = write_atomically(tmp_path / "a", b"")
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


@pytest.mark.parametrize("where", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_failure_keeps_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, error: BaseException
):
    (tmp_path / "a").write_bytes(b"old")

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(*((files.os, "fsync") if where == "fsync" else (Path, "replace")), fail)
    with pytest.raises(type(error)):
        write_atomically(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_new_content_appears_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """改名の直前まで、見えるのは古い内容だけ。改名するのは全体を書き終えたファイル。"""
    path = tmp_path / "a"
    path.write_bytes(b"old")
    rename, seen = Path.replace, []

    def watch(temporary: Path, target: Path) -> Path:
        seen.append((path.read_bytes(), temporary.read_bytes(), temporary.parent))
        return rename(temporary, target)

    monkeypatch.setattr(Path, "replace", watch)
    write_atomically(path, b"new" * 100_000)
    assert seen == [(b"old", b"new" * 100_000, tmp_path)]


def test_two_writers_use_different_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rename, temporaries = Path.replace, []

    def nested(temporary: Path, target: Path) -> Path:
        temporaries.append(temporary)
        if len(temporaries) == 1:
            write_atomically(tmp_path / "a", b"second")
        return rename(temporary, target)

    monkeypatch.setattr(Path, "replace", nested)
    write_atomically(tmp_path / "a", b"first")
    assert len(set(temporaries)) == 2
    assert (tmp_path / "a").read_bytes() == b"first"
    assert names(tmp_path) == ["a"]


def test_missing_folder(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "missing" / "a", b"")


def test_data_is_flushed_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sizes: list[int] = []
    monkeypatch.setattr(files.os, "fsync", lambda fd: sizes.append(os.fstat(fd).st_size))
    write_atomically(tmp_path / "a", b"x" * 100)
    assert sizes == [100]
