"""The events of a shard, ordered by user and time, and the rules that leave some of them out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from unisono.transforms.base.errors import Reason
from unisono.transforms.base.extras import require
from unisono.transforms.base.tables import one_chunk
from unisono.transforms.read.usable import find_robots, newest_of_session
from unisono.transforms.store import dead_letters
from unisono.transforms.store.item_matrix import ItemMatrix

STAGE = "profiles"
EVENTS_A_THREAD = 4096  # a loop over this many events takes long enough to be worth a thread


@dataclass(frozen=True, eq=False)
class History:
    """Events with known items, by user; each user's events are sorted by time, then by item and weight.

    Attributes:
        user_ids: distinct ids [u], ascending; a user may have no event.
        first: int64 [u + 1]: user i has the events `first[i]` to `first[i + 1]`.
        time: int64 [e], microseconds since 1970.
        rows: int64 [e], each event's item, as a row of the item matrix.
        weight: float64 [e], before decay.
    """

    user_ids: pa.Array
    first: np.ndarray
    time: np.ndarray
    rows: np.ndarray
    weight: np.ndarray

    @property
    def counts(self) -> np.ndarray:
        """Number of events of each user, int64 [u]."""
        return np.diff(self.first)

    @property
    def user(self) -> np.ndarray:
        """Index of each event's user in `user_ids`, int64 [e]."""
        return np.repeat(np.arange(len(self.user_ids)), self.counts)

    def keep(self, mask: np.ndarray) -> History:
        """Keeps the events where `mask`, bool [e], is True, and keeps all users."""
        if mask.all():
            return self
        counts = np.bincount(self.user[mask], minlength=len(self.user_ids))
        first = np.concatenate([[0], np.cumsum(counts)])
        return replace(self, first=first, time=self.time[mask], rows=self.rows[mask], weight=self.weight[mask])

    def without_users(self, users: np.ndarray) -> History:
        """Removes users, given as integer indices in `user_ids`, and their events."""
        stay = np.ones(len(self.user_ids), bool)
        stay[users] = False
        left = self.keep(stay[self.user])
        first = np.concatenate([[0], np.cumsum(left.counts[stay])])
        return replace(left, user_ids=self.user_ids.filter(pa.array(stay)), first=first)

    def newest(self, most: int) -> History:
        """Keeps the newest events of each user, at most `most`."""
        return self.keep(self._from_end() <= most)

    def before_newest(self, most: int) -> History:
        """Keeps the events of each user that `newest` leaves out."""
        return self.keep(self._from_end() > most)

    def _from_end(self) -> np.ndarray:
        """Numbers each user's events from the end, int64 [e]; the newest has 1."""
        return np.repeat(self.first[1:], self.counts) - np.arange(len(self.time))


class FoundItems(Protocol):
    """Items that are found by their ids, such as an `ItemMatrix`."""

    @property
    def ranks(self) -> np.ndarray:
        """An order of the items that depends only on their ids, int64 [n]."""

    def lookup(self, ids: pa.Array | pa.ChunkedArray) -> np.ndarray:
        """Finds the row of each id, int64 [m]; −1 where the item is unknown."""


def order_history(table: pa.Table, items: FoundItems) -> tuple[History, int]:
    """Puts events in order.

    Args:
        table: events in the columns of `clean_interactions`, in any order.
        items: the items; events of other items are left out.

    Returns:
        The history, and the number of events that were left out. Neither depends on the order of the rows.

    Raises:
        JobError: one of `table` and `items` has strings as item ids, and the other has integers; or numba is not
            installed.
    """
    rows = items.lookup(table["item_id"])
    known = rows >= 0
    users, rank = rank_ids(table["user_id"])
    time = table["time"].cast(pa.int64()).to_numpy()
    weight = table["weight"].to_numpy()
    if not known.all():
        rank, rows, time, weight = rank[known], rows[known], time[known], weight[known]
    first = _first_events(rank, len(users))
    order = _order_events(rank, time, first, items.ranks, rows, weight)
    history = History(users, first, time=time[order], rows=rows[order], weight=weight[order])
    return history, table.num_rows - len(rows)


def rank_ids(ids: pa.ChunkedArray | pa.Array) -> tuple[pa.Array, np.ndarray]:
    """Returns the distinct ids, ascending, and the index of each row's id among them, int64 [n]."""
    encoded = one_chunk(ids).dictionary_encode()
    order = pc.sort_indices(encoded.dictionary)
    place = np.empty(len(order), np.int64)
    place[order.to_numpy()] = np.arange(len(order))
    return encoded.dictionary.take(order), place[encoded.indices.to_numpy()]


