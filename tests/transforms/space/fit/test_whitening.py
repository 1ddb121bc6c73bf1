"""Shrinkage, whitening and turns against scikit-learn, SciPy and NumPy."""

import numpy as np
import pytest
import scipy.linalg
from scipy.stats import special_ortho_group
from sklearn.covariance import oas

from tests.transforms.space.sample import draw, moments_of, rows_of, unit
from unisono.transforms.space.fit.whitening import (
    default_regularization,
    oas_intensity,
    padded,
    principal_axes,
    shared_regularization,
    signs,
    turn_to,
    whitener,
)


def test_oas_is_that_of_scikit_learn():
    x = np.random.default_rng(0).standard_normal((90, 200)) * np.linspace(0.1, 3, 200)
    # scikit-learn leaves out the paper's 2/d, which is 0.01 here.
    expected = oas(x)[1]
    assert oas_intensity(np.cov(x.T, ddof=0), 90) == pytest.approx(expected, rel=0.02)
    assert oas_intensity(np.eye(4), 10) == 1.0


def test_the_default_ridge_shrinks_like_fifteen_times_oas():
    x = np.random.default_rng(1).standard_normal((400, 6)) * [3, 2, 1, 1, 1, 0.5]
    covariance = np.cov(x.T, ddof=0)
    rho = oas_intensity(covariance, 400)
    r = default_regularization(covariance, 400)
    shrunk = (1 - rho) * covariance + rho * np.trace(covariance) / 6 * np.eye(6)
    ridged = covariance + r / 15 * np.trace(covariance) / 6 * np.eye(6)
    np.testing.assert_allclose(ridged / (1 + r / 15), shrunk, atol=1e-12)


def test_whitened_rows_have_shrunk_unit_variances():
    batch = draw(missing=0.3)
    moments = moments_of(batch)
    found = whitener(moments, "text", 0.2)
    x = rows_of(batch, "text")
    covariance = np.cov(x.T, ddof=0)
    shrunk = covariance + 0.2 * np.trace(covariance) / 12 * np.eye(12)
    np.testing.assert_allclose(found.basis.T @ shrunk @ found.basis, np.eye(12), atol=1e-9)
    np.testing.assert_allclose(found.axes.T @ found.axes, np.eye(12), atol=1e-12)
    own = [default_regularization(moments.covariance(m, m), moments.count(m)) for m in batch]
    assert shared_regularization(moments, list(batch)) == pytest.approx(np.prod(own) ** (1 / 3))


def test_principal_axes_leave_out_directions_without_variance():
    x = np.random.default_rng(0).standard_normal((50, 3)) @ np.random.default_rng(1).standard_normal((3, 7))
    variances, axes = principal_axes(np.cov(x.T, ddof=0))
    assert axes.shape == (7, 3)
    want = np.linalg.svd(x - x.mean(0), compute_uv=False)[:3] ** 2 / 50
    np.testing.assert_allclose(variances, want, rtol=1e-9)


def test_signs_and_padding():
    axes = np.array([[1.0, -3.0], [-2.0, 1.0], [0.5, 2.0]])
    np.testing.assert_array_equal(signs(axes), [-1.0, -1.0])
    np.testing.assert_array_equal(padded(axes, 1), [[-1.0], [2.0], [-0.5]])
    np.testing.assert_array_equal(padded(axes, 3)[:, 2], np.zeros(3))


def test_a_turn_is_that_of_scipy_and_recovers_a_rotation():
    rng = np.random.default_rng(0)
    new, turn = unit(rng.standard_normal((300, 6))), special_ortho_group.rvs(6, random_state=1)
    np.testing.assert_allclose(turn_to(new, new @ turn), turn, atol=1e-6)
    old = unit(new @ turn + 0.3 * rng.standard_normal((300, 6)))
    np.testing.assert_allclose(turn_to(new, old), scipy.linalg.orthogonal_procrustes(new, old)[0], atol=1e-6)
    short = turn_to(new, old[:, :4])
    np.testing.assert_allclose(short.T @ short, np.eye(4), atol=1e-9)
