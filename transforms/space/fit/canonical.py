"""Canonical correlations of two or more modalities, and the principal components of one, from moments."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate, combinations
from typing import TYPE_CHECKING

import numpy as np
import scipy.linalg

from unisono.transforms.space.fit.moments import Moments
from unisono.transforms.space.fit.whitening import (
    Whitener,
    padded,
    principal_axes,
    shared_regularization,
    signs,
    whitener,
)

if TYPE_CHECKING:
    from unisono.transforms.space.fit.spec import Solution, SpaceSpec

_ZERO = 1e-12  # a correlation that is rounding


def solve_gcca(moments: Moments, used: list[str], spec: SpaceSpec) -> Solution:
    """Regularised MAX-VAR generalised CCA; with two modalities, regularised CCA.

    With D = blockdiag(C_aa + λ_a I), the axes are the leading eigenvectors v of
    D^{-1/2} (C + blockdiag(λ_a I)) D^{-1/2}, whose diagonal blocks are identities (with C alone in the middle
    a modality's own large variances would count as agreement). Its eigenvalue μ over K modalities gives the
    mean canonical correlation ρ = (μ − 1) / (K − 1). Maps are W_a = √K · D_a^{-1/2} v_a · ρ^weighting: with
    weighting 0 a projection that all modalities share has unit variance in each. Axes with ρ ≤ 0 are dropped.
    Each axis has the sign that makes its largest entry over all maps positive.

    C_ab are available-case covariances, so the matrix need not be positive semidefinite; its top is used.

    Source: Kettenring, "Canonical analysis of several sets of variables", Biometrika 58(3), 1971 (MAX-VAR);
    Takane, Hwang, Abdi, "Regularized multiple-set canonical correlation analysis", Psychometrika 73(4), 2008
    (λ on both sides, null spaces left out); van de Velden, Takane, "Generalized canonical correlation
    analysis with missing values", Computational Statistics 27, 2012; Li et al., "CSA: data-efficient mapping
    of unimodal features to multimodal features", 2024 (axes weighted by correlation).
    """
    paired = [m for m in used if any(m != other and moments.count(m, other) > 1 for other in used)]
    r = shared_regularization(moments, used) if spec.regularization is None else spec.regularization
    whiteners = {m: whitener(moments, m, r) for m in used}
    # The longest modality's rank comes off for the reason that `max_dim` gives.
    ranks = [whiteners[m].basis.shape[1] for m in paired]
    axes = min(spec.axes, sum(ranks) - max(ranks)) if paired else 0
    maps, correlations = _joint_axes(moments, {m: whiteners[m] for m in paired}, axes)
    if not correlations.size:  # modalities never meet, or share nothing: each keeps its own neighbours
        paired = []
    axes = correlations.size or min(spec.axes, max(w.axes.shape[1] for w in whiteners.values()))
    maps = {m: maps[m] * correlations**spec.weighting for m in paired}
    maps |= {m: padded(whiteners[m].axes, axes) for m in used if m not in maps}
    return maps, {
        "unaligned": [m for m in used if m not in paired],
        "spectrum": correlations.tolist(),
        "rank": {m: w.axes.shape[1] for m, w in whiteners.items()},
        "regularization": {m: w.regularization for m, w in whiteners.items()},
        "weighting": spec.weighting,
    }


def _joint_axes(
    moments: Moments, whiteners: Mapping[str, Whitener], count: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Solves for up to `count` shared axes: maps before weighting; correlations, falling and above zero."""
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
    """Principal components of a single modality: cosines are those of the centred embeddings.

    Source: Hotelling, "Analysis of a complex of statistical variables into principal components", 1933.
    """
    covariance = moments.covariance(used[0], used[0])
    variances, axes = principal_axes(covariance)
    axes = axes[:, : spec.axes]
    part = variances[: spec.axes] / np.trace(covariance)
    return {used[0]: axes * signs(axes)}, {
        "unaligned": [],
        "spectrum": part.tolist(),
        "rank": {used[0]: len(variances)},
        "regularization": {},
        "weighting": 0.0,
    }
