"""A user's own items seen modality by modality: affinity, modality vectors, and the refined profile."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np

from unisono.transforms.base.threads import in_threads
from unisono.transforms.users.history import EVENTS_A_THREAD, History


@dataclass(frozen=True, eq=False)
class ModalityView:
    """What a user's recent, liked items look like in one modality.

    Attributes:
        sums: float64 [u, dim], Σ w·v; zeros where the user has no item with the modality.
        affinity: float64 [u]: ‖Σ w·v‖ / Σ w, 1 where the items are all alike in this modality and near 0 where
            they are unlike; NaN without an item. Mardia and Jupp, "Directional Statistics", 2000: the mean
            resultant length.
        attended: float64 [u, dim]: Σ a·v with a ∝ w · exp(z·v / temperature), Σ a = 1; zeros without an item.
    """

    sums: np.ndarray
    affinity: np.ndarray
    attended: np.ndarray

    @property
    def vectors(self) -> np.ndarray:
        """The direction of each sum, float32 [u, dim]; zeros where there is none."""
        length = np.sqrt(np.einsum("ud,ud->u", self.sums, self.sums))
        return (self.sums / np.where(length > 0, length, 1.0)[:, None]).astype(np.float32)


def view_modality(
    history: History, weight: np.ndarray, matrix: np.ndarray, profiles: np.ndarray, temperature: float | None
) -> ModalityView:
    """Sums and attends over each user's recent events of items that have one modality.

    Args:
        history: recent events.
        weight: float64 [e], after decay; events that do not weigh more than 0 take no part.
        matrix: float32 [items, dim]: unit rows, zeros where an item lacks the modality.
        profiles: float32 [u, dim]: z, who attends.
        temperature: above 0; the smaller, the more the nearest items count. None: nobody asks what is attended to.

    Guarantees: sums are float64, in the order of the history: no order of rows shows.
    """
    users, dim = profiles.shape
    sums, weights = np.zeros((users, dim)), np.zeros(users)
    attended = np.zeros((users, dim)) if temperature is not None else np.broadcast_to(0.0, (users, dim))
    add, attend, first = *_kernels(), history.first

    def look(a: int, b: int) -> None:
        add(matrix, history.rows, weight, first[a : b + 1], sums[a:b], weights[a:b])
        if temperature is not None:
            attend(matrix, history.rows, weight, first[a : b + 1], profiles[a:b], temperature, attended[a:b])

    in_threads(first, EVENTS_A_THREAD, look)
    length = np.sqrt(np.einsum("ud,ud->u", sums, sums))
    some = weights > 0
    affinity = np.divide(length, weights, out=np.full(users, np.nan), where=some)
    return ModalityView(sums, np.minimum(affinity, 1.0), attended)


def refine_profiles(profiles: np.ndarray, views: Mapping[str, ModalityView], delta: float) -> np.ndarray:
    """Draws profiles towards what they attend to: z' = δ·z + (1 − δ)·c, to unit length.

    c is the mean, over the modalities that the user's items have, of what z attends to in each.

    Returns:
        float32 [u, dim], unit rows; a profile without any modality stays as it is.
    """
    some = np.array([np.isfinite(v.affinity) for v in views.values()]).reshape(len(views), len(profiles))
    context = np.sum([v.attended for v in views.values()], axis=0) if views else np.zeros(profiles.shape)
    context = context / np.maximum(some.sum(0), 1)[:, None]
    mixed = delta * profiles.astype(np.float64) + (1 - delta) * context
    norm = np.sqrt(np.einsum("ud,ud->u", mixed, mixed))
    usable = some.any(0) & (norm > 1e-6)
    out = np.divide(mixed, norm[:, None], out=profiles.astype(np.float64), where=usable[:, None])
    return out.astype(np.float32)


@cache
def _kernels() -> tuple[Callable[..., None], Callable[..., None]]:
    """Compiles the two passes over a user's events: what they add up to, and what is attended to."""
    import numba  # imported here, for `import unisono.transforms.users.attention` must stay light

    @numba.njit(nogil=True)
    def lacking(v):  # type: ignore[no-untyped-def]
        for d in range(len(v)):  # noqa: SIM110, numba knows no generators within `all`
            if v[d] != 0:
                return False
        return True

    @numba.njit(nogil=True)
    def add(matrix, rows, weight, first, sums, weights):  # type: ignore[no-untyped-def]
        for u in range(len(first) - 1):
            total = sums[u]
            for e in range(first[u], first[u + 1]):
                w, v = weight[e], matrix[rows[e]]
                if w <= 0 or lacking(v):
                    continue
                weights[u] += w
                for d in range(len(v)):
                    total[d] += w * v[d]

    @numba.njit(nogil=True)
    def attend(matrix, rows, weight, first, profiles, temperature, attended):  # type: ignore[no-untyped-def]
        dim = matrix.shape[1]
        for u in range(len(first) - 1):
            total = 0.0
            for e in range(first[u], first[u + 1]):
                w, v = weight[e], matrix[rows[e]]
                if w <= 0 or lacking(v):
                    continue
                score = 0.0
                for d in range(dim):
                    score += np.float64(v[d]) * np.float64(profiles[u, d])
                a = w * np.exp((score - 1.0) / temperature)  # a cosine is at most 1: nothing overflows
                total += a
                for d in range(dim):
                    attended[u, d] += a * v[d]
            if total > 0:
                for d in range(dim):
                    attended[u, d] /= total

    return add, attend
