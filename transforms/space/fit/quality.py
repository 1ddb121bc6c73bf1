"""Measures how good a joint space is, on items that it was not fitted on."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, permutations
from typing import Any

import numpy as np
import pyarrow as pa

from unisono.transforms.base.columns import embeddings_of
from unisono.transforms.base.nearest import (
    chance_recall,
    chance_same_label,
    neighbour_overlap,
    retrieval,
    same_label_neighbours,
)
from unisono.transforms.base.tables import hash_ids
from unisono.transforms.space.fuse import Fused, fuse
from unisono.transforms.space.space import Aligned, Batch, Space
from unisono.transforms.store.small_vectors import encode_vectors

_LOST = 0.3  # the fraction of all modalities that `_missing` takes away
_K = 10  # how many neighbours, and how many results of a query
_MOST_ROWS = 8192  # more would take too long, because every item is compared with every other one


def measure_space(space: Space, rows: pa.Table, labels: np.ndarray | None = None) -> dict[str, Any]:
    """Measures retrieval across modalities, neighbours, and the effect of missing modalities.

    Args:
        space: the space with its fusion.
        rows: `item_id` and `<m>_embedding` (null: missing) of items that the fit did not see. Only the first 8,192 are
            used.
        labels: the label of each row, [n]. None means that no labels are known.

    Returns:
        A dictionary in JSON types:
        `items`: the number of items.
        `pairs`: measures for each pair `a→b` of modalities, where a query by an item's a ranks the b of all items:
        recall@1, recall@5, recall@10, median_rank and mrr of the item's own b; n, the number of items with both; and
        chance@10, the recall@10 of random ranks.
        `mean_recall@10`: the mean over the pairs.
        `times_chance`: the mean over the pairs of recall@10 / chance@10.
        `gap`: for each pair `a-b` the distance between the mean unit vectors of the two.
        `isotropy`: see `isotropy`, of the item vectors.
        `coverage`: the fraction of the items that have each modality, and that have a `vector`.
        `same_label`: the fraction of the ten nearest neighbours that have the same label, for item vectors (`vector`),
        for each modality, and for random vectors (`chance`). Only with labels.
        `without`: for each modality, the effect of dropping it, see `_without`.
        `missing`: see `_missing`.
    """
    rows = rows.slice(0, _MOST_ROWS)
    labels = None if labels is None else labels[: rows.num_rows]
    batch = {m: pair for m, pair in embeddings_of(rows).items() if m in space.modalities}
    aligned = space.align(batch)
    pairs = _pairs(aligned)
    recalls = [p["recall@10"] for p in pairs.values()]
    out: dict[str, Any] = {
        "items": rows.num_rows,
        "pairs": pairs,
        "mean_recall@10": float(np.mean(recalls)) if recalls else None,
        "times_chance": float(np.mean([p["recall@10"] / p["chance@10"] for p in pairs.values()])) if pairs else None,
        "gap": _gaps(aligned),
    }
    fused = fuse(aligned.vectors, aligned.weights)
    out["isotropy"] = isotropy(fused.vectors[fused.ok])
    out["coverage"] = {m: float(aligned.present[m].mean()) for m in space.modalities}
    out["coverage"]["vector"] = float(fused.ok.mean())
    if labels is not None:
        out["same_label"] = _same_label(aligned, fused.vectors, fused.ok, labels)
    out["without"] = _without(space, batch, fused.vectors, fused.ok, labels)
    out["missing"] = _missing(space, batch, rows)
    return out


def isotropy(vectors: np.ndarray) -> float | None:
    """Measures how evenly vectors use the axes: (Σλ)² / (dim · Σλ²) with the eigenvalues λ of their covariance.

    The result is between 1 / dim and 1. None means that there are fewer than two different vectors.

    Source: Gao et al., "A theory of multineuronal dimensionality", 2017, eq. 3 (the participation ratio, here divided
    by dim); Rudman et al., "IsoScore", ACL Findings 2022 (why to use the spectrum and not mean cosines).

    Args:
        vectors: float [n, dim].
    """
    if len(vectors) < 2:
        return None
    covariance = np.cov(vectors.astype(np.float64).T, ddof=0)
    square = float(np.sum(covariance**2))
    return float(np.trace(covariance)) ** 2 / (len(covariance) * square) if square else None


def _pairs(aligned: Aligned) -> dict[str, dict[str, float]]:
    """Measures retrieval between the modalities of each pair, see `measure_space`."""
    out = {}
    for a, b in permutations(aligned.vectors, 2):
        both = aligned.present[a] & aligned.present[b]
        n = int(both.sum())
        if n > 1:
            found = retrieval(aligned.vectors[a][both], aligned.vectors[b][both])
            out[f"{a}→{b}"] = found | {"chance@10": chance_recall(n, _K)}
    return out


def _gaps(aligned: Aligned) -> dict[str, float]:
    """Measures the distance between the mean vectors of two modalities, over the items that have both.

    Source: Liang et al., "Mind the gap", NeurIPS 2022, §2.
    """
    out = {}
    for a, b in combinations(aligned.vectors, 2):
        both = aligned.present[a] & aligned.present[b]
        if both.any():
            difference = aligned.vectors[a][both].mean(0, float) - aligned.vectors[b][both].mean(0, float)
            out[f"{a}-{b}"] = float(np.linalg.norm(difference))
    return out


def _same_label(aligned: Aligned, vectors: np.ndarray, ok: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Measures how many neighbours have the same label, see `measure_space`."""
    out = {"chance": chance_same_label(labels[ok])} if ok.sum() > 1 else {}
    for name, x, here in [("vector", vectors, ok), *((m, v, aligned.present[m]) for m, v in aligned.vectors.items())]:
        if here.sum() > 1:
            out[name] = same_label_neighbours(x[here], labels[here], _K)
    return out


