"""The result of an alignment method that sees only the moments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class Solution:
    """One linear map for each modality.

    Attributes:
        maps: the map of each modality, float64 [d_m, dim]. A modality's mean is subtracted before its map is applied.
        unaligned: the modalities that could not be aligned with another one, for example because no item has both.
        findings: what the method reports in addition, in JSON types, see `SpaceInfo.findings`.
    """

    maps: Mapping[str, np.ndarray]
    unaligned: list[str]
    findings: dict[str, Any] = field(default_factory=dict)
