"""Interactions + items/ → users/."""

from __future__ import annotations

import apache_beam as beam

from pipelines.embed import Outputs
from pipelines.plan import Plan
from transforms.interactions import ReadInteractions, ShardByUser
from transforms.profiles import BuildProfiles
from transforms.store import WriteShards


def read_events(root: beam.Pipeline, plan: Plan, out: Outputs) -> beam.PCollection:
    """Adds the steps from the log to events by user shard; their counts and dead letters go to `out`."""
    assert plan.interactions is not None
    events = root | "ReadInteractions" >> ReadInteractions(plan.interactions)
    out.dead.append(events["dead"])
    out.counts.append(events["rows"] | "CountEvents" >> beam.Map(lambda n: ("interactions.rows", n)))
    return events["events"] | "ShardByUser" >> ShardByUser(plan.user_shards, plan.interactions)


def build(
    root: beam.Pipeline, plan: Plan, events: beam.PCollection, after: beam.PCollection | None = None
) -> Outputs:
    """Adds the steps from events to user profiles to a graph.

    Args:
        root: the graph.
        plan: checked.
        events: by user shard, as `read_events` gives.
        after: FileRecords of this run's items/; None: those of the published run.
    """
    out = Outputs()
    items = after
    if items is None:
        assert plan.base is not None
        items = root | "PublishedItems" >> beam.Create(plan.base.part("items"))
    built = events | "BuildProfiles" >> BuildProfiles(beam.pvalue.AsList(items), plan.job.profile_spec, plan.store.root)
    out.counts.append(built["counts"])
    out.files["users"] = built["users"] | "WriteUsers" >> WriteShards(
        plan.store, plan.run_id, "users", plan.user_shards, {}
    )
    return out
