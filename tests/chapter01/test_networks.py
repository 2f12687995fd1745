"""式のとおりのセルが torch.nn と一致し、分類器が詰め物・順序・形を正しく扱うか。"""

import pytest
import torch
from torch import nn

from chapter01.networks import (
    CNN,
    MLP,
    CharacterClassifier,
    GRUCell,
    LSTMCell,
    Recurrent,
    RNNCell,
    copy_weights,
    parameter_count,
    unroll,
)

LAYERS = [nn.RNN, nn.LSTM, nn.GRU]
ENCODERS = ["bag", "cnn", "rnn", "lstm", "gru"]


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


# ---- 式のとおりのセル -------------------------------------------------------------------


@pytest.mark.parametrize("kind", LAYERS)
def test_cells_equal_torch_with_gradients(kind):
    """重みを写したセルは、全時刻の値も、入力への勾配も torch.nn と同じ。"""
    layer = kind(3, 5, batch_first=True).double()
    x = torch.randn(2, 7, 3, dtype=torch.float64, requires_grad=True)
    plain, (fast, _) = unroll(copy_weights(layer), x), layer(x)
    torch.testing.assert_close(plain, fast, rtol=0, atol=1e-12)
    weight = torch.randn_like(fast)
    (g_plain,) = torch.autograd.grad((plain * weight).sum(), x)
    (g_fast,) = torch.autograd.grad((fast * weight).sum(), x)
    torch.testing.assert_close(g_plain, g_fast, rtol=0, atol=1e-12)


def _fill(linear: nn.Linear, weight: float, bias: float) -> None:
    nn.init.constant_(linear.weight, weight)
    nn.init.constant_(linear.bias, bias)


def test_lstm_gates_do_what_their_names_say():
    """忘却ゲートだけが開けば c はそのまま残り、入力ゲートだけが開けば g に置きかわる。"""
    cell = LSTMCell(1, 1)
    for gate in (cell.input_gate, cell.forget_gate, cell.output_gate, cell.candidate):
        _fill(gate, 0.0, -50.0)
    x, h, c = torch.zeros(1, 1), torch.zeros(1, 1), torch.full((1, 1), 0.7)
    _fill(cell.forget_gate, 0.0, 50.0)
    h_closed, kept = cell(x, (h, c))
    assert (kept.item(), h_closed.item()) == pytest.approx((0.7, 0.0))
    _fill(cell.forget_gate, 0.0, -50.0)
    _fill(cell.input_gate, 0.0, 50.0)
    _fill(cell.output_gate, 0.0, 50.0)
    _fill(cell.candidate, 0.0, 0.3)
    h_open, written = cell(x, (h, c))
    g = torch.tanh(torch.tensor(0.3))
    assert written.item() == pytest.approx(g.item())
    assert h_open.item() == pytest.approx(torch.tanh(g).item())


def test_gru_places_the_reset_gate_as_the_paper_does():
    """論文は r ⊙ h に行列を掛け、PyTorch は h に行列を掛けてから r を掛ける。"""
    paper, after = GRUCell(1, 2), GRUCell(1, 2, reset_after=True)
    after.load_state_dict(paper.state_dict())
    for cell in (paper, after):
        _fill(cell.update_gate, 0.0, -50.0)  # z = 0: 新しい値だけ
        nn.init.zeros_(cell.candidate.weight)
        nn.init.zeros_(cell.candidate.bias)
        nn.init.zeros_(cell.recurrent.bias)
        _fill(cell.reset_gate, 0.0, 0.0)
        with torch.no_grad():
            cell.reset_gate.bias.copy_(torch.tensor([50.0, -50.0]))  # r = (1, 0)
            cell.recurrent.weight.copy_(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))  # 入れ替え
    h = torch.tensor([[0.5, 0.8]])
    x = torch.zeros(1, 1)
    torch.testing.assert_close(paper(x, (h,))[0], torch.tanh(torch.tensor([[0.0, 0.5]])))
    torch.testing.assert_close(after(x, (h,))[0], torch.tanh(torch.tensor([[0.8, 0.0]])))


def test_gru_update_gate_keeps_the_past():
    """更新ゲート z = 1 なら h は変わらない。"""
    cell = GRUCell(1, 1)
    _fill(cell.update_gate, 0.0, 50.0)
    h = torch.tensor([[0.4]])
    torch.testing.assert_close(cell(torch.ones(1, 1), (h,))[0], h)


def test_rnn_step_by_hand():
    """h = tanh(0.5 x + 2 h + 0.1 + 0.2) を手で計算した値になる。"""
    cell = RNNCell(1, 1)
    _fill(cell.input, 0.5, 0.1)
    _fill(cell.recurrent, 2.0, 0.2)
    (h,) = cell(torch.tensor([[1.0]]), (torch.tensor([[0.3]]),))
    assert h.item() == pytest.approx(torch.tanh(torch.tensor(1.4)).item())


# ---- 分類器 -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "count"),
    [
        (MLP(8, 64, 10), 64 * 64 + 64 + 64 * 10 + 10),
        (CNN(8, 16, 10), 16 * 9 + 16 + 32 * 16 * 9 + 32 + 32 * 4 * 10 + 10),
        (Recurrent("rnn", 8, 64, 10), 64 * (8 + 64 + 2) + 650),
        (Recurrent("lstm", 8, 64, 10), 4 * 64 * (8 + 64 + 2) + 650),
        (Recurrent("gru", 8, 64, 10), 3 * 64 * (8 + 64 + 2) + 650),
    ],
)
def test_parameter_counts_by_hand(model, count):
    """パラメーターの数は、式から数えたとおり。"""
    assert parameter_count(model) == count
    assert model(torch.rand(2, 8, 8)).shape == (2, 10)


