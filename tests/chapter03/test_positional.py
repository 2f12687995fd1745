"""3.2 節の位置埋め込みが、論文の式と、独立した実装(transformers)のとおりか。"""

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chapter03.positional import (
    Alibi,
    LearnedPositions,
    RelativeBias,
    Rotary,
    ShawRelative,
    alibi_slopes,
    frequencies,
    offsets,
    rotation,
    sinusoidal,
)
from shared.attention import (
    MultiHeadAttention,
    Rotation,
    ScoreBias,
    causal_mask,
    scaled_dot_product_attention,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformers import LlamaConfig, MarianConfig
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor
    from transformers.models.gptj import modeling_gptj
    from transformers.models.llama import modeling_llama
    from transformers.models.marian.modeling_marian import MarianSinusoidalPositionalEmbedding

EVEN = st.integers(1, 24).map(lambda half: 2 * half)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


# ---- 正弦波 -----------------------------------------------------------------------------


def test_sinusoidal_is_the_formula_of_the_paper():
    """PE(p, 2i) = sin(p / 10000^(2i/d))、PE(p, 2i+1) = cos(p / 10000^(2i/d))。"""
    table = sinusoidal(50, 12)
    assert table.shape == (50, 12)
    assert table.dtype == torch.float32
    for p in (0, 1, 7, 49):
        for i in range(6):
            angle = p / 10000 ** (2 * i / 12)
            assert table[p, 2 * i] == pytest.approx(math.sin(angle), abs=1e-7)
            assert table[p, 2 * i + 1] == pytest.approx(math.cos(angle), abs=1e-7)


def test_sinusoidal_equals_transformers_up_to_the_order_of_components():
    """Marian は sin を前半、cos を後半に置く。並べ直せば等しい。"""
    config = MarianConfig(d_model=32, max_position_embeddings=300)
    marian = MarianSinusoidalPositionalEmbedding(300, config.d_model)
    theirs = marian.create_weight()
    table = sinusoidal(300, 32)
    assert torch.allclose(torch.cat([table[:, 0::2], table[:, 1::2]], dim=1), theirs, atol=1e-6)
    assert not torch.allclose(table, theirs, atol=0.1)


def test_far_positions_keep_their_precision():
    """位置が大きくても、丸め誤差は単精度の刻みに収まる。"""
    p = 999_999
    assert float(sinusoidal(p + 1, 2)[p, 0]) == pytest.approx(math.sin(p), abs=1e-7)


def test_wavelengths_are_geometric_from_two_pi():
    """波長は 2π から始まる等比数列で、最後は 10000 · 2π の一歩手前。"""
    wavelengths = 2 * math.pi / frequencies(512)
    assert wavelengths[0] == pytest.approx(2 * math.pi)
    ratios = wavelengths[1:] / wavelengths[:-1]
    assert torch.allclose(ratios, ratios[0].expand(255))
    assert wavelengths[-1] * ratios[0] == pytest.approx(10000 * 2 * math.pi)


@settings(deadline=None, max_examples=30)
@given(k=st.integers(-40, 40), d_model=EVEN, base=st.floats(2, 1e6))
def test_shift_is_a_rotation(k, d_model, base):
    """PE(p + k) = PE(p) R_k。R_k は直交行列で、R_j R_k = R_(j+k)。"""
    table = sinusoidal(140, d_model, base).double()
    matrix = rotation(k, d_model, base)
    assert torch.allclose(table[40:100] @ matrix, table[40 + k : 100 + k], atol=1e-6)
    assert torch.allclose(matrix @ matrix.T, torch.eye(d_model).double())
    assert torch.allclose(matrix @ rotation(3, d_model, base), rotation(k + 3, d_model, base))


@settings(deadline=None, max_examples=20)
@given(k=st.integers(-30, 30), d_model=EVEN)
def test_inner_product_depends_on_the_shift_alone(k, d_model):
    """PE(p) · PE(p + k) = Σ_i cos(k w_i)。p によらず、k の符号にもよらない。"""
    table = sinusoidal(100, d_model).double()
    products = (table[30:70] * table[30 + k : 70 + k]).sum(dim=1)
    expected = (k * frequencies(d_model)).cos().sum()
    assert torch.allclose(products, expected.expand(40), atol=1e-5)


def test_inner_product_is_not_monotone():
    """遠いほど小さいとは限らない。はじめに極小を作り、また少し大きくなる。"""
    table = sinusoidal(64, 64).double()
    products = table @ table[0]
    assert products[0] == pytest.approx(32)
    assert bool((products[1:] > products[:-1]).any())


# ---- 学習する表 ---------------------------------------------------------------------------


def test_learned_positions_are_added_from_the_start():
    """位置 start + i の行を足す。表の外は断る。"""
    positions = LearnedPositions(6, 4)
    x = torch.randn(2, 3, 4)
    assert torch.equal(positions(x, start=2) - x, (x + positions.table[2:5]) - x)
    assert positions(torch.zeros(1, 6, 4)).shape == (1, 6, 4)
    assert torch.equal(positions(torch.zeros(1, 1, 4), start=5)[0, 0], positions.table[5])
    with pytest.raises(ValueError, match="n_positions = 6"):
        positions(x, start=4)


# ---- 相対位置 -----------------------------------------------------------------------------


def test_offsets_are_key_minus_query():
    """クエリー 5 から見て、キー 3 は -2、キー 6 は +1。"""
    assert offsets(torch.tensor([5]), torch.tensor([3, 5, 6])).tolist() == [[-2, 0, 1]]


@pytest.mark.parametrize("mask", [None, causal_mask(5, 7)])
def test_shaw_is_equations_3_and_4(mask):
    """距離ごとのベクトルをキーとバリューに足し、式のとおり一つずつ求めた値と等しい。"""
    layer = ShawRelative(4, max_distance=2)
    q, k, v = torch.randn(3, 5, 4), torch.randn(3, 7, 4), torch.randn(3, 7, 4)
    output, weights = layer(q, k, v, mask)
    for b in range(3):
        for i in range(5):
            clipped = [max(-2, min(2, j - i)) + 2 for j in range(7)]
            scores = torch.stack(
                [q[b, i] @ (k[b, j] + layer.keys[clipped[j]]) / math.sqrt(4) for j in range(7)]
            )
            if mask is not None:
                scores = scores.masked_fill(~mask[i], -math.inf)
            alpha = scores.softmax(dim=0)
            z = sum(alpha[j] * (v[b, j] + layer.values[clipped[j]]) for j in range(7))
            assert torch.allclose(weights[b, i], alpha, atol=1e-6)
            assert torch.allclose(output[b, i], z, atol=1e-6)


def test_shaw_gives_zeros_where_nothing_is_seen():
    """一つも見られない行は、NaN ではなく 0。勾配にも NaN はない。"""
    layer = ShawRelative(4, max_distance=1)
    mask = torch.tensor([[True, False], [False, False]])
    q = torch.randn(2, 4, requires_grad=True)
    output, weights = layer(q, torch.randn(2, 4), torch.randn(2, 4), mask)
    assert weights[1].tolist() == [0.0, 0.0]
    assert output[1].tolist() == [0.0] * 4
    output.sum().backward()
    assert q.grad is not None
    assert bool(q.grad.isfinite().all())


def test_shaw_without_vectors_is_plain_attention():
    """距離ごとのベクトルが 0 なら、ただのスケール化内積注意。"""
    layer = ShawRelative(4, max_distance=0)
    with torch.no_grad():
        layer.keys.zero_()
        layer.values.zero_()
    q, k, v = torch.randn(3, 2, 6, 4)
    for ours, plain in zip(layer(q, k, v), scaled_dot_product_attention(q, k, v), strict=True):
        assert torch.allclose(ours, plain, atol=1e-6)


def test_relative_bias_reads_its_table_by_clipped_offset():
    """差 j - i の列を読み、上限より遠い位置は上限とみなす。"""
    hook = RelativeBias(2, max_distance=2)
    with torch.no_grad():
        hook.table.copy_(torch.arange(10.0).view(2, 5))
    bias = hook.bias(torch.tensor([4]), torch.arange(8))
    assert bias[:, 0].tolist() == [[0, 0, 0, 1, 2, 3, 4, 4], [5, 5, 5, 6, 7, 8, 9, 9]]


# ---- ALiBi ------------------------------------------------------------------------------


def test_alibi_slopes_are_those_of_the_paper():
    """8 ヘッドなら 1/2 から 1/256、16 ヘッドなら公比 1/√2(3 節)。"""
    assert alibi_slopes(8).tolist() == [2.0**-h for h in range(1, 9)]
    assert torch.allclose(alibi_slopes(16), 2 ** (-torch.arange(1, 17) / 2))


@pytest.mark.parametrize("n_heads", [1, 2, 3, 8, 12, 16, 20])
def test_alibi_equals_bloom_after_softmax(n_heads):
    """BLOOM は行ごとの定数だけ違う値を足す。因果マスクと softmax の後では等しい。"""
    n = 9
    theirs = build_alibi_tensor(torch.ones(1, n), n_heads, torch.float32)  # (H, 1, n)
    positions = torch.arange(n)
    ours = Alibi(n_heads).bias(positions, positions)
    seen = causal_mask(n)
    left = ours.masked_fill(~seen, -math.inf).softmax(dim=-1)
    right = theirs.expand(-1, n, -1).masked_fill(~seen, -math.inf).softmax(dim=-1)
    assert torch.allclose(left, right, atol=1e-6)


def test_alibi_is_minus_slope_times_distance():
    """同じ位置は 0、離れるほど下がり、左右は対称。"""
    bias = Alibi(2).bias(torch.tensor([3]), torch.arange(6))
    distance = torch.tensor([3.0, 2, 1, 0, 1, 2])
    assert torch.equal(bias[0, 0], -distance / 16)
    assert torch.equal(bias[1, 0], -distance / 256)


# ---- RoPE -------------------------------------------------------------------------------


@settings(deadline=None, max_examples=20)
@given(
    m=st.integers(0, 60),
    n=st.integers(0, 60),
    shift=st.integers(0, 60),
    layout=st.sampled_from(["adjacent", "halves"]),
)
def test_rotary_product_depends_on_the_difference_alone(m, n, shift, layout):
    """q_m · k_n は、二つの位置を同じだけずらしても変わらない。長さも変わらない。"""
    rotary = Rotary(8, layout=layout)
    q, k = torch.randn(1, 8), torch.randn(1, 8)

    def score(a: int, b: int) -> float:
        q_a, k_b = rotary.rotate(q, k, torch.tensor([a]), torch.tensor([b]))
        assert torch.allclose(q_a.norm(), q.norm(), atol=1e-5)
        return float(q_a @ k_b.T)

    assert score(m, n) == pytest.approx(score(m + shift, n + shift), abs=1e-4)


def test_rotary_product_does_depend_on_the_difference():
    """差が変われば、内積も変わる(位置を無視していない)。"""
    rotary, x = Rotary(2), torch.tensor([[1.0, 0.0]])
    turned = rotary.turn(x.expand(4, 2), torch.arange(4))
    expected = torch.tensor([[math.cos(p), math.sin(p)] for p in range(4)])
    assert torch.allclose(turned, expected, atol=1e-6)


def test_rotary_is_the_rotation_matrix_of_each_pair():
    """隣どうしの組を、回転行列で一つずつ回した値と等しい(式 (34))。"""
    rotary, x = Rotary(6), torch.randn(5, 6)
    turned = rotary.turn(x, torch.arange(5))
    for p in range(5):
        for i in range(3):
            angle = p * 10000 ** (-2 * i / 6)
            cos, sin = math.cos(angle), math.sin(angle)
            pair = torch.tensor([[cos, -sin], [sin, cos]]) @ x[p, 2 * i : 2 * i + 2]
            assert torch.allclose(turned[p, 2 * i : 2 * i + 2], pair, atol=1e-6)


def test_rotary_halves_equals_llama():
    """transformers の Llama(前半と後半を組にする)と等しい。"""
    config = LlamaConfig(hidden_size=64, num_attention_heads=4, max_position_embeddings=128)
    positions = torch.arange(3, 40)
    q, k = torch.randn(2, 4, 37, 16), torch.randn(2, 2, 37, 16)
    cos, sin = modeling_llama.LlamaRotaryEmbedding(config)(q, positions[None])
    theirs = modeling_llama.apply_rotary_pos_emb(q, k, cos, sin)
    ours = Rotary(16, layout="halves").rotate(q, k, positions, positions)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_rotary_adjacent_equals_gptj():
    """transformers の GPT-J(隣どうしを組にする)と等しい。"""
    q, positions = torch.randn(2, 5, 3, 8), torch.arange(4, 9)  # GPT-J は (B, n, H, d_k)
    table = modeling_gptj.create_sinusoidal_positions(16, 8)[positions][None]
    sin, cos = table.split(4, dim=-1)
    theirs = modeling_gptj.apply_rotary_pos_emb(q, sin, cos)
    ours = Rotary(8).turn(q.transpose(1, 2), positions).transpose(1, 2)
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_rotary_uses_the_positions_of_each_side():
    """クエリーとキーの位置が違えば、それぞれの位置で回す(KV キャッシュで要る)。"""
    rotary, q, k = Rotary(4), torch.randn(1, 4), torch.randn(6, 4)
    q_turned, k_turned = rotary.rotate(q, k, torch.tensor([5]), torch.arange(6))
    assert torch.equal(q_turned, rotary.turn(q, torch.tensor([5])))
    assert torch.equal(k_turned[:3], rotary.turn(k[:3], torch.arange(3)))


def test_rotary_angles_stay_precise_in_bfloat16():
    """bf16 でも角度は単精度で求める。隣り合う遠い位置が同じにならない。"""
    x = torch.ones(2, 2, dtype=torch.bfloat16)
    turned = Rotary(2).turn(x, torch.tensor([1000, 1001]))
    assert turned.dtype == torch.bfloat16
    exact = Rotary(2).turn(torch.ones(2, 2), torch.tensor([1000, 1001]))
    assert torch.allclose(turned.float(), exact, atol=0.02)


# ---- MultiHeadAttention の差し込み口 ---------------------------------------------------------


@pytest.mark.parametrize(
    "hook", [Rotary(4), Rotary(4, layout="halves"), Alibi(4), RelativeBias(4, max_distance=3)]
)
def test_hooks_fit_attention_and_break_its_symmetry(hook):
    """差し込むと、入力の並べ替えが出力の並べ替えにならなくなる。差し込まなければ、なる。"""
    assert isinstance(hook, Rotation | ScoreBias)
    if isinstance(hook, RelativeBias):
        torch.nn.init.normal_(hook.table)
    x, order = torch.randn(2, 6, 16), torch.randperm(6)
    for position, symmetric in ((hook, False), (None, True)):
        layer = MultiHeadAttention(16, 4, position=position)
        same = torch.allclose(layer(x)[0][:, order], layer(x[:, order])[0], atol=1e-5)
        assert same is symmetric


@pytest.mark.parametrize("hook", [Rotary(4), Alibi(4), RelativeBias(4, max_distance=3)])
def test_only_differences_of_positions_matter(hook):
    """窓をずらしても(前に見えない記号を足しても)、注意の出力は変わらない。"""
    layer = MultiHeadAttention(16, 4, position=hook)
    x = torch.randn(1, 8, 16)
    mask = torch.ones(8, 8, dtype=torch.bool)
    mask[3:, :3] = False  # 後ろの 5 つは、前の 3 つを見ない
    assert torch.allclose(layer(x, mask=mask)[0][:, 3:], layer(x[:, 3:])[0], atol=1e-5)


def test_learned_tables_receive_gradients():
    """学習する表は、注意の中からも勾配を受け取る。"""
    hook = RelativeBias(4, max_distance=3)
    layer = MultiHeadAttention(16, 4, position=hook)
    assert any(parameter is hook.table for parameter in layer.parameters())
    layer(torch.randn(1, 5, 16))[0].square().sum().backward()
    assert hook.table.grad is not None
    assert bool((hook.table.grad != 0).any())


# ---- 誤った入力 ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: sinusoidal(4, 5), ValueError, "d_model は偶数"),
        (lambda: sinusoidal(-1, 4), ValueError, "n_positions"),
        (lambda: sinusoidal(4, 4.0), TypeError, "d_model"),  # pyright: ignore
        (lambda: sinusoidal(4, 4, base=1), ValueError, "base"),
        (lambda: rotation(1.5, 4), TypeError, "k に"),  # pyright: ignore
        (lambda: LearnedPositions(0, 4), ValueError, "n_positions"),
        (lambda: RelativeBias(2, -1), ValueError, "max_distance"),
        (lambda: ShawRelative(0, 1), ValueError, "d_k"),
        (lambda: Alibi(0), ValueError, "n_heads"),
        (lambda: Rotary(3), ValueError, "d_k は偶数"),
        (lambda: Rotary(4, layout="interleaved"), ValueError, "layout"),  # pyright: ignore
        (lambda: Rotary(4).turn(torch.zeros(2, 6), torch.arange(2)), ValueError, "d_k = 4"),
    ],
)
def test_bad_input_is_refused_in_japanese(call, error, message):
    """引数の名前と、許される範囲を述べる。"""
    with pytest.raises(error, match=message):
        call()


def test_no_positions_give_an_empty_table():
    """位置が一つもなければ、空の表。"""
    assert sinusoidal(0, 4).shape == (0, 4)
