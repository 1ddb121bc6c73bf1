"""The alignment method `attention`: contrastive heads, and cross-attention between the modalities of an item."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from unisono.transforms.space.fit.moments import Moments
from unisono.transforms.space.fit.spec import SpaceSpec
from unisono.transforms.space.fit.trained.heads import HeadsObjective, fit_heads
from unisono.transforms.space.fit.trained.training import Params, Recipe
from unisono.transforms.space.parts.trained import CrossAttention, cross_attend, unit
from unisono.transforms.space.space import Space

RECIPE = Recipe(rate=1e-4)


@dataclass
class CrossAttentionObjective(HeadsObjective):
    """Trains heads and cross-attention, see `parts.trained.cross_attend`. The loss is that of `HeadsObjective`."""

    @property
    def heads(self) -> int:
        """The number of attention heads: the largest of 4, 2 and 1 that divides the number of axes."""
        return next(h for h in (4, 2, 1) if self.dim % h == 0)

    def shared_params(self, rng: np.random.Generator) -> Params:
        out = {name: rng.standard_normal((self.dim, self.dim)) / self.dim**0.5 for name in ("query", "key", "value")}
        out["out"] = np.zeros((self.dim, self.dim))  # before training, the mixer changes nothing
        out["kind"] = rng.standard_normal((len(self.modalities), self.dim)) * 0.1
        return out

    def fuse(self, xp: Any, params: Mapping[str, Any], parts: Any, present: Any) -> Any:
        return super().fuse(xp, params, unit(xp, cross_attend(xp, params, parts, present, self.heads)), present)

    def mixer(self, params: Params) -> CrossAttention:
        return CrossAttention({k: params[k] for k in ("query", "key", "value", "out", "kind")}, self.heads)


def fit_cross_attention(moments: Moments, used: list[str], spec: SpaceSpec, sample: pa.Table) -> Space:
    """Trains heads and the space's mixer, see `fit_heads`."""
    return fit_heads(CrossAttentionObjective, RECIPE, moments, used, spec, sample)
