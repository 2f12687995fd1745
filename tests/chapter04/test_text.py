"""chapter04.text の検査: 整え方、文書の区切り、重複、分割、窓、詰めたバッチ。"""

from collections import Counter

import pytest
import torch

from chapter04 import text
from chapter04.text import PackedBatches, clean, deduplicate, documents, split, windows
from shared.archives import DataError


def test_clean_by_hand():
    """全角の英数字は半角に、改行は LF に、行末の空白と制御文字は消え、空行は一つになる。"""
    assert clean("\ufeffＡ１\r\nい \t\r\n\n\n\n\nう\u200bえ\x07\n ") == "A1\nい\n\nうえ"
    with pytest.raises(TypeError, match="text"):
        clean(3)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("一つ目\nの続き\n\n\n二つ目\n", ["一つ目\nの続き", "二つ目"]),  # 空行で区切る
        ("一行目\n二行目\n", ["一行目", "二行目"]),  # 空行がなければ行ごと
        ("\ufeffただ一つ", ["ただ一つ"]),
    ],
)
def test_documents_of_a_file(tmp_path, content, expected):
    """ファイルは、空行か改行で文書に分かれる。"""
    path = tmp_path / "コーパス.txt"
    path.write_text(content, encoding="utf-8")
    assert documents(path) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe\x00", "UTF-8 ではありません"),
        (b" \n\n ", "文書がありません"),
        (None, "読めません"),
    ],
)
def test_bad_files_are_named(tmp_path, content, message):
    """読めないファイルは、名前と理由を述べて断る。"""
    path = tmp_path / "bad.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=f"bad.txt .*{message}"):
        documents(path)
    with pytest.raises(DataError, match=r"を読めません: ファイルではなくフォルダーです$"):
        documents(tmp_path)


def test_one_text_is_not_a_list_of_texts():
    """文字列を渡すと 1 字ずつが文書になってしまうので、断る。"""
    for function in (deduplicate, split):
        with pytest.raises(TypeError, match=r"texts には文書の並び.*'猫'"):
            function("猫")


def test_default_documents_are_normalised():
    """既定は Tatoeba の和文で、正規化してある。"""
    found = documents()
    assert len(found) > 200_000
    assert not any("?" in sentence for sentence in found[:5000])


def test_deduplicate_ignores_marks_and_case():
    """記号・空白・大文字と小文字だけが違う文書は、はじめの一つを残す。"""
    assert deduplicate(["猫だ。", "犬だ", "猫だ!", "Cat", "cat"]) == ["猫だ。", "犬だ", "Cat"]


def test_split_is_decided_by_each_document_alone():
    """部は交わらず、順やほかの文書によらず、記号の違いにもよらない。割合はおよそ指定どおり。"""
    texts = [f"{i} 番の文。" for i in range(4000)]
    parts = split(texts, {"validation": 0.1, "test": 0.2})
    assert [*parts] == ["train", "validation", "test"]
    assert sorted(text for part in parts.values() for text in part) == sorted(texts)
    assert len(parts["validation"]) / 4000 == pytest.approx(0.1, abs=0.02)
    assert len(parts["test"]) / 4000 == pytest.approx(0.2, abs=0.02)
    alone = split([text.replace("。", "!") for text in reversed(parts["test"])])
    again = split(parts["test"][::-1], {"validation": 0.1, "test": 0.2})
    assert len(again["test"]) == len(parts["test"])
    assert sum(map(len, alone.values())) == len(parts["test"])
    with pytest.raises(ValueError, match="shares の和"):
        split(texts, {"a": 0.5, "b": 0.5})
    with pytest.raises(ValueError, match="test"):
        split(texts, {"test": -0.1})


def test_windows_by_hand():
    """目標は入力の 1 つ先。目標まで収まらない窓は作らない。"""
    inputs, targets = windows(range(8), context=3, stride=2)
    assert inputs.tolist() == [[0, 1, 2], [2, 3, 4], [4, 5, 6]]
    assert targets.tolist() == [[1, 2, 3], [3, 4, 5], [5, 6, 7]]
    assert windows([1, 2], 1, 5)[1].tolist() == [[2]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(([1, 2, 3], 3, 1), "4 個以上"), (([1, 2], 0, 1), "context"), (([1, 2], 1, 0), "stride")],
)
def test_windows_refuse(arguments, message):
    """短い列、0 の窓、0 の歩みを断る。"""
    with pytest.raises(ValueError, match=message):
        windows(*arguments)


