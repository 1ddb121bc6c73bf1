"""Users seen modality by modality: affinities, vectors of one modality, and the refinement of profiles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from unisono.transforms.base.columns import row_lengths, unit_rows
from unisono.transforms.base.extras import require
from unisono.transforms.base.threads import in_threads
from unisono.transforms.users.history import EVENTS_A_THREAD, History


@dataclass(frozen=True, eq=False)
class ModalityView:
    """Each user's recent liked items in one modality.

    A liked item is the item of an event whose weight w is above 0. Its vector in the modality is v.

    Attributes:
        sums: Σ w·v, float64 [u, dim]; zeros for a user without a liked item that has the modality.
        affinity: ‖Σ w·v‖ / Σ w, float64 [u]: 1 if all items have the same direction in this modality, near 0 if
            their directions differ, NaN for a user without a liked item that has the modality.
        attended: Σ a·v with a ∝ w · exp(z·v / temperature) and Σ a = 1, where z is the user's profile; float64
            [u, dim], zeros for a user without a liked item that has the modality.

    Source: Mardia and Jupp, "Directional statistics", 2000 (the affinity is the mean resultant length).
    """

    sums: np.ndarray
    affinity: np.ndarray
    attended: np.ndarray

    @property
    def vectors(self) -> np.ndarray:
        """Each user's vector of the modality, the direction of `sums`: float32 [u, dim], zeros where there is none."""
        return unit_rows(self.sums, row_lengths(self.sums)).astype(np.float32)


def view_modality(
    history: History, weight: np.ndarray, *, matrix: np.ndarray, profiles: np.ndarray, temperature: float | None
) -> ModalityView:
    """Computes how each user's recent liked items look in one modality.

    Args:
        history: the recent events.
        weight: float64 [e], each event's weight after decay. Events with a weight of 0 or less take no part.
        matrix: float32 [items, dim], unit rows; zeros for an item without the modality.
        profiles: float32 [u, dim], unit rows.
        temperature: above 0. The smaller it is, the more the items nearest to the profile count in `attended`. None
            means that `attended` is not needed and stays zero.

    Raises:
        JobError: numba is not installed.

    Guarantees:
        Sums are float64 and follow the order of the history, so the result does not depend on the order of the
        log's rows.
    """
    require("numba", "ranking", "profiles")
    from unisono.transforms.users import event_kernels as kernels

    users, dim = profiles.shape
    sums, weights = np.zeros((users, dim)), np.zeros(users)
    attended = np.zeros((users, dim)) if temperature is not None else np.broadcast_to(0.0, (users, dim))
    rows, first = history.rows, history.first

    def look(a: int, b: int) -> None:
        kernels.add_liked(matrix, rows, weight, first[a : b + 1], sums[a:b], weights[a:b])
        if temperature is not None:
            kernels.attend(matrix, rows, weight, first[a : b + 1], profiles[a:b], temperature, attended[a:b])

    in_threads(first, EVENTS_A_THREAD, look)
    some = weights > 0
    affinity = np.divide(row_lengths(sums), weights, out=np.full(users, np.nan), where=some)
    return ModalityView(sums, np.minimum(affinity, 1.0), attended)


def refine_profiles(profiles: np.ndarray, views: Mapping[str, ModalityView], delta: float) -> np.ndarray:
    """Moves profiles towards the items that they attend to: z' is the direction of δ·z + (1 − δ)·c.

    The vector c is the mean of `attended` over the modalities that the user's liked items have.

    Args:
        profiles: z, float32 [u, dim], unit rows.
        views: the view of each modality, for the same users.
        delta: δ, from 0 to 1; 1 leaves the profiles as they are.

    Returns:
        float32 [u, dim], unit rows. The profile of a user without a liked item that has a modality stays as it is.
    """
    some = np.array([np.isfinite(v.affinity) for v in views.values()]).reshape(len(views), len(profiles))
    context = np.sum([v.attended for v in views.values()], axis=0) if views else np.zeros(profiles.shape)
    context = context / np.maximum(some.sum(0), 1)[:, None]
    mixed = delta * profiles.astype(np.float64) + (1 - delta) * context
    length = row_lengths(mixed)
    usable = some.any(0) & (length > 1e-6)
    out = np.divide(mixed, length[:, None], out=profiles.astype(np.float64), where=usable[:, None])
    return out.astype(np.float32)
