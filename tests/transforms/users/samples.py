"""Small item vectors and logs that the tests of `users/` share."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from unisono.transforms.read.interactions import TIME_TYPE

DIM, ITEMS = 7, 80
DAY_US = 86_400_000_000
START_US = 1_770_000_000_000_000
IDS = [f"item-{i:03d}" for i in range(ITEMS)]


def events_of(rows: list[tuple[str, int, float, float]]) -> pa.Table:
    """Makes events from (user, index of the item, day, weight); an index outside the items is an unknown item."""
    return pa.table({
        "user_id": pa.array([r[0] for r in rows], pa.string()),
        "item_id": pa.array([IDS[r[1]] if 0 <= r[1] < ITEMS else "gone" for r in rows], pa.string()),
        "time": pa.array([START_US + round(r[2] * DAY_US) for r in rows], TIME_TYPE),
        "weight": pa.array([r[3] for r in rows], pa.float64()),
    })


def draw_rows(n: int, users: int, seed: int) -> list[tuple[str, int, float, float]]:
    """Draws events for `events_of`; some users have one event and some have hundreds."""
    rng = np.random.default_rng(seed)
    who = (users * rng.random(n) ** 3).astype(int)
    item, day, weight = rng.integers(0, ITEMS + 4, n), rng.integers(0, 200, n) / 2, rng.choice([1, 3, 5, -3], n)
    rows = zip(who, item, day, weight, strict=True)
    return [(f"u{u:03d}", int(i), float(t), float(w)) for u, i, t, w in rows]


def draw_events(n: int, users: int, seed: int) -> pa.Table:
    """Draws events; see `draw_rows`."""
    return events_of(draw_rows(n, users, seed))


def draw_modalities(seed: int) -> dict[str, np.ndarray]:
    """Draws unit vectors of two modalities; half of the items lack an image and a tenth lack a text."""
    rng = np.random.default_rng(seed)
    out = {}
    for m, part in (("image", 0.5), ("text", 0.9)):
        vectors = rng.standard_normal((ITEMS, DIM)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors[rng.random(ITEMS) > part] = 0
        out[m] = vectors
    return out
