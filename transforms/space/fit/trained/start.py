"""The closed form that the training of heads starts from: regularised generalised CCA."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from unisono.transforms.space.fit.canonical import solve_gcca
from unisono.transforms.space.fit.moments import Moments
from unisono.transforms.space.fit.spec import SpaceSpec
from unisono.transforms.space.fit.trained.training import Params
from unisono.transforms.space.fit.whitening import whitener
from unisono.transforms.space.info import SpaceInfo
from unisono.transforms.space.parts.linear import LinearMap, Mixer
from unisono.transforms.space.parts.trained import TrainedHead
from unisono.transforms.space.space import Batch, Space

_INNER = 192  # the largest number of whitened coordinates that a head sees
_BLOCK_ROWS = 4096


@dataclass
class Rows:
    """Items as heads see them.

    Attributes:
        values: for each modality a pair (y, g): y is float32 [n, k], whitened coordinates; g is float32 [n, dim], the
            closed-form projection scaled to a root mean square length of 1. Rows are zero where the modality is
            missing.
        present: bool [K, n], modalities in ascending order.
    """

    values: dict[str, tuple[np.ndarray, np.ndarray]]
    present: np.ndarray


class Start:
    """The closed-form maps of all modalities.

    Args:
        moments: the moments of the embeddings.
        used: the modalities to align.
        spec: what `solve_gcca` uses.

    Attributes:
        dim: the number of axes.
    """

    def __init__(self, moments: Moments, used: list[str], spec: SpaceSpec) -> None:
        used = [m for m in sorted(used) if m in moments.dims]
        self._found = solve_gcca(moments, used, spec)
        maps = self._found.maps
        self._mean = {m: moments.mean(m) for m in used}
        self._inner, self._map = {}, {}
        for m in used:
            covariance = moments.covariance(m, m)
            self._inner[m] = whitener(moments, m, spec.regularization).basis[:, :_INNER]
            power = float(np.sum(maps[m] * (covariance @ maps[m])))
            self._map[m] = maps[m] / power**0.5 if power > 0 else maps[m]
        self.dim = next(iter(maps.values())).shape[1]

    def rows(self, embeddings: Batch) -> Rows:
        """Computes in float64 what heads see, and stores it as float32."""
        values = {}
        for m in self._mean:
            x, present = embeddings[m]
            y = np.zeros((len(x), self._inner[m].shape[1]), np.float32)
            g = np.zeros((len(x), self.dim), np.float32)
            for start in range(0, len(x), _BLOCK_ROWS):
                rows = slice(start, start + _BLOCK_ROWS)
                centred = np.where(present[rows, None], x[rows] - self._mean[m], 0.0)
                y[rows], g[rows] = centred @ self._inner[m], centred @ self._map[m]
            values[m] = y, g
        return Rows(values, np.stack([embeddings[m][1] for m in self._mean]))

    def untrained(self, training: Mapping[str, Any]) -> Space:
        """Makes the space of the closed-form maps.

        Args:
            training: what to report about the training.
        """
        projections = {m: LinearMap(self._mean[m], self._map[m]) for m in self._mean}
        return Space("", projections, info=self._info(training))

    def trained(self, training: Mapping[str, Any], params: Params, mixer: Mixer | None) -> Space:
        """Makes the space of trained heads.

        Args:
            training: what to report about the training.
            params: the trained parameters, as `HeadsObjective.initial` names them.
            mixer: the space's mixer. None means that the method has none.
        """
        return Space("", {m: self._head(params, m) for m in self._mean}, mixer=mixer, info=self._info(training))

    def _info(self, training: Mapping[str, Any]) -> SpaceInfo:
        findings = {**self._found.findings, "training": training}
        return SpaceInfo(unaligned=tuple(self._found.unaligned), findings=findings)

    def _head(self, params: Params, m: str) -> TrainedHead:
        """Makes one head. The trained linear map w0 is added to the closed-form map."""
        learned = self._map[m] + self._inner[m] @ params[f"{m}.w0"].astype(np.float64)
        return TrainedHead(self._mean[m], self._inner[m], learned, params[f"{m}.w1"], params[f"{m}.w2"])
