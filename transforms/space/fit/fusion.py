"""The methods that decide how modalities count in an item, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from itertools import permutations
from typing import Any

import numpy as np
import pyarrow as pa
import scipy.linalg

from unisono.transforms.base.columns import embeddings_of
from unisono.transforms.base.errors import JobError
from unisono.transforms.base.nearest import chance_mrr, retrieval
from unisono.transforms.space.fit.impute import fit_conditional_mean, joint_covariance
from unisono.transforms.space.fit.moments import Moments
from unisono.transforms.space.fit.spec import FusionSpec
from unisono.transforms.space.fit.whitening import signs
from unisono.transforms.space.parts.linear import FixedWeights, Output
from unisono.transforms.space.space import Space

# Learned: fit(space, sample, spec) → Weigher and what to say of it. The sample is as in `alignment._SAMPLED`.
_LEARNED: dict[str, str] = {
    "attention": "unisono.transforms.space.fit.trained.weighers:fit_weigher",
    "gated": "unisono.transforms.space.fit.trained.weighers:fit_weigher",
}


def inner_moments(space: Space, sample: pa.Table) -> Moments:
    """Sums the unit vectors of each modality before fusion and outputs."""
    bare = replace(space, outputs={}, weigher=None, imputer=None).align(embeddings_of(sample))
    return Moments.zero(dict.fromkeys(space.modalities, space.inner_dim)).add(
        {m: (bare.vectors[m], bare.present[m]) for m in space.modalities}
    )


def fit_fusion(
    space: Space, sample: pa.Table, spec: FusionSpec, validation: tuple[Space, pa.Table] | None = None
) -> Space:
    """Fits how modalities are fused, and the imputation if asked for.

    Args:
        space: fitted, without outputs.
        sample: `item_id` and `<m>_embedding` columns (null: missing).
        spec: how.
        validation: for `weights: learned`, rows, and a space that was fitted without them.

    Returns:
        The space with weigher, outputs and imputer, and in `info["fusion"]` what each modality weighs and why.

    Raises:
        JobError: a setting is not allowed.
    """
    moments = inner_moments(space, sample)
    names = [m for m in space.modalities if moments.count(m)]
    spread = {m: similarity_spread(moments, m) for m in names}
    report: dict[str, Any] = {"method": spec.method, "impute": spec.impute}
    weights = _weights(space, spec, spread, report, validation)
    report["modalities"] = _shares(space, sample, moments, spread, weights)
    fixed = np.array([weights.get(m, 1.0) for m in space.modalities])
    out = replace(space, weigher=FixedWeights(fixed))
    if spec.method in _LEARNED:
        module, _, name = _LEARNED[spec.method].partition(":")
        weigher, report["training"] = getattr(import_module(module), name)(space, sample, spec)
        out = replace(space, weigher=weigher)
    if spec.method == "concat":
        out = replace(out, outputs=concat_outputs(moments, space.modalities, weights, space.inner_dim), weigher=None)
    if spec.impute and len(space.modalities) > 1:
        out = replace(out, imputer=fit_conditional_mean(moments))
    return out.with_info(fusion=report)


def similarity_spread(moments: Moments, m: str) -> float:
    """Standard deviation of z·z' between two different items, in one modality: how loud it is in a sum of scores.

    With M the second moment and μ the mean of unit vectors z, Var(z·z') = tr(M²) − (μᵀμ)² for independent z, z'.
    """
    mean, covariance = moments.mean(m), moments.covariance(m, m)
    second = covariance + np.outer(mean, mean)
    return float(np.sqrt(max(np.sum(second**2) - (mean @ mean) ** 2, 0.0)))


def balanced_weights(spread: Mapping[str, float]) -> dict[str, float]:
    """Gives weights by which every modality moves an item-to-item score as much as any other; their mean is 1.

    A score holds w_m² z_m·z'_m, so w_m ∝ spread_m^{-1/2}.
    """
    raw = {m: s**-0.5 if s > 0 else 0.0 for m, s in spread.items()}
    total = sum(raw.values())
    return {m: w * len(raw) / total if total else 1.0 for m, w in raw.items()}


def _weights(
    space: Space,
    spec: FusionSpec,
    spread: Mapping[str, float],
    report: dict[str, Any],
    validation: tuple[Space, pa.Table] | None,
) -> dict[str, float]:
    """The weight of each modality, and into the report where it comes from."""
    if spec.method != "weighted":
        return balanced_weights(spread)
    if spec.weights != "learned":
        return {m: float(spec.weights.get(m, 1.0)) for m in space.modalities}
    if validation is None:
        raise JobError("fusion.weights: learned needs items to validate on; give 20 or more with two modalities")
    report["reliability"] = reliability(*validation)
    found = report["reliability"]
    balance = balanced_weights(spread)
    raw = {m: balance.get(m, 0.0) * np.sqrt(found.get(m, 0.0)) for m in space.modalities}
    total = sum(raw.values())
    return {m: w * len(raw) / total if total else 1.0 for m, w in raw.items()}


def reliability(space: Space, rows: pa.Table) -> dict[str, float]:
    """Says how well each modality agrees with the others on items that the space was not fitted on.

    Mean reciprocal rank of an item's own other modality, above chance, averaged over the pairs and directions
    that a modality takes part in: 0 … 1. After "validated reliability" of experts: Bates, Granger, "The
    combination of forecasts", Operational Research Quarterly 20(4), 1969 (weights from past performance).
    """
    aligned = replace(space, outputs={}, weigher=None, imputer=None).align(embeddings_of(rows))
    scores: dict[str, list[float]] = {m: [] for m in space.modalities}
    for a, b in permutations(space.modalities, 2):
        both = aligned.present[a] & aligned.present[b]
        if both.sum() < 2:
            continue
        found = retrieval(aligned.vectors[a][both], aligned.vectors[b][both])["mrr"]
        chance = chance_mrr(int(both.sum()))
        above = max((found - chance) / (1 - chance), 0.0)
        scores[a].append(above)
        scores[b].append(above)
    return {m: float(np.mean(s)) if s else 0.0 for m, s in scores.items()}


def _shares(
    space: Space, sample: pa.Table, moments: Moments, spread: Mapping[str, float], weights: Mapping[str, float]
) -> dict[str, dict[str, float]]:
    """What each modality would count for by scale and coverage alone, and what it counts for as fused.

    `raw_length`: root mean square length of its embeddings about their mean. `share_raw`: its part of
    raw_length² · coverage, how loud it would be in a sum of embeddings as they come. `share_unit`: its part of
    spread · coverage, with unit vectors. `share`: its part of weight² · spread, as fused.
    """
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
    return out


def concat_outputs(
    moments: Moments, modalities: tuple[str, ...], weights: Mapping[str, float], dim: int
) -> dict[str, Output]:
    """Principal components of the weighted modalities side by side.

    An item's vector has the direction of Σ_m w_m (z_m − μ_m) P_m over the modalities it has, with P the leading
    eigenvectors of the joint covariance of the w_m z_m. Covariances are of the available cases: a modality does
    not lose by being rare. `<m>_vector` is then (z_m − μ_m) P_m at unit length, so that Σ `<m>_weight` ·
    `<m>_vector` is the item's vector exactly, and a query by one modality is comparable to both.

    Source: Hotelling 1933 (PCA); Kiela, Bottou, "Learning image embeddings using convolutional neural networks for
    improved multi-modal semantics", EMNLP 2014, §3.3 (normalised, weighted concatenation).
    """
    dims = moments.dims
    scale = np.concatenate([np.full(dims[m], weights.get(m, 1.0)) for m in dims])
    joint = joint_covariance(moments) * np.outer(scale, scale)
    dim = min(dim, len(joint))
    axes = scipy.linalg.eigh(joint, subset_by_index=[len(joint) - dim, len(joint) - 1])[1][:, ::-1]
    axes = axes * signs(axes) * scale[:, None]
    ends = np.cumsum(list(dims.values()))
    spans = {m: slice(end - d, end) for (m, d), end in zip(dims.items(), ends, strict=True)}
    return {m: Output(moments.mean(m), np.ascontiguousarray(axes[spans[m]])) for m in modalities}
