"""users/ × items/ → recommendations/."""

from __future__ import annotations

from collections.abc import Iterable

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc

from unisono.pipelines.graph.outputs import Outputs
from unisono.pipelines.job.plan import Plan
from unisono.transforms.base.tables import ShardTable
from unisono.transforms.rank.ranking import RecommendItems, distinct_pairs
from unisono.transforms.store.parquet import ReadRowGroups
from unisono.transforms.store.runs import ReadShards, WriteShards
from unisono.transforms.users.popularity import CountUsers


def build(
    root: beam.Pipeline,
    plan: Plan,
    items: beam.PCollection | None = None,
    users: beam.PCollection | None = None,
    events: beam.PCollection | None = None,
) -> Outputs:
    """Adds the steps from profiles and item vectors to recommendations to a graph.

    Args:
        root: the graph.
        plan: checked.
        items, users: FileRecords of this run; None: those of the published run.
        events: by user shard, all that are known; None where no setting of `ranking` needs them.
    """
    assert plan.job.ranking is not None
    out, at, spec = Outputs(), plan.job.ranking, plan.job.ranking_spec
    if items is None:
        assert plan.base is not None
        items = root | "ItemsToRank" >> beam.Create(plan.base.part("items"))
    if users is None:
        assert plan.base is not None
        users = root | "UsersToServe" >> beam.Create(plan.base.part("users"))
    shards = users | "ReadUsers" >> ReadShards(plan.store)
    pairs = None
    if events is not None and at.exclude_seen:
        pairs = events | "SeenPairs" >> beam.MapTuple(lambda s, t: (s, distinct_pairs(t))).with_output_types(ShardTable)
    popularity = None
    if events is not None and spec.counts_users:
        popularity = events | "Popularity" >> CountUsers(spec.popularity_half_life_days)
    ranked = (
        _with_seen(shards, pairs)
        | "Recommend" >> RecommendItems(
            beam.pvalue.AsList(items),
            spec,
            modalities=plan.late_modalities,
            hidden=_hidden(root, plan) if at.filter else None,
            popularity=popularity,
            root=plan.store.root,
        )
    )
    out.files["recommendations"] = ranked | "WriteRecommendations" >> WriteShards(
        plan.store, plan.run_id, "recommendations", plan.user_shards, {}
    )
    out.counts.append(
        out.files["recommendations"] | "CountServed" >> beam.Map(lambda r: ("recommendations.rows", r.rows))
    )
    return out


def _with_seen(users: beam.PCollection, seen: beam.PCollection | None) -> beam.PCollection:
    """Joins each shard of users with what they have seen: (shard, (users, pairs or None))."""
    if seen is None:
        return users | "NothingSeen" >> beam.MapTuple(lambda shard, t: (shard, (t, None)))

    def pair(shard: int, both: dict[str, Iterable[pa.Table]]) -> tuple[int, tuple[pa.Table, pa.Table | None]]:
        (table,) = both["users"]
        return shard, (table, next(iter(both["seen"]), None))

    return {"users": users, "seen": seen} | "WithSeen" >> beam.CoGroupByKey() | "OnePair" >> beam.MapTuple(pair)


def _hidden(root: beam.Pipeline, plan: Plan) -> beam.PCollection:
    """Reads the ids of items that the filter column does not let through."""
    catalog, column = plan.filter_catalog, plan.job.ranking.filter if plan.job.ranking else None
    assert catalog is not None
    assert column is not None
    id_column = catalog.spec.id

    def closed(ordinal: int, row: int, table: pa.Table) -> Iterable[pa.Table]:
        shut = table.filter(pc.invert(pc.fill_null(table[column], False)))
        shut = shut.filter(pc.is_valid(shut[id_column]))
        if shut.num_rows:
            yield pa.table({"item_id": shut[id_column]})

    return (
        root
        | "FilterFiles" >> beam.Create(list(catalog.files))
        | "FilterRows" >> ReadRowGroups([id_column, column])
        | "Closed" >> beam.FlatMapTuple(closed).with_output_types(pa.Table)
    )
