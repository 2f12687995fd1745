"""3.1 節(全体像)の演習の採点。"""

from collections.abc import Callable

from shared.learning import Case, grade

Shape = tuple[int, ...]


def check_table_shapes(my_table_shapes: Callable[..., tuple[Shape, ...]]) -> None:
    """エンコーダーの出口、デコーダーの出口、logits、交差注意の重みの形を答える関数を採点する。"""
    sides = "交差注意では、見る側(出力の語)が行、見られる側(入力の語)が列です"
    cases = []
    for batch, src, tgt, d, vocab in ((1, 4, 7, 8, 9), (3, 5, 2, 16, 30), (2, 6, 6, 4, 5)):
        shapes = ((batch, src, d), (batch, tgt, d), (batch, tgt, vocab), (batch, tgt, src))
        cases.append(Case((batch, src, tgt, d, vocab), shapes, hint=sides))
    grade("3.1 演習 3", my_table_shapes, cases)


def check_decoder_only_parameters(my_count: Callable[[int, int, int, int], int]) -> None:
    """エンコーダーも交差注意もない、GPT 型のモデルのパラメーター数を数える関数を採点する。"""

    def count(d: int, d_ff: int, n_layers: int, vocab: int) -> int:
        layer = 4 * d * d + (2 * d * d_ff + d_ff + d) + 2 * 2 * d
        return vocab * d + n_layers * layer + 2 * d

    final = "塔の出口の正規化 2d を忘れていませんか"
    no_cross = "交差注意はないので、注意は一階に一つです"
    sizes = [(4, 8, 1, 10), (512, 2048, 6, 37_000), (8, 8, 3, 1)]
    cases = [Case(size, count(*size), hint=f"{final}。{no_cross}") for size in sizes]
    cases.append(Case((4, 8, 0, 10), 48, "0 階の塔", "埋め込みと出口の正規化だけが残ります"))
    grade("3.1 演習 4", my_count, cases)
