"""references.bib から論文地図 docs/paper-map.svg を作る。

    python docs/paper_map.py           地図を書き直す
    python docs/paper_map.py --check   地図が古ければ 1 を返して終わる (何も書かない)

標準ライブラリーだけで動き、同じ references.bib からは必ず同じバイト列ができる。
"""

from __future__ import annotations

import html
import itertools
import re
import sys
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).resolve().parent
BIB = DOCS.parent / "references.bib"
SVG = DOCS / "paper-map.svg"

# 色覚によらず見分けやすい Okabe-Ito の配色。章の番号も書くので、色だけには頼らない。
CHAPTERS = {
    "1": ("第1章 論文を読み解く技術", "#000000"),
    "2": ("第2章 入力データの特徴量化", "#0072B2"),
    "3": ("第3章 Transformer", "#D55E00"),
    "4": ("第4章 GPT とテキスト生成", "#009E73"),
    "5": ("第5章 拡散モデルと画像生成", "#CC79A7"),
    "6": ("第6章 テキストと画像の融合", "#E69F00"),
    "7": ("第7章 スケーリング則", "#56B4E9"),
    "8": ("第8章 評価", "#6F6F6F"),
}
# 同じ段に並べる章と、それぞれが使う列の数 (合わせて 6 列まで)。
SHELVES = (
    (("1", 6),),
    (("2", 6),),
    (("3", 6),),
    (("4", 6),),
    (("5", 6),),
    (("6", 6),),
    (("7", 4), ("8", 2)),
)
WIDTH, MARGIN = 1080, 24
NODE_W, NODE_H, GAP_X, GAP_Y = 160, 48, 14, 30
TAG_H = 21  # 別の章の論文を指す札 1 枚の高さ
TOP, BAND_HEAD, BAND_FOOT, BAND_GAP = 92, 40, 16, 10


@dataclass(frozen=True)
class Paper:
    """文献 1 件 (地図に要る項目だけ)。"""

    key: str
    fields: dict[str, str]

    @property
    def sections(self) -> list[str]:
        """扱う節の番号。先頭がその論文の家。"""
        return _comma_separated(self.fields["sections"])

    @property
    def builds_on(self) -> list[str]:
        """先に読んでおくと楽になる論文のキー。"""
        return _comma_separated(self.fields["builds_on"])

    @property
    def chapter(self) -> str:
        """家の章番号。"""
        return self.sections[0].split(".")[0]

    @property
    def byline(self) -> str:
        """「Sennrichら 2016」の形の著者と年。"""
        authors = self.fields["author"].split(" and ")
        name = authors[0].split(",")[0].strip("{}")
        return f"{name}{'ら' if len(authors) > 1 else ''} {self.fields['year']}"


def _comma_separated(value: str) -> list[str]:
    return [item.strip() for item in value.split(",") if item.strip()]


def read_bib(text: str) -> dict[str, Paper]:
    """BibTeX を読む。項目は `名前 = {値}` の 1 行 1 項目に限る (本リポジトリーの書き方)。"""
    papers: dict[str, Paper] = {}
    for entry in re.finditer(r"^@\w+\{([^,\s]+),\n(.*?)^\}", text, re.MULTILINE | re.DOTALL):
        key, body = entry.groups()
        pairs = re.findall(r"^\s*(\w+)\s*=\s*\{(.*)\},$", body, re.MULTILINE)
        if key in papers:
            raise ValueError(f"references.bib に {key} が 2 回あります。")
        papers[key] = Paper(key, dict(pairs))
    if len(papers) != len(re.findall(r"^@", text, re.MULTILINE)):
        raise ValueError(
            "references.bib に読み取れない項目があります。1 行 1 項目で書いてください。"
        )
    return papers


def depth(papers: dict[str, Paper], key: str, same_chapter: bool = False) -> int:
    """builds_on をさかのぼる最長の道の長さ。循環していれば ValueError。"""

    def walk(current: str, path: tuple[str, ...]) -> int:
        if current in path:
            raise ValueError("builds_on が循環しています: " + " → ".join([*path, current]))
        home = papers[current].chapter
        parents = [p for p in papers[current].builds_on if p in papers]
        if same_chapter:
            parents = [p for p in parents if papers[p].chapter == home]
        return max((walk(p, (*path, current)) + 1 for p in parents), default=0)

    return walk(key, ())


def column_x(column: int) -> float:
    """列の中心の x 座標。"""
    return MARGIN + NODE_W / 2 + column * (NODE_W + GAP_X)


