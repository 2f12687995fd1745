"""測定の結果を docs/benchmarks.md の、印で挟まれた場所に書く。"""

from pathlib import Path

from shared.files import write_atomically

REPORT = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"


def publish(name: str, markdown: str) -> None:
    """`<!-- name:begin -->` と `<!-- name:end -->` の間を `markdown` に置きかえる。

    Raises:
        ValueError: 印が一組でないとき。
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    text = REPORT.read_text(encoding="utf-8")
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"docs/benchmarks.md には {begin} と {end} が一つずつ必要です")
    head, rest = text.split(begin)
    write_atomically(REPORT, f"{head}{begin}\n\n{markdown}\n\n{end}{rest.split(end)[1]}")
