"""The fusion method `gated`: a small network computes the weight of each modality from all vectors of the item."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from unisono.transforms.space.fit.fusion import FusionCase, FusionFit
from unisono.transforms.space.fit.trained.training import Params
from unisono.transforms.space.fit.trained.weighers import HIDDEN, WeigherObjective, fit_weigher
from unisono.transforms.space.parts.trained import GatedWeights, TrainedWeigher


@dataclass
class GatedObjective(WeigherObjective):
    """Trains the formula `parts.trained.gate`."""

    part: ClassVar[type[TrainedWeigher]] = GatedWeights

    def weigher_params(self, rng: np.random.Generator) -> Params:
        k, _, dim = self.parts.shape
        return {
            "inner": rng.standard_normal((k * (dim + 1), HIDDEN)) / k**0.5,
            "outer": np.zeros((HIDDEN, k)),
            "bias": np.zeros(k),
        }


def fit_gated(case: FusionCase) -> FusionFit:
    """Trains the weigher `GatedWeights`, see `fit_weigher`."""
    return fit_weigher(GatedObjective, case)
