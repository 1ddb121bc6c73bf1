"""The benchmark's rivals, compared with dense sums, least squares and the equations of their papers."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import scipy.sparse

from benchmarks.rivals import (
    RIVALS,
    decayed,
    decayed_by_rank,
    ease_with_our_ageing,
    fold_in,
    late_counts,
    pair_times,
    trend,
)
from tests.benchmarks.cases import DAY, ITEMS, SPLIT, make_tables
from unisono.pipelines.ask.ranking_case import Case, make_case

LIKED = 0.5
EVERYBODY = np.arange(8)


@pytest.fixture(scope="module")
def case() -> Case:
    embeddings, events = make_tables()
    return make_case(embeddings, events, SPLIT, LIKED)


def newest_times(case: Case) -> dict[tuple[int, int], int]:
    """The time of the newest event of each pair of a row and a column of `case.log`, row by row."""
    people = case.train["user_id"].unique().to_pylist()
    items = case.embeddings["item_id"].to_pylist()
    out: dict[tuple[int, int], int] = {}
    times = case.train["time"].cast(pa.int64()).to_pylist()
    for user, item, time in zip(*(case.train[c].to_pylist() for c in ("user_id", "item_id")), times, strict=True):
        pair = people.index(user), items.index(item)
        out[pair] = max(time, out.get(pair, 0))
    return out


def test_pair_times_are_the_newest(case: Case) -> None:
    known = newest_times(case)
    assert pair_times(case).tolist() == [known[u, i] for u, i in zip(*case.log.nonzero(), strict=True)]


def test_late_counts_and_trend_equal_sums_over_pairs(case: Case) -> None:
    known = newest_times(case)
    newest = max(known.values())
    late, ever = np.zeros(ITEMS), np.zeros(ITEMS)
    for user, item in zip(*case.log.nonzero(), strict=True):
        late[item] += 2.0 ** (-(newest - known[user, item]) / (14 * DAY))
        ever[item] += 1
    np.testing.assert_allclose(late_counts(case, 14.0), late, rtol=1e-12)
    np.testing.assert_array_equal(late_counts(case, None), ever)
    expected = np.log(1 + late) / np.log(1 + late).max() - np.log(1 + ever) / np.log(1 + ever).max()
    np.testing.assert_allclose(trend(case, 14.0), expected, atol=1e-12)
    assert (trend(case, 14.0)[ever == 0] == 0).all()


def test_decay_by_time_and_by_rank() -> None:
    log = scipy.sparse.csr_array(np.array([[1.0, 1, 0, 1, 1], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0]]))
    times = np.array([10, 40, 40, 20, 5]) * DAY
    by_time = np.array([[2.0**-3, 1, 0, 1, 2.0**-2], [0, 0, 1, 0, 0], [0] * 5])
    np.testing.assert_allclose(decayed(log, times.astype(np.int64), 10.0).toarray(), by_time)
    # Two events share the newest time, so they share rank 0, and the next one has rank 2.
    by_rank = np.array([[2.0**-3, 1, 0, 1, 2.0**-2], [0, 0, 1, 0, 0], [0] * 5])
    np.testing.assert_allclose(decayed_by_rank(log, times.astype(np.int64), 1.0).toarray(), by_rank)


def least_squares_ease(x: np.ndarray, ridge: float) -> np.ndarray:
    """Solves for each item by least squares over all other items."""
    n = x.shape[1]
    out = np.zeros((n, n))
    for j in range(n):
        others = np.delete(np.arange(n), j)
        rows = np.vstack([x[:, others], np.sqrt(ridge) * np.eye(n - 1)])
        out[others, j] = np.linalg.lstsq(rows, np.concatenate([x[:, j], np.zeros(n - 1)]), rcond=None)[0]
    return out


def test_ease_equals_least_squares(case: Case) -> None:
    x = case.log.toarray()
    weights = least_squares_ease(x, 3.0)
    found = RIVALS["ease"].fit(case, {"ridge": 3.0})(EVERYBODY)
    np.testing.assert_allclose(found, x[EVERYBODY] @ weights, atol=1e-9)
    aged = decayed(case.log, pair_times(case), 5.0).toarray()
    found = RIVALS["ease, aged"].fit(case, {"ridge": 3.0, "half_life_days": 5.0})(EVERYBODY)
    np.testing.assert_allclose(found, aged[EVERYBODY] @ weights, atol=1e-9)


def test_ease_with_our_ageing_adds_the_trend_to_standardised_scores(case: Case) -> None:
    times = pair_times(case)
    history = (decayed(case.log, times, 30.0) + 3 * decayed_by_rank(case.log, times, 3.0)).toarray()
    scores = history[EVERYBODY] @ least_squares_ease(case.log.toarray(), 20.0)
    warm = case.log.toarray().any(0)
    expected = scores / scores[:, warm].std(1, keepdims=True) + 2 * trend(case, 14.0)
    found = ease_with_our_ageing(case, {"ridge": 20.0, "recent": 3, "trend": 2})(EVERYBODY)
    np.testing.assert_allclose(found, expected, atol=1e-8)


@pytest.mark.parametrize(("observed", "unobserved"), [(1.0, 0.3), (4.0, 1.0)], ids=["iALS", "implicit"])
def test_fold_in_minimises_the_loss(case: Case, observed: float, unobserved: float) -> None:
    rng = np.random.default_rng(3)
    items = rng.normal(size=(ITEMS, 4))
    ridge = rng.uniform(0.5, 2, len(EVERYBODY))
    found = fold_in(items, case.log[EVERYBODY], observed, unobserved, ridge)
    for user, x in enumerate(case.log[EVERYBODY].toarray()):
        # observed Σ_mine (1/observed − u·v)² + unobserved Σ_all (u·v)² + r |u|², as least squares
        rows = np.vstack([np.sqrt(observed * x)[:, None] * items, np.sqrt(unobserved) * items, np.eye(4)])
        rows[-4:] *= np.sqrt(ridge[user])
        wanted = np.concatenate([np.sqrt(observed * x) / observed, np.zeros(ITEMS + 4)])
        np.testing.assert_allclose(found[user], np.linalg.lstsq(rows, wanted, rcond=None)[0], atol=1e-10)


def test_items_of_implicit_give_its_own_users(case: Case) -> None:
    als = pytest.importorskip("implicit.cpu.als")
    settings = {"factors": 4, "regularization": 0.5, "alpha": 3.0}
    found = RIVALS["ials, implicit's items"].fit(case, settings)(EVERYBODY)
    model = als.AlternatingLeastSquares(**settings, iterations=15, random_state=0, num_threads=1)
    log = scipy.sparse.csr_matrix(case.log, dtype=np.float32)
    model.fit(log, show_progress=False)
    users = np.stack([model.recalculate_user(u, log[u]) for u in EVERYBODY])
    np.testing.assert_allclose(3.0 * found, users @ model.item_factors.T, atol=1e-4)


@pytest.mark.skipif(
    importlib.util.find_spec("unisono.transforms.behaviour.factors") is None, reason="there is no iALS of ours yet"
)
def test_our_items_reach_the_minimum_of_both_sides(case: Case) -> None:
    settings = {"factors": 3, "regularization": 0.02, "unobserved": 0.2, "sweeps": 60, "seed": 0}
    found = RIVALS["ials, our items"].fit(case, settings)(np.arange(case.log.shape[0]))
    x = case.log.toarray()
    x, found = x[:, x.any(0)], found[:, x.any(0)]
    users, items = np.ones((len(x), 3)), np.random.default_rng(0).normal(0, 0.1, (x.shape[1], 3))
    for _ in range(300):
        for mine, other, seen in ((users, items, x), (items, users, x.T)):
            for row, has in enumerate(seen):
                left = 0.2 * other.T @ other + (other * has[:, None]).T @ other
                left += 0.02 * (has.sum() + 0.2 * len(other)) * np.eye(3)
                mine[row] = np.linalg.solve(left, has @ other)
    assert np.corrcoef(found.ravel(), (users @ items.T).ravel())[0, 1] > 0.999


@pytest.mark.parametrize("name", [n for n in RIVALS if n != "ials, our items"])
def test_every_rival_fits_with_the_first_settings_of_its_grid(case: Case, name: str) -> None:
    settings: dict[str, Any] = {key: values[0] for key, values in RIVALS[name].grid.items()}
    pytest.importorskip("implicit" if name in ("als", "bpr", "ials, implicit's items") else "numpy")
    pytest.importorskip("torch" if name == "vbpr" else "numpy")
    scores = RIVALS[name].fit(case, settings)(EVERYBODY)
    assert scores.shape == (len(EVERYBODY), ITEMS)
    assert np.isfinite(scores).all()
