"""The projection that describes an embedding by its similarities to anchor items."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unisono.transforms.base.columns import row_lengths, unit_rows
from unisono.transforms.space.parts.linear import Tensors


@dataclass(frozen=True, eq=False)
class AnchorMap:
    """Maps an embedding to its largest cosines to the anchors of its modality, centred and reduced to axes.

    Attributes:
        mean: float64 [d], the mean embedding.
        whitening: float64 [d, rank]. Cosines are computed between rows of (x − mean) · whitening.
        anchors: float64 [A, rank], unit rows.
        kept: how many cosines of a row are kept. The others are set to zero.
        shift: float64 [A], the mean of the kept cosines over the sample.
        axes: float64 [A, dim], the same for all modalities.
    """

    mean: np.ndarray
    whitening: np.ndarray
    anchors: np.ndarray
    kept: int
    shift: np.ndarray
    axes: np.ndarray
    kind = "anchors"
    floor = 1e-9

    @property
    def dim_in(self) -> int:
        return len(self.mean)

    @property
    def dim(self) -> int:
        return int(self.axes.shape[1])

    def similarities(self, x: np.ndarray) -> np.ndarray:
        """Returns the cosines to the anchors, float64 [n, A], only the `kept` largest of each row.

        The other entries are zero. Entries equal to the smallest kept one are kept too.

        Args:
            x: embeddings, float64 [n, d].
        """
        y = (x - self.mean) @ self.whitening
        s: np.ndarray = unit_rows(y, row_lengths(y)) @ self.anchors.T
        if self.kept < s.shape[1]:
            s[s < np.partition(s, -self.kept, axis=1)[:, -self.kept, None]] = 0.0
        return s

    def apply(self, x: np.ndarray) -> np.ndarray:
        return np.asarray((self.similarities(x) - self.shift) @ self.axes)

    def tensors(self) -> Tensors:
        return {
            "mean": self.mean,
            "whitening": self.whitening,
            "anchors": self.anchors,
            "kept": np.array([self.kept], np.int64),
            "shift": self.shift,
            "axes": self.axes,
        }

    @classmethod
    def from_tensors(cls, tensors: Tensors) -> AnchorMap:
        t = tensors
        return cls(
            mean=t["mean"],
            whitening=t["whitening"],
            anchors=t["anchors"],
            kept=int(t["kept"][0]),
            shift=t["shift"],
            axes=t["axes"],
        )
