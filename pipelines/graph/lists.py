"""users/ × items/ → recommendations/."""

from __future__ import annotations

from collections.abc import Iterable

import apache_beam as beam
import pyarrow as pa

from unisono.pipelines.graph.hidden import hidden_ids
from unisono.pipelines.graph.outputs import Outputs
from unisono.pipelines.job.lists import ListsPlan
from unisono.pipelines.job.plan import RunPlan
from unisono.transforms.base.tables import ShardTable
from unisono.transforms.rank.ranking import RecommendItems, distinct_pairs
from unisono.transforms.store.runs import ReadShards, WriteShards


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
        events: all known events by user shard. None if `ranking.exclude_seen` is false.
    """
    out, spec = Outputs(), lists.spec
    shards = users | "ReadUsers" >> ReadShards(run.store)
    pairs = None
    if events is not None and spec.exclude_seen:
        pairs = events | "SeenPairs" >> beam.MapTuple(lambda s, t: (s, distinct_pairs(t))).with_output_types(ShardTable)
    recommend = RecommendItems(
        beam.pvalue.AsList(items),
        spec,
        hidden=hidden_ids(root, run.filter, "ListFilter") if run.filter else None,
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
