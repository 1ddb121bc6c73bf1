"""The events of one user, as far as a run's log and state still know them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from unisono.pipelines.ask.log import open_log, read_events
from unisono.pipelines.ask.published import PublishedRun
from unisono.pipelines.job.job import Job
from unisono.transforms.base.errors import JobError
from unisono.transforms.base.tables import one_chunk
from unisono.transforms.store.item_matrix import ItemMatrix
from unisono.transforms.store.runs import read_table
from unisono.transforms.users.history import History, leave_out_repeats_and_robots, order_history
from unisono.transforms.users.state import read_state


@dataclass(frozen=True, eq=False)
class Known:
    """The events of one user that are known one by one.

    Attributes:
        history: the events that count, of one user.
        older: float64 [2d], for incremental profiles, the sums of history vectors over events that are not in
            `history`. None means that there are no such sums.
        length: for incremental profiles, the length of the sum of the item vectors of all events. None means that
            `history` has all events.
        missing: a sentence, if the profile was made of events that are known no more; empty otherwise.
        newest: the time of the newest event that the profile was made of, microseconds since 1970; 0 without events.
        events: the number of events that the profile was made of.
    """

    history: History
    older: np.ndarray | None = None
    length: float | None = None
    missing: str = ""
    newest: int = 0
    events: int = 0

    @property
    def complete(self) -> bool:
        """Whether `history` has all events, so that their parts add up to the user's vectors."""
        return not self.missing and self.length is None


CHANGED = "The events cannot be told: the log is another one than the profile was made of."


def events_of(run: PublishedRun, job: Job, user: pa.Array, items: ItemMatrix, row: pa.Table) -> Known:
    """Finds the events of one user: in the state of incremental profiles, otherwise in the log.

    Args:
        run: the run.
        job: the job file of the run that made the profiles.
        user: the user's id, as it is published, [1].
        items: the item matrix.
        row: the user's row of users/.
    """
    events, newest = row["events"][0].as_py(), row["last_event"].cast(pa.int64())[0].as_py() or 0
    if job.profiles.incremental and run.manifest.part("state"):
        return replace(_remembered(run, user, items), newest=newest, events=events)
    try:
        log = open_log(run, job)
        found = list(read_events(log, user.cast(log.user_type)))
    except JobError as e:
        return Known(_nothing(user), missing=f"The events cannot be told, because the log cannot be read ({e}).")
    table = pa.concat_tables([log.schema.empty_table(), *found])
    history, _ = order_history(table, items)
    spec = job.profiles
    history, _ = leave_out_repeats_and_robots(
        history, spec.session_minutes, spec.max_events_per_day, spec.robots == "drop"
    )
    have = len(history.time)
    if have != events:
        return Known(
            history if have else _nothing(user),
            missing=f"The events cannot be told: the profile was made of {events:,} events, and the log now has "
            f"{have:,} of this user.",
        )
    if have and int(history.time[-1]) != newest:
        return Known(history, missing=CHANGED)
    return Known(history, newest=newest, events=events)


def _remembered(run: PublishedRun, user: pa.Array, items: ItemMatrix) -> Known:
    """Reads the newest events and the sums of one user from state/."""
    for record in run.manifest.part("state"):
        table = read_table(run.store, record)
        mine = table.filter(pc.equal(table["user_id"], user[0]))
        if mine.num_rows:
            state = read_state(mine, items)
            older = None if state.older is None else state.older[0]
            return Known(state.recent, older, float(np.linalg.norm(state.vectors[0])))
    return Known(_nothing(user), missing="The events cannot be told: state/ does not know this user.")


def _nothing(user: pa.Array) -> History:
    empty = np.empty(0, np.int64)
    return History(one_chunk(user), np.zeros(2, np.int64), time=empty, rows=empty, weight=np.empty(0))
