"""The interfaces of a space's parts, and the linear parts. Parts are applied in NumPy and written as named tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, Self

import numpy as np

ZERO = 1e-12  # relative length below which a projected embedding is a rounding error

Tensors = Mapping[str, np.ndarray]


class Part(Protocol):
    """A part of a space. It is applied with NumPy alone and written as named tensors."""

    kind: str  # the name of the class in space.json, see `registry.part_class`

    def tensors(self) -> Tensors:
        """Returns the part's tensors by name, float64 unless the class says otherwise."""
        ...

    @classmethod
    def from_tensors(cls, tensors: Tensors) -> Self:
        """Makes the part from what `tensors` returned."""
        ...


class Projection(Part, Protocol):
    """Maps the embeddings of one modality, each row independently."""

    @property
    def dim_in(self) -> int:
        """The length of an embedding."""
        ...

    @property
    def dim(self) -> int:
        """The number of axes. All projections of a space have the same."""
        ...

    @property
    def floor(self) -> float:
        """The length up to which a result is a rounding error. Such an embedding has no direction in the space."""
        ...

    def apply(self, x: np.ndarray) -> np.ndarray:
        """Maps float64 [BLOCK_ROWS, dim_in] to float64 [BLOCK_ROWS, dim]. The space scales the rows to unit length."""
        ...


class Mixer(Part, Protocol):
    """Lets the modalities of an item change one another before they are fused."""

    def mix(self, parts: np.ndarray, present: np.ndarray) -> np.ndarray:
        """Maps the modalities of each item.

        Args:
            parts: float64 [K, BLOCK_ROWS, dim], unit or zero rows. K counts the space's modalities in ascending order.
            present: bool [K, BLOCK_ROWS].

        Returns:
            float64 [K, BLOCK_ROWS, dim]. The space scales the rows to unit length.
        """
        ...


class Weigher(Part, Protocol):
    """Weighs the modalities of an item."""

    def weigh(self, parts: np.ndarray, present: np.ndarray) -> np.ndarray:
        """Returns the weight of each modality of each item, float64 [K, BLOCK_ROWS], ≥ 0.

        Weights of modalities that are not present are ignored.

        Args:
            parts: as for `Mixer.mix`.
            present: as for `Mixer.mix`.
        """
        ...


class Imputer(Part, Protocol):
    """Predicts the missing modalities of an item from its present ones."""

    def impute(self, parts: np.ndarray, present: np.ndarray) -> np.ndarray:
        """Returns `parts` with a prediction in each row that is not present, float64 [K, BLOCK_ROWS, dim].

        The length of a predicted row says how certain the prediction is.

        Args:
            parts: as for `Mixer.mix`.
            present: as for `Mixer.mix`.
        """
        ...


@dataclass(frozen=True, eq=False)
class LinearMap:
    """The projection (x − mean) · map.

    Attributes:
        mean: float64 [d].
        map: float64 [d, dim]. Its columns are the axes.
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
        """The length that rounding errors alone can give to an embedding that equals the mean."""
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
    """A weigher with the same weights for every item.

    Attributes:
        weights: float64 [K], ≥ 0, for the space's modalities in ascending order.
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
    """The last map of a modality: (z − shift) · map, where z is the modality's unit vector.

    Attributes:
        shift: float64 [dim].
        map: float64 [dim, out]. An orthogonal map turns the axes; a map with fewer columns drops axes.
    """

    shift: np.ndarray
    map: np.ndarray
