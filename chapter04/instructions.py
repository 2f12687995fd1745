"""指示データ: Tatoeba の語と文、数の言葉から、決まった言い回しで作る、8 課題の指示と答え。

    Tatoeba・漢数字 → 内容(学習用と試験用に分ける)→ 言い回し(学習用と試験用)に入れる → Example
    → format_example: <|user|> 指示 <|assistant|> 答え <|endoftext|> の id と、答えだけの印

文字を数えたり並べ替えたりする言葉は「カ・メ・ラ」のように中黒で区切る。BPE は「カメラ」を 1 個の
トークンにすることがあり、そのままではモデルに文字が見えない。区切れば、1 文字が 1 個になる。
"""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

from chapter03.number_words import kanji
from chapter04.instruction_templates import HELD_OUT, TASKS, TRAINING
from chapter04.japanese_gpt import ASSISTANT, END, USER
from chapter04.text import split
from shared import datasets
from shared.checks import require_int, require_text, shown

SEPARATOR = "・"  # 言葉の文字を分ける
LENGTHS = range(2, 9)  # 数える言葉の文字数
REVERSED = range(2, 6)  # 逆から書く言葉の文字数
TEST_SHARE = 0.1  # 言葉と数のうち、試験に回す割合
COMMON = 300  # 言葉に使う文字の、Tatoeba での最低の出現回数(まれな文字は 1 個のトークンにならない)
PARTS = ("train", "test_templates", "test_contents", "test_both")


@dataclass(frozen=True)
class Example:
    """指示と、正しい答え。

    Attributes:
        task: 課題(`TASKS` のどれか)。
        instruction: 指示。
        answer: 答え。
        template: 言い回しの名前。「種類-番号」の形で、試験だけのものは番号の前に t が付く。
        contents: 言い回しに入れた内容(言葉、文とその部分、数)。中黒も文末の句読点も除いた形。
    """

    task: str
    instruction: str
    answer: str
    template: str
    contents: tuple[str, ...]


class Tokenizer(Protocol):
    """トークナイザーに求めるもの(chapter02.byte_level_bpe.ByteLevelBPE が備える)。"""

    special_tokens: dict[str, int]

    def encode(self, text: str) -> list[int]:
        """`text` を id の並びにする。"""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """id の並びを文字列に戻す。"""
        ...


# ---- 内容 -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Material:
    """内容の素材。乱数によらない。"""

    words: tuple[str, ...]  # カタカナ語と、2・3 字の漢語
    sentences: tuple[str, ...]  # 短い和文(句点を除く)
    halves: tuple[tuple[str, str], ...]  # 読点で二つに分けた文
    pairs: tuple[tuple[str, str], ...]  # 短い英文と和訳
    unseen: frozenset[str]  # 上の和文のうち、事前学習に使わないもの


@cache
def _material() -> _Material:
    plain = re.compile("[ぁ-んァ-ヺー一-龥、]{2,23}。")  # 正規化しても変わらない文
    rows = [row for row in datasets.tatoeba("en", "ja") if plain.fullmatch(row[1])]
    texts = datasets.tatoeba_sentences("ja")
    frequency = Counter("".join(texts))
    counts = Counter(word for text in texts for word in re.findall("[ァ-ヺー]+|[一-龥]+", text))
    words = tuple(
        word
        for word, count in counts.items()
        if (2 <= len(word) <= 8 if word[0] < "一" else 2 <= len(word) <= 3 and count >= 10)
        and word[0] != "ー"
        and all(frequency[character] >= COMMON for character in word)
    )
    japanese = dict.fromkeys(text for _, text in rows)
    sentences = tuple(text[:-1] for text in japanese if len(text) <= 11 and "、" not in text)
    halves = tuple(
        (first + "、", second)
        for first, second in (text.split("、") for text in japanese if text.count("、") == 1)
        if 3 <= len(first) <= 10 and 4 <= len(second) <= 11
    )
    translations: dict[str, str] = {}
    for english, text in rows:
        if len(text) <= 13 and re.fullmatch("[A-Za-z' ]{3,20}[.]", english):
            translations.setdefault(english, text)
    parts = split(japanese)
    unseen = frozenset(text for name in parts if name != "train" for text in parts[name])
    return _Material(words, sentences, halves, tuple(translations.items()), unseen)


