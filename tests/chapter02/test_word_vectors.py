"""chapter02.word_vectors: 手計算と、総当たり・numpy・scikit-learn と比べる。"""

import math

import numpy as np
import pytest
from scipy import sparse
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.metrics.pairwise import cosine_similarity

from chapter02.word_vectors import (
    Embeddings,
    co_occurrence,
    cosine,
    ppmi,
    tf_idf,
    truncated_svd,
    vocabulary,
    words,
)


def test_words_are_lower_case_and_keep_inner_apostrophes():
    assert words("Don't panic! It's 42 cats' café.") == ["don't", "panic", "it's", "cats", "café"]
    assert words("") == []
    with pytest.raises(TypeError, match="text"):
        words(b"a")  # pyright: ignore[reportArgumentType]


def test_vocabulary_is_sorted_by_count_then_word():
    sentences = [["b", "a", "c"], ["c", "b"], ["c", "d"]]
    assert list(vocabulary(sentences).items()) == [("c", 3), ("b", 2), ("a", 1), ("d", 1)]
    assert list(vocabulary(sentences, 2)) == ["c", "b"]


def test_vocabulary_refuses_bad_input():
    with pytest.raises(TypeError, match="sentences"):
        vocabulary(["a b"])
    with pytest.raises(ValueError, match="min_count"):
        vocabulary([["a"]], 0)
    with pytest.raises(ValueError, match="2 回以上"):
        vocabulary([["a"]], 2)


@pytest.mark.parametrize("window", [1, 2, 3, 20])
def test_co_occurrence_matches_brute_force(window: int):
    rng = np.random.default_rng(window)
    sentences = [[f"w{i}" for i in rng.integers(0, 6, size=n)] for n in rng.integers(0, 9, 40)]
    index = {f"w{i}": i for i in range(5)}  # w5 は語彙の外だが、場所は占める
    expected = np.zeros((5, 5))
    for sentence in sentences:
        for i, a in enumerate(sentence):
            for j, b in enumerate(sentence):
                if i != j and abs(i - j) <= window and a in index and b in index:
                    expected[index[a], index[b]] += 1
    assert (co_occurrence(sentences, index, window).toarray() == expected).all()


def test_co_occurrence_of_nothing_is_zero():
    assert co_occurrence([], {"a": 0}, 2).toarray().tolist() == [[0.0]]
    with pytest.raises(ValueError, match="window"):
        co_occurrence([["a"]], {"a": 0}, 0)


def test_ppmi_by_hand():
    # 全体 8 回。P(0,0) = 3/8、P(w=0) = 4/8、P(c=0) = 4/8 なので PMI = ln(3/8 ÷ 1/4) = ln 1.5。
    counts = np.array([[3.0, 1.0], [1.0, 3.0]])
    expected = [[math.log(1.5), 0.0], [0.0, math.log(1.5)]]  # 反対側は ln 0.5 < 0 なので 0
    assert ppmi(sparse.csr_array(counts)).toarray() == pytest.approx(np.array(expected))


def test_ppmi_keeps_rows_and_columns_apart():
    counts = np.array([[6.0, 0.0, 2.0], [1.0, 1.0, 2.0]])
    total = counts.sum()
    with np.errstate(divide="ignore"):
        pmi = np.log(counts * total / np.outer(counts.sum(1), counts.sum(0)))
    assert ppmi(sparse.csr_array(counts)).toarray() == pytest.approx(np.maximum(pmi, 0))


@pytest.mark.parametrize("counts", [[[0.0]], [[-1.0, 2.0]], [[math.nan, 1.0]]])
def test_ppmi_refuses_bad_counts(counts):
    with pytest.raises(ValueError, match="counts"):
        ppmi(sparse.csr_array(np.array(counts)))


