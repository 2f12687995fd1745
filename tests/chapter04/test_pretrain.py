"""chapter04.pretrain の検査: 小さなモデルでの学習・中断・再開・書き出し・torchrun。"""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from chapter04 import japanese_gpt, pretrain, text
from chapter04.finetune import cosine
from chapter04.japanese_gpt import MODEL
from chapter04.pretrain import Run, loss, main
from chapter04.pretrain_report import NAME
from shared import checkpoints
from shared.attention import MultiHeadAttention
from shared.dropout import ByteDropout

ROOT = Path(__file__).parents[2]
LOG = "log.jsonl"
SMALL = {
    "SIZES": {"d_model": 16, "n_heads": 2, "n_layers": 1, "context": 16, "dropout": 0.1},
    "VOCAB_SIZE": 270,
    "BATCH_SIZE": 4,
    "CHECKPOINT_EVERY": 2,
    "EVALUATE_EVERY": 3,
    "WARMUP": 2,
    "SAMPLES": 3,
}


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """小さな設定と、400 文の文書。"""
    for name, value in SMALL.items():
        monkeypatch.setattr(pretrain, name, value)
    monkeypatch.setenv("GENAI_NOTES_DATA", str(tmp_path / "cache"))
    monkeypatch.setattr(pretrain, "keep_memory", lambda: None)
    # 生成の長さ 60 が小さな文脈に収まるように縮める
    complete = japanese_gpt.JapaneseGPT.complete
    monkeypatch.setattr(
        japanese_gpt.JapaneseGPT,
        "complete",
        lambda self, **options: complete(self, **{**options, "max_new_tokens": 8}),
    )
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(f"{i} 番の猫は {i * i} 匹。" for i in range(400)), encoding="utf-8")
    return path


def test_model_drops_bytes_but_no_attention_weights():
    """ドロップアウトはすべて ByteDropout、注意の重みには掛けない。初期値の損失は log V に近い。"""
    torch.manual_seed(0)
    model = pretrain.build_model(300)
    assert sum(isinstance(m, ByteDropout) for m in model.modules()) > 1
    assert not any(type(m) is torch.nn.Dropout and m.p for m in model.modules())
    assert {m.dropout for m in model.modules() if isinstance(m, MultiHeadAttention)} == {0.0}
    batch = {"inputs": torch.randint(300, (4, 20)), "targets": torch.randint(300, (4, 20))}
    assert pretrain.loss(model.eval(), batch).item() == pytest.approx(5.70, abs=0.2)


def test_stored_model_has_the_promised_size():
    """配る GPT は 200 万から 400 万パラメーター。"""
    n = sum(p.numel() for p in pretrain.build_model(pretrain.VOCAB_SIZE).parameters())
    assert 2_000_000 <= n <= 4_000_000


def test_interrupted_run_equals_an_unbroken_one(corpus, tmp_path, monkeypatch, capsys):
    """止めて続けても、止めなかったときと、重みも損失も同じになる。"""
    whole = Run(corpus, 0, tmp_path / "a")
    whole.train(7)
    part = Run(corpus, 0, tmp_path / "b")
    calls = []

    def stop_at_five(model, batch):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return loss(model, batch)

    monkeypatch.setattr(pretrain, "loss", stop_at_five)
    with pytest.raises(KeyboardInterrupt):
        part.train(7)
    again = Run(corpus, 0, tmp_path / "b")
    again.train(7)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value), name
    logs = [
        [json.loads(line)["loss"] for line in (tmp_path / f / LOG).open(encoding="utf-8")]
        for f in "ab"
    ]
    assert logs[0] == logs[1]
    assert len(logs[0]) == 7