def place(
    papers: dict[str, Paper],
) -> tuple[dict[str, tuple[float, float]], dict[str, tuple[float, float, float, float]], float]:
    """各論文の中心座標、各章の帯 (x, y, 幅, 高さ)、全体の高さを決める。

    帯の中は builds_on の深さで行に分け、行の中は親のなるべく真下に来る列を総当たりで選ぶ。
    """
    position: dict[str, tuple[float, float]] = {}
    bands: dict[str, tuple[float, float, float, float]] = {}
    tags = {key: len(found) for key, found in links(papers)[1].items()}
    top = float(TOP)
    for shelf in SHELVES:
        first, bottom = 0, top
        for chapter, count in shelf:
            columns = range(first, first + count)
            bottom = max(
                bottom,
                _place_chapter(
                    papers, chapter, columns=columns, top=top, position=position, tags=tags
                ),
            )
            first += count
        first = 0
        for chapter, count in shelf:
            x = column_x(first) - NODE_W / 2 - 6
            width = count * (NODE_W + GAP_X) - 2
            bands[chapter] = (x, top, width, bottom - top)
            first += count
        top = bottom + BAND_GAP
    return position, bands, top + 4


def _place_chapter(
    papers: dict[str, Paper],
    chapter: str,
    *,
    columns: range,
    top: float,
    position: dict[str, tuple[float, float]],
    tags: dict[str, int],
) -> float:
    """1 つの章の論文を position に書き込み、帯の下端を返す。"""
    y = top + BAND_HEAD - GAP_Y
    members = [p for p in papers.values() if p.chapter == chapter]
    rank = {p.key: depth(papers, p.key, same_chapter=True) for p in members}
    for level in sorted(set(rank.values())):
        row = [p for p in members if rank[p.key] == level]
        for start in range(0, len(row), len(columns)):
            chunk = row[start : start + len(columns)]
            y += GAP_Y + TAG_H * max(tags.get(p.key, 0) for p in chunk)
            for paper, column in zip(
                chunk, _best_columns(papers, chunk, columns, position), strict=True
            ):
                position[paper.key] = (column_x(column), y + NODE_H / 2)
            y += NODE_H
    return y + BAND_FOOT


def _best_columns(
    papers: dict[str, Paper],
    row: list[Paper],
    columns: range,
    position: dict[str, tuple[float, float]],
) -> tuple[int, ...]:
    wanted: list[float | None] = []
    for paper in row:
        near = [p for p in paper.builds_on if papers[p].chapter == paper.chapter]
        xs = [position[parent][0] for parent in near]
        wanted.append(sum(xs) / len(xs) if xs else None)

    def cost(chosen: tuple[int, ...]) -> tuple[float, tuple[int, ...]]:
        pairs = zip(chosen, wanted, strict=True)
        moved = (0.0 if w is None else abs(column_x(c) - w) for c, w in pairs)
        return (round(sum(moved), 3), chosen)

    return min(itertools.permutations(columns, len(row)), key=cost)


def links(papers: dict[str, Paper]) -> tuple[list[tuple[str, str]], dict[str, list[str]]]:
    """章の中の (親, 子) の矢印と、子ごとの「別の章の親」(札にして子の上に置く)。

    ほかの矢印をたどれば届くものは、絵を見やすくするために省く。
    """

    def ancestors(key: str) -> set[str]:
        found: set[str] = set()
        for parent in papers[key].builds_on:
            found |= {parent} | ancestors(parent)
        return found

    arrows: list[tuple[str, str]] = []
    tags: dict[str, list[str]] = {}
    for child, paper in papers.items():
        for parent in paper.builds_on:
            others = (other for other in paper.builds_on if other != parent)
            if any(parent in ancestors(other) for other in others):
                continue
            if papers[parent].chapter == paper.chapter:
                arrows.append((parent, child))
            else:
                tags.setdefault(child, []).append(parent)
    return arrows, tags


def _edge_svg(start: tuple[float, float], end: tuple[float, float], color: str) -> str:
    x1, y1 = start[0], start[1] + NODE_H / 2
    x2, y2 = end[0], end[1] - NODE_H / 2 - 5
    bend = max(14.0, (y2 - y1) * 0.5)
    curve = f"M{x1:g} {y1:g}C{x1:g} {y1 + bend:g} {x2:g} {y2 - bend:g} {x2:g} {y2:g}"
    tip = f"M{x2 - 4:g} {y2 - 2:g}L{x2 + 4:g} {y2 - 2:g}L{x2:g} {y2 + 5:g}Z"
    return (
        f'<path d="{curve}" fill="none" stroke="{color}" stroke-width="1.8" opacity="0.75"/>'
        f'<path d="{tip}" fill="{color}"/>'
    )