class _Contents:
    """学習用か試験用の内容から、乱数で選ぶ。"""

    def __init__(self, seed: int, test: bool, generator: random.Random) -> None:
        material = _material()
        self.generator = generator
        self.by_length: dict[int, list[str]] = defaultdict(list)
        for word in material.words:
            if is_held_out(word, seed) == test:
                self.by_length[len(word)].append(word)
        self.words = [word for length in LENGTHS for word in self.by_length[length]]
        self.short = [word for word in self.words if len(word) <= 5]
        self.katakana = [word for word in self.short if word[0] < "一"]
        self.kanji = [word for word in self.short if word[0] >= "一"]
        unseen = material.unseen
        self.sentences = [s for s in material.sentences if (s + "。" in unseen) == test]
        self.halves = [half for half in material.halves if ("".join(half) in unseen) == test]
        self.pairs = [pair for pair in material.pairs if (pair[1] in unseen) == test]
        self.numbers: list[list[int]] = [
            [n for n in range(10 ** (digits - 1), 10**digits) if is_held_out(str(n), seed) == test]
            for digits in ((2, 3, 4) if test else (1, 2, 3, 4))
        ]

    def word(self, lengths: Sequence[int]) -> str:
        """文字数をどれも等しい確率で選び、その文字数の言葉を一つ返す。"""
        return self.generator.choice(self.by_length[self.generator.choice(lengths)])

    def several(self, count: int) -> list[str]:
        """5 字以下の、互いに異なる言葉。"""
        return self.generator.sample(self.short, count)

    def of_each_script(self) -> tuple[str, str]:
        """5 字以下の、カタカナの言葉と、漢字の言葉。"""
        return self.generator.choice(self.katakana), self.generator.choice(self.kanji)

    def two(self, first: str, second: str) -> dict[str, str]:
        """二つを、乱数で決めた順に入れる。"""
        x, y = self.generator.sample((first, second), 2)
        return {"x": x, "y": y}


