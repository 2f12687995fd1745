# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 4.3.2a SFT と LoRA: 指示に従うことを、例から教える
#
# | | |
# |---|---|
# | 書籍 | 「原論文から解き明かす生成AI」4.3.2 節 |
# | 論文 | [Ouyang et al., "Training Language Models to Follow Instructions with Human Feedback" (2022)](https://arxiv.org/abs/2203.02155v1) 3 節、[Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (2021)](https://arxiv.org/abs/2106.09685v2)、[Wortsman et al., "Model soups" (2022)](https://arxiv.org/abs/2203.05482v3)、[Ilharco et al., "Editing Models with Task Arithmetic" (2022)](https://arxiv.org/abs/2212.04089v3) |
# | 目安 | 実行 1 分(2 コアの CPU)、読む時間 90 分 |
# | 区分 | **本線**(7 節は「発展」なので後回しにできます) |
# | ノート | [4.3.2.md](../notes/4.3.2.md) |

# %% [markdown]
# ## 前回まで
#
# 4.3.1 で見たように、文脈に例を並べれば、モデルは重みを動かさずに課題を解きます。けれども、文脈からの学習は会話が終われば消え、例を並べられる長さにも限りがあります。
#
# ## 今回の問い
#
# **指示に従うというふるまいを、例だけから重みに刻めるでしょうか。しかも、ほんの少しの重みだけで。**
#
# 前半の答えは、指示と答えの組を学習させる **SFT**(supervised fine-tuning)です。後半の答えは、元の重みを凍らせ、差分だけを低いランクで学ぶ **LoRA** です。配ってある日本語の GPT に、この二つで「指示に従う」ことを教えます。

# %% [markdown]
# ## 準備

# %%
import copy
import math
from statistics import mean

import matplotlib.pyplot as plt
import numpy as np
import torch

from chapter04 import exercises, instruct, japanese_gpt
from chapter04.finetune import answer, exact_match, pad_rows, sft, sft_loss
from chapter04.instruction_templates import COPIED_OR_COUNTED, TASKS
from chapter04.instructions import build, format_example, overlap
from chapter04.lora import (
    LoRALinear,
    add_lora,
    lora_parameters,
    lora_state_dict,
    load_lora,
    merge_lora,
    n_lora_parameters,
    optimizer_bytes,
    remove_lora,
    spectrum,
    unmerge_lora,
    weight_updates,
)
from chapter04.measurements.section_4_3_2a import loss, truncated, with_weights
from chapter04.merging import apply_task_vectors, cosine, greedy_soup, task_vector
from shared import claims, device, plotting, weights
from shared.learning import predict, reveal, same

plotting.setup()
_ = device.prepare(0)

# %% tags=["parameters"]
SEED = 0
RANK, ALPHA = 8, 16.0
STEPS = 25  # この場の学習の歩数(1 歩で 32 個の例)

# %% [markdown]
# ## 1. 続きを書くモデルに、指示は通じない
#
# ### 直感
#
# 配ってある GPT は、「次のトークンを当てる」学習だけをしました。指示を渡すと、どうするでしょう。

# %%
gpt = japanese_gpt.load()
tokenizer = gpt.tokenizer
ASKED = "「私は猫が好きです」とそのまま書いてください。"

# %% tags=["nbval-ignore-output"]
for text in gpt.complete(ASKED, max_new_tokens=20, temperature=0.7, top_p=0.9, n=3):
    print(text)

# %% [markdown]
# 指示の **続き** を書こうとするだけです。モデルから見れば、指示も一つの文にすぎません。次に来そうな文を書くことと、頼まれたことをするのは、別の仕事なのです。
#
# そこで InstructGPT(Ouyang ら)は、人に頼んで、指示と、良い答えの組を書いてもらいました。
#
# > **論文**(3.2 節と 3.4 節): およそ 40 人に頼み、SFT のために、およそ 1 万 3 千の指示に良い答えを書いてもらった。
#
# ### 私たちの指示データ
#
# 私たちは、Tatoeba の文と数の言葉から、決まった言い回しで 7 課題の組を作ります。

# %%
parts = build(0)
train = parts["train"]
print({part: len(examples) for part, examples in parts.items()})
for task in TASKS:
    example = next(e for e in train if e.task == task)
    print(f"{task}: {example.instruction} → {example.answer}")

# %% [markdown]
# 数える課題などで、言葉を「カ・メ・ラ」と中黒で区切っているのは、トークンのせいです。2 章で見たように、モデルに見えるのは文字ではなくトークンです。「カメラ」が 1 個のトークンなら、3 文字だと知る手がかりがありません。
#
# 丸暗記では解けないことを確かめるために、試験を三つ用意しました。
#
# | 試験 | 言い回し | 内容(言葉、数、文) |
# |---|---|---|
# | `test_templates` | 新しい | 学習と同じ集まりから |
# | `test_contents` | 学習と同じ | 新しい |
# | `test_both` | 新しい | 新しい |

# %%
seen = {e.template for e in train}
fresh = {e.template for e in parts["test_templates"]}
print("学習と重なる言い回し:", len(seen & fresh), " 学習と重なる内容:", len(overlap(parts)))

# %% [markdown]
# ### 対話の形
#
# 指示と答えの境目を、特別なトークンで示します。`<|user|>` 指示 `<|assistant|>` 答え `<|endoftext|>` です。配ってある GPT の語彙で、一つ見てみましょう。右端の ○ が、これから学ばせる所です。

# %%
counting = next(e for e in train if e.task == "count")
ids, mask = format_example(tokenizer, counting)
print(" ".join(tokenizer.decode([i]) for i in ids))
print(" ".join("○" if m else "-" for m in mask))

