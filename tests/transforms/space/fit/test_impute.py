"""Imputation against linear regression by scikit-learn."""

import itertools

import numpy as np
from sklearn.linear_model import LinearRegression

from tests.transforms.space.sample import NAMES, aligned_rows, draw, moments_of, table_of
from unisono.transforms.space.fit.fusion import inner_moments
from unisono.transforms.space.fit.impute import fit_conditional_mean, joint_covariance
from unisono.transforms.space.fit.methods import fit_space
from unisono.transforms.space.fit.spec import SpaceSpec


def aligned(missing, n=1500):
    batch = draw(n, missing=missing)
    space, table = fit_space(moments_of(batch), SpaceSpec("gcca", 6, 0.1)), table_of(batch)
    return inner_moments(space, table), aligned_rows(space, table)


def test_imputation_is_linear_regression_on_whole_rows():
    """Without missing rows and without a ridge, the prediction is ordinary least squares."""
    moments, z = aligned(0.0)
    fit = fit_conditional_mean(moments, 0.0)
    block = np.stack([z[m][:256] for m in NAMES])
    for pattern in itertools.product([True, False], repeat=3):
        if all(pattern) or not any(pattern):
            continue
        present = np.repeat(np.array(pattern)[:, None], 256, axis=1)
        got = fit.impute(np.where(present[:, :, None], block, 7.0), present)
        given = [m for m, p in zip(NAMES, pattern, strict=True) if p]
        for k, m in enumerate(NAMES):
            if pattern[k]:
                np.testing.assert_array_equal(got[k], block[k])
                continue
            ols = LinearRegression().fit(np.concatenate([z[g] for g in given], axis=1), z[m])
            want = ols.predict(np.concatenate([z[g][:256] for g in given], axis=1))
            np.testing.assert_allclose(got[k], want, atol=1e-6)


def test_the_joint_covariance_is_made_positive_semidefinite():
    moments, _ = aligned(0.5, 60)
    joint = joint_covariance(moments)
    assert np.linalg.eigvalsh(joint)[0] < 0  # its blocks are covariances of different rows
    found = fit_conditional_mean(moments).covariance
    values, vectors = np.linalg.eigh(joint)
    np.testing.assert_allclose(found, (vectors * np.maximum(values, 0)) @ vectors.T, atol=1e-12)


def test_a_ridge_shortens_predictions():
    moments, z = aligned(0.0)
    present = np.repeat(np.array([[True], [False], [True]]), 256, axis=1)
    block = np.stack([z[m][:256] for m in NAMES])
    lengths = []
    for r in (0.0, 1.0, 100.0):
        fit = fit_conditional_mean(moments, r)
        got = fit.impute(block, present)
        lengths.append(np.linalg.norm(got[1] - fit.mean[1], axis=1).mean())
    assert lengths[0] > lengths[1] > lengths[2]
    assert lengths[2] < 0.1 * lengths[0]
