"""Nearest rows and measures, compared with scikit-learn and with plain Python."""

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from unisono.transforms.base import nearest as quality


@pytest.fixture(params=[None, 700], ids=["one-block", "many-blocks"], autouse=True)
def _blocks(request, monkeypatch):
    if request.param:
        monkeypatch.setattr(quality, "_BLOCK_VALUES", request.param)


def _pairs(n, dim, noise, seed=0):
    rng = np.random.default_rng(seed)
    targets = rng.standard_normal((n, dim)).astype(np.float32)
    return (targets + noise * rng.standard_normal((n, dim))).astype(np.float32) * 3, targets


def test_retrieval_agrees_with_nearest_neighbours():
    queries, targets = _pairs(150, 12, 1.5)
    order = NearestNeighbors(n_neighbors=150, metric="cosine", algorithm="brute").fit(targets)
    _, found = order.kneighbors(queries)
    ranks = 1 + np.argmax(found == np.arange(150)[:, None], axis=1)
    got = quality.retrieval(queries, targets, ks=(1, 5, 20))
    assert got["recall@1"] == (found[:, 0] == np.arange(150)).mean()
    assert got["recall@5"] == (ranks <= 5).mean()
    assert got["recall@20"] == (ranks <= 20).mean()
    assert got["median_rank"] == np.median(ranks)
    assert got["mrr"] == pytest.approx(np.mean(1 / ranks), rel=1e-12)
    assert got["n"] == 150
    assert 0.05 < got["recall@1"] < 0.95  # The data are neither too easy nor too hard.


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (np.ones((5, 3)), [3, 3, 3, 3, 3]),
        (np.zeros((4, 2)), [2.5, 2.5, 2.5, 2.5]),
        (np.array([[1.0, 0], [2, 0], [0, 1]]), [1.5, 1.5, 1]),
    ],
    ids=["all-equal", "all-zero", "two-tie"],
)
def test_ties_take_the_mid_rank(targets, expected):
    assert quality.paired_ranks(targets, targets).tolist() == expected


def test_random_vectors_reach_the_level_of_chance():
    queries, _ = _pairs(600, 8, 0, seed=1)
    targets, _ = _pairs(600, 8, 0, seed=2)
    labels = np.random.default_rng(3).choice(["a", "b", "c"], 600, p=[0.6, 0.3, 0.1])
    chance = quality.chance_recall(600, 60)
    assert chance == 0.1
    assert quality.retrieval(queries, targets, (60,))["recall@60"] == pytest.approx(chance, abs=0.05)
    chance = quality.chance_same_label(labels)
    assert chance == pytest.approx(0.46, abs=0.04)
    assert quality.same_label_neighbours(targets, labels, 10) == pytest.approx(chance, abs=0.03)
    assert quality.chance_recall(5, 10) == 1


def test_same_label_neighbours_agrees_with_scikit_learn():
    rng = np.random.default_rng(4)
    labels = rng.integers(0, 6, 200)
    vectors = np.eye(6)[labels] + 0.6 * rng.standard_normal((200, 6))
    graph = NearestNeighbors(n_neighbors=7, metric="cosine", algorithm="brute").fit(vectors)
    near = graph.kneighbors(return_distance=False)  # Without an argument, a row is not its own neighbour.
    expected = np.mean(labels[near] == labels[:, None])
    assert quality.same_label_neighbours(vectors, labels, 7) == pytest.approx(expected, abs=1e-12)
    assert 0.3 < expected < 0.95


def _plain_top_k(scores, k):
    return np.array([sorted(range(len(row)), key=lambda i: (-row[i], i))[:k] for row in scores])


@pytest.mark.parametrize("k", [1, 4, 29, 30, 50])
def test_top_k_breaks_ties_by_lower_index(k):
    rng = np.random.default_rng(k)
    queries = rng.integers(-1, 2, (40, 3)).astype(np.float32)  # Small integers make many equal scores.
    items = rng.integers(-1, 2, (30, 3)).astype(np.float32)
    indices, scores = quality.top_k(queries, items, k)
    plain = queries @ items.T
    assert np.array_equal(indices, _plain_top_k(plain, min(k, 30)))
    assert np.array_equal(scores, np.take_along_axis(plain, indices, 1))
    assert (indices.dtype, scores.dtype) == (np.int64, np.float32)


def test_top_k_excludes_pairs():
    rng = np.random.default_rng(5)
    queries, items = rng.standard_normal((50, 6)), rng.standard_normal((25, 6))
    banned = rng.random((50, 25)) < 0.5
    banned[7] = True
    banned[8] = np.arange(25) >= 2
    rows, columns = np.nonzero(banned)
    shuffled = rng.permutation(len(rows))
    indices, scores = quality.top_k(queries, items, 5, exclude=(rows[shuffled], columns[shuffled]))
    plain = np.where(banned, -np.inf, queries @ items.T)
    full = np.setdiff1d(np.arange(50), [7, 8])
    assert np.array_equal(indices[full], _plain_top_k(plain[full], 5))
    assert (indices[7] == -1).all()
    assert np.isneginf(scores[7]).all()
    assert sorted(indices[8, :2]) == [0, 1]
    assert (indices[8, 2:] == -1).all()


@pytest.mark.parametrize("k", [1, 3, 12, 20])
def test_best_columns_agree_with_a_sort(k):
    rng = np.random.default_rng(k)
    scores = rng.integers(-2, 3, (30, 12)).astype(float)  # Small integers make many equal scores.
    scores[rng.random(scores.shape) < 0.2] = -np.inf
    ties = rng.permuted(np.tile(np.arange(12), (30, 1)), axis=1)
    assert np.array_equal(quality.best_columns(scores, k), _plain_top_k(scores, min(k, 12)))
    expected = [sorted(range(12), key=lambda i: (-s[i], t[i]))[:k] for s, t in zip(scores, ties, strict=True)]
    assert np.array_equal(quality.best_columns(scores, k, ties), expected)


@pytest.mark.parametrize(
    "call",
    [
        lambda: quality.retrieval(np.ones((2, 3)), np.ones((3, 3))),
        lambda: quality.retrieval(np.ones((0, 3)), np.ones((0, 3))),
        lambda: quality.top_k(np.ones((2, 3)), np.ones((0, 3)), 1),
        lambda: quality.top_k(np.ones((2, 3)), np.ones((2, 3)), 0),
        lambda: quality.top_k(np.ones((2, 3)), np.full((2, 3), np.nan), 1),
        lambda: quality.same_label_neighbours(np.ones((1, 3)), np.zeros(1), 1),
    ],
    ids=["shapes", "empty", "no-items", "k-0", "nan", "one-row"],
)
def test_arguments_without_an_answer_are_refused(call):
    with pytest.raises(ValueError, match=r"need|no items"):
        call()