# %% [markdown]
# 終わりの `<|endoftext|>` も学ばせます。**止まること** も、答えの一部だからです。
#
# ## 2. 答えだけを数える損失
#
# ### 直感
#
# 指示を書くのは人の仕事です。モデルが学ぶべきなのは「この指示が来たら、こう答える」ことなので、損失は **答えの所だけ** で測ります。
#
# ### 数式
#
# 列を $x_0, x_1, \dots$、答えの所を示す印を $m_t \in \lbrace 0, 1 \rbrace$ とします。
#
# $$
# L = -\frac{\sum_t m_t \log p(x_t \mid x_0, \dots, x_{t-1})}{\sum_t m_t}
# $$
#
# $m_t$ がすべて 1 なら、事前学習と同じ損失です。違いは **印だけ** です。
#
# 6 トークンの例を手で計算しましょう。「人」「助手」「終」は、三つの特別なトークンです。
#
# | $t$ | 0 | 1 | 2 | 3 | 4 | 5 |
# |---|---|---|---|---|---|---|
# | $x_t$ | 人 | 猫は | 何文字 | 助手 | 1 | 終 |
# | $m_t$ | 0 | 0 | 0 | 0 | 1 | 1 |
# | モデルの $p(x_t \mid \cdots)$ | — | 0.1 | 0.2 | 0.25 | 0.5 | 0.8 |
#
# $L = -(\ln 0.5 + \ln 0.8)/2 = (0.693 + 0.223)/2 = 0.458$。全部の位置で測れば $(2.303 + 1.609 + 1.386 + 0.693 + 0.223)/5 = 1.243$ で、そのほとんどが「人の次の言葉が当たらない」ことへの罰になってしまいます。
#
# ### 実装(素直に)

# %%
def plain_sft_loss(model, rows):
    total = count = 0
    for ids, mask in rows:
        log_p = model(torch.tensor([ids]))[0].log_softmax(-1)  # 位置 t は、t + 1 を予測する
        for t in range(1, len(ids)):
            if mask[t]:
                total, count = total - float(log_p[t - 1, ids[t]]), count + 1
    return total / count


# %% [markdown]
# ### 確認
#
# 手計算と、長さの違う 4 つの例を束ねた速い実装の両方で確かめます。

# %%
chance = [0.1, 0.2, 0.25, 0.5, 0.8]
print(f"{-sum(map(math.log, chance[3:])) / 2:.3f} と {-sum(map(math.log, chance)) / 5:.3f}")
rows = [format_example(tokenizer, e) for e in train[:4]]
with torch.no_grad():
    fast = sft_loss(gpt.model, pad_rows(rows))
    same(plain_sft_loss(gpt.model, rows), fast, "4 つの例の、答えだけの損失", 1e-4)

# %% [markdown]
# ## 3. LoRA: 差分だけを、低いランクで
#
# ### 直感
#
# 全部の重みを動かすと、課題を一つ教えるたびに、モデルがまるごと一つ増えます。学習の間は、重みのほかに勾配と、オプティマイザーの覚え書きも要ります。
#
# > **論文**(4.2 節): 1,750 億個の GPT-3 では、保存する重みだけで 350 GB。全部を学習すると 1.2 TB のメモリーが要る。
#
# 動かす量を減らせないでしょうか。LoRA は、重みの **差分** $\Delta W$ を、細長い行列 $A$ と $B$ の積に限ります。
#
# ### 数式
#
# $$
# h = W_0 x + \Delta W x = W_0 x + \frac{\alpha}{r} B A x \qquad \text{(3)}
# $$
#
# $A$ は $r \times d_{\text{in}}$、$B$ は $d_{\text{out}} \times r$ です(式 (3) に、その後の段落の倍率 $\alpha / r$ を書き足しました)。$W_0$ は凍らせ、$A$ と $B$ だけを学習します。$A$ は正規乱数、**$B$ は 0** から始めるので、はじめは $\Delta W = 0$、つまり元のモデルのままです。
#
# 手で計算します。$W_0 = I$、$A = (1, -1)$、$B = (1, 2)^\top$、$r = 1$、$\alpha = 2$、$x = (2, 1)^\top$ なら、
#
# - $Ax = 2 - 1 = 1$、$BAx = (1, 2)^\top$、倍率 $\alpha / r = 2$ を掛けて $(2, 4)^\top$
# - $h = (2, 1)^\top + (2, 4)^\top = (4, 5)^\top$
#
# 先に差分を足しこむと、$\Delta W = 2 B A = \begin{pmatrix} 2 & -2 \\ 4 & -4 \end{pmatrix}$、$W_0 + \Delta W = \begin{pmatrix} 3 & -2 \\ 4 & -3 \end{pmatrix}$ で、$h = (6 - 2,\ 8 - 3)^\top = (4, 5)^\top$。同じです。
#
# ### 実装(素直に)

# %%
def plain_lora(x, w, A, B, alpha):
    r, d = len(A), len(x)
    z = [sum(A[k][j] * x[j] for j in range(d)) for k in range(r)]  # A x: r 個の数
    return [
        sum(w[i][j] * x[j] for j in range(d)) + alpha / r * sum(B[i][k] * z[k] for k in range(r))
        for i in range(len(w))
    ]


# %% [markdown]
# ### 確認

# %%
print("手計算の例:", plain_lora([2, 1], [[1, 0], [0, 1]], [[1, -1]], [[1], [2]], 2))
toy = LoRALinear(torch.nn.Linear(6, 5, bias=False, dtype=torch.double), rank=3, alpha=6.0)
torch.nn.init.normal_(toy.B)  # 0 のままでは、差分が確かめられない
x = torch.arange(6.0).double()
plain = plain_lora(x, toy.linear.weight, toy.A, toy.B, 6.0)
same([float(h) for h in plain], toy(x).detach(), "LoRA の出力", 1e-12)
toy.merge()
same([float(h) for h in plain], toy(x).detach(), "差分を足しこんだ写像の出力", 1e-12)

