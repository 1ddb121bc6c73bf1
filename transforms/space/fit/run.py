"""The whole fit of a run's space: method, fusion, order of axes, version, and what it is worth."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from unisono.transforms.base.columns import common_rows, embeddings_of, in_sample, unit_rows
from unisono.transforms.base.errors import JobError
from unisono.transforms.base.tables import from_vector_column, hash_ids
from unisono.transforms.space.fit.fusion import fit_fusion, inner_moments
from unisono.transforms.space.fit.impute import fit_conditional_mean
from unisono.transforms.space.fit.methods import fit_space, needs_sample
from unisono.transforms.space.fit.moments import Moments
from unisono.transforms.space.fit.quality import measure_space, size_costs
from unisono.transforms.space.fit.refit import OVERLAP_ROWS, anchor, blend, compare, lineage, may_keep, order_axes
from unisono.transforms.space.fit.spec import FusionSpec, SpaceSpec
from unisono.transforms.space.fuse import fuse, item_vectors
from unisono.transforms.space.space import Space
from unisono.transforms.store.small_vectors import axis_scale

_VALIDATION = 0.1  # of the sample
_LEAST_VALIDATION = 20


@dataclass(frozen=True)
class FitSettings:
    """Everything that the fit of a run's space depends on besides its data.

    Attributes:
        space: the settings of the space.
        fusion: the settings of the fusion.
        output_dim: how many axes the vectors keep. None means all.
        encoder_ids: the encoder_id of each modality.
    """

    space: SpaceSpec = field(default_factory=SpaceSpec)
    fusion: FusionSpec = field(default_factory=FusionSpec)
    output_dim: int | None = None
    encoder_ids: Mapping[str, str] = field(default_factory=dict)

    def key(self) -> dict[str, Any]:
        """What of it a space must have been fitted with to be used again, in JSON types."""
        asked = {"space": self.space.key(), "fusion": asdict(self.fusion), "output_dim": self.output_dim}
        out: dict[str, Any] = json.loads(json.dumps(asked, default=dict))
        return out


def fit_run(
    moments: Moments,
    sample: pa.Table,
    settings: FitSettings,
    published: Space | None = None,
    previous: pa.Table | None = None,
) -> tuple[Space, dict[str, Any]]:
    """Fits, or keeps, a run's space.

    Args:
        moments: of the run's embeddings.
        sample: `item_id`, `<m>_embedding` (null: missing), rows in the order of their ids.
        settings: how.
        published: the published run's space, if there is one.
        previous: `item_id`, `vector` (float32, unit rows) of the published run, for items of the sample.

    Returns:
        The space, ready for item vectors, with `info["refit"]`, `info["comparable"]` (space_ids of earlier spaces
        that it faces) or `info["not_comparable"]` (why there are none); and the content of `quality.json`.

    Raises:
        JobError: a setting is not allowed, nothing can be fitted, or `never` and the published space cannot be used.
    """
    refused = "nothing is published yet"
    if published is not None:
        refused = may_keep(published, settings.encoder_ids, moments.dims)
        if not refused and published.info.get("settings") != settings.key():
            refused = "the job file asks for another space, fusion or length"
    if settings.space.refit == "never" and published is not None:
        if refused:
            raise JobError(f"space.refit: never, but the published space cannot be used: {refused}; set always once")
        return _keep(published, sample, "never", {})
    space, quality = _fit_new(moments, sample, settings)
    dim = min(settings.output_dim or space.dim, space.dim)
    report: dict[str, Any] = {"policy": settings.space.refit, "refitted": True}
    if published is None or previous is None or previous.num_rows == 0:
        space = space.turned(np.eye(space.dim)[:, :dim]) if dim < space.dim else space
    else:
        space, found = _face(space, sample, published, previous, dim, settings.space.inertia if not refused else 0.0)
        report |= {"published": published.space_id, **found}
        known, why = lineage(space, published, found)
        space = space.with_info(comparable=known, not_comparable=why)
        if settings.space.refit == "on_drift" and not refused and "turned" in found:
            drift = {"drift": 1 - found["turned"]["mean_cosine"], "threshold": settings.space.drift_threshold}
            if drift["drift"] <= settings.space.drift_threshold:
                return _keep(published, sample, "on_drift", drift)
            report |= drift
        if refused:
            report["not_kept"] = refused
    space = replace(space, scale=_scale(space, sample))
    space = space.with_info(settings=settings.key(), encoder_ids=dict(settings.encoder_ids), refit=report)
    return space, quality | {"sizes": _sizes(space, sample), "refit": _without_rotation(report)}


def _face(
    space: Space, sample: pa.Table, published: Space, previous: pa.Table, dim: int, inertia: float
) -> tuple[Space, dict[str, Any]]:
    """Turns a new space to the published one and blends the two, and measures what comes out: see `refit`."""
    fused, _ = item_vectors(space, sample)
    ok = np.flatnonzero(fused.ok)
    turned, report = anchor(space, sample["item_id"].take(pa.array(ok)), fused.vectors[ok], previous, dim)
    if "not_anchored" in report:
        return turned, report
    mixed = blend(turned, published, inertia) if inertia else None
    if mixed is not None:
        if turned.imputer is not None:
            mixed = replace(mixed, imputer=fit_conditional_mean(inner_moments(mixed, sample)))
        turned = mixed
    report["inertia"] = inertia if mixed is not None else 0.0
    fused, _ = item_vectors(turned, sample)
    ok = np.flatnonzero(fused.ok)
    here, there = common_rows(sample["item_id"].take(pa.array(ok)), previous["item_id"])
    old = unit_rows(from_vector_column(previous["vector"])[0][there][:, :dim])
    return turned, report | compare(fused.vectors[ok[here]], old)


def _keep(published: Space, sample: pa.Table, policy: str, drift: Mapping[str, float]) -> tuple[Space, dict[str, Any]]:
    """Gives the published space again, measured on tonight's sample."""
    report = {"policy": policy, "refitted": False, "published": published.space_id, **drift}
    rows = sample.slice(0, OVERLAP_ROWS)
    quality = {"held_out": None, **measure_space(published, rows), "sizes": _sizes(published, sample), "refit": report}
    return published.with_info(refit=report), quality