def test_convolution_sees_a_shifted_pattern_as_the_same():
    """2 × 2 のプーリングの枡ごと動かした図形は、CNN の特徴でも動くだけ(端から離れていれば)。"""
    features = CNN(32, 4, 3).layers[:6]  # (B, 1, 32, 32) → (B, 8, 8, 8)
    image = torch.zeros(1, 1, 32, 32)
    image[..., 11:14, 12:15] = torch.rand(3, 3)
    moved = torch.roll(image, (4, 4), dims=(2, 3))
    expected = torch.roll(features(image), (1, 1), dims=(2, 3))
    inside = (..., slice(2, 7), slice(2, 7))
    torch.testing.assert_close(features(moved)[inside], expected[inside])
    assert not torch.allclose(features(image)[inside], expected[inside])


@pytest.mark.parametrize("kind", ["rnn", "lstm", "gru"])
def test_recurrent_reads_the_state_at_the_true_end(kind):
    """詰め物に何が入っていても、長さを渡せば結果は変わらない。渡さなければ最後まで読む。"""
    model = Recurrent(kind, 3, 8, 4)
    x = torch.randn(2, 5, 3)
    garbage = torch.cat([x, torch.randn(2, 6, 3)], dim=1)
    lengths = torch.tensor([5, 3])
    torch.testing.assert_close(model(garbage, lengths)[0], model(x)[0])
    torch.testing.assert_close(model(garbage, lengths)[1], model(x[:, :3])[1])
    assert not torch.allclose(model(garbage)[0], model(x)[0])


def test_forget_bias_sets_only_the_forget_gate():
    """忘却ゲートのバイアスの和だけが変わり、ほかの門はそのまま。"""
    torch.manual_seed(0)
    plain = Recurrent("lstm", 3, 4, 2).layer
    torch.manual_seed(0)
    set_to_five = Recurrent("lstm", 3, 4, 2, forget_bias=5.0).layer
    cell = copy_weights(set_to_five)
    torch.testing.assert_close(cell.forget_gate.bias, torch.full((4,), 5.0))
    before, after = copy_weights(plain), copy_weights(set_to_five)
    for name in ("input_gate", "candidate", "output_gate"):
        torch.testing.assert_close(getattr(before, name).bias, getattr(after, name).bias)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_padding_never_changes_a_character_classifier(encoder):
    """右の詰め物を増やしても logits は変わらず、詰め物だけの行も有限の値になる。"""
    model = CharacterClassifier(encoder, 20, 4, dim=8, hidden=64)
    ids = torch.randint(1, 20, (8, 6))
    ids[1, 4:] = 0
    ids[2] = 0
    padded = torch.cat([ids, torch.zeros(8, 5, dtype=torch.long)], dim=1)
    torch.testing.assert_close(model(padded), model(ids))
    torch.testing.assert_close(model(ids[1:2, :4])[0], model(ids)[1])
    assert model(ids).isfinite().all()


@pytest.mark.parametrize("encoder", ENCODERS)
def test_only_the_bag_ignores_order(encoder):
    """文字を並べかえても変わらないのは、文字の袋だけ。"""
    model = CharacterClassifier(encoder, 20, 4, dim=8, hidden=8)
    ids = torch.arange(1, 10).unsqueeze(0)
    unchanged = torch.allclose(model(ids), model(ids.flip(1)), atol=1e-6)
    assert unchanged == (encoder == "bag")


@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_parameter_learns(encoder):
    """どのパラメーターにも 0 でない勾配が届く(詰め物の埋め込みだけは 0 のまま)。"""
    model = CharacterClassifier(encoder, 10, 4, dim=8, hidden=8)
    ids = torch.randint(1, 10, (16, 6))
    nn.functional.cross_entropy(model(ids), torch.randint(0, 4, (16,))).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    assert model.embedding.weight.grad[0].abs().sum() == 0


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Recurrent("transformer", 3, 4, 2), ValueError, "kind.*transformer"),
        (lambda: Recurrent("gru", 3, 4, 2, forget_bias=1.0), ValueError, "forget_bias"),
        (lambda: Recurrent("rnn", 0, 4, 2), ValueError, "input_size"),
        (lambda: MLP(8, 0, 10), ValueError, "hidden"),
        (lambda: CNN(3, 4, 10), ValueError, "side"),
        (lambda: MLP(8, 4, 10)(torch.rand(2, 1, 8, 8)), ValueError, "images"),
        (lambda: CNN(8, 4, 10)(torch.rand(2, 8, 9)), ValueError, "images"),
        (lambda: Recurrent("rnn", 3, 4, 2)(torch.rand(2, 0, 3)), ValueError, "x の形"),
        (lambda: unroll(RNNCell(3, 4), torch.rand(2, 3)), ValueError, "x の形"),
        (lambda: CharacterClassifier("word", 5, 2), ValueError, "encoder.*word"),
        (lambda: CharacterClassifier("bag", 1, 2), ValueError, "n_characters"),
        (lambda: copy_weights(nn.Linear(2, 2)), TypeError, "layer"),  # pyright: ignore
        (lambda: copy_weights(nn.GRU(2, 3, num_layers=2)), ValueError, "一層"),
        (lambda: copy_weights(nn.LSTM(2, 3, bidirectional=True)), ValueError, "一方向"),
        (lambda: copy_weights(nn.LSTM(2, 3, proj_size=1)), ValueError, "layer"),
        (lambda: copy_weights(nn.RNN(2, 3, bias=False)), ValueError, "バイアス"),
        (lambda: copy_weights(nn.RNN(2, 3, nonlinearity="relu")), ValueError, "layer"),
    ],
)
def test_bad_input_is_explained(call, error, message):
    """誤った入力を、引数の名前を挙げて断る。"""
    with pytest.raises(error, match=message):
        call()
