"""引数の検査。誤った入力を、引数名・値・許される範囲を述べる日本語の例外で断る。"""

import math
import operator
from collections.abc import Iterable
from typing import Any

MAX_SEED = 2**32 - 1  # numpy.random.seed が受け取る上限


def shown(value: object) -> str:
    """例外メッセージに載せる値の表記を返す(長いものは 60 文字で切る)。"""
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def require_text(value: object, name: str) -> str:
    """`value` が UTF-8 に符号化できる str であることを確かめて返す。

    Raises:
        TypeError: str でないとき。
        ValueError: 対になっていないサロゲートを含み、UTF-8 に符号化できないとき。
    """
    if not isinstance(value, str):
        hint = "。bytes は .decode('utf-8') で文字列にしてください" if _is_bytes(value) else ""
        raise TypeError(
            f"{name} には文字列 (str) を渡してください: {shown(value)} "
            f"({type(value).__name__}){hint}"
        )
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} の {error.start} 文字目に、単独のサロゲート U+{ord(value[error.start]):04X} が"
            "あります。UTF-8 で表せないので取り除いてください"
        ) from None
    return value


def require_int(value: object, name: str, minimum: int | None = None) -> int:
    """`value` が整数で、`minimum` 以上であることを確かめて返す(bool は断る)。

    Raises:
        TypeError: 整数でないとき。
        ValueError: `minimum` より小さいとき。
    """
    try:
        if _is_bool(value):
            raise TypeError
        # int() と違い、小数を切り捨てない(torch.tensor(1.5) も断る)。
        number = operator.index(value)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError):
        raise TypeError(
            f"{name} には整数を渡してください: {shown(value)} ({type(value).__name__})"
        ) from None
    if minimum is not None and number < minimum:
        raise ValueError(f"{name} は {minimum} 以上にしてください: {number}")
    return number


def require_number(value: object, name: str, minimum: float | None = None) -> float:
    """`value` が有限の実数で、`minimum` 以上であることを確かめて返す(bool は断る)。

    Raises:
        TypeError: 数でないとき。
        ValueError: NaN・無限大、または `minimum` より小さいとき。
    """
    try:
        if _is_bool(value) or not hasattr(value, "__float__"):
            raise TypeError
        number = float(value)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError):
        raise TypeError(
            f"{name} には数を渡してください: {shown(value)} ({type(value).__name__})"
        ) from None
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{name} は有限の数にしてください: {number}")
    if minimum is not None and number < minimum:
        raise ValueError(f"{name} は {minimum} 以上にしてください: {number}")
    return number


def require_rate(value: object, name: str) -> float:
    """0 以上 1 未満の数(ドロップアウトの率など)か確かめて返す。

    Raises:
        TypeError: 数でないとき。
        ValueError: NaN・無限大、または範囲の外のとき。
    """
    if not 0.0 <= (number := require_number(value, name)) < 1.0:
        raise ValueError(f"{name} は 0 以上 1 未満にしてください: {value}")
    return number


def require_seed(value: object, name: str = "seed") -> int:
    """乱数の種にできる整数(0 から 2^32 - 1)か確かめて返す。

    Raises:
        TypeError: 整数でないとき。
        ValueError: 範囲の外のとき。
    """
    if (seed := require_int(value, name, minimum=0)) > MAX_SEED:
        raise ValueError(f"{name} は {MAX_SEED} 以下にしてください: {seed}")
    return seed


def require_many(values: object, name: str, kind: str = "並び") -> Iterable[Any]:
    """`values` が、一つの文字列でなく、並びか確かめて返す(文字列だと一文字ずつになってしまう)。

    Raises:
        TypeError: 並びでない、一つの str か bytes であるとき。
    """
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise TypeError(
            f"{name} には{kind}を渡してください(一つなら [ ] に入れる): {shown(values)}"
        )
    return values


def _is_bool(value: object) -> bool:
    """Python・NumPy・PyTorch の真偽値か(NumPy と PyTorch は import せずに見分ける)。"""
    return isinstance(value, bool) or str(getattr(value, "dtype", "")) in ("bool", "torch.bool")


def _is_bytes(value: object) -> bool:
    return isinstance(value, bytes | bytearray | memoryview)