def _tag_svg(parent: Paper, child: tuple[float, float], index: int) -> str:
    y = child[1] - NODE_H / 2 - TAG_H * (index + 1)
    x = child[0] - NODE_W / 2
    color = CHAPTERS[parent.chapter][1]
    text = f"第{parent.chapter}章 {html.escape(parent.fields['label'])}"
    return (
        f'<rect x="{x + 6:g}" y="{y:g}" width="{NODE_W - 12}" height="{TAG_H - 4}" rx="8.5" '
        f'fill="#ffffff" stroke="{color}" stroke-dasharray="3 2"/>'
        f'<circle cx="{x + 16:g}" cy="{y + 8.5:g}" r="4" fill="{color}"/>'
        f'<text x="{x + 25:g}" y="{y + 12.5:g}" class="tag">{text}</text>'
        f'<path d="M{child[0]:g} {y + TAG_H - 4:g}v4" stroke="{color}" stroke-width="1.8"/>'
    )


def _node_svg(paper: Paper, center: tuple[float, float]) -> str:
    x, y = center[0] - NODE_W / 2, center[1] - NODE_H / 2
    color = CHAPTERS[paper.chapter][1]
    label, byline = html.escape(paper.fields["label"]), html.escape(paper.byline)
    title = html.escape(paper.fields["title"].strip("{}").replace("\\&", "&"))
    detail = f"{byline} · {paper.sections[0]}"
    body = (
        f"<title>{title}</title>"
        f'<rect x="{x:g}" y="{y:g}" width="{NODE_W}" height="{NODE_H}" rx="8" fill="#ffffff" '
        f'stroke="{color}" stroke-width="2"/>'
        f'<rect x="{x:g}" y="{y + 8:g}" width="5" height="{NODE_H - 16}" fill="{color}"/>'
        f'<text x="{center[0] + 2:g}" y="{y + 20:g}" class="label">{label}</text>'
        f'<text x="{center[0] + 2:g}" y="{y + 38:g}" class="byline">{detail}</text>'
    )
    url = paper.fields.get("url")
    return f'<a href="{html.escape(url)}">{body}</a>' if url else f"<g>{body}</g>"


def render(papers: dict[str, Paper]) -> str:
    """地図の SVG。背景を自分で持つので、明るい画面でも暗い画面でも同じに見える。"""
    position, bands, height = place(papers)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" '
        f'width="{WIDTH}" height="{height:g}" role="img" aria-labelledby="t d">',
        '<title id="t">論文地図</title>',
        '<desc id="d">章ごとに並べた論文と、先に読んでおくと楽になる論文からの矢印</desc>',
        "<style>text{font-family:'Hiragino Sans','Noto Sans CJK JP','Noto Sans JP','Yu Gothic UI',"
        "Meiryo,sans-serif;fill:#1f2328}.label{font-size:13.5px;font-weight:700;text-anchor:middle}"
        ".tag{font-size:9.8px}.byline{font-size:10.6px;fill:#57606a;text-anchor:middle}.band{font-size:15px;font-weight:700}"
        ".head{font-size:22px;font-weight:700}.sub{font-size:13px;fill:#57606a}</style>",
        f'<rect width="{WIDTH}" height="{height:g}" rx="14" fill="#fbfbf8"/>',
        f'<text x="{MARGIN}" y="42" class="head">論文地図</text>',
        f'<text x="{MARGIN}" y="68" class="sub">矢印の根元の論文を先に読んでおくと、'
        "先の論文が楽になります。破線の札は、別の章の論文を先に読む、という印です。</text>",
    ]
    for chapter, (x, y, band_width, band_height) in bands.items():
        name, color = CHAPTERS[chapter]
        band = f'x="{x:g}" y="{y:g}" width="{band_width:g}" height="{band_height:g}" rx="10"'
        parts.append(f'<rect {band} fill="{color}" opacity="0.10"/>')
        parts.append(f'<circle cx="{x + 18:g}" cy="{y + 20:g}" r="6" fill="{color}"/>')
        parts.append(f'<text x="{x + 31:g}" y="{y + 25.5:g}" class="band">{name}</text>')
    arrows, tags = links(papers)
    for parent, child in arrows:
        color = CHAPTERS[papers[parent].chapter][1]
        x, y = position[child]
        above_tags = (x, y - TAG_H * len(tags.get(child, [])))
        parts.append(_edge_svg(position[parent], above_tags, color))
    for child, parents in tags.items():
        for index, parent in enumerate(parents):
            parts.append(_tag_svg(papers[parent], position[child], index))
    parts.extend(_node_svg(paper, position[key]) for key, paper in papers.items())
    return "\n".join([*parts, "</svg>", ""])


def main(arguments: list[str]) -> int:
    """地図を書く。--check なら、古いときだけ 1 を返す。"""
    svg = render(read_bib(BIB.read_text(encoding="utf-8")))
    if "--check" in arguments:
        if SVG.is_file() and SVG.read_text(encoding="utf-8") == svg:
            return 0
        print("論文地図が古くなっています。`python docs/paper_map.py` で作り直してください。")
        return 1
    SVG.write_text(svg, encoding="utf-8", newline="\n")
    print(f"{SVG.name} を書きました。")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
