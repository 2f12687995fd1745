"""学習 1 ステップの速さを torch.nn.Transformer と比べ、注意の二つの計算の仕方も比べる。

    python -m benchmarks.transformer            どちらも
    python -m benchmarks.transformer --quick    学習の 1 ステップだけ、1 回ずつ

学習の 1 ステップは、埋め込み・エンコーダー・デコーダー・語彙への写像・交差エントロピー・逆伝播・
Adam まで。寸法、データ、詰めもののマスクは両者で同じにし、ドロップアウトは 0 とする(掛ける場所が
違うため)。
注意の比は、同じ入力での順伝播と逆伝播の CPU 時間(行列積と softmax ÷ SDPA)。
"""

import json
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peer import compare, measure
from benchmarks.report import publish
from chapter03.transformer import Transformer, TransformerConfig
from shared import attention
from shared.files import write_atomically

RESULT = Path(__file__).resolve().parent / "results" / "transformer.json"
VOCABULARY, D_MODEL, N_HEADS, N_LAYERS, D_FF = 4_000, 256, 4, 3, 1_024
BATCH, SRC_LENGTH, TGT_LENGTH, STEPS = 96, 14, 18, 12
LENGTHS = (8, 16, 32, 64, 128, 256, 512)


class Peer(nn.Module):
    """torch.nn.Transformer に、同じ埋め込みと出力を付けたもの。"""

    def __init__(self) -> None:
        super().__init__()
        self.src = nn.Embedding(VOCABULARY, D_MODEL)
        self.tgt = nn.Embedding(VOCABULARY, D_MODEL)
        self.stack = nn.Transformer(
            D_MODEL, N_HEADS, N_LAYERS, N_LAYERS, D_FF, dropout=0.0, batch_first=True
        )
        self.register_buffer("causal", ~attention.causal_mask(TGT_LENGTH), persistent=False)

    def forward(self, src: Tensor, tgt: Tensor) -> Tensor:
        hidden = self.stack(
            self.src(src) * D_MODEL**0.5,
            self.tgt(tgt) * D_MODEL**0.5,
            tgt_mask=self.causal,
            src_key_padding_mask=src == 0,
            memory_key_padding_mask=src == 0,
            tgt_is_causal=True,
        )
        return hidden @ self.tgt.weight.T


def train_steps(side: str, precision: str) -> list[float]:
    """`STEPS` ステップ学習し、損失の並びを返す。"""
    torch.manual_seed(0)
    config = TransformerConfig(
        src_vocab_size=VOCABULARY, tgt_vocab_size=VOCABULARY, d_model=D_MODEL, n_heads=N_HEADS,
        n_layers=N_LAYERS, d_ff=D_FF, dropout=0.0, attention_bias=True,
    )  # fmt: skip
    model = Transformer(config) if side == "ours" else Peer()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    src = torch.randint(3, VOCABULARY, (BATCH, SRC_LENGTH))
    for row, length in enumerate(torch.randint(SRC_LENGTH // 2, SRC_LENGTH + 1, (BATCH,))):
        src[row, length:] = 0
    tgt = torch.randint(3, VOCABULARY, (BATCH, TGT_LENGTH + 1))
    losses = []
    for _ in range(STEPS):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits = model(src, tgt[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1), tgt[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def attention_ratios() -> dict[str, dict[str, float]]:
    """型と長さごとの、因果マスクつきの注意の時間の比(行列積と softmax ÷ SDPA、4 回の最小)。"""
    ratios: dict[str, dict[str, float]] = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        ratios[name] = {}
        for length in LENGTHS:
            shape = (max(1, 4_096 // length), 6, length, 32)
            q, k, v = (torch.randn(shape, dtype=dtype, requires_grad=True) for _ in range(3))
            best = {}
            for attend in (attention._attend_plain, attention._attend_sdpa):
                times = []
                for _ in range(4):
                    start = time.process_time()
                    output, _ = attend(q, k, v, None, causal=True, bias=None, dropout=0.0)
                    output.sum().backward()
                    times.append(time.process_time() - start)
                best[attend.__name__] = min(times)
            ratio = best["_attend_plain"] / best["_attend_sdpa"]
            ratios[name][str(length)] = round(ratio, 2)
    return ratios


def main(arguments: list[str]) -> None:
    """子プロセスなら 1 度測り、親プロセスなら比べて結果を書く。"""
    torch.set_num_threads(1)
    if arguments[:1] in (["ours"], ["peer"]):
        train_steps(*arguments)  # 初回だけの準備を時間に含めない
        measure(lambda: train_steps(*arguments), digest=lambda losses: "")
        return
    runs = 1 if "--quick" in arguments else 5
    result: dict = {"steps": {}}
    for ours, peer in (("fp32", "fp32"), ("bf16", "bf16"), ("bf16", "fp32")):
        me = ["python", "-m", "benchmarks.transformer"]
        result["steps"][f"{ours}/{peer}"] = compare([*me, "ours", ours], [*me, "peer", peer], runs)
    if "--quick" in arguments:
        print(steps_table(result))
        return
    result["attention"] = attention_ratios()
    RESULT.parent.mkdir(exist_ok=True)
    write_atomically(RESULT, json.dumps(result, ensure_ascii=False, indent=1) + "\n")
    tables = steps_table(result) + "\n\n" + attention_table(result)
    print(tables)
    publish("transformer", tables)


def steps_table(result: dict) -> str:
    """学習 1 ステップの速さの比(相手の時間 ÷ こちらの時間)の表。"""
    lines = ["| こちらの精度 | 相手の精度 | 速さの比(最小・中央・最大) | 目標 |", "|" + "---|" * 4]
    for name, row in result["steps"].items():
        ours, peer = name.split("/")
        low, middle, high = sorted(1 / row["seconds_ratio"][k] for k in ("min", "median", "max"))
        goal = "1.0 以上" if ours == peer else "1.4 以上"
        lines.append(f"| {ours} | {peer} | {low:.2f}・**{middle:.2f}**・{high:.2f} | {goal} |")
    return "\n".join(lines)


def attention_table(result: dict) -> str:
    """注意の時間の比(行列積と softmax ÷ SDPA)の表。1 より小さければ素直な行列積が速い。"""
    lines = [
        "| 型 | " + " | ".join(f"長さ {length}" for length in LENGTHS) + " |",
        "|" + "---|" * (len(LENGTHS) + 1),
    ]
    for name, row in result["attention"].items():
        lines.append(f"| {name} | " + " | ".join(f"{row[str(n)]:.2f}" for n in LENGTHS) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main(sys.argv[1:])
