"""Versions of a space: axes in order of importance, and a new fit turned to face the published one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.linalg

from transforms.quality import neighbour_overlap
from transforms.space import Space
from transforms.tables import same_id_kind
from transforms.whitening import signs

POLICIES = ("never", "always", "on_drift")
OVERLAP_ROWS = 4096  # items whose neighbours are compared: n² scores
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


def turn_to(new: np.ndarray, old: np.ndarray) -> np.ndarray:
    """Gives the R with orthonormal columns for which new · R comes nearest to old: float64 [dim, k].

    R = U Vᵀ of newᵀ old = U S Vᵀ; with k < dim it has the largest Σ ⟨new · R, old⟩.

    Source: Schönemann, "A generalized solution of the orthogonal Procrustes problem", Psychometrika 31(1), 1966.

    Args:
        new, old: float [n, dim] and [n, k ≤ dim], rows of the same items.
    """
    u, _, vt = scipy.linalg.svd(new.astype(np.float64).T @ old.astype(np.float64), full_matrices=False)
    return np.ascontiguousarray(u @ vt)


def common_rows(ids: pa.ChunkedArray, known: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Finds the ids that both columns have: rows in the first, rows in the second, int64 [c] each."""
    if not same_id_kind(ids.type, known.type):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    at = pc.index_in(ids, value_set=known.cast(ids.type).combine_chunks()).to_numpy()
    here = np.flatnonzero(~np.isnan(at)) if at.dtype.kind == "f" else np.flatnonzero(at >= 0)
    return here, at[here].astype(np.int64)


def compare(new: np.ndarray, old: np.ndarray) -> dict[str, float]:
    """Says how comparable two versions of the same items' vectors are: mean cosine, top-10 neighbour overlap."""
    some = slice(0, OVERLAP_ROWS)
    return {
        "mean_cosine": float(np.einsum("ij,ij->i", new.astype(np.float64), old.astype(np.float64)).mean()),
        "top10_overlap": neighbour_overlap(new[some], old[some], 10),
    }


def anchor(space: Space, ids: pa.ChunkedArray, vectors: np.ndarray, previous: pa.Table, dim: int) -> tuple[Space, Any]:
    """Turns a newly fitted space to the published one, so that vectors of the two can be compared.

    Args:
        space: newly fitted.
        ids: item ids, [n].
        vectors: of these items in `space`, float32 [n, space.dim].
        previous: `item_id`, `vector` float32 unit rows, of the published run.
        dim: how many axes to keep.

    Returns:
        The space on `dim` axes, and what to say of it: `common` items, `mean_cosine` and `top10_overlap` of new to
        old, the same `before` the turn, `rotation`; or `common` and `not_anchored`: why.
    """
    here, there = common_rows(ids, previous["item_id"])
    old = previous["vector"].combine_chunks().values.to_numpy().reshape(previous.num_rows, -1)[there]
    short = space.turned(np.eye(space.dim)[:, :dim]) if dim < space.dim else space
    if old.shape[1] < dim:
        return short, {"common": len(here), "not_anchored": f"it has {old.shape[1]} axes, this run {dim}"}
    if len(here) < _LEAST_PER_AXIS * dim:
        return short, {"common": len(here), "not_anchored": f"fewer than {dim} items in common"}
    old = _unit(old[:, :dim])
    new = vectors[here]
    turn = turn_to(new, old)
    report: dict[str, Any] = {"common": len(here), **compare(_unit(new @ turn), old)}
    report["before"] = compare(_unit(new[:, :dim]), old)
    report["rotation"] = np.round(turn, 6).tolist()
    return space.turned(turn), report


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


def _unit(vectors: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, norm, out=np.zeros_like(vectors), where=norm > 0)
