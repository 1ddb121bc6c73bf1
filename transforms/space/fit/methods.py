"""The methods that fit a joint space, by name: from moments alone, or from a sample of embeddings too."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import import_module
from itertools import combinations

import numpy as np
import pyarrow as pa

from unisono.transforms.base.errors import JobError
from unisono.transforms.space.fit.canonical import solve_gcca, solve_pca
from unisono.transforms.space.fit.linear_maps import solve_none, solve_procrustes, solve_ridge, solve_whiten
from unisono.transforms.space.fit.moments import Moments
from unisono.transforms.space.fit.spec import METHODS, Solution, SpaceSpec
from unisono.transforms.space.space import Space, linear_space

# From moments: fit(moments, usable modalities, spec) → maps and what to say of them.
_SOLVERS: dict[str, Callable[[Moments, list[str], SpaceSpec], Solution]] = {
    "pca": solve_pca,
    "cca": solve_gcca,
    "gcca": solve_gcca,
    "none": solve_none,
    "whiten": solve_whiten,
    "procrustes": solve_procrustes,
    "ridge": solve_ridge,
}
# From a sample too: fit(sample, moments, usable modalities, spec) → Space, its `info` what to say of it. The
# sample is a table of `item_id` and `<m>_embedding` columns (null: missing), rows in the order of their ids.
_SAMPLED: dict[str, str] = {
    "anchors": "unisono.transforms.space.fit.anchors:fit_anchors",
    "contrastive": "unisono.transforms.space.fit.trained.heads:fit_heads",
    "attention": "unisono.transforms.space.fit.trained.heads:fit_heads",
    "autoencoder": "unisono.transforms.space.fit.trained.heads:fit_heads",
}


def needs_sample(method: str) -> bool:
    """Says whether a method is fitted on embeddings, not on moments alone."""
    return method in _SAMPLED


def max_dim(method: str, dims: Mapping[str, int], hub: str | None = None) -> int:
    """The most axes a method can find, given each modality's embedding length.

    The encoders' own space and whitening have as many axes as the longest embedding, maps to a hub as the hub;
    the other methods make their own. CCA and GCCA: the embeddings together less the longest, since a symmetric
    matrix with a zero diagonal block of that size has no more positive eigenvalues (Cauchy's interlacing); for
    two modalities that is the shorter one.
    """
    lengths = sorted(dims.values())
    if method in ("none", "whiten", "procrustes", "ridge"):
        return dims.get(hub or "", lengths[-1])
    if method in _SAMPLED and len(lengths) > 1:
        return sum(lengths)
    return sum(lengths) if len(lengths) == 1 else sum(lengths[:-1])


def possible_axes(spec: SpaceSpec, dims: Mapping[str, int]) -> int:
    """The number of axes that is asked for, or as many as there can be."""
    return min(spec.axes, max_dim(spec.method, dims, spec.hub))


def fit_space(moments: Moments, spec: SpaceSpec, sample: pa.Table | None = None) -> Space:
    """Fits a joint space: the projections, and what else the method needs to align modalities.

    Args:
        moments: of the embeddings.
        spec: how. With one modality that can be used the space is its centred principal components, whatever
            was asked.
        sample: `item_id` and `<m>_embedding` columns (null: missing); for methods of which `needs_sample`.

    Returns:
        A space whose `info` holds `items` and `pairs` (how many rows), `unseen_pairs`, `left_out` (modality:
        why), `unaligned` (modalities never seen with another), `axes_asked` and what its method says.

    Raises:
        JobError: a setting is not allowed, or no modality can be used.
    """
    _check(moments, spec)
    left_out = {m: why for m in moments.dims if (why := _unusable(moments, m))}
    used = [m for m in moments.dims if m not in left_out]
    if not used:
        why = "; ".join(f"{m}: {reason}" for m, reason in left_out.items()) or "there are no embeddings"
        raise JobError(f"space: no modality can be fitted ({why}); give two different items of one at least")
    method = "pca" if len(used) == 1 else spec.method
    if method in ("auto", "cca", "gcca"):
        method = "cca" if len(used) == 2 else "gcca"
    if method in _SAMPLED:
        if sample is None:
            raise JobError(f"space.method: {method} is fitted on a sample of embeddings, and there is none")
        module, _, name = _SAMPLED[method].partition(":")
        space: Space = getattr(import_module(module), name)(sample, moments, used, spec)
    else:
        maps, found = _SOLVERS[method](moments, used, spec)
        space = linear_space(method, {m: moments.mean(m) for m in used}, maps, found)
    pairs = list(combinations(moments.dims, 2))
    info = {
        "asked": spec.method,
        "axes_asked": spec.axes,
        "items": {m: moments.count(m) for m in moments.dims},
        "pairs": {f"{a}-{b}": moments.count(a, b) for a, b in pairs},
        "unseen_pairs": [f"{a}-{b}" for a, b in pairs if not moments.count(a, b)],
        "left_out": left_out,
        **space.info,
    }
    return replace(space, method=method, info=info)


def _check(moments: Moments, spec: SpaceSpec) -> None:
    """Refuses settings that cannot be met."""
    method, dim = spec.method, spec.axes
    if method not in METHODS:
        raise JobError(f"space.method: {method!r} is none of {', '.join(METHODS)}; choose one of them")
    if method == "cca" and len(moments.dims) > 2:
        raise JobError(
            f"space.method: cca aligns two modalities, and the job has {', '.join(moments.dims)}; "
            "use gcca or auto"
        )
    most = max_dim(method, moments.dims, spec.hub) if moments.dims else dim
    if not 1 <= dim <= most:
        lengths = ", ".join(f"{m} {d}" for m, d in moments.dims.items())
        raise JobError(f"space.dim: {dim} is not in 1 … {most}, which embeddings of {lengths} values allow")
    if spec.regularization is not None and not 0 <= spec.regularization < np.inf:
        raise JobError(
            f"space.regularization: {spec.regularization} is not a number ≥ 0; set one or leave it out"
        )
    if not 0 <= spec.weighting < np.inf:
        raise JobError(f"space.weighting: {spec.weighting} is not a number ≥ 0; set one, or leave it out")


def _unusable(moments: Moments, m: str) -> str:
    """Says why a modality cannot be fitted, or nothing."""
    if (n := moments.count(m)) < 2:
        return f"{n} of at least 2 items have it"
    return "" if np.trace(moments.covariance(m, m)) > 0 else "all its embeddings are alike"
