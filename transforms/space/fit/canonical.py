"""Canonical correlation analysis of two or more modalities, and principal components of a single one, from moments."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate, combinations

import numpy as np
import scipy.linalg

from unisono.transforms.space.fit.moments import Moments
from unisono.transforms.space.fit.solution import Solution
from unisono.transforms.space.fit.spec import SpaceSpec
from unisono.transforms.space.fit.whitening import (
    Whitener,
    padded,
    principal_axes,
    shared_regularization,
    signs,
    whitener,
)

_ZERO = 1e-12  # a correlation up to this is a rounding error


def solve_gcca(moments: Moments, used: list[str], spec: SpaceSpec) -> Solution:
    """Solves regularised MAX-VAR generalised CCA. For two modalities this is regularised CCA.

    With D = blockdiag(C_aa + λ_a I), the axes are the leading eigenvectors v of
    D^{-1/2} (C + blockdiag(λ_a I)) D^{-1/2}. Its diagonal blocks are identities. (Without blockdiag(λ_a I) in the
    middle, the large variances of a single modality would count as agreement.) The eigenvalue μ over K modalities is
    the mean canonical correlation ρ = (μ − 1) / (K − 1). The maps are W_a = √K · D_a^{-1/2} v_a · ρ^weighting: with
    weighting 0, a projection that all modalities share has unit variance in each. Axes with ρ ≤ 0 are dropped. The sign
    of an axis makes its largest entry over all maps positive.

    The C_ab are available-case covariances, so the matrix need not be positive semidefinite. Only its largest
    eigenvalues are used.

    Source: Kettenring, "Canonical analysis of several sets of variables", Biometrika 58(3), 1971 (MAX-VAR);
    Takane, Hwang, Abdi, "Regularized multiple-set canonical correlation analysis", Psychometrika 73(4), 2008
    (λ on both sides, null spaces left out); van de Velden, Takane, "Generalized canonical correlation
    analysis with missing values", Computational Statistics 27, 2012; Li et al., "CSA: data-efficient mapping
    of unimodal features to multimodal features", 2024 (axes weighted by correlation).

    Args:
        moments: the moments of the embeddings.
        used: the modalities to align.
        spec: `dim`, `regularization` and `weighting` are used.
    """
    paired = [m for m in used if any(m != other and moments.count(m, other) > 1 for other in used)]
    r = shared_regularization(moments, used) if spec.regularization is None else spec.regularization
    whiteners = {m: whitener(moments, m, r) for m in used}
    # The number of axes with a positive correlation is limited, see `AlignmentMethod.max_dim`.
    ranks = [whiteners[m].basis.shape[1] for m in paired]
    axes = min(spec.axes, sum(ranks) - max(ranks)) if paired else 0
    maps, correlations = _joint_axes(moments, {m: whiteners[m] for m in paired}, axes)
    if not correlations.size:  # no item has two modalities, or they share nothing: each keeps its own neighbours
        paired = []
    axes = correlations.size or min(spec.axes, max(w.axes.shape[1] for w in whiteners.values()))
    maps = {m: maps[m] * correlations**spec.weighting for m in paired}
    maps |= {m: padded(whiteners[m].axes, axes) for m in used if m not in maps}
    findings = {
        "spectrum": correlations.tolist(),
        "rank": {m: w.axes.shape[1] for m, w in whiteners.items()},
        "regularization": {m: w.regularization for m, w in whiteners.items()},
        "weighting": spec.weighting,
    }
    return Solution(maps, [m for m in used if m not in paired], findings)


def _joint_axes(
    moments: Moments, whiteners: Mapping[str, Whitener], count: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Solves for shared axes.

    Args:
        moments: the moments of the embeddings.
        whiteners: the whitening of each modality to align.
        count: the largest number of axes to return.

    Returns:
        The maps before weighting, float64 [d_m, axes]; the correlations, float64 [axes], descending and above zero.
    """
    sizes = [w.basis.shape[1] for w in whiteners.values()]
    ends = accumulate(sizes)
    spans = {m: slice(end - size, end) for m, size, end in zip(whiteners, sizes, ends, strict=True)}
    matrix = np.eye(sum(sizes))
    for a, b in combinations(whiteners, 2):
        if moments.count(a, b) > 1:
            cross = whiteners[a].basis.T @ moments.covariance(a, b) @ whiteners[b].basis
            matrix[spans[a], spans[b]] = cross
            matrix[spans[b], spans[a]] = cross.T
    if not count:
        return {}, np.empty(0)
    top = [len(matrix) - count, len(matrix) - 1]
    values, vectors = scipy.linalg.eigh(matrix, subset_by_index=top, overwrite_a=True)
    correlations = (values[::-1] - 1) / (len(whiteners) - 1)
    keep = correlations > _ZERO
    vectors = vectors[:, ::-1][:, keep] * np.sqrt(len(whiteners))
    maps = {m: w.basis @ vectors[spans[m]] for m, w in whiteners.items()}
    sign = signs(np.concatenate(list(maps.values())))
    return {m: w * sign for m, w in maps.items()}, correlations[keep]


def solve_pca(moments: Moments, used: list[str], spec: SpaceSpec) -> Solution:
    """Finds the principal components of a single modality.

    Cosines in the space are then cosines of the centred embeddings.

    Source: Hotelling, "Analysis of a complex of statistical variables into principal components", 1933.

    Args:
        moments: the moments of the embeddings.
        used: the one modality.
        spec: `dim` is used.
    """
    covariance = moments.covariance(used[0], used[0])
    variances, axes = principal_axes(covariance)
    axes = axes[:, : spec.axes]
    part = variances[: spec.axes] / np.trace(covariance)
    findings = {
        "spectrum": part.tolist(),
        "rank": {used[0]: len(variances)},
        "regularization": {},
        "weighting": 0.0,
    }
    return Solution({used[0]: axes * signs(axes)}, [], findings)
