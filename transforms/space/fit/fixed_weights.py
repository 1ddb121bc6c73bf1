"""The fusion methods `mean` and `weighted`: a modality has the same weight in every item."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np
import pyarrow as pa

from unisono.transforms.base.columns import embeddings_of
from unisono.transforms.base.errors import JobError
from unisono.transforms.base.nearest import chance_mrr, retrieval
from unisono.transforms.space.fit.fusion import FusionCase, FusionFit, mean_one
from unisono.transforms.space.parts.linear import FixedWeights
from unisono.transforms.space.space import Space


def fit_mean(case: FusionCase) -> FusionFit:
    """Gives the modalities balanced weights: each moves the score of two items equally, see `balanced_weights`."""
    return _fixed(case, case.balanced)


def fit_weighted(case: FusionCase) -> FusionFit:
    """Takes the weights of the job file, or learns them from the modalities' reliability.

    A learned weight is the balanced weight times the square root of the reliability.

    Raises:
        JobError: the weights are to be learned, and there are too few items to validate on.
    """
    names, given = case.space.modalities, case.spec.weights
    if given != "learned":
        return _fixed(case, {m: float(given.get(m, 1.0)) for m in names})
    if case.validation is None:
        raise JobError("fusion.weights: learned needs items to validate on; give 20 or more with two modalities")
    found, balance = reliability(*case.validation), case.balanced
    weights = mean_one({m: balance.get(m, 0.0) * np.sqrt(found.get(m, 0.0)) for m in names})
    return _fixed(case, weights, {"reliability": found})


def _fixed(
    case: FusionCase, weights: Mapping[str, float], findings: Mapping[str, Any] | None = None
) -> FusionFit:
    fixed = np.array([weights.get(m, 1.0) for m in case.space.modalities])
    return FusionFit(weights, FixedWeights(fixed), findings=findings or {})


def reliability(space: Space, rows: pa.Table) -> dict[str, float]:
    """Measures how well each modality agrees with the others on items that the space was not fitted on.

    A query by one modality ranks all items by another modality, and the reciprocal rank of the item itself counts. The
    mean over items is scaled: chance becomes 0 and a perfect result 1. A modality's reliability is the mean over all
    pairs that it is in, in both directions.

    Source: Bates, Granger, "The combination of forecasts", Operational Research Quarterly 20(4), 1969 (weights from
    past performance).

    Args:
        space: fitted without `rows`.
        rows: `item_id` and `<m>_embedding` columns (null: missing).

    Returns:
        The reliability of each modality of the space, 0 … 1. It is 0 if fewer than two rows have the modality together
        with another one.
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
