"""How many users like each item, against pandas."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from unisono.transforms.base.tables import shard_of, split_by_shard
from unisono.transforms.read.interactions import event_schema
from unisono.transforms.users.popularity import add_likes, count_items, count_likes


def some_events(n: int = 4000) -> pa.Table:
    rng = np.random.default_rng(0)
    time = pa.array(rng.integers(0, 40 * 86_400, n) * 1_000_000).cast(pa.timestamp("us", tz="UTC"))
    weight = rng.choice([-3.0, 0.0, 1.0, 2.0], n)
    columns = [rng.integers(0, 150, n), rng.integers(0, 60, n), time, weight]
    return pa.table(columns, schema=event_schema(pa.int64(), pa.int64()))


@pytest.mark.parametrize("half_life", [None, 3.0], ids=["ageless", "aged"])
@pytest.mark.parametrize("shards", [1, 6])
@pytest.mark.parametrize("above", [0.0, 1.5])
def test_users_who_like_each_item(half_life: float | None, shards: int, above: float) -> None:
    events = some_events()
    parts = [
        count_likes(t, above, half_life) for _, t in split_by_shard(events, shard_of(events["user_id"], shards))
    ]
    found = add_likes(parts, half_life)
    assert found.equals(add_likes(parts[::-1], half_life))
    data = events.to_pandas()
    said = data[data.weight != 0]
    pairs = said.groupby(["user_id", "item_id"]).agg(
        time=("time", "max"), best=("weight", "max"), total=("weight", "sum")
    )
    pairs["liked"] = (pairs.best > above) & (pairs.total > 0)
    age = (said.time.max() - pairs.time) / pd.Timedelta(days=1)
    pairs["late"] = pairs.liked * (1.0 if half_life is None else 0.5 ** (age / half_life))
    expected = pairs.reset_index().groupby("item_id").agg(
        late=("late", "sum"), likes=("liked", "sum"), users=("liked", "size")
    )
    assert found["item_id"].to_pylist() == expected.index.tolist()
    np.testing.assert_allclose(found["late"].to_numpy(), expected.late.to_numpy(), rtol=1e-12)
    assert found["likes"].to_pylist() == expected.likes.tolist()
    assert found["users"].to_pylist() == expected.users.tolist()
    assert set(found["oldest"].to_pylist()) == {said.time.min().value // 1000}
    assert set(found["newest"].to_pylist()) == {said.time.max().value // 1000}


def test_a_dislike_makes_no_item_popular() -> None:
    events = some_events()
    data = events.to_pandas()
    expected = data[data.weight > 0].groupby("item_id").size()
    found = count_items(events).sort_by("item_id")
    assert dict(zip(found["item_id"].to_pylist(), found["n"].to_pylist(), strict=True)) == expected.to_dict()


def test_nobody_turned_to_anything() -> None:
    empty = event_schema(pa.string(), pa.string()).empty_table()
    assert add_likes([count_likes(empty, 0.0, 3.0)], 3.0).num_rows == 0
