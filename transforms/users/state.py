"""What a user's profile is made of, as sums that merge: a night's events fold into yesterday's."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from unisono.transforms.base.columns import COMPARABLE, HALF_LIFE, NOT_COMPARABLE, SPACE
from unisono.transforms.base.errors import JobError
from unisono.transforms.base.tables import from_vector_column, one_chunk, to_vector_column
from unisono.transforms.base.threads import in_threads
from unisono.transforms.read.interactions import TIME_TYPE
from unisono.transforms.store.item_matrix import ItemMatrix
from unisono.transforms.users.history import DAY_US, EVENTS_A_THREAD, History, merge_histories, rank_users


@dataclass(frozen=True, eq=False)
class UserState:
    """Sums over every event so far, and the newest events themselves; one row a user, sorted by user.

    An event's weight is decayed to the user's own newest event, so two states of one user add up once the
    older is multiplied by `decay` of the time between their `newest`.

    Attributes:
        user_ids: [u], ascending.
        vectors: Σ w·v, float64 [u, dim].
        weights: Σ w, float64 [u].
        magnitudes: Σ |w|, float64 [u].
        events: used events, int64 [u]; may be 0.
        newest: time of the newest used event, int64 [u], microseconds since 1970; 0 where there is none.
        recent: the newest events, for the same users.
    """

    user_ids: pa.Array
    vectors: np.ndarray
    weights: np.ndarray
    magnitudes: np.ndarray
    events: np.ndarray
    newest: np.ndarray
    recent: History


def decay(age_us: np.ndarray, half_life_days: float | None) -> np.ndarray:
    """Gives what is left of an event's weight, 2^(−age / half-life), float64; ages in microseconds."""
    if half_life_days is None:
        return np.ones(len(age_us))
    return np.exp2(age_us / (-half_life_days * DAY_US))


def sum_history(history: History, items: ItemMatrix, half_life_days: float | None, recent: int) -> UserState:
    """Sums the item vectors of each user's events, weighted and decayed.

    The events of a user are added one by one in float64, oldest first, so the sums depend neither on the
    order of the rows nor on the other users of the shard.

    Args:
        recent: how many of each user's newest events to keep.
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
    """Adds up rows, Σ weight[e] · matrix[rows[e]] over the events `first[u]` to `first[u + 1]`: float64 [u, dim]."""
    out = np.zeros((len(first) - 1, matrix.shape[1]))
    kernel, matrix = _add_rows_kernel(), np.asarray(matrix)
    in_threads(
        first, EVENTS_A_THREAD, lambda a, b: kernel(matrix, rows, weight, first[a:b], first[a + 1 : b + 1], out[a:b])
    )
    return out


def _segment_sums(values: np.ndarray, first: np.ndarray) -> np.ndarray:
    out = np.zeros(len(first) - 1)
    some = np.diff(first) > 0
    if some.any():
        out[some] = np.add.reduceat(values, first[:-1][some])
    return out


@cache
def _add_rows_kernel() -> Callable[..., None]:
    """Compiles the segment sum: out[u] += Σ weight[e] · matrix[rows[e]] over the events e of user u.

    Compiled, a row is read from the memory map once and no gathered copy is made: 2.7 times the rate of
    SciPy's CSR product over gathered blocks and 4.9 times that of `np.add.reduceat`, each at its best block
    size. Compiling takes half a second a process.
    """
    import numba  # librosa's dependency; imported here, for `import unisono.transforms.users.state` must stay light

    @numba.njit(nogil=True)
    def add_rows(matrix, rows, weight, first, ends, out):  # type: ignore[no-untyped-def]
        for u in range(len(first)):
            total = out[u]
            for e in range(first[u], ends[u]):
                vector, w = matrix[rows[e]], weight[e]  # named outside the loop, which then vectorises
                for d in range(len(vector)):
                    total[d] += w * vector[d]

    return add_rows


def merge_states(
    old: UserState, new: UserState, items: ItemMatrix, half_life_days: float | None, recent: int
) -> UserState:
    """Adds two states, of any users, in either order of time: the sums are those of all events at once."""
    users, place = rank_users(pa.concat_arrays([old.user_ids, new.user_ids]))
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
    return UserState(users, vectors, weights, magnitudes, events, newest, history)


def check_state(state: pa.Table, said: Mapping[bytes, bytes], dim: int, half_life_days: float | None) -> None:
    """Refuses a state that tonight's events cannot be added to.

    Sums of item vectors of an earlier space stay what they are where the new space was turned to face that one
    (`fit_run.comparable`): the turn is in the item vectors already.

    Args:
        state: with its file's schema metadata.
        said: the metadata of the items' files.
        dim: of the items' vectors.

    Raises:
        JobError: it is of a space that the items' cannot be compared with, of another length or half-life.
    """
    have = state.schema.metadata or {}
    old, new = (m.get(SPACE, b"").decode() for m in (have, said))
    why = ""
    if old != new and old not in json.loads(said.get(COMPARABLE, b"[]")):
        found = said.get(NOT_COMPARABLE, b"").decode()
        why = f"which does not face it ({found})" if found else "which does not face it"
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
    """The schema of state files."""
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
    """Turns microseconds since 1970 into times, null where not present."""
    mask = None if present is None else ~present
    return pa.array(microseconds, mask=mask).cast(pa.timestamp("us")).cast(TIME_TYPE)


def state_table(state: UserState, items: ItemMatrix) -> pa.Table:
    """Lays a state out as a table of `state_schema`."""
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
    """Gives the newest events that a state keeps, in the columns that `clean_interactions` gives."""
    lists = one_chunk(table["recent"])
    flat = lists.flatten()
    columns = {name: pc.struct_field(flat, name) for name in ("item_id", "time", "weight")}
    return pa.table({"user_id": one_chunk(table["user_id"]).take(pc.list_parent_indices(lists)), **columns})


def read_state(table: pa.Table, items: ItemMatrix) -> UserState:
    """Reads what `state_table` laid out; recent events of items that are gone are left out."""
    lists = one_chunk(table["recent"])
    flat = lists.flatten()
    first = np.concatenate([[0], np.cumsum(pc.list_value_length(lists).to_numpy())]).astype(np.int64)
    rows = items.lookup(pc.struct_field(flat, "item_id"))
    recent = History(
        one_chunk(table["user_id"]),
        first,
        pc.struct_field(flat, "time").cast(pa.int64()).to_numpy(),
        rows,
        pc.struct_field(flat, "weight").to_numpy(),
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
