"""Interaction log + items/ → users/."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import apache_beam as beam
import pyarrow as pa

from unisono.pipelines.graph.outputs import Outputs
from unisono.pipelines.job.plan import RunPlan
from unisono.pipelines.job.users import FOLDED, LogPlan, UsersPlan
from unisono.transforms.base.tables import ShardTable
from unisono.transforms.privacy.forget import ForgetUsers
from unisono.transforms.privacy.noise import withhold
from unisono.transforms.privacy.statement import People
from unisono.transforms.rank.ranking import VectorsOfUsers
from unisono.transforms.rank.user_vectors import taste_spec
from unisono.transforms.read.interactions import ReadInteractions
from unisono.transforms.read.usable import UsableSpec, usable_events
from unisono.transforms.read.user_shards import GroupUsersOfDead, ShardByUser
from unisono.transforms.store.runs import FileRecord, ReadShards, WriteShards, write_file
from unisono.transforms.users.popularity import CountItems
from unisono.transforms.users.profiles import BuildProfiles
from unisono.transforms.users.state import remembered_events


@dataclass(frozen=True)
class Log:
    """Events by user shard, as PCollections.

    Attributes:
        events: (shard, table) of the events of this run's log.
        known: `events`, and in an incremental run the newest earlier events that the published state keeps.
        usable: `known` without robots and repeats, see `usable_events`: what items and the prior are learned from.
        counted: the events that the prior is counted from. These are the rows of `usable`; where no state is added and
            nothing can be left out, they are taken before the shuffle, so that profiles need not wait for the count.
        state: (shard, table) of the published state. None if there is none.
        users_of_dead: (shard, table) of the users who have events that became dead letters.
    """

    events: beam.PCollection
    known: beam.PCollection
    usable: beam.PCollection
    counted: beam.PCollection
    state: beam.PCollection | None
    users_of_dead: beam.PCollection


def read_log(root: beam.Pipeline, run: RunPlan, log: LogPlan, people: People, out: Outputs) -> Log:
    """Adds the steps from the log to events by user shard. Their counts and dead letters go to `out`."""
    read = root | "ReadInteractions" >> ReadInteractions(log.interactions)
    dead = read["dead"]
    out.dead.append(dead | "Withhold" >> beam.Map(withhold).with_output_types(pa.Table) if people.noise else dead)
    if people.forget:
        out.forgotten.append(read["found"])
    users_of_dead = read["users_of_dead"] | "UsersOfDead" >> GroupUsersOfDead(log.shards)
    out.counts.append(read["rows"] | "CountEvents" >> beam.Map(lambda n: ("interactions.rows", n)))
    events = read["events"] | "ShardByUser" >> ShardByUser(log.shards, log.interactions)
    spec = run.job.usable
    if not log.state and not spec.may_leave_out(log.interactions.rows):
        unshuffled = read["events"] | "Unshuffled" >> beam.Map(lambda t: (0, t)).with_output_types(ShardTable)
        return Log(events, events, events, unshuffled, None, users_of_dead)
    if not log.state:
        usable = _usable(events, spec)
        return Log(events, events, usable, usable, None, users_of_dead)
    state = root | "PublishedState" >> beam.Create(log.state) | "ReadState" >> ReadShards(run.store)
    state = forget_users(state, people, out, "ForgetInState")
    known = (
        {"events": events, "state": state}
        | "Remember" >> beam.CoGroupByKey()
        | "Remembered" >> beam.MapTuple(_remember).with_output_types(ShardTable)
    )
    usable = _usable(known, spec)
    return Log(events, known, usable, usable, state, users_of_dead)


def _usable(events: beam.PCollection, spec: UsableSpec) -> beam.PCollection:
    """Leaves out robots and repeats of `(shard, events)`."""
    leave_out = beam.MapTuple(lambda shard, t: (shard, usable_events(t, spec).events))
    return events | "LeaveOutRobotsAndRepeats" >> leave_out.with_output_types(ShardTable)


def forget_users(shards: beam.PCollection, people: People, out: Outputs, name: str) -> beam.PCollection:
    """Removes the rows of forgotten people from `(shard, table)`. The people found go to `out`."""
    if people.forget is None:
        return shards
    left = shards | name >> ForgetUsers(people.forget)
    out.forgotten.append(left["found"])
    return left["shards"]


def _remember(shard: int, both: dict[str, Iterable[pa.Table]]) -> ShardTable:
    (events,) = both["events"]
    earlier = [remembered_events(s).cast(events.schema) for s in both["state"]]
    return shard, pa.concat_tables([events, *earlier]).combine_chunks()


def build(
    root: beam.Pipeline, run: RunPlan, users: UsersPlan, log: Log, shards: int, people: People, items: beam.PCollection
) -> Outputs:
    """Adds the steps from events to user profiles to a graph.

    Args:
        root: the graph.
        run: what every part of the run needs.
        users: the plan of this part.
        log: as `read_log` returns it.
        shards: the number of user shards.
        people: what is done for the people in the log.
        items: FileRecords of items/.
    """
    out, job = Outputs(), run.job
    keep = bool(job.profiles.incremental)
    popularity = None if people.noise else log.counted | "EventsPerItem" >> CountItems()
    tastes = None
    if users.ranks and job.ranks.learned:
        at = job.profiles
        tastes = taste_spec(job.ranks, half_life_days=at.half_life_days, min_events=at.min_events)
    built = log.events | "BuildProfiles" >> BuildProfiles(
        beam.pvalue.AsList(items),
        job.profiles,
        run.store.root,
        popularity=popularity,
        state=log.state,
        keep_state=keep,
        users_of_dead=log.users_of_dead,
        noise=people.noise,
        modalities=job.space_modalities,
        modality_vectors=bool(job.late_modalities),
        tastes=tastes,
    )
    made = built["users"]
    if users.ranks:
        made = made | "RankingVectors" >> VectorsOfUsers(job.ranks)
    out.counts.append(built["counts"])
    out.dead.append(built["dead"])
    if keep:
        write = WriteShards(run.store, run.run_id, "state", shards, {})
        out.files["state"] = built["state"] | "WriteState" >> write
        folded = root | "FoldedLogs" >> beam.Create([json.dumps(users.folded, indent=1)])
        out.files["folded"] = folded | "WriteFolded" >> beam.Map(_write_folded, run)
    # A later run may write these rows anew, with another job file.
    about = {"profiles": json.dumps(asdict(job.profiles), sort_keys=True)}
    write = WriteShards(run.store, run.run_id, "users", shards, about)
    out.files["users"] = made | "WriteUsers" >> write
    return out


def _write_folded(text: str, run: RunPlan) -> FileRecord:
    return write_file(run.store, "folded", f"runs/{run.run_id}/{FOLDED}", text.encode())
