"""What a trained space is made of. Each formula is written once, for NumPy (applying) and torch (training) alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any

import numpy as np

Array = Any  # np.ndarray or torch.Tensor, as `xp` is numpy or torch: both know the few functions used here

_ZERO = 1e-12  # relative length under which a projection is rounding
_MASKED = -1e30  # a score whose exponential is zero


# --- formulas ----------------------------------------------------------------------------------------------


def unit(xp: ModuleType, x: Array) -> Array:
    """Scales rows to unit length; a zero row stays zero."""
    return x / xp.sqrt((x * x).sum(axis=-1, keepdims=True) + 1e-24)


def silu(xp: ModuleType, x: Array) -> Array:
    """x · σ(x). Written with tanh, which overflows nowhere."""
    return 0.5 * x * (1.0 + xp.tanh(0.5 * x))


def residual(xp: ModuleType, y: Array, g: Array, w1: Array, w2: Array) -> Array:
    """g + silu(y · w1) · w2: a closed-form projection g [n, dim] and what training adds, y [n, k].

    Without a bias, so that an embedding that equals the mean stays without a part in the space.
    """
    return g + silu(xp, y @ w1) @ w2


def masked_softmax(xp: ModuleType, scores: Array, mask: Array) -> Array:
    """Softmax over axis 0 of what the mask lets through; zeros where it lets nothing through."""
    masked = xp.where(mask, scores, xp.full_like(scores, _MASKED))
    powers = xp.exp(masked - xp.amax(masked, axis=0, keepdims=True)) * mask
    total = powers.sum(axis=0, keepdims=True)
    return powers / xp.where(total > 0, total, xp.ones_like(total))


def cross_attend(xp: ModuleType, p: Mapping[str, Array], parts: Array, present: Array, heads: int) -> Array:
    """Each modality's token asks the other present ones; its answer is added to it.

    token_a = z_a + kind_a; attention_ab = softmax over b ≠ a of (token_a Q)·(token_b K) / √(dim / heads), by head;
    out_a = z_a + (Σ_b attention_ab · token_b V) O. With no other modality out_a = z_a.

    Source: Vaswani et al., "Attention is all you need", NeurIPS 2017, eq. 1, §3.2.2; between modalities: Tsai et al.,
    "Multimodal transformer for unaligned multimodal language sequences", ACL 2019, eq. 1.

    Args:
        p: query, key, value, out [dim, dim]; kind [K, dim].
        parts: [K, n, dim]; rows that are not present may hold anything.
        present: bool [K, n].
        heads: divides dim.
    """
    k, n, dim = parts.shape
    parts = xp.where(present[:, :, None], parts, xp.zeros_like(parts))
    tokens = parts + p["kind"][:, None, :]
    # Unit rows have entries of about 1/√dim: scaled so that untrained scores vary by about 1.
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
    """σ(tanh([z_1 … z_K, present] · inner) · outer + bias): how much each modality counts, [K, n], 0 if absent.

    Source: Arevalo et al., "Gated multimodal units for information fusion", ICLR workshop 2017, eq. 1–5 and its form
    for more than two modalities; the gate is one number a modality here, so that a vector splits into its parts.
    """
    seen = xp.where(present[:, :, None], parts, xp.zeros_like(parts))
    side_by_side = xp.concatenate([*(seen[a] for a in range(len(parts))), xp.ones_like(parts[..., 0]).T * present.T], 1)
    scores = (xp.tanh(side_by_side @ p["inner"]) @ p["outer"] + p["bias"]).T
    return 0.5 * (1.0 + xp.tanh(0.5 * scores)) * present


def pool(xp: ModuleType, p: Mapping[str, Array], parts: Array, present: Array) -> Array:
    """Attention pooling: how much each modality is attended to by the item's mean, [K, n], 0 if absent.

    weight_m = softmax over the present m of (mean z · query + start)·(z_m · key + kind_m), times their number, so that
    the weights of a present modality are 1 on average.

    Source: Vaswani et al. 2017, eq. 1, with one query; Lee et al., "Set transformer", ICML 2019, eq. 11 (pooling by
    attention).
    """
    seen = xp.where(present[:, :, None], parts, xp.zeros_like(parts))
    asked = unit(xp, seen.sum(axis=0)) @ p["query"] + p["start"]
    keys = seen @ p["key"] + p["kind"][:, None, :]
    scores = (keys * asked).sum(axis=-1)
    return masked_softmax(xp, scores, present) * present.sum(axis=0)


# --- parts of a space --------------------------------------------------------------------------------------


class _Trained:
    """Keeps trained numbers as float32, and computes with them in float64."""

    weights: Mapping[str, np.ndarray]

    @cached_property
    def _wide(self) -> dict[str, np.ndarray]:
        return {k: v.astype(np.float64) for k, v in self.weights.items()}


@dataclass(frozen=True, eq=False)
class TrainedHead:
    """(x − mean) · map, and a small network's correction to it.

    Attributes:
        mean: float64 [d].
        inner: float64 [d, k]: what the network sees, shrunk-whitened principal coordinates.
        map: float64 [d, dim].
        w1, w2: float32 [k, hidden], [hidden, dim]; see `residual`.
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
        """What rounding alone leaves of an embedding that equals the mean."""
        inner, outer, w1, w2 = (float(np.linalg.norm(w)) for w in (self.inner, self.map, self.w1, self.w2))
        return _ZERO * float(np.linalg.norm(self.mean)) * (outer + inner * w1 * w2)

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
    """A mixer: see `cross_attend`."""

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


@dataclass(frozen=True, eq=False)
class GatedWeights(_Trained):
    """A weigher: see `gate`."""

    weights: Mapping[str, np.ndarray]
    kind = "gated"
    formula = staticmethod(gate)

    def weigh(self, parts: np.ndarray, present: np.ndarray) -> np.ndarray:
        return np.asarray(self.formula(np, self._wide, parts, present))

    def tensors(self) -> Mapping[str, np.ndarray]:
        return self.weights

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, np.ndarray]) -> GatedWeights:
        return cls(dict(tensors))


@dataclass(frozen=True, eq=False)
class AttentionWeights(GatedWeights):
    """A weigher: see `pool`."""

    kind = "attention_pool"
    formula = staticmethod(pool)
