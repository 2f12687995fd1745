"""ユニグラム言語モデルの学習を sentencepiece と比べる(CPU 時間・メモリー・対数尤度)。

    python -m benchmarks.unigram            1 MB と全体(約 11 MB)の日本語
    python -m benchmarks.unigram --quick    1 MB だけ

どちらも 1 スレッド、語彙 8,000、正規化から学習の終わりまで。語彙の条件をそろえるため、
sentencepiece の文頭・文末の記号は使わない。対数尤度は、学習に使わない 2,000 文のうち両方の語彙が
全文字を持つ文について、全分割にわたる周辺尤度を正規化後の 1 文字あたり [nat] で比べる。結果は
benchmarks/results/unigram.json に書く。
"""

import io
import json
import math
import sys
import tempfile
from pathlib import Path

from benchmarks.peer import compare, measure
from benchmarks.report import publish
from chapter02.unigram import Unigram
from shared import datasets
from shared.files import write_atomically

VOCAB_SIZE = 8_000
HELD_OUT = 2_000
RESULT = Path(__file__).resolve().parent / "results" / "unigram.json"


def training_sentences(megabytes: str) -> tuple[list[str], list[str]]:
    """(学習用, 評価用) の文を返す。`megabytes` は "1" か "all"。評価用は最後の 2,000 文。"""
    sentences = list(dict.fromkeys(datasets.tatoeba_sentences("ja")))
    held_out = sentences[-HELD_OUT:]
    chosen: list[str] = []
    size = 0
    for sentence in sentences[:-HELD_OUT]:
        size += len(sentence.encode("utf-8")) + 1
        if megabytes != "all" and size > float(megabytes) * 1e6:
            break
        chosen.append(sentence)
    return chosen, held_out


def train_ours(sentences: list[str]) -> Unigram:
    """この実装で学習する。"""
    return Unigram.train(sentences, VOCAB_SIZE)


def train_peer(text_file: str) -> bytes:
    """sentencepiece で学習し、モデルファイルの中身を返す。"""
    import sentencepiece  # noqa: PLC0415  相手のプロセスでだけ読み込む

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        input=text_file,
        model_writer=model,
        model_type="unigram",
        vocab_size=VOCAB_SIZE,
        num_threads=1,
        bos_id=-1,
        eos_id=-1,
        minloglevel=2,
    )
    return model.getvalue()


def log_likelihoods(sentences: list[str], held_out: list[str], text_file: str) -> dict:
    """評価用の文の 1 文字あたりの対数尤度 [nat] を返す。

    sentencepiece の確率は和が 1 にならないので、1 に直した値も並べる。
    """
    ours = train_ours(sentences)
    with tempfile.TemporaryDirectory() as folder:
        model_file = Path(folder) / "peer.model"
        model_file.write_bytes(train_peer(text_file))
        peer = Unigram.from_sentencepiece(model_file)
    shared_characters = set("".join(ours.pieces)) & set("".join(peer.pieces))
    texts = [text for text in held_out if set(ours.normalize(text)) <= shared_characters]
    texts = [text for text in texts if ours.normalize(text) == peer.normalize(text)]
    characters = sum(len(ours.normalize(text)) for text in texts)
    mass = sum(math.exp(p) for i, p in enumerate(peer.log_probs) if i != peer.unk_id)
    normalized = Unigram(
        peer.pieces,
        [p - math.log(mass) for p in peer.log_probs],
        peer.unk_id,
        normalizer=peer.normalizer,
    )
    return {
        "sentences": len(texts),
        "characters": characters,
        "ours": sum(map(ours.log_likelihood, texts)) / characters,
        "peer": sum(map(peer.log_likelihood, texts)) / characters,
        "peer_normalized": sum(map(normalized.log_likelihood, texts)) / characters,
    }


def main(arguments: list[str]) -> None:
    """子プロセスなら 1 度測り、親プロセスなら比べて結果を書く。"""
    if arguments[:1] == ["ours"]:
        sentences, _ = training_sentences(arguments[1])
        measure(lambda: train_ours(sentences), digest=lambda model: "")
        return
    if arguments[:1] == ["peer"]:
        measure(lambda: train_peer(arguments[1]), digest=lambda model: "")
        return
    result: dict[str, dict] = {}
    if RESULT.exists():  # --quick では、前に測った全体の結果を残す
        result = json.loads(RESULT.read_text(encoding="utf-8"))
    for megabytes, runs in (("1", 5), ("all", 1)):
        if megabytes == "all" and "--quick" in arguments:
            continue
        sentences, held_out = training_sentences(megabytes)
        with tempfile.TemporaryDirectory() as folder:
            text_file = str(Path(folder) / "train.txt")
            Path(text_file).write_text("\n".join(sentences) + "\n", encoding="utf-8")
            result["japanese_1mb" if megabytes == "1" else "japanese_all"] = {
                "bytes": Path(text_file).stat().st_size,
                "sentences": len(sentences),
                **compare(
                    ["python", "-m", "benchmarks.unigram", "ours", megabytes],
                    ["python", "-m", "benchmarks.unigram", "peer", text_file],
                    runs,
                ),
                "held_out_log_likelihood": log_likelihoods(sentences, held_out, text_file),
            }
    RESULT.parent.mkdir(exist_ok=True)
    write_atomically(RESULT, json.dumps(result, ensure_ascii=False, indent=1) + "\n")
    print(table(result))
    publish("unigram", table(result))


def table(result: dict[str, dict]) -> str:
    """時間とメモリーの比、検証データの 1 文字あたりの対数尤度を Markdown の表にする。"""
    lines = [
        "| 学習データ | 回数 | 時間の比(最小・中央・最大) "
        "| 最大メモリー [MiB] | 相手 | 対数尤度 [nat/文字] | 相手 |",
        "|" + "---|" * 7,
    ]
    for row in result.values():
        ratio, fit = row["seconds_ratio"], row["held_out_log_likelihood"]
        peaks = [max(run["peak_mib"] for run in row[side]) for side in ("ours", "peer")]
        lines.append(
            f"| 日本語 {row['bytes'] / 1e6:.1f} MB | {row['runs']} "
            f"| {ratio['min']:.2f}・**{ratio['median']:.2f}**・{ratio['max']:.2f} "
            f"| {peaks[0]:.0f} | {peaks[1]:.0f} "
            f"| {fit['ours']:.3f} | {fit['peer_normalized']:.3f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main(sys.argv[1:])
