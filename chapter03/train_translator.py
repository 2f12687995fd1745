"""翻訳器の学習: `python -m chapter03.train_translator --direction en-ja`。

    対訳 → LengthBatches → Transformer + ラベル平滑化 + Noam の予定 → 重みの移動平均
    → 試験 → 重みと記録

途中で止めても(Ctrl-C でも電源でも)、同じ命令をもう一度実行すれば続きから始まる。途中の状態は、
データのキャッシュに置く。`--finish` は、今ある所までの重みを評価して書き出す。
"""

import argparse
import random
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chapter03 import translation
from chapter03.decoding import greedy
from chapter03.optim import noam_rate
from chapter03.transformer import Transformer, TransformerConfig
from chapter03.translation import EOS, PAD, WEIGHTS, Dataset, LengthBatches, Translator
from chapter03.translator_report import VALIDATION_SENTENCES, Report, Sample
from shared import checkpoints, commands, weights
from shared.archives import cache_folder
from shared.device import keep_memory, prepare, use_threads
from shared.dropout import use_byte_dropout
from shared.run_report import cpu_hours
from shared.training import to_device, train

STEPS = 13_000
WARMUP = 1_000  # 論文は 4,000。短い学習に合わせて縮めた
MAX_TOKENS = 2_000  # 一つのバッチのトークン数。論文は 25,000
SMOOTHING = 0.1
BETAS, EPS = (0.9, 0.98), 1e-9  # 論文の 5.3 節
EMA = 0.999  # 論文は最後の 5 つのチェックポイントの平均。ここでは移動平均
CHECKPOINT_EVERY = 250  # [ステップ]
EVALUATE_EVERY = 500  # [ステップ]
SAMPLES = 30
RUNS = Path(__file__).parents[1] / "docs" / "runs"
SIZES = {"d_model": 192, "n_heads": 6, "n_layers": 3, "d_ff": 768, "dropout": 0.1, "max_len": 256}


class TimeUp(KeyboardInterrupt):
    """`--minutes` の時間を使い切った。Ctrl-C と同じに扱う。チェックポイントは残してある。"""


def build_model(data: Dataset, direction: str) -> Transformer:
    """`direction` の向きの、重みが初期値のままのモデル。"""
    source, target = (data.tokenizers[language].vocab_size for language in direction.split("-"))
    model = Transformer(TransformerConfig(src_vocab_size=source, tgt_vocab_size=target, **SIZES))
    use_byte_dropout(model)
    return model


def smoothed_loss(model: nn.Module, batch: dict[str, Tensor], epsilon: float = SMOOTHING) -> Tensor:
    """バッチの損失 [nat/トークン]。optim.label_smoothing_loss と等しい値を、速い命令で計算する。"""
    logits = model(batch["src"], batch["tgt_in"]).flatten(0, 1)
    target = batch["tgt_out"].flatten()
    return F.cross_entropy(logits, target, ignore_index=PAD, label_smoothing=epsilon)


