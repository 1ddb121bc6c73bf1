"""Versions of a space: axes in order of importance, and a new fit turned to face the published one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import scipy.linalg

from unisono.transforms.base.columns import common_rows, unit_rows
from unisono.transforms.base.nearest import neighbour_overlap
from unisono.transforms.base.tables import from_vector_column
from unisono.transforms.space.fit.whitening import signs, turn_to
from unisono.transforms.space.parts.linear import LinearMap
from unisono.transforms.space.space import Space

POLICIES = ("never", "always", "on_drift")
OVERLAP_ROWS = 2048  # items whose neighbours are compared: n² scores
_LEAST_COSINE = 0.9  # mean, of an item's vector in two spaces, for what was summed in one to be used in the other
_MOST_COMPARABLE = 400  # spaces that are remembered: a year of nights
_LEAST_PER_AXIS = 1  # common items for each axis, under which a turn would be made up


def order_axes(vectors: np.ndarray) -> np.ndarray:
    """Gives the turn after which a prefix of the item vectors is the best short vector: float64 [dim, dim].

    The eigenvectors of Σ v vᵀ, largest eigenvalue first: of all linear maps to k axes the first k keep the most of
    the vectors, in least squares.

    Source: Eckart, Young, "The approximation of one matrix by another of lower rank", Psychometrika 1(3), 1936.
    """
    v = vectors.astype(np.float64)
    axes = scipy.linalg.eigh(v.T @ v)[1][:, ::-1]
    return np.ascontiguousarray(axes * signs(axes))






def compare(new: np.ndarray, old: np.ndarray) -> dict[str, float]:
    """Says how comparable two versions of the same items' vectors are: mean cosine, top-10 neighbour overlap."""
    some = slice(0, OVERLAP_ROWS)
    return {
        "mean_cosine": float(np.einsum("ij,ij->i", new.astype(np.float64), old.astype(np.float64)).mean()),
        "top10_overlap": neighbour_overlap(new[some], old[some], 10),
    }


def anchor(
    space: Space, ids: pa.ChunkedArray, vectors: np.ndarray, previous: pa.Table, dim: int
) -> tuple[Space, dict[str, Any]]:
    """Turns a newly fitted space to the published one, so that vectors of the two can be compared.

    Args:
        space: newly fitted.
        ids: item ids, [n].
        vectors: of these items in `space`, float32 [n, space.dim].
        previous: `item_id`, `vector` float32 unit rows, of the published run.
        dim: how many axes to keep.

    Returns:
        The space on `dim` axes, and what to say of it: `common` items, `rotation`, `before` and `turned`: mean
        cosine and top-10 overlap of new to old before and after the turn; or `common` and `not_anchored`: why.
    """
    here, there = common_rows(ids, previous["item_id"])
    old = from_vector_column(previous["vector"])[0][there]
    short = space.turned(np.eye(space.dim)[:, :dim]) if dim < space.dim else space
    if old.shape[1] < dim:
        return short, {"common": len(here), "not_anchored": f"it has {old.shape[1]} axes, this run {dim}"}
    if len(here) < _LEAST_PER_AXIS * dim:
        return short, {"common": len(here), "not_anchored": f"fewer than {dim} items in common"}
    old = unit_rows(old[:, :dim])
    new = vectors[here]
    turn = turn_to(new, old)
    report: dict[str, Any] = {"common": len(here), "turned": compare(unit_rows(new @ turn), old)}
    report["before"] = compare(unit_rows(new[:, :dim]), old)
    report["rotation"] = np.round(turn, 6).tolist()
    return space.turned(turn), report


def lineage(space: Space, published: Space, report: Mapping[str, Any]) -> tuple[list[str], str]:
    """Lists the earlier spaces whose vectors may be compared with a new one's, the newest first; or says why none.

    Args:
        report: of `anchor`, with the `mean_cosine` of what came out.
    """
    if "mean_cosine" not in report:
        return [], str(report.get("not_anchored", "none of the published items is in the sample"))
    if space.dim != published.dim:
        return [], f"it has {published.dim} axes, this run {space.dim}"
    if report["mean_cosine"] < _LEAST_COSINE:
        found = f"{report['mean_cosine']:.2f}, and {_LEAST_COSINE} is needed"
        return [], f"vectors of the same items have a mean cosine of {found}"
    return [published.space_id, *published.info.get("comparable", [])][:_MOST_COMPARABLE], ""




def blend(space: Space, published: Space, inertia: float) -> Space | None:
    """Moves a published space only part of the way to a newly fitted one that has been turned to it.

    Each modality's mean and map become (1 − inertia) · new + inertia · published: from run to run an exponential
    moving average of the fits, which follows the catalogue and evens out what one night's sample does to a fit.

    Source: Polyak, Juditsky, "Acceleration of stochastic approximation by averaging", SIAM J. Control Optim. 30(4),
    1992 (averages of estimates vary less than the last); Schönemann 1966 for the turn before it.

    Returns:
        The space, without its imputer, which is of other axes; None where it cannot be done: a space that is not
        one linear map a modality.
    """
    new, old = _flat(space), _flat(published)
    if new is None or old is None or new.keys() != old.keys():
        return None
    if any(new[m].map.shape != old[m].map.shape for m in new):
        return None
    # Maps of two fits agree in direction, not in length: only directions come out.
    ratio = np.sqrt(sum(np.sum(a.map**2) for a in new.values()) / sum(np.sum(a.map**2) for a in old.values()))
    mixed = {
        m: LinearMap(
            (1 - inertia) * new[m].mean + inertia * old[m].mean,
            np.ascontiguousarray((1 - inertia) * new[m].map + inertia * ratio * old[m].map),
        )
        for m in new
    }
    return replace(space, projections=mixed, outputs={}, imputer=None)


def _flat(space: Space) -> dict[str, LinearMap] | None:
    """Each modality as one linear map, outputs and all; None where there is more to it."""
    if space.mixer is not None:
        return None
    out = {}
    for m in space.modalities:
        part, last = space.projections[m], space.outputs.get(m)
        if not isinstance(part, LinearMap) or (last is not None and last.shift.any()):
            return None
        out[m] = part if last is None else LinearMap(part.mean, part.map @ last.map)
    return out


def may_keep(published: Space, wanted: Mapping[str, str], dims: Mapping[str, int]) -> str:
    """Says why a published space cannot map tonight's embeddings, or nothing.

    Args:
        wanted: the encoder_id of each modality of this run.
        dims: the length of each modality's embeddings.
    """
    fitted = published.info.get("encoder_ids", {})
    for m, encoder_id in wanted.items():
        if m not in published.modalities:
            if m in dims and m not in published.info.get("left_out", {}):
                return f"it does not know {m}"
        elif fitted.get(m) != encoder_id:
            return f"its {m} encoder was {fitted.get(m)}, now it is {encoder_id}"
    return ""


