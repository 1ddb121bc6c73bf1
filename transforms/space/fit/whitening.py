"""Principal axes and shrunk whitening of one modality, the signs of axes, and the turn between two sets of axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg

from unisono.transforms.space.fit.moments import Moments

_RANK_FLOOR = 1e-10  # a variance below this fraction of the largest one counts as zero
_OAS_FACTOR = 15.0  # among 5, 10, 15, 20 and 30, the best on the demo and the stamps (docs/quality.md)


@dataclass(frozen=True)
class Whitener:
    """D^{-1/2} of one modality on its principal axes, where D is C + λI without the null space of C.

    Attributes:
        basis: float64 [d, rank]: each axis divided by √(variance + λ).
        axes: float64 [d, rank], orthonormal, the axis of the largest variance first.
        regularization: r in λ = r · trace(C) / d.
    """

    basis: np.ndarray
    axes: np.ndarray
    regularization: float


def oas_intensity(covariance: np.ndarray, n: int) -> float:
    """Estimates the shrinkage intensity ρ, 0 … 1: (1 − ρ) · C + ρ · (trace C / d) · I is the best estimate of C.

    Source: Chen, Wiesel, Eldar, Hero, "Shrinkage algorithms for MMSE covariance estimation", IEEE TSP 58(10),
    2010, eq. 23 (oracle approximating shrinkage).

    Args:
        covariance: C, float64 [d, d].
        n: the number of rows that C was estimated from.
    """
    d = len(covariance)
    square, trace2 = float(np.sum(covariance**2)), float(np.trace(covariance)) ** 2
    below = (n + 1 - 2 / d) * (square - trace2 / d)
    return min(1.0, ((1 - 2 / d) * square + trace2) / below) if below > 0 else 1.0


def default_regularization(covariance: np.ndarray, n: int) -> float:
    """Returns the default r of the ridge λ = r · trace(C) / d: fifteen times what OAS asks for.

    An intensity ρ is the ridge r = ρ / (1 − ρ): C + r · trace(C) / d · I is then the shrunk C times 1 + r.

    Args:
        covariance: C, float64 [d, d].
        n: the number of rows that C was estimated from.
    """
    rho = min(oas_intensity(covariance, n), 0.999)
    return _OAS_FACTOR * rho / (1 - rho)


def shared_regularization(moments: Moments, modalities: Sequence[str]) -> float:
    """Returns one r for all modalities: the geometric mean of their default values.

    The covariance of one modality may be hard to estimate, although the modality is strongly related to the others. A
    separate r for each modality lowered the demo's R@10 by 3% (docs/quality.md).
    """
    own = [default_regularization(moments.covariance(m, m), moments.count(m)) for m in modalities]
    return float(np.exp(np.mean(np.log(np.maximum(own, 1e-12)))))


def principal_axes(covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the principal axes of the directions that have any variance.

    Returns:
        Variances float64 [rank], the largest first; axes float64 [d, rank].
    """
    variances, axes = scipy.linalg.eigh(covariance)
    keep = np.flatnonzero(variances > _RANK_FLOOR * variances[-1])[::-1]
    return variances[keep], axes[:, keep]


def whitener(moments: Moments, m: str, regularization: float | None) -> Whitener:
    """Whitens a modality.

    Args:
        moments: the moments of the embeddings.
        m: the modality.
        regularization: r in λ = r · trace(C) / d. None means `default_regularization`.
    """
    covariance = moments.covariance(m, m)
    if regularization is None:
        regularization = default_regularization(covariance, moments.count(m))
    variances, axes = principal_axes(covariance)
    ridge = regularization * np.trace(covariance) / len(covariance)
    return Whitener(axes / np.sqrt(variances + ridge), axes, float(regularization))


def signs(axes: np.ndarray) -> np.ndarray:
    """Returns for each column the sign, ±1.0, that makes its entry of largest absolute value positive: [columns]."""
    return np.where(np.take_along_axis(axes, np.abs(axes).argmax(0)[None], 0)[0] < 0, -1.0, 1.0)


def padded(axes: np.ndarray, dim: int) -> np.ndarray:
    """Returns the first `dim` columns, each with its sign fixed by `signs`, and zero columns where there are fewer."""
    own = axes[:, :dim]
    return np.pad(own * signs(own), ((0, 0), (0, dim - own.shape[1])))


def turn_to(new: np.ndarray, old: np.ndarray) -> np.ndarray:
    """Returns the R with orthonormal columns for which new · R is closest to old: float64 [dim, k].

    R = U Vᵀ, where newᵀ old = U S Vᵀ. For k < dim this R has the largest Σ ⟨new · R, old⟩.

    Source: Schönemann, "A generalized solution of the orthogonal Procrustes problem", Psychometrika 31(1), 1966.

    Args:
        new: float [n, dim].
        old: float [n, k], k ≤ dim, rows of the same items.
    """
    u, _, vt = scipy.linalg.svd(new.astype(np.float64).T @ old.astype(np.float64), full_matrices=False)
    return np.ascontiguousarray(u @ vt)
