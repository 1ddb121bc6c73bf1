"""Fits the projections of a joint space by the method that the job file names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations

import numpy as np
import pyarrow as pa

from unisono.transforms.base.errors import JobError
from unisono.transforms.space.fit.canonical import solve_pca
from unisono.transforms.space.fit.moments import Moments
from unisono.transforms.space.fit.solution import Solution
from unisono.transforms.space.fit.spec import SpaceSpec
from unisono.transforms.space.info import SpaceInfo
from unisono.transforms.space.registry import METHODS
from unisono.transforms.space.space import Space, linear_space

_CANONICAL = ("auto", "cca", "gcca")  # three names for one method


def needs_sample(method: str) -> bool:
    """Says whether a method is fitted on a sample of embeddings. Other methods see only the moments."""
    return METHODS[method].needs_sample


def max_dim(method: str, dims: Mapping[str, int], hub: str | None = None) -> int:
    """Returns the largest number of axes that a method can find, see `AlignmentMethod.max_dim`."""
    return METHODS[method].max_dim(dims, hub)


def possible_axes(spec: SpaceSpec, dims: Mapping[str, int]) -> int:
    """Returns the number of axes that is asked for, or the largest possible number if that is smaller."""
    return min(spec.axes, max_dim(spec.method, dims, spec.hub))


def fit_space(moments: Moments, spec: SpaceSpec, sample: pa.Table | None = None) -> Space:
    """Fits a joint space: the projections, and any other parts that the method needs to align modalities.

    If only one modality can be used, the space is its centred principal components, whatever the method asked for.

    Args:
        moments: the moments of the embeddings.
        spec: the settings.
        sample: see `space.registry.AlignmentMethod`. None is allowed for methods that need no sample.

    Returns:
        A space without fusion. The fields of its `info` from `asked` to `findings` are set.

    Raises:
        JobError: a setting is not allowed, or no modality can be used.
    """
    _check(moments, spec)
    left_out = {m: why for m in moments.dims if (why := _unusable(moments, m))}
    used = [m for m in moments.dims if m not in left_out]
    if not used:
        why = "; ".join(f"{m}: {reason}" for m, reason in left_out.items()) or "there are no embeddings"
        raise JobError(
            f"space: no modality can be fitted ({why}); at least one modality needs two items with different embeddings"
        )
    space = _fit(moments, used, spec, sample)
    pairs = list(combinations(moments.dims, 2))
    info = replace(
        space.info,
        asked=spec.method,
        axes_asked=spec.axes,
        items={m: moments.count(m) for m in moments.dims},
        pairs={f"{a}-{b}": moments.count(a, b) for a, b in pairs},
        unseen_pairs=tuple(f"{a}-{b}" for a, b in pairs if not moments.count(a, b)),
        left_out=left_out,
    )
    return replace(space, info=info)


def _fit(moments: Moments, used: list[str], spec: SpaceSpec, sample: pa.Table | None) -> Space:
    """Fits the usable modalities by the method asked for.

    Raises:
        JobError: the method needs a sample, and there is none; or as the method's function raises.
    """
    if len(used) == 1:
        return _linear("pca", moments, solve_pca(moments, used, spec))
    method = spec.method
    if method in _CANONICAL:
        method = "cca" if len(used) == 2 else "gcca"
    fit = METHODS[method].load()
    if not METHODS[method].needs_sample:
        return _linear(method, moments, fit(moments, used, spec))
    if sample is None:
        raise JobError(f"space.method: {method} is fitted on a sample of embeddings, and there is none; pass a sample")
    space: Space = fit(moments, used, spec, sample)
    return replace(space, method=method)


def _linear(method: str, moments: Moments, found: Solution) -> Space:
    """Makes the space of a method that returned linear maps."""
    info = SpaceInfo(unaligned=tuple(found.unaligned), findings=found.findings)
    return linear_space(method, {m: moments.mean(m) for m in found.maps}, found.maps, info)


def _check(moments: Moments, spec: SpaceSpec) -> None:
    """Checks that the method can align these modalities in so many axes.

    Raises:
        JobError: there are too many modalities or axes for the method.
    """
    method, dim = METHODS[spec.method], spec.axes
    if method.most_modalities is not None and len(moments.dims) > method.most_modalities:
        raise JobError(
            f"space.method: {spec.method} aligns at most {method.most_modalities} modalities, and the job has "
            f"{', '.join(moments.dims)}; use gcca or auto"
        )
    most = method.max_dim(moments.dims, spec.hub) if moments.dims else dim
    if dim > most:
        lengths = ", ".join(f"{m} {d}" for m, d in moments.dims.items())
        raise JobError(
            f"space.dim: {dim} is not in 1 … {most}, which embeddings of {lengths} values allow; set it in this range"
        )


def _unusable(moments: Moments, m: str) -> str:
    """Says why a modality cannot be fitted, or returns an empty string."""
    if (n := moments.count(m)) < 2:
        return f"{n} of at least 2 items have it"
    return "" if np.trace(moments.covariance(m, m)) > 0 else "all its embeddings are alike"
