"""Baselines, compared with dense NumPy and with the library whose formula they use."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse

from unisono.transforms.base.errors import JobError
from unisono.transforms.measure.baselines import BASELINES, Baseline, fit_baseline, keep_nearest


def log(seed: int = 0, users: int = 120, items: int = 40) -> scipy.sparse.csr_array:
    """A log of two groups of users, each with half of the items, and one item without interactions."""
    rng = np.random.default_rng(seed)
    own = (np.arange(users) % 2)[:, None] == (np.arange(items) % 2)[None]
    touched = rng.random((users, items)) < np.where(own, 0.3, 0.03)
    touched[:, -1] = False
    return scipy.sparse.csr_array(touched * rng.integers(1, 4, (users, items)).astype(np.float64))


def test_cosine_equals_dense() -> None:
    x = log().toarray()
    norm = np.linalg.norm(x, axis=0)
    dense = x.T @ x / (np.outer(norm, norm) + 2.5)
    for row in dense:
        row[np.argsort(-row, kind="stable")[7:]] = 0
    score = fit_baseline(Baseline("cosine", {"neighbours": 7, "shrink": 2.5}), log())
    users = np.array([5, 3, 3, 119])
    np.testing.assert_allclose(score(users), x[users] @ dense, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("k1", "b"), [(1.2, 0.75), (50.0, 0.2)], ids=["usual", "flat"])
def test_bm25_equals_implicit(k1: float, b: float) -> None:
    library = pytest.importorskip("implicit.nearest_neighbours")
    model = library.BM25Recommender(K=40, K1=k1, B=b, num_threads=1)
    model.fit(scipy.sparse.csr_matrix(log()), show_progress=False)
    expected = (log() @ model.similarity).toarray()
    found = fit_baseline(Baseline("bm25", {"neighbours": 40, "k1": k1, "b": b}), log())(np.arange(120))
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_keep_nearest_keeps_the_largest_of_each_row() -> None:
    dense = np.random.default_rng(1).integers(0, 6, (30, 50)) * (np.random.default_rng(2).random((30, 50)) < 0.5)
    kept = keep_nearest(scipy.sparse.csr_array(dense), 5).toarray()
    for row, left in zip(dense, kept, strict=True):
        order = np.argsort(-row, kind="stable")[:5]
        np.testing.assert_array_equal(np.flatnonzero(left), np.sort(order[row[order] > 0]))
        np.testing.assert_array_equal(left[order], row[order])


def test_popular_and_random() -> None:
    x = log()
    popular = fit_baseline(Baseline("popular"), x)(np.array([0, 7]))
    np.testing.assert_array_equal(popular, np.tile(x.toarray().sum(0), (2, 1)))
    drawn = fit_baseline(Baseline("random"), x, seed=3)(np.arange(120))
    assert len(np.unique(drawn)) == drawn.size
    assert abs(drawn.mean() - 0.5) < 0.02
    assert abs(np.corrcoef(drawn[0], drawn[1])[0, 1]) < 0.5
    # A user's scores do not depend on the other users in the call, and another seed draws other scores.
    np.testing.assert_array_equal(fit_baseline(Baseline("random"), x, seed=3)(np.array([9])), drawn[9:10])
    assert not np.array_equal(fit_baseline(Baseline("random"), x, seed=4)(np.arange(120)), drawn)


@pytest.mark.parametrize(
    ("name", "options"),
    [("als", {"factors": 8, "iterations": 40}), ("bpr", {"factors": 8, "iterations": 200, "learning_rate": 0.05})],
    ids=["als", "bpr"],
)
def test_factorisations_find_the_groups_and_repeat(name: str, options: dict[str, float]) -> None:
    pytest.importorskip("implicit")
    spec = Baseline(name, options)
    scores = fit_baseline(spec, log(), seed=1)(np.arange(120))
    np.testing.assert_array_equal(scores, fit_baseline(spec, log(), seed=1)(np.arange(120)))
    own = (np.arange(120) % 2)[:, None] == (np.arange(39) % 2)[None]
    unseen = log().toarray()[:, :39] == 0
    assert scores[:, :39][own & unseen].mean() > scores[:, :39][~own & unseen].mean() + 0.1


def test_bad_names_are_one_line() -> None:
    with pytest.raises(JobError, match=f"'svd' is none of {', '.join(BASELINES)}"):
        fit_baseline(Baseline("svd"), log())
    with pytest.raises(JobError, match="cosine has no option 'factors'; allowed: neighbours, shrink"):
        fit_baseline(Baseline("cosine", {"factors": 3}), log())
