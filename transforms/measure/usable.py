"""The events that profiles are made from, for methods that do not make profiles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from unisono.transforms.base.tables import hash_ids, one_chunk
from unisono.transforms.users.history import History, leave_out_repeats_and_robots, rank_ids
from unisono.transforms.users.profiles import ProfileSpec


@dataclass(frozen=True, eq=False)
class Usable:
    """What is left of a log.

    Attributes:
        events: the events that count, in the columns of the log, by user and time.
        robots: the ids of the users who were left out whole.
        set_aside: the number of events of known items that were left out.
    """

    events: pa.Table
    robots: pa.Array
    set_aside: int


def usable_events(events: pa.Table, items: pa.Array, spec: ProfileSpec) -> Usable:
    """Leaves out what profiles leave out: events of unknown items, repeats within a session, and robots.

    Args:
        events: events in the columns of `clean_interactions`, in any order.
        items: the ids of the items.
        spec: `session_minutes`, `max_events_per_day` and `robots` say what is left out.
    """
    history = _history(events, items)
    left, _ = leave_out_repeats_and_robots(
        history, spec.session_minutes, spec.max_events_per_day, spec.robots == "drop"
    )
    gone = pc.invert(pc.is_in(history.user_ids, value_set=left.user_ids))
    columns = [
        left.user_ids.take(pa.array(left.user)),
        items.take(pa.array(left.rows)).cast(events.schema.field("item_id").type),
        pa.array(left.time).cast(events.schema.field("time").type),
        pa.array(left.weight),
    ]
    kept = pa.table(columns, names=["user_id", "item_id", "time", "weight"])
    return Usable(kept, history.user_ids.filter(gone), len(history.time) - len(left.time))


def _history(events: pa.Table, items: pa.Array) -> History:
    """Puts the events in the order of `order_history`: equal times by the hash of the item, then by weight."""
    place = pc.index_in(one_chunk(events["item_id"].cast(items.type)), value_set=items)
    known = events.filter(place.is_valid())
    users, rank = rank_ids(events["user_id"])
    rank = rank[place.is_valid().to_numpy(zero_copy_only=False)]
    rows = place.drop_null().to_numpy().astype(np.int64)
    time, weight = known["time"].cast(pa.int64()).to_numpy(), known["weight"].to_numpy()
    order = np.lexsort((weight, hash_ids(items)[rows], time, rank))
    first = np.concatenate([[0], np.cumsum(np.bincount(rank, minlength=len(users)))]).astype(np.int64)
    return History(users, first, time=time[order], rows=rows[order], weight=weight[order])
