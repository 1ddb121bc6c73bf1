"""The interaction log of a run, read again as the run read it, on one machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc

from unisono.pipelines.ask.published import PublishedRun
from unisono.pipelines.job.job import Job
from unisono.pipelines.job.users import CLOCK_SLACK_S
from unisono.transforms.privacy.forget import check_forget
from unisono.transforms.privacy.pseudonyms import Pseudonyms
from unisono.transforms.rank.ranking import distinct_pairs
from unisono.transforms.read.interactions import Interactions, check_interactions, clean_rows
from unisono.transforms.store.parquet import read_rows
from unisono.transforms.store.runs import read_table
from unisono.transforms.users.popularity import count_items
from unisono.transforms.users.state import remembered_events


def pseudonyms_of(run: PublishedRun, job: Job) -> Pseudonyms | None:
    """Returns what replaces user ids in a run, or None. The key must be in the environment of this process."""
    at = job.privacy.pseudonyms
    if at is None:
        return None
    said = run.manifest.privacy.pseudonyms
    return Pseudonyms(at.key_env, said.key_fingerprint if said else "")


def open_log(run: PublishedRun, job: Job) -> Interactions:
    """Checks the log that a run's job file names, and sets it up to be read as the run read it.

    User ids become pseudonyms and forgotten people are left out, if the job says so. Events that were in the future
    when the run was launched are left out.

    Raises:
        JobError: The job has no log, or a file or column of it is missing or not valid.
    """
    launched = datetime.fromisoformat(run.manifest.created).timestamp()
    log = check_interactions(job.log, latest_us=int((launched + CLOCK_SLACK_S) * 1e6))
    pseudonyms, path = pseudonyms_of(run, job), job.privacy.forget
    forget = check_forget(path, log.user_type, "interactions.user", pseudonyms) if path else None
    return log.hiding(pseudonyms, forget)


def read_events(log: Interactions, users: pa.Array | None = None) -> Iterator[pa.Table]:
    """Reads cleaned events, in tables of a bounded size. Events that cannot be used are left out.

    Args:
        log: The log.
        users: Only events of these users are read. Their ids are of type `log.user_type`. None means all users.

    Yields:
        Tables of the schema `log.schema`: user_id, item_id, time, weight.
    """
    gone = log.forget.load() if log.forget else None
    for raw in read_rows(log.files, log.spec.columns):
        events = clean_rows(raw, log, gone, users).events
        if events.num_rows:
            yield events


# --- totals over the whole log -----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class LogTotals:
    """What ranking needs to know of everybody's events.

    Attributes:
        pairs: user_id, item_id: each pair of a user and an item once. Events of weight 0 do not count.
        counts: item_id, n: the number of events of positive weight of each item.
    """

    pairs: pa.Table
    counts: pa.Table

    def of_users(self, users: pa.Array) -> pa.Table:
        """Selects the pairs of some users: user_id, item_id."""
        mine = pc.is_in(self.pairs["user_id"], value_set=users.cast(self.pairs.schema.field("user_id").type))
        return self.pairs.filter(mine)


def total_log(run: PublishedRun, job: Job) -> LogTotals:
    """Reads the whole log of a run once and adds it up.

    For incremental profiles, the newest earlier events in the run's state are added, as `unisono recommend` does.
    Memory grows with the number of distinct pairs of a user and an item.

    Raises:
        JobError: The job has no log, or a file or column of it is missing or not valid.
    """
    log = open_log(run, job)
    state = run.manifest.part("state") if job.profiles.incremental is True else []
    pairs, counts, events = [], [], []
    for table in read_events(log):
        pairs.append(distinct_pairs(table))
        counts.append(count_items(table))
        if state:
            events.append(table.select(["user_id", "item_id", "time"]))
    known = pa.concat_tables([log.schema.empty_table().select(["user_id", "item_id", "time"]), *events])
    for record in state:
        earlier = remembered_events(read_table(run.store, record)).cast(log.schema)
        # The state also keeps events of this log, which are counted already.
        earlier = earlier.join(known, ["user_id", "item_id", "time"], join_type="left anti")
        pairs.append(distinct_pairs(earlier))
        counts.append(count_items(earlier))
    empty = log.schema.empty_table()
    summed = pa.concat_tables([count_items(empty), *counts]).group_by("item_id").aggregate([("n", "sum")])
    totals = pa.table({"item_id": summed["item_id"], "n": summed["n_sum"]})
    return LogTotals(distinct_pairs(pa.concat_tables([distinct_pairs(empty), *pairs])), totals)
