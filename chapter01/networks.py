"""五つの分類器: MLP・CNN・RNN・LSTM・GRU(1.3 節)。

前半は、論文の式を一時刻ずつ計算する再帰のセル。式と見比べるためのもので、速くはない。後半は
torch.nn の速い層を使った分類器。`copy_weights` で層の重みを写したセルは、層と同じ値を返す。

ベクトルはすべて行で、`nn.Linear` は x W^T + b を計算する。B は文や画像の数、T は列の長さ、d は入力
の次元、h は隠れ状態の次元、C はクラスの数である。
"""

import torch
from torch import Tensor, nn

from shared.checks import require_int, require_number, shown

KINDS = ("rnn", "lstm", "gru")


# ---- 式のとおりのセル -------------------------------------------------------------------


class RNNCell(nn.Module):
    """h_t = tanh(x_t W^T + h_{t-1} U^T + b)(Elman 1990 の単純な再帰)。状態は (h,)。"""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.input = nn.Linear(input_size, hidden_size)
        self.recurrent = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor, state: tuple[Tensor]) -> tuple[Tensor]:
        """一時刻進める。x は (B, d)、状態は (B, h)。"""
        (h,) = state
        return (torch.tanh(self.input(x) + self.recurrent(h)),)

    def start(self, x: Tensor) -> tuple[Tensor]:
        """x (B, d) と同じ数の、0 の状態 (B, h)。"""
        return (x.new_zeros(len(x), self.recurrent.in_features),)


class LSTMCell(nn.Module):
    """三つの門で、記憶 c を消す・書く・読む。状態は (h, c)。

    f = σ([x, h] W_f^T + b_f)  忘却ゲート    i = σ([x, h] W_i^T + b_i)  入力ゲート
    o = σ([x, h] W_o^T + b_o)  出力ゲート    g = tanh([x, h] W_g^T + b_g)  書きこむ値
    c' = f ⊙ c + i ⊙ g,    h' = o ⊙ tanh(c')

    Hochreiter & Schmidhuber 1997 に、Gers ら 2000 の忘却ゲート f を加えたもの。1997 年の式は f = 1
    に当たる。
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.input_gate = nn.Linear(input_size + hidden_size, hidden_size)
        self.forget_gate = nn.Linear(input_size + hidden_size, hidden_size)
        self.candidate = nn.Linear(input_size + hidden_size, hidden_size)
        self.output_gate = nn.Linear(input_size + hidden_size, hidden_size)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """一時刻進める。x は (B, d)、状態はどちらも (B, h)。"""
        h, c = state
        both = torch.cat([x, h], dim=1)  # (B, d + h)
        i = torch.sigmoid(self.input_gate(both))
        f = torch.sigmoid(self.forget_gate(both))
        g = torch.tanh(self.candidate(both))
        o = torch.sigmoid(self.output_gate(both))
        c = f * c + i * g
        return o * torch.tanh(c), c

    def start(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, d) と同じ数の、0 の状態 (B, h) を二つ。"""
        zeros = x.new_zeros(len(x), self.output_gate.out_features)
        return zeros, zeros


class GRUCell(nn.Module):
    """二つの門で、前の状態と新しい値を混ぜる。状態は (h,)。

    r = σ([x, h] W_r^T + b_r)  リセットゲート    z = σ([x, h] W_z^T + b_z)  更新ゲート
    n = tanh(x W_n^T + b_n + (r ⊙ h) U_n^T + b_u),    h' = (1 - z) ⊙ n + z ⊙ h

    Cho ら 2014(1406.1078、2.3 節)の式は、このようにリセットゲートを行列の積より前に掛ける。
    `reset_after=True` では PyTorch と同じく、積の後に掛ける。

    n = tanh(x W_n^T + b_n + r ⊙ (h U_n^T + b_u))
    """

    def __init__(self, input_size: int, hidden_size: int, reset_after: bool = False) -> None:
        super().__init__()
        self.reset_gate = nn.Linear(input_size + hidden_size, hidden_size)
        self.update_gate = nn.Linear(input_size + hidden_size, hidden_size)
        self.candidate = nn.Linear(input_size, hidden_size)
        self.recurrent = nn.Linear(hidden_size, hidden_size)
        self.reset_after = reset_after

    def forward(self, x: Tensor, state: tuple[Tensor]) -> tuple[Tensor]:
        """一時刻進める。x は (B, d)、状態は (B, h)。"""
        (h,) = state
        both = torch.cat([x, h], dim=1)  # (B, d + h)
        r = torch.sigmoid(self.reset_gate(both))
        z = torch.sigmoid(self.update_gate(both))
        past = r * self.recurrent(h) if self.reset_after else self.recurrent(r * h)
        n = torch.tanh(self.candidate(x) + past)
        return ((1 - z) * n + z * h,)

    def start(self, x: Tensor) -> tuple[Tensor]:
        """x (B, d) と同じ数の、0 の状態 (B, h)。"""
        return (x.new_zeros(len(x), self.recurrent.in_features),)