def is_held_out(content: str, seed: int) -> bool:
    """言葉か数 `content` を試験に回すか。ほかの内容によらず、ハッシュ値だけで決まる。"""
    digest = hashlib.sha256(f"{seed}:{content}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < TEST_SHARE * 2**64


# ---- 種類ごとの作り方 ------------------------------------------------------------------------

Filled = tuple[dict[str, str], str, tuple[str, ...]]  # (言い回しに入れるもの, 答え, 内容)


def _count(draw: _Contents) -> Filled:
    word = draw.word(LENGTHS)
    return {"x": spaced(word)}, str(len(word)), (word,)


def _reverse(draw: _Contents) -> Filled:
    word = draw.word(REVERSED)
    return {"x": spaced(word)}, spaced(word[::-1]), (word,)


def _first(draw: _Contents) -> Filled:
    word = draw.word(LENGTHS)
    return {"x": spaced(word)}, word[0], (word,)


def _last(draw: _Contents) -> Filled:
    word = draw.word(LENGTHS)
    return {"x": spaced(word)}, word[-1], (word,)


def _number(draw: _Contents) -> tuple[str, str]:
    number = draw.generator.choice(draw.generator.choice(draw.numbers))
    return str(number), kanji(number)


def _to_arabic(draw: _Contents) -> Filled:
    digits, characters = _number(draw)
    return {"x": characters}, digits, (digits,)


def _to_kanji(draw: _Contents) -> Filled:
    digits, characters = _number(draw)
    return {"x": digits}, characters, (digits,)


def _katakana(draw: _Contents) -> Filled:
    katakana, kanji_word = draw.of_each_script()
    return draw.two(katakana, kanji_word), katakana, (katakana, kanji_word)


def _kanji(draw: _Contents) -> Filled:
    katakana, kanji_word = draw.of_each_script()
    return draw.two(katakana, kanji_word), kanji_word, (katakana, kanji_word)


def _later(draw: _Contents) -> Filled:
    first, second = draw.several(2)
    return {"x": first, "y": second}, second, (first, second)


def _repeat(draw: _Contents) -> Filled:
    text = draw.generator.choice(draw.generator.choice((draw.words, draw.sentences)))
    return {"x": text}, text, (text,)


def _longer(draw: _Contents) -> Filled:
    short, long = draw.word((2, 3)), draw.word((5, 6, 7))
    return draw.two(spaced(short), spaced(long)), spaced(long), (short, long)


def _odd(draw: _Contents) -> Filled:
    same, other = draw.several(2)
    listed = [same] * draw.generator.choice((2, 3))
    listed.insert(draw.generator.randrange(len(listed) + 1), other)
    return {"list": "、".join(listed)}, other, (same, other)


def _member(draw: _Contents) -> Filled:
    words = draw.several(4)
    inside, absent = draw.generator.choice(words[:3]), words[3]
    fields = {"list": "、".join(words[:3]), **draw.two(inside, absent)}
    return fields, inside, tuple(words)


def _complete(draw: _Contents) -> Filled:
    first, second = draw.generator.choice(draw.halves)
    whole = first + second[:-1]
    return {"x": first}, second, (whole, first[:-1], second[:-1])


def _translate(draw: _Contents) -> Filled:
    english, japanese = draw.generator.choice(draw.pairs)
    return {"x": english}, japanese, (english, japanese[:-1])


MAKERS: dict[str, Callable[[_Contents], Filled]] = {
    "count": _count, "reverse": _reverse, "to_arabic": _to_arabic, "to_kanji": _to_kanji,
    "katakana": _katakana, "kanji": _kanji, "later": _later,
    "repeat": _repeat, "quote": _repeat, "first": _first, "last": _last,
    "longer": _longer, "odd": _odd, "member": _member,
    "complete": _complete, "translate": _translate,
}  # fmt: skip


def spaced(word: str) -> str:
    """`word` の文字を中黒で区切る。"""
    return SEPARATOR.join(word)


# ---- データ ---------------------------------------------------------------------------------


def build(seed: int, per_task: int = 3000, per_test: int = 60) -> dict[str, list[Example]]:
    """四つの部からなる指示データ。同じ `seed` なら、いつも同じになる。

    train は学習用の言い回しと内容、test_templates は新しい言い回し、test_contents は新しい内容、
    test_both はどちらも新しい。試験用の言葉と数は `seed` で、試験用の文は事前学習の分け方
    (chapter04.text.split)で決まるので、試験用の文は事前学習にも現れない。

    Args:
        seed: 乱数の種。
        per_task: 学習用の、一つの課題の例の数(8 課題で 24,000)。
        per_test: 三つの試験の、一つの課題の例の数。

    Raises:
        TypeError, ValueError: `seed` が整数でない、例の数が 1 より小さいとき。
        ValueError: 作れる例の数が足りないとき。
        DataError: Tatoeba を用意できないとき。
    """
    require_int(seed, "seed")
    require_int(per_task, "per_task", minimum=1)
    require_int(per_test, "per_test", minimum=1)
    parts: dict[str, list[Example]] = {}
    seen: set[str] = set()  # 学習に現れる内容
    for part in PARTS:
        generator = random.Random(f"{seed}:{part}")
        new_contents = part in ("test_contents", "test_both")
        draw = _Contents(seed, new_contents, generator)
        templates = HELD_OUT if part in ("test_templates", "test_both") else TRAINING
        count = per_task if part == "train" else per_test
        avoid = seen if new_contents else set()
        parts[part] = [e for task in TASKS for e in _examples(task, count, draw, templates, avoid)]
        generator.shuffle(parts[part])
        if part == "train":
            seen = {content for example in parts[part] for content in example.contents}
    return parts


def _examples(
    task: str,
    count: int,
    draw: _Contents,
    templates: Mapping[str, Sequence[str]],
    avoid: set[str],
) -> list[Example]:
    """一つの課題の、互いに異なる指示。種類は順に、言い回しは乱数で選び、`avoid` の内容は避ける。"""
    made: dict[str, Example] = {}
    kinds = TASKS[task]
    for attempt in range(20 * count):
        kind = kinds[attempt % len(kinds)]
        number = draw.generator.randrange(len(templates[kind]))
        fields, answer, contents = MAKERS[kind](draw)
        if avoid.isdisjoint(contents):
            instruction = templates[kind][number].format(**fields)
            name = f"{kind}-{'t' if templates is HELD_OUT else ''}{number}"
            made.setdefault(instruction, Example(task, instruction, answer, name, contents))
        if len(made) == count:
            return [*made.values()]
    raise ValueError(
        f"課題 {task} の例を {count} 個作れません({len(made)} 個まで)。"
        "per_task か per_test を小さくしてください"
    )


def overlap(parts: Mapping[str, Sequence[Example]]) -> set[str]:
    """学習にも試験にも現れる内容。`build` のデータでは空になる(新しい内容の試験について)。"""
    seen = {content for example in parts["train"] for content in example.contents}
    tested = [e for part in ("test_contents", "test_both") for e in parts[part]]
    return seen & {content for example in tested for content in example.contents}


# ---- 対話の形 -------------------------------------------------------------------------------


def prompt_ids(tokenizer: Tokenizer, instruction: str) -> list[int]:
    """<|user|> 指示 <|assistant|> の id。モデルには、この続きを書かせる。

    指示の中に特殊トークンと同じ文字列があっても、ふつうの文字として符号化する。

    Raises:
        TypeError: `instruction` が str でないとき。
        ValueError: `instruction` が空か空白だけのとき、特殊トークンが語彙にないとき。
    """
    if not require_text(instruction, "instruction").strip():
        raise ValueError(f"instruction に指示を書いてください: {shown(instruction)}")
    user, assistant, _ = _specials(tokenizer)
    return [user, *tokenizer.encode(instruction), assistant]


def format_example(tokenizer: Tokenizer, example: Example) -> tuple[list[int], list[bool]]:
    """<|user|> 指示 <|assistant|> 答え <|endoftext|> の id と、損失に数える所の印。

    印は、答えと <|endoftext|> の所だけが True になる。

    Raises:
        TypeError: `example` が Example でないとき。
        ValueError: 指示か答えが空のとき、特殊トークンが語彙にないとき。
    """
    if not isinstance(example, Example):
        raise TypeError(f"example には Example を渡してください: {shown(example)}")
    prompt = prompt_ids(tokenizer, example.instruction)
    if not require_text(example.answer, "example.answer").strip():
        raise ValueError(f"example.answer に答えを書いてください: {shown(example.answer)}")
    answer = [*tokenizer.encode(example.answer), _specials(tokenizer)[2]]
    return prompt + answer, [False] * len(prompt) + [True] * len(answer)


def _specials(tokenizer: Tokenizer) -> list[int]:
    missing = [token for token in (USER, ASSISTANT, END) if token not in tokenizer.special_tokens]
    if missing:
        raise ValueError(f"tokenizer の語彙に特殊トークンがありません: {', '.join(missing)}")
    return [tokenizer.special_tokens[token] for token in (USER, ASSISTANT, END)]
