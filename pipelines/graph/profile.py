"""Interactions + items/ → users/."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

import apache_beam as beam
import pyarrow as pa

from unisono.pipelines.graph.outputs import Outputs
from unisono.pipelines.job.plan import FOLDED, Plan
from unisono.transforms.base.tables import ShardTable
from unisono.transforms.privacy.forget import ForgetUsers
from unisono.transforms.privacy.noise import withhold
from unisono.transforms.read.interactions import GroupUsersOfDead, ReadInteractions, ShardByUser
from unisono.transforms.store.runs import FileRecord, ReadShards, WriteShards, write_file
from unisono.transforms.users.popularity import CountItems
from unisono.transforms.users.profiles import BuildProfiles
from unisono.transforms.users.state import remembered_events


@dataclass(frozen=True)
class Log:
    """Events by user shard.

    Attributes:
        events: of this run's log.
        known: these, and of an incremental run the newest earlier ones that the published state keeps.
        counted: what the popularity of items is counted from: `known`, or the same rows before the shuffle, so
            that shards need not wait between their grouping and their profiles.
        state: (shard, table) of the published state; None: there is none.
        users_of_dead: (shard, table) of those who have events that became dead letters.
    """

    events: beam.PCollection
    known: beam.PCollection
    counted: beam.PCollection
    state: beam.PCollection | None
    users_of_dead: beam.PCollection


def read_log(root: beam.Pipeline, plan: Plan, out: Outputs) -> Log:
    """Adds the steps from the log to events by user shard; their counts and dead letters go to `out`."""
    assert plan.interactions is not None
    read = root | "ReadInteractions" >> ReadInteractions(plan.interactions)
    dead, people = read["dead"], plan.people
    out.dead.append(dead | "Withhold" >> beam.Map(withhold).with_output_types(pa.Table) if people.noise else dead)
    if people.forget:
        out.forgotten.append(read["found"])
    users_of_dead = read["users_of_dead"] | "UsersOfDead" >> GroupUsersOfDead(plan.user_shards)
    out.counts.append(read["rows"] | "CountEvents" >> beam.Map(lambda n: ("interactions.rows", n)))
    events = read["events"] | "ShardByUser" >> ShardByUser(plan.user_shards, plan.interactions)
    if not plan.state:
        unshuffled = read["events"] | "Unshuffled" >> beam.Map(lambda t: (0, t)).with_output_types(ShardTable)
        return Log(events, events, unshuffled, None, users_of_dead)
    state = root | "PublishedState" >> beam.Create(plan.state) | "ReadState" >> ReadShards(plan.store)
    state = forget_users(state, plan, out, "ForgetInState")
    known = (
        {"events": events, "state": state}
        | "Remember" >> beam.CoGroupByKey()
        | "Remembered" >> beam.MapTuple(_remember).with_output_types(ShardTable)
    )
    return Log(events, known, known, state, users_of_dead)


def forget_users(shards: beam.PCollection, plan: Plan, out: Outputs, name: str) -> beam.PCollection:
    """Takes those who are forgotten out of `(shard, table)`, where anybody is; who was found goes to `out`."""
    if plan.people.forget is None:
        return shards
    left = shards | name >> ForgetUsers(plan.people.forget)
    out.forgotten.append(left["found"])
    return left["shards"]


def _remember(shard: int, both: dict[str, Iterable[pa.Table]]) -> ShardTable:
    (events,) = both["events"]
    earlier = [remembered_events(s).cast(events.schema) for s in both["state"]]
    return shard, pa.concat_tables([events, *earlier]).combine_chunks()


def build(root: beam.Pipeline, plan: Plan, log: Log, after: beam.PCollection | None = None) -> Outputs:
    """Adds the steps from events to user profiles to a graph.

    Args:
        root: the graph.
        plan: checked.
        log: as `read_log` gives.
        after: FileRecords of this run's items/; None: those of the published run.
    """
    out = Outputs()
    items = after
    if items is None:
        assert plan.base is not None
        items = root | "PublishedItems" >> beam.Create(plan.base.part("items"))
    noise, keep = plan.people.noise, bool(plan.job.profiles.incremental)
    popularity = None if noise else log.counted | "EventsPerItem" >> CountItems()
    built = log.events | "BuildProfiles" >> BuildProfiles(
        beam.pvalue.AsList(items),
        plan.job.profile_spec,
        plan.store.root,
        popularity=popularity,
        state=log.state,
        keep_state=keep,
        users_of_dead=log.users_of_dead,
        noise=noise,
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