def _fit_new(moments: Moments, sample: pa.Table, settings: FitSettings) -> tuple[Space, dict[str, Any]]:
    """Fits method and fusion, and measures them on items held out from the fit that is measured.

    From moments a second space is fitted without the held-out items, whose sums are taken off exactly. Methods
    that are fitted on the sample leave them out for good.
    """
    held = held_out(sample, settings)
    rest, rows = sample.filter(pa.array(~held)), sample.filter(pa.array(held))
    validation, why = None, f"{rows.num_rows} of at least {_LEAST_VALIDATION} items could be held out"
    if rows.num_rows >= _LEAST_VALIDATION:
        less = moments.less(Moments.zero().add(embeddings_of(rows)))
        try:
            trial = fit_space(less, settings.space, rest)
            validation = trial, rows
        except JobError as e:  # too little is left to fit; the fit on everything decides whether the job is wrong
            why = str(e)
    if validation is not None and needs_sample(settings.space.method):
        space, rest_for_fusion = validation[0], rest
    else:
        space, rest_for_fusion = fit_space(moments, settings.space, sample), sample
    space = fit_fusion(space, rest_for_fusion, settings.fusion, validation)
    fused, _ = item_vectors(space, sample)
    space = space.turned(order_axes(fused.vectors[fused.ok]))
    if validation is None:
        return space, {"held_out": 0, "not_measured": why}
    trial = fit_fusion(validation[0], rest, settings.fusion, validation)
    return space, {"held_out": rows.num_rows, **measure_space(trial, rows)}


def held_out(sample: pa.Table, settings: FitSettings) -> np.ndarray:
    """Chooses a tenth of the sample by hash, of what the moments are of and no named anchors: bool [n]."""
    # Shards go by the low bits of the hash, samples by the high ones.
    chosen = (hash_ids(sample["item_id"]) >> np.uint64(20)) % np.uint64(1000) < np.uint64(int(_VALIDATION * 1000))
    chosen &= in_sample(sample["item_id"], settings.space.sample)
    if isinstance(settings.space.anchors, tuple):
        named = pa.array(settings.space.anchors).cast(sample["item_id"].type)
        chosen[common_rows(sample["item_id"], pa.chunked_array([named]))[0]] = False
    return np.asarray(chosen)


def _scale(space: Space, sample: pa.Table) -> np.ndarray:
    """The int8 step of each axis, over item vectors and vectors of one modality alike."""
    aligned = space.align({m: pair for m, pair in embeddings_of(sample).items() if m in space.modalities})
    fused = fuse(aligned.vectors, aligned.weights)
    return np.max([axis_scale(v) for v in (fused.vectors, *aligned.vectors.values())], axis=0)


def _sizes(space: Space, sample: pa.Table) -> dict[str, Any]:
    """What smaller vectors cost, on some of the sample."""
    fused, _ = item_vectors(space, sample.slice(0, OVERLAP_ROWS))
    vectors = fused.vectors[fused.ok]
    if len(vectors) < 2 or space.scale is None:
        return {}
    return size_costs(vectors, space.scale)


def _without_rotation(report: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in report.items() if k != "rotation"}
