"""Fits how the modalities of an item become one vector, by the method that the job file names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from unisono.transforms.base.columns import embeddings_of
from unisono.transforms.space.fit.impute import fit_conditional_mean
from unisono.transforms.space.fit.moments import Moments
from unisono.transforms.space.fit.spec import FusionSpec
from unisono.transforms.space.info import FusionReport, ModalityShare
from unisono.transforms.space.parts.linear import Output, Weigher
from unisono.transforms.space.registry import FUSIONS
from unisono.transforms.space.space import Space


@dataclass(frozen=True, eq=False)
class FusionCase:
    """What a fusion method is fitted on.

    Attributes:
        space: the fitted space, without outputs.
        sample: `item_id` and `<m>_embedding` columns (null: missing), rows in ascending order of the ids.
        spec: the settings.
        moments: the moments of the unit vectors of each modality, before fusion.
        spread: the standard deviation of the scores in each modality, see `similarity_spread`. It has no entry for a
            modality that no item of the sample has.
        validation: a space, and rows that it was not fitted on. None means that there are too few items.
    """

    space: Space
    sample: pa.Table
    spec: FusionSpec
    moments: Moments
    spread: Mapping[str, float]
    validation: tuple[Space, pa.Table] | None

    @property
    def balanced(self) -> dict[str, float]:
        """The weights with which all modalities count equally, see `balanced_weights`."""
        return balanced_weights(self.spread)


@dataclass(frozen=True, eq=False)
class FusionFit:
    """What a fusion method found.

    Attributes:
        weights: the weight of each modality, for the report. A modality that is not named has weight 1. A trained
            weigher does not use them.
        weigher: weighs the modalities of an item. None means equal weights.
        outputs: the last map of each modality. Empty means that the axes of the space stay.
        findings: what the method reports in addition, in JSON types, see `FusionReport.findings`.
    """

    weights: Mapping[str, float]
    weigher: Weigher | None = None
    outputs: Mapping[str, Output] = field(default_factory=dict)
    findings: Mapping[str, Any] = field(default_factory=dict)


def inner_moments(space: Space, sample: pa.Table) -> Moments:
    """Sums the moments of the unit vectors of each modality, before fusion and outputs."""
    bare = replace(space, outputs={}, weigher=None, imputer=None).align(embeddings_of(sample))
    return Moments.zero(dict.fromkeys(space.modalities, space.inner_dim)).add(
        {m: (bare.vectors[m], bare.present[m]) for m in space.modalities}
    )


def fit_fusion(
    space: Space, sample: pa.Table, spec: FusionSpec, validation: tuple[Space, pa.Table] | None = None
) -> Space:
    """Fits how modalities are fused, and the imputation if it is asked for.

    Args:
        space: fitted, without outputs.
        sample: `item_id` and `<m>_embedding` columns (null: missing).
        spec: the settings.
        validation: a space, and rows that it was not fitted on. Needed for `weights: learned`. None means that there
            are too few items.

    Returns:
        The space with its weigher, outputs and imputer. `info.fusion` says how much each modality counts.

    Raises:
        JobError: a setting is not allowed.
    """
    moments = inner_moments(space, sample)
    spread = {m: similarity_spread(moments, m) for m in space.modalities if moments.count(m)}
    case = FusionCase(
        space=space, sample=sample, spec=spec, moments=moments, spread=spread, validation=validation
    )  # fmt: skip
    fit: FusionFit = FUSIONS[spec.method].load()(case)
    out = replace(space, weigher=fit.weigher, outputs=fit.outputs)
    if spec.impute and len(space.modalities) > 1:
        out = replace(out, imputer=fit_conditional_mean(moments))
    shares = modality_shares(sample, moments, spread, fit.weights)
    return out.with_info(fusion=FusionReport(spec.method, spec.impute, shares, fit.findings))


def similarity_spread(moments: Moments, m: str) -> float:
    """Returns the standard deviation of the score z·z' of two independent items in one modality.

    The larger it is, the more the modality decides a sum of scores. With M the second moment and μ the mean of the unit
    vectors z, Var(z·z') = tr(M²) − (μᵀμ)².

    Args:
        moments: the moments of the unit vectors.
        m: the modality.
    """
    mean, covariance = moments.mean(m), moments.covariance(m, m)
    second = covariance + np.outer(mean, mean)
    return float(np.sqrt(max(np.sum(second**2) - (mean @ mean) ** 2, 0.0)))


def balanced_weights(spread: Mapping[str, float]) -> dict[str, float]:
    """Returns the weights with which every modality moves the score of two items equally. Their mean is 1.

    The score of two items contains w_m² z_m·z'_m, so w_m ∝ spread_m^{-1/2}.

    Args:
        spread: the standard deviation of the scores in each modality, see `similarity_spread`.
    """
    return mean_one({m: s**-0.5 if s > 0 else 0.0 for m, s in spread.items()})


def mean_one(weights: Mapping[str, float]) -> dict[str, float]:
    """Scales weights to a mean of 1. If all are 0, all become 1."""
    total = sum(weights.values())
    return {m: w * len(weights) / total if total else 1.0 for m, w in weights.items()}


def modality_shares(
    sample: pa.Table, moments: Moments, spread: Mapping[str, float], weights: Mapping[str, float]
) -> dict[str, ModalityShare]:
    """Measures how much each modality counts in the fused vectors, and how much it would count without weights."""
    embeddings = embeddings_of(sample)
    out: dict[str, dict[str, float]] = {}
    for m in spread:
        x, present = embeddings[m]
        length2 = float(np.mean(np.sum((x[present].astype(float) - x[present].mean(0, float)) ** 2, 1)))
        coverage = moments.count(m) / max(sample.num_rows, 1)
        out[m] = {
            "weight": float(weights.get(m, 1.0)),
            "coverage": coverage,
            "spread": spread[m],
            "raw_length": length2**0.5,
            "share_raw": length2 * coverage,
            "share_unit": spread[m] * coverage,
            "share": weights.get(m, 1.0) ** 2 * spread[m],
        }
    for key in ("share_raw", "share_unit", "share"):
        total = sum(o[key] for o in out.values())
        for o in out.values():
            o[key] = o[key] / total if total else 0.0
    return {m: ModalityShare(**o) for m, o in out.items()}