def packed(seed=0, batch_size=2, context=4):
    documents = [[10 * i + j for j in range(1, 2 + i % 4)] for i in range(1, 12)]
    generator = torch.Generator().manual_seed(seed)
    return documents, PackedBatches(documents, 0, context, batch_size, generator)


def test_packed_batches_are_one_stream_of_shuffled_documents():
    """つなぐと「区切り 文書 区切り 文書 …」に戻り、順は混ざっている。余りだけが落ちる。"""
    documents, batches = packed()
    found = [*batches]
    assert len(found) == len(batches) == (batches.tokens - 1) // 8
    stream = torch.cat([batch["inputs"].flatten() for batch in found])
    shifted = torch.cat([batch["targets"].flatten() for batch in found])
    assert torch.equal(stream[1:], shifted[:-1])
    cut = "".join(chr(i) for i in stream.tolist()).split(chr(0))
    assert cut[0] == ""
    whole = ["".join(map(chr, document)) for document in documents]
    assert all(part in whole for part in cut[1:-1])
    assert len(set(cut[1:-1])) == len(cut) - 2
    assert cut[1:-1] != whole[: len(cut) - 2]


def test_each_epoch_is_shuffled_anew_and_reproducibly():
    """2 周目の順は 1 周目と違い、同じ種からは同じ順になる。"""
    one, other = packed()[1], packed()[1]
    first, second = ([b["inputs"].tolist() for b in one] for _ in range(2))
    assert first != second
    assert [[b["inputs"].tolist() for b in other] for _ in range(2)] == [first, second]


def test_repeated_documents_come_soon_again():
    """繰り返しは、近くの文書を、決めた率で、距離によらず同じ数だけ選ぶ。新しい文書の順は変わらない。"""
    documents = [[i] for i in range(1, 4001)]

    def stream(repeat: float) -> list[int]:
        generator = torch.Generator().manual_seed(0)
        batches = PackedBatches(documents, 0, 8, 1, generator, repeat=repeat)
        return [i for batch in batches for i in batch["inputs"].flatten().tolist() if i]

    plain, repeated = stream(0.0), stream(0.25)
    fresh = list(dict.fromkeys(repeated))
    assert fresh == plain[: len(fresh)]
    again = [i for i, number in enumerate(repeated) if number in repeated[max(0, i - 4) : i]]
    assert len(repeated) - len(fresh) == len(again)
    assert len(again) / len(fresh) == pytest.approx(0.25, abs=0.03)
    gaps = Counter(next(d for d in range(1, 5) if repeated[i - d] == repeated[i]) for i in again)
    assert all(gaps[d] / len(again) == pytest.approx(0.25, abs=0.06) for d in range(1, 5)), gaps
    with pytest.raises(ValueError, match="repeat"):
        PackedBatches(documents, 0, 3, 1, torch.Generator(), repeat=1.0)


def test_too_few_documents_are_refused():
    """バッチが一つもできないときは、要る数を述べて断る。"""
    with pytest.raises(ValueError, match=r"5 トークン.*9 以上"):
        PackedBatches([[1, 2, 3, 4]], 0, 4, 2, torch.Generator())
    assert len(PackedBatches([[1] * 8], 0, 4, 2, torch.Generator())) == 1
    with pytest.raises(ValueError, match="context"):
        PackedBatches([[1]], 0, 0, 2, torch.Generator())


def test_ignored_is_the_default_of_cross_entropy():
    """損失に数えない目標の印は、PyTorch の既定と同じ。"""
    logits = torch.randn(2, 5)
    target = torch.tensor([3, text.IGNORED])
    alone = torch.nn.functional.cross_entropy(logits[:1], target[:1])
    assert torch.nn.functional.cross_entropy(logits, target) == alone
