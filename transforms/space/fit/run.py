"""Fits the space of a run: method, fusion, order of axes, turn to the published space, and quality."""

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
from unisono.transforms.space.fit.refit import (
    OVERLAP_ROWS,
    blend,
    compare,
    lineage,
    may_keep,
    order_axes,
    turn_to_published,
)
from unisono.transforms.space.fit.spec import FusionSpec, SpaceSpec
from unisono.transforms.space.fuse import fuse, item_vectors
from unisono.transforms.space.info import Comparison, RefitReport
from unisono.transforms.space.space import Space
from unisono.transforms.store.small_vectors import axis_scale

_VALIDATION = 0.1  # the fraction of the sample that is held out
_LEAST_VALIDATION = 20  # with fewer held-out items nothing is measured


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
        """Returns the settings that decide whether a published space can be kept, in JSON types.

        It can be kept only if it was fitted with the same settings. The encoder_ids are compared separately, by
        `refit.may_keep`.
        """
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
    """Fits the space of a run, or keeps the published one.

    Args:
        moments: the moments of the run's embeddings.
        sample: `item_id` and `<m>_embedding` (null: missing), rows in ascending order of the ids.
        settings: how to fit.
        published: the space of the published run. None means that nothing is published.
        previous: `item_id` and `vector` (float32, unit rows) of the published run, for the items of the sample. None
            means that nothing is published.

    Returns:
        The space, ready to map items, with all fields of its `info` set; and the content of quality.json.

    Raises:
        JobError: a setting is not allowed, nothing can be fitted, or `space.refit` is `never` and the published space
            cannot be used.
    """
    refused = _refusal(published, settings, moments)
    if settings.space.refit == "never" and published is not None:
        if refused:
            raise JobError(f"space.refit: never, but the published space cannot be used: {refused}; set always once")
        return _keep(published, sample, RefitReport("never", refitted=False))
    space, quality = _fit_new(moments, sample, settings)
    dim = min(settings.output_dim or space.dim, space.dim)
    report = RefitReport(settings.space.refit, refitted=True)
    if published is None or previous is None or previous.num_rows == 0:
        space = space.turned(np.eye(space.dim)[:, :dim]) if dim < space.dim else space
    else:
        space, report = _turn_and_blend(space, sample, published, previous, settings, refused)
        if report.drift is not None and report.drift <= settings.space.drift_threshold:
            kept = RefitReport("on_drift", refitted=False, drift=report.drift, threshold=report.threshold)
            return _keep(published, sample, kept)
    space = replace(space, scale=_scale(space, sample))
    space = space.with_info(settings=settings.key(), encoder_ids=dict(settings.encoder_ids), refit=report)
    return space, quality | {"sizes": _sizes(space, sample), "refit": replace(report, rotation=None).to_json()}


def _refusal(published: Space | None, settings: FitSettings, moments: Moments) -> str:
    """Says why the published space cannot be kept, or returns an empty string."""
    if published is None:
        return "nothing is published yet"
    if refused := may_keep(published, settings.encoder_ids, moments.dims):
        return refused
    if published.info.settings != settings.key():
        return "the job file asks for another space, fusion or length"
    return ""


def _turn_and_blend(
    space: Space, sample: pa.Table, published: Space, previous: pa.Table, settings: FitSettings, refused: str
) -> tuple[Space, RefitReport]:
    """Turns a new space to the published one, blends the two, and measures the result.

    Args:
        space: the new space.
        sample: see `fit_run`.
        published: the published space.
        previous: see `fit_run`.
        settings: see `fit_run`.
        refused: why the published space cannot be kept, or an empty string. A space that cannot be kept is not blended
            either.
    """
    dim = min(settings.output_dim or space.dim, space.dim)
    ids, vectors = _vectors(space, sample)
    out, turn = turn_to_published(space, ids, vectors, previous, dim)
    report = RefitReport(
        settings.space.refit,
        refitted=True,
        published=published.space_id,
        common=turn.common,
        before=turn.before,
        turned=turn.turned,
        rotation=turn.rotation,
        not_anchored=turn.not_anchored,
        not_kept=refused or None,
    )
    if turn.turned is not None:
        inertia = 0.0 if refused else settings.space.inertia
        mixed = blend(out, published, inertia) if inertia else None
        if mixed is not None:
            if out.imputer is not None:
                mixed = replace(mixed, imputer=fit_conditional_mean(inner_moments(mixed, sample)))
            out = mixed
        after = _compared(out, sample, previous, dim)
        report = replace(
            report,
            inertia=inertia if mixed is not None else 0.0,
            mean_cosine=after.mean_cosine,
            top10_overlap=after.top10_overlap,
        )
        if settings.space.refit == "on_drift" and not refused:
            report = replace(report, drift=1 - turn.turned.mean_cosine, threshold=settings.space.drift_threshold)
    known, why = lineage(out, published, report.mean_cosine, report.not_anchored)
    return out.with_info(comparable=known, not_comparable=why), report


