"""Factors against dense solves in float64."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest

from unisono.transforms.base.errors import JobError
from unisono.transforms.base.tables import to_vector_column
from unisono.transforms.behaviour import factors as module
from unisono.transforms.behaviour import left_factors
from unisono.transforms.behaviour.factors import (
    Factors,
    FactorSpec,
    fit_factors,
    rotated,
    settled,
    start_factors,
    turn_between,
)
from unisono.transforms.behaviour.likes import Likes

SPEC = FactorSpec(factors=12, sweeps=3, regularization=0.01)


def draw(users: int = 150, items: int = 70, seed: int = 0) -> tuple[np.ndarray, Likes]:
    """The 0/1 matrix of likes in which everybody has one, and the same as `Likes`, drawn with popular items."""
    rng = np.random.default_rng(seed)
    x = rng.random((users, items)) < rng.uniform(0.02, 0.4, items)
    x[np.arange(users), np.arange(users) % items] = True
    user, item = np.nonzero(x)
    order = rng.permutation(len(user))
    pairs = pa.table({"user_id": [f"u{u:04d}" for u in user[order]], "item_id": pa.array(item[order] * 5)})
    return x.astype(np.float64), Likes.of(pairs)


def solve(x: np.ndarray, other: np.ndarray, spec: FactorSpec) -> np.ndarray:
    """One half-sweep, row by row, in float64."""
    d = other.shape[1]
    out = np.empty((len(x), d))
    for r, row in enumerate(x):
        v = other[row > 0]
        assert spec.regularization is not None
        ridge = spec.regularization * (len(v) + spec.unobserved * len(other))
        out[r] = np.linalg.solve(v.T @ v + spec.unobserved * other.T @ other + ridge * np.eye(d), v.sum(0))
    return out


def reference(x: np.ndarray, start: np.ndarray, spec: FactorSpec) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Item, left and user factors by dense solves."""
    v = start.astype(np.float64)
    for _ in range(spec.sweeps):
        v = solve(x.T, solve(x, v, spec), spec)
    u = solve(x, v, spec)
    return v, np.linalg.solve(x.T @ x + spec.left_ridge * np.eye(x.shape[1]), x.T @ u), u


@pytest.mark.parametrize("d", [1, 5, 16, 40])
def test_factors_are_those_of_dense_solves(d, monkeypatch):
    monkeypatch.setattr(module, "_LIKES_A_THREAD", 300)  # so that threads share the rows
    monkeypatch.setattr(left_factors, "_LIKES_A_THREAD", 300)
    spec = FactorSpec(factors=d, sweeps=4, regularization=0.02, unobserved=0.3)
    x, likes = draw()
    found = fit_factors(likes, spec)
    v, a, u = reference(x, start_factors(likes.item_ids, spec), spec)
    np.testing.assert_allclose(found.item_factors, v, atol=2e-5)
    np.testing.assert_allclose(found.user_factors, u, atol=2e-5)
    rest = x.T @ u - (x.T @ x + spec.left_ridge * np.eye(x.shape[1])) @ found.left_factors
    allowed = 1.1e-3 * np.linalg.norm(x.T @ u, axis=0)
    assert (np.linalg.norm(rest, axis=0) <= allowed).all()
    # The ridge is the least that the smallest eigenvalue of XᵀX + ridge · I can be.
    assert (np.linalg.norm(found.left_factors - a, axis=0) <= allowed / spec.left_ridge).all()
    np.testing.assert_array_equal(found.users, x.sum(0))
    assert found.item_ids.to_pylist() == [i * 5 for i in range(70)]


def test_sparse_likes_lower_the_weight_of_other_pairs():
    assert settled(SPEC, likes=5000, users=100, items=100) == SPEC
    assert settled(SPEC, likes=4_000_000, users=200_000, items=20_000).unobserved == pytest.approx(0.016)
    assert settled(SPEC, likes=0, users=0, items=0).unobserved == 0.0
    x, likes = draw()
    dense, sparse = replace(SPEC, unobserved=0.05), replace(SPEC, most_unobserved=0.05 * x.size / x.sum())
    np.testing.assert_array_equal(fit_factors(likes, sparse).item_factors, fit_factors(likes, dense).item_factors)


def test_a_regularization_that_is_not_given_loses_no_taste_of_usual_size():
    spec = replace(SPEC, regularization=None)
    assert settled(spec, likes=55_375, users=942, items=1447).regularization == pytest.approx(0.0099, abs=1e-4)
    for likes, users, items in ((5_843, 400, 1766), (4_000_000, 200_000, 20_000), (30, 10, 10)):
        found = settled(spec, likes=likes, users=users, items=items)
        assert found.regularization is not None
        bound = found.regularization * found.unobserved * np.sqrt(users * items)
        assert bound == pytest.approx(0.75 * np.sqrt(likes / min(users, items)))


