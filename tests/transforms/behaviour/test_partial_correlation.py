"""Partial correlations against ridge regressions, and their leading axes against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse

from unisono.transforms.base.errors import JobError
from unisono.transforms.behaviour.partial_correlation import MOST_ITEMS, leading_axes, partial_correlations


def touched(users: int = 400, items: int = 30) -> np.ndarray:
    rng = np.random.default_rng(0)
    taste = rng.normal(size=(users, 3)) @ rng.normal(size=(3, items))
    return (taste + rng.normal(size=taste.shape) > 1).astype(float)


def test_equal_to_the_geometric_mean_of_two_ridge_regressions() -> None:
    x = touched()
    found = partial_correlations(scipy.sparse.csr_array(x.T @ x), 7.0)
    n = x.shape[1]
    weights = np.zeros((n, n))
    for j in range(n):  # predict each item from all others: EASE, without its matrix identity
        rest = [i for i in range(n) if i != j]
        gram = x[:, rest].T @ x[:, rest] + 7.0 * np.eye(n - 1)
        weights[rest, j] = np.linalg.solve(gram, x[:, rest].T @ x[:, j])
    both = weights * weights.T
    assert (both > -1e-12).all()
    np.testing.assert_allclose(found, np.sign(weights) * np.sqrt(np.maximum(both, 0)), atol=1e-9)
    np.testing.assert_array_equal(found, found.T)


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_axes_are_those_of_numpy(power: float) -> None:
    x = touched()
    matrix = partial_correlations(scipy.sparse.csr_array(x.T @ x), 20.0)
    found = leading_axes(matrix, 8, power)
    values, vectors = np.linalg.eigh(matrix)
    expected = vectors[:, -8:] * values[-8:] ** power
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-10)
    assert (found[np.abs(found).argmax(0), np.arange(8)] > 0).all()
    whole = leading_axes(matrix, 99, 0.5)
    positive = (vectors * np.maximum(values, 0)) @ vectors.T
    np.testing.assert_allclose(whole @ whole.T, positive, atol=1e-9)
    assert leading_axes(np.zeros((0, 0)), 4, 1.0).shape == (0, 0)


def test_too_many_items_are_refused_before_any_memory_is_taken() -> None:
    n = MOST_ITEMS + 1
    with pytest.raises(JobError, match="ridge inverts a matrix of 20,001 items"):
        partial_correlations(scipy.sparse.csr_array((n, n)), 1.0)
