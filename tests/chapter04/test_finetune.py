"""chapter04.finetune: 素直に書いた損失との一致、詰めものの無害、凍らせ方、小さな学習。"""

import math

import pytest
import torch
import torch.nn.functional as F

from chapter02.byte_level_bpe import ByteLevelBPE
from chapter04.finetune import (
    ClassifierGPT,
    SFTBatches,
    accuracy,
    answer,
    classification_loss,
    cosine,
    exact_match,
    freeze,
    pad_rows,
    sft,
    sft_loss,
    warmup_linear,
)
from chapter04.generation import generate
from chapter04.gpt import GPT, GPTConfig
from chapter04.instructions import ASSISTANT, END, USER, Example, prompt_ids
from chapter04.lora import add_lora

V, D, LAYERS, CONTEXT = 20, 8, 3, 16


def gpt(seed=0, dtype=torch.double, **changes):
    """出力に差が付くように重みを大きくした、小さな GPT。"""
    torch.manual_seed(seed)
    config = {"vocab_size": V, "context": CONTEXT, "d_model": D, "n_heads": 2, "dropout": 0.0}
    model = GPT(GPTConfig(**{**config, "n_layers": LAYERS, **changes})).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5) if parameter.dim() > 1 else parameter.add_(
                0.1 * torch.randn_like(parameter)
            )
    return model


ROWS = [
    ([3, 4, 5, 6], [False, False, True, True]),
    ([7, 8, 9, 10, 11, 12], [False, False, False, True, True, True]),
    ([13, 14], [False, True]),
]


# ---- SFT ------------------------------------------------------------------------------------


