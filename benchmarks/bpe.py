"""BPE の学習と符号化を、tokenizers と tiktoken に対する CPU 時間・メモリーの比で測る。

    python -m benchmarks.bpe            すべて測り、benchmarks/results/bpe.json に書いて表を出す
    python -m benchmarks.bpe --runs 1   1 回ずつ

どちらの側も前分割を含み、1 スレッドで動く。符号化は初めて見る文について測る(控えは使わない)。
"""

import argparse
import hashlib
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.peer import compare, measure
from benchmarks.report import publish
from shared import datasets
from shared.files import write_atomically

RESULTS = Path(__file__).resolve().parent / "results" / "bpe.json"
VOCAB_SIZE = 8192
VOCABULARIES = ("gpt2", "cl100k_base", "o200k_base")
LANGUAGES = {"en": "英語 5 MB", "ja": "日本語 11.5 MB"}


def texts(language: str, megabytes: float | None = None) -> list[str]:
    """シェイクスピアの戯曲、または Tatoeba の日本語文。`megabytes` で初めから切り取る。"""
    if language == "ja":
        whole = datasets.tatoeba_sentences("ja")
    else:
        whole = [*datasets.shakespeare().values()]
    if megabytes is None:
        return whole
    if language == "en":  # 1 編が長いので行に分け、足りない分はくり返す
        whole = [line + "\n" for text in whole for line in text.split("\n")] * 3
    chosen, size = [], 0
    for text in whole:
        size += len(text.encode())
        if size > megabytes * 1e6:
            break
        chosen.append(text)
    return chosen


# ---- 子プロセスの仕事 --------------------------------------------------------------------


def train_ours(language: str, megabytes: str = "") -> None:
    from chapter02.bpe import ByteLevelBPE  # noqa: PLC0415  相手の側のメモリーに含めない
    from chapter02.byte_level import bytes_to_chars  # noqa: PLC0415

    corpus = texts(language, float(megabytes) if megabytes else None)
    measure(
        lambda: ByteLevelBPE.train(corpus, VOCAB_SIZE),
        lambda model: [[*map(bytes_to_chars, pair)] for pair in model.merges],  # pyright: ignore
    )


def train_peer(language: str, megabytes: str = "") -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers  # noqa: PLC0415

    corpus = texts(language, float(megabytes) if megabytes else None)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    measure(
        lambda: tokenizer.train_from_iterator(corpus, trainer),
        lambda _: json.loads(tokenizer.to_str())["model"]["merges"],
    )


def encode_ours(language: str, name: str, batch: str) -> None:
    from chapter02.bpe import ByteLevelBPE  # noqa: PLC0415

    corpus, model = texts(language), ByteLevelBPE.from_pretrained(name)
    if batch == "batch":
        measure(lambda: model.encode_batch(corpus), _digest)
    else:
        measure(lambda: [model.encode(text) for text in corpus], _digest)


def encode_peer(language: str, name: str) -> None:
    os.environ["TIKTOKEN_CACHE_DIR"] = str(datasets.tiktoken_cache())
    import tiktoken  # noqa: PLC0415

    corpus, encoding = texts(language), tiktoken.get_encoding(name)
    measure(lambda: [encoding.encode(text, disallowed_special=()) for text in corpus], _digest)


def _digest(ids: object) -> str:
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()


CHILDREN: dict[str, Callable[..., None]] = {
    "train_ours": train_ours,
    "train_peer": train_peer,
    "encode_ours": encode_ours,
    "encode_peer": encode_peer,
}


def child(*arguments: str) -> list[str]:
    return ["python", "-m", "benchmarks.bpe", "--child", *arguments]


# ---- 測定 --------------------------------------------------------------------------------


def measure_all(runs: int) -> list[dict]:
    """すべての組を測る。`speed` は相手の何倍の速さか、`seconds_ratio` は相手の何倍の時間か。"""
    rows: list[dict] = []
    for language in LANGUAGES:
        result = compare(child("train_ours", language), child("train_peer", language), runs)
        rows.append({"task": "train", "language": language, "against": "tokenizers", **result})
    for name in VOCABULARIES:
        for language in LANGUAGES:
            for batch in ("single", "batch"):
                result = compare(
                    child("encode_ours", language, name, batch),
                    child("encode_peer", language, name),
                    runs,
                )
                task = {"task": f"encode_{batch}", "vocabulary": name, "language": language}
                rows.append({**task, "against": "tiktoken", **result})
    return rows


def growth(language: str) -> dict:
    """0.1 MB から 10 MB までの学習時間と、log-log の傾き(N log N なら 1 をわずかに超える)。"""
    from chapter02.bpe import ByteLevelBPE  # noqa: PLC0415

    points = []
    for megabytes in (0.1, 0.3, 1, 3, 10):
        corpus = texts(language, megabytes)
        start = time.process_time()
        ByteLevelBPE.train(corpus, VOCAB_SIZE)
        size = sum(len(text.encode()) for text in corpus)
        points.append({"bytes": size, "seconds": round(time.process_time() - start, 3)})
    first, last = points[0], points[-1]
    slope = math.log(last["seconds"] / first["seconds"]) / math.log(last["bytes"] / first["bytes"])
    return {"language": language, "points": points, "slope": round(slope, 3)}


def table(results: dict) -> str:
    """Markdown の表。学習は時間の比(小さいほどよい)、符号化は速さの比(大きいほどよい)。"""
    lines = [
        "| 仕事 | データ | 相手 | 比の意味 | 最小 | 中央 | 最大 | メモリーの比 | 結果が等しい |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        ratio = row["seconds_ratio"]
        values = [ratio[key] for key in ("min", "median", "max")]
        meaning = "時間"
        if row["task"] != "train":
            values = [1 / value for value in reversed(values)]
            meaning = "速さ"
        work = {"train": "学習", "encode_single": "1 文ずつ符号化", "encode_batch": "一括符号化"}
        peak = f"{row['peak_ratio']['max']:.2f} 以下" if row["peak_ratio"] else "測れない"
        cells = [
            work[row["task"]] + (f" {row['vocabulary']}" if "vocabulary" in row else ""),
            LANGUAGES[row["language"]],
            row["against"],
            meaning,
            *(f"{value:.2f}" for value in values),
            peak if row["task"] == "train" else "-",
            "はい" if row["same_result"] else "いいえ",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    for curve in results["growth"]:
        times = "、".join(
            f"{p['bytes'] / 1e6:.1f} MB {p['seconds']:.2f} 秒" for p in curve["points"]
        )
        language = LANGUAGES[curve["language"]].split()[0]
        lines.append(f"\n学習時間の伸び({language}): {times}。傾き {curve['slope']:.2f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--child", nargs="+")
    arguments = parser.parse_args()
    if arguments.child:
        work, *rest = arguments.child
        CHILDREN[work](*rest)
        return
    datasets.tiktoken_cache()  # 測る前に、データを揃えておく
    results = {
        "rows": measure_all(arguments.runs),
        "growth": [growth(language) for language in LANGUAGES],
    }
    RESULTS.parent.mkdir(exist_ok=True)
    write_atomically(RESULTS, json.dumps(results, ensure_ascii=False, indent=1) + "\n")
    print(table(results))
    publish("bpe", table(results))


if __name__ == "__main__":
    main()
