"""The popularity of items: how many events they have, how many users like them, and how many of late."""

from __future__ import annotations

from collections.abc import Iterable

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from unisono.transforms.base.tables import concat_tables
from unisono.transforms.users.sums import decay

_NEVER = np.iinfo(np.int64).min


class CountItems(beam.PTransform):
    """Counts the events of each item: from (shard, events) to one table, sorted by item; see `count_items`."""

    def expand(self, seen: beam.PCollection) -> beam.PCollection:
        return (
            seen
            | "PerShard" >> beam.MapTuple(lambda _, t: count_items(t)).with_output_types(pa.Table)
            | "Sum" >> beam.CombineGlobally(_sum_counts).without_defaults()
        )


def count_items(events: pa.Table) -> pa.Table:
    """Counts the events of each item in one table: item_id, n int64.

    Only events of positive weight count: a dislike does not make an item popular.
    """
    liked = events.filter(pc.greater(events["weight"], 0.0))
    counted = liked.group_by("item_id").aggregate([([], "count_all")])
    return pa.table({"item_id": counted["item_id"], "n": counted["count_all"]})


def _sum_counts(tables: Iterable[pa.Table]) -> pa.Table:
    merged = concat_tables(list(tables)).group_by("item_id").aggregate([("n", "sum")])
    return pa.table({"item_id": merged["item_id"], "n": merged["n_sum"]}).sort_by("item_id")


class CountLikes(beam.PTransform):
    """Counts the users who like each item.

    Takes (shard, events) as `ShardByUser` returns them. Returns one table, as `add_likes` does.

    Args:
        liked_above: see `pair_events`.
        half_life_days: see `count_likes`.
    """

    def __init__(self, liked_above: float = 0.0, half_life_days: float | None = None) -> None:
        super().__init__()
        self._liked_above, self._half_life_days = liked_above, half_life_days

    def expand(self, events: beam.PCollection) -> beam.PCollection:
        above, half_life = self._liked_above, self._half_life_days
        return (
            events
            | "PerShard" >> beam.MapTuple(lambda _, t: count_likes(t, above, half_life)).with_output_types(pa.Table)
            | "Sum" >> beam.CombineGlobally(_SumLikesFn(half_life)).without_defaults()
        )


def pair_events(events: pa.Table, liked_above: float = 0.0) -> pa.Table:
    """Sums up the events of each pair of a user and an item.

    Events of weight 0 say nothing about the user and are left out.

    Args:
        events: user_id, item_id, time, weight.
        liked_above: a user likes an item if one of the user's events with it has a weight above this, and the weights
            of all of them sum to more than 0.

    Returns:
        user_id, item_id, time int64: the newest event in microseconds since 1970, first int64: the oldest one, and
        liked bool.
    """
    said = events.filter(pc.not_equal(events["weight"], 0.0))
    # Weights are added as whole millionths, because a sum of floats depends on the order of the rows.
    millionths = pc.round(pc.multiply(said["weight"], 1e6)).cast(pa.int64())
    how = [("time", "max"), ("time", "min"), ("weight", "max"), ("millionths", "sum")]
    pairs = said.append_column("millionths", millionths).group_by(["user_id", "item_id"]).aggregate(how)
    liked = pc.and_(pc.greater(pairs["weight_max"], max(liked_above, 0.0)), pc.greater(pairs["millionths_sum"], 0))
    return pa.table({
        "user_id": pairs["user_id"],
        "item_id": pairs["item_id"],
        "time": pairs["time_max"].cast(pa.int64()),
        "first": pairs["time_min"].cast(pa.int64()),
        "liked": liked,
    })


def count_likes(events: pa.Table, liked_above: float = 0.0, half_life_days: float | None = None) -> pa.Table:
    """Counts the users who like each item in one shard, with ages up to the newest event of the shard.

    Args:
        events: user_id, item_id, time, weight.
        liked_above: see `pair_events`.
        half_life_days: a user counts 2^(−age / half-life) in `late`, where the age is the time from the user's newest
            event with the item to the newest event of the log. None means that interactions do not age.

    Returns:
        item_id; late float64; likes int64, the users who like the item; users int64, the users who turned to it; and
        the times of the shard's newest and oldest event, newest and oldest int64, the same in each row.
    """
    pairs = pair_events(events, liked_above)
    time = pairs["time"].to_numpy()
    newest, oldest = int(time.max(initial=_NEVER)), int(pairs["first"].to_numpy().min(initial=-1 - _NEVER))
    liked = pairs["liked"].to_numpy().astype(np.int64)
    late = decay(newest - time, half_life_days) * liked
    # Sorted by time, so that float sums do not depend on the order of the rows.
    aged = pa.table({"item_id": pairs["item_id"], "late": late, "likes": liked, "time": time})
    aged = aged.sort_by([("item_id", "ascending"), ("time", "ascending")])
    counted = aged.group_by("item_id", use_threads=False).aggregate(
        [("late", "sum"), ("likes", "sum"), ([], "count_all")]
    )
    return pa.table({
        "item_id": counted["item_id"],
        "late": counted["late_sum"],
        "likes": counted["likes_sum"],
        "users": counted["count_all"],
        "newest": pa.array(np.full(counted.num_rows, newest)),
        "oldest": pa.array(np.full(counted.num_rows, oldest)),
    })


def add_likes(tables: Iterable[pa.Table], half_life_days: float | None = None) -> pa.Table:
    """Adds up the tables of `count_likes`, with ages up to the newest event of all shards.

    Args:
        tables: one for each shard, in any order.
        half_life_days: the value that the tables were counted with.

    Returns:
        item_id, late float64, likes int64, users int64, newest int64 and oldest int64 (of the log, the same in each
        row), sorted by item.
    """
    every = concat_tables(list(tables))
    newest = every["newest"].to_numpy()
    last = newest.max(initial=_NEVER)
    left = decay(last - newest, half_life_days)
    aged = every.set_column(every.column_names.index("late"), "late", pa.array(every["late"].to_numpy() * left))
    aged = aged.sort_by([("item_id", "ascending"), ("newest", "ascending"), ("late", "ascending")])
    counted = aged.group_by("item_id", use_threads=False).aggregate(
        [("late", "sum"), ("likes", "sum"), ("users", "sum")]
    )
    n = counted.num_rows
    return pa.table({
        "item_id": counted["item_id"],
        "late": counted["late_sum"],
        "likes": counted["likes_sum"],
        "users": counted["users_sum"],
        "newest": pa.array(np.full(n, last)),
        "oldest": pa.array(np.full(n, every["oldest"].to_numpy().min(initial=-1 - _NEVER))),
    })


class _SumLikesFn(beam.CombineFn):
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
        return add_likes(accumulator, self._half_life_days)
