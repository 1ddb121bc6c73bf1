"""The fusion method `attention`: the mean of an item's vectors attends to each of its modalities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from unisono.transforms.space.fit.fusion import FusionCase, FusionFit
from unisono.transforms.space.fit.trained.training import Params
from unisono.transforms.space.fit.trained.weighers import HIDDEN, WeigherObjective, fit_weigher
from unisono.transforms.space.parts.trained import AttentionWeights, TrainedWeigher


@dataclass
class AttentionPoolingObjective(WeigherObjective):
    """Trains the formula `parts.trained.pool`."""

    part: ClassVar[type[TrainedWeigher]] = AttentionWeights

    def weigher_params(self, rng: np.random.Generator) -> Params:
        k, _, dim = self.parts.shape
        return {
            "key": rng.standard_normal((dim, HIDDEN)),
            "kind": rng.standard_normal((k, HIDDEN)) * 0.1,
            "query": np.zeros((dim, HIDDEN)),
            "start": np.zeros(HIDDEN),
        }


def fit_attention_pooling(case: FusionCase) -> FusionFit:
    """Trains the weigher `AttentionWeights`, see `fit_weigher`."""
    return fit_weigher(AttentionPoolingObjective, case)
