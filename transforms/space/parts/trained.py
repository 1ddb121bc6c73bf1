"""The trained parts of a space, and their formulas.

Each formula is written once. It takes the module `xp`: NumPy when a space is applied, torch when it is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any, Self

import numpy as np

from unisono.transforms.space.parts.linear import ZERO

Array = Any  # np.ndarray if `xp` is NumPy, torch.Tensor if `xp` is torch

_MASKED = -1e30  # the exponential of this score is zero


# --- formulas ----------------------------------------------------------------------------------------------


def unit(xp: ModuleType, x: Array) -> Array:
    """Scales rows to unit length. A zero row stays zero."""
    return x / xp.sqrt((x * x).sum(axis=-1, keepdims=True) + 1e-24)


def silu(xp: ModuleType, x: Array) -> Array:
    """Computes x · σ(x) from tanh, which cannot overflow."""
    return 0.5 * x * (1.0 + xp.tanh(0.5 * x))


def residual(xp: ModuleType, y: Array, g: Array, w1: Array, w2: Array) -> Array:
    """Computes g + silu(y · w1) · w2: a closed-form projection and a trained correction.

    There is no bias, so an embedding that equals the mean keeps a zero vector, which has no direction in the space.

    Args:
        xp: NumPy or torch.
        y: [n, k], the centred embedding as the network sees it.
        g: [n, dim], the closed-form projection.
        w1: [k, hidden].
        w2: [hidden, dim].
    """
    return g + silu(xp, y @ w1) @ w2


def masked_softmax(xp: ModuleType, scores: Array, mask: Array) -> Array:
    """Computes the softmax over axis 0 of the entries where the mask is True. All other entries are zero."""
    masked = xp.where(mask, scores, xp.full_like(scores, _MASKED))
    powers = xp.exp(masked - xp.amax(masked, axis=0, keepdims=True)) * mask
    total = powers.sum(axis=0, keepdims=True)
    return powers / xp.where(total > 0, total, xp.ones_like(total))


def cross_attend(xp: ModuleType, p: Mapping[str, Array], parts: Array, present: Array, heads: int) -> Array:
    """Adds to each modality what it attends to in the other present modalities of its item.

    token_a = z_a + kind_a; attention_ab = softmax over b ≠ a of (token_a Q)·(token_b K) / √(dim / heads), for each
    head; out_a = z_a + (Σ_b attention_ab · token_b V) O. Without another modality out_a = z_a.

    Source: Vaswani et al., "Attention is all you need", NeurIPS 2017, eq. 1, §3.2.2; between modalities: Tsai et al.,
    "Multimodal transformer for unaligned multimodal language sequences", ACL 2019, eq. 1.

    Args:
        xp: NumPy or torch.
        p: query, key, value and out, each [dim, dim], and kind [K, dim].
        parts: [K, n, dim], unit rows. Rows that are not present may hold anything.
        present: bool [K, n].
        heads: the number of heads. It divides dim.

    Returns:
        [K, n, dim]. Rows that are not present are zero.
    """
    k, n, dim = parts.shape
    parts = xp.where(present[:, :, None], parts, xp.zeros_like(parts))
    tokens = parts + p["kind"][:, None, :]
    # The entries of unit rows are about 1/√dim. The factor below makes untrained scores vary by about 1.
    query, key, value = ((tokens @ p[name]).reshape(k, n, heads, dim // heads) for name in ("query", "key", "value"))
    context = []
    for a in range(k):
        others = [b for b in range(k) if b != a]
        scores = xp.stack([(query[a] * key[b]).sum(axis=-1) for b in others]) * dim**0.5 / heads
        attention = masked_softmax(xp, scores, xp.stack([present[b] for b in others])[:, :, None])
        answer = sum(attention[i][:, :, None] * value[b] for i, b in enumerate(others))
        context.append(answer.reshape(n, dim) @ p["out"])
    return xp.where(present[:, :, None], parts + xp.stack(context), parts)


def gate(xp: ModuleType, p: Mapping[str, Array], parts: Array, present: Array) -> Array:
    """Computes the gate σ(tanh([z_1 … z_K, present] · inner) · outer + bias) of each modality.

    Source: Arevalo et al., "Gated multimodal units for information fusion", ICLR workshop 2017, eq. 1–5, in the form
    for more than two modalities. The gate here is one number for each modality instead of one for each axis: an item's
    vector is then a weighted sum of its modalities' vectors.

    Args:
        xp: NumPy or torch.
        p: inner [K · (dim + 1), hidden], outer [hidden, K], bias [K].
        parts: [K, n, dim], unit rows. Rows that are not present may hold anything.
        present: bool [K, n].

    Returns:
        Weights [K, n], 0 … 1, zero where the modality is not present.
    """
    seen = xp.where(present[:, :, None], parts, xp.zeros_like(parts))
    side_by_side = xp.concatenate([*(seen[a] for a in range(len(parts))), xp.ones_like(parts[..., 0]).T * present.T], 1)
    scores = (xp.tanh(side_by_side @ p["inner"]) @ p["outer"] + p["bias"]).T
    return 0.5 * (1.0 + xp.tanh(0.5 * scores)) * present


def pool(xp: ModuleType, p: Mapping[str, Array], parts: Array, present: Array) -> Array:
    """Computes how much the mean of an item's vectors attends to each of its modalities.

    weight_m = n_present · softmax over the present m of (mean z · query + start)·(z_m · key + kind_m). Because of the
    factor n_present, the number of present modalities, an item's weights are 1 on average.

    Source: Vaswani et al. 2017, eq. 1, with one query; Lee et al., "Set transformer", ICML 2019, eq. 11 (pooling by
    attention).

    Args:
        xp: NumPy or torch.
        p: query and key, each [dim, hidden], start [hidden], kind [K, hidden].
        parts: [K, n, dim], unit rows. Rows that are not present may hold anything.
        present: bool [K, n].

    Returns:
        Weights [K, n], ≥ 0, zero where the modality is not present.
    """
    seen = xp.where(present[:, :, None], parts, xp.zeros_like(parts))
    asked = unit(xp, seen.sum(axis=0)) @ p["query"] + p["start"]
    keys = seen @ p["key"] + p["kind"][:, None, :]
    scores = (keys * asked).sum(axis=-1)
    return masked_softmax(xp, scores, present) * present.sum(axis=0)


# --- parts -------------------------------------------------------------------------------------------------


class _Trained:
    """A part that stores its trained weights as float32 and applies them in float64."""

    weights: Mapping[str, np.ndarray]

    @cached_property
    def _wide(self) -> dict[str, np.ndarray]:
        return {k: v.astype(np.float64) for k, v in self.weights.items()}


@dataclass(frozen=True, eq=False)
class TrainedHead:
    """The projection (x − mean) · map, plus the correction of a small network, see `residual`.

    Attributes:
        mean: float64 [d], the mean embedding.
        inner: float64 [d, k]. The network sees (x − mean) · inner, the shrunk-whitened principal coordinates.
        map: float64 [d, dim].
        w1: float32 [k, hidden].
        w2: float32 [hidden, dim].
    """

    mean: np.ndarray
    inner: np.ndarray
    map: np.ndarray
    w1: np.ndarray
    w2: np.ndarray
    kind = "trained_head"

    @property
    def dim_in(self) -> int:
        return len(self.mean)

    @property
    def dim(self) -> int:
        return int(self.map.shape[1])

    @cached_property
    def floor(self) -> float:
        """The length that rounding errors alone can give to an embedding that equals the mean."""
        inner, outer, w1, w2 = (float(np.linalg.norm(w)) for w in (self.inner, self.map, self.w1, self.w2))
        return ZERO * float(np.linalg.norm(self.mean)) * (outer + inner * w1 * w2)

    @cached_property
    def _wide(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        both = np.ascontiguousarray(np.concatenate([self.inner, self.map], axis=1))
        return both, self.w1.astype(np.float64), self.w2.astype(np.float64)

    def apply(self, x: np.ndarray) -> np.ndarray:
        both, w1, w2 = self._wide
        seen = (x - self.mean) @ both
        k = self.inner.shape[1]
        return np.asarray(residual(np, np.ascontiguousarray(seen[:, :k]), seen[:, k:], w1, w2))

    def tensors(self) -> dict[str, np.ndarray]:
        return {"mean": self.mean, "inner": self.inner, "map": self.map, "w1": self.w1, "w2": self.w2}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, np.ndarray]) -> TrainedHead:
        return cls(*(tensors[k] for k in ("mean", "inner", "map", "w1", "w2")))


@dataclass(frozen=True, eq=False)
class CrossAttention(_Trained):
    """The mixer of `cross_attend`.

    Attributes:
        weights: float32, the matrices of `cross_attend` by name.
        heads: the number of attention heads.
    """

    weights: Mapping[str, np.ndarray]
    heads: int
    kind = "cross_attention"

    def mix(self, parts: np.ndarray, present: np.ndarray) -> np.ndarray:
        return np.asarray(cross_attend(np, self._wide, parts, present, self.heads))

    def tensors(self) -> dict[str, np.ndarray]:
        return {**self.weights, "heads": np.array(self.heads, np.int64)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, np.ndarray]) -> CrossAttention:
        return cls({k: v for k, v in tensors.items() if k != "heads"}, int(tensors["heads"].item()))


class TrainedWeigher(_Trained):
    """A weigher that computes the weights of an item from its vectors by a formula.

    A class sets `formula`, such as `gate`, and `kind`.
    """

    kind: str
    formula: Callable[..., Array]

    def __init__(self, weights: Mapping[str, np.ndarray]) -> None:
        self.weights = weights

    def weigh(self, parts: np.ndarray, present: np.ndarray) -> np.ndarray:
        return np.asarray(self.formula(np, self._wide, parts, present))

    def tensors(self) -> Mapping[str, np.ndarray]:
        return self.weights

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, np.ndarray]) -> Self:
        return cls(dict(tensors))


class GatedWeights(TrainedWeigher):
    """The weigher of `gate`."""

    kind = "gated"
    formula = staticmethod(gate)


class AttentionWeights(TrainedWeigher):
    """The weigher of `pool`."""

    kind = "attention_pool"
    formula = staticmethod(pool)