def _without(
    space: Space, batch: Batch, vectors: np.ndarray, ok: np.ndarray, labels: np.ndarray | None
) -> dict[str, dict[str, float]]:
    """Measures the effect of dropping each modality.

    Returns:
        For each modality: `coverage`, the fraction of the items that still have a vector; `top10_overlap`, the share of
        their ten nearest neighbours that stay; and with labels `same_label` and `same_label_with`, the fraction of
        neighbours with the same label, without and with the modality.
    """
    out = {}
    for m in space.modalities if len(space.modalities) > 1 else ():
        left = fused_without(space, batch, {m: np.zeros(len(ok), bool)})
        both = ok & left.ok
        found: dict[str, float] = {"coverage": float(left.ok.mean())}
        if both.sum() > 1:
            found["top10_overlap"] = neighbour_overlap(vectors[both], left.vectors[both], _K)
            if labels is not None:
                found["same_label"] = same_label_neighbours(left.vectors[both], labels[both], _K)
                found["same_label_with"] = same_label_neighbours(vectors[both], labels[both], _K)
        out[m] = found
    return out


def fused_without(space: Space, batch: Batch, kept: dict[str, np.ndarray]) -> Fused:
    """Fuses items after taking modalities away.

    Args:
        space: the space.
        batch: see `Space.align`.
        kept: for each modality the rows that keep it, bool [n]. A modality that is not named is kept in all rows.
    """
    shown = {m: (x, p & kept[m] if m in kept else p) for m, (x, p) in batch.items()}
    aligned = space.align(shown)
    return fuse(aligned.vectors, aligned.weights)


def _missing(space: Space, batch: Batch, rows: pa.Table) -> dict[str, float]:
    """Measures how well a query by one modality finds an item that is stored by its other modalities.

    For each modality m, the queries are the items' m vectors and the candidates are item vectors made without m. Then
    30% of all modalities are taken away, drawn by hash of the item id, and the same is measured again. Items that keep
    no modality besides m are excluded from both measurements.

    Returns:
        `recall@10` with all modalities and `recall@10_lost` with 30% of them lost, both averaged over the modalities;
        `drop`, their difference; `items`, the mean number of candidates. Empty if nothing can be measured.
    """
    modalities = [m for m in space.modalities if m in batch]
    ids = hash_ids(rows["item_id"])
    kept = {}
    for i, m in enumerate(modalities):
        mixed = ids * np.uint64(2 * i + 3) ^ (ids >> np.uint64(7 + i))
        kept[m] = (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53 >= _LOST
    whole, lost, sizes = [], [], []
    for m in modalities:
        others = [o for o in modalities if o != m]
        findable = batch[m][1].copy()
        if others:
            findable &= np.any([batch[o][1] & kept[o] for o in others], axis=0)
        none = np.zeros(len(ids), bool)
        before = fused_without(space, batch, {m: none})
        after = fused_without(space, batch, {o: kept[o] for o in others} | {m: none})
        queries = space.project(m, np.where(batch[m][1][:, None], batch[m][0], 0))
        findable &= before.ok & after.ok
        if findable.sum() > 1:
            whole.append(retrieval(queries[findable], before.vectors[findable])["recall@10"])
            lost.append(retrieval(queries[findable], after.vectors[findable])["recall@10"])
            sizes.append(int(findable.sum()))
    if not whole:
        return {}
    a, b = float(np.mean(whole)), float(np.mean(lost))
    return {"recall@10": a, "recall@10_lost": b, "drop": a - b, "items": float(np.mean(sizes))}


def missing_with_and_without(space: Space, rows: pa.Table) -> dict[str, dict[str, float]]:
    """Measures `missing`, see `measure_space`, for a space that imputes and for the same space without imputation."""
    rows = rows.slice(0, _MOST_ROWS)
    batch = {m: pair for m, pair in embeddings_of(rows).items() if m in space.modalities}
    return {
        "plain": _missing(replace(space, imputer=None), batch, rows),
        "impute": _missing(space, batch, rows),
    }


def size_costs(vectors: np.ndarray, scale: np.ndarray, k: int = 10) -> dict[str, Any]:
    """Measures what smaller vectors lose: the overlap of their k nearest neighbours with those of the full vectors.

    Args:
        vectors: float32 [n, dim], unit rows.
        scale: float64 [dim], the size of an int8 step on each axis.
        k: the number of neighbours.

    Returns:
        `k`, `items`, `dim`, and the overlap, 0 … 1, of `float16`, `int8`, and for a half, a quarter and an eighth of
        the axes `axes_<n>` (float32) and `axes_<n>_int8`.
    """
    dim = vectors.shape[1]
    out: dict[str, Any] = {"k": k, "items": len(vectors), "dim": dim}
    half = encode_vectors(vectors, "float16", None).astype(np.float32)
    whole = encode_vectors(vectors, "int8", scale) * scale.astype(np.float32)
    out["float16"] = neighbour_overlap(vectors, half, k)
    out["int8"] = neighbour_overlap(vectors, whole, k)
    for axes in sorted({dim // 2, dim // 4, dim // 8} - {0}, reverse=True):
        out[f"axes_{axes}"] = neighbour_overlap(vectors, vectors[:, :axes], k)
        out[f"axes_{axes}_int8"] = neighbour_overlap(vectors, whole[:, :axes], k)
    return out
