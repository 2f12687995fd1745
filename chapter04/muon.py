"""Muon と AdamW を、一つのオプティマイザーとして使う(事前学習のため)。

    層の中の行列 W (d_out, d_in) ── Muon:  W ← W - η (0.2 sqrt(max(d_out, d_in)) O + λ W)
    埋め込み、定数項、層正規化   ── AdamW

O は、勾配のモーメンタム(Nesterov 型)の特異値をすべて 1 に近づけた行列(Newton-Schulz 反復で求める)。
係数 0.2 sqrt(max(…)) を掛けると成分の大きさが AdamW の一歩と揃い、同じ学習率を使える
(Liu+ 2025)。
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from shared.checks import require_number, shown

MOMENTUM = 0.95  # Jordan+ 2024 の既定値


class MuonAdamW(torch.optim.Optimizer):
    """行列は torch.optim.Muon、ほかは AdamW で動かすオプティマイザー。

    AdamW の重みの減衰は、埋め込み(2 次元)だけに掛ける。

    Args:
        model: 学習するモデル。
        hidden: そのうち、Muon で動かす行列を持つ部分(GPT なら `model.layers`)。
        lr: 学習率 η(どの重みも同じ)。
        weight_decay: 重みの減衰の係数 λ。
        betas: AdamW の係数。

    Attributes:
        optimizers: 二つのオプティマイザー。

    Raises:
        TypeError, ValueError: 数が負のとき、`hidden` に行列がないとき。
    """

    def __init__(
        self,
        model: nn.Module,
        hidden: nn.Module,
        lr: float,
        weight_decay: float,
        betas: tuple[float, float],
    ) -> None:
        require_number(lr, "lr", 0)
        require_number(weight_decay, "weight_decay", 0)
        matrices = [p for p in hidden.parameters() if p.dim() == 2]
        if not matrices:
            raise ValueError(f"hidden に行列の重みがありません: {shown(type(hidden))}")
        chosen = {id(p) for p in matrices}
        others = [p for p in model.parameters() if id(p) not in chosen]
        groups = [
            {"params": [p for p in others if p.dim() >= 2], "weight_decay": weight_decay},
            {"params": [p for p in others if p.dim() < 2], "weight_decay": 0.0},
        ]
        self.optimizers: tuple[torch.optim.Optimizer, ...] = (
            torch.optim.Muon(matrices, lr, weight_decay, MOMENTUM, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(
                [group for group in groups if group["params"]],
                lr,
                betas,
                fused=matrices[0].device.type != "mps",
            ),
        )

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """二つの重みの組を、続けて並べたもの。"""
        return [group for one in self.optimizers for group in one.param_groups]

    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """重みを一歩動かす。"""
        for one in self.optimizers:
            one.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """勾配を消す。"""
        for one in self.optimizers:
            one.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """二つの状態を、重みの番号を続けて一つにしたもの(torch.optim と同じ形)。"""
        state: dict[int, Any] = {}
        groups: list[dict[str, Any]] = []
        start = 0
        for one in self.optimizers:
            part = one.state_dict()
            state |= {start + number: value for number, value in part["state"].items()}
            groups += _shifted(part["param_groups"], start)
            start += _count(part["param_groups"])
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """`state_dict` が返した状態に戻す。"""
        groups, start = [*state_dict["param_groups"]], 0
        for one in self.optimizers:
            mine, groups = groups[: len(one.param_groups)], groups[len(one.param_groups) :]
            numbers = range(start, start + _count(mine))
            state = {n - start: v for n, v in state_dict["state"].items() if n in numbers}
            one.load_state_dict({"state": state, "param_groups": _shifted(mine, -start)})
            start += len(numbers)


def _shifted(groups: Iterable[dict[str, Any]], by: int) -> list[dict[str, Any]]:
    return [{**group, "params": [number + by for number in group["params"]]} for group in groups]


def _count(groups: Iterable[dict[str, Any]]) -> int:
    return sum(len(group["params"]) for group in groups)
