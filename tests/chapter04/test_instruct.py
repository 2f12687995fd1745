"""chapter04.instruct の検査: 小さなモデルでの学習・中断・再開・書き出し・読みこみ。"""

import json
import tomllib
from dataclasses import asdict

import pytest
import torch

from chapter02.byte_level_bpe import ByteLevelBPE
from chapter04 import finetune, instruct, japanese_gpt
from chapter04.finetune import exact_match
from chapter04.gpt import GPT, GPTConfig
from chapter04.instruct import NAME, Run, load, main
from chapter04.instruction_templates import COPIED_OR_COUNTED
from chapter04.instructions import PARTS, Example
from chapter04.japanese_gpt import MODEL, SPECIAL_TOKENS, TOKENIZER
from chapter04.lora import LoRALinear, lora_parameters, lora_state_dict, n_lora_parameters
from shared import checkpoints, weights

WORDS = ("あ", "い", "う", "え")
EXAMPLES = [Example("copy", f"写す{word}", word, "repeat-0", (word,)) for word in WORDS]
EXAMPLES += [Example("count", f"数え{word}", "1", "count-0", (word,)) for word in WORDS]


def store_base(folder, seed=0):
    """小さな GPT とトークナイザーを、配ってある形で書く。"""
    torch.manual_seed(seed)
    tokenizer = ByteLevelBPE.train(["写すあいうえ", "数えあいうえ"], 280, SPECIAL_TOKENS)
    config = GPTConfig(
        vocab_size=tokenizer.vocab_size, context=32, d_model=16, n_heads=2, n_layers=1, dropout=0.1
    )
    model = GPT(config)
    for parameter in model.parameters():
        parameter.data.mul_(8)  # 初期値のままでは、出力が差分にほとんどよらない
    packed = weights.pack(model, leave_out=["output.weight"])
    weights.store(folder, MODEL, packed, {"config": asdict(config)})
    path = tokenizer.save(folder / "saved.json")
    weights.store(folder, TOKENIZER, path.read_bytes(), {})


@pytest.fixture
def base(tmp_path, monkeypatch):
    """小さな設定、小さな元の GPT、8 個の例。"""
    for name, value in {"RANK": 2, "CHECKPOINT_EVERY": 2, "MEASURE_EVERY": 1}.items():
        monkeypatch.setattr(instruct, name, value)
    monkeypatch.setenv("GENAI_NOTES_DATA", str(tmp_path / "cache"))
    monkeypatch.setenv("GENAI_DEVICE", "cpu")
    monkeypatch.setattr(instruct, "keep_memory", lambda: None)
    monkeypatch.setattr(instruct.instructions, "build", lambda seed: dict.fromkeys(PARTS, EXAMPLES))
    store_base(tmp_path / "base")
    return tmp_path / "base"


def test_settings_leave_few_weights_to_learn():
    """配る差分は r = 8 で、層の中の線形写像すべてに付け、学習する重みは 5 % 未満になる。"""
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=4096, context=128, d_model=224, n_heads=7, n_layers=5))
    total = sum(p.numel() for p in model.parameters())
    linears = [
        tuple(m.weight.shape) for m in model.layers.modules() if isinstance(m, torch.nn.Linear)
    ]
    instruct.add_lora(model, instruct.RANK, instruct.ALPHA, instruct.TARGETS)
    assert instruct.RANK == 8
    assert sum(isinstance(m, LoRALinear) for m in model.modules()) == len(linears) == 30
    count = sum(matrix.numel() for matrix in lora_parameters(model))
    assert count == n_lora_parameters(linears, 8) == 161_280
    assert count < 0.05 * total


def test_dropout_is_off(base):
    """学習のあいだも、出力が決まる。"""
    model = Run(0, base=base).model.train()
    ids = torch.tensor([[1, 2, 3, 4]])
    assert torch.equal(model(ids), model(ids))


def test_stored_difference_follows_new_phrasings():
    """配ってある差分は、学習にない言い回しの、数える・選ぶ・写すに答える。"""
    gpt = load()
    asked = {
        "「私は猫が好きです」とそのまま言ってください。": "私は猫が好きです",
        "次の言葉の文字の数を答えてください。「カ・メ・ラ」": "3",
        "「カメラ」と「新聞」のうち、漢字で書いてあるのはどちらですか。": "新聞",
    }
    assert finetune.answer(gpt.model, gpt.tokenizer, [*asked]) == [*asked.values()]
    metrics = weights.read(instruct.WEIGHTS, NAME, instruct.COMMAND)[1]["metrics"]
    for task in COPIED_OR_COUNTED:
        assert metrics["test_templates"][task] >= 0.9


