"""コーパスの統計: 語彙の増え方、べき乗則の当てはめ、未知語の割合(2.2 節)。"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shared.checks import require_int, shown

Token = TypeVar("Token", bound=Hashable)


def vocabulary_growth(tokens: Sequence[Hashable]) -> NDArray[np.int64]:
    """先頭から i + 1 個までのトークンに現れる種類の数を、i = 0, ..., N - 1 について返す。

    Heaps の法則 V(n) = K n^β (Heaps 1978) の左辺にあたる。空の列には空の配列を返す。

    Args:
        tokens: トークンの並び(長さ N)。

    Raises:
        TypeError: `tokens` が文字列か、並びでないとき。要素が辞書のキーになれないとき。
    """
    if isinstance(tokens, str | bytes | Mapping) or not isinstance(tokens, Sequence):
        raise TypeError(
            f"tokens にはトークンを並べた list などを渡してください: "
            f"{shown(tokens)} ({type(tokens).__name__})"
        )
    n = len(tokens)
    try:
        # 後ろから入れると、種類ごとに最初の位置が残る
        first = dict(zip(reversed(tokens), range(n - 1, -1, -1), strict=True))
    except TypeError:
        raise TypeError(f"tokens の要素は文字列などにしてください: {shown(tokens)}") from None
    is_new = np.zeros(n, dtype=np.int64)
    is_new[list(first.values())] = 1
    return np.cumsum(is_new)


def unknown_rates(
    train: Mapping[Token, int], test: Mapping[Token, int], sizes: Iterable[int]
) -> NDArray[np.float64]:
    """学習データで多い順に `sizes` 種類だけを語彙にしたときの、検証データの未知の割合を返す。

    語彙 S に対して、割合は Σ_{w ∉ S} test(w) / Σ_w test(w)(延べで数える)。回数が同じなら `train` で
    先に現れるものを採る。出現数 0 の語は、なかったものとして扱う。`sizes` が種類の数を超えれば、
    すべての種類を語彙とする。

    Args:
        train: 学習データの トークン → 出現数。
        test: 検証データの トークン → 出現数。
        sizes: 語彙の大きさの並び。

    Raises:
        TypeError: `train` か `test` が辞書でないとき。出現数や大きさが整数でないとき。
        ValueError: 出現数や大きさが負のとき。`test` の出現数の合計が 0 のとき。
    """
    train, test = _require_counts(train, "train"), _require_counts(test, "test")
    vocabulary_sizes = [require_int(size, "sizes", minimum=0) for size in sizes]
    total = sum(test.values())
    if total == 0:
        raise ValueError("test の出現数の合計が 0 です。検証データを渡してください")
    ranked = sorted(train, key=train.__getitem__, reverse=True)
    covered = np.cumsum([0] + [test.get(token, 0) for token in ranked])
    known = covered[np.minimum(vocabulary_sizes, len(ranked)).astype(np.int64)]
    return 1.0 - known / total


def _require_counts(counts: Mapping[Token, int], name: str) -> dict[Token, int]:
    if not isinstance(counts, Mapping):
        raise TypeError(f"{name} には トークン → 出現数 の辞書を渡してください: {shown(counts)}")
    whole = {token: require_int(n, f"{name} の出現数", minimum=0) for token, n in counts.items()}
    return {token: n for token, n in whole.items() if n}


def fit_power_law(x: ArrayLike, y: ArrayLike) -> tuple[float, float]:
    """y ≈ c x^γ を、両対数での最小二乗法で当てはめ、(c, γ) を返す。

    u = ln x、v = ln y とすると γ = Σ(u - ū)(v - v̄) / Σ(u - ū)²、ln c = v̄ - γ ū (正規方程式の解)。
    両対数で等しい間隔に点を選んでから渡すとよい。すべての点を渡すと、右端ばかりが効く。

    Args:
        x: 正の数の列。
        y: 正の数の列(x と同じ長さ)。

    Raises:
        ValueError: 長さが違う、2 点より少ない、正でない値がある、x がすべて同じとき。
    """
    u, v = _require_positive(x, "x"), _require_positive(y, "y")
    if len(u) != len(v):
        raise ValueError(f"x と y の長さを揃えてください: {len(u)} と {len(v)}")
    if len(u) < 2 or np.all(u == u[0]):
        raise ValueError("x には、異なる値を 2 点以上渡してください")
    u, v = np.log(u), np.log(v)
    slope = float(np.sum((u - u.mean()) * (v - v.mean())) / np.sum((u - u.mean()) ** 2))
    return float(np.exp(v.mean() - slope * u.mean())), slope


def _require_positive(values: ArrayLike, name: str) -> NDArray[np.float64]:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{name} には数の列を渡してください: {shown(values)}") from None
    if array.ndim != 1:
        raise ValueError(f"{name} には 1 次元の列を渡してください: 形は {array.shape}")
    if not np.all(np.isfinite(array) & (array > 0)):
        raise ValueError(f"{name} は正の有限の数だけにしてください: {shown(values)}")
    return array
