"""The directions of profiles: each user's own direction. For users with few events, the prior is mixed in."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from unisono.transforms.base.columns import row_lengths
from unisono.transforms.store.item_matrix import ItemMatrix
from unisono.transforms.users.state import UserState
from unisono.transforms.users.sums import add_rows

# Item vectors are float32, so Σ w·v has an error of up to 6e-8 · Σ |w|. A sum that is not longer than this share of
# Σ |w| has no reliable direction.
_MIN_RELATIVE_NORM = 1e-6


def popular_direction(counts: pa.Table, items: ItemMatrix) -> np.ndarray | None:
    """Computes the prior, the direction of what everybody likes: the mean item vector, weighted by interactions.

    Args:
        counts: item_id, n: the number of interactions of each item.
        items: the item matrix.

    Returns:
        float32 [dim], unit length. None means that no known item has an interaction, or that the vectors cancel.

    Raises:
        JobError: numba is not installed.
    """
    rows = items.lookup(counts["item_id"])
    known = rows >= 0
    n = np.zeros(len(items))
    n[rows[known]] = counts["n"].to_numpy()[known]
    picked = np.flatnonzero(n)
    total = add_rows(items.vectors, picked, n[picked], np.array([0, len(picked)]))[0]
    norm = float(np.linalg.norm(total))
    return (total / norm).astype(np.float32) if norm > _MIN_RELATIVE_NORM * n.sum() else None


def directions_of(
    sums: UserState, prior: np.ndarray | None, min_events: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scales each user's sum of item vectors to unit length, and mixes the prior into those of cold users.

    A user is cold if there are fewer than `min_events` events, or if the events cancel. The profile of a cold user is
    the direction of n · (Σ w·v / Σ |w|) + min_events · prior, where n is the number of the user's events. Without
    events only the prior is left, and its share becomes smaller with every event.

    Args:
        sums: the state of the users.
        prior: float32 [dim], unit length. None means that a cold user's vector is not mixed and must not be used.
        min_events: at least 1.

    Returns:
        The unit vectors, float32 [users, dim]; whether each user is cold, bool [users]; and whether each user's
        events cancel, so that their sum has no reliable direction, bool [users].
    """
    norm = row_lengths(sums.vectors)
    personal = norm > _MIN_RELATIVE_NORM * sums.magnitudes
    cancelled = ~personal & (sums.magnitudes > 0)
    cold = ~personal | (sums.events < min_events)
    # Dividing straight into float32 saves a float64 matrix. Cold users are few, and their rows are written afterwards.
    vectors = np.empty(sums.vectors.shape, np.float32)
    np.divide(sums.vectors, np.where(personal, norm, 1.0)[:, None], out=vectors, casting="same_kind")
    if prior is not None:
        mean = np.divide(norm, sums.magnitudes, out=np.zeros(len(norm)), where=personal)
        own = np.where(personal[cold, None], sums.vectors[cold] / np.where(personal, norm, 1.0)[cold, None], 0.0)
        mixed = own * (sums.events * mean)[cold, None] + min_events * prior.astype(np.float64)
        length = row_lengths(mixed)[:, None]
        vectors[cold] = np.divide(mixed, length, out=np.tile(prior, (len(mixed), 1)) * 1.0, where=length > 1e-6)
    return vectors, cold, cancelled