Cell = RNNCell | LSTMCell | GRUCell


def unroll(cell: Cell, x: Tensor) -> Tensor:
    """列 x (B, T, d) を左から一時刻ずつ `cell` に渡し、全時刻の h (B, T, h) を返す。

    Raises:
        ValueError: `x` が 3 次元でないとき、長さが 0 のとき。
    """
    _require_sequences(x)
    state, outputs = cell.start(x[:, 0]), []
    for t in range(x.shape[1]):
        state = cell(x[:, t], state)
        outputs.append(state[0])
    return torch.stack(outputs, dim=1)


@torch.no_grad()
def copy_weights(layer: nn.RNN | nn.LSTM | nn.GRU) -> Cell:
    """torch.nn の一層の重みを写した、式のとおりのセルを返す。

    torch.nn は、門ごとの行列を縦に積んで一つにしている(LSTM は i, f, g, o、GRU は r, z, n の順)。
    また、入力側と状態側にバイアスを一つずつ持つ。足してしまえば一つと同じだが、GRU の n だけは、
    状態側のバイアスにリセットゲートが掛かるので分けておく。

    Raises:
        TypeError: nn.RNN・nn.LSTM・nn.GRU でないとき。
        ValueError: 二層以上、双方向、射影つき、バイアスなし、ReLU の層のとき。
    """
    if not isinstance(layer, nn.RNN | nn.LSTM | nn.GRU):
        raise TypeError(f"layer には nn.RNN・nn.LSTM・nn.GRU を渡してください: {shown(layer)}")
    special = layer.bidirectional or layer.proj_size or layer.mode == "RNN_RELU"
    if special or layer.num_layers != 1 or not layer.bias:
        raise ValueError(f"layer は一層・一方向・バイアスありにしてください: {shown(layer)}")
    d, h = layer.input_size, layer.hidden_size
    w, u, b, v = (p.split(h) for p in layer.parameters())  # 門ごとの (h, d)、(h, h)、(h,)、(h,)
    if isinstance(layer, nn.LSTM):
        cell = LSTMCell(d, h).to(w[0])
        gates = [cell.input_gate, cell.forget_gate, cell.candidate, cell.output_gate]
        pairs = []
    elif isinstance(layer, nn.GRU):
        cell = GRUCell(d, h, reset_after=True).to(w[0])
        gates = [cell.reset_gate, cell.update_gate]
        pairs = [(cell.candidate, w[2], b[2]), (cell.recurrent, u[2], v[2])]
    else:
        cell = RNNCell(d, h).to(w[0])
        gates = []
        pairs = [(cell.input, w[0], b[0]), (cell.recurrent, u[0], v[0])]
    for k, gate in enumerate(gates):  # [x, h] に掛けるので、二つの行列を横につなぐ
        pairs.append((gate, torch.cat([w[k], u[k]], dim=1), b[k] + v[k]))
    for linear, weight, bias in pairs:
        linear.weight.copy_(weight)
        linear.bias.copy_(bias)
    return cell


# ---- 画像の分類器。どれも (B, side, side) を受け取り、logits (B, C) を返す --------------------


class MLP(nn.Module):
    """画像を一列に並べ、全結合層を二つ通す: ReLU(x W_1^T + b_1) W_2^T + b_2。"""

    def __init__(self, side: int, hidden: int, n_classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.side = require_int(side, "side", minimum=1)
        self.layers = nn.Sequential(
            nn.Flatten(),  # (B, side * side)
            nn.Linear(side * side, require_int(hidden, "hidden", minimum=1)),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, require_int(n_classes, "n_classes", minimum=1)),
        )

    def forward(self, images: Tensor) -> Tensor:
        """画像 (B, side, side) の logits (B, C)。

        Raises:
            ValueError: 画像の形が違うとき。
        """
        return self.layers(_require_images(images, self.side))


