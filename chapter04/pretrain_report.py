"""GPT の事前学習の記録: docs/runs に書く、成績・学習曲線・種で選んだ文。"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from shared import plotting
from shared.archives import ARCHIVES
from shared.files import write_atomically
from shared.run_report import smoothed, table

NAME = "4.1_japanese_gpt"
PARTS = {"train": "学習", "validation": "検証", "test": "試験"}


@dataclass(frozen=True)
class Report:
    """一度の学習の記録。

    Attributes:
        settings: 学習の設定 {名前: 値}。
        documents: 文書の数 {"train" など: 数}。
        facts: manifest.toml に記した素性。
        history: 1 ステップが 1 件の記録(loss、評価した所では validation_bits)。
        samples: 種で選んだ文。
    """

    settings: Mapping[str, Any]
    documents: Mapping[str, int]
    facts: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]
    samples: Sequence[str]

    def write(self, folder: Path) -> Path:
        """`folder` に学習曲線(SVG)と記録(Markdown)を書き、記録の場所を返す。

        Raises:
            OSError: 書き込めないとき。
        """
        folder.mkdir(parents=True, exist_ok=True)
        draw_curves(self.history, folder / f"{NAME}.svg")
        return write_atomically(folder / f"{NAME}.md", self.markdown())

    def markdown(self) -> str:
        """記録の本文。"""
        counts = "、".join(f"{label} {self.documents[x]:,}" for x, label in PARTS.items())
        bits = self.facts["metrics"]["test_bits_per_byte"]
        last = self.facts["other_schedule"]
        other = (
            f"- はじめの {last:,} ステップの学習率は、別の歩数(`--steps`)の予定によるもの\n"
            if last
            else ""
        )
        samples = table(
            ("番号", "文"), [(str(i), sample) for i, sample in enumerate(self.samples, 1)]
        )
        settings = table(("名前", "値"), [(k, str(v)) for k, v in self.settings.items()])
        return f"""\
# 4.1 節の日本語の GPT の、事前学習の記録

この記録は、次の命令が学習の終わりに書き出したものです。

    {self.facts["command"]}

- 歩み: {self.facts["steps"]:,} ステップ、{self.facts["tokens"]:,} トークン
{other}- 機器: {self.facts["device"]}
- 時間: CPU 時間で {self.facts["cpu_hours"]:.2f} 時間(途中の評価も含み、終わりの試験は含みません)
- 文書(重複を除いた数): {counts}
- 乱数の種: {self.facts["seed"]}(一つだけ。種を替えたときの散らばりは測っていません)
- 試験の文書での負の対数確率: **{bits:.4f} bit/byte**(文書の終わりの区切りも当てます)

試験の文書は、学習と検証のどの文書とも、大文字と小文字・記号・空白を除いて違うものです。

## 学習曲線

![左は学習の損失、右は検証の文書での 1 バイトあたりのビット数。横軸はステップ]({NAME}.svg)

学習の損失はドロップアウトの掛かった値で、その時の重みによります。検証の値はドロップアウトを掛けず、
重みの移動平均で測っています。配る重みもこの移動平均で、上の成績はその重みのものです。

## 書いた文 {len(self.samples)} 文

書き出しを与えず、温度 {self.settings["temperature"]}、top-p {self.settings["top_p"]}、種 \
{self.facts["seed"]} で書かせたままの並びです。良いものを選び出してはいません。

{samples}

## 設定

{settings}

既定の文書の出典は {ARCHIVES["tatoeba"].credit} (CC BY 2.0 FR) です。
"""


def draw_curves(history: Sequence[Mapping[str, Any]], path: Path) -> None:
    """学習の損失(100 ステップずつの平均)と、検証の 1 バイトあたりのビット数を SVG で書く。"""
    found = [record for record in history if "validation_bits" in record]
    with mpl.rc_context():
        plotting.setup()
        figure = Figure(figsize=(8.4, 3.4), layout="constrained")
        left, right = figure.subplots(1, 2)
        left.plot(*smoothed([record["loss"] for record in history]))
        left.set(title="学習の損失", xlabel="ステップ", ylabel="損失 [nat/トークン]")
        right.plot(
            [record["step"] for record in found],
            [record["validation_bits"] for record in found],
            color=plotting.GREEN,
        )
        right.set(title="検証", xlabel="ステップ", ylabel="負の対数確率 [bit/byte]")
        plotting.save_svg(figure, path)