def _vectors(space: Space, sample: pa.Table) -> tuple[pa.ChunkedArray, np.ndarray]:
    """Maps the sample; returns ids and item vectors, float32 [n, dim], of the items that have a vector."""
    fused, _ = item_vectors(space, sample)
    ok = np.flatnonzero(fused.ok)
    return sample["item_id"].take(pa.array(ok)), fused.vectors[ok]


def _compared(space: Space, sample: pa.Table, previous: pa.Table, dim: int) -> Comparison:
    """Compares the item vectors of the sample with the published ones, on the first `dim` axes."""
    ids, vectors = _vectors(space, sample)
    here, there = common_rows(ids, previous["item_id"])
    old = unit_rows(from_vector_column(previous["vector"])[0][there][:, :dim])
    return compare(vectors[here], old)


def _keep(published: Space, sample: pa.Table, report: RefitReport) -> tuple[Space, dict[str, Any]]:
    """Returns the published space, measured on this run's sample, and the content of quality.json."""
    report = replace(report, published=published.space_id)
    rows = sample.slice(0, OVERLAP_ROWS)
    sizes = _sizes(published, sample)
    quality = {"held_out": None, **measure_space(published, rows), "sizes": sizes, "refit": report.to_json()}
    return published.with_info(refit=report), quality


def _fit_new(moments: Moments, sample: pa.Table, settings: FitSettings) -> tuple[Space, dict[str, Any]]:
    """Fits method and fusion, and measures a fit on items that it was not fitted on.

    A method that sees only the moments is fitted twice. The fit on all items is the result. The fit without the
    held-out items, whose sums are subtracted exactly, is measured. A method that needs the sample is fitted once,
    without the held-out items.

    Returns:
        The space, with its axes in order of importance; and the content of quality.json without `sizes` and `refit`.
    """
    held = held_out(sample, settings)
    rest, rows = sample.filter(pa.array(~held)), sample.filter(pa.array(held))
    validation, why = None, f"{rows.num_rows} of at least {_LEAST_VALIDATION} items could be held out"
    if rows.num_rows >= _LEAST_VALIDATION:
        less = moments.less(Moments.zero().add(embeddings_of(rows)))
        try:
            trial = fit_space(less, settings.space, rest)
            validation = trial, rows
        except JobError as e:  # too few items are left; the fit on all items decides whether the job is wrong
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
    """Chooses a tenth of the sample by hash of the ids: bool [n].

    Only items that the moments include are chosen, and no item that is named as an anchor.
    """
    # Bits 20 and up are independent of the low bits, which choose the shard, and of the high bits, which draw samples.
    chosen = (hash_ids(sample["item_id"]) >> np.uint64(20)) % np.uint64(1000) < np.uint64(int(_VALIDATION * 1000))
    chosen &= in_sample(sample["item_id"], settings.space.sample)
    if isinstance(settings.space.anchors, tuple):
        named = pa.array(settings.space.anchors).cast(sample["item_id"].type)
        chosen[common_rows(sample["item_id"], pa.chunked_array([named]))[0]] = False
    return np.asarray(chosen)


def _scale(space: Space, sample: pa.Table) -> np.ndarray:
    """Returns the int8 step of each axis. It suits item vectors and the vectors of single modalities."""
    aligned = space.align({m: pair for m, pair in embeddings_of(sample).items() if m in space.modalities})
    fused = fuse(aligned.vectors, aligned.weights)
    return np.max([axis_scale(v) for v in (fused.vectors, *aligned.vectors.values())], axis=0)


def _sizes(space: Space, sample: pa.Table) -> dict[str, Any]:
    """Measures on some items of the sample what smaller vectors lose, see `size_costs`."""
    fused, _ = item_vectors(space, sample.slice(0, OVERLAP_ROWS))
    vectors = fused.vectors[fused.ok]
    if len(vectors) < 2 or space.scale is None:
        return {}
    return size_costs(vectors, space.scale)
