"""Refits: the order of the axes, the turn of a new space to the published one, and what the two have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import scipy.linalg

from unisono.transforms.base.columns import common_rows, unit_rows
from unisono.transforms.base.nearest import neighbour_overlap
from unisono.transforms.base.tables import from_vector_column
from unisono.transforms.space.fit.whitening import signs, turn_to
from unisono.transforms.space.info import Comparison
from unisono.transforms.space.parts.linear import LinearMap
from unisono.transforms.space.space import Space

OVERLAP_ROWS = 2048  # how many items have their neighbours compared: n² scores
# Two spaces are comparable if the mean cosine between the two vectors of an item is at least this. Sums of vectors from
# one space can then be used in the other.
_LEAST_COSINE = 0.9
_MOST_COMPARABLE = 400  # how many earlier spaces are listed: more than a year of nightly runs
_LEAST_PER_AXIS = 1  # the least number of common items for each axis; with fewer, the turn would be arbitrary


def order_axes(vectors: np.ndarray) -> np.ndarray:
    """Returns the turn after which the first k axes are the best short vector, for every k: float64 [dim, dim].

    Its columns are the eigenvectors of Σ v vᵀ, the largest eigenvalue first. Among all linear maps to k axes, the map
    by the first k columns loses the least of the vectors in the sense of least squares.

    Source: Eckart, Young, "The approximation of one matrix by another of lower rank", Psychometrika 1(3), 1936.

    Args:
        vectors: item vectors, float [n, dim].
    """
    v = vectors.astype(np.float64)
    axes = scipy.linalg.eigh(v.T @ v)[1][:, ::-1]
    return np.ascontiguousarray(axes * signs(axes))


def compare(new: np.ndarray, old: np.ndarray) -> Comparison:
    """Compares two versions of the same items' vectors.

    Args:
        new: float [n, dim], unit rows.
        old: float [n, dim], unit rows of the same items.
    """
    some = slice(0, OVERLAP_ROWS)
    cosines = np.einsum("ij,ij->i", new.astype(np.float64), old.astype(np.float64))
    return Comparison(float(cosines.mean()), neighbour_overlap(new[some], old[some], 10))


@dataclass(frozen=True, eq=False)
class Turn:
    """How a new space was turned to the published one.

    Attributes:
        common: the number of items that both the sample and the published run have.
        before: the new vectors compared with the published ones before the turn. None means that there was no turn.
        turned: the new vectors compared with the published ones after the turn. None means that there was no turn.
        rotation: the turn, one list for each row, rounded to six digits. None means that there was no turn.
        not_anchored: why the space was not turned. None means that it was turned.
    """

    common: int
    before: Comparison | None = None
    turned: Comparison | None = None
    rotation: list[list[float]] | None = None
    not_anchored: str | None = None


def turn_to_published(
    space: Space, ids: pa.ChunkedArray, vectors: np.ndarray, previous: pa.Table, dim: int
) -> tuple[Space, Turn]:
    """Turns a newly fitted space to the published one, so that vectors of the two can be compared.

    Args:
        space: the new space.
        ids: item ids, [n].
        vectors: the vectors of these items in `space`, float32 [n, space.dim].
        previous: `item_id` and `vector` (float32, unit rows) of the published run.
        dim: how many axes to keep.

    Returns:
        The space on `dim` axes, and how it was turned.
    """
    here, there = common_rows(ids, previous["item_id"])
    old = from_vector_column(previous["vector"])[0][there]
    short = space.turned(np.eye(space.dim)[:, :dim]) if dim < space.dim else space
    if old.shape[1] < dim:
        return short, Turn(len(here), not_anchored=f"it has {old.shape[1]} axes, this run {dim}")
    if len(here) < _LEAST_PER_AXIS * dim:
        return short, Turn(len(here), not_anchored=f"fewer than {dim} items in common")
    old = unit_rows(old[:, :dim])
    new = vectors[here]
    turn = turn_to(new, old)
    return space.turned(turn), Turn(
        len(here),
        before=compare(unit_rows(new[:, :dim]), old),
        turned=compare(unit_rows(new @ turn), old),
        rotation=np.round(turn, 6).tolist(),
    )


def lineage(
    space: Space, published: Space, mean_cosine: float | None, not_anchored: str | None
) -> tuple[tuple[str, ...], str]:
    """Lists the earlier spaces that a new one can be compared with, vector by vector.

    Args:
        space: the new space.
        published: the published space.
        mean_cosine: the mean cosine of the new vectors to the published ones, see `RefitReport`. None means that the
            two could not be compared.
        not_anchored: why the new space was not turned. None means that it was turned.

    Returns:
        The space_ids, the newest first; and why there are none, or an empty string.
    """
    if mean_cosine is None:
        return (), not_anchored or "none of the published items is in the sample"
    if space.dim != published.dim:
        return (), f"it has {published.dim} axes, this run {space.dim}"
    if mean_cosine < _LEAST_COSINE:
        found = f"{mean_cosine:.2f}, and {_LEAST_COSINE} is needed"
        return (), f"vectors of the same items have a mean cosine of {found}"
    return (published.space_id, *(published.info.comparable or ()))[:_MOST_COMPARABLE], ""


def blend(space: Space, published: Space, inertia: float) -> Space | None:
    """Moves the published space part of the way to a new one that was turned to it.

    The mean and the map of each modality become (1 − inertia) · new + inertia · published. Over many runs this is an
    exponential moving average of the fits: it follows the catalogue and averages out the randomness of each sample.

    Source: Polyak, Juditsky, "Acceleration of stochastic approximation by averaging", SIAM J. Control Optim. 30(4),
    1992 (averages of estimates vary less than the last estimate); Schönemann 1966 for the turn before it.

    Args:
        space: the new space, turned to the published one.
        published: the published space.
        inertia: the share of the published space, 0 … 1.

    Returns:
        The blended space without an imputer, because the new space's imputer belongs to other axes. None means that
        a space is not one linear map for each modality, or that the two spaces have different modalities or shapes.
    """
    new, old = _flat(space), _flat(published)
    if new is None or old is None or new.keys() != old.keys():
        return None
    if any(new[m].map.shape != old[m].map.shape for m in new):
        return None
    # Two fits agree in the directions of their maps but not in the lengths, and only directions reach the vectors.
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
    """Joins the projection and the output of each modality in one linear map.

    Returns:
        The map of each modality. None means that the space is not linear.
    """
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
    """Says why the published space cannot map this run's embeddings, or returns an empty string.

    Args:
        published: the published space.
        wanted: the encoder_id of each modality in this run.
        dims: the length of each modality's embeddings in this run.
    """
    fitted = published.info.encoder_ids
    for m, encoder_id in wanted.items():
        if m not in published.modalities:
            if m in dims and m not in published.info.left_out:
                return f"it does not know {m}"
        elif fitted.get(m) != encoder_id:
            return f"its {m} encoder was {fitted.get(m)}, now it is {encoder_id}"
    return ""
