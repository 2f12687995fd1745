"""GPT の学習と生成の速さを transformers の GPT2LMHeadModel と比べ、KV キャッシュの効き目も測る。

    python -m benchmarks.gpt               すべて測り、results/gpt.json に書いて表を出す
    python -m benchmarks.gpt --generation  生成だけ測り直し、学習の行は前のまま残す
    python -m benchmarks.gpt --quick       1 回ずつ測り、表を出すだけ

学習の 1 ステップは、埋め込みから交差エントロピー・逆伝播・AdamW(fused)まで。寸法、データ、
ドロップアウトを掛ける場所と率は両者で同じにする(「配合」は chapter04.pretrain のとおり、速い
ドロップアウトを使い、注意の重みには掛けない)。こちらの「分けて」は
chapter04.loss.next_token_loss、「同じ式」は相手と同じ F.cross_entropy、「保持」は
shared.device.keep_memory(chapter04.pretrain が使う)。生成は貪欲法で 1 文ずつ。
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.peer import compare, measure
from benchmarks.report import publish
from chapter04.generation import generate
from chapter04.gpt import GPT, GPTConfig
from chapter04.loss import next_token_loss
from shared.device import keep_memory
from shared.dropout import use_fast_dropout
from shared.files import write_atomically

RESULT = Path(__file__).resolve().parent / "results" / "gpt.json"
VOCABULARY, D_MODEL, N_HEADS, N_LAYERS = 4_096, 128, 4, 4
TOKENS, STEPS, PROMPT = 2_048, 8, 8  # TOKENS は 1 ステップのトークンの数
# 文脈の長さ、ドロップアウト、こちらの損失と精度、相手の注意と精度
TRAINING = [
    (128, 0.1, "分けて fp32 保持 配合", "sdpa fp32"),
    (128, 0.1, "分けて bf16 保持 配合", "sdpa fp32"),
    (128, 0.1, "分けて fp32 保持", "sdpa fp32"),
    (128, 0.1, "分けて bf16 保持", "sdpa fp32"),
    *(
        (length, 0.0, ours, peer)
        for length in (128, 512)
        for ours, peer in (
            ("分けて fp32 保持", "sdpa fp32"),
            ("同じ式 fp32", "sdpa fp32"),
            ("分けて fp32 保持", "sdpa fp32 保持"),
            ("分けて bf16 保持", "sdpa bf16 保持"),
            ("分けて bf16 保持", "eager bf16 保持"),
        )
    ),
]
GENERATION = [
    (length, other) for length in (128, 384) for other in ("transformers", "キャッシュなし")
]


def our_model(context: int, dropout: float = 0.0) -> GPT:
    """決まった乱数の重みのモデル。"""
    torch.manual_seed(0)
    config = GPTConfig(
        vocab_size=VOCABULARY, context=context, d_model=D_MODEL, n_heads=N_HEADS,
        n_layers=N_LAYERS, dropout=dropout,
    )  # fmt: skip
    return GPT(config)


def peer_model(context: int, dropout: float = 0.0, attention: str = "sdpa") -> Any:
    """同じ寸法の GPT2LMHeadModel。"""
    from transformers import GPT2Config, GPT2LMHeadModel  # noqa: PLC0415  相手の側だけで読む

    torch.manual_seed(0)
    options: dict[str, Any] = {"attn_implementation": attention}
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=context, n_embd=D_MODEL, n_head=N_HEADS,
        n_layer=N_LAYERS, resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout,
        bos_token_id=None, eos_token_id=None, **options,
    )  # fmt: skip
    return GPT2LMHeadModel(config).train()


def training(side: str, context: int, dropout: float, kind: str) -> Callable[[int], None]:
    """学習を指定したステップだけ進める関数。"""
    how, precision, *options = kind.split()
    if "保持" in options:
        keep_memory()
    model = our_model(context, dropout) if side == "ours" else peer_model(context, dropout, how)
    if isinstance(model, GPT) and "配合" in options:
        use_fast_dropout(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    ids = torch.randint(VOCABULARY, (TOKENS // context, context + 1))
    inputs, targets = ids[:, :-1], ids[:, 1:]

    def loss() -> Tensor:
        if isinstance(model, GPT) and how == "分けて":
            return next_token_loss(model, inputs, targets)
        logits = model(inputs) if isinstance(model, GPT) else model(inputs).logits
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def steps(count: int) -> None:
        for _ in range(count):
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                value = loss()
            optimizer.zero_grad()
            value.backward()
            optimizer.step()

    return steps


def generation(kind: str, length: int) -> Callable[[int], list[int]]:
    """指定した数のトークンを貪欲法で選ぶ関数。"""
    ids = torch.arange(PROMPT)[None]
    if kind == "transformers":
        model = peer_model(PROMPT + length).eval()
        options = {"attention_mask": torch.ones_like(ids), "do_sample": False, "pad_token_id": 0}
        return lambda count: model.generate(ids, max_new_tokens=count, **options)[0].tolist()
    ours, use_cache = our_model(PROMPT + length), kind == "キャッシュあり"
    return lambda count: generate(ours, ids, count, top_k=1, use_cache=use_cache)[0].tolist()


def child(work: str, side: str, first: str, second: str, kind: str) -> None:
    """子プロセスの仕事。初回だけの準備を時間に含めないよう、はじめに短く走らせる。"""
    torch.set_num_threads(1)
    if work == "train":
        steps = training(side, int(first), float(second), kind)
        steps(1)
        measure(lambda: steps(STEPS), digest=lambda done: "")
    else:
        select = generation(kind, int(first))
        select(4)
        measure(lambda: select(int(first)), digest=json.dumps)


def spread(ratio: dict[str, float]) -> str:
    """速さの比(相手の時間 ÷ こちらの時間)の、最小・中央・最大。"""
    low, middle, high = (1 / ratio[key] for key in ("max", "median", "min"))
    return f"{low:.2f}・**{middle:.2f}**・{high:.2f}"


def peak(row: dict) -> str:
    """最大メモリー [MiB] の、こちらと相手。"""
    values = [[one["peak_mib"] or 0.0 for one in row[side]] for side in ("ours", "peer")]
    return " / ".join(f"{max(side):.0f}" for side in values)


def tables(rows: list[dict]) -> str:
    """学習と生成の、Markdown の表。"""
    trained = [
        "| 長さ | ドロップアウト | こちら | 相手 | 速さの比(最小・中央・最大) "
        "| トークン/秒(こちら / 相手) | 最大メモリー [MiB](こちら / 相手) |",
        "|" + "---|" * 7,
    ]
    made = [
        "| トークン | 相手 | 速さの比(最小・中央・最大) | 最大メモリー [MiB](こちら / 相手) |",
        "|" + "---|" * 4,
    ]
    for row in rows:
        if row["work"] == "train":
            context, dropout, ours, peer = row["case"]
            rates = [
                TOKENS * STEPS / sorted(one["seconds"] for one in row[side])[len(row[side]) // 2]
                for side in ("ours", "peer")
            ]
            trained.append(
                f"| {context} | {dropout} | {ours} | {peer} | {spread(row['seconds_ratio'])} "
                f"| {rates[0]:,.0f} / {rates[1]:,.0f} | {peak(row)} |"
            )
        else:
            length, other = row["case"]
            made.append(f"| {length} | {other} | {spread(row['seconds_ratio'])} | {peak(row)} |")
    return "\n".join([*trained, "", *made])


def main(arguments: list[str]) -> None:
    """子プロセスなら 1 度測り、親プロセスなら比べて結果を書く。"""
    if arguments[:1] == ["--child"]:
        child(*arguments[1:])
        return
    runs = 1 if "--quick" in arguments else 5
    me = ["python", "-m", "benchmarks.gpt", "--child"]
    rows: list[dict] = []
    if kept := "--generation" in arguments:
        rows = [row for row in json.loads(RESULT.read_text("utf-8")) if row["work"] == "train"]
    for context, dropout, ours, peer in () if kept else TRAINING:
        sizes = [str(context), str(dropout)]
        result = compare(
            [*me, "train", "ours", *sizes, ours], [*me, "train", "peer", *sizes, peer], runs
        )
        rows.append({"work": "train", "case": (context, dropout, ours, peer), **result})
    for length, other in GENERATION:
        command = [*me, "generate", "both", str(length), "0"]
        result = compare([*command, "キャッシュあり"], [*command, other], runs)
        if other == "キャッシュなし" and not result["same_result"]:
            raise RuntimeError(f"{length} トークンの生成が、キャッシュの有無で変わりました")
        rows.append({"work": "generate", "case": (length, other), **result})
    text = tables(rows)
    print(text)
    if "--quick" not in arguments:
        RESULT.parent.mkdir(exist_ok=True)
        write_atomically(RESULT, json.dumps(rows, ensure_ascii=False, indent=1) + "\n")
        publish("gpt", text)


if __name__ == "__main__":
    main(sys.argv[1:])
