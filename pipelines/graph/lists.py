"""users/ × items/ → recommendations/."""

from __future__ import annotations

from collections.abc import Iterable

import apache_beam as beam
import pyarrow as pa

from unisono.pipelines.graph.outputs import Outputs
from unisono.pipelines.job.lists import ItemFilter, ListsPlan
from unisono.pipelines.job.plan import RunPlan
from unisono.transforms.base.tables import ShardTable
from unisono.transforms.rank.ranking import RecommendItems, distinct_pairs
from unisono.transforms.read.catalog import hidden_items
from unisono.transforms.store.parquet import ReadRowGroups
from unisono.transforms.store.runs import ReadShards, WriteShards
from unisono.transforms.users.popularity import CountUsers


def build(
    root: beam.Pipeline,
    run: RunPlan,
    lists: ListsPlan,
    items: beam.PCollection,
    users: beam.PCollection,
    events: beam.PCollection | None,
) -> Outputs:
    """Adds the steps from profiles and item vectors to recommendations to a graph.

    Args:
        root: the graph.
        run: what every part of the run needs.
        lists: the plan of this part.
        items: FileRecords of items/.
        users: FileRecords of users/.
        events: all known events by user shard. None if no setting of `ranking` needs them.
    """
    out, spec = Outputs(), lists.spec
    shards = users | "ReadUsers" >> ReadShards(run.store)
    pairs = None
    if events is not None and spec.exclude_seen:
        pairs = events | "SeenPairs" >> beam.MapTuple(lambda s, t: (s, distinct_pairs(t))).with_output_types(ShardTable)
    popularity = None
    if events is not None and spec.counts_users:
        popularity = events | "Popularity" >> CountUsers(spec.popularity_half_life_days)
    recommend = RecommendItems(
        beam.pvalue.AsList(items),
        spec,
        modalities=lists.modalities,
        hidden=_hidden(root, lists.filter) if lists.filter else None,
        popularity=popularity,
        root=run.store.root,
    )
    ranked = _with_seen(shards, pairs) | "Recommend" >> recommend
    write = WriteShards(run.store, run.run_id, "recommendations", lists.shards, {})
    files = out.files["recommendations"] = ranked | "WriteRecommendations" >> write
    out.counts.append(files | "CountServed" >> beam.Map(lambda r: ("recommendations.rows", r.rows)))
    return out


def _with_seen(users: beam.PCollection, seen: beam.PCollection | None) -> beam.PCollection:
    """Joins each shard of users with the pairs of a user and a seen item: (shard, (users, pairs or None))."""
    if seen is None:
        return users | "NothingSeen" >> beam.MapTuple(lambda shard, t: (shard, (t, None)))

    def pair(shard: int, both: dict[str, Iterable[pa.Table]]) -> tuple[int, tuple[pa.Table, pa.Table | None]]:
        (table,) = both["users"]
        return shard, (table, next(iter(both["seen"]), None))

    return {"users": users, "seen": seen} | "WithSeen" >> beam.CoGroupByKey() | "OnePair" >> beam.MapTuple(pair)


def _hidden(root: beam.Pipeline, at: ItemFilter) -> beam.PCollection:
    """Reads the ids of the items that may not be recommended."""
    id_column, column = at.catalog.spec.id, at.column

    def closed(ordinal: int, row: int, table: pa.Table) -> Iterable[pa.Table]:
        hidden = hidden_items(table, id_column, column)
        if hidden.num_rows:
            yield hidden

    return (
        root
        | "FilterFiles" >> beam.Create(list(at.catalog.files))
        | "FilterRows" >> ReadRowGroups([id_column, column])
        | "Closed" >> beam.FlatMapTuple(closed).with_output_types(pa.Table)
    )
