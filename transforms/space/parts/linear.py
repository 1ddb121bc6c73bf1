"""What a space is made of: pieces that are applied in NumPy and written as named tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, Self

import numpy as np

ZERO = 1e-12  # relative length under which a projection is rounding

Tensors = Mapping[str, np.ndarray]


class Part(Protocol):
    """A piece of a space that can be written as named tensors. NumPy only: applying a space needs no torch."""

    kind: str  # its name in `space._KINDS`

    def tensors(self) -> Tensors:
        """Gives its numbers, float64 unless it says otherwise; `from_tensors` takes them back."""
        ...

    @classmethod
    def from_tensors(cls, tensors: Tensors) -> Self:
        """Makes the part again."""
        ...


class Projection(Part, Protocol):
    """Maps the embeddings of one modality, each row by itself."""

    @property
    def dim_in(self) -> int:
        """Length of an embedding."""
        ...

    @property
    def dim(self) -> int:
        """The number of axes, one for all projections of a space."""
        ...

    @property
    def floor(self) -> float:
        """A result no longer than this is rounding: the embedding has no part in the space."""
        ...

    def apply(self, x: np.ndarray) -> np.ndarray:
        """Maps float64 [BLOCK_ROWS, dim_in] to float64 [BLOCK_ROWS, dim], of any length; it is scaled later."""
        ...


class Mixer(Part, Protocol):
    """Lets the modalities of an item see one another, before they are fused."""

    def mix(self, parts: np.ndarray, present: np.ndarray) -> np.ndarray:
        """Maps float64 [K, BLOCK_ROWS, dim], unit or zero rows, and present, bool [K, BLOCK_ROWS], to the same
        shape, of any length. K goes over the space's modalities in ascending order."""
        ...


class Weigher(Part, Protocol):
    """Says how much each modality counts in an item."""

    def weigh(self, parts: np.ndarray, present: np.ndarray) -> np.ndarray:
        """Maps what `Mixer.mix` takes to weights ≥ 0, float64 [K, BLOCK_ROWS]; only present ones are used."""
        ...


class Imputer(Part, Protocol):
    """Predicts the missing modalities of an item from its present ones."""

    def impute(self, parts: np.ndarray, present: np.ndarray) -> np.ndarray:
        """Maps what `Mixer.mix` takes to the same shape; rows that are not present hold the prediction, whose
        length says how sure it is."""
        ...


@dataclass(frozen=True, eq=False)
class LinearMap:
    """(x − mean) · map.

    Attributes:
        mean: float64 [d].
        map: float64 [d, dim]; columns are axes.
    """

    mean: np.ndarray
    map: np.ndarray
    kind = "linear"

    @property
    def dim_in(self) -> int:
        return len(self.mean)

    @property
    def dim(self) -> int:
        return int(self.map.shape[1])

    @cached_property
    def floor(self) -> float:
        """What rounding alone leaves of an embedding that equals the mean."""
        return ZERO * float(np.linalg.norm(self.mean)) * float(np.linalg.norm(self.map))

    def apply(self, x: np.ndarray) -> np.ndarray:
        return np.asarray((x - self.mean) @ self.map)

    def tensors(self) -> Tensors:
        return {"mean": self.mean, "map": self.map}

    @classmethod
    def from_tensors(cls, tensors: Tensors) -> LinearMap:
        return cls(tensors["mean"], tensors["map"])


@dataclass(frozen=True, eq=False)
class FixedWeights:
    """The same weights for every item.

    Attributes:
        weights: float64 [K], ≥ 0, of the space's modalities in ascending order.
    """

    weights: np.ndarray
    kind = "fixed"

    def weigh(self, parts: np.ndarray, present: np.ndarray) -> np.ndarray:
        return np.where(present, self.weights[:, None], 0.0)

    def tensors(self) -> Tensors:
        return {"weights": self.weights}

    @classmethod
    def from_tensors(cls, tensors: Tensors) -> FixedWeights:
        return cls(tensors["weights"])


@dataclass(frozen=True, eq=False)
class Output:
    """The last step of a modality: (z − shift) · map, where z is its unit vector.

    Attributes:
        shift: float64 [dim].
        map: float64 [dim, out]; orthogonal where it only turns axes, fewer columns where it shortens.
    """

    shift: np.ndarray
    map: np.ndarray