def test_sweeps_lower_the_loss():
    x, likes = draw()

    def loss(f: Factors, spec: FactorSpec) -> float:
        u, v = f.user_factors.astype(np.float64), f.item_factors.astype(np.float64)
        scores = u @ v.T
        ridge = (x.sum(1) + spec.unobserved * len(v)) @ (u**2).sum(1) + (x.sum(0) + spec.unobserved * len(u)) @ (
            v**2
        ).sum(1)
        return float((x * (1 - scores) ** 2).sum() + spec.unobserved * (scores**2).sum() + spec.regularization * ridge)

    losses = [loss(fit_factors(likes, replace(SPEC, sweeps=n)), SPEC) for n in (1, 2, 4, 8)]
    assert all(b < a for a, b in pairwise(losses))


def test_the_start_is_nearly_normal_and_depends_on_id_seed_and_column_alone():
    spec = FactorSpec(factors=16)
    ids = pa.array(np.arange(20_000))
    start = start_factors(ids, spec)
    assert start.std() == pytest.approx(0.1 / 4, rel=0.01)
    assert abs(start.mean()) < 1e-4
    assert np.abs(np.corrcoef(start.T) - np.eye(16)).max() < 0.04
    some = np.array([19_000, 3, 512])
    np.testing.assert_array_equal(start_factors(ids.take(pa.array(some)), spec), start[some])
    assert (start_factors(ids, replace(spec, seed=1)) != start).mean() > 0.99


def published_table(ids: list[int], vectors: np.ndarray) -> pa.Table:
    return pa.table({"item_id": pa.array(ids), "item_factor": to_vector_column(vectors.astype(np.float32))})


def test_a_start_is_used_and_the_factors_turn_to_it():
    x, likes = draw()
    spec = replace(SPEC, sweeps=2)
    plain = fit_factors(likes, replace(spec, sweeps=12))
    q = np.linalg.qr(np.random.default_rng(0).standard_normal((12, 12)))[0]
    old = plain.item_factors @ q
    known = list(range(40))  # the other items are new
    published = published_table([*(i * 5 for i in known), 1001], np.vstack([old[known], np.ones((1, 12))]))
    found = fit_factors(likes, spec, published)
    start = start_factors(likes.item_ids, spec)
    assert np.abs(start[known] - old[known]).max() > 0.1
    start[known] = old[known]
    np.testing.assert_array_equal(start_factors(likes.item_ids, spec, published), start.astype(np.float32))
    v, a, u = reference(x, start, spec)
    left, _, right = np.linalg.svd(v[known].T @ old[known])
    turn = left @ right
    np.testing.assert_allclose(found.item_factors, v @ turn, atol=2e-5)
    np.testing.assert_allclose(found.user_factors, u @ turn, atol=2e-5)
    np.testing.assert_allclose(found.left_factors, a @ turn, atol=5e-3 * np.abs(a).max())
    np.testing.assert_allclose(found.user_factors @ found.item_factors.T, u @ v.T, atol=2e-5)


@pytest.mark.parametrize("start", ["empty", "other dimension", "other kind of ids"])
def test_a_start_that_does_not_fit_changes_nothing(start):
    _, likes = draw()
    tables = {
        "empty": published_table([], np.empty((0, 12))),
        "other dimension": published_table([0, 5], np.ones((2, 8))),
        "other kind of ids": published_table([0], np.ones((1, 12))).set_column(0, "item_id", pa.array(["0"])),
    }
    found, plain = fit_factors(likes, SPEC, tables[start]), fit_factors(likes, SPEC)
    np.testing.assert_array_equal(found.item_factors, plain.item_factors)
    np.testing.assert_array_equal(found.left_factors, plain.left_factors)


def test_a_turn_keeps_the_rows_apart():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((50, 9)).astype(np.float32)
    turn = turn_between(rng.standard_normal((9, 9)))
    assert turn is not None
    np.testing.assert_allclose(turn @ turn.T, np.eye(9), atol=1e-12)
    found = rotated(rows, turn)
    np.testing.assert_allclose(found, rows.astype(np.float64) @ turn, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(rotated(rows[7:8], turn), found[7:8])
    assert turn_between(np.zeros((9, 9))) is None


@pytest.mark.parametrize("users", [0, 1])
def test_hardly_any_likes(users):
    pairs = pa.table({"user_id": pa.array(["u"] * users, pa.string()), "item_id": pa.array(["i"] * users, pa.string())})
    found = fit_factors(Likes.of(pairs), replace(SPEC, regularization=1e-5))
    assert found.item_factors.shape == found.left_factors.shape == found.user_factors.shape == (users, 12)
    assert all(np.isfinite(part).all() for part in (found.item_factors, found.left_factors, found.user_factors))
    if users:
        # Almost without regularization the score is where (1 − s)² + s²/2 is smallest, at 2/3.
        assert found.user_factors[0] @ found.item_factors[0] == pytest.approx(2 / 3, abs=0.01)


@pytest.mark.parametrize("regularization", [1e-30, 1e-9])
def test_a_regularization_that_is_too_small_is_refused(regularization):
    _, likes = draw(users=8, items=9)
    with pytest.raises(JobError, match=r"^ranking: with a regularization of 1e-\d\d and 40 factors, some"):
        fit_factors(likes, FactorSpec(factors=40, regularization=regularization, unobserved=0.0))