def test_padding_by_hand():
    """うしろに詰め、詰めた所の印は False になる。"""
    batch = pad_rows([([5, 6, 7], [False, True, True]), ([8], [True])], pad=9)
    assert batch["ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch["mask"].tolist() == [[False, True, True], [True, False, False]]
    assert batch["mask"].dtype == torch.bool


def test_batches_use_every_row_once():
    """1 周ですべての行を 1 度ずつ使い、長さの近いものを束ね、周ごとに組み合わせを変える。"""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(2, 40, (203,), generator=generator).tolist()
    rows = [([i + 1] * n, [True] * n) for i, n in enumerate(lengths)]
    batches = SFTBatches(rows, 8, generator)
    epochs = [[b["ids"] for b in batches] for _ in range(2)]
    assert len(batches) == len(epochs[0]) == 26
    groups = [[sorted(ids[:, 0].tolist()) for ids in epoch] for epoch in epochs]
    for epoch, group in zip(epochs, groups, strict=True):
        assert sorted(i for members in group for i in members) == [*range(1, 204)]
        assert sum(ids.numel() for ids in epoch) < 1.25 * sum(lengths)
    assert sorted(groups[0]) != sorted(groups[1])
    first_rows = [ids.shape[1] for ids in epochs[0]]
    assert first_rows != sorted(first_rows)  # 短いものから順に、とはならない
    again = SFTBatches(rows, 8, torch.Generator().manual_seed(1))
    same = SFTBatches(rows, 8, torch.Generator().manual_seed(1))
    for a, b in zip(again, same, strict=True):
        assert torch.equal(a["ids"], b["ids"])


def test_loss_equals_the_plain_loop():
    """行ごと、トークンごとに -log p を求め、答えの所だけを平均したものと一致する。"""
    model = gpt()
    total, count = 0.0, 0
    for ids, mask in ROWS:
        log_p = model(torch.tensor([ids])).log_softmax(-1)[0]
        for t in range(1, len(ids)):
            if mask[t]:
                total, count = total - log_p[t - 1, ids[t]], count + 1
    loss = sft_loss(model, pad_rows(ROWS))
    assert count == 6
    torch.testing.assert_close(loss, torch.as_tensor(total / count).float(), atol=1e-6, rtol=0)


def test_loss_and_gradient_equal_ignore_index():
    """全部の位置の logits から、数えない所を -100 にして求めた損失と、勾配まで一致する。"""
    model, batch = gpt(dtype=torch.float32), pad_rows(ROWS, pad=1)
    sft_loss(model, batch).backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    labels = batch["ids"].masked_fill(~batch["mask"], -100)[:, 1:]
    F.cross_entropy(model(batch["ids"])[:, :-1].transpose(1, 2), labels).backward()
    for gradient, parameter in zip(gradients, model.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, atol=1e-5, rtol=1e-4)


def test_padding_and_prompt_targets_do_not_matter():
    """詰めものの id と幅を変えても、損失は変わらない。印の付いた最後のトークンは入力にならない。"""
    model = gpt()
    loss = sft_loss(model, pad_rows(ROWS))
    wide = pad_rows([*ROWS, ([1] * 9, [False] * 9)], pad=19)
    torch.testing.assert_close(sft_loss(model, wide), loss)
    alone = pad_rows(ROWS[:1])
    changed = {"ids": alone["ids"].clone(), "mask": alone["mask"]}
    changed["ids"][0, 1] = 2  # 指示を変えれば、答えの損失は変わる
    assert sft_loss(model, changed) != sft_loss(model, alone)


def test_schedule_by_hand():
    """20 歩の 20 % = 4 歩で頂点、そこから直線で下がり、最後の歩は 1/17。"""
    rate = warmup_linear(0.4, 20, warmup=0.2)
    assert [rate(step) for step in (1, 2, 4)] == pytest.approx([0.1, 0.2, 0.4])
    assert rate(5) == pytest.approx(0.4 * 16 / 17)
    assert rate(20) == pytest.approx(0.4 / 17)
    assert warmup_linear(1.0, 1)(1) == 1.0
    assert warmup_linear(1.0, 3, 0.0)(1) == 1.0


@pytest.fixture(scope="module")
def tokenizer():
    """バイトと特殊トークンだけの語彙。"""
    return ByteLevelBPE.train(["ab"], 260, (END, USER, ASSISTANT))


EXAMPLES = [
    Example("copy", f"say {word}", word, "repeat-0", (word,)) for word in ("ab", "cde", "f", "gh")
] + [Example("count", f"len of {word}", n, "count-0", (word,)) for word, n in (("xx", "2"),)]


def trained(tokenizer, prepare=lambda model: None, **options):
    """5 つの例を覚えさせた GPT。"""
    model = gpt(1, torch.float32, vocab_size=260, d_model=32, context=24)
    prepare(model)
    result = sft(model, tokenizer, EXAMPLES, batch_size=3, rate=1e-2, **options)
    return model, result


def test_sft_learns_and_exact_match_counts(tokenizer):
    """数例なら覚えきり、一字も違わず答える。間違いを混ぜれば、課題ごとに数える。"""
    model, result = trained(tokenizer, steps=60)
    assert result.losses[-1] < 0.1 < result.losses[0]
    assert result.history[-1]["rate"] < result.history[10]["rate"]
    assert exact_match(model, tokenizer, EXAMPLES) == {"copy": (4, 4), "count": (1, 1)}
    wrong = Example("copy", "say ab", "abc", "repeat-0", ("ab",))
    assert exact_match(model, tokenizer, [*EXAMPLES, wrong])["copy"] == (4, 5)
    answers = answer(model, tokenizer, [e.instruction for e in EXAMPLES[::-1]])
    assert answers == [e.answer for e in EXAMPLES[::-1]]


def test_sft_is_deterministic_and_takes_options(tokenizer):
    """同じ種なら同じ重み。train の引数も渡せる。"""
    runs = [trained(tokenizer, steps=3, seed=seed)[1].losses for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]
    _, result = trained(tokenizer, steps=2, clip=None, evaluate=lambda model: {"one": 1},
                        evaluate_every=1)  # fmt: skip
    assert result.history[0]["one"] == 1


def test_sft_of_lora_moves_only_lora(tokenizer):
    """LoRA を付けたモデルもそのまま学習でき、元の重みは動かない。"""
    start = gpt(1, torch.float32, vocab_size=260, d_model=32, context=24).state_dict()
    model, result = trained(tokenizer, lambda m: add_lora(m, 4, 8) and None, steps=5)
    assert result.losses[-1] < result.losses[0]
    for name, value in model.state_dict().items():
        original = start.get(name.replace(".linear.", "."))
        assert original is None or torch.equal(original, value)


def test_answer_is_greedy_generation(tokenizer):
    """一つずつ貪欲法で書いたものと同じ。長さの違う指示を混ぜても、順は変わらない。"""
    model = gpt(2, torch.float32, vocab_size=260, d_model=32, context=24)
    instructions = ["abc", "a", "xyz", "bb", "q"]
    end = tokenizer.special_tokens[END]
    expected = []
    for text in instructions:
        prompt = prompt_ids(tokenizer, text)
        ids = generate(model, torch.tensor([prompt]), 7, top_k=1)[0, len(prompt) :].tolist()
        expected.append(tokenizer.decode(ids[: ids.index(end)] if end in ids else ids))
    assert answer(model, tokenizer, instructions, 7) == expected
    assert len(answer(model, tokenizer, ["a" * 20], 50)) == 1  # 文脈が尽きれば、そこで終わる
    with pytest.raises(ValueError, match=r"24|文脈|context"):
        answer(model, tokenizer, ["a" * 40])


# ---- 分類 -----------------------------------------------------------------------------------


def classified(rows=3):
    """長さの違う文と、そのクラス。"""
    batch = pad_rows(ROWS[:rows])
    lengths = torch.tensor([len(ids) for ids, _ in ROWS[:rows]])
    return {"ids": batch["ids"], "lengths": lengths, "labels": torch.tensor([0, 2, 1][:rows])}


@pytest.mark.parametrize("norm_first", [True, False])
def test_head_reads_the_last_real_token(norm_first):
    """詰めものを除いた最後の状態 h_m の W_y h_m + b と一致し、詰めものの id によらない。"""
    torch.manual_seed(0)
    model = ClassifierGPT(gpt(norm_first=norm_first), 3).double().eval()
    batch = classified()
    logits = model(batch["ids"], batch["lengths"])
    for i, (ids, _) in enumerate(ROWS):
        state = model.gpt.hidden(torch.tensor([ids]))[0, -1]
        torch.testing.assert_close(logits[i], model.head.weight @ state + model.head.bias)
    other = batch["ids"].masked_fill(batch["ids"] == 0, 17)
    assert torch.equal(model(other, batch["lengths"]), logits)
    model.train()
    assert not torch.equal(model(batch["ids"], batch["lengths"]), logits)  # ドロップアウト


def test_losses_equal_the_plain_loop():
    """L_2 は -log P(y | x) の平均、L_1 は一文ごとの平均の平均。L_3 = L_2 + λ L_1。"""
    torch.manual_seed(0)
    model = ClassifierGPT(gpt(dtype=torch.float32), 3, dropout=0.0)
    batch = classified()
    classes, sentences = [], []
    for i, (ids, _) in enumerate(ROWS):
        x = torch.tensor([ids])
        classes.append(-model(x, torch.tensor([len(ids)])).log_softmax(-1)[0, batch["labels"][i]])
        log_p = model.gpt(x)[0].log_softmax(-1)
        tokens = [-log_p[t - 1, ids[t]] for t in range(1, len(ids))]
        sentences.append(sum(tokens) / len(tokens))
    l2, l1 = sum(classes) / 3, sum(sentences) / 3
    total, numbers = classification_loss(model, batch)
    torch.testing.assert_close(total, l2 + 0.5 * l1)
    assert numbers == {
        "classification": pytest.approx(l2.item(), abs=1e-5),
        "lm": pytest.approx(l1.item(), abs=1e-5),
    }
    torch.testing.assert_close(classification_loss(model, batch, 2.0)[0], l2 + 2 * l1)
    torch.testing.assert_close(classification_loss(model, batch, 0.0)[0], l2)


@pytest.mark.parametrize(
    ("trained_part", "n_last", "expected"),
    [
        ("head", 1, {"head"}),
        ("last", 1, {"head", "gpt.norm", "gpt.layers.2"}),
        ("last", 2, {"head", "gpt.norm", "gpt.layers.1", "gpt.layers.2"}),
    ],
)
def test_freeze(trained_part, n_last, expected):
    """選んだ所だけが勾配を持ち、返す数はその重みの数に等しい。何度選び直してもよい。"""
    model = ClassifierGPT(gpt(), 3).double()
    whole = freeze(model, "all")
    assert whole == sum(p.numel() for p in model.parameters())
    count = freeze(model, trained_part, n_last)
    classification_loss(model, classified())[0].backward()
    learning = [name for name, p in model.named_parameters() if p.grad is not None]
    assert all(name.startswith(tuple(f"{part}." for part in expected)) for name in learning)
    assert {
        part for part in expected if any(n.startswith(f"{part}.") for n in learning)
    } == expected
    assert count == sum(dict(model.named_parameters())[name].numel() for name in learning)
    layer = 4 * (D * D + D) + 2 * D * 4 * D + 5 * D + 4 * D
    assert count == 3 * (D + 1) + (2 * D + n_last * layer if trained_part == "last" else 0)
    assert freeze(model, "all") == whole


def test_accuracy():
    """バッチの大きさが違っても、全体の割合になる。評価の状態で測り、元に戻す。"""
    model = ClassifierGPT(gpt(), 3, dropout=0.9).double().train()
    batch = classified()
    model.eval()
    guess = model(batch["ids"], batch["lengths"]).argmax(-1)
    model.train()
    batch["labels"] = guess.clone()
    batch["labels"][0] = (guess[0] + 1) % 3
    one = {name: value[:1] for name, value in batch.items()}
    assert accuracy(model, [batch, one]) == 2 / 4
    assert model.training
    model.eval()
    assert accuracy(model, [batch]) == 2 / 3
    assert not model.training


def test_gpt1_fine_tuning_learns():
    """最初のトークンで決まるクラスを、全部の重みを学習すれば見分けられる。"""
    from shared.training import train  # noqa: PLC0415

    model = ClassifierGPT(gpt(dtype=torch.float32), 2, dropout=0.0)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, V, (64, 8), generator=generator)
    lengths = torch.randint(2, 9, (64,), generator=generator)
    batch = {"ids": ids, "lengths": lengths, "labels": (ids[:, 0] % 2)}
    train(model, [batch], classification_loss, steps=60, rate=1e-2, progress=False)
    assert accuracy(model, [batch]) > 0.95


