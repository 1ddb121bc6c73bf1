"""The events that count: repeats within a session and robots are left out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from unisono.transforms.base.tables import hash_ids, one_chunk

DAY_US = 86_400_000_000
_MINUTE_US = 60_000_000


@dataclass(frozen=True)
class UsableSpec:
    """Which events count.

    Attributes:
        session_minutes: see `newest_of_session`. None means that repeats count.
        max_events_per_day: number of events of a user that count on one day (UTC). A user with more is a robot. None
            means no limit.
        drop_robots: True leaves robots out whole. False keeps the newest events of each of their days.
    """

    session_minutes: float | None = None
    max_events_per_day: int | None = None
    drop_robots: bool = False

    def may_leave_out(self, rows: int) -> bool:
        """Says whether an event of a log of so many rows may be left out."""
        most = self.max_events_per_day
        return self.session_minutes is not None or (most is not None and rows > most)


@dataclass(frozen=True, eq=False)
class Usable:
    """What is left of a log.

    Attributes:
        events: the events that count, in the order and the columns of the log.
        robots: the ids of the users who were left out whole.
    """

    events: pa.Table
    robots: pa.Array


def usable_events(events: pa.Table, spec: UsableSpec) -> Usable:
    """Leaves out repeats within a session, and robots.

    Args:
        events: all events of some users, in the columns of `clean_interactions`, in any order.
        spec: what is left out.

    Guarantees:
        The result does not depend on the order of the rows, nor on the other users of the table. Events that count
        also count when this is applied to its own result.
    """
    nobody = one_chunk(events["user_id"]).slice(0, 0)
    if not spec.may_leave_out(events.num_rows):
        return Usable(events, nobody)
    users = one_chunk(one_chunk(events["user_id"]).dictionary_encode())
    user = users.indices.to_numpy().astype(np.int64)
    looked_at = np.arange(len(user))
    if spec.session_minutes is None:
        # Only users with so many events in all can have them on one day: the others need not be sorted.
        counts = np.bincount(user)
        if counts.max() <= (spec.max_events_per_day or 0):
            return Usable(events, nobody)
        looked_at = np.flatnonzero(counts[user] > (spec.max_events_per_day or 0))
    some = events.take(pa.array(looked_at))
    time, weight = some["time"].cast(pa.int64()).to_numpy(), some["weight"].to_numpy()
    item, user = hash_ids(some["item_id"]), user[looked_at]
    order = np.lexsort((weight, item, time, user))
    user, time, item, weight = user[order], time[order], item[order], weight[order]
    stay = np.ones(len(user), bool)
    if spec.session_minutes is not None:
        stay = newest_of_session(user, time, item, weight, minutes=spec.session_minutes)
    robots = np.empty(0, np.int64)
    if spec.max_events_per_day is not None:
        left = np.flatnonzero(stay)
        over = find_robots(user[left], time[left], spec.max_events_per_day)
        stay[left[over.surplus]] = False
        if spec.drop_robots:
            robots = over.users
            stay &= ~np.isin(user, robots)
    if stay.all():
        return Usable(events, nobody)
    keep = np.ones(events.num_rows, bool)
    keep[looked_at[order[~stay]]] = False
    return Usable(events.filter(pa.array(keep)), users.dictionary.take(pa.array(robots)))


# --- the rules, on events sorted by user and time ----------------------------------------------------------


def newest_of_session(
    user: np.ndarray, time: np.ndarray, item: np.ndarray, weight: np.ndarray, *, minutes: float
) -> np.ndarray:
    """Finds the newest of a user's events that have the same item and weight and are in the same session.

    A session ends when the user's next event comes more than `minutes` later.

    Args:
        user: int64 [n], ascending.
        time: int64 [n], microseconds, ascending for each user.
        item: integers [n]; equal for the same item.
        weight: float64 [n].
        minutes: see above.

    Returns:
        bool [n].
    """
    n = len(time)
    if n == 0:
        return np.ones(0, bool)
    new = np.diff(time, prepend=time[0]) > minutes * _MINUTE_US
    new[1:] |= user[1:] != user[:-1]
    session = np.cumsum(new)
    order = np.lexsort((np.arange(n), weight, item, session))
    last = np.ones(n, bool)
    last[:-1] = np.logical_or.reduce([x[order][1:] != x[order][:-1] for x in (session, item, weight)])
    keep = np.zeros(n, bool)
    keep[order[last]] = True
    return keep


@dataclass(frozen=True, eq=False)
class Robots:
    """Users who have more events on one day (UTC) than a person can have.

    Attributes:
        users: int64 [r], the users, ascending.
        worst: int64 [r], the number of events on the user's fullest day.
        surplus: bool [n], the events of such a day that are older than the newest ones that count.
    """

    users: np.ndarray
    worst: np.ndarray
    surplus: np.ndarray


def find_robots(user: np.ndarray, time: np.ndarray, most: int) -> Robots:
    """Finds the users who have more than `most` events on one day.

    Args:
        user: int64 [n], ascending.
        time: int64 [n], microseconds since 1970, ascending for each user.
        most: number of events that count on one day.
    """
    n = len(time)
    day = time // DAY_US
    starts = np.flatnonzero((np.diff(user, prepend=-1) != 0) | (np.diff(day, prepend=0) != 0))
    sizes = np.diff(np.append(starts, n))
    over = sizes > most
    if not over.any():
        return Robots(np.empty(0, np.int64), np.empty(0, np.int64), np.zeros(n, bool))
    users, at = np.unique(user[starts[over]], return_inverse=True)
    worst = np.zeros(len(users), np.int64)
    np.maximum.at(worst, at, sizes[over])
    from_end = np.repeat(starts + sizes, sizes) - np.arange(n)
    return Robots(users, worst, from_end > most)