class Run:
    """一つの向きの学習: データ、モデル、途中の状態を置く場所。"""

    def __init__(self, direction: str, seed: int, folder: Path | None = None) -> None:
        self.direction = translation.require_direction(direction)
        self.seed = seed
        self.device = prepare(seed)
        self.data = translation.prepare_data()
        self.model = build_model(self.data, direction).to(self.device)
        self.folder = folder or cache_folder() / "translator" / f"{direction}_{seed}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.checkpoint = self.folder / "checkpoint.pt"
        self.source, self.target = (self.data.tokenizers[x] for x in direction.split("-"))
        pairs = self.data.parts["validation"]
        columns = (0, 1) if direction == "en-ja" else (1, 0)
        encoded = [
            ([*self.source.encode(pair[columns[0]]), EOS], self.target.encode(pair[columns[1]]))
            for pair in pairs
        ]
        self.validation = list(LengthBatches(encoded, 4_000, torch.Generator().manual_seed(0)))

    def train(self, steps: int, minutes: float | None = None) -> None:
        """`steps` ステップまで学習する(途中の状態があれば、そこから)。

        Raises:
            TimeUp: `minutes` 分の CPU 時間を使ったとき。
        """
        generator = torch.Generator().manual_seed(self.seed)
        pairs = self.data.training_pairs(self.direction)
        batches = LengthBatches(pairs, MAX_TOKENS, generator)
        started = before = time.process_time()

        def rate(step: int) -> float:
            at_checkpoint = (step - 1) % CHECKPOINT_EVERY == 0
            spent = time.process_time() - started
            if minutes is not None and at_checkpoint and spent > 60 * minutes:
                raise TimeUp
            return noam_rate(step, SIZES["d_model"], WARMUP)

        def loss(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
            nonlocal before
            now = time.process_time()
            spent, before = now - before, now  # 前のステップの分(評価も含む)
            tokens = int((batch["tgt_out"] != PAD).sum())
            return smoothed_loss(model, batch), {"cpu_seconds": spent, "tokens": tokens}

        train(
            self.model,
            batches,
            loss,
            steps=steps,
            optimizer=torch.optim.Adam(
                self.model.parameters(), betas=BETAS, eps=EPS, fused=self.device.type != "mps"
            ),
            rate=rate,
            ema=EMA,
            evaluate=self.evaluate,
            evaluate_every=EVALUATE_EVERY,
            checkpoint=self.checkpoint,
            checkpoint_every=CHECKPOINT_EVERY,
            generators=(generator,),
            log=self.folder / "log.jsonl",
        )

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """検証の対訳での、1 トークンあたりの損失 [nat](平滑化なし)と、貪欲法の BLEU(300 文)。"""
        total = count = 0.0
        for batch in self.validation:
            tokens = int((batch["tgt_out"] != PAD).sum())
            moved = to_device(batch, self.device)
            total += tokens * float(smoothed_loss(model, moved, epsilon=0.0))
            count += tokens
        pairs = translation.references(self.data.parts["validation"], self.direction)
        sources = list(pairs)[:VALIDATION_SENTENCES]
        greedy_texts = self.greedy(model, sources)
        bleu = translation.character_bleu(
            greedy_texts, [pairs[s] for s in sources], self.target.language
        )
        return {"validation_loss": total / count, "validation_bleu": bleu}

    def greedy(self, model: nn.Module, sources: list[str]) -> list[str]:
        """貪欲法での訳文。"""
        encoded = [torch.tensor([*self.source.encode(text), EOS]) for text in sources]
        order = sorted(range(len(sources)), key=lambda i: len(encoded[i]))
        texts = [""] * len(sources)
        for start in range(0, len(order), 128):
            chosen = order[start : start + 128]
            src = translation.pad([encoded[i] for i in chosen]).to(self.device)
            for i, ids in zip(chosen, greedy(model, src, src.shape[1] + 50), strict=True):
                texts[i] = self.target.decode(ids)
        return texts

    def finish(self, folder: Path = WEIGHTS, runs: Path = RUNS) -> dict[str, float]:
        """途中の状態の移動平均の重みを試験し、重み・トークナイザー・manifest・記録を書き出す。

        Raises:
            FileNotFoundError: まだ一度も途中の状態を残していないとき。
        """
        state = checkpoints.load(self.checkpoint)
        if state is None:
            raise FileNotFoundError("学習の途中の状態がありません。先に学習してください")
        history: list[dict[str, Any]] = state["history"]
        self.model.load_state_dict(state["ema"])
        packed = weights.pack(self.model, leave_out=["output.weight"])  # 出力側の埋め込みと同じもの
        # 書き出す精度の重みで試験する。
        self.model.load_state_dict(weights.unpack(packed), strict=False)
        self.model.eval()
        metrics, samples = self.test()
        self._write_weights(folder, packed, history, metrics)
        self._report(history, metrics, samples).write(runs)
        return metrics

    def test(self) -> tuple[dict[str, float], list[Sample]]:
        """試験の対訳(英文が 8 語以下)での成績と、種で選んだ訳例 (原文, 正解, 訳文)。"""
        pairs = translation.references(self.data.parts["test"], self.direction)
        sources, answers = list(pairs), list(pairs.values())
        first = [row[:1] for row in answers]
        language = self.target.language
        translator = Translator(self.model, self.source, self.target)
        beam = translator.translate_all(sources, beam_size=4)
        plain = self.greedy(self.model, sources)
        metrics = {
            "sentences": len(sources),
            "references_per_sentence": sum(map(len, answers)) / len(answers),
            "bleu_beam": translation.character_bleu(beam, answers, language),
            "bleu_greedy": translation.character_bleu(plain, answers, language),
            "bleu_beam_single_reference": translation.character_bleu(beam, first, language),
            "chrf_beam": translation.chrf(beam, answers),
            "chrf_greedy": translation.chrf(plain, answers),
            "exact_match": sum(b in a for b, a in zip(beam, answers, strict=True)) / len(beam),
        }
        chosen = random.Random(self.seed).sample(range(len(sources)), min(SAMPLES, len(sources)))
        return metrics, [(sources[i], answers[i], beam[i]) for i in chosen]

    def _write_weights(
        self,
        folder: Path,
        tensors: bytes,
        history: list[dict[str, Any]],
        metrics: dict[str, float],
    ) -> None:
        common = {
            "command": self._command(len(history)),
            "data_sha256": self.data.sha256,
            "seed": self.seed,
        }
        facts = {
            **common,
            "steps": len(history),
            "tokens": int(sum(record["tokens"] for record in history)),
            "cpu_hours": round(cpu_hours(history), 3),
            "config": asdict(self.model.config),
            "metrics": {key: round(value, 3) for key, value in metrics.items()},
        }
        weights.store(folder, translation.weights_name(self.direction), tensors, facts)
        for language, tokenizer in self.data.tokenizers.items():
            weights.store(folder, f"tokenizer_{language}.json", tokenizer.to_json(), common)

    def _report(
        self,
        history: list[dict[str, Any]],
        metrics: dict[str, float],
        samples: list[Sample],
    ) -> Report:
        settings = {
            "warmup": WARMUP,
            "max_tokens": MAX_TOKENS,
            "label_smoothing": SMOOTHING,
            "adam_betas": BETAS,
            "adam_eps": EPS,
            "ema": EMA,
            "data_sha256": self.data.sha256,
        }
        pairs = {name: len(part) for name, part in self.data.parts.items()}
        config = asdict(self.model.config)
        command = f"{self._command(len(history))} --seed {self.seed}"
        return Report(
            command, self.direction, self.seed, config, settings, pairs, history, metrics, samples
        )

    def _command(self, steps: int) -> str:
        """`steps` ステップの学習の命令。"""
        command = f"python -m chapter03.train_translator --direction {self.direction}"
        return command if steps == STEPS else f"{command} --steps {steps}"


def main(arguments: list[str]) -> int:
    """命令の中身。終わりまで学習できたら 0、途中で止まったら 1。"""
    parser = argparse.ArgumentParser(
        prog="python -m chapter03.train_translator", description="翻訳器の学習と評価"
    )
    parser.add_argument("--direction", choices=translation.DIRECTIONS, default="en-ja")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--minutes", type=float, help="この分数だけ CPU を使ったら、いったん止める")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--finish", action="store_true", help="学習せず、今の重みを評価して書き出す"
    )
    options = parser.parse_args(arguments)
    keep_memory()

    def job() -> dict[str, Any]:
        run = Run(options.direction, options.seed)
        use_threads(options.threads)
        if not options.finish:
            run.train(options.steps, options.minutes)
        return run.finish()

    return commands.run(
        job, CHECKPOINT_EVERY, "。--finish を付けると、その状態を評価して書き出します"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
