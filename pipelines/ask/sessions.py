"""Recent events as a caller gives them: checked, and laid out as the cleaned events of a log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from unisono.pipelines.job.job import Job
from unisono.transforms.base.errors import JobError
from unisono.transforms.base.tables import is_id_type, one_chunk, same_id_kind, with_column
from unisono.transforms.read.interactions import TIME_TYPE, InteractionsSpec, clean_interactions
from unisono.transforms.store.parquet import plain_type

SESSION = "session"  # the user_id of events that have none
COLUMNS = ("user_id", "item_id", "time", "event", "weight")
_START_US = 946_684_800_000_000  # 2000-01-01: any moment will do, because decay measures from the newest event


def session_events(events: object, job: Job, item_type: pa.DataType) -> pa.Table:
    """Checks events and lays them out as `clean_interactions` does.

    Args:
        events: An Arrow table, a list of dictionaries, a dictionary of columns, or a data frame, with `item_id` and
            any of `user_id`, `time`, `event`, `weight` (see `unisono.Run.recommend`).
        job: Gives the weights of event types and the unit of integer times.
        item_type: The type of the ids of the run's items.

    Returns:
        user_id, item_id, time timestamp[us, UTC], weight float64, in the given order. Without a column `user_id`
        there is one session, `SESSION`; if it has no event, one row without an item stands for it.

    Raises:
        JobError: A column is unknown, missing or of a wrong type, or an event cannot be used.
    """
    table = _as_table(events)
    if unknown := [c for c in table.column_names if c not in COLUMNS]:
        raise JobError(f"events: unknown column {unknown[0]!r}; allowed: {', '.join(COLUMNS)}")
    if "user_id" not in table.column_names:
        if not table.num_rows:
            return _empty_session(item_type)
        table = table.append_column("user_id", pa.repeat(pa.scalar(SESSION), table.num_rows))
    if "item_id" not in table.column_names:
        raise JobError(f"events: no column 'item_id'; it has {', '.join(table.column_names)}")
    _check_ids(table, item_type)
    weights = _given_weights(table)
    table = _with_times(table)
    spec = _spec(table, job)
    cleaned, dead = clean_interactions(table, spec)
    if dead.num_rows:
        first = dead.slice(0, 1).to_pylist()[0]
        raise JobError(
            f"events: {dead.num_rows} of {table.num_rows} cannot be used; the first: {first['reason']} "
            f"(item_id={first['item_id']} {first['detail']}); mend them or leave them out"
        )
    return cleaned if weights is None else with_column(cleaned, "weight", weights)


def _as_table(events: Any) -> pa.Table:
    if isinstance(events, pa.Table):
        return events
    if isinstance(events, Sequence) and not isinstance(events, str):
        if not all(isinstance(e, Mapping) for e in events):
            raise JobError("events: a list must hold dictionaries such as {'item_id': …}; got something else in it")
        names = list(dict.fromkeys(name for e in events for name in e))
        events = {name: [e.get(name) for e in events] for name in names}
    try:
        table = pa.table(events)
    except (TypeError, ValueError, pa.ArrowException) as e:
        raise JobError(
            f"events: cannot make a table of {type(events).__name__} ({' '.join(str(e).split())}); give an Arrow "
            "table, a list of dictionaries, a dictionary of columns, or a data frame"
        ) from e
    # pandas stores an index that is more than row numbers as a column.
    return table.select([c for c in table.column_names if not c.startswith("__index_level_")])


def _empty_session(item_type: pa.DataType) -> pa.Table:
    nothing = {"item_id": pa.nulls(1, item_type), "time": pa.array([_START_US]).cast(TIME_TYPE), "weight": [1.0]}
    return pa.table({"user_id": [SESSION], **nothing})


def _check_ids(table: pa.Table, item_type: pa.DataType) -> None:
    for name in ("user_id", "item_id"):
        dtype = plain_type(table.schema.field(name).type)
        if not is_id_type(dtype) and table.num_rows:
            raise JobError(f"events.{name}: {dtype}; give strings or integers")
    dtype = plain_type(table.schema.field("item_id").type)
    if table.num_rows and not same_id_kind(dtype, item_type):
        raise JobError(f"events.item_id: {dtype}, the ids of the items are {item_type}; give those")


def _given_weights(table: pa.Table) -> pa.Array | None:
    if "weight" not in table.column_names:
        return None
    if "event" in table.column_names:
        raise JobError("events: has both `event` and `weight`; give one of them")
    try:
        weights = one_chunk(table["weight"].cast(pa.float64()))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise JobError(f"events.weight: {table.schema.field('weight').type}; give numbers") from None
    if weights.null_count or not np.isfinite(weights.to_numpy()).all():
        raise JobError("events.weight: a weight is missing or not finite; give a number for each event")
    return weights


def _with_times(table: pa.Table) -> pa.Table:
    """Adds times one microsecond apart, in the order of the rows, to events that have none."""
    if "time" not in table.column_names:
        times = pa.array(_START_US + np.arange(table.num_rows)).cast(pa.timestamp("us"))
        return table.append_column("time", times)
    dtype = table.schema.field("time").type
    if not (pa.types.is_timestamp(dtype) or pa.types.is_date(dtype) or pa.types.is_integer(dtype)):
        raise JobError(f"events.time: {dtype}; give timestamps, dates, or integers in the job's interactions.time_unit")
    return table


def _spec(table: pa.Table, job: Job) -> InteractionsSpec:
    """Describes the columns of `table` as `clean_interactions` needs them."""
    at, unit, event, weights = job.interactions, None, None, None
    if pa.types.is_integer(table.schema.field("time").type):
        unit = at.time_unit if at else None
        if unit is None:
            raise JobError("events.time: integers, and the job has no interactions.time_unit; give timestamps or dates")
    if "event" in table.column_names:
        if at is None or at.weights is None:
            raise JobError("events.event: the job has no interactions.weights; give `weight`, or neither")
        event, weights = "event", at.weights
    return InteractionsSpec(
        path="", user="user_id", item="item_id", time="time", event=event, weights=weights, time_unit=unit
    )