# %% [markdown]
# ### 学習する数を数える
#
# $d = 224$ の正方行列は $224 \times 224 = 50{,}176$ 個。$r = 8$ なら $8 \times (224 + 224) = 3{,}584$ 個、**14 分の 1** です。FFN の $224 \times 896 = 200{,}704$ 個は、$8 \times (224 + 896) = 8{,}960$ 個になります。
#
# 1 層には正方行列が四つ($W_q, W_k, W_v, W_o$)と、FFN の二つがあるので、$4 \times 3{,}584 + 2 \times 8{,}960 = 32{,}256$ 個。5 層で 161,280 個です。

# %%
lora_gpt = copy.deepcopy(gpt.model)
sample = torch.tensor([rows[0][0]])
with torch.no_grad():
    before = lora_gpt(sample)
names = add_lora(lora_gpt, RANK, ALPHA, instruct.TARGETS)
with torch.no_grad():
    same(before, lora_gpt(sample), "LoRA を付ける前と、付けた直後の logits")

# %%
shapes = [tuple(lora_gpt.get_submodule(name).linear.weight.shape) for name in names]
learned = sum(p.numel() for p in lora_parameters(lora_gpt))
total = sum(p.numel() for p in gpt.model.parameters())
same(n_lora_parameters(shapes, RANK), learned, "学習する重みの数")
print(f"{len(names)} 個の線形写像に、{learned:,} / {total:,} = {learned / total:.1%}")

# %% [markdown]
# > **論文**(4.2 節、7.1 節): 対象は注意の行列に限り、多くの実験では $W_q$ と $W_v$ だけに付けた。学習する数を同じにするなら、一種類の行列に大きな $r$ を使うより、多くの種類に小さな $r$ を配るほうが良い(表 5)。
#
# 倍率 $\alpha / r$ は、$r$ を変えても、差分の大きさが変わりすぎないようにするためのものです。$r = 8$、$\alpha = 16$ なら 2 倍。Adam で学習するときは、$\alpha$ を変えるのは学習率を変えるのとほぼ同じなので、論文では、はじめに試した $r$ の値に決めて、調整していません(4.1 節)。
#
# ### 予想
#
# Adam は、学習する重み 1 個につき、勾配の平均と、勾配の 2 乗の平均の **二つの数** を覚えておきます。LoRA にすると、Adam が覚える量は、全部の学習の何分の 1 になるでしょう。
#
# - ア: 2 分の 1 くらい
# - イ: 25 分の 1 くらい
# - ウ: 1,000 分の 1 くらい

# %%
guess_memory = predict("")

# %% [markdown]
# ### 実験

# %%
def adam_bytes(model):
    """Adam で一歩だけ動いたときに、オプティマイザーが覚えている量 [バイト]。"""
    learned = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(learned)
    for p in learned:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    return optimizer_bytes(optimizer)


# %%
models = {"全部": gpt.model, "LoRA": lora_gpt}
memory = {name: adam_bytes(copy.deepcopy(model)) for name, model in models.items()}
same([2 * 4 * total, 2 * 4 * learned], list(memory.values()), "2 個 × 4 バイト × 学習する重み")
print(memory, f"{memory['全部'] / memory['LoRA']:.1f} 倍")
reveal(guess_memory, "イ")

# %% [markdown]
# #### なぜ?
#
# <details><summary>説明を開く</summary>
#
# 覚え書きの数は、学習する重みの数に比例します。だから比は、そのまま $3{,}971{,}744 / 161{,}280 \approx 24.6$ です。
#
# ただし、**メモリー全体が 25 分の 1 になるわけではありません。** 元の重みも、計算の途中の値も要るからです。float32 で数えると、全部の学習では 1 個につき 重み 4 + 勾配 4 + 覚え書き 8 = 16 バイトで 63.5 MB。LoRA では、元の重み 15.9 MB と $161{,}280 \times 16 = 2.6$ MB で、18.5 MB です(途中の値を除く)。
# GPT-3 で 1.2 TB が 350 GB にしかならなかったのも、重みそのものが残るからです(4.2 節)。大きく減るのは、配る差分のほうです。$r = 4$ で $W_q$ と $W_v$ に付けた差分は 35 MB で、350 GB のおよそ 1 万分の 1 でした。
# </details>
#
# ## 4. 学習する
#
# ### 実験: この場で 25 歩
#
# 同じ 25 歩を、LoRA と、全部の重みとで学習します。学習率は 0 から上げてから下げます(LoRA は 2e-3、全部は 1e-3 が頂点)。

# %%
held = parts["test_templates"]
start_loss = loss(gpt.model, held)
full = copy.deepcopy(gpt.model)
curves = {
    "LoRA": sft(lora_gpt, tokenizer, train, steps=STEPS, rate=2e-3, seed=SEED).losses,
    "全部の重み": sft(full, tokenizer, train, steps=STEPS, rate=1e-3, seed=SEED).losses,
}
ends = {"LoRA": loss(lora_gpt, held), "全部の重み": loss(full, held)}

# %% tags=["nbval-ignore-output"]
ax = plotting.axes("答えの損失は、はじめの数十歩で大きく下がる", "歩", "答えの損失 [nat/トークン]")
for name, curve in curves.items():
    ax.plot(range(1, STEPS + 1), curve, label=f"{name}(学習)")
ax.axhline(start_loss, color=plotting.GREY, ls=":", label="学習前(新しい言い回し)")
ax.set(ylim=(0, None))
ax.legend()
plt.show()
print(f"新しい言い回しの損失: {start_loss:.2f} →", {k: round(v, 2) for k, v in ends.items()})

# %%
fall = min(start_loss - value for value in ends.values())
print("どちらも、新しい言い回しの損失が 1 より大きく下がった:", fall > 1)

