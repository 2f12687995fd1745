"""日本語の GPT の事前学習: `python -m chapter04.pretrain`(`--corpus FILE` で好きな文書から)。

    文書 → 整える・重複を除く・分ける → バイトレベル BPE → 詰めたバッチ(ときどき同じ文書を
    繰り返す)→ GPT → 試験(バイトあたりのビット数、種で選んだ文)→ 重みと記録

配るのは、重みの移動平均である。

途中で止めても(Ctrl-C でも電源でも)、同じ命令をもう一度実行すれば続きから始まる。途中の状態は、
データのキャッシュに置く。`--finish` は、今ある所までの重みを試験して書き出す。

torchrun で起動すると、1 ステップのバッチ(`--accumulate` 個、既定はプロセスの数)を分け合う。
"""

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from chapter02.byte_level_bpe import ByteLevelBPE
from chapter04 import japanese_gpt, text
from chapter04.finetune import cosine
from chapter04.gpt import GPT, GPTConfig
from chapter04.japanese_gpt import END, MODEL, SPECIAL_TOKENS, TOKENIZER, WEIGHTS, JapaneseGPT
from chapter04.loss import next_token_loss
from chapter04.muon import MuonAdamW
from chapter04.pretrain_report import Report
from shared import checkpoints, commands, parallel, weights
from shared.archives import DataError, cache_folder
from shared.checks import require_int
from shared.device import autocast_dtype, hardware, keep_memory, prepare, use_threads
from shared.dropout import use_fast_dropout
from shared.run_report import cpu_hours
from shared.training import train

SIZES = {"d_model": 224, "n_heads": 7, "n_layers": 5, "context": 128, "dropout": 0.1}
VOCAB_SIZE = 4096
STEPS = 8_000
BATCH_SIZE = 64  # 窓の数。トークンは、その context 倍
REPEAT = 0.1  # 近くの文書をもう一度置く確率(論文にはない。写すことを学ばせる)
PEAK, WARMUP = 8e-3, 200  # 学習率の頂点と、そこまでのステップ。論文(GPT-1)は 2.5e-4 と 2,000
WEIGHT_DECAY = 0.25  # 論文は 0.1。文書を 20 周以上もするので強める
BETAS, CLIP = (0.9, 0.95), 1.0  # Brown+ 2020, 付録 B
EMA = 0.999  # 移動平均の減衰率(論文にはない)
CHECKPOINT_EVERY = 250  # [ステップ]
EVALUATE_EVERY = 250  # [ステップ]
SAMPLES, TEMPERATURE, TOP_P = 30, 0.7, 0.95
RUNS = Path(__file__).parents[1] / "docs" / "runs"


def loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """次のトークンの負の対数確率の平均 [nat/トークン](Radford+ 2018, 式 (1))。"""
    assert isinstance(model, GPT)
    return next_token_loss(model, batch["inputs"], batch["targets"])


def other_schedule(history: Sequence[Mapping[str, Any]]) -> int:
    """学習率が、`history` の長さの予定と違う、最後のステップ(すべて予定のとおりなら 0)。

    途中で `--steps` を変えたか、終わる前に書き出したことを、記録に残すために使う。
    """
    planned = cosine(PEAK, WARMUP, len(history))
    steps = [r["step"] for r in history if abs(r["rate"] - planned(r["step"])) > 1e-6 * PEAK]
    return max(steps, default=0)


def build_model(vocab_size: int) -> GPT:
    """重みが初期値のままのモデル。"""
    model = GPT(GPTConfig(vocab_size=vocab_size, **SIZES))
    use_fast_dropout(model)
    return model