def _order_events(
    rank: np.ndarray, time: np.ndarray, first: np.ndarray, item_ranks: np.ndarray, rows: np.ndarray, weight: np.ndarray
) -> np.ndarray:
    """Returns the order of the events by user, time, item and weight, int64 [e].

    Item and weight are compared only where a user has several events at one time.
    """
    require("numba", "ranking", "profiles")
    from unisono.transforms.users import event_kernels

    order = event_kernels.by_user_and_time(rank, time, first)
    user, at = rank[order], time[order]
    same = (user[1:] == user[:-1]) & (at[1:] == at[:-1])
    if same.any():
        tied = np.flatnonzero(np.append(same, False) | np.append(False, same))
        among = order[tied]
        order[tied] = among[np.lexsort((weight[among], item_ranks[rows[among]], at[tied], user[tied]))]
    return order


def _first_events(rank: np.ndarray, users: int) -> np.ndarray:
    """Counts events by user and returns `History.first`, int64 [users + 1]."""
    return np.concatenate([[0], np.cumsum(np.bincount(rank, minlength=users))]).astype(np.int64)


# --- what does not count -----------------------------------------------------------------------------------


def leave_out_repeats_and_robots(
    history: History, session_minutes: float | None, max_events_per_day: int | None, drop_robots: bool
) -> tuple[History, pa.Table]:
    """Keeps the events that profiles are made from.

    Args:
        history: events of any number of users.
        session_minutes: see `once_a_session`. None means that repeats count.
        max_events_per_day: see `limit_a_day`. None means no limit.
        drop_robots: see `limit_a_day`.

    Returns:
        The remaining history, and the dead letters of `limit_a_day`.
    """
    if session_minutes is not None:
        history = once_a_session(history, session_minutes)
    if max_events_per_day is None:
        return history, dead_letters.SCHEMA.empty_table()
    return limit_a_day(history, max_events_per_day, drop_robots)


def once_a_session(history: History, session_minutes: float) -> History:
    """Keeps only the newest of a user's repeats within a session, see `newest_of_session`."""
    newest = newest_of_session(history.user, history.time, history.rows, history.weight, minutes=session_minutes)
    return history.keep(newest)


def limit_a_day(history: History, most: int, drop: bool) -> tuple[History, pa.Table]:
    """Limits users who have more events on one day (UTC) than a person can have.

    Args:
        history: events of any number of users.
        most: number of events that count on one day.
        drop: True removes such a user. False keeps the newest `most` events of each day.

    Returns:
        The remaining history, and one dead letter with reason `too_many_events` for each such user.
    """
    user = history.user
    over = find_robots(user, history.time, most)
    if not len(over.users):
        return history, dead_letters.SCHEMA.empty_table()
    gone = np.isin(user, over.users) if drop else over.surplus
    lost = np.bincount(user[gone], minlength=len(history.user_ids))[over.users]
    names = history.user_ids.take(pa.array(over.users)).cast(pa.string()).to_pylist()
    letters = dead_letters.dead_letter_table(  # a Python loop is fast enough: few users are robots
        dead_letters.DeadLetter(
            None, None, STAGE, Reason.TOO_MANY_EVENTS,
            f"user={name} {events} events on one day, {most} allowed, {left_out} left out",
        )
        for name, events, left_out in zip(names, over.worst.tolist(), lost.tolist(), strict=True)
    )  # fmt: skip
    return (history.without_users(over.users) if drop else history.keep(~gone)), letters


def merge_histories(parts: list[History], items: ItemMatrix) -> History:
    """Combines several histories, which may share users, into one."""
    ids = pa.concat_arrays([h.user_ids for h in parts])
    users, place = rank_ids(ids)
    ends = np.cumsum([len(h.user_ids) for h in parts])
    rank = np.concatenate(
        [place[end - len(h.user_ids) : end][h.user] for h, end in zip(parts, ends, strict=True)]
    )
    time, rows, weight = (np.concatenate([getattr(h, name) for h in parts]) for name in ("time", "rows", "weight"))
    first = _first_events(rank, len(users))
    order = _order_events(rank, time, first, items.ranks, rows, weight)
    return History(users, first, time=time[order], rows=rows[order], weight=weight[order])
