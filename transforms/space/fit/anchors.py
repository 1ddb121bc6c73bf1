"""Alignment by anchors: an embedding is described by its similarities to items that have every modality."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.linalg

from unisono.transforms.base.columns import embeddings_of, unit_rows
from unisono.transforms.base.errors import JobError
from unisono.transforms.base.tables import hash_ids
from unisono.transforms.space.fit.moments import Moments
from unisono.transforms.space.fit.spec import SpaceSpec
from unisono.transforms.space.fit.whitening import signs, whitener
from unisono.transforms.space.info import SpaceInfo
from unisono.transforms.space.parts.anchors import AnchorMap
from unisono.transforms.space.space import Batch, Space

ANCHORS = 512  # how many anchors are drawn if the job file does not say
_LEAST = 2  # the least number of anchors
# The fraction of cosines that is kept. Among 1, 0.25 and 0.1, it is best on the demo and ties with 0.1 on the stamps.
_KEPT = 0.25
_BLOCK_ROWS = 4096


def fit_anchors(moments: Moments, used: list[str], spec: SpaceSpec, sample: pa.Table) -> Space:
    """Fits relative representations: the axes of all modalities are similarities to the same anchor items.

    Embeddings are centred and whitened with a shrunk covariance, because otherwise a few strong directions would decide
    every cosine. Only the largest quarter of an embedding's cosines to the anchors is kept, as in ASIF, and their mean
    over the sample is subtracted. One orthonormal matrix, the same for all modalities, then reduces the anchors to
    `dim` axes: the principal axes of the mean covariance of the modalities' similarities.

    Source: Moschella et al., "Relative representations enable zero-shot latent space communication", ICLR 2023,
    eq. 1; Norelli et al., "ASIF: coupled data turns unimodal models to multimodal without training", NeurIPS 2023,
    algorithm 1 (sparse, across modalities; its k is what is kept here).

    Args:
        moments: the moments of the embeddings.
        used: the modalities to align.
        spec: `dim`, `regularization` and `anchors` are used.
        sample: see `space.registry.AlignmentMethod`. It must contain the anchors that `spec` names.

    Raises:
        JobError: a named anchor is not in the sample or lacks a modality, or too few items have every modality.
    """
    rows = anchor_rows(sample, used, spec)
    embeddings = embeddings_of(sample)
    maps = {m: _whitened_anchors(moments, m, embeddings[m][0][rows], spec) for m in used}
    sums = _similarity_moments(maps, embeddings, sample.num_rows)
    dim = min(spec.axes, len(rows))
    values, axes = scipy.linalg.eigh(np.mean([sums.covariance(m, m) for m in used], axis=0))
    axes = np.ascontiguousarray((axes[:, ::-1])[:, :dim])
    axes *= signs(axes)
    fitted = {m: replace(a, shift=sums.mean(m), axes=axes) for m, a in maps.items()}
    ids = sample["item_id"].take(pa.array(rows)).to_pylist()
    findings = {"anchors": ids, "kept": maps[used[0]].kept, "spectrum": values[::-1][:dim].tolist()}
    return Space("anchors", fitted, info=SpaceInfo(findings=findings))


def _whitened_anchors(moments: Moments, m: str, anchors: np.ndarray, spec: SpaceSpec) -> AnchorMap:
    """Makes the map of one modality before its similarities are centred and reduced: the anchors are its axes.

    Args:
        moments: the moments of the embeddings.
        m: the modality.
        anchors: the anchors' embeddings, of any float dtype, [A, d].
        spec: `regularization` is used.
    """
    basis = whitener(moments, m, spec.regularization).basis
    y = (anchors.astype(np.float64) - moments.mean(m)) @ basis
    kept = max(1, round(_KEPT * len(anchors)))
    return AnchorMap(
        mean=moments.mean(m),
        whitening=basis,
        anchors=unit_rows(y),
        kept=kept,
        shift=np.zeros(len(anchors)),
        axes=np.eye(len(anchors)),
    )


def _similarity_moments(maps: Mapping[str, AnchorMap], embeddings: Batch, rows: int) -> Moments:
    """Sums the moments of the similarities of all items of the sample."""
    sums = Moments.zero({m: len(a.anchors) for m, a in maps.items()})
    for start in range(0, rows, _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        batch = {}
        for m, anchor_map in maps.items():
            x, present = (part[block] for part in embeddings[m])
            x = np.where(present[:, None], x, 0).astype(np.float64)
            batch[m] = anchor_map.similarities(x), present
        sums.add(batch)
    return sums


def anchor_rows(sample: pa.Table, used: list[str], spec: SpaceSpec) -> np.ndarray:
    """Finds the anchors' rows in the sample: int64 [A].

    The anchors are the items that the job file names. If it names none, they are the items with the lowest id hashes
    among those that have every modality.

    Args:
        sample: see `space.registry.AlignmentMethod`.
        used: the modalities that an anchor must have.
        spec: `anchors` is used.

    Raises:
        JobError: a named anchor is not in the sample or lacks a modality, or too few items have every modality.
    """
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
        raise JobError(
            f"space.method: anchors needs {_LEAST} items with every modality, and {len(order)} have it; "
            "choose another method"
        )
    return order[: spec.anchors or ANCHORS]