@pytest.mark.parametrize("steps", [0, 3, 5])
def test_cosine_of_few_steps_only_rises(steps):
    """`warmup` より短い学習では上がるだけで、終わった後は 0 のまま。0 で割らない。"""
    rate = cosine(2.0, 5, steps)
    assert [rate(step) for step in range(1, 6)] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0])
    assert [rate(6), rate(20)] == pytest.approx([0, 0], abs=1e-12)
    assert [cosine(2.0, 5, 9)(step) for step in (7, 9, 15)] == pytest.approx([1, 0, 0], abs=1e-12)


# ---- 誤った入力 ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: pad_rows([]), ValueError, "rows"),
        (lambda: pad_rows([([1, 2], [True])]), ValueError, r"rows\[0\].*2 個と 1 個"),
        (lambda: pad_rows([([], [])]), ValueError, r"rows\[0\]"),
        (lambda: pad_rows(ROWS, -1), ValueError, "pad"),
        (lambda: SFTBatches(ROWS, 0, torch.Generator()), ValueError, "batch_size"),
        (lambda: SFTBatches([], 2, torch.Generator()), ValueError, "rows"),
        (lambda: sft_loss(gpt(), pad_rows([([1, 2], [True, False])])), ValueError, "mask"),
        (
            lambda: sft_loss(gpt(), {"ids": torch.ones(1, 2).long(), "mask": torch.ones(1, 2)}),
            ValueError,
            "mask",
        ),
        (lambda: warmup_linear(0, 5), ValueError, "peak"),
        (lambda: warmup_linear(1, 0), ValueError, "steps"),
        (lambda: warmup_linear(1, 5, 1.0), ValueError, "warmup"),
        (lambda: exact_match(gpt(), None, []), ValueError, "examples"),
        (lambda: ClassifierGPT(torch.nn.Linear(1, 1), 2), TypeError, "gpt"),
        (lambda: ClassifierGPT(gpt(), 1), ValueError, "n_classes"),
        (lambda: ClassifierGPT(gpt(), 2, dropout=1.0), ValueError, "dropout"),
        (lambda: freeze(gpt(), "head"), TypeError, "model"),
        (lambda: freeze(ClassifierGPT(gpt(), 2), "tail"), ValueError, "trained"),
        (lambda: freeze(ClassifierGPT(gpt(), 2), "last", 4), ValueError, "n_last は層の数 3"),
        (lambda: freeze(ClassifierGPT(gpt(), 2), "last", 0), ValueError, "n_last"),
        (lambda: accuracy(ClassifierGPT(gpt(), 2), []), ValueError, "batches"),
        (
            lambda: classification_loss(ClassifierGPT(gpt(), 3).double(), classified(), -1.0),
            ValueError,
            "lm_weight",
        ),
        (
            lambda: classification_loss(ClassifierGPT(gpt(), 3).double(), classified(), math.nan),
            ValueError,
            "lm_weight",
        ),
    ],
)
def test_bad_input(call, error, message):
    """誤った引数は、引数名を述べて断る。"""
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("lengths", [[4, 6], [0, 6, 2], [4, 7, 2]])
def test_bad_lengths(lengths):
    """長さの数と範囲を確かめる。"""
    model = ClassifierGPT(gpt(), 2).double()
    with pytest.raises(ValueError, match="lengths は 3 個の、1 以上 6 以下"):
        model(classified()["ids"], torch.tensor(lengths))
