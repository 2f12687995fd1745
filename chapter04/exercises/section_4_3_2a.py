"""4.3.2 節前半(SFT と LoRA)の演習の採点。"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from shared.learning import Case, grade

Array = NDArray[np.float64]
Ids = NDArray[np.int64]
USER, ASSISTANT, END, IGNORED = 1, 2, 0, -100


def check_chat_targets(my_targets: Callable[[Ids, int, int, int, int], Ids]) -> None:
    """対話の id (T,) から、答えの所だけを残した目標 (T - 1,) を採点する。

    引数は、id の並び、<|user|>・<|assistant|>・<|endoftext|> の id、損失に数えない所の印。
    """
    shift = "位置 t の目標は、次のトークン ids[t + 1] です。長さは 1 個短くなります"
    stop = "答えの終わりの <|endoftext|> も当てさせます(止まることを教えるためです)"
    prompt = "指示と、<|user|>・<|assistant|> そのものは、数えません"
    turns = "往復が何度あっても、答えはどれも数えます"
    next_user = "<|endoftext|> の後の <|user|> は、人が書く所なので、数えません"
    silent = "<|assistant|> がなければ、数える所はありません"

    def case(ids: list[int], edge: str, hint: str) -> Case:
        row = np.array(ids)
        args = (row, USER, ASSISTANT, END, IGNORED)
        return Case(args, _chat_targets(*args), edge, hint)

    cases = [
        case([1, 5, 6, 2, 7, 0], "一往復", f"{shift}。{stop}。{prompt}"),
        case([1, 5, 2, 7, 8, 9, 0], "長い答え", f"{shift}。{stop}。{prompt}"),
        case([1, 5, 2, 7, 0, 1, 6, 6, 2, 8, 9, 0], "二往復", f"{turns}。{next_user}"),
        case([1, 5, 2, 7, 8], "途中で切れた答え", "終わりの印がなくても、答えは数えます"),
        case([1, 5, 6, 4], "指示だけ", silent),
    ]
    grade("4.3.2a 演習 3", my_targets, cases)


def _chat_targets(ids: Ids, user: int, assistant: int, end: int, ignored: int) -> Ids:
    """いちばん近い印が <|assistant|> である位置の、次のトークン。"""
    targets, answering = [], False
    for now, following in zip(ids[:-1].tolist(), ids[1:].tolist(), strict=True):
        if now in (user, assistant, end):
            answering = now == assistant
        targets.append(following if answering else ignored)
    return np.array(targets)


def check_lora_gradients(
    my_gradients: Callable[[Array, Array, Array, Array, float], tuple[Array, Array]],
) -> None:
    """LoRA の h = W_0 x + (α / r) B A x の、(∂L/∂A, ∂L/∂B) を採点する。

    引数は、x (N, d_in)、出力の勾配 g = ∂L/∂h (N, d_out)、A (r, d_in)、B (d_out, r)、α。
    """
    order = "∂L/∂A (r, d_in)、∂L/∂B (d_out, r) の順の tuple で返します"
    chain = "h に掛かるのは B A x です。∂L/∂B = (α / r) g^T (x A^T)、∂L/∂A = (α / r) (g B)^T x"
    scale = "係数は α / r です。r は A の行の数"
    start = "B = 0 なら、A の勾配は 0、B の勾配は 0 ではありません"
    total = "例についての和です(平均ではありません)"
    generator = np.random.default_rng(0)
    x, g = generator.normal(size=(5, 4)), generator.normal(size=(5, 3))
    a, b = generator.normal(size=(2, 4)), generator.normal(size=(3, 2))
    one = (np.array([[1.0, 1.0]]), np.array([[1.0, 0.0]]), np.array([[3.0, -1.0]]))

    def case(args: tuple[Array, Array, Array, Array, float], edge: str, hint: str) -> Case:
        return Case(args, _lora_gradients(*args), edge, hint, 1e-9)

    cases = [
        case((*one, np.array([[1.0], [2.0]]), 1.0), "手で計算できる", f"{order}。{chain}"),
        case((x, g, a, b, 2.0), "α = r", f"{chain}。{total}"),
        case((x, g, a, b, 6.0), "α = 3 r", scale),
        case((x, g, a, np.zeros((3, 2)), 2.0), "付けた直後", start),
    ]
    grade("4.3.2a 演習 4", my_gradients, cases)


def _lora_gradients(x: Array, g: Array, a: Array, b: Array, alpha: float) -> tuple[Array, Array]:
    """連鎖律。s = α / r として、∂L/∂A = s (g B)^T x、∂L/∂B = s g^T x A^T。"""
    scale = alpha / len(a)
    return scale * (g @ b).T @ x, scale * g.T @ (x @ a.T)
