"""Interactions + items/ → users/."""

from __future__ import annotations

import apache_beam as beam

from pipelines.embed import Outputs
from pipelines.plan import Plan
from transforms.interactions import ReadInteractions, ShardByUser
from transforms.profiles import BuildProfiles
from transforms.store import WriteShards


def build(root: beam.Pipeline, plan: Plan, after: beam.PCollection | None = None) -> Outputs:
    """Adds the steps from the log to user profiles to a graph.

    Args:
        root: the graph.
        plan: checked.
        after: FileRecords of this run's items/; None: those of the published run.
    """
    assert plan.interactions is not None
    out = Outputs()
    items = after
    if items is None:
        assert plan.base is not None
        items = root | "PublishedItems" >> beam.Create(plan.base.part("items"))
    events = root | "ReadInteractions" >> ReadInteractions(plan.interactions)
    shards = events["events"] | "ShardByUser" >> ShardByUser(plan.user_shards, plan.interactions)
    built = shards | "BuildProfiles" >> BuildProfiles(beam.pvalue.AsList(items), plan.job.profile_spec, plan.store.root)
    out.dead.append(events["dead"])
    out.counts += [events["rows"] | "CountEvents" >> beam.Map(lambda n: ("interactions.rows", n)), built["counts"]]
    out.files["users"] = built["users"] | "WriteUsers" >> WriteShards(
        plan.store, plan.run_id, "users", plan.user_shards, {}
    )
    return out
