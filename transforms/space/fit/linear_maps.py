"""Linear maps into a space that is given, not sought: the encoders' own, or that of one modality, the hub."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import scipy.linalg

from unisono.transforms.base.errors import JobError
from unisono.transforms.space.fit.moments import Moments
from unisono.transforms.space.fit.whitening import default_regularization, padded, principal_axes, signs, whitener

if TYPE_CHECKING:
    from unisono.transforms.space.fit.spec import Solution, SpaceSpec


def solve_none(moments: Moments, used: list[str], spec: SpaceSpec) -> Solution:
    """Centring only: the encoders share a space already.

    The maps are one and the same orthonormal matrix, the principal axes of the modalities' mean covariance, so
    that with `dim` as long as an embedding every cosine is that of the centred embeddings.

    Source: Liang et al., "Mind the gap", NeurIPS 2022 (a modality's mean is what sets it apart in a shared space).

    Raises:
        JobError: the embeddings differ in length.
    """
    _check_one_length(moments, used, "none")
    axes = _shared_axes(np.mean([moments.covariance(m, m) for m in used], axis=0), spec.axes)
    return dict.fromkeys(used, axes), {"unaligned": []}


def solve_whiten(moments: Moments, used: list[str], spec: SpaceSpec) -> Solution:
    """Shrunk whitening of each modality: ZCA where the embeddings are of one length, else PCA.

    ZCA maps by (C + λI)^{-1/2}, which stays nearest to the embedding it is given, so that axes that encoders share
    stay shared; the result is turned to the principal axes of the modalities' mean covariance, alike for all. PCA
    maps to each modality's own principal axes: no axis means the same in two modalities, as only `concat` allows.
    The `remove_top` strongest axes of each modality are taken out first.

    Source: Kessy, Lewin, Strimmer, "Optimal whitening and decorrelation", The American Statistician 72(4), 2018,
    eq. 3 and 7 (ZCA, PCA); Ledoit, Wolf 2004 and Chen et al. 2010 (shrinkage); Mu, Viswanath, "All-but-the-top",
    ICLR 2018, algorithm 1 (top components).
    """
    whiteners = {m: whitener(moments, m, spec.regularization) for m in used}
    cut = spec.remove_top
    for m, w in whiteners.items():
        if w.axes.shape[1] <= cut:
            raise JobError(
                f"space.remove_top: {cut} of the {w.axes.shape[1]} axes that {m} has; leave at least one"
            )
    if len({moments.dims[m] for m in used}) == 1:
        kind = "zca"
        bases = {m: w.basis[:, cut:] @ w.axes[:, cut:].T for m, w in whiteners.items()}
        # Whitened variances are nearly alike: those before whitening give the order.
        axes = _shared_axes(np.mean([moments.covariance(m, m) for m in used], axis=0), spec.axes)
        maps = {m: basis @ axes for m, basis in bases.items()}
    else:
        kind = "pca"
        dim = min(spec.axes, max(w.axes.shape[1] - cut for w in whiteners.values()))
        maps = {}
        for m, w in whiteners.items():
            basis = w.basis[:, cut : cut + dim]
            maps[m] = np.pad(basis * signs(basis), ((0, 0), (0, dim - basis.shape[1])))
    return maps, {
        "unaligned": [] if kind == "zca" or len(used) == 1 else used,
        "whitening": kind,
        "remove_top": cut,
        "rank": {m: w.axes.shape[1] for m, w in whiteners.items()},
        "regularization": {m: w.regularization for m, w in whiteners.items()},
    }


def solve_procrustes(moments: Moments, used: list[str], spec: SpaceSpec) -> Solution:
    """Orthogonal maps to the hub's principal axes.

    With E the hub's leading principal axes and C_mh E = U S Vᵀ, a modality's map is U Vᵀ, which among the maps
    with orthonormal columns (rows, where the embedding is shorter than `dim`) has the largest Σ ⟨mapped, hub⟩.

    Source: Schönemann, "A generalized solution of the orthogonal Procrustes problem", Psychometrika 31(1), 1966;
    Conneau et al., "Word translation without parallel data", ICLR 2018, eq. 2.
    """
    hub, axes = _hub(moments, used, spec)
    maps, spectrum, unaligned = {hub: axes}, {}, []
    for m in used:
        if m == hub:
            continue
        if moments.count(m, hub) < 2:
            maps[m] = padded(principal_axes(moments.covariance(m, m))[1], axes.shape[1])
            unaligned.append(m)
            continue
        u, s, vt = np.linalg.svd(moments.covariance(m, hub) @ axes, full_matrices=False)
        maps[m], spectrum[m] = u @ vt, s.tolist()
    return maps, {"hub": hub, "unaligned": unaligned, "singular_values": spectrum}


def solve_ridge(moments: Moments, used: list[str], spec: SpaceSpec) -> Solution:
    """Linear maps to the hub's principal axes by ridge regression.

    W_m = (C_mm + λI)^{-1} C_mh E, with E the hub's leading principal axes and λ = r · trace(C_mm) / d_m. C_mm is
    over all rows that have m, C_mh over those that have both: the available cases.

    Source: Hoerl, Kennard, "Ridge regression", Technometrics 12(1), 1970, eq. 2.1; Mikolov, Le, Sutskever,
    "Exploiting similarities among languages for machine translation", 2013, eq. 3 (maps from space to space).
    """
    hub, axes = _hub(moments, used, spec)
    maps, strength, unaligned = {hub: axes}, {}, []
    for m in used:
        if m == hub:
            continue
        if moments.count(m, hub) < 2:
            maps[m] = padded(principal_axes(moments.covariance(m, m))[1], axes.shape[1])
            unaligned.append(m)
            continue
        own = moments.covariance(m, m)
        r = spec.regularization
        strength[m] = default_regularization(own, moments.count(m, hub)) if r is None else r
        own[np.diag_indices_from(own)] += strength[m] * np.trace(own) / len(own)
        cross = moments.covariance(m, hub) @ axes
        try:
            maps[m] = scipy.linalg.solve(own, cross, assume_a="pos")
        except np.linalg.LinAlgError:  # λ = 0 and a null space: the shortest of the solutions
            maps[m] = scipy.linalg.pinvh(own) @ cross
    return maps, {"hub": hub, "unaligned": unaligned, "regularization": strength}


def _hub(moments: Moments, used: list[str], spec: SpaceSpec) -> tuple[str, np.ndarray]:
    """Chooses the hub, and gives its leading principal axes: float64 [d, at most dim]."""
    if spec.hub is not None and spec.hub not in used:
        raise JobError(f"space.hub: {spec.hub!r} cannot be used; choose one of {', '.join(used)}")
    hub = spec.hub or max(used, key=lambda m: (sum(moments.count(m, o) for o in used if o != m), m))
    axes = principal_axes(moments.covariance(hub, hub))[1][:, : spec.axes]
    return hub, axes * signs(axes)


def _shared_axes(covariance: np.ndarray, dim: int) -> np.ndarray:
    """Orthonormal axes [d, dim], the largest variance first, those without any variance last."""
    axes = scipy.linalg.eigh(covariance)[1][:, ::-1][:, :dim]
    return axes * signs(axes)


def _check_one_length(moments: Moments, used: list[str], method: str) -> None:
    if len({moments.dims[m] for m in used}) > 1:
        lengths = ", ".join(f"{m} {moments.dims[m]}" for m in used)
        raise JobError(
            f"space.method: {method} leaves embeddings as they are, and they differ in length: {lengths}; "
            "use encoders that share a space, or gcca"
        )
