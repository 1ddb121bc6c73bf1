"""Baselines, compared with dense NumPy and with the library whose formula they use."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse

from unisono.transforms.base.errors import JobError
from unisono.transforms.measure import baselines
from unisono.transforms.measure.baselines import BASELINES, Baseline, Known, fit_baseline, keep_nearest


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


def test_equal_neighbours_are_kept_in_a_given_order() -> None:
    equal = scipy.sparse.csr_array(np.ones((3, 6)))
    order = np.array([4, 0, 5, 1, 2, 3])
    kept = keep_nearest(equal, 2, order).toarray()
    np.testing.assert_array_equal(kept, np.tile([1, 0, 0, 0, 1, 0], (3, 1)))


def aged_log() -> tuple[scipy.sparse.csr_array, np.ndarray, Known]:
    """A log of likes, the age of each like as a dense matrix, and what baselines know of it."""
    x = log()
    x.data[:] = 1.0
    ages = np.random.default_rng(8).uniform(0, 90, x.nnz)
    dense = np.zeros(x.shape)
    dense[x.nonzero()] = ages
    return x, dense, Known(ages)


def test_aged_popularity_is_a_sum_over_users() -> None:
    x, ages, known = aged_log()
    found = fit_baseline(Baseline("popular-aged", {"half_life_days": 20}), x, known=known)(np.array([0]))
    expected = [sum(0.5 ** (ages[u, i] / 20) for u in range(120) if x[u, i]) for i in range(40)]
    np.testing.assert_allclose(found[0], expected, rtol=1e-12)


@pytest.mark.parametrize("name", ["ease", "ease-aged"])
def test_ease_is_a_ridge_regression_of_each_item_on_the_others(name: str) -> None:
    x, ages, known = aged_log()
    dense, ridge, expected = x.toarray(), 7.0, np.zeros((120, 40))
    history = dense * 0.5 ** (ages / 25) if name == "ease-aged" else dense
    for i in range(40):
        others = np.delete(dense, i, 1)
        b = np.linalg.solve(others.T @ others + ridge * np.eye(39), others.T @ dense[:, i])
        expected[:, i] = np.delete(history, i, 1) @ b
    options = {"ridge": ridge} | ({"half_life_days": 25} if name == "ease-aged" else {})
    found = fit_baseline(Baseline(name, options), x, known=known)(np.arange(120))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)


def test_ease_refuses_many_items_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "MOST_EASE_ITEMS", 38)
    with pytest.raises(JobError, match="39 items, and at most 38 are allowed"):
        fit_baseline(Baseline("ease"), log())  # the item that nobody likes is in no matrix


def test_content_is_the_mean_cosine_over_the_modalities_of_an_item() -> None:
    rng, (x, _, _) = np.random.default_rng(3), aged_log()
    content = {m: (rng.normal(2, 1, (40, d)).astype(np.float32), rng.random(40) < 0.8) for m, d in (("a", 5), ("b", 7))}
    content["a"][1][3] = content["b"][1][3] = False
    found = fit_baseline(Baseline("content"), x, known=Known(content=content))(np.arange(120))
    for u in range(0, 120, 7):
        for i in range(40):
            cosines = []
            for vectors, present in content.values():
                if present[i]:
                    centred = vectors - vectors[present].mean(0)
                    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
                    mean = sum(unit[j] for j in range(40) if x[u, j] and present[j])
                    cosines.append(unit[i] @ mean / np.linalg.norm(mean))
            assert found[u, i] == pytest.approx(np.mean(cosines) if cosines else 0, abs=1e-5)


def test_popular_and_random() -> None:
    x = log()
    popular = fit_baseline(Baseline("popular"), x)(np.array([0, 7]))
    np.testing.assert_array_equal(popular, np.tile((x.toarray() > 0).sum(0), (2, 1)))
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