def test_recipe(corpus, tmp_path, monkeypatch):
    """行列は Muon が動かし、文書は REPEAT の確率で繰り返し、学習率は頂点まで上げて 0 に下げる。"""
    seen = {}
    real_train, real_batches = pretrain.train, text.PackedBatches

    def train(model, batches, measured, **options):
        seen.update(options)
        return real_train(model, batches, measured, **options)

    def batches(*arguments, repeat):
        seen["repeat"] = repeat
        return real_batches(*arguments, repeat=repeat)

    monkeypatch.setattr(pretrain, "train", train)
    monkeypatch.setattr(pretrain.text, "PackedBatches", batches)
    run = Run(corpus, 0, tmp_path)
    run.train(6)
    muon, *others = seen["optimizer"].param_groups
    layers = {id(p) for p in run.model.layers.parameters()}
    assert {id(p) for p in muon["params"]} == {
        id(p) for p in run.model.parameters() if p.dim() == 2 and id(p) in layers
    }
    assert [group["weight_decay"] for group in (muon, *others)] == [pretrain.WEIGHT_DECAY] * 2 + [0]
    assert seen["repeat"] == pretrain.REPEAT > 0
    rates = [seen["rate"](step) for step in (1, 2, 6)]
    assert rates == pytest.approx([pretrain.PEAK / 2, pretrain.PEAK, 0], abs=1e-12)


def test_a_changed_number_of_steps_is_recorded(corpus, tmp_path):
    """途中で歩数を延ばせば、どこまでが前の予定かを、manifest と記録に残す。"""
    run = Run(corpus, 0, tmp_path)
    run.train(6)
    run.train(9)
    run.finish(tmp_path / "out", tmp_path / "out")
    facts = tomllib.loads((tmp_path / "out" / "manifest.toml").read_text(encoding="utf-8"))[MODEL]
    assert (facts["steps"], facts["other_schedule"]) == (9, 6)
    report = (tmp_path / "out" / f"{NAME}.md").read_text(encoding="utf-8")
    assert "はじめの 6 ステップの学習率は" in report
    whole = [{"step": s, "rate": cosine(pretrain.PEAK, 2, 9)(s)} for s in range(1, 10)]
    assert pretrain.other_schedule(whole) == 0


def test_finish_stores_the_moving_average(corpus, tmp_path):
    """書き出すのは、移動平均の重み(bfloat16)。"""
    run = Run(corpus, 0, tmp_path)
    run.train(6)
    run.finish(tmp_path / "out", tmp_path / "out")
    state = checkpoints.load(run.checkpoint)
    assert state is not None
    stored = japanese_gpt.load(tmp_path / "out").model.state_dict()
    for name, value in state["ema"].items():
        assert torch.equal(stored[name], value.to(torch.bfloat16).float()), name
    assert any(not torch.equal(state["ema"][name], state["model"][name]) for name in stored)


def test_command_writes_weights_and_report(corpus, tmp_path, capsys):
    """命令は、読み直せる重み、素性、記録を書き、二度目は学習済みの状態から書き出すだけになる。"""
    arguments = ["--corpus", str(corpus), "--steps", "6", "--output", str(tmp_path / "out")]
    assert main(arguments) == 0
    metrics = json.loads(capsys.readouterr().out)
    manifest = tomllib.loads((tmp_path / "out" / "manifest.toml").read_text(encoding="utf-8"))
    facts = manifest[MODEL]
    assert (facts["steps"], facts["device"]) == (6, "CPU")
    assert facts["tokens"] == 6 * 4 * 16
    command = "python -m chapter04.pretrain --steps 6 --seed 0 --corpus corpus.txt --output out"
    assert facts["command"] == command
    gpt = japanese_gpt.load(tmp_path / "out")
    run = Run(corpus, 0)
    bits = gpt.bits_per_byte(run.parts["test"])
    assert bits == pytest.approx(metrics["test_bits_per_byte"], abs=1e-5)
    report = (tmp_path / "out" / f"{NAME}.md").read_text(encoding="utf-8")
    assert f"{bits:.4f} bit/byte" in report
    assert report.count("\n| ") >= 3 + 11
    assert (tmp_path / "out" / f"{NAME}.svg").read_text(encoding="utf-8").startswith("<?xml")
    assert main([*arguments, "--finish"]) == 0
    assert json.loads(capsys.readouterr().out) == metrics


