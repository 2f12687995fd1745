"""4.3.1 節(文脈内学習と勾配降下)の演習の採点。"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.learning import Case, grade

Array = NDArray[np.float64]


def check_dual_form(my_output: Callable[[Array, Array, Array, float, Array], Array]) -> None:
    """勾配降下で一歩動かした線形層の出力を、重みを作らずに求める関数を採点する。"""
    both = "W_0 x に、線形注意 Σ v_i (x_i · x) を足します"
    error = "バリューは -η × 誤差 (W_0 x_i - y_i) です。答え y_i そのものではありません"
    total = "損失は二乗誤差の半分の和です(平均ではないので、N で割りません)"
    key = "キーは x_i、クエリーは x です。まず (N,) の内積を作ります"
    still = "η = 0 なら、動かす前の出力 W_0 x です"
    generator = np.random.default_rng(0)
    w0, xs, ys, x = (generator.normal(size=s) for s in ((3, 4), (6, 4), (6, 3), (4,)))
    hand = np.array([[1.0, 0.0]]), np.array([[1.0, 0.0], [1.0, 1.0]]), np.array([[2.0], [0.0]])
    fitted = xs @ w0.T

    def case(edge: str, hint: str, *args: Any) -> Case:
        return Case(args, _dual(*args), edge, hint, 1e-9)

    cases = [
        case("本文の手計算", f"{both}。{error}", *hand, 0.5, np.array([2.0, 1.0])),
        case("W_0 = 0", f"{error}。{key}", 0 * w0, xs, ys, 0.1, x),
        case("6 個の例", f"{error}。{total}", w0, xs, ys, 0.1, x),
        case("誤差が 0", f"誤差がなければ、重みは動きません。{error}", w0, xs, fitted, 0.1, x),
        case("η = 0", still, w0, xs, ys, 0.0, x),
    ]
    grade("4.3.1b 演習 3", my_output, cases)


def _dual(w0: Array, xs: Array, ys: Array, lr: float, x: Array) -> Array:
    """W_0 x + Σ_i (-η e_i) (x_i · x)、e_i = W_0 x_i - y_i(Dai+ 2023, 式 (9))。"""
    errors = xs @ w0.T - ys  # (N, d_out)
    return w0 @ x - lr * (xs @ x) @ errors


def check_layers(my_prediction: Callable[[Array, Array, Array, float, int], float]) -> None:
    """例の y を残差に替えていくだけで、勾配降下 k 歩の予測を求める関数を採点する。"""
    one = "一層で、問いの予測に (η / N) Σ_i y_i (x_i · x) を足します"
    residual = "層を通るたびに、例の y_i も残差 y_i - (η / N) Σ_j y_j (x_j · x_i) に替えます"
    together = "残差は、層に入る前の y だけから、すべて同時に作ります(更新した y を混ぜません)"
    average = "η を例の数 N で割ります"
    zero = "層が 0 なら、重み 0 のままの予測 0.0 です"
    generator = np.random.default_rng(0)
    xs, x, w = (generator.normal(size=s) for s in ((6, 3), (3,), (3,)))
    ys = xs @ w
    hand = np.array([[1.0], [2.0]]), np.array([2.0, 4.0]), np.array([3.0])

    def case(edge: str, hint: str, *args: Any) -> Case:
        return Case(args, _layers(*args), edge, hint, 1e-9)

    cases = [
        case("1 次元", f"{one}。{average}", *hand, 0.2, 1),
        case("1 層", f"{one}。{average}", xs, ys, x, 0.5, 1),
        case("1 次元で 2 層", f"{residual}。{together}", *hand, 0.2, 2),
        case("2 層", f"{residual}。{together}", xs, ys, x, 0.5, 2),
        case("5 層", f"{residual}。{together}", xs, ys, x, 0.3, 5),
        case("0 層", zero, xs, ys, x, 0.5, 0),
    ]
    grade("4.3.1b 演習 4", my_prediction, cases)


def _layers(xs: Array, ys: Array, x: Array, rate: float, layers: int) -> float:
    """重みのほうを動かす勾配降下(von Oswald+ 2023, 式 (3))。残差を回すのと等しい。"""
    w = np.zeros_like(x)
    for _ in range(layers):
        w = w - rate * (xs @ w - ys) @ xs / len(xs)
    return float(w @ x)
