"""Decay of events with age, and sums of vectors over the events of each user."""

from __future__ import annotations

import numpy as np

from unisono.transforms.base.extras import require
from unisono.transforms.base.threads import in_threads
from unisono.transforms.read.usable import DAY_US
from unisono.transforms.users.history import EVENTS_A_THREAD


def decay(age_us: np.ndarray, half_life_days: float | None) -> np.ndarray:
    """Returns the factor by which age reduces an event's weight, 2^(−age / half-life).

    Args:
        age_us: microseconds, [n].
        half_life_days: None means that events do not age, and every factor is 1.

    Returns:
        float64 [n].
    """
    if half_life_days is None:
        return np.ones(len(age_us))
    return np.exp2(age_us / (-half_life_days * DAY_US))


def add_rows(matrix: np.ndarray, rows: np.ndarray, weight: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Adds up Σ weight[e] · matrix[rows[e]] over the events e of each user, one by one in their order.

    Args:
        matrix: float32 [items, dim].
        rows: int64 [e], rows of `matrix`.
        weight: float64 [e].
        first: int64 [u + 1]: user i has the events `first[i]` to `first[i + 1]`.

    Returns:
        float64 [u, dim].

    Raises:
        JobError: numba is not installed.
    """
    require("numba", "ranking", "profiles")
    from unisono.transforms.users import event_kernels

    out, matrix = np.zeros((len(first) - 1, matrix.shape[1])), np.asarray(matrix)

    def add(a: int, b: int) -> None:
        event_kernels.add_rows(matrix, rows, weight, first[a:b], first[a + 1 : b + 1], out[a:b])

    in_threads(first, EVENTS_A_THREAD, add)
    return out


def segment_sums(values: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Sums values, [e], over the events of each user, float64 [u]; `first` as for `add_rows`."""
    out = np.zeros(len(first) - 1)
    some = np.diff(first) > 0
    if some.any():
        out[some] = np.add.reduceat(values, first[:-1][some])
    return out
