"""Methods that a developer might add: a closed form, trained heads, and a trained weigher with its part."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from unisono.transforms.space.fit.fusion import FusionCase, FusionFit
from unisono.transforms.space.fit.solution import Solution
from unisono.transforms.space.fit.trained.heads import HeadsObjective, fit_heads
from unisono.transforms.space.fit.trained.training import Params, Recipe
from unisono.transforms.space.fit.trained.weighers import WeigherObjective, fit_weigher
from unisono.transforms.space.parts.trained import TrainedWeigher


def solve_first(moments, used, spec):
    """A closed form: the first `dim` values of each embedding."""
    return Solution({m: np.eye(moments.dims[m])[:, : spec.dim] for m in used}, [], {"first": spec.dim})


@dataclass
class ViewsObjective(HeadsObjective):
    """Trained heads whose loss is the agreement of the two views alone."""

    def further_loss(self, params, code, parts, goals, present):
        return code.sum() * 0.0

    def findings(self, params: Params) -> dict[str, Any]:
        return {"parameters": len(params)}


def fit_views(moments, used, spec, sample):
    return fit_heads(ViewsObjective, Recipe(rate=1e-3), moments, used, spec, sample)


def tilt(xp, p, parts, present):
    """Weights a modality by exp(tanh(z · direction))."""
    return xp.exp(xp.tanh((parts * p["direction"][:, None, :]).sum(axis=-1))) * present


class TiltedWeights(TrainedWeigher):
    kind = "tilted"
    formula = staticmethod(tilt)


@dataclass
class TiltedObjective(WeigherObjective):
    part: ClassVar[type[TrainedWeigher]] = TiltedWeights

    def weigher_params(self, rng: np.random.Generator) -> Params:
        k, _, dim = self.parts.shape
        return {"direction": np.zeros((k, dim))}


def fit_tilted(case: FusionCase) -> FusionFit:
    return fit_weigher(TiltedObjective, case)