# %% [markdown]
# 25 歩(例にして 800 個)で、損失は大きく下がりました。では、答えられるようになったのでしょうか。4,000 歩学習した差分 `instruct_lora.safetensors` を配ってあります(`python -m chapter04.instruct` で作り直せます)。三つを並べます。

# %%
tuned = instruct.load()
_, facts = weights.read(instruct.WEIGHTS, instruct.NAME, instruct.COMMAND)
print(f"差分は {facts['bytes']:,} バイト、{facts['steps']:,} 歩")

# %% tags=["parameters"]
QUESTIONS = [
    "「私は猫が好きです」とそのまま言ってください。",
    "「カ・メ・ラ」には何文字ありますか。",
    "「犬、猫、犬」の中で、ほかと違う言葉はどれですか。",
]

# %% tags=["nbval-ignore-output"]
models = {"学習前": gpt.model, "25 歩": lora_gpt, "配ってある差分": tuned.model}
replies = {name: answer(model, tokenizer, QUESTIONS) for name, model in models.items()}
for i, question in enumerate(QUESTIONS):
    print(question, *(f"  {name}: {reply[i]}" for name, reply in replies.items()), sep="\n")

# %% [markdown]
# 25 歩では、短く答えて止まる **形** を覚え、中身はまだでたらめです。中身が伴うには、ずっと長くかかります。
#
# **自分の指示** も試してください。上の `QUESTIONS` を書き換えて、実行し直すだけです。7 課題に似た頼み方なら答え、離れると、でたらめを言いはじめます。
#
# ### 予想
#
# 配ってある差分を、**学習に一度も現れない言い回し** で試験します。7 課題のうち、9 割以上できるのはどれでしょう。
#
# - ア: 7 課題すべて
# - イ: 答えが指示の中から決まる課題(数える、選ぶ、写すなど)はできるが、続きを書く・訳すはできない
# - ウ: 新しい言い回しなので、どれもできない

# %%
guess_tasks = predict("")

# %% [markdown]
# ### 実験
#
# 写す・数える・選ぶの 180 問は、この場で解かせます。残りは、差分と一緒に配ってある成績(`manifest.toml`)から読みます。

# %%
decided = [e for e in held if e.task in COPIED_OR_COUNTED]
found = exact_match(tuned.model, tokenizer, decided)
scores = {task: right / count for task, (right, count) in found.items()}
metrics = facts["metrics"]
gap = max(abs(scores[task] - metrics["test_templates"][task]) for task in scores)
print("この場の成績と、配ってある成績の差は 60 問中 1 問以下:", gap < 1.5 / 60)

# %%
labels = dict(zip(TASKS, "数える 逆から 数字 選ぶ 写す 続き 訳す".split(), strict=True))
titles = dict(zip(metrics, ("新しい言い回し", "新しい内容", "両方とも新しい"), strict=True))

# %%
ax = plotting.axes("知らない言い回しと、知らない内容", "課題", "完全一致の割合", (8.4, 3.6))
for k, (part, title) in enumerate(titles.items()):
    ax.bar(np.arange(7) + 0.27 * (k - 1), [metrics[part][t] for t in labels], 0.25, label=title)
ax.set_xticks(range(7), list(labels.values()))
ax.axhline(0.9, color=plotting.GREY, ls=":")
ax.legend(loc="lower left")
plt.show()
for part, title in titles.items():
    print(title, {labels[t]: round(metrics[part][t], 2) for t in labels})

# %%
print("写す・数える・選ぶは、新しい言い回しで 9 割以上:", min(scores.values()) >= 0.9)
open_ended = [metrics["test_templates"][t] for t in ("complete", "translate")]
print("続きを書く・訳すは、どちらも 5 割に届かない:", max(open_ended) < 0.5)
reveal(guess_tasks, "イ")

# %% [markdown]
# #### なぜ?
#
# <details><summary>説明を開く</summary>
#
# 数える・選ぶ・写すの答えは、指示の中に材料がそろっています。要るのは「どの材料を、どう取り出すか」という手順だけで、事前学習で育った注意(前に出た並びを写す誘導ヘッドなど、4.3.1a)を、指示に合わせて呼び出せば済みます。言い回しが変わっても、手がかりの言葉(「何文字」「ほかと違う」)は同じです。
#
# 訳すには英語と日本語の対応という **知識** が要ります。1,200 組の例から学べる量ではありませんし、事前学習で英文は読んでいません。続きを書く課題は、正しい続きがいくつもあるのに、採点は一字一句の一致を求めます。
# **SFT は、持っている力の使い方を教えるのは得意ですが、ない力を授けるのは苦手** です。
# </details>
#
# > **論文**(3.5 節): SFT は 16 周、学習率は余弦で下げ、残差のドロップアウトは 0.2。検証の損失は 1 周で過学習になるが、それでも周を重ねると、報酬モデルの点も人の好みも上がった。
#
# 「損失が下がること」と「良い答えを書くこと」は、ここでも別なのです。良さをどう測るかは、次の 4.3.2b の主題になります。
#
# ## 5. 足しこむ、付け替える
#
# 学習が済んだら、$W_0 + \Delta W$ を作って、差分を足しこめます。行列の形は元と同じなので、**使うときの計算は 1 回も増えません**。足しこんでも、引いて戻しても、logits が変わらないことを確かめます(倍精度で比べます)。

# %%
merged = copy.deepcopy(tuned.model).double()
with torch.no_grad():
    expected = merged(sample)
    merge_lora(merged)
    same(expected, merged(sample), "足しこむ前と後の logits", 1e-5)
    unmerge_lora(merged)
    same(expected, merged(sample), "引いて戻した後の logits", 1e-5)

# %% [markdown]
# 足しこまずに持っておけば、一つの元のモデルに、いくつもの差分を **付け替えて** 使えます。この場の 25 歩の差分を、配ってある差分と取り替えてみます。

