"""Linear maps into a space that exists already: the encoders' own space, or the space of one modality, the hub."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.linalg

from unisono.transforms.base.errors import JobError
from unisono.transforms.space.fit.moments import Moments
from unisono.transforms.space.fit.solution import Solution
from unisono.transforms.space.fit.spec import SpaceSpec
from unisono.transforms.space.fit.whitening import default_regularization, padded, principal_axes, signs, whitener


def solve_none(moments: Moments, used: list[str], spec: SpaceSpec) -> Solution:
    """Centres the embeddings of encoders that share a space already.

    All modalities have the same orthonormal map: the principal axes of the mean of their covariances. If `dim` is the
    length of the embeddings, every cosine is the cosine of the centred embeddings.

    Source: Liang et al., "Mind the gap", NeurIPS 2022 (in a shared space, modalities differ by their means).

    Args:
        moments: the moments of the embeddings.
        used: the modalities to map.
        spec: `dim` is used.

    Raises:
        JobError: the embeddings differ in length.
    """
    _check_one_length(moments, used, "none")
    axes = _shared_axes(np.mean([moments.covariance(m, m) for m in used], axis=0), spec.axes)
    return Solution(dict.fromkeys(used, axes), [])


def solve_whiten(moments: Moments, used: list[str], spec: SpaceSpec) -> Solution:
    """Whitens each modality with a shrunk covariance: by ZCA if all embeddings have one length, else by PCA.

    ZCA maps by (C + λI)^{-1/2}. Its result is as close to the embeddings as whitening allows, so axes that the encoders
    share stay shared. All modalities are then turned to the principal axes of the mean of their covariances. PCA maps
    each modality to its own principal axes. An axis then has a different meaning in each modality, so only the
    fusion method `concat` suits such a space. In both cases the `remove_top` strongest axes of each modality are
    removed first.

    Source: Kessy, Lewin, Strimmer, "Optimal whitening and decorrelation", The American Statistician 72(4), 2018,
    eq. 3 and 7 (ZCA, PCA); Ledoit, Wolf 2004 and Chen et al. 2010 (shrinkage); Mu, Viswanath, "All-but-the-top",
    ICLR 2018, algorithm 1 (top components).

    Args:
        moments: the moments of the embeddings.
        used: the modalities to map.
        spec: `dim`, `regularization` and `remove_top` are used.

    Raises:
        JobError: `remove_top` would leave a modality no axis.
    """
    whiteners = {m: whitener(moments, m, spec.regularization) for m in used}
    cut = spec.remove_top
    for m, w in whiteners.items():
        if w.axes.shape[1] <= cut:
            raise JobError(
                f"space.remove_top: {cut} of the {w.axes.shape[1]} axes that {m} has; leave at least one axis"
            )
    if len({moments.dims[m] for m in used}) == 1:
        kind = "zca"
        bases = {m: w.basis[:, cut:] @ w.axes[:, cut:].T for m, w in whiteners.items()}
        # Whitened variances are nearly equal, so the variances before whitening order the axes.
        axes = _shared_axes(np.mean([moments.covariance(m, m) for m in used], axis=0), spec.axes)
        maps = {m: basis @ axes for m, basis in bases.items()}
    else:
        kind = "pca"
        dim = min(spec.axes, max(w.axes.shape[1] - cut for w in whiteners.values()))
        maps = {}
        for m, w in whiteners.items():
            basis = w.basis[:, cut : cut + dim]
            maps[m] = np.pad(basis * signs(basis), ((0, 0), (0, dim - basis.shape[1])))
    findings = {
        "whitening": kind,
        "remove_top": cut,
        "rank": {m: w.axes.shape[1] for m, w in whiteners.items()},
        "regularization": {m: w.regularization for m, w in whiteners.items()},
    }
    return Solution(maps, [] if kind == "zca" or len(used) == 1 else used, findings)


def solve_procrustes(moments: Moments, used: list[str], spec: SpaceSpec) -> Solution:
    """Finds orthogonal maps to the hub's principal axes.

    With E the hub's leading principal axes and C_mh E = U S Vᵀ, the map of a modality is U Vᵀ. Among the maps with
    orthonormal columns it has the largest Σ ⟨mapped, hub⟩. (Its rows are orthonormal if the embedding is shorter than
    `dim`.)

    Source: Schönemann, "A generalized solution of the orthogonal Procrustes problem", Psychometrika 31(1), 1966;
    Conneau et al., "Word translation without parallel data", ICLR 2018, eq. 2.

    Args:
        moments: the moments of the embeddings.
        used: the modalities to map.
        spec: `dim` and `hub` are used.

    Raises:
        JobError: the hub is none of `used`.
    """

    def solve(m: str, hub: str, axes: np.ndarray) -> tuple[np.ndarray, list[float]]:
        u, s, vt = np.linalg.svd(moments.covariance(m, hub) @ axes, full_matrices=False)
        return u @ vt, s.tolist()

    return _map_to_hub(moments, used, spec, solve, "singular_values")


def solve_ridge(moments: Moments, used: list[str], spec: SpaceSpec) -> Solution:
    """Finds linear maps to the hub's principal axes by ridge regression.

    W_m = (C_mm + λI)^{-1} C_mh E, with E the hub's leading principal axes and λ = r · trace(C_mm) / d_m. C_mm is
    computed from all rows that have m, C_mh from all rows that have both.

    Source: Hoerl, Kennard, "Ridge regression", Technometrics 12(1), 1970, eq. 2.1; Mikolov, Le, Sutskever,
    "Exploiting similarities among languages for machine translation", 2013, eq. 3 (maps from space to space).

    Args:
        moments: the moments of the embeddings.
        used: the modalities to map.
        spec: `dim`, `regularization` and `hub` are used.

    Raises:
        JobError: the hub is none of `used`.
    """

    def solve(m: str, hub: str, axes: np.ndarray) -> tuple[np.ndarray, float]:
        own = moments.covariance(m, m)
        r = spec.regularization
        strength = default_regularization(own, moments.count(m, hub)) if r is None else r
        own[np.diag_indices_from(own)] += strength * np.trace(own) / len(own)
        cross = moments.covariance(m, hub) @ axes
        try:
            return scipy.linalg.solve(own, cross, assume_a="pos"), strength
        except np.linalg.LinAlgError:  # λ = 0 and C_mm has a null space: take the shortest solution
            return scipy.linalg.pinvh(own) @ cross, strength

    return _map_to_hub(moments, used, spec, solve, "regularization")


def _map_to_hub(
    moments: Moments,
    used: list[str],
    spec: SpaceSpec,
    solve: Callable[[str, str, np.ndarray], tuple[np.ndarray, Any]],
    finding: str,
) -> Solution:
    """Maps each modality to the hub's principal axes. One that never occurs with the hub keeps its own axes.

    Args:
        moments: the moments of the embeddings.
        used: the modalities to map.
        spec: `dim` and `hub` are used.
        solve: takes a modality, the hub and the hub's axes; returns the map, and what to report of it.
        finding: the name under which that is reported, for each modality.
    """
    hub, axes = _hub(moments, used, spec)
    maps: dict[str, np.ndarray] = {hub: axes}
    found: dict[str, Any] = {}
    unaligned = []
    for m in used:
        if m == hub:
            continue
        if moments.count(m, hub) < 2:
            maps[m] = padded(principal_axes(moments.covariance(m, m))[1], axes.shape[1])
            unaligned.append(m)
        else:
            maps[m], found[m] = solve(m, hub, axes)
    return Solution(maps, unaligned, {"hub": hub, finding: found})


def _hub(moments: Moments, used: list[str], spec: SpaceSpec) -> tuple[str, np.ndarray]:
    """Chooses the hub: the one asked for, or the modality that most items have together with another one.

    Returns:
        The hub; its leading principal axes, float64 [d, ≤ dim].

    Raises:
        JobError: the hub asked for is none of `used`.
    """
    if spec.hub is not None and spec.hub not in used:
        raise JobError(f"space.hub: {spec.hub!r} cannot be used; choose one of {', '.join(used)}")
    hub = spec.hub or max(used, key=lambda m: (sum(moments.count(m, o) for o in used if o != m), m))
    axes = principal_axes(moments.covariance(hub, hub))[1][:, : spec.axes]
    return hub, axes * signs(axes)


def _shared_axes(covariance: np.ndarray, dim: int) -> np.ndarray:
    """Returns orthonormal axes [d, dim] in descending order of variance, including axes without any variance."""
    axes = scipy.linalg.eigh(covariance)[1][:, ::-1][:, :dim]
    return axes * signs(axes)


def _check_one_length(moments: Moments, used: list[str], method: str) -> None:
    """Checks that the embeddings of all modalities have the same length.

    Raises:
        JobError: the lengths differ.
    """
    if len({moments.dims[m] for m in used}) > 1:
        lengths = ", ".join(f"{m} {moments.dims[m]}" for m in used)
        raise JobError(
            f"space.method: {method} leaves embeddings as they are, and they differ in length: {lengths}; "
            "use encoders that share a space, or gcca"
        )
