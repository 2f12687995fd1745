"""LoRA: 学習済みの重みを凍らせ、低いランクの差分だけを学習する (Hu+ 2021)。

    h = W_0 x + ΔW x = W_0 x + (α / r) B A x        A (r, d_in)、B (d_out, r)

B は 0 から始めるので、付けた直後の出力は元のモデルと同じである。学習が済んだら、差分を W_0 に
足しこめば(`merge_lora`)、使うときの計算は増えない。
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.checks import require_int, require_number, shown
from shared.weights import require_state

ATTENTION = ("query", "value")
"""既定の対象: 注意機構の W_q と W_v。論文の多くの実験と同じ。"""


class LoRALinear(nn.Module):
    """線形写像に、ランク r の差分を足したもの (Hu+ 2021, 4.1 節)。

    A は正規乱数、B は 0 で始める。A の標準偏差は論文にないので、A x の大きさが x と同じくらいになる
    1 / sqrt(d_in) とした。

    Args:
        linear: 元の線形写像。重みと定数項は凍らせる。
        rank: 差分のランク r。
        alpha: 差分に掛ける α / r の α。

    Attributes:
        linear: 元の線形写像。`merged` が True なら、重みに差分を足しこんである。
        A, B: 学習する行列 (r, d_in) と (d_out, r)。

    Raises:
        TypeError: `linear` が nn.Linear でないとき。
        ValueError: `rank` が 1 以上 min(d_in, d_out) 以下でない、`alpha` が正の数でないとき。
    """

    def __init__(self, linear: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"linear には nn.Linear を渡してください: {shown(linear)}")
        most = min(linear.in_features, linear.out_features)
        if require_int(rank, "rank", minimum=1) > most:
            raise ValueError(f"rank は重みの小さいほうの辺 {most} 以下にしてください: {rank}")
        if require_number(alpha, "alpha") <= 0:
            raise ValueError(f"alpha は正の数にしてください: {alpha}")
        self.linear = linear.requires_grad_(False)
        self.rank, self.alpha, self.merged = int(rank), float(alpha), False
        weight = linear.weight
        self.A = nn.Parameter(weight.new_empty(rank, linear.in_features))
        self.B = nn.Parameter(weight.new_zeros(linear.out_features, rank))
        nn.init.normal_(self.A, std=linear.in_features**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., d_in) を (..., d_out) へ。"""
        h = self.linear(x)
        if self.merged:
            return h
        return h + F.linear(F.linear(x, self.A), self.B) * (self.alpha / self.rank)

    @torch.no_grad()
    def delta(self) -> Tensor:
        """差分 ΔW = (α / r) B A (d_out, d_in)。"""
        return self.B @ self.A * (self.alpha / self.rank)

    @torch.no_grad()
    def merge(self) -> None:
        """差分を元の重みに足しこむ(足しこんであれば何もしない)。"""
        if not self.merged:
            self.linear.weight += self.delta()
            self.merged = True

    @torch.no_grad()
    def unmerge(self) -> None:
        """足しこんだ差分を引き、元に戻す(丸めの誤差を除く)。"""
        if self.merged:
            self.linear.weight -= self.delta()
            self.merged = False