# %%
adapters = {"25 歩": lora_state_dict(lora_gpt), "配ってある差分": lora_state_dict(tuned.model)}
host = copy.deepcopy(lora_gpt)
load_lora(host, adapters["配ってある差分"])
with torch.no_grad():
    same(tuned.model(sample), host.eval()(sample), "差分を付け替えた GPT の logits", 1e-5)
    load_lora(host, adapters["25 歩"])
    same(lora_gpt.eval()(sample), host(sample), "元の差分に戻した logits", 1e-5)

# %% [markdown]
# ## 6. 差分のランクは、本当に低いのか
#
# ### 直感
#
# LoRA は、差分 $\Delta W$ のランクが低いと **決めつけて** います。決めつけずに全部の重みを学習したら、差分はどんな行列になるでしょう。特異値分解(SVD)で調べられます。
#
# ### 数式
#
# どんな行列も $\Delta W = \sum_k \sigma_k u_k v_k^\top$ と、ランク 1 の行列の和に分けられます($\sigma_1 \ge \sigma_2 \ge \cdots \ge 0$)。大きい順に $r$ 個だけ残したものが、ランク $r$ での最良の近似で(Eckart-Young)、
#
# $$
# \|\Delta W\|_F^2 = \sum_k \sigma_k^2, \qquad \|\Delta W - \Delta W_r\|_F^2 = \sum_{k > r} \sigma_k^2
# $$
#
# 手で計算します。$\Delta W = \begin{pmatrix} 3 & 0 \\ 4 & 5 \end{pmatrix}$ なら $\Delta W^\top \Delta W = \begin{pmatrix} 25 & 20 \\ 20 & 25 \end{pmatrix}$ で、固有値は 45 と 5。つまり $\sigma_1^2 = 45$、$\sigma_2^2 = 5$ で、和は $9 + 16 + 25 = 50$ と合います。ランク 1 の近似は $\begin{pmatrix} 1.5 & 1.5 \\ 4.5 & 4.5 \end{pmatrix}$ で、二乗和の **90 %** を残します。
#
# ### 実装(素直に)
#
# いちばん大きい特異値は、$v \leftarrow \Delta W^\top \Delta W v$ をくり返せば見つかります(べき乗法)。見つけた成分を引けば、次が見つかります。

# %%
def plain_spectrum(matrix, steps=500):
    matrix, found = np.array(matrix, dtype=float), []
    for _ in range(min(matrix.shape)):
        v = np.ones(matrix.shape[1]) + 0.1 * np.arange(matrix.shape[1])
        for _ in range(steps):
            v = matrix.T @ (matrix @ v)
            v /= np.sqrt((v**2).sum())
        found.append(float(np.sqrt(((matrix @ v) ** 2).sum())))
        matrix = matrix - np.outer(matrix @ v, v)
    return found


# %% [markdown]
# ### 確認

# %%
hand = torch.tensor([[3.0, 0.0], [4.0, 5.0]])
same([45.0, 5.0], spectrum(hand).square(), "手計算の、特異値の 2 乗", 1e-9)
generator = torch.Generator().manual_seed(0)
small = torch.randn(6, 4, generator=generator)
same(plain_spectrum(small), spectrum(small), "べき乗法と SVD の特異値", 1e-6)

# %% [markdown]
# ### 予想
#
# 全部の重みを 25 歩学習した差分のうち、$W_q$ と $W_v$(224 × 224)を調べます。上位 **8 個** の特異値は、二乗和の何割を占めるでしょう。比べるのは、同じ大きさの乱数の行列です。
#
# - ア: 乱数の行列と同じくらい(1 割あまり)
# - イ: 半分以上
# - ウ: ほぼ全部(99 % 以上)

# %%
guess_rank = predict("")


# %% [markdown]
# ### 実験

# %%
def shares(delta):
    """上位 k 個の特異値が二乗和に占める割合(k = 1, 2, …)。"""
    squares = spectrum(delta).square()
    return (squares.cumsum(0) / squares.sum()).numpy()


# %%
updates = weight_updates(gpt.model.state_dict(), full.state_dict())
groups = {
    end: np.mean([shares(d) for name, d in updates.items() if f"{end}.weight" in name], axis=0)
    for end in ("query", "value")
}
noise = shares(torch.randn(224, 224, generator=generator))
print(f"乱数の行列では、上位 8 個で {noise[7]:.2f}")

# %% tags=["nbval-ignore-output"]
ax = plotting.axes("差分は、少しの方向に集まっている", "残した特異値の数 k", "二乗和に占める割合")
for curve, label in zip(groups.values(), ("$W_q$ の差分", "$W_v$ の差分"), strict=True):
    ax.plot(range(1, 225), curve, label=label)
ax.plot(range(1, 225), noise, color=plotting.GREY, ls=":", label="乱数の行列")
ax.axvline(8, color=plotting.BLACK, lw=0.8)
ax.set(xscale="log", ylim=(0, 1.02))
ax.legend()
plt.show()
print({end: round(float(curve[7]), 3) for end, curve in groups.items()})

# %%
top = mean(float(curve[7]) for curve in groups.values())
print("上位 8 個が占める割合は、0.4 から 0.98 の間:", 0.4 < top < 0.98)
reveal(guess_rank, "イ")

# %% [markdown]
# 大きさが集まっているだけでなく、**役に立つ** のも上位の方向でしょうか。層の中の線形写像の差分だけをランク $r$ に切り詰め、ほかの重み(埋め込みや層正規化)は学習した後のものにして、写す・数える・選ぶの試験の損失を測ります。

# %%
states = [m.state_dict() for m in (gpt.model, full)]
ranks = (0, 1, 2, 4, 8, 32, 224)
low = [loss(with_weights(truncated(*states, r)), held, COPIED_OR_COUNTED) for r in ranks]
drop = loss(gpt.model, held, COPIED_OR_COUNTED) - low[-1]
kept = [1 - (value - low[-1]) / drop for value in low]

