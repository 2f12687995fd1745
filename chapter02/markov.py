"""マルコフ情報源: 次の記号が直前の記号だけで決まる文字列と、その予測の限界(2.7 節)。

Rajaraman, Jiao, Ramchandran 2024 (arXiv:2404.08335) は、言語の代わりにマルコフ情報源を使い、
トークナイザーのあるなしで言語モデルの交差エントロピーがどう変わるかを調べた。情報源の確率が分かって
いるので、どのモデルもそこより下へは行けない値(エントロピーレート)を計算できる。

エントロピーの単位はすべて nat(自然対数)である。
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shared.checks import require_int, require_number, require_text, shown

Array = NDArray[np.float64]


# ---- 任意のマルコフ連鎖 -----------------------------------------------------------------


def stationary_distribution(P: ArrayLike) -> Array:
    """推移確率行列 `P` の定常分布 π (S,) を返す。

    π は πP = π と Σ_s π_s = 1 のただ一つの解。周期的な連鎖(0 と 1 を必ず行き来するものなど)でも、
    解が一つなら返す。

    Args:
        P: 形 (S, S)、P[i][j] = Pr(次が状態 j | 今が状態 i)。行の和は 1。入れ子の list でもよい。

    Raises:
        TypeError: `P` が数の表でないとき。
        ValueError: 正方でない、NaN・無限大・負の値を含む、行の和が 1 でない、定常分布が一つに
            決まらない(行き来できない二つ以上の閉じた状態の組がある)とき。
    """
    matrix = _transition_matrix(P)
    n_states = len(matrix)
    if len(_closed_classes(matrix)) > 1:
        raise ValueError(
            "P の定常分布が一つに決まりません。一度入ると出られない状態の組が二つ以上あります: "
            f"{_closed_classes(matrix)}"
        )
    # 連立一次方程式 (P^T - I) π = 0 に、和が 1 という式を一つ足して解く。
    equations = np.vstack([matrix.T - np.eye(n_states), np.ones(n_states)])  # (S + 1, S)
    right = np.append(np.zeros(n_states), 1.0)
    solution = np.linalg.lstsq(equations, right, rcond=None)[0]
    pi = np.clip(solution, 0.0, None)
    return pi / pi.sum()


def entropy_rate(P: ArrayLike) -> float:
    """定常な連鎖のエントロピーレート H∞ (nat/記号) を返す。

    H∞ = -Σ_i π_i Σ_j P_ij ln P_ij。どんなモデルの交差エントロピーもこれより小さくならない
    (Cover & Thomas, Elements of Information Theory, 4 章)。

    Raises:
        TypeError, ValueError: `stationary_distribution` と同じ。
    """
    matrix = _transition_matrix(P)
    return float(stationary_distribution(matrix) @ _entropies(matrix))


def block_entropy(P: ArrayLike, r: int) -> float:
    """定常な連鎖の続く `r` 記号の同時エントロピー H(X_1, ..., X_r) (nat) を返す。

    連鎖律とマルコフ性から、r >= 1 で H(X_1, ..., X_r) = H(π) + (r - 1) H∞、r = 0 では 0。

    Raises:
        TypeError: `r` が整数でないとき。
        ValueError: `r` が負のとき。`P` については `stationary_distribution` と同じ。
    """
    r = require_int(r, "r", minimum=0)
    matrix = _transition_matrix(P)
    pi = stationary_distribution(matrix)
    if r == 0:
        return 0.0
    return float(_entropies(pi[None])[0] + (r - 1) * (pi @ _entropies(matrix)))


def _transition_matrix(P: ArrayLike) -> Array:
    """`P` を検査して (S, S) の配列にする。"""
    try:
        matrix = np.asarray(P, dtype=np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"P には数を並べた正方形の表を渡してください: {shown(P)}") from None
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.size == 0:
        raise ValueError(f"P は正方 (S, S) にしてください: 形 {matrix.shape}")
    if not np.isfinite(matrix).all() or (matrix < 0).any():
        raise ValueError(f"P の値は 0 以上の有限の数にしてください: {shown(matrix.tolist())}")
    sums = matrix.sum(axis=1)
    if not np.allclose(sums, 1.0, rtol=0, atol=1e-9):
        row = int(np.abs(sums - 1.0).argmax())
        raise ValueError(f"P の各行の和は 1 にしてください: 行 {row} の和は {sums[row]:.6g}")
    return matrix


def _entropies(rows: Array) -> Array:
    """各行の分布のエントロピー(0 ln 0 = 0 とする)。"""
    return -(rows * np.log(np.where(rows > 0, rows, 1.0))).sum(axis=1)


def _closed_classes(matrix: Array) -> list[list[int]]:
    """互いに行き来でき、外へ出られない状態の組をすべて返す。定常分布の個数はこの組の数で決まる。"""
    n_states = len(matrix)
    reachable = (matrix > 0) | np.eye(n_states, dtype=bool)
    for _ in range(max(1, n_states.bit_length())):  # 2 乗を重ね、何歩でもたどり着ける先を求める
        reachable = reachable.astype(np.float64) @ reachable > 0
    classes = {
        tuple(np.flatnonzero(reachable[state]).tolist())
        for state in range(n_states)
        if (reachable[:, state] >= reachable[state]).all()  # 行ける先のすべてから戻れる
    }
    return [list(states) for states in sorted(classes)]


# ---- k 次のスイッチング情報源 -----------------------------------------------------------


@dataclass(frozen=True)
class MarkovSource:
    """記号 0 と 1 を出す k 次のスイッチング情報源(Rajaraman+ 2024, 2404.08335)。

    次の記号は、ちょうど k 個前の記号だけで決まる。

        Pr(x_n = 1 | x_{n-k} = 0) = p,    Pr(x_n = 0 | x_{n-k} = 1) = q

    p と q は記号が切りかわる確率。間にある k - 1 個は予測の役に立たず、モデルは「何個前を見れば
    よいか」を見つけなければならない。

    Args:
        order: 次数 k (1 以上 12 以下)。
        p: 0 のあとに 1 が出る確率 (0 < p < 1)。
        q: 1 のあとに 0 が出る確率 (0 < q < 1)。

    Raises:
        TypeError: `order` が整数でない、`p`・`q` が数でないとき。
        ValueError: 範囲の外のとき。
    """

    order: int = 2
    p: float = 0.8
    q: float = 0.8

    def __post_init__(self) -> None:
        if require_int(self.order, "order", minimum=1) > 12:
            raise ValueError(f"order は 12 以下にしてください(状態は 2^order 個): {self.order}")
        for name in ("p", "q"):
            value = require_number(getattr(self, name), name)
            if not 0 < value < 1:
                raise ValueError(f"{name} は 0 より大きく 1 より小さい確率にしてください: {value}")

    def sample(self, n: int, generator: np.random.Generator) -> NDArray[np.int8]:
        """定常状態から始めて `n` 記号の列 (n,) を引く。

        Raises:
            TypeError: `n` が整数でない、`generator` が numpy.random.Generator でないとき。
            ValueError: `n` が負のとき。
        """
        n = require_int(n, "n", minimum=0)
        if not isinstance(generator, np.random.Generator):
            raise TypeError(
                "generator には numpy.random.default_rng(0) のような乱数生成器を渡してください: "
                f"{shown(generator)}"
            )
        uniform = generator.random(n)
        symbols = (uniform < self.p / (self.p + self.q)).astype(np.int8).tolist()  # 最初の k 個
        to_one = (uniform < self.p).tolist()  # k 個前が 0 なら次の記号はこれ
        to_zero = (uniform < self.q).tolist()  # k 個前が 1 なら、これが真のとき 0
        for i in range(self.order, n):
            symbols[i] = 1 - to_zero[i] if symbols[i - self.order] else int(to_one[i])
        return np.array(symbols, dtype=np.int8)

    def transition_matrix(self) -> Array:
        """直近 k 記号を状態とみた 1 次の連鎖の推移確率行列 (2^k, 2^k) を返す。

        状態 s は直近 k 記号を古いほうから並べた 2 進数。次の記号を b とすると、いちばん古い記号が
        抜けて状態は (2s + b) mod 2^k に移る。
        """
        n_states = 2**self.order
        matrix = np.zeros((n_states, n_states))
        for state in range(n_states):
            oldest = state >> (self.order - 1)  # x_{n-k}
            one = 1 - self.q if oldest else self.p
            matrix[state, 2 * state % n_states] += 1 - one
            matrix[state, (2 * state + 1) % n_states] += one
        return matrix

    def unigram_entropy(self) -> float:
        """一記号だけを見た分布 (q, p)/(p+q) のエントロピー (nat/記号)。

        前の記号を一切使わないモデル(文字のユニグラムモデル)の、最良の交差エントロピー。
        """
        one = self.p / (self.p + self.q)
        return float(_entropies(np.array([[1 - one, one]]))[0])

    def entropy_rate(self) -> float:
        """エントロピーレート (nat/記号)。どんなモデルもこれより下へは行けない。"""
        return entropy_rate(self.transition_matrix())


# ---- 二文字の列を BPE のトークンに ------------------------------------------------------


@dataclass(frozen=True)
class PairTokenizer:
    """記号 0 と 1 の列を BPE のトークンの id の列に直す、2.7 節の実験のための速い符号化器。

    どのトークンも、内部では Unicode の一文字で表す。一文字どうしの組なので、2.3 節で誤りだった
    str.replace が、ここでは「左から順に、重ならないように組を一つにする」正しい操作になる。

    Attributes:
        merges: マージする id の組を、行う順に並べたもの。i 番目のマージの結果の id は 2 + i。
    """

    merges: tuple[tuple[int, int], ...]

    @classmethod
    def train(cls, symbols: Sequence[int] | NDArray[np.int8], vocab_size: int) -> "PairTokenizer":
        """`symbols` の中で最も多い隣りあう組を、語彙が `vocab_size` になるまで一つにしていく。

        同数なら id の小さい組を選ぶ。2 回以上現れる組がなくなればそこで止める。

        Raises:
            TypeError: `vocab_size` が整数でないとき。
            ValueError: `vocab_size` が 2 から 50,000 の外、`symbols` に 0 と 1 以外があるとき。
        """
        if require_int(vocab_size, "vocab_size", minimum=2) > 50_000:
            raise ValueError(f"vocab_size は 50,000 以下にしてください: {vocab_size}")
        text, merges = _as_text(symbols), []
        for new in range(2, vocab_size):
            pairs = Counter(pairwise(text))
            if not pairs or max(pairs.values()) < 2:
                break
            (left, right), _ = min(pairs.items(), key=lambda item: (-item[1], item[0]))
            merges.append((ord(left), ord(right)))
            text = text.replace(left + right, chr(new))
        return cls(tuple(merges))

    def encode(self, symbols: Sequence[int] | NDArray[np.int8]) -> NDArray[np.int64]:
        """0 と 1 の列をトークンの id の列に直す。

        Raises:
            ValueError: `symbols` に 0 と 1 以外があるとき。
        """
        text = _as_text(symbols)
        for new, (left, right) in enumerate(self.merges, start=2):
            text = text.replace(chr(left) + chr(right), chr(new))
        return np.fromiter(map(ord, text), dtype=np.int64, count=len(text))

    def pieces(self) -> list[str]:
        """id の順に、各トークンが表す "0" と "1" の列を返す。"""
        pieces = ["0", "1"]
        for left, right in self.merges:
            pieces.append(pieces[left] + pieces[right])
        return pieces


def unigram_cross_entropy(ids: Sequence[int] | NDArray[np.int64], n_symbols: int) -> float:
    """トークン列 `ids` に最もよく合うユニグラムモデルの、元の一記号あたりの交差エントロピー (nat)。

    -Σ_v c_v ln(c_v / N) / n_symbols(c_v は id v の回数、N = Σ c_v)。最良のユニグラムモデルの確率は
    相対頻度 c_v / N である。トークナイザーのあるなしを同じ単位で比べるために、トークンの数ではなく
    元の記号の数 `n_symbols` で割る。

    Raises:
        TypeError: `n_symbols` が整数でないとき。
        ValueError: `ids` が空、または `n_symbols` がその長さより小さいとき。
    """
    counts = np.unique(np.asarray(ids), return_counts=True)[1].astype(np.float64)
    if counts.size == 0:
        raise ValueError("ids が空です。一つ以上のトークンを渡してください")
    n_symbols = require_int(n_symbols, "n_symbols", minimum=int(counts.sum()))
    return float(-(counts * np.log(counts / counts.sum())).sum() / n_symbols)


def _as_text(symbols: Sequence[int] | NDArray[np.int8]) -> str:
    """0 と 1 の列を、符号位置がそのまま id である文字列に直す。"""
    array = np.asarray(symbols)
    if array.ndim != 1 or not np.isin(array, (0, 1)).all():
        raise ValueError(f"symbols は 0 と 1 を一列に並べたものにしてください: {shown(symbols)}")
    return require_text(array.astype(np.uint8).tobytes().decode("ascii"), "symbols")
