"""The state of users: sums over their events, to which a later run adds the sums of new events."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from unisono.transforms.base.columns import COMPARABLE, HALF_LIFE, NOT_COMPARABLE, SPACE
from unisono.transforms.base.errors import JobError
from unisono.transforms.base.extras import require
from unisono.transforms.base.tables import from_vector_column, one_chunk, to_vector_column
from unisono.transforms.base.threads import in_threads
from unisono.transforms.read.interactions import TIME_TYPE
from unisono.transforms.store.item_matrix import ItemMatrix
from unisono.transforms.users.history import DAY_US, EVENTS_A_THREAD, History, merge_histories, rank_ids


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
    """

    user_ids: pa.Array
    vectors: np.ndarray
    weights: np.ndarray
    magnitudes: np.ndarray
    events: np.ndarray
    newest: np.ndarray
    recent: History


def decay(age_us: np.ndarray, half_life_days: float | None) -> np.ndarray:
    """Returns the factor by which age reduces an event's weight, 2^(−age / half-life).

    Args:
        age_us: microseconds, [n].
        half_life_days: None means that events do not age, and every factor is 1.

    Returns:
        float64 [n].
    """
    if half_life_days is None:
        return np.ones(len(age_us))
    return np.exp2(age_us / (-half_life_days * DAY_US))


def sum_history(history: History, items: ItemMatrix, half_life_days: float | None, recent: int) -> UserState:
    """Sums the item vectors of each user's events, weighted and decayed.

    The events of a user are added one by one in float64, oldest first. So the sums depend neither on the order of the
    log's rows nor on the other users of the shard.

    Args:
        history: the events.
        items: the item matrix that the history's rows refer to.
        half_life_days: see `decay`.
        recent: how many of each user's newest events the state keeps.

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
        weights=_segment_sums(weight, first),
        magnitudes=_segment_sums(np.abs(weight), first),
        events=counts,
        newest=newest,
        recent=history.newest(recent),
    )


def add_rows(matrix: np.ndarray, rows: np.ndarray, weight: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Adds up Σ weight[e] · matrix[rows[e]] over the events e of each user, one by one in their order.

    Args:
        matrix: float32 [items, dim].
        rows: int64 [e], rows of `matrix`.
        weight: float64 [e].
        first: int64 [u + 1]: user i has the events `first[i]` to `first[i + 1]`.

    Returns:
        float64 [u, dim].

    Raises:
        JobError: numba is not installed.
    """
    require("numba", "ranking", "profiles")
    from unisono.transforms.users import event_kernels

    out, matrix = np.zeros((len(first) - 1, matrix.shape[1])), np.asarray(matrix)

    def add(a: int, b: int) -> None:
        event_kernels.add_rows(matrix, rows, weight, first[a:b], first[a + 1 : b + 1], out[a:b])

    in_threads(first, EVENTS_A_THREAD, add)
    return out


def _segment_sums(values: np.ndarray, first: np.ndarray) -> np.ndarray:
    out = np.zeros(len(first) - 1)
    some = np.diff(first) > 0
    if some.any():
        out[some] = np.add.reduceat(values, first[:-1][some])
    return out


def merge_states(
    old: UserState, new: UserState, items: ItemMatrix, *, half_life_days: float | None, recent: int
) -> UserState:
    """Adds two states, as if the events of both had been summed at once.

    The states may share users, and either may hold the newer events.

    Args:
        old: one state.
        new: the other state.
        items: the item matrix that the recent events of both refer to.
        half_life_days: see `decay`; both states must have been summed with it.
        recent: how many of each user's newest events to keep.
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
    for where, part in zip(at, (old, new), strict=True):
        left = np.where(part.events > 0, decay(newest[where] - part.newest, half_life_days), 0.0)
        vectors[where] += left[:, None] * part.vectors
        weights[where] += left * part.weights
        magnitudes[where] += left * part.magnitudes
        events[where] += part.events
    history = merge_histories([old.recent, new.recent], items).newest(recent)
    return UserState(
        user_ids=users,
        vectors=vectors,
        weights=weights,
        magnitudes=magnitudes,
        events=events,
        newest=newest,
        recent=history,
    )


def check_state(
    state: pa.Table, items_metadata: Mapping[bytes, bytes], dim: int, half_life_days: float | None
) -> None:
    """Checks that new events can be added to a published state.

    Sums of item vectors from an earlier space stay valid if the items' space is comparable with that space, which
    means that it was rotated to match it: the item vectors already contain the rotation.

    Args:
        state: a table of `state_schema`, with the schema metadata of its file.
        items_metadata: the schema metadata of the items' files.
        dim: length of the item vectors.
        half_life_days: the half-life with which the new events are summed.

    Raises:
        JobError: the state's space is not comparable with the items' space, its vectors have another length, or it
            was summed with another half-life.
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


# --- as tables ---------------------------------------------------------------------------------------------


def state_schema(user_type: pa.DataType, item_type: pa.DataType, dim: int) -> pa.Schema:
    """Returns the schema of the files in state/."""
    event = pa.struct([("item_id", item_type), ("time", TIME_TYPE), ("weight", pa.float64())])
    fields = [
        ("user_id", user_type),
        pa.field("sum", pa.list_(pa.float64(), dim), nullable=False),
        ("weight", pa.float64()),
        ("magnitude", pa.float64()),
        ("events", pa.int64()),
        ("newest", TIME_TYPE),
        ("recent", pa.list_(event)),
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
    schema = state_schema(state.user_ids.type, items.id_type, items.dim)
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
    )
