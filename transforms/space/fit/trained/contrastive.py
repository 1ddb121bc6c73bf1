"""The alignment method `contrastive`: an item's modalities, and its two views, are trained to agree."""

from __future__ import annotations

import pyarrow as pa

from unisono.transforms.space.fit.moments import Moments
from unisono.transforms.space.fit.spec import SpaceSpec
from unisono.transforms.space.fit.trained.heads import HeadsObjective, fit_heads
from unisono.transforms.space.fit.trained.training import Recipe
from unisono.transforms.space.space import Space

RECIPE = Recipe(rate=1e-4)


def fit_contrastive(moments: Moments, used: list[str], spec: SpaceSpec, sample: pa.Table) -> Space:
    """Trains heads by `HeadsObjective` as it is, see `fit_heads`."""
    return fit_heads(HeadsObjective, RECIPE, moments, used, spec, sample)
