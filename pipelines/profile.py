"""Interactions + items/ → users/."""

from __future__ import annotations

import json

import apache_beam as beam

from pipelines.embed import Outputs, ReadShards
from pipelines.plan import FOLDED, Plan
from transforms.interactions import ReadInteractions, ShardByUser
from transforms.popularity import CountItems
from transforms.profiles import BuildProfiles
from transforms.store import FileRecord, WriteShards, write_file


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
    popularity = events | "EventsPerItem" >> CountItems()
    state = None
    if plan.state:
        state = root | "PublishedState" >> beam.Create(plan.state) | "ReadState" >> ReadShards(plan.store)
    keep = plan.job.profiles.incremental
    built = events | "BuildProfiles" >> BuildProfiles(
        beam.pvalue.AsList(items), plan.job.profile_spec, plan.store.root, None, popularity, state, keep
    )
    out.counts.append(built["counts"])
    out.dead.append(built["dead"])
    if keep:
        out.files["state"] = built["state"] | "WriteState" >> WriteShards(
            plan.store, plan.run_id, "state", plan.user_shards, {}
        )
        log = root | "FoldedLogs" >> beam.Create([json.dumps(plan.folded, indent=1)])
        out.files["folded"] = log | "WriteFolded" >> beam.Map(_write_folded, plan)
    out.files["users"] = built["users"] | "WriteUsers" >> WriteShards(
        plan.store, plan.run_id, "users", plan.user_shards, {}
    )
    return out


def _write_folded(text: str, plan: Plan) -> FileRecord:
    return write_file(plan.store, "folded", f"runs/{plan.run_id}/{FOLDED}", text.encode())
