"""The methods that decide how modalities count in an item, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class FusionSpec:
    """How aligned modalities become one vector.

    Attributes:
        method: one of `FUSIONS`.
        weights: `weighted`: of each modality, ≥ 0, 1 where not named; or `learned`.
        impute: missing modalities are predicted from the present ones.
        seed, epochs: of learned methods, as in `SpaceSpec`.
    """

    method: str = "weighted"
    weights: Mapping[str, float] | Literal["learned"] = field(default_factory=dict)
    impute: bool = False
    seed: int = 0
    epochs: int | None = None


# Learned: fit(space, sample, spec) → Weigher. The sample is as in `alignment._SAMPLED`.
_LEARNED: dict[str, str] = {}
FUSIONS = ("weighted",)
