"""学びの道具: 二通りの実装の一致、予想、演習の採点、「説明できますか」、進みぐあい。

ノートブックから使う。表示は日本語で、同じ入力には必ず同じ文を出す(nbval が比べるため)。
"""

import ast
import copy
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from shared.checks import require_int, require_number, shown
from shared.files import write_atomically

ROOT = Path(__file__).resolve().parent.parent
PROGRESS = ROOT / "my" / "progress.json"


# ---- 二通りに書いて、等しい -------------------------------------------------------------


def same(plain: object, fast: object, what: str = "二つの実装", atol: float = 0.0) -> None:
    """素直な実装の結果 `plain` と速い実装の結果 `fast` が等しいことを確かめ、一文を表示する。

    数・文字列・真偽値・None、それらの list / tuple / set / dict、NumPy 配列、PyTorch テンソルを
    比べる。数は |plain - fast| <= atol のとき等しいとみなす。形(長さ・キー)はいつも一致を求める。
    NaN どうしは等しいとする。

    Raises:
        AssertionError: どこかが違うとき。場所と両方の値を述べる。
        ValueError: `atol` が負または NaN のとき。
    """
    atol = require_number(atol, "atol", minimum=0)
    problem, count = _difference(_plain(plain), _plain(fast), atol, "")
    if problem:
        raise AssertionError(f"{what}が一致しません{problem}")
    within = "ぴったり一致しました" if atol == 0 else f"{atol:g} 以内で一致しました"
    print(f"確認: {what}は、{count:,} 個の値すべてが{within}。")


def _plain(value: Any) -> Any:
    """配列とテンソルを入れ子の list に直す。"""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    return value.tolist() if hasattr(value, "tolist") else value


def _is_number(value: object) -> TypeGuard[complex]:
    return isinstance(value, int | float | complex) and not isinstance(value, bool)


def _difference(a: Any, b: Any, atol: float, at: str) -> tuple[str, int]:
    """最初の違いを述べる文(なければ空)と、比べた値の個数。"""
    a, b = _plain(a), _plain(b)
    where = f"(場所 {at})" if at else ""
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        if len(a) != len(b):
            return f"{where}: 長さが {len(a)} と {len(b)} です", 0
        pairs: Iterable[tuple[str, Any, Any]] = (
            (f"{at}[{i}]", x, y) for i, (x, y) in enumerate(zip(a, b, strict=True))
        )
    elif isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys():
            key = next(iter(a.keys() ^ b.keys()))
            return f"{where}: キー {shown(key)} が片方にしかありません", 0
        pairs = ((f"{at}[{key!r}]", a[key], b[key]) for key in a)
    elif _is_number(a) and _is_number(b):
        equal = bool(a == b or np.isclose(a, b, rtol=0, atol=atol, equal_nan=True))
        return ("" if equal else f"{where}: {a!r} と {b!r}(許す差は {atol:g})"), 1
    else:
        equal = type(a) is type(b) and a == b
        size = len(a) if isinstance(a, set | frozenset) else 1
        return ("" if equal else f"{where}: {shown(a)} と {shown(b)}"), size
    total = 0
    for place, x, y in pairs:
        problem, count = _difference(x, y, atol, place)
        total += count
        if problem:
            return problem, total
    return "", total


# ---- 予想 -------------------------------------------------------------------------------


def predict(choice: str = "", choices: str = "アイウ") -> str:
    """実験の前に立てた予想を書きとめる。`choice` が空なら、予想を促す一文を表示する。

    Raises:
        ValueError: `choice` が選択肢 `choices` のどれでもないとき。
    """
    if choice and choice not in tuple(choices):
        raise ValueError(f"choice は {'・'.join(choices)} のどれかにしてください: {shown(choice)}")
    if choice:
        print(f"予想は「{choice}」ですね。実験で確かめましょう。")
    else:
        print(f'先へ進む前に、predict("{choices[0]}") のように予想を入れて実行してみてください。')
    return choice


def reveal(choice: str, answer: str) -> None:
    """実験の後で、予想 `choice` と答え `answer` を並べて表示する。"""
    if not choice:
        print(f"答えは「{answer}」でした。")
    elif choice == answer:
        print(f"答えは「{answer}」。予想どおりでした。理由まで言えれば本物です。")
    else:
        print(f"答えは「{answer}」、予想は「{choice}」。外れたところが、いちばん学べるところです。")


