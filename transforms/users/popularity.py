"""The popularity of items: the number of events and of users of each item."""

from __future__ import annotations

from collections.abc import Iterable

import apache_beam as beam
import numpy as np
import pyarrow as pa

from unisono.transforms.base.tables import concat_tables
from unisono.transforms.users.state import decay


class CountItems(beam.PTransform):
    """Counts the events of each item: from (shard, table with item_id) to one table (item_id, n), sorted by item."""

    def expand(self, seen: beam.PCollection) -> beam.PCollection:
        return (
            seen
            | "PerShard" >> beam.MapTuple(lambda _, t: count_items(t)).with_output_types(pa.Table)
            | "Sum" >> beam.CombineGlobally(_sum_counts).without_defaults()
        )


def count_items(pairs: pa.Table) -> pa.Table:
    """Counts the rows of each item in one table: item_id, n int64."""
    counted = pairs.group_by("item_id").aggregate([([], "count_all")])
    return pa.table({"item_id": counted["item_id"], "n": counted["count_all"]})


def _sum_counts(tables: Iterable[pa.Table]) -> pa.Table:
    merged = concat_tables(list(tables)).group_by("item_id").aggregate([("n", "sum")])
    return pa.table({"item_id": merged["item_id"], "n": merged["n_sum"]}).sort_by("item_id")


class CountUsers(beam.PTransform):
    """Counts the users of each item; a user counts less, the older the user's newest event with the item is.

    Takes (shard, events) as `ShardByUser` returns them. Returns one table (item_id, n float64, users int64), sorted by
    item. Here n = Σ 2^(−age / half-life) over the item's users, where the age is the time from the user's newest event
    with the item to the newest event of the log.

    Args:
        half_life_days: None means that interactions do not age, so that n equals users.
    """

    def __init__(self, half_life_days: float | None = None) -> None:
        super().__init__()
        self._half_life_days = half_life_days

    def expand(self, events: beam.PCollection) -> beam.PCollection:
        half_life = self._half_life_days
        return (
            events
            | "PerShard" >> beam.MapTuple(lambda _, t: count_users(t, half_life)).with_output_types(pa.Table)
            | "Sum" >> beam.CombineGlobally(_SumUsersFn(half_life)).without_defaults()
        )


def count_users(events: pa.Table, half_life_days: float | None = None) -> pa.Table:
    """Counts the users of each item in one shard, with ages up to the newest event of the shard.

    Args:
        events: user_id, item_id, time.
        half_life_days: see `CountUsers`.

    Returns:
        item_id, n float64, users int64, and newest int64: the time of the shard's newest event in microseconds since
        1970, the same in each row.
    """
    pairs = events.group_by(["user_id", "item_id"]).aggregate([("time", "max")])
    time = pairs["time_max"].cast(pa.int64()).to_numpy()
    newest = int(time.max(initial=np.iinfo(np.int64).min))
    # Sorted by time, so that float sums do not depend on the order of the rows.
    aged = pa.table({"item_id": pairs["item_id"], "n": decay(newest - time, half_life_days), "time": time})
    aged = aged.sort_by([("item_id", "ascending"), ("time", "ascending")])
    counted = aged.group_by("item_id", use_threads=False).aggregate([("n", "sum"), ([], "count_all")])
    return pa.table({
        "item_id": counted["item_id"],
        "n": counted["n_sum"],
        "users": counted["count_all"],
        "newest": pa.array(np.full(counted.num_rows, newest)),
    })


def add_users(tables: Iterable[pa.Table], half_life_days: float | None = None) -> pa.Table:
    """Adds up the tables of `count_users`, with ages up to the newest event of all shards.

    Args:
        tables: one for each shard, in any order.
        half_life_days: the value that the tables were counted with.

    Returns:
        item_id, n float64, users int64, sorted by item.
    """
    every = concat_tables(list(tables))
    newest = every["newest"].to_numpy()
    left = decay(newest.max(initial=np.iinfo(np.int64).min) - newest, half_life_days)
    aged = every.set_column(every.column_names.index("n"), "n", pa.array(every["n"].to_numpy() * left))
    aged = aged.sort_by([("item_id", "ascending"), ("newest", "ascending"), ("n", "ascending")])
    counted = aged.group_by("item_id", use_threads=False).aggregate([("n", "sum"), ("users", "sum")])
    return pa.table({"item_id": counted["item_id"], "n": counted["n_sum"], "users": counted["users_sum"]})


class _SumUsersFn(beam.CombineFn):
    """Keeps the tables of all shards until the end: partial sums would depend on the order in which shards arrive."""

    def __init__(self, half_life_days: float | None) -> None:
        self._half_life_days = half_life_days

    def create_accumulator(self) -> list[pa.Table]:
        return []

    def add_input(self, accumulator: list[pa.Table], table: pa.Table) -> list[pa.Table]:
        return [*accumulator, table]

    def merge_accumulators(self, accumulators: Iterable[list[pa.Table]]) -> list[pa.Table]:
        return [table for part in accumulators for table in part]

    def extract_output(self, accumulator: list[pa.Table]) -> pa.Table:
        return add_users(accumulator, self._half_life_days)
