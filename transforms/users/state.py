"""The state of users: sums over their events, to which a later run adds the sums of new events."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from unisono.transforms.base.columns import COMPARABLE, HALF_LIFE, NOT_COMPARABLE, SPACE, TASTES
from unisono.transforms.base.errors import JobError
from unisono.transforms.base.tables import from_vector_column, one_chunk, to_vector_column
from unisono.transforms.read.interactions import TIME_TYPE
from unisono.transforms.store.item_matrix import ItemMatrix
from unisono.transforms.users.history import History, merge_histories, rank_ids
from unisono.transforms.users.sums import add_rows, decay, segment_sums
from unisono.transforms.users.tastes import Tastes, sum_older


@dataclass(frozen=True, eq=False)
class UserState:
    """Sums over all events of each user so far, and the user's newest events.

    The weight w of an event is decayed to the time of the user's own newest event. So two states of one user can be
    added after the older one has been multiplied by `decay` of the time between their newest events.

    Attributes:
        user_ids: distinct ids [u], ascending.
        vectors: Σ w·v over the events, v the item vector; float64 [u, dim].
        weights: Σ w, float64 [u].
        magnitudes: Σ |w|, float64 [u].
        events: number of events, int64 [u]; may be 0.
        newest: time of the newest event, int64 [u], microseconds since 1970; 0 where there is no event.
        recent: the newest events of the same users.
        older: for `tastes`, sums over the events that are no longer in `recent`, float64 [u, 2d]; see
            `tastes.sum_older`. None means that no tastes are made.
    """

    user_ids: pa.Array
    vectors: np.ndarray
    weights: np.ndarray
    magnitudes: np.ndarray
    events: np.ndarray
    newest: np.ndarray
    recent: History
    older: np.ndarray | None = None


def sum_history(
    history: History, items: ItemMatrix, half_life_days: float | None, recent: int, tastes: Tastes | None = None
) -> UserState:
    """Sums the item vectors of each user's events, weighted and decayed.

    The events of a user are added one by one in float64, oldest first. So the sums depend neither on the order of the
    log's rows nor on the other users of the shard.

    Args:
        history: the events.
        items: the item matrix that the history's rows refer to.
        half_life_days: see `decay`.
        recent: how many of each user's newest events the state keeps.
        tastes: what tastes are made from. None means that none are made.

    Raises:
        JobError: numba is not installed.
    """
    first, counts = history.first, history.counts
    some = counts > 0
    newest = np.zeros(len(counts), np.int64)
    newest[some] = history.time[first[1:][some] - 1]
    weight = history.weight * decay(np.repeat(newest, counts) - history.time, half_life_days)
    return UserState(
        user_ids=history.user_ids,
        vectors=add_rows(items.vectors, history.rows, weight, first),
        weights=segment_sums(weight, first),
        magnitudes=segment_sums(np.abs(weight), first),
        events=counts,
        newest=newest,
        recent=history.newest(recent),
        older=sum_older(history.before_newest(recent), newest, tastes) if tastes else None,
    )


def merge_states(
    old: UserState,
    new: UserState,
    items: ItemMatrix,
    *,
    half_life_days: float | None,
    recent: int,
    tastes: Tastes | None = None,
) -> UserState:
    """Adds two states, as if the events of both had been summed at once.

    The states may share users, and either may hold the newer events.

    Args:
        old: one state.
        new: the other state.
        items: the item matrix that the recent events of both refer to.
        half_life_days: see `decay`; both states must have been summed with it.
        recent: how many of each user's newest events to keep.
        tastes: what tastes are made from. None means that none are made.
    """
    users, place = rank_ids(pa.concat_arrays([old.user_ids, new.user_ids]))
    n, split = len(users), len(old.user_ids)
    at = place[:split], place[split:]
    newest = np.full(n, np.iinfo(np.int64).min)
    for where, part in zip(at, (old, new), strict=True):
        some = part.events > 0
        np.maximum.at(newest, where[some], part.newest[some])
    newest[newest == np.iinfo(np.int64).min] = 0
    vectors, weights, magnitudes = np.zeros((n, old.vectors.shape[1])), np.zeros(n), np.zeros(n)
    events = np.zeros(n, np.int64)
    history = merge_histories([old.recent, new.recent], items)
    older = sum_older(history.before_newest(recent), newest, tastes) if tastes else None
    for where, part in zip(at, (old, new), strict=True):
        left = np.where(part.events > 0, decay(newest[where] - part.newest, half_life_days), 0.0)
        vectors[where] += left[:, None] * part.vectors
        weights[where] += left * part.weights
        magnitudes[where] += left * part.magnitudes
        events[where] += part.events
        if older is not None and part.older is not None:
            d = older.shape[1] // 2
            older[where, :d] += left[:, None] * part.older[:, :d]
            older[where, d:] += part.older[:, d:]
    return UserState(
        user_ids=users,
        vectors=vectors,
        weights=weights,
        magnitudes=magnitudes,
        events=events,
        newest=newest,
        recent=history.newest(recent),
        older=older,
    )


def check_state(
    state: pa.Table,
    items_metadata: Mapping[bytes, bytes],
    dim: int,
    half_life_days: float | None,
    tastes: Tastes | None = None,
) -> None:
    """Checks that new events can be added to a published state.

    Sums of item vectors from an earlier space stay valid if the items' space is comparable with that space, which
    means that it was rotated to match it: the item vectors already contain the rotation.

    Args:
        state: a table of `state_schema`, with the schema metadata of its file.
        items_metadata: the schema metadata of the items' files.
        dim: length of the item vectors.
        half_life_days: the half-life with which the new events are summed.
        tastes: what tastes are made from. None means that none are made.

    Raises:
        JobError: the state's space is not comparable with the items' space, its vectors have another length, it was
            summed with another half-life, or it holds sums of history vectors that are not comparable with those of
            the items.
    """
    have = state.schema.metadata or {}
    old, new = (m.get(SPACE, b"").decode() for m in (have, items_metadata))
    why = ""
    if old != new and old not in json.loads(items_metadata.get(COMPARABLE, b"[]")):
        found = items_metadata.get(NOT_COMPARABLE, b"").decode()
        why = "which is not comparable with it" + (f" ({found})" if found else "")
    elif (length := state.schema.field("sum").type.list_size) != dim:
        why = f"and their vectors have {dim} values, not {length}"
    if why:
        raise JobError(
            f"profiles.incremental: the published state is of space {old}, the items are of {new}, {why}; "
            "run once with profiles.incremental: restart over the whole log"
        )
    if (summed := have.get(HALF_LIFE, b"").decode()) != str(half_life_days):
        raise JobError(
            f"profiles.half_life_days: {half_life_days}, the published state was summed with {summed}; "
            "keep it, or run once with profiles.incremental: restart over the whole log"
        )
    if tastes and have.get(TASTES, b"").decode() not in (tastes.key, *tastes.comparable) and _has_older(state):
        raise JobError(
            "profiles.incremental: the published state was summed from other history vectors than those of the items "
            "(ranking), and they are not comparable; run once with profiles.incremental: restart over the whole log"
        )


def _has_older(state: pa.Table) -> bool:
    """Says whether some user has events that the state no longer keeps one by one."""
    kept = pc.list_value_length(one_chunk(state["recent"]))
    return bool(pc.any(pc.less(kept, one_chunk(state["events"]))).as_py())


# --- as tables ---------------------------------------------------------------------------------------------


def state_schema(user_type: pa.DataType, item_type: pa.DataType, dim: int, width: int = 0) -> pa.Schema:
    """Returns the schema of the files in state/.

    Args:
        user_type: type of the user ids.
        item_type: type of the item ids.
        dim: length of an item vector.
        width: length of a taste. 0 means that there is no column `older`.
    """
    event = pa.struct([("item_id", item_type), ("time", TIME_TYPE), ("weight", pa.float64())])
    fields = [
        ("user_id", user_type),
        pa.field("sum", pa.list_(pa.float64(), dim), nullable=False),
        ("weight", pa.float64()),
        ("magnitude", pa.float64()),
        ("events", pa.int64()),
        ("newest", TIME_TYPE),
        ("recent", pa.list_(event)),
        *([pa.field("older", pa.list_(pa.float64(), width))] if width else []),
    ]
    return pa.schema(fields)


def times(microseconds: np.ndarray, present: np.ndarray | None = None) -> pa.Array:
    """Turns microseconds since 1970, int64 [n], into a time column.

    Args:
        microseconds: the times.
        present: bool [n]; False makes a row null. None means that all rows are present.
    """
    mask = None if present is None else ~present
    return pa.array(microseconds, mask=mask).cast(pa.timestamp("us")).cast(TIME_TYPE)


def state_table(state: UserState, items: ItemMatrix) -> pa.Table:
    """Writes a state as a table of `state_schema`."""
    older = state.older
    schema = state_schema(state.user_ids.type, items.id_type, items.dim, 0 if older is None else older.shape[1])
    recent = state.recent
    events = pa.StructArray.from_arrays(
        [items.ids(recent.rows), times(recent.time), pa.array(recent.weight)],
        fields=list(schema.field("recent").type.value_type),
    )
    columns = [
        state.user_ids,
        to_vector_column(state.vectors),
        pa.array(state.weights),
        pa.array(state.magnitudes),
        pa.array(state.events),
        times(state.newest, state.events > 0),
        pa.ListArray.from_arrays(pa.array(recent.first.astype(np.int32)), events),
    ]
    if older is not None:  # most users have no older events: null takes no room
        columns.append(to_vector_column(older, np.any(older, axis=1)))
    return pa.table(columns, schema=schema)


def remembered_events(table: pa.Table) -> pa.Table:
    """Reads the newest events that a state table keeps, in the columns of `clean_interactions`."""
    lists = one_chunk(table["recent"])
    flat = lists.flatten()
    columns = {name: pc.struct_field(flat, name) for name in ("item_id", "time", "weight")}
    return pa.table({"user_id": one_chunk(table["user_id"]).take(pc.list_parent_indices(lists)), **columns})


def read_state(table: pa.Table, items: ItemMatrix) -> UserState:
    """Reads a table that `state_table` wrote; recent events of items that `items` no longer holds are left out."""
    lists = one_chunk(table["recent"])
    flat = lists.flatten()
    first = np.concatenate([[0], np.cumsum(pc.list_value_length(lists).to_numpy())]).astype(np.int64)
    rows = items.lookup(pc.struct_field(flat, "item_id"))
    recent = History(
        user_ids=one_chunk(table["user_id"]),
        first=first,
        time=pc.struct_field(flat, "time").cast(pa.int64()).to_numpy(),
        rows=rows,
        weight=pc.struct_field(flat, "weight").to_numpy(),
    )
    return UserState(
        user_ids=one_chunk(table["user_id"]),
        vectors=from_vector_column(table["sum"])[0],
        weights=table["weight"].to_numpy(),
        magnitudes=table["magnitude"].to_numpy(),
        events=table["events"].to_numpy(),
        newest=table["newest"].cast(pa.int64()).fill_null(0).to_numpy(),
        recent=recent.keep(rows >= 0),
        older=_read_older(table),
    )


def _read_older(table: pa.Table) -> np.ndarray | None:
    if "older" not in table.column_names:
        return None
    sums, present = from_vector_column(table["older"])
    return np.where(present[:, None], sums, 0.0)