# ---- 演習 -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """採点の一例。`args` を渡したときの正しい戻り値が `expected`。

    `edge` は見落としやすい入力の名前(「空の入力」など)、`hint` は間違えたときに添える助言、
    `atol` は数の許容誤差。
    """

    args: tuple[Any, ...]
    expected: Any
    edge: str = ""
    hint: str = ""
    atol: float = 0.0


def grade(name: str, function: Callable[..., Any], cases: Sequence[Case]) -> None:
    """読者の関数を `cases` で採点し、結果を日本語で表示する。

    どの例にも None を返す関数は「まだ解かれていません」とし、失敗にはしない。間違いは、型・形・値・
    例外のどれかを、その入力とともに述べる。正解すると my/progress.json に記録する。

    Raises:
        TypeError: `function` が呼び出せないとき。
    """
    if not callable(function):
        raise TypeError(f"function には自分で書いた関数を渡してください: {shown(function)}")
    results = []
    for case in cases:
        try:
            results.append(function(*copy.deepcopy(case.args)))
        except Exception as error:  # 読者のコードの例外は、種類を問わず言葉で返す
            print(f"{name}: {_called(case)}で例外 {type(error).__name__}: {error}")
            return
    if all(result is None for result in results):
        print(f"{name}: まだ解かれていません。")
        return
    for case, result in zip(cases, results, strict=True):
        problem = _explain(result, case)
        if problem:
            hint = f" ヒント: {case.hint}" if case.hint else ""
            print(f"{name}: {_called(case)}{problem}。{hint}".rstrip())
            return
    print(f"{name}: 正解です({len(cases)} 通りの入力で確かめました)。")
    _record("exercises", name)


def _called(case: Case) -> str:
    arguments = ", ".join(shown(argument) for argument in case.args)
    return f"{case.edge + 'の' if case.edge else ''}入力 ({arguments}) "


def _explain(result: Any, case: Case) -> str:
    """正しい戻り値との違いを、型・形・値の順に調べて述べる(なければ空)。"""
    got: Any = _plain(result)
    expected: Any = _plain(case.expected)
    if got is None and expected is not None:
        return "で値が返っていません(return を忘れていませんか)"
    if type(got) is not type(expected) and not (_is_number(got) and _is_number(expected)):
        return f"の戻り値の型が {type(got).__name__} です(正しくは {type(expected).__name__})"
    lengths = [len(value) for value in (got, expected) if isinstance(value, Sized)]
    if len(set(lengths)) > 1:
        return f"の戻り値の長さが {lengths[0]} です(正しくは {lengths[1]})"
    problem, _ = _difference(expected, got, case.atol, "")
    return f"の戻り値が違います{problem}(左が正しい値)" if problem else ""


# ---- 「説明できますか」と進みぐあい --------------------------------------------------------


def self_test(chapter: str, explained: Sequence[int] = ()) -> list[int]:
    """「説明できますか」の問いを表示し、説明できた番号 `explained` を記録して、残りの番号を返す。

    問いと答えは chapterNN/notes/self_check.md にある。

    Raises:
        ValueError: 章がないとき、番号が問いの範囲にないとき。
    """
    questions = _questions(chapter)
    for number in explained:
        if not 1 <= require_int(number, "explained") <= len(questions):
            raise ValueError(f"explained は 1 から {len(questions)} までです: {number}")
    for number, question in enumerate(questions, start=1):
        print(f"{'✓' if number in explained else '・'} 問{number} {question}")
        if number in explained:
            _record("explained", f"{chapter}-{number}")
    return [n for n in range(1, len(questions) + 1) if n not in explained]


def _questions(chapter: str) -> list[str]:
    path = ROOT / f"chapter{chapter}" / "notes" / "self_check.md"
    if not path.is_file():
        raise ValueError(f"chapter には '02' のような章の番号を渡してください: {shown(chapter)}")
    return re.findall(r"^## 問\d+\s*(.+)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)


def _record(kind: str, name: str) -> None:
    """読者の達成を my/progress.json に書き足す(回帰テスト中と、書けない場所では何もしない)。"""
    if os.environ.get("GENAI_NOTES_STRICT"):
        return
    done = _progress()
    done[kind] = sorted({*done.get(kind, []), name})
    try:
        PROGRESS.parent.mkdir(exist_ok=True)
        write_atomically(PROGRESS, json.dumps(done, ensure_ascii=False, indent=1) + "\n")
    except OSError:
        print("(my/ に書き込めないので、進みぐあいは記録しませんでした)", file=sys.stderr)


def _progress() -> dict[str, list[str]]:
    try:
        return json.loads(PROGRESS.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def progress() -> str:
    """章ごとの、解いた演習・説明できた問い・学習ログの数を表にして返す。"""
    done = _progress()
    lines = ["章    演習        説明できた問い  学習ログ"]
    for chapter in sorted(ROOT.glob("chapter[0-9][0-9]")):
        number = chapter.name[-2:]
        section = f"{int(number)}."
        exercises = [name for name in done.get("exercises", []) if name.startswith(section)]
        explained = [name for name in done.get("explained", []) if name.startswith(f"{number}-")]
        logs = list((ROOT / "logs").glob(f"{section}*.md"))
        total = (chapter / "notes" / "self_check.md").is_file() and len(_questions(number))
        lines.append(
            f"{number}    {len(exercises):>2} / {_count_checks(chapter):<2}     "
            f"{len(explained):>2} / {total or 0:<2}         {len(logs)}"
        )
    return "\n".join(lines)


def _count_checks(chapter: Path) -> int:
    """章の exercises/ にある採点関数 check_... の数。"""
    trees = [ast.parse(p.read_text(encoding="utf-8")) for p in chapter.glob("exercises/*.py")]
    nodes = [node for tree in trees for node in tree.body]
    return sum(isinstance(n, ast.FunctionDef) and n.name.startswith("check_") for n in nodes)


if __name__ == "__main__":
    print(progress())