def test_interrupted_run_equals_an_unbroken_one(base, tmp_path, monkeypatch):
    """止めて続けても、止めなかったときと、差分も損失も同じになる。"""
    whole = Run(0, base=base)
    whole.folder = tmp_path / "whole"
    whole.train(7)
    calls, real = [], finetune.sft_loss

    def stop_at_six(model, batch):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return real(model, batch)

    part = Run(0, base=base)
    monkeypatch.setattr(finetune, "sft_loss", stop_at_six)
    with pytest.raises(KeyboardInterrupt):
        part.train(7)
    state = checkpoints.load(part.folder / "checkpoint.pt")
    assert state is not None
    assert len(state["history"]) == 4
    again = Run(0, base=base)
    again.train(7)
    assert [r["loss"] for r in again.history] == [r["loss"] for r in whole.history]
    learned = lora_state_dict(whole.model)
    for name, value in lora_state_dict(again.model).items():
        assert torch.equal(learned[name], value), name


def test_only_the_difference_is_trained_and_stored(base, tmp_path):
    """元の重みは動かず、書き出すのは A と B(bfloat16)だけになる。"""
    run = Run(3, base=base)
    before = {k: v.clone() for k, v in run.model.state_dict().items()}
    run.train(4)
    run.finish(tmp_path / "out")
    learned = lora_state_dict(run.model)
    moved = {k for k, v in run.model.state_dict().items() if not torch.equal(v, before[k])}
    assert moved == set(learned)
    data, facts = weights.read(tmp_path / "out", NAME, "")
    stored = weights.unpack(data)
    assert stored.keys() == learned.keys()
    assert all(torch.equal(stored[k], learned[k]) for k in stored)
    assert facts["parameters"] == sum(v.numel() for v in stored.values())
    assert len(data) < 3 * facts["parameters"] + 4000


def test_command_writes_the_difference_and_its_facts(base, tmp_path, monkeypatch, capsys):
    """命令は、読み直せる差分、素性、課題ごとの成績を書き、二度目は書き出すだけになる。"""
    made = []

    def run(seed, threads):
        made.append(threads)
        return Run(seed, threads, base)

    monkeypatch.setattr(instruct, "Run", run)
    arguments = ["--steps", "60", "--seed", "1", "--threads", "1", "--output", str(tmp_path / "o")]
    monkeypatch.setattr(instruct, "RATE", 3e-2)
    assert main(arguments) == 0
    metrics = json.loads(capsys.readouterr().out)
    manifest = tomllib.loads((tmp_path / "o" / "manifest.toml").read_text(encoding="utf-8"))
    facts = manifest[NAME]
    assert (facts["steps"], facts["seed"], facts["device"]) == (60, 1, "CPU")
    assert facts["command"] == "python -m chapter04.instruct"
    assert facts["config"] == {"rank": 2, "alpha": 16.0, "targets": list(instruct.TARGETS)}
    assert facts["base_sha256"] == instruct.base_sha256(base)
    assert len(facts["data_sha256"]) == 64
    assert facts["cpu_hours"] >= 0
    assert facts["metrics"] == metrics
    assert [*metrics] == ["test_templates", "test_contents", "test_both"]
    gpt = load(tmp_path / "o", base)
    assert not gpt.model.training
    found = exact_match(gpt.model, gpt.tokenizer, EXAMPLES)
    assert metrics["test_both"] == {task: a / b for task, (a, b) in found.items()}
    assert metrics["test_both"]["count"] == 1  # どの答えも「1」
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out) == metrics
    assert made == [1, 1]


def test_an_adapter_of_another_model_is_refused(base, tmp_path):
    """元の GPT が違えば、どの GPT の差分かを述べて断る。"""
    run = Run(0, base=base)
    run.train(2)
    run.finish(tmp_path / "out")
    store_base(tmp_path / "other", seed=1)
    before = instruct.base_sha256(base)[:12]
    with pytest.raises(ValueError, match=f"別の GPT.*{before}.*{instruct.COMMAND}"):
        load(tmp_path / "out", tmp_path / "other")
    data, facts = weights.read(tmp_path / "out", NAME, "")
    facts["config"]["rank"] = 3
    weights.store(tmp_path / "out", NAME, data, facts)
    with pytest.raises(ValueError, match=r"config が合いません.*形は \(3, 16\)"):
        load(tmp_path / "out", base)
    with pytest.raises(FileNotFoundError, match=instruct.COMMAND):
        load(tmp_path / "nothing", base)


def test_bad_arguments_and_ctrl_c(base, tmp_path, monkeypatch, capsys):
    """誤った歩数は断り、Ctrl-C では続け方を述べる。"""
    monkeypatch.setattr(instruct, "Run", lambda seed, threads: Run(seed, threads, base))
    assert main(["--steps", "0", "--output", str(tmp_path / "o")]) == 1
    assert "steps は 1 以上" in capsys.readouterr().err

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(finetune, "sft_loss", stop)
    assert main(["--steps", "3", "--output", str(tmp_path / "o")]) == 1
    assert "同じ命令をもう一度実行すると" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
    assert japanese_gpt.load(base)
