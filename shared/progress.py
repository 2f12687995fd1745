"""学習の進み具合の表示。端末とノートブックの進行表示と、ノートブックで描き直される損失の図。"""

import os
import sys
import time
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

REDRAW_EVERY = 2.0  # 図を描き直す間隔(秒)


class Progress:
    """`total` ステップの学習の表示。`history` は、呼び出し側が書き足していく記録。

    環境変数 GENAI_NOTES_STRICT があるとき(検査のとき)は、何も出さない。進行表示は端末か
    ノートブックだけに、図はノートブックだけに出す。
    """

    def __init__(self, total: int, history: list[dict[str, Any]], bar: bool, plot: bool) -> None:
        notebook = "ipykernel" in sys.modules
        seen = (notebook or sys.stderr.isatty()) and "GENAI_NOTES_STRICT" not in os.environ
        self.history = history
        self.bar = (
            tqdm(total=total, initial=len(history), unit="ステップ") if bar and seen else None
        )
        self.plot = LossPlot() if plot and notebook and seen else None

    def __enter__(self) -> "Progress":
        return self

    def update(self) -> None:
        """1 ステップ進める。"""
        if self.bar is not None:
            self.bar.set_postfix(_numbers(self.history[-1]), refresh=False)
            self.bar.update()
        if self.plot is not None:
            self.plot.update(self.history)

    def __exit__(self, *_: object) -> None:
        """表示を閉じる。図は最後の状態で残る。"""
        if self.bar is not None:
            self.bar.close()
        if self.plot is not None and self.history:
            self.plot.draw(self.history)


class LossPlot:
    """損失の曲線を、ノートブックの同じ場所に描き直す。"""

    def __init__(self) -> None:
        self.handle: Any = None
        self.drawn = time.monotonic()

    def update(self, history: list[dict[str, Any]]) -> None:
        """前に描いてから REDRAW_EVERY 秒たっていれば描き直す。"""
        if time.monotonic() - self.drawn >= REDRAW_EVERY:
            self.draw(history)

    def draw(self, history: list[dict[str, Any]]) -> None:
        """今の記録を描く。"""
        # 図を使わない学習では読みこまない。
        import matplotlib.pyplot as plt  # noqa: PLC0415
        from IPython.display import display  # noqa: PLC0415

        from shared import plotting  # noqa: PLC0415

        ax = plotting.axes("学習の進み具合", "ステップ", "損失")
        ax.plot([record["step"] for record in history], [record["loss"] for record in history])
        figure = ax.get_figure(root=True)
        if self.handle is None:
            self.handle = display(figure, display_id=True)
        else:
            self.handle.update(figure)
        plt.close(figure)  # 閉じないと、セルの終わりにもう一度出る
        self.drawn = time.monotonic()


def _numbers(record: Mapping[str, Any]) -> dict[str, str]:
    return {name: f"{value:.4g}" for name, value in record.items() if name != "step"}