class CNN(nn.Module):
    """3 × 3 の畳み込みと 2 × 2 の最大値プーリングを二度。小さな検出器を、画像のどこでも使う。"""

    def __init__(self, side: int, channels: int, n_classes: int) -> None:
        super().__init__()
        self.side = require_int(side, "side", minimum=4)
        channels = require_int(channels, "channels", minimum=1)
        self.layers = nn.Sequential(
            nn.Conv2d(1, channels, 3, padding=1),  # (B, channels, side, side)
            nn.ReLU(),
            nn.MaxPool2d(2),  # (B, channels, side / 2, side / 2)
            nn.Conv2d(channels, 2 * channels, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),  # (B, 2 channels, side / 4, side / 4)
            nn.Flatten(),
            nn.Linear(
                2 * channels * (side // 2 // 2) ** 2, require_int(n_classes, "n_classes", minimum=1)
            ),
        )

    def forward(self, images: Tensor) -> Tensor:
        """画像 (B, side, side) の logits (B, C)。

        Raises:
            ValueError: 画像の形が違うとき。
        """
        return self.layers(_require_images(images, self.side).unsqueeze(1))


# ---- 列の分類器 -------------------------------------------------------------------------


class Recurrent(nn.Module):
    """列を左から読み、最後の時刻の隠れ状態から分類する。`kind` は "rnn"・"lstm"・"gru"。

    画像なら、行を一つの時刻とみなす。`forget_bias` を渡すと、LSTM の忘却ゲートのバイアスの初期値を
    その値にする。大きいほど、はじめから長く覚えている。PyTorch の初期値はおよそ 0 で、記憶は一時刻
    ごとに半分になる。
    """

    def __init__(
        self,
        kind: str,
        input_size: int,
        hidden_size: int,
        n_classes: int,
        forget_bias: float | None = None,
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"kind に使えるのは {', '.join(KINDS)} です: {shown(kind)}")
        layer = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}[kind]
        hidden_size = require_int(hidden_size, "hidden_size", minimum=1)
        self.layer = layer(
            require_int(input_size, "input_size", minimum=1), hidden_size, batch_first=True
        )
        self.head = nn.Linear(hidden_size, require_int(n_classes, "n_classes", minimum=1))
        if forget_bias is not None:
            if kind != "lstm":
                raise ValueError(f"forget_bias を使えるのは kind が lstm のときだけです: {kind}")
            with torch.no_grad():  # 二つのバイアスは足して使われるので、片方を 0 にする
                bias = require_number(forget_bias, "forget_bias")
                self.layer.bias_ih_l0[hidden_size : 2 * hidden_size] = bias
                self.layer.bias_hh_l0[hidden_size : 2 * hidden_size] = 0

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """列 x (B, T, d) の logits (B, C)。`lengths` (B,) は、右の詰め物を除いた長さ。

        Raises:
            ValueError: `x` が 3 次元でないとき、長さが 0 のとき。
        """
        states, _ = self.layer(_require_sequences(x))  # (B, T, h)
        if lengths is None:
            return self.head(states[:, -1])
        last = (lengths - 1).clamp(min=0)
        return self.head(states[torch.arange(len(x), device=x.device), last])


class CharacterClassifier(nn.Module):
    """文字の番号の列から分類する。番号 0 は右の詰め物で、結果に影響しない。

    `encoder` は、埋め込みの平均をとる "bag"(文字の袋)、幅 3 の畳み込みの最大値をとる "cnn"(三文字の
    検出器)、左から読む "rnn"・"lstm"・"gru"。
    """

    def __init__(
        self, encoder: str, n_characters: int, n_classes: int, dim: int = 32, hidden: int = 64
    ) -> None:
        super().__init__()
        if encoder not in ("bag", "cnn", *KINDS):
            names = ", ".join(("bag", "cnn", *KINDS))
            raise ValueError(f"encoder に使えるのは {names} です: {shown(encoder)}")
        n_characters = require_int(n_characters, "n_characters", minimum=2)
        dim, hidden = require_int(dim, "dim", minimum=1), require_int(hidden, "hidden", minimum=1)
        self.encoder = encoder
        self.embedding = nn.Embedding(n_characters, dim, padding_idx=0)
        if encoder in KINDS:
            self.body = Recurrent(encoder, dim, hidden, n_classes)
            return
        self.body = nn.Linear(dim, hidden) if encoder == "bag" else nn.Conv1d(dim, hidden, 3, 1, 1)
        self.head = nn.Linear(hidden, require_int(n_classes, "n_classes", minimum=1))

    def forward(self, ids: Tensor) -> Tensor:
        """番号 (B, T) の logits (B, C)。"""
        real = ids != 0  # (B, T)
        x = self.embedding(ids)  # (B, T, dim)。詰め物は 0 ベクトル
        if self.encoder in KINDS:
            return self.body(x, real.sum(dim=1))
        if self.encoder == "bag":
            mean = x.sum(dim=1) / real.sum(dim=1, keepdim=True).clamp(min=1)
            return self.head(torch.relu(self.body(mean)))
        found = torch.relu(self.body(x.transpose(1, 2)))  # (B, hidden, T)
        return self.head((found * real.unsqueeze(1)).amax(dim=2))


def parameter_count(model: nn.Module) -> int:
    """学習するパラメーターの数。"""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _require_images(images: Tensor, side: int) -> Tensor:
    if images.ndim != 3 or images.shape[1:] != (side, side):
        raise ValueError(f"images の形は (B, {side}, {side}) にしてください: {tuple(images.shape)}")
    return images


def _require_sequences(x: Tensor) -> Tensor:
    if x.ndim != 3 or x.shape[1] == 0:
        raise ValueError(f"x の形は (B, T, d)、T は 1 以上にしてください: {tuple(x.shape)}")
    return x