def test_truncated_svd_matches_numpy():
    rng = np.random.default_rng(0)
    table = rng.normal(size=(12, 9))
    vectors = truncated_svd(sparse.csr_array(table), 4)
    u, sigma, _ = np.linalg.svd(table)
    expected = u[:, :4] * np.sqrt(sigma[:4])
    # 特異ベクトルの符号は決まらないので、内積で比べる。
    np.testing.assert_allclose(vectors @ vectors.T, expected @ expected.T, atol=1e-5)
    np.testing.assert_allclose((vectors**2).sum(0), sigma[:4], rtol=1e-5)  # 大きい順
    assert (truncated_svd(sparse.csr_array(table), 4) == vectors).all()
    for dim in (0, 9):
        with pytest.raises(ValueError, match="dim"):
            truncated_svd(sparse.csr_array(table), dim)


def test_cosine():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 5))
    assert cosine(a, b) == pytest.approx(cosine_similarity(a[None], b[None])[0, 0])
    assert cosine(a, -3 * a) == pytest.approx(-1.0)
    assert cosine(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == 0.0
    assert cosine(a, np.zeros(5)) == 0.0
    with pytest.raises(ValueError, match="a と b"):
        cosine(a, b[:4])


def test_tf_idf_matches_sklearn():
    documents = [["a", "b", "a"], ["a", "c"], ["a", "b", "b", "zzz"]]
    index = {"a": 0, "b": 1, "c": 2}
    counts = np.array([[2, 1, 0], [1, 0, 1], [1, 2, 0]])
    transformer = TfidfTransformer(norm=None, smooth_idf=False)  # pyright: ignore
    peer = transformer.fit_transform(counts).toarray()
    # sklearn の idf は ln(D / df) + 1。1 の分(= 回数)を引くと、こちらの定義になる。
    np.testing.assert_allclose(tf_idf(documents, index), peer - counts, atol=1e-12)
    assert (tf_idf(documents, index)[:, 0] == 0).all()


def test_tf_idf_refuses_bad_documents():
    with pytest.raises(TypeError, match="語の list"):
        tf_idf(["a b"], {"a": 0})
    with pytest.raises(ValueError, match="documents"):
        tf_idf([], {"a": 0})


VECTORS = Embeddings(["a", "b", "c", "zero"], np.array([[1, 0], [2, 1], [-1, 0.5], [0, 0.0]]))


def test_nearest_orders_by_cosine_and_leaves_itself_out():
    found = VECTORS.nearest("a", 3)
    assert [word for word, _ in found] == ["b", "zero", "c"]
    assert [score for _, score in found] == pytest.approx([2 / 5**0.5, 0, -2 / 5**0.5])
    assert len(VECTORS.nearest("a", 99)) == 3
    assert [w for w, _ in VECTORS.nearest("b", 1)] == ["a"]


def test_agreement_is_the_rank_correlation_over_known_pairs():
    pairs = [("a", "b", 9.0), ("a", "zero", 5.0), ("a", "c", 1.0), ("a", "unknown", 7.0)]
    assert VECTORS.agreement(pairs) == (pytest.approx(1.0), 3)
    opposite = [(a, b, -score) for a, b, score in pairs]
    assert VECTORS.agreement(opposite) == (pytest.approx(-1.0), 3)
    with pytest.raises(ValueError, match="pairs"):
        VECTORS.agreement(pairs[-2:])


@pytest.mark.parametrize(
    ("names", "vectors", "message"),
    [
        (["a"], [[1.0], [2.0]], "語の数 1"),
        (["a", "a"], [[1.0], [2.0]], "二度"),
        (["a"], [[math.nan]], "NaN"),
        (["a"], [1.0], "次元"),
    ],
)
def test_bad_embeddings_are_refused(names, vectors, message: str):
    with pytest.raises(ValueError, match=message):
        Embeddings(names, np.array(vectors))


def test_unknown_words_and_bad_k():
    with pytest.raises(ValueError, match="語彙にありません"):
        VECTORS.similarity("a", "unknown")
    with pytest.raises(ValueError, match="k "):
        VECTORS.nearest("a", 0)