# %% tags=["nbval-ignore-output"]
print({r: round(share, 3) for r, share in zip(ranks, kept, strict=True)})

# %%
print("ランク 8 で、損失の下がり幅の 9 割以上が残る:", kept[4] >= 0.9)

# %% [markdown]
# #### なぜ?
#
# <details><summary>説明を開く</summary>
#
# 一つの例が重みに残す勾配は、(出力の勾配)×(入力)の和です。「答える形」を学ぶ間、どの例も似た方向を押すので、勾配は少しの方向に重なります。残りの多くの方向には、例ごとに違う小さな揺れが散らばり、損失にはほとんど響きません。
#
# 上の表の $r = 0$ にも目を向けてください。線形写像の差分をすべて捨てても、下がり幅のいくらかは残ります。全部の学習では、埋め込みなどの重みも動くからです。LoRA は、それも凍らせたまま学習しています。
# </details>
#
# > **論文**(7.2 節、表 6): $W_q$ と $W_v$ の両方に付ければ、$r = 1$ でも $r = 64$ に並ぶ(WikiSQL で 73.4 と 73.5)。$r = 8$ と $r = 64$ で別々に学習した $A$ は、いちばん上の特異方向をよく共有し、ほかの方向はあまり共有しない。後者は、学習でたまった雑音かもしれない。
#
# ## 7. 重みを足し引きする(発展)
#
# ### 7.1 モデルのスープ
#
# #### 直感
#
# 学習率や順を変えて何度も学習し、いちばん良い一つを選び、残りを捨てる。もったいない話です。**重みを平均** したらどうでしょう。推論の計算は、一つ分のままです。
#
# #### 数式
#
# $\theta = \frac1k \sum_i \theta_i$(一様なスープ)。けれども、平均がいつも良いとは限りません。
#
# - 一つの谷 $(\theta - 1.8)^2$ の中の $\theta = 1$(損失 0.64)と $3$(1.44)なら、平均 $2$ は 0.04。**どちらよりも良い**。
# - 二つの谷 $(\theta^2 - 1)^2$ の底 $\theta = 1$ と $-1$(どちらも 0)なら、平均 $0$ は 1。**最悪** です。
#
# 貪欲なスープは、検証の成績が良い順に一つずつ試し、平均に加えて悪くならないものだけを残します。
#
# #### 実装(素直に)

# %%
def average(points):
    return [sum(values) / len(points) for values in zip(*points, strict=True)]


def plain_greedy(points, score):
    def quality(members):
        return score(average([points[i] for i in members]))

    order = sorted(range(len(points)), key=lambda i: -score(points[i]))
    chosen = order[:1]
    for i in order[1:]:
        if quality([*chosen, i]) >= quality(chosen):
            chosen = [*chosen, i]
    return average([points[i] for i in chosen]), chosen


# %% [markdown]
# #### 確認
#
# 的 $(1, 1)$ に近いほど良いとして、四つの点でスープを作ります。

# %%
def closeness(point):
    return -((point[0] - 1) ** 2) - (point[1] - 1) ** 2


points = [[3.0, 1.0], [0.0, 0.0], [0.5, 2.0], [-2.0, 3.0]]
as_states = [{"w": torch.tensor(p).double()} for p in points]
soup, chosen = greedy_soup(as_states, lambda s: closeness(s["w"].tolist()))
plain, plain_chosen = plain_greedy(points, closeness)
same([plain, plain_chosen], [soup["w"], chosen], "四つの点の貪欲なスープ", 1e-12)
print("加えた順:", chosen, " 平均:", [round(v, 3) for v in plain])

# %% [markdown]
# #### 予想
#
# 二通りの平均を作ります。
#
# - あ: 全部の重みを学習したモデルと、LoRA で学習したモデル(差分を足しこんだもの)の平均。どちらも、同じ GPT から始めました。
# - い: 全部の重みを学習したモデルと、**その FFN のニューロンの番号を入れ替えた写し** の平均。番号を替えても、計算する関数は同じです。
#
# 平均したモデルの損失は、どうなるでしょう。
#
# - ア: どちらも、元の二つと同じくらい
# - イ: あ は同じくらい、い は壊れる
# - ウ: あ は壊れ、い は同じくらい

# %%
guess_soup = predict("")


# %% [markdown]
# #### 実験

# %%
def renumbered(model, seed=0):
    """FFN の中間のニューロンの番号を、層ごとに入れ替えた写し。"""
    model, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in model.layers:
            inner, outer = layer.ffn.inner, layer.ffn.outer
            order = torch.randperm(inner.out_features, generator=generator)
            inner.weight.copy_(inner.weight[order])
            inner.bias.copy_(inner.bias[order])
            outer.weight.copy_(outer.weight[:, order])
    return model


# %%
other = copy.deepcopy(lora_gpt)
merge_lora(other)
remove_lora(other)
twin = renumbered(full.eval())
with torch.no_grad():
    same(full(sample), twin(sample), "番号を入れ替える前と後の logits", 1e-4)

# %%
def path(first, second, shares=(0, 0.25, 0.5, 0.75, 1)):
    """二つのモデルを結ぶ直線の上の、試験の損失。"""
    a, b = first.state_dict(), second.state_dict()
    mixed = [{k: (1 - s) * a[k] + s * b[k] for k in a} for s in shares]
    return [loss(with_weights(state), held) for state in mixed]


# %%
lines = {"全部 → LoRA": path(full, other), "全部 → 番号を替えた写し": path(full, twin)}

# %% tags=["nbval-ignore-output"]
ax = plotting.axes("同じ谷の中なら、間も低い", "混ぜる割合", "試験の損失 [nat/トークン]")
for name, line in lines.items():
    ax.plot((0, 0.25, 0.5, 0.75, 1), line, "o-", label=name)