def add_lora(
    model: nn.Module, rank: int, alpha: float, targets: Iterable[str] = ATTENTION
) -> list[str]:
    """`model` の重みをすべて凍らせ、名前の末尾が `targets` の線形写像に LoRA を付ける。

    Args:
        model: 元のモデル(その場で書き換える)。
        rank, alpha: `LoRALinear` を見よ。
        targets: 線形写像の名前の末尾。shared の層では query・key・value・out・inner・outer がある。

    Returns:
        LoRA を付けた線形写像の名前。

    Raises:
        TypeError, ValueError: 引数が誤っている、`targets` の名前に当たる線形写像がない、もう LoRA
            が付いている、重みをほかの層と共有している線形写像を選んだとき。
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model には nn.Module を渡してください: {shown(model)}")
    if isinstance(targets, str):
        raise TypeError(f"targets には名前の並びを渡してください: {shown(targets)}")
    if names := [name for name, _ in _lora_layers(model)]:
        raise ValueError(f"model にはもう LoRA が付いています: {', '.join(names)}")
    wanted = [*targets]
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.split(".")[-1] in wanted
    }
    missing = [t for t in wanted if t not in {name.split(".")[-1] for name in found}]
    if missing or not found:
        raise ValueError(f"targets に当たる線形写像が model にありません: {shown(missing)}")
    uses = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    if shared := [name for name, module in found.items() if uses[id(module.weight)] > 1]:
        raise ValueError(
            "targets の線形写像は重みをほかの層と共有しているので、差分を足しこむとその層まで"
            f"変わってしまいます: {', '.join(shared)}"
        )
    layers = {name: LoRALinear(module, rank, alpha) for name, module in found.items()}
    model.requires_grad_(False)
    for name, layer in layers.items():
        layer.A.requires_grad_(True)
        layer.B.requires_grad_(True)
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, layer.train(found[name].training))
    return [*layers]


def merge_lora(model: nn.Module) -> None:
    """すべての LoRA の差分を元の重みに足しこむ。`unmerge_lora` で戻せる。

    Raises:
        ValueError: LoRA が付いていないとき。
    """
    for _, layer in _require_lora(model):
        layer.merge()


def unmerge_lora(model: nn.Module) -> None:
    """足しこんだ差分を引く。Raises は `merge_lora` と同じ。"""
    for _, layer in _require_lora(model):
        layer.unmerge()


def remove_lora(model: nn.Module) -> None:
    """LoRA を外し、元のモデルと同じ造りに戻す。足しこんであれば、差分は重みに残る。

    Raises:
        ValueError: LoRA が付いていないとき。
    """
    for name, layer in _require_lora(model):
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, layer.linear)
    model.requires_grad_(True)


def lora_parameters(model: nn.Module) -> list[nn.Parameter]:
    """学習する行列を、層の順に A, B, A, B, … と並べたもの。Raises は `merge_lora` と同じ。"""
    return [matrix for _, layer in _require_lora(model) for matrix in (layer.A, layer.B)]


def lora_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """学習した行列だけの写し。一つの元のモデルに、課題ごとの差分を付け替えるのに使う。

    Raises:
        ValueError: LoRA が付いていないとき。
    """
    return {
        f"{name}.{key}": matrix.detach().clone()
        for name, layer in _require_lora(model)
        for key, matrix in (("A", layer.A), ("B", layer.B))
    }


@torch.no_grad()
def load_lora(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """`lora_state_dict` の行列を写しとる。

    Raises:
        TypeError: `state` が名前とテンソルの対応でないとき。
        ValueError: LoRA が付いていない、差分を足しこんだままである、キーや形が合わない(合わないもの
            をすべて挙げる)とき。
    """
    require_state(state, "state")
    layers = dict(_require_lora(model))
    if merged := [name for name, layer in layers.items() if layer.merged]:
        raise ValueError(f"先に unmerge_lora で差分を引いてください: {', '.join(merged)}")
    matrices = {f"{n}.{key}": getattr(layer, key) for n, layer in layers.items() for key in "AB"}
    problems = [f"{name} が足りません" for name in matrices if name not in state]
    problems += [f"{name} は余分です" for name in state if name not in matrices]
    problems += [
        f"{name} の形は {tuple(matrix.shape)} にしてください: {tuple(state[name].shape)}"
        for name, matrix in matrices.items()
        if name in state and state[name].shape != matrix.shape
    ]
    if problems:
        raise ValueError(f"state が model の LoRA と合いません。{'。'.join(problems)}")
    for name, matrix in matrices.items():
        matrix.copy_(state[name])


# ---- 数える ---------------------------------------------------------------------------------


def n_lora_parameters(shapes: Iterable[tuple[int, int]], rank: int) -> int:
    """形 (d_out, d_in) の重みに LoRA を付けたときの、学習する重みの数 Σ r (d_in + d_out)。

    どれも d_model × d_model なら 2 × (行列の数) × d_model × r になる。

    Raises:
        TypeError, ValueError: `rank` か形が 1 以上の整数でないとき。
    """
    require_int(rank, "rank", minimum=1)
    return sum(
        rank * (require_int(rows, "shapes", minimum=1) + require_int(columns, "shapes", minimum=1))
        for rows, columns in shapes
    )


def optimizer_bytes(optimizer: torch.optim.Optimizer) -> int:
    """オプティマイザーが覚えている状態(Adam なら二つの移動平均)の大きさ [バイト]。

    重みごとの歩数は含めない。一度も step していなければ 0 になる。
    """
    return sum(
        value.numel() * value.element_size()
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor) and value.dim() > 0
    )


# ---- 差分のランク ----------------------------------------------------------------------------


def weight_updates(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], targets: Iterable[str] = ATTENTION
) -> dict[str, Tensor]:
    """全部の重みを学習したときの差分 W - W_0 のうち、末尾が `targets` の線形写像のもの。

    Raises:
        TypeError: 名前とテンソルの対応でないとき。
        ValueError: 当たる重みがない、`after` に足りない、形が違うとき。
    """
    require_state(before, "before")
    require_state(after, "after")
    endings = tuple(f"{target}.weight" for target in targets)
    names = [name for name in before if ".".join(name.split(".")[-2:]) in endings]
    if not names:
        raise ValueError(f"before に、targets に当たる重みがありません: {shown(endings)}")
    wrong = [n for n in names if n not in after or after[n].shape != before[n].shape]
    if wrong:
        raise ValueError(f"after に、形の合う重みがありません: {', '.join(wrong)}")
    return {name: after[name] - before[name] for name in names}


def spectrum(delta: Tensor) -> Tensor:
    """差分 (d_out, d_in) の特異値を、大きい順に並べたもの (min(d_out, d_in),)。

    Raises:
        TypeError: テンソルでないとき。
        ValueError: 行列でない、NaN か無限大があるとき。
    """
    if not isinstance(delta, Tensor):
        raise TypeError(f"delta にはテンソルを渡してください: {shown(delta)}")
    if delta.dim() != 2 or 0 in delta.shape:
        raise ValueError(f"delta は行列 (d_out, d_in) にしてください: {tuple(delta.shape)}")
    if not delta.isfinite().all():
        raise ValueError("delta に NaN か無限大があります")
    return torch.linalg.svdvals(delta.detach().double())


def rank_of_update(delta: Tensor, tolerance: float = 0.1) -> int:
    """差分を相対誤差 `tolerance` 以内で表せる、最小のランク k。

    ||ΔW - ΔW_k||_F <= tolerance ||ΔW||_F。ランク k の近似で最もよいのは、特異値の大きい k 個を
    残したもので、誤差は残りの特異値の二乗和の平方根になる (Eckart-Young)。差分が 0 なら 0 を返す。

    Raises:
        TypeError, ValueError: `tolerance` が 0 以上 1 未満でない、`delta` が行列でないとき。
    """
    if not 0 <= require_number(tolerance, "tolerance") < 1:
        raise ValueError(f"tolerance は 0 以上 1 未満にしてください: {tolerance}")
    squares = spectrum(delta).square()
    left = squares.flip(0).cumsum(0).flip(0)  # left[k]: k 個を残したときの、誤差の二乗
    return int((left > tolerance**2 * left[0]).sum())


def _lora_layers(model: nn.Module) -> Iterator[tuple[str, LoRALinear]]:
    for name, module in model.named_modules():
        if isinstance(module, LoRALinear):
            yield name, module


def _require_lora(model: nn.Module) -> list[tuple[str, LoRALinear]]:
    layers = [*_lora_layers(model)]
    if not layers:
        raise ValueError("model に LoRA が付いていません。先に add_lora を呼んでください")
    return layers
