"""Small cases for tests of the benchmarks: two groups of users and items, told apart by behaviour and by content."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from unisono.transforms.base.tables import to_vector_column
from unisono.transforms.measure.splits import SplitSpec

USERS, ITEMS, SPLIT = 30, 24, SplitSpec("new-items", 0.25)
DAY = 86_400_000_000


def make_tables(seed: int = 0) -> tuple[pa.Table, pa.Table]:
    """Makes embeddings of items and events of users.

    A user prefers items of the user's own group. One of the features tells the group. Weights are from 0.2 to 1.

    Returns:
        item_id and text_embedding, in ascending order of the ids; and user_id, item_id, time and weight.
    """
    rng = np.random.default_rng(seed)
    ids = [f"i{i:02d}" for i in range(ITEMS)]
    group = np.arange(ITEMS) % 2
    features = rng.normal(0, 0.3, (ITEMS, 5))
    features[:, 0] += 2 * group
    embeddings = pa.table({"item_id": ids, "text_embedding": to_vector_column(features.astype(np.float32))})
    own = (np.arange(USERS) % 2)[:, None] == group
    user, item = np.nonzero(rng.random((USERS, ITEMS)) < np.where(own, 0.6, 0.05))
    time = 1_700_000_000_000_000 + rng.integers(0, 40, len(user)) * DAY
    events = pa.table(
        {
            "user_id": [f"u{u}" for u in user],
            "item_id": [ids[i] for i in item],
            "time": pa.array(time).cast(pa.timestamp("us", "UTC")),
            "weight": rng.integers(1, 6, len(user)) / 5,
        }
    )
    return embeddings, events
