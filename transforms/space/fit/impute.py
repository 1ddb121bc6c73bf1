"""Fits the imputation of missing modalities."""

from __future__ import annotations

import numpy as np
import scipy.linalg

from unisono.transforms.space.fit.moments import Moments
from unisono.transforms.space.fit.whitening import default_regularization
from unisono.transforms.space.parts.imputer import ConditionalMean


def fit_conditional_mean(aligned: Moments, regularization: float | None = None) -> ConditionalMean:
    """Fits the prediction of missing modalities to the moments of vectors in the joint space.

    Available-case covariances need not form a positive semidefinite matrix. Its negative eigenvalues are set to zero:
    the result is the nearest positive semidefinite matrix.

    Source: Higham, "Computing a nearest symmetric positive semidefinite matrix", Linear Algebra and its Applications
    103, 1988, theorem 2.1.

    Args:
        aligned: the moments of the unit vectors of each modality.
        regularization: r in λ_m = r · trace(C_mm) / dim. None means `whitening.default_regularization`.
    """
    joint = joint_covariance(aligned)
    values, vectors = scipy.linalg.eigh(joint)
    if values[0] < 0:
        joint = (vectors * np.maximum(values, 0.0)) @ vectors.T
    ridge = []
    for m, dim in aligned.dims.items():
        own = aligned.covariance(m, m)
        r = default_regularization(own, aligned.count(m)) if regularization is None else regularization
        ridge.append(max(r * np.trace(own) / dim, 1e-9))
    mean = np.stack([aligned.mean(m) for m in aligned.dims])
    return ConditionalMean(mean, np.ascontiguousarray(joint), np.array(ridge))


def joint_covariance(moments: Moments) -> np.ndarray:
    """Joins the available-case covariances of all pairs: float64 [Σ d, Σ d], modalities in ascending order."""
    return np.block([[moments.covariance(a, b) for b in moments.dims] for a in moments.dims])
