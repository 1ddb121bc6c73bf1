"""The plan's parts for the interaction log and for user profiles."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass

import pyarrow as pa

from unisono.pipelines.job.items import power_of_two
from unisono.pipelines.job.job import Job
from unisono.transforms.base.errors import JobError
from unisono.transforms.base.extras import require
from unisono.transforms.base.tables import same_id_kind
from unisono.transforms.read.interactions import Interactions, check_interactions
from unisono.transforms.read.known_logs import KnownLog, check_new_logs, describe_logs
from unisono.transforms.store.runs import FileRecord, Manifest, Store, read_json

EVENTS_A_SHARD = 262_144
CLOCK_SLACK_S = 86_400  # later events are in the future; this much is allowed for wrong clocks and time zones
FOLDED = "state/logs.json"  # lists the logs whose events the sums in state/ hold


@dataclass(frozen=True)
class LogPlan:
    """What a run needs to read the interaction log.

    Attributes:
        interactions: the log's files and rows.
        shards: the number of user shards.
        state: files of the published run's sums, to which an incremental run adds this log's events.
    """

    interactions: Interactions
    shards: int
    state: tuple[FileRecord, ...]


@dataclass(frozen=True)
class UsersPlan:
    """What a run needs to make user profiles, besides the log.

    Attributes:
        folded: entries of the logs whose events the sums will hold after this run, in the order in which they were
            added. Empty if no sums are kept.
        ranks: whether users get ranking vectors.
    """

    folded: tuple[dict[str, object], ...]
    ranks: bool = True


def plan_log(job: Job, base: Manifest | None) -> LogPlan:
    """Checks everything that reading the log needs.

    Args:
        base: the published run, if there is one.

    Raises:
        JobError: the log is missing or cannot be read.
    """
    log = check_interactions(job.log, latest_us=int((time.time() + CLOCK_SLACK_S) * 1e6))
    state = tuple(base.part("state")) if base and job.profiles.incremental is True else ()
    return LogPlan(log, len(state) or job.shards or power_of_two(log.rows, EVENTS_A_SHARD), state)


def check_item_ids(log: LogPlan, item_type: pa.DataType) -> None:
    """Refuses a log whose item ids are of another kind than the items'.

    Raises:
        JobError: one has strings and the other integers.
    """
    at = log.interactions
    if not same_id_kind(item_type, at.item_type):
        raise JobError(
            f"interactions.item: column {at.spec.item!r} holds {at.item_type}, "
            f"the catalogue's ids are {item_type}; write both as strings or both as integers"
        )


def plan_users(job: Job, store: Store, base: Manifest | None, log: LogPlan) -> UsersPlan:
    """Checks everything that making profiles needs, and lists the logs that an incremental run will have added up.

    Raises:
        JobError: a library is missing, one of this run's logs would count twice, or the published run kept no sums.
    """
    require("numba", "ranking", "profiles")
    how = job.profiles.incremental
    if not how:
        return UsersPlan(())
    before: list[dict[str, object]] = []
    if how is True and base is not None:
        if base.part("state"):
            before = read_json(store, base.part("folded")[0].path)
        elif base.part("users"):
            raise JobError(
                f"profiles.incremental: the published run {base.run_id} kept no sums to add to; "
                "run once with profiles.incremental: restart over the whole log"
            )
    added = describe_logs(log.interactions)
    check_new_logs(added, [KnownLog.of(entry) for entry in before])
    return UsersPlan((*before, *(asdict(one) for one in added)))