ax.set(ylim=(0, None))
ax.legend()
plt.show()
print({name: [round(value, 2) for value in line] for name, line in lines.items()})

# %%
good, bad = lines.values()
print("全部と LoRA の平均は、悪いほうの元より良い:", good[2] < max(good[0], good[-1]))
print("番号を替えた写しとの平均は、元より 0.5 より大きく悪い:", bad[2] - bad[0] > 0.5)
reveal(guess_soup, "イ")

# %% [markdown]
# #### なぜ?
#
# <details><summary>説明を開く</summary>
#
# 損失の景色には、谷がたくさんあります。ニューロンの番号を入れ替えるだけでも、同じ深さの谷が、数えきれないほどできます。番号の違う谷どうしを平均すると、役目の違うニューロンが混ざって、どちらの役目も果たせません。
#
# 同じ事前学習から始めて、少しだけ動いたモデルどうしなら、番号の付き方が揃っていて、同じ谷の中にいます。Wortsman らの論文の概要も、大きな事前学習モデルをファインチューニングしたものは、誤差の小さな一つの盆地にあるように見える、と述べています。
# </details>
#
# ### 7.2 課題の算術
#
# #### 直感と数式
#
# 差分を **ベクトル** と見て、足し引きします。
#
# $$
# \tau = \theta_{\mathrm{ft}} - \theta_{\mathrm{pre}}, \qquad \theta_{\mathrm{new}} = \theta_{\mathrm{pre}} + \lambda \sum_i \tau_i
# $$
#
# $\theta_{\mathrm{pre}} = (1, 2)$ から、課題 A で $(3, 2)$、課題 B で $(1, 5)$ へ動いたなら、$\tau_A = (2, 0)$、$\tau_B = (0, 3)$。$\lambda = 1$ の和は $(3, 5)$ で、互いに邪魔をしません。向きの重なりは、コサイン類似度で測れます(ここでは 0)。

# %%
pre, a, b = ({"w": torch.tensor(v)} for v in ([1.0, 2.0], [3.0, 2.0], [1.0, 5.0]))
hand = [task_vector(pre, a), task_vector(pre, b)]
same([3.0, 5.0], apply_task_vectors(pre, hand)["w"], "手で足した課題ベクトル")
print("コサイン類似度:", cosine(*hand))

# %% [markdown]
# #### 予想
#
# 「数える」だけを教えたモデルと、「訳す」だけを教えたモデルを作り、課題ベクトルを足します。和のモデルの、二つの課題の損失の平均は、片方だけを教えたモデルのよいほうと比べて、どうなるでしょう。
#
# - ア: 小さくなる(二つとも少しずつできる)
# - イ: 大きくなる(混ざって、どちらもできなくなる)

# %%
guess_sum = predict("", choices="アイ")

# %% [markdown]
# #### 実験
#
# 16 個ずつの例で、20 歩だけ学習します。

# %% tags=["parameters"]
PAIR = ("count", "translate")
SCALE = 0.7  # 課題ベクトルの和に掛ける λ

# %%
alone = {}
for task in PAIR:
    alone[task] = copy.deepcopy(gpt.model)
    chosen = [e for e in train if e.task == task]
    sft(alone[task], tokenizer, chosen, steps=20, rate=1e-3, batch_size=16, seed=SEED)
origin = gpt.model.state_dict()
vectors = [task_vector(origin, model.state_dict()) for model in alone.values()]
both = with_weights(apply_task_vectors(origin, vectors, SCALE))

# %%
candidates = {"学習前": gpt.model, "数えるだけ": alone["count"], "訳すだけ": alone["translate"]}
candidates["和"] = both
table = {name: [loss(m, held, (task,)) for task in PAIR] for name, m in candidates.items()}

# %% tags=["nbval-ignore-output"]
for name, values in table.items():
    print(f"{name}: 数える {values[0]:.2f}、訳す {values[1]:.2f}、平均 {mean(values):.2f}")
print(f"課題ベクトルのコサイン類似度 {cosine(*vectors):.2f}")

# %%
single = min(mean(table["数えるだけ"]), mean(table["訳すだけ"]))
print("和は、片方だけのよいほうより、平均の損失が小さい:", mean(table["和"]) < single)
reveal(guess_sum, "ア")

# %% [markdown]
# #### なぜ?
#
# <details><summary>説明を開く</summary>
#
# 損失が動いた範囲でほぼ曲がらないなら、和は二つの下がり幅をそのまま足したものになります。二つの課題ベクトルの向きが重ならないほど、互いの邪魔は小さくなります。
#
# Ilharco らの画像の課題では、課題ベクトルどうしのコサイン類似度は、多くの組で 0.01 から 0.06 でした(6 節、図 5)。私たちの二つは、それより向きが揃っています。どちらも「答えて、止まる」という同じ **形** を学んだからでしょう。揃った成分は、足すと行き過ぎます。$\lambda$ を 1 より小さくしたのは、そのためです。
# </details>
#
# > **論文**(Ilharco ら、4.1 節): 画像の課題を二つずつ足すと、専門のモデル二つを使うときの、平均で 98.9 % の正答率になった。

# %% [markdown]
# ## 論文の主張との比較
#
# > **主張**(Ouyang ら、概要と 3.5 節): 指示と答えの組で学習すると、指示に従うようになる。
#
# 台帳では、全部の重みを 1,000 歩学習したモデルで測りました。ここでは、配ってある差分で測り直します。

# %%
for task in COPIED_OR_COUNTED:
    claims.check(f"4.3.2a-sft-{task}", scores[task])

# %% [markdown]
# 残りの主張は、1,000 歩か 120 歩の学習をいくつも要するので、台帳の値(三つの種)を並べます。