def test_tokens_count_every_accumulated_batch(corpus, tmp_path):
    """一歩に使ったバッチの数だけ、トークンも数え、命令にも書く。"""
    run = Run(corpus, 0, tmp_path)
    run.train(2, accumulate=3)
    run.finish(tmp_path / "out", tmp_path / "out")
    facts = tomllib.loads((tmp_path / "out" / "manifest.toml").read_text(encoding="utf-8"))[MODEL]
    assert facts["tokens"] == 2 * 3 * 4 * 16
    assert "--accumulate 3" in facts["command"]
    assert facts["command"] in (tmp_path / "out" / f"{NAME}.md").read_text(encoding="utf-8")


def test_bad_arguments_are_refused(corpus, tmp_path, capsys):
    """ないコーパス、上書きになる命令、学習前の --finish、短すぎる文書を断る。"""
    assert main(["--corpus", str(tmp_path / "none"), "--output", str(tmp_path)]) == 1
    assert "none を読めません" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--corpus", str(corpus)])
    assert "--output" in capsys.readouterr().err
    assert main(["--corpus", str(corpus), "--output", str(tmp_path / "o"), "--finish"]) == 1
    assert "先に学習してください" in capsys.readouterr().err
    good = ["--corpus", str(corpus), "--output", str(tmp_path / "o")]
    (tmp_path / "short.txt").write_text("短い", encoding="utf-8")
    assert main(["--corpus", str(tmp_path / "short.txt"), "--output", str(tmp_path / "o")]) == 1
    assert "文書が 1 個しかなく、validation・test に回るものがありません" in capsys.readouterr().err
    for name in ("steps", "threads", "accumulate"):
        assert main([*good, f"--{name}", "0"]) == 1
        assert f"--{name} は 1 以上にしてください: 0" in capsys.readouterr().err
    assert main(["--corpus", str(corpus), "--output", str(corpus)]) == 1
    assert "--output にはフォルダーを渡してください" in capsys.readouterr().err
    assert not [*(tmp_path / "cache").rglob("log.jsonl")]


@pytest.mark.slow
def test_torchrun_equals_one_process(corpus, tmp_path):
    """2 プロセスで分け合っても、1 プロセスで同じ数のバッチを使ったときと同じ学習になる。"""
    script = tmp_path / "small.py"
    script.write_text(
        "import sys\nfrom chapter04 import japanese_gpt, pretrain\n"
        f"for name, value in {SMALL!r}.items():\n    setattr(pretrain, name, value)\n"
        "pretrain.SIZES['dropout'] = 0.0\n"
        "pretrain.autocast_dtype = lambda device: None\n"
        "complete = japanese_gpt.JapaneseGPT.complete\n"
        "japanese_gpt.JapaneseGPT.complete = (\n"
        "    lambda self, **o: complete(self, **{**o, 'max_new_tokens': 8})\n)\n"
        "sys.exit(pretrain.main(sys.argv[1:]))\n",
        encoding="utf-8",
    )
    losses = {}
    for n in (1, 2):
        environment = {
            **os.environ,
            "GENAI_NOTES_DATA": str(tmp_path / f"cache{n}"),
            "GENAI_DEVICE": "cpu",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
        }
        launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        arguments = ["--corpus", str(corpus), "--steps", "4", "--output", str(tmp_path / f"o{n}")]
        command = [sys.executable, *(["-m", *launcher] if n == 2 else []), str(script), *arguments]
        command += ["--accumulate", "2"] if n == 1 else []
        subprocess.run(command, env=environment, check=True, timeout=240)
        [log] = (tmp_path / f"cache{n}").rglob(LOG)
        losses[n] = [json.loads(line)["loss"] for line in log.open(encoding="utf-8")]
    assert losses[1] == pytest.approx(losses[2], abs=1e-6)
    assert len(losses[1]) == 4
