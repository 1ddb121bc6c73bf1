"""Alignment by anchors: an embedding is described by what it is near to, among items that all modalities know."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.linalg

from unisono.transforms.base.columns import embeddings_of
from unisono.transforms.base.errors import JobError
from unisono.transforms.base.tables import hash_ids
from unisono.transforms.space.fit.moments import Moments
from unisono.transforms.space.fit.spec import SpaceSpec
from unisono.transforms.space.fit.whitening import signs, whitener
from unisono.transforms.space.parts.anchors import AnchorMap
from unisono.transforms.space.space import Space

ANCHORS = 512  # drawn where none are named
_LEAST = 2
_KEPT = 0.25  # of the anchors, the nearest: ASIF's k; of 1, 0.25, 0.1 the best on the demo, level with 0.1 on stamps
_BLOCK_ROWS = 4096




def fit_anchors(sample: pa.Table, moments: Moments, used: list[str], spec: SpaceSpec) -> Space:
    """Fits relative representations: the same anchor items, seen by each modality, are the axes of all.

    Embeddings are centred and whitened (shrunk), so that a cosine is not ruled by a few strong directions. Of the
    cosines to the anchors the largest quarter is kept, as ASIF does (its k), less their mean over the sample. The
    anchors are then reduced to `dim` axes, one orthonormal matrix for all modalities: the principal axes of the
    mean covariance of the modalities' similarities.

    Source: Moschella et al., "Relative representations enable zero-shot latent space communication", ICLR 2023,
    eq. 1; Norelli et al., "ASIF: coupled data turns unimodal models to multimodal without training", NeurIPS 2023,
    algorithm 1 (sparse, across modalities).

    Args:
        sample: must hold the named anchors.

    Raises:
        JobError: an anchor is not there or lacks a modality, or too few items have every modality.
    """
    rows = anchor_rows(sample, used, spec)
    embeddings = embeddings_of(sample)
    maps = {}
    for m in used:
        basis = whitener(moments, m, spec.regularization).basis
        y = (embeddings[m][0][rows].astype(np.float64) - moments.mean(m)) @ basis
        norm = np.linalg.norm(y, axis=1, keepdims=True)
        anchors = np.divide(y, norm, out=np.zeros_like(y), where=norm > 0)
        kept = max(1, round(_KEPT * len(rows)))
        none = np.zeros(len(rows))
        maps[m] = AnchorMap(moments.mean(m), basis, anchors, kept, none, np.eye(len(rows)))
    sums = Moments.zero(dict.fromkeys(used, len(rows)))
    for start in range(0, sample.num_rows, _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        batch = {}
        for m in used:
            x, present = (part[block] for part in embeddings[m])
            x = np.where(present[:, None], x, 0).astype(np.float64)
            batch[m] = maps[m].similarities(x), present
        sums.add(batch)
    dim = min(spec.axes, len(rows))
    values, axes = scipy.linalg.eigh(np.mean([sums.covariance(m, m) for m in used], axis=0))
    axes = np.ascontiguousarray((axes[:, ::-1])[:, :dim])
    axes *= signs(axes)
    fitted = {
        m: AnchorMap(a.mean, a.whitening, a.anchors, a.kept, sums.mean(m), axes) for m, a in maps.items()
    }
    ids = sample["item_id"].take(pa.array(rows)).to_pylist()
    info = {"unaligned": [], "anchors": ids, "kept": maps[used[0]].kept, "spectrum": values[::-1][:dim].tolist()}
    return Space("anchors", fitted, info=info)


def anchor_rows(sample: pa.Table, used: list[str], spec: SpaceSpec) -> np.ndarray:
    """Finds the named anchors, or draws those with every modality whose ids hash lowest: int64 [A]."""
    embeddings = embeddings_of(sample)
    whole = np.all([embeddings[m][1] for m in used], axis=0)
    ids = sample["item_id"].combine_chunks()
    if isinstance(spec.anchors, tuple):
        named = pa.array(spec.anchors).cast(ids.type)
        rows = pc.index_in(named, value_set=ids).to_numpy(zero_copy_only=False)
        for name, row in zip(spec.anchors, rows, strict=True):
            if np.isnan(row) or not whole[int(row)]:
                why = "is not in the catalogue" if np.isnan(row) else f"lacks one of {', '.join(used)}"
                raise JobError(f"space.anchors: {name!r} {why}; name items that have every modality")
        return rows.astype(np.int64)
    candidates = np.flatnonzero(whole)
    order = candidates[np.argsort(hash_ids(ids)[candidates], kind="stable")]
    if len(order) < _LEAST:
        raise JobError(f"space.method: anchors need {_LEAST} items with every modality, there are {len(order)}")
    return order[: spec.anchors or ANCHORS]
