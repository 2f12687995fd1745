"""指示に従う LoRA の学習: `python -m chapter04.instruct`。

    配ってある GPT + LoRA(層の中の線形写像すべて)→ 指示データで SFT → 三つの試験 → 差分と素性

ドロップアウトは切る。AMX のある CPU では、学習の計算の一部を bfloat16 でする。
書き出すのは差分(A と B)だけで、元の GPT は変えない。途中で止めても(Ctrl-C でも電源でも)、同じ
命令をもう一度実行すれば続きから始まる。途中の状態は、データのキャッシュに置く。
"""

import argparse
import hashlib
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn

from chapter04 import instructions, japanese_gpt
from chapter04.finetune import exact_match, sft
from chapter04.instructions import PARTS
from chapter04.japanese_gpt import MODEL, WEIGHTS, JapaneseGPT
from chapter04.lora import add_lora, load_lora, lora_state_dict
from shared import commands, weights
from shared.archives import cache_folder
from shared.device import autocast_dtype, hardware, keep_memory, prepare
from shared.dropout import set_dropout
from shared.run_report import cpu_hours

NAME = "instruct_lora.safetensors"
COMMAND = "python -m chapter04.instruct"
RANK, ALPHA = 8, 16.0
TARGETS = ("query", "key", "value", "out", "inner", "outer")  # 層の中の線形写像すべて
STEPS = 4_000
BATCH_SIZE = 32  # 例の数
RATE = 4e-3  # 学習率の頂点
DATA_SEED = 0  # 指示データの種。学習の種とは別
CHECKPOINT_EVERY = 250  # [ステップ]
MEASURE_EVERY = 50  # CPU 時間を記録する間隔 [ステップ]


def load(folder: Path = WEIGHTS, base: Path = WEIGHTS) -> JapaneseGPT:
    """`base` の GPT に、`folder` の差分を付けたもの。差分は足しこまない(`merge_lora` でできる)。

    Raises:
        FileNotFoundError: ファイルがないとき。
        ValueError: 壊れている、差分が別の GPT のものであるとき。
    """
    packed, facts = weights.read(folder, NAME, COMMAND)
    gpt, current = japanese_gpt.load(base), base_sha256(base)
    if facts.get("base_sha256") != current:
        raise ValueError(
            f"{NAME} は、別の GPT(SHA-256 が {str(facts.get('base_sha256'))[:12]}…)から学習した"
            f"差分です。今の {MODEL} は {current[:12]}… なので、付けられません。git から取り直すか"
            f"、{COMMAND} で作り直してください"
        )
    try:
        config = facts["config"]
        add_lora(gpt.model, config["rank"], config["alpha"], config["targets"])
        load_lora(gpt.model, weights.unpack(packed))
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{NAME} と {weights.MANIFEST} の config が合いません({error})。"
            "git から取り直してください"
        ) from None
    return gpt


def base_sha256(base: Path = WEIGHTS) -> str:
    """元の GPT の重みのファイルの SHA-256。"""
    return weights.read(base, MODEL, japanese_gpt.COMMAND)[1]["sha256"]


class Run:
    """一度の学習: LoRA を付けた GPT、指示データ、途中の状態を置く場所。"""

    def __init__(self, seed: int = 0, threads: int = 1, base: Path = WEIGHTS) -> None:
        self.seed = seed
        self.device = prepare(seed, threads)
        gpt = japanese_gpt.load(base)
        self.model, self.tokenizer = gpt.model.to(self.device), gpt.tokenizer
        set_dropout(self.model, 0.0)
        add_lora(self.model, RANK, ALPHA, TARGETS)
        self.parts = instructions.build(DATA_SEED)
        data = {part: [asdict(e) for e in examples] for part, examples in self.parts.items()}
        self.hashes = {
            "base_sha256": base_sha256(base),
            "data_sha256": hashlib.sha256(
                json.dumps(data, ensure_ascii=False).encode()
            ).hexdigest(),
        }
        name = "_".join(value[:12] for value in self.hashes.values())
        self.folder = cache_folder() / "instruct_lora" / f"{name}_{seed}"
        self.history: list[dict[str, Any]] = []

    def train(self, steps: int) -> None:
        """`steps` ステップまで学習する(途中の状態があれば、そこから)。"""
        before = time.process_time()

        def measured(_: nn.Module) -> dict[str, float]:
            nonlocal before
            now = time.process_time()
            spent, before = now - before, now
            return {"cpu_seconds": spent}

        self.history = sft(
            self.model,
            self.tokenizer,
            self.parts["train"],
            steps=steps,
            rate=RATE,
            batch_size=BATCH_SIZE,
            seed=self.seed,
            autocast=autocast_dtype(self.device),
            evaluate=measured,
            evaluate_every=MEASURE_EVERY,
            checkpoint=self.folder / "checkpoint.pt",
            checkpoint_every=CHECKPOINT_EVERY,
            log=self.folder / "log.jsonl",
            progress=True,
        ).history

    def finish(self, folder: Path = WEIGHTS) -> dict[str, dict[str, float]]:
        """今の差分を、書き出す精度(bfloat16)で試験し、manifest に素性を記して書き出す。

        Returns:
            試験ごと、課題ごとの完全一致の割合。
        """
        learned = lora_state_dict(self.model)
        packed = weights.pack(self.model, [k for k in self.model.state_dict() if k not in learned])
        load_lora(self.model, weights.unpack(packed))
        metrics = {part: self.scores(part) for part in PARTS[1:]}
        facts = {
            "command": COMMAND,
            **self.hashes,
            "seed": self.seed,
            "steps": len(self.history),
            "device": hardware(self.device),
            "cpu_hours": round(cpu_hours([r for r in self.history if "cpu_seconds" in r]), 3),
            "parameters": sum(matrix.numel() for matrix in learned.values()),
            "config": {"rank": RANK, "alpha": ALPHA, "targets": list(TARGETS)},
            "settings": {"rate": RATE, "batch_size": BATCH_SIZE, "data_seed": DATA_SEED},
            "metrics": metrics,
        }
        weights.store(folder, NAME, packed, facts)
        return metrics

    def scores(self, part: str) -> dict[str, float]:
        """`part` の、課題ごとの完全一致の割合。"""
        found = exact_match(self.model, self.tokenizer, self.parts[part])
        return {task: round(right / total, 4) for task, (right, total) in sorted(found.items())}


def main(arguments: list[str]) -> int:
    """命令の中身。終わりまで学習できたら 0、途中で止まったら 1。"""
    parser = argparse.ArgumentParser(prog=COMMAND, description="指示に従う LoRA の学習")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=WEIGHTS, help="差分を書くフォルダー")
    options = parser.parse_args(arguments)
    keep_memory()

    def job() -> dict[str, dict[str, float]]:
        run = Run(options.seed, options.threads)
        run.train(options.steps)
        return run.finish(options.output)

    return commands.run(job, CHECKPOINT_EVERY)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
