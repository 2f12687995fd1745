"""分布仮説と埋め込み(2.1 節)。"""

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence

from shared.checks import require_int, shown


def context_overlap(
    contexts_a: Iterable[Hashable], contexts_b: Iterable[Hashable], unit: str = "type"
) -> float:
    """二つの語の文脈の重なり(0 から 1)を返す。

    Rubenstein & Goodenough 1965 の二つの測り方。文脈に現れた語の集まり A, B について

        unit="type":  M_y = |A ∩ B| / min(|A|, |B|)   A, B は集合(同じ語は何度現れても 1)
        unit="token": M_k = |A ∩ B| / min(|A|, |B|)   A, B は多重集合(現れた回数だけ数える)

    小さいほうで割るので、片方がもう片方に含まれていれば 1 になる。

    Args:
        contexts_a: 一つめの語の文脈。語の並び、または集合。
        contexts_b: 二つめの語の文脈。
        unit: "type"(異なり)または "token"(延べ)。

    Raises:
        TypeError: 文脈が str や dict など、語の並びでないとき。
        ValueError: `unit` が二つのどちらでもないとき。どちらかの文脈が空のとき(0 で割ることになり、
            似ているとも似ていないとも言えない)。
    """
    if unit not in ("type", "token"):
        raise ValueError(f"unit は 'type' か 'token' にしてください: {shown(unit)}")
    a = _multiset(contexts_a, "contexts_a")
    b = _multiset(contexts_b, "contexts_b")
    if unit == "type":
        return len(a.keys() & b.keys()) / min(len(a), len(b))
    return (a & b).total() / min(a.total(), b.total())


def _multiset(contexts: Iterable[Hashable], name: str) -> Counter[Hashable]:
    if isinstance(contexts, str | bytes | Mapping) or not isinstance(contexts, Iterable):
        raise TypeError(
            f"{name} には文脈の語を並べた list などを渡してください: "
            f"{shown(contexts)} ({type(contexts).__name__})"
        )
    try:
        counts = Counter(contexts)
    except TypeError:
        raise TypeError(f"{name} の要素は語(文字列など)にしてください: {shown(contexts)}") from None
    if not counts:
        raise ValueError(f"{name} が空です。一つ以上の文脈の語を渡してください")
    return counts


def contexts(tokens: Sequence[str], target: str, window: int) -> list[str]:
    """`target` が現れるたびに、前後 `window` 語以内の語を現れた順に集めて返す。

    Raises:
        TypeError: `tokens` が語の並びでない、`window` が整数でないとき。
        ValueError: `window` が 1 より小さいとき。
    """
    if isinstance(tokens, str | bytes) or not isinstance(tokens, Sequence):
        raise TypeError(f"tokens には語を並べた list を渡してください: {shown(tokens)}")
    window = require_int(window, "window", minimum=1)
    found: list[str] = []
    for i, token in enumerate(tokens):
        if token == target:
            found += tokens[max(0, i - window) : i]
            found += tokens[i + 1 : i + 1 + window]
    return found
