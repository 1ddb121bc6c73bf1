"""How many turned to each item."""

from __future__ import annotations

from collections.abc import Iterable

import apache_beam as beam
import numpy as np
import pyarrow as pa

from unisono.transforms.base.tables import concat_tables
from unisono.transforms.users.state import decay


class CountItems(beam.PTransform):
    """Counts the rows of each item: takes (shard, table with item_id), gives one table (item_id, n), by item."""

    def expand(self, seen: beam.PCollection) -> beam.PCollection:
        return (
            seen
            | "PerShard" >> beam.MapTuple(lambda _, t: count_items(t)).with_output_types(pa.Table)
            | "Sum" >> beam.CombineGlobally(_sum_counts).without_defaults()
        )


def count_items(pairs: pa.Table) -> pa.Table:
    """Counts the rows of each item: item_id, n."""
    counted = pairs.group_by("item_id").aggregate([([], "count_all")])
    return pa.table({"item_id": counted["item_id"], "n": counted["count_all"]})


def _sum_counts(tables: Iterable[pa.Table]) -> pa.Table:
    merged = concat_tables(list(tables)).group_by("item_id").aggregate([("n", "sum")])
    return pa.table({"item_id": merged["item_id"], "n": merged["n_sum"]}).sort_by("item_id")


class CountUsers(beam.PTransform):
    """Counts the users who turned to each item, each at the user's newest event with it, aged since.

    Takes (shard, events) as `ShardByUser` gives, gives one table (item_id, n float64, users int64), by item:
    n = Σ 2^(−age / half-life) over the users, the age measured back from the newest event of the log.

    Args:
        half_life_days: None: interactions do not age.
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
    """Counts a shard's users by item, aged to the shard's own newest event.

    Args:
        events: user_id, item_id, time.

    Returns:
        item_id, n float64, users int64, newest int64 (microseconds since 1970, the same in each row).
    """
    pairs = events.group_by(["user_id", "item_id"]).aggregate([("time", "max")])
    time = pairs["time_max"].cast(pa.int64()).to_numpy()
    newest = int(time.max(initial=np.iinfo(np.int64).min))
    # By time: float sums then do not depend on the order of the rows.
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
    """Adds up what `count_users` gives: item_id, n, users, by item, aged to the newest event of all."""
    every = concat_tables(list(tables))
    newest = every["newest"].to_numpy()
    left = decay(newest.max(initial=np.iinfo(np.int64).min) - newest, half_life_days)
    aged = every.set_column(every.column_names.index("n"), "n", pa.array(every["n"].to_numpy() * left))
    aged = aged.sort_by([("item_id", "ascending"), ("newest", "ascending"), ("n", "ascending")])
    counted = aged.group_by("item_id", use_threads=False).aggregate([("n", "sum"), ("users", "sum")])
    return pa.table({"item_id": counted["item_id"], "n": counted["n_sum"], "users": counted["users_sum"]})


class _SumUsersFn(beam.CombineFn):
    """Keeps the tables of all shards, one row an item and shard, until the end: sums of sums would not be exact."""

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