class Run:
    """一度の学習: 文書、トークナイザー、モデル、途中の状態を置く場所。"""

    def __init__(
        self, corpus: Path | None = None, seed: int = 0, folder: Path | None = None
    ) -> None:
        self.corpus, self.seed = corpus, seed
        self.device = prepare(seed)
        self.parts = text.split(text.deduplicate(text.documents(corpus)))
        if empty := [name for name, part in self.parts.items() if not part]:
            raise DataError(
                f"コーパス {corpus} の文書が {sum(map(len, self.parts.values()))} 個しかなく、"
                f"{'・'.join(empty)} に回るものがありません。数百個より多くしてください"
            )
        self.sha256 = hashlib.sha256(
            json.dumps(self.parts, ensure_ascii=False).encode()
        ).hexdigest()
        name = "tatoeba" if corpus is None else self.sha256[:12]
        self.folder = folder or cache_folder() / "japanese_gpt" / f"{name}_{seed}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer = self._tokenizer()
        self.model = build_model(self.tokenizer.vocab_size).to(self.device)

    def _tokenizer(self) -> ByteLevelBPE:
        """学習の文書から作ったトークナイザー。同じ文書からは一度だけ作る。"""
        path = self.folder / f"tokenizer_{self.sha256[:12]}_{VOCAB_SIZE}.json"
        if not path.exists():
            ByteLevelBPE.train(self.parts["train"], VOCAB_SIZE, SPECIAL_TOKENS).save(path)
        return ByteLevelBPE.load(path)

    @property
    def checkpoint(self) -> Path:
        """途中の状態のファイル。"""
        return self.folder / "checkpoint.pt"

    def train(self, steps: int, accumulate: int = 1) -> None:
        """`steps` ステップまで学習する(途中の状態があれば、そこから)。"""
        end = self.tokenizer.special_tokens[END]
        generator = torch.Generator().manual_seed(self.seed)
        documents = self.tokenizer.encode_batch(self.parts["train"])
        batches = text.PackedBatches(
            documents, end, SIZES["context"], BATCH_SIZE, generator, repeat=REPEAT
        )
        before = time.process_time()

        def measured(
            model: nn.Module, batch: Mapping[str, Tensor]
        ) -> tuple[Tensor, dict[str, float]]:
            nonlocal before
            now = time.process_time()
            spent, before = now - before, now  # 前のステップの分(評価も含む)
            return loss(model, batch), {"cpu_seconds": spent}

        train(
            self.model,
            batches,
            measured,
            steps=steps,
            optimizer=MuonAdamW(self.model, self.model.layers, PEAK, WEIGHT_DECAY, BETAS),
            rate=cosine(PEAK, WARMUP, steps),
            clip=CLIP,
            autocast=autocast_dtype(self.device),
            accumulate=accumulate,
            ema=EMA,
            evaluate=lambda model: {"validation_bits": self.bits_per_byte(model, "validation")},
            evaluate_every=EVALUATE_EVERY,
            checkpoint=self.checkpoint,
            checkpoint_every=CHECKPOINT_EVERY,
            generators=(generator,),
            log=self.folder / "log.jsonl",
        )

    def bits_per_byte(self, model: nn.Module, part: str) -> float:
        """`part` の文書の、1 バイトあたりのビット数。"""
        assert isinstance(model, GPT)
        return JapaneseGPT(model, self.tokenizer).bits_per_byte(self.parts[part])

    def finish(self, folder: Path = WEIGHTS, runs: Path = RUNS) -> dict[str, float]:
        """今の移動平均の重みを試験し、重み・トークナイザー・manifest・記録を書き出す。

        Raises:
            FileNotFoundError: まだ一度も途中の状態を残していないとき。
        """
        state = checkpoints.load(self.checkpoint)
        if state is None:
            raise FileNotFoundError("学習の途中の状態がありません。先に学習してください")
        history, accumulate = state["history"], state["settings"]["accumulate"]
        self.model.load_state_dict(state["ema"])
        packed = weights.pack(self.model, leave_out=["output.weight"])  # 埋め込みと同じもの
        self.model.load_state_dict(weights.unpack(packed), strict=False)  # 書き出す精度で試験する
        gpt = JapaneseGPT(self.model, self.tokenizer)
        metrics = {
            "test_bits_per_byte": gpt.bits_per_byte(self.parts["test"]),
            "validation_bits_per_byte": gpt.bits_per_byte(self.parts["validation"]),
        }
        samples = gpt.complete(
            n=SAMPLES, max_new_tokens=60, temperature=TEMPERATURE, top_p=TOP_P, seed=self.seed
        )
        command = f"{japanese_gpt.COMMAND} --steps {len(history)} --seed {self.seed}"
        command += f" --accumulate {accumulate}" if accumulate > 1 else ""
        if self.corpus:
            command += f" --corpus {self.corpus.name} --output {folder.name}"
        common = {"command": command, "data_sha256": self.sha256, "seed": self.seed}
        facts = {
            **common,
            "steps": len(history),
            "other_schedule": other_schedule(history),
            "tokens": len(history) * accumulate * BATCH_SIZE * SIZES["context"],
            "device": hardware(self.device),
            "cpu_hours": round(cpu_hours(history), 3),
            "config": asdict(self.model.config),
            "metrics": {key: round(value, 4) for key, value in metrics.items()},
        }
        weights.store(folder, MODEL, packed, facts)
        path = self.tokenizer.save(self.folder / TOKENIZER)
        weights.store(folder, TOKENIZER, path.read_bytes(), common)
        settings = {
            "vocab_size": VOCAB_SIZE, "batch_size": BATCH_SIZE,
            "repeat": REPEAT, "peak": PEAK, "warmup": WARMUP, "betas": BETAS,
            "weight_decay": WEIGHT_DECAY, "clip": CLIP, "ema": EMA,
            "temperature": TEMPERATURE, "top_p": TOP_P,
            "data_sha256": self.sha256,
        }  # fmt: skip
        counts = {name: len(part) for name, part in self.parts.items()}
        Report({**SIZES, **settings}, counts, facts, history, samples).write(runs)
        return metrics


def main(arguments: list[str]) -> int:
    """命令の中身。終わりまで学習できたら 0、途中で止まったら 1。"""
    parser = argparse.ArgumentParser(
        prog=japanese_gpt.COMMAND, description="日本語の GPT の事前学習"
    )
    parser.add_argument("--corpus", type=Path, help="UTF-8 の文書(省けば Tatoeba の和文)")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--accumulate", type=int, default=int(os.environ.get("WORLD_SIZE", "1")))
    parser.add_argument("--output", type=Path, help="重みと記録を書くフォルダー")
    parser.add_argument("--finish", action="store_true", help="学習せず、今の重みを書き出す")
    options = parser.parse_args(arguments)
    if options.corpus is not None and options.output is None:
        parser.error("--corpus には --output も渡してください(配ってある重みを上書きしないため)")
    keep_memory()

    def job() -> dict[str, Any] | None:
        for name in ("steps", "threads", "accumulate"):
            require_int(getattr(options, name), f"--{name}", minimum=1)
        output = options.output
        if output is not None:
            if output.exists() and not output.is_dir():
                raise ValueError(f"--output にはフォルダーを渡してください: {output}")
            output.mkdir(parents=True, exist_ok=True)
        run = Run(options.corpus, options.seed)
        use_threads(options.threads)
        if not options.finish:
            run.train(options.steps, options.accumulate)
        if parallel.rank() != 0:
            return None
        return run.finish() if output is None else run.finish(output, output)

    return commands.run(
        job, CHECKPOINT_EVERY, "。--finish を付けると、その状態を試験して書き出します"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
