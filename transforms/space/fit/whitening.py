"""Principal axes and shrunk whitening of one modality, from its moments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg

from unisono.transforms.space.fit.moments import Moments

_RANK_FLOOR = 1e-10  # directions with less than this part of the largest variance are taken for none
_OAS_FACTOR = 15.0  # how much stronger than OAS: of 5, 10, 15, 20, 30 the best on demo and stamps (docs/quality.md)


@dataclass(frozen=True)
class Whitener:
    """D^{-1/2} of one modality on its principal axes, D = C + λI less the null space.

    Attributes:
        basis: float64 [d, rank], axes over √(variance + λ).
        axes: float64 [d, rank], orthonormal, the largest variance first.
        regularization: r in λ = r · trace(C) / d.
    """

    basis: np.ndarray
    axes: np.ndarray
    regularization: float


def oas_intensity(covariance: np.ndarray, n: int) -> float:
    """Estimates how much of (trace C / d) · I best replaces as much of C, from n rows: 0 … 1.

    Source: Chen, Wiesel, Eldar, Hero, "Shrinkage algorithms for MMSE covariance estimation", IEEE TSP 58(10),
    2010, eq. 23 (oracle approximating shrinkage).
    """
    d = len(covariance)
    square, trace2 = float(np.sum(covariance**2)), float(np.trace(covariance)) ** 2
    below = (n + 1 - 2 / d) * (square - trace2 / d)
    return min(1.0, ((1 - 2 / d) * square + trace2) / below) if below > 0 else 1.0


def default_regularization(covariance: np.ndarray, n: int) -> float:
    """Gives r: fifteen times the intensity of OAS, as a ridge: C + r · trace(C) / d · I is (1 + r) times shrunk C."""
    rho = min(oas_intensity(covariance, n), 0.999)
    return _OAS_FACTOR * rho / (1 - rho)


def shared_regularization(moments: Moments, modalities: Sequence[str]) -> float:
    """Gives one r for all modalities, the geometric mean of their own.

    What is shrunk for is a shared axis; a modality whose covariance alone is harder to estimate is not for that less
    related to the others, and a strength of its own cost 3% of the demo's R@10 (docs/quality.md).
    """
    own = [default_regularization(moments.covariance(m, m), moments.count(m)) for m in modalities]
    return float(np.exp(np.mean(np.log(np.maximum(own, 1e-12)))))


def principal_axes(covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Variances, largest first, and axes [d, rank], of the directions that have any variance."""
    variances, axes = scipy.linalg.eigh(covariance)
    keep = np.flatnonzero(variances > _RANK_FLOOR * variances[-1])[::-1]
    return variances[keep], axes[:, keep]


def whitener(moments: Moments, m: str, regularization: float | None) -> Whitener:
    """Whitens a modality; regularization None: by `default_regularization`."""
    covariance = moments.covariance(m, m)
    if regularization is None:
        regularization = default_regularization(covariance, moments.count(m))
    variances, axes = principal_axes(covariance)
    ridge = regularization * np.trace(covariance) / len(covariance)
    return Whitener(axes / np.sqrt(variances + ridge), axes, float(regularization))


def signs(axes: np.ndarray) -> np.ndarray:
    """±1 for each column, so that its largest entry in size becomes positive."""
    return np.where(np.take_along_axis(axes, np.abs(axes).argmax(0)[None], 0)[0] < 0, -1.0, 1.0)


def padded(axes: np.ndarray, dim: int) -> np.ndarray:
    """The first `dim` columns, each with a fixed sign; zeros where there are fewer."""
    own = axes[:, :dim]
    return np.pad(own * signs(own), ((0, 0), (0, dim - own.shape[1])))


def turn_to(new: np.ndarray, old: np.ndarray) -> np.ndarray:
    """Gives the R with orthonormal columns for which new · R comes nearest to old: float64 [dim, k].

    R = U Vᵀ of newᵀ old = U S Vᵀ; with k < dim it has the largest Σ ⟨new · R, old⟩.

    Source: Schönemann, "A generalized solution of the orthogonal Procrustes problem", Psychometrika 31(1), 1966.

    Args:
        new, old: float [n, dim] and [n, k ≤ dim], rows of the same items.
    """
    u, _, vt = scipy.linalg.svd(new.astype(np.float64).T @ old.astype(np.float64), full_matrices=False)
    return np.ascontiguousarray(u @ vt)
