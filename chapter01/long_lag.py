"""長い時間差の課題と、過去の入力への勾配(1.3 節)。

列のはじめの記号だけが答えを決め、あとは関係のない記号が続く。Hochreiter & Schmidhuber 1997 の
実験 2 と同じ考えの課題で、間の記号を毎回くじ引きにしたもの。
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from shared.checks import require_int

N_SYMBOLS = 10  # 答えの記号が 2 種類(番号 0 と 1)、関係のない記号が 8 種類(番号 2 から 9)


def first_symbol_task(n: int, lag: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """one-hot の列 (n, lag + 1, 10) と、はじめの記号 (n,)。答える時刻は、はじめの記号の `lag` 後。

    Raises:
        TypeError: `n` か `lag` が整数でないとき。
        ValueError: `n` か `lag` が 1 より小さいとき。
    """
    n, lag = require_int(n, "n", minimum=1), require_int(lag, "lag", minimum=1)
    answer = torch.randint(0, 2, (n, 1), generator=generator)
    others = torch.randint(2, N_SYMBOLS, (n, lag), generator=generator)
    symbols = torch.cat([answer, others], dim=1)
    return functional.one_hot(symbols, N_SYMBOLS).float(), answer.squeeze(1)


def input_gradients(layer: nn.RNN | nn.LSTM | nn.GRU, x: Tensor) -> Tensor:
    """最後の時刻の h の和を、各時刻の入力で微分した大きさ (T,)。先頭が時間差 0(最後の時刻)。

    大きさは入力の次元のノルムで、列について平均する。`layer` は batch_first、x は (B, T, d)。
    """
    x = x.detach().requires_grad_()
    states, _ = layer(x)
    (gradient,) = torch.autograd.grad(states[:, -1].sum(), x)
    return gradient.norm(dim=2).mean(dim=0).flip(0)
