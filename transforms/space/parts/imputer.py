"""The part that predicts an item's missing modalities from its present ones, in the joint space."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import scipy.linalg

from unisono.transforms.space.parts.linear import Tensors


@dataclass(frozen=True, eq=False)
class ConditionalMean:
    """The best linear prediction E[z_m | z_p] = μ_m + C_mp (C_pp + Λ_p)^{-1} (z_p − μ_p).

    z_p are the present modalities of an item and z_m is a missing one. The less certain a prediction is, the shorter it
    is: if the present modalities say nothing about the missing one, the prediction is its mean.

    Attributes:
        mean: float64 [K, dim], the mean unit vector of each modality, modalities in ascending order.
        covariance: float64 [K · dim, K · dim], positive semidefinite: the covariance of all modalities' unit vectors.
        ridge: float64 [K], λ of each modality. Λ_p holds the λ of the present ones on its diagonal.

    Source: Little, Rubin, "Statistical analysis with missing data", 3rd ed., 2019, ch. 4.2.2 (Buck's method);
    Anderson, "An introduction to multivariate statistical analysis", theorem 2.5.1 (the formula).
    """

    mean: np.ndarray
    covariance: np.ndarray
    ridge: np.ndarray
    _solved: dict[bytes, np.ndarray] = field(default_factory=dict)
    kind = "conditional_mean"

    def impute(self, parts: np.ndarray, present: np.ndarray) -> np.ndarray:
        modalities, rows, dim = parts.shape
        out = parts.copy()
        given = np.where(present[:, :, None], parts - self.mean[:, None], 0.0)
        # The product always has the same size, so BLAS computes a row in the same way in every batch.
        flat = given.transpose(1, 0, 2).reshape(rows, modalities * dim)
        patterns = np.unique(present.T, axis=0)
        for pattern in patterns:  # there are at most 2^K
            if pattern.all() or not pattern.any():
                continue
            predicted = (flat @ self._weights(pattern)).reshape(rows, modalities, dim).transpose(1, 0, 2)
            here = (pattern == present.T).all(1)
            for k in np.flatnonzero(~pattern):
                out[k, here] = predicted[k, here] + self.mean[k]
        return out

    def _weights(self, pattern: np.ndarray) -> np.ndarray:
        """Returns the map from present to missing modalities for one pattern. All other entries are zero.

        Args:
            pattern: bool [K], the present modalities, at least one and not all.

        Returns:
            float64 [K · dim, K · dim].
        """
        key = pattern.tobytes()
        if key not in self._solved:
            dim = self.mean.shape[1]
            p = np.repeat(pattern, dim)
            inside = self.covariance[np.ix_(p, p)] + np.diag(np.repeat(self.ridge[pattern], dim))
            full = np.zeros_like(self.covariance)
            full[np.ix_(p, ~p)] = scipy.linalg.solve(inside, self.covariance[np.ix_(p, ~p)], assume_a="pos")
            self._solved[key] = full
        return self._solved[key]

    def tensors(self) -> Tensors:
        return {"mean": self.mean, "covariance": self.covariance, "ridge": self.ridge}

    @classmethod
    def from_tensors(cls, tensors: Tensors) -> ConditionalMean:
        return cls(tensors["mean"], tensors["covariance"], tensors["ridge"])
