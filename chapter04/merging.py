"""重みの足し引きでモデルを作る: モデルのスープ (Wortsman+ 2022) と課題の算術 (Ilharco+ 2022)。

どれも、同じ事前学習の重み θ_pre から始めてファインチューニングした重み θ_1, …, θ_k を材料にする。

    一様なスープ   θ = (1 / k) Σ θ_i
    貪欲なスープ   検証の成績を下げないものだけを、成績のよい順に平均に加える
    課題ベクトル   τ = θ_ft - θ_pre、θ_new = θ_pre + λ Σ τ_i(λ < 0 なら、その課題を忘れさせる)

重みは state_dict(名前とテンソルの対応)で渡す。新しいものを返し、渡されたものは書き換えない。
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from shared.checks import require_number, shown
from shared.weights import require_state

State = Mapping[str, Tensor]


def uniform_soup(states: Sequence[State]) -> dict[str, Tensor]:
    """重みの平均 θ = (1 / k) Σ θ_i。推論の計算は、モデル 1 個分のまま増えない。

    足しこみは倍精度で行い、元の型に戻す。整数のテンソル(数えた回数など)は平均できないので、どの
    モデルでも等しいことを確かめて、そのまま写す。

    Raises:
        TypeError: 重みが名前とテンソルの対応でないとき。
        ValueError: 一つも渡さない、キー・形・型が合わない(合わないものをすべて挙げる)とき。
    """
    first = _require_alike(states, "states")
    return {
        name: (
            torch.stack([state[name].double() for state in states]).mean(0).to(value.dtype)
            if value.is_floating_point()
            else value.clone()
        )
        for name, value in first.items()
    }


def greedy_soup(
    states: Sequence[State], score: Callable[[dict[str, Tensor]], float]
) -> tuple[dict[str, Tensor], list[int]]:
    """検証の成績を下げないものだけを加えていくスープ (Wortsman+ 2022, Recipe 1)。

    成績のよい順に一つずつ試し、加えた平均の成績が、それまでの平均の成績以上なら加える。初めの一つは
    いちばん成績のよいモデルなので、検証の成績がそれより悪くなることはない。

    Args:
        states: 材料の重み。
        score: 重みから検証の成績を測る関数(大きいほどよい)。2k - 1 回呼ぶ。

    Returns:
        スープの重みと、加えた材料の番号(加えた順)。

    Raises:
        TypeError, ValueError: `uniform_soup` と同じ。成績が有限の数でないとき。
    """
    _require_alike(states, "states")
    scores = [
        require_number(score({**state}), f"score(states[{i}])") for i, state in enumerate(states)
    ]
    order = sorted(range(len(states)), key=lambda i: -scores[i])  # 同じ成績なら、番号の順
    chosen, best = [order[0]], scores[order[0]]
    for candidate in order[1:]:
        tried = uniform_soup([states[i] for i in (*chosen, candidate)])
        value = require_number(score(tried), "score(スープ)")
        if value >= best:
            chosen, best = [*chosen, candidate], value
    return uniform_soup([states[i] for i in chosen]), chosen


def task_vector(pretrained: State, finetuned: State) -> dict[str, Tensor]:
    """課題ベクトル τ = θ_ft - θ_pre (Ilharco+ 2022, 2 節)。

    Raises:
        TypeError, ValueError: 重みが名前とテンソルの対応でない、キー・形・型が合わないとき。
    """
    _require_alike([pretrained, finetuned], ("pretrained", "finetuned"))
    return {
        name: finetuned[name] - value
        for name, value in pretrained.items()
        if value.is_floating_point()
    }


def apply_task_vectors(
    pretrained: State, vectors: Sequence[State], scale: float = 1.0
) -> dict[str, Tensor]:
    """θ_new = θ_pre + λ Σ τ_i (Ilharco+ 2022, 2 節)。

    `scale` が正なら課題を足し(いくつも足せば、いくつもの課題ができるモデルを目指す)、負なら
    その課題を忘れさせる。

    Args:
        pretrained: 事前学習の重み θ_pre。
        vectors: 課題ベクトル τ_i。
        scale: λ。検証用のデータで選ぶ。

    Raises:
        TypeError, ValueError: 引数が誤っている、キー・形・型が合わないとき。
    """
    scale = require_number(scale, "scale")
    if not vectors:
        raise ValueError("vectors に課題ベクトルを一つ以上渡してください: 0 個")
    _require_alike([pretrained], ("pretrained",))
    floating = {name: value for name, value in pretrained.items() if value.is_floating_point()}
    names = ["pretrained", *(f"vectors[{i}]" for i in range(len(vectors)))]
    _require_alike([floating, *vectors], names)
    moved = {
        name: (value.double() + scale * sum(v[name].double() for v in vectors)).to(value.dtype)
        for name, value in floating.items()
    }
    return {name: moved.get(name, value).clone() for name, value in pretrained.items()}


def negate(vector: State) -> dict[str, Tensor]:
    """符号を変えた課題ベクトル -τ。足せば、その課題を忘れさせる方向になる。

    Raises:
        TypeError, ValueError: 名前とテンソルの対応でない、空のとき。
    """
    _require_alike([vector], ("vector",))
    return {name: -value for name, value in vector.items()}


def cosine(first: State, second: State) -> float:
    """二つの課題ベクトルのなす角の余弦。

    論文では、別々の画像の課題どうしは多くの組で 0.01 から 0.06 とほぼ直交しており、足しても互いに
    干渉しにくい理由と見ている (Ilharco+ 2022, 6 節・図 5)。

    Raises:
        TypeError, ValueError: キー・形・型が合わない、どちらかの長さが 0 のとき。
    """
    _require_alike([first, second], ("first", "second"))
    a, b = (torch.cat([s[name].double().flatten() for name in first]) for s in (first, second))
    lengths = a.norm() * b.norm()
    if lengths == 0:
        raise ValueError("first と second は、どちらも 0 でない課題ベクトルにしてください")
    return float(a @ b / lengths)


def _require_alike(states: Sequence[State], names: str | Sequence[str]) -> State:
    """どれもテンソルの対応で、キー・形・型が初めのものと合うことを確かめ、初めのものを返す。"""
    if isinstance(states, Mapping) or not isinstance(states, Sequence):
        raise TypeError(f"{names} には state_dict の並びを渡してください: {shown(type(states))}")
    if not states:
        raise ValueError(f"{names} に重みを一つ以上渡してください: 0 個")
    if isinstance(names, str):
        names = [f"{names}[{i}]" for i in range(len(states))]
    for name, state in zip(names, states, strict=True):
        require_state(state, name)
        if not state:
            raise ValueError(f"{name} にテンソルがありません")
    first = states[0]
    problems = []
    for label, state in zip(names[1:], states[1:], strict=True):
        for key in first:
            if key not in state:
                problems.append(f"{label} に {key} がありません")
            elif state[key].shape != first[key].shape:
                shapes = f"{tuple(first[key].shape)} と {tuple(state[key].shape)}"
                problems.append(f"{label} の {key} の形が違います({shapes})")
            elif state[key].dtype != first[key].dtype:
                kinds = f"{first[key].dtype} と {state[key].dtype}"
                problems.append(f"{label} の {key} の型が違います({kinds})")
            elif not first[key].is_floating_point() and not torch.equal(state[key], first[key]):
                problems.append(f"{label} の {key} は整数なのに、値が違います")
        problems += [f"{label} の {key} は余分です" for key in state if key not in first]
    if problems:
        raise ValueError(f"{names[0]} と合わない重みがあります。{'。'.join(problems)}")
    return first