# %%
for name in ("lora", "rank-share", "rank-loss", "soup", "task-sum"):
    claim = claims.find(f"4.3.2a-{name}")
    values = [round(value, 3) for value in claim["values"]]
    print(f"{'○' if claim['holds'] else '×'} {claim['statement']}({claim['bound']}): {values}")


# %% [markdown]
# ## 原論文との違い
#
# | | 論文 | このノートブック |
# |---|---|---|
# | モデル | GPT-3(13 億、60 億、1,750 億個)など | 5 層、$d = 224$、397 万個の日本語の GPT |
# | 指示データ(Ouyang ら) | 人が書いた、およそ 1 万 3 千の指示と答え | 言い回しから作った 8,400 組、7 課題 |
# | SFT | 16 周、余弦、残差のドロップアウト 0.2 | 25 歩。配ってある差分は 4,000 歩(およそ 15 周)、直線で下げる、0.1 |
# | 良さの測り方 | 人の好み、報酬モデルの点 | 完全一致 |
# | LoRA の対象(Hu ら) | 注意の行列だけ。多くは $W_q$ と $W_v$ | 層の中の線形写像すべて($W_q, W_k, W_v, W_o$ と FFN) |
# | $r$ と $\alpha$ | $r$ は 1 から 64、$\alpha$ は、はじめに試した $r$ の値 | $r = 8$、$\alpha = 16$ |
# | ランクの調べ方(7.2 節) | $r$ を変えて学習し直す。部分空間の重なり | 全部の重みの差分を SVD で切り詰める |
# | スープの材料(Wortsman ら) | 学習率などを探索した、たくさんの CLIP など | 全部と LoRA の二つ(台帳は、順と学習率を変えた三つ) |
# | 課題の算術(Ilharco ら) | 画像の分類 8 課題など | 数えると訳す |

# %% [markdown]
# ## 演習
#
# ### 演習 1(手で計算、★、15 分)
#
# 1. GPT-3 は $d = 12{,}288$、96 層です。$W_q$ と $W_v$ に $r = 1$ の LoRA を付けると、学習する重みはいくつですか。$r = 8$ ではどうでしょう。論文の表 4 にある数と合いますか。
# 2. 1. の $r = 8$ の差分を 16 ビットで保存すると、何 MB ですか。Adam の覚え書き(float32)は何 MB ですか。
# 3. 答えが 2 トークンで、モデルが付けた確率が 0.25 と 1 のとき、答えだけの損失はいくつですか。
#
# <details><summary>ヒント</summary>1 は、行列が $96 \times 2$ 個、一つにつき $r (d + d)$ 個です。3 は $\ln 0.25 = -1.386$。</details>
#
# ### 演習 2(論文で確かめる、★、20 分)
#
# (1) LoRA の 4.2 節で、差分を足しこんだときの不便は何だと述べていますか。(2) 表 5 で、$W_q$ だけに $r = 8$ を使ったときと、$W_q$ と $W_v$ に $r = 4$ を使ったときの WikiSQL はいくつですか。(3) InstructGPT の 3.5 節で、SFT のどの時点のモデルを使うかは、何で選びましたか。
#
# <details><summary>ヒント</summary>(1) は「limitations」を含む段落、(3) は「Supervised fine-tuning (SFT)」の段落です。</details>
#
# ### 演習 3(コード、★★、20 分)
#
# 対話の id `(T,)` と、`user`・`assistant`・`end` の id から、**答えの所だけを残した目標** `(T - 1,)` を返してください。位置 $t$ の目標は `ids[t + 1]` で、数えない所は `ignored` にします。往復は何度あってもかまいません。
#
# <details><summary>ヒント</summary>位置 $t$ までで、いちばん近い印が `assistant` なら、次のトークンは答え(か、その終わり)です。</details>

# %%
def my_targets(ids, user, assistant, end, ignored):
    return None  # ここを書き換えてください


exercises.check_chat_targets(my_targets)


# %% [markdown]
# ### 演習 4(コード、★★★、25 分)
#
# $h = W_0 x + \frac{\alpha}{r} B A x$ の勾配を、NumPy で求めてください。受け取るのは $x$ `(N, d_in)`、$g = \partial L / \partial h$ `(N, d_out)`、$A$ `(r, d_in)`、$B$ `(d_out, r)`、$\alpha$、返すのは $(\partial L / \partial A,\ \partial L / \partial B)$ です。$B = 0$ のとき、片方が 0 になります。どちらでしょう。
#
# <details><summary>ヒント</summary>$z = Ax$ とおくと、$h$ は $z$ についての線形写像です。4.3.1b で見たように、線形写像の勾配は(出力の勾配)×(入力)の、例についての和です。</details>

# %%
def my_gradients(x, g, A, B, alpha):
    return None  # ここを書き換えてください


exercises.check_lora_gradients(my_gradients)

# %% [markdown]
# ## まとめ
#
# - SFT は、指示と答えの組で、答えの所だけの交差エントロピーを小さくする。事前学習との違いは、印だけ。
# - 答えが指示から決まる課題は、知らない言い回しでもできるようになる。持っていない知識は、授けられない。
# - LoRA は、差分を低いランクの積 $\frac{\alpha}{r} BA$ に限る。学習する重みは 4 %、付けた直後も、足しこんだ後も、出力は変わらない。
# - 全部の重みを学習しても、差分は少しの方向に集まり、役に立つのもそこである。
# - 同じ事前学習から始めたモデルなら、重みは平均でき、課題ベクトルは足せる(発展)。
#
# ## 次の論文が解く不満
#
# まねは、書いてもらった答えより良くはなれません。しかも、良い答えを一から書くのは大変です。けれども、**二つの答えを見比べて、良いほうを選ぶ** のなら、ずっと楽です。4.3.2b では、その比べ方だけから報酬モデルを作り、モデルを良くします。そして、良くしすぎると何が起きるかを見ます。
