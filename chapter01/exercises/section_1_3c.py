"""1.3 節(PyTorch で学習する)の演習の採点。"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from chapter01 import metrics
from shared.learning import Case, grade

Floats = NDArray[np.float64]


def check_training_loop(my_epoch: Callable[[nn.Module, Sequence[Any], Any], list[float]]) -> None:
    """モデル・バッチの並び・最適化の道具を受け取り、一巡学習して損失の list を返す関数を採点する。

    小さなモデルを学習させ、ステップごとの損失と、学習した後の重みの両方を比べる。
    """

    def run(n_batches: int, optimizer: str, rate: float) -> list[float] | None:
        model, batches, tool = _small_problem(n_batches, optimizer, rate)
        losses = my_epoch(model, batches, tool)
        if losses is None:
            return None
        return [
            torch.as_tensor(loss).item() for loss in losses
        ] + torch.nn.utils.parameters_to_vector(model.parameters()).tolist()

    def expected(n_batches: int, optimizer: str, rate: float) -> list[float]:
        model, batches, tool = _small_problem(n_batches, optimizer, rate)
        losses = []
        for x, y in batches:
            tool.zero_grad()
            loss = functional.cross_entropy(model(x), y)
            loss.backward()
            tool.step()
            losses.append(loss.item())
        return losses + torch.nn.utils.parameters_to_vector(model.parameters()).tolist()

    first = "cross_entropy には softmax をかける前の logits を渡します"
    once = "backward のあとに step を呼びましたか。勾配は backward のときに求まります"
    twice = "二つめのバッチから違うときは、zero_grad を忘れて勾配が足されていないか確かめます"
    settings = [
        (1, "sgd", 0.0, "学習率 0", first),
        (1, "sgd", 0.5, "バッチ一つ", once),
        (4, "sgd", 0.5, "バッチ四つ", twice),
        (4, "adam", 0.01, "Adam", twice),
        (0, "sgd", 0.5, "バッチなし", ""),
    ]
    grade(
        "1.3c 演習 3",
        run,
        [Case((n, o, r), expected(n, o, r), edge, hint, 1e-6) for n, o, r, edge, hint in settings],
    )


def _small_problem(
    n_batches: int, optimizer: str, rate: float
) -> tuple[nn.Module, list[tuple[Tensor, Tensor]], torch.optim.Optimizer]:
    """毎回同じ、小さなモデル・バッチ・最適化の道具。"""
    generator = torch.Generator().manual_seed(0)
    model = nn.Linear(3, 2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    batches = [
        (
            torch.randn(4, 3, generator=generator),
            torch.randint(0, 2, (4,), generator=generator),
        )
        for _ in range(n_batches)
    ]
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[optimizer]
    return model, batches, kind(model.parameters(), lr=rate)


def check_scores(
    my_scores: Callable[[list[int], list[int], int], list[tuple[float, float, float]]],
) -> None:
    """クラスごとの (適合率, 再現率, F1) の list を返す関数を採点する。"""

    def case(target: list[int], predicted: list[int], n: int, edge: str, hint: str) -> Case:
        m = metrics.confusion_matrix(target, predicted, n)
        rows = zip(metrics.precision(m), metrics.recall(m), metrics.f1(m), strict=True)
        expected = [(float(p), float(r), float(f)) for p, r, f in rows]
        return Case((target, predicted, n), expected, edge, hint, 1e-9)

    sides = "適合率は「そう予測した件数」で、再現率は「本当にそうである件数」で割ります"
    zero = "0 で割るところは 0 とします"
    grade(
        "1.3c 演習 4",
        my_scores,
        [
            case([0, 0, 1, 1], [0, 0, 1, 1], 2, "", ""),
            case([0, 0, 0, 1], [0, 1, 1, 1], 2, "", sides),
            case([0, 1, 2, 2, 1, 0], [0, 2, 2, 1, 1, 0], 3, "三クラス", sides),
            case([0, 0, 1], [0, 0, 0], 2, "一度も予測しないクラス", zero),
            case([0, 0, 0], [0, 1, 0], 2, "一件もないクラス", zero),
            case([0], [0], 3, "現れないクラス", "n_classes 個の組を返します"),
        ],
    )


def check_gru_step(
    my_gru_step: Callable[[Floats, Floats, tuple[Floats, Floats, Floats, Floats]], Floats],
) -> None:
    """GRU を一時刻進める関数 (x, h, (W, U, b, v)) → h' を採点する(numpy、PyTorch の式)。

    x (d,)、h (k,)、W (3k, d)、U (3k, k)、b (3k,)、v (3k,)。門の順は r, z, n。
    """
    order = "リセットゲートは、行列の積(とバイアス v)のあとに掛けます"
    mixing = "z は前の h に、1 - z は新しい値 n に掛けます"
    cases = []
    for seed, (d, k) in enumerate([(1, 1), (3, 2), (2, 4)]):
        generator = torch.Generator().manual_seed(seed)
        cell = nn.GRUCell(d, k).double()
        with torch.no_grad():
            for parameter in cell.parameters():
                parameter.copy_(2 * torch.randn(parameter.shape, generator=generator))
        x, h = (torch.randn(n, generator=generator, dtype=torch.float64) for n in (d, k))
        expected = cell(x, h).detach().numpy()
        w, u, b, v = (parameter.detach().numpy() for parameter in cell.parameters())
        kept = b.copy()
        kept[k : 2 * k] = 100.0  # z = 1: 前の h がそのまま残る
        arguments = (x.numpy(), h.numpy(), (w, u, kept, v))
        cases.append(Case(arguments, h.numpy(), "z = 1 になる", mixing, 1e-9))
        arguments = (x.numpy(), h.numpy(), (w, u, b, v))
        cases.append(Case(arguments, expected, f"d = {d}、k = {k} ", order, 1e-9))
    grade("1.3c 演習 5", my_gru_step, cases)
