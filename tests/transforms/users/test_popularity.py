"""How many turned to each item, against pandas."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from unisono.transforms.base.tables import shard_of, split_by_shard
from unisono.transforms.read.interactions import event_schema
from unisono.transforms.users.popularity import add_users, count_users


@pytest.mark.parametrize("half_life", [None, 3.0], ids=["ageless", "aged"])
@pytest.mark.parametrize("shards", [1, 6])
def test_users_of_each_item(half_life: float | None, shards: int) -> None:
    rng = np.random.default_rng(0)
    n = 4000
    time = pa.array(rng.integers(0, 40 * 86_400, n) * 1_000_000).cast(pa.timestamp("us", tz="UTC"))
    columns = [rng.integers(0, 150, n), rng.integers(0, 60, n), time, np.ones(n)]
    events = pa.table(columns, schema=event_schema(pa.int64(), pa.int64()))
    parts = [count_users(t, half_life) for _, t in split_by_shard(events, shard_of(events["user_id"], shards))]
    found = add_users(parts, half_life)
    assert found.equals(add_users(parts[::-1], half_life))
    data = events.to_pandas()
    newest = data.groupby(["user_id", "item_id"]).time.max().reset_index()
    age = (data.time.max() - newest.time) / pd.Timedelta(days=1)
    newest["n"] = 1.0 if half_life is None else 0.5 ** (age / half_life)
    expected = newest.groupby("item_id").n.sum()
    assert found["item_id"].to_pylist() == expected.index.tolist()
    np.testing.assert_allclose(found["n"].to_numpy(), expected.to_numpy(), rtol=1e-12)
    assert found["users"].to_pylist() == newest.groupby("item_id").size().tolist()


def test_nobody_turned_to_anything() -> None:
    empty = event_schema(pa.string(), pa.string()).empty_table()
    assert add_users([count_users(empty, 3.0)], 3.0).num_rows == 0
