"""Reads interaction logs: turns their rows into events. An event has a user, an item, a time and a weight."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.typehints import with_output_types
from pydantic import BeforeValidator

from unisono.transforms.base.errors import JobError, Reason
from unisono.transforms.base.progress import advance
from unisono.transforms.base.settings import settings
from unisono.transforms.base.tables import is_id_type, one_chunk, with_column
from unisono.transforms.privacy.forget import Forget, leave_out
from unisono.transforms.privacy.pseudonyms import Pseudonyms
from unisono.transforms.store import dead_letters
from unisono.transforms.store.parquet import (
    ParquetFile,
    ReadRowGroups,
    list_parquet,
    plain_type,
    require_column,
)

STAGE = "interactions"
TIME_TYPE = pa.timestamp("us", tz="UTC")

_UNIT_US = {"s": 1_000_000, "ms": 1_000, "us": 1}
# Allowed times: the years 1971 to 9999. If today's times are read in a wrong unit, they are out of this range: after
# 9999 if the unit is too large, and in 1970 if it is too small. Columns of timestamps are checked too, because the
# program that wrote them may have used a wrong unit.
_FIRST_US, _LAST_US = 31_536_000_000_000, 253_402_300_799_999_999


def _words(value: Any) -> Any:
    """Reads event types as strings; refuses event types that YAML has read as booleans."""
    if not isinstance(value, Mapping):
        return value
    for event in value:
        if isinstance(event, bool):
            raise ValueError(f"YAML reads {str(event).lower()} as a boolean; put the event type in quotes")
    return {str(event): weight for event, weight in value.items()}


@settings("interactions")
class InteractionsSpec:
    """The files of the interaction log, and what its columns and event types mean."""

    path: str
    """A Parquet file or a glob of Parquet files."""
    user: str
    """The column of user ids: strings or integers."""
    item: str
    """The column of item ids, of the same kind as the catalogue's."""
    time: str
    """The column of times: timestamps or dates (UTC where they have no zone), or integers with `time_unit`."""
    event: str | None = None
    """The column of event types: strings or integers. Without it every event weighs 1."""
    weights: Annotated[dict[str, float] | None, BeforeValidator(_words)] = None
    """The weight of each event type; it may be negative. An event of a type without a weight is a dead letter."""
    time_unit: Literal["s", "ms", "us"] | None = None
    """The unit of an integer time column, counted from 1970."""

    def __post_init__(self) -> None:
        if (self.event is None) != (not self.weights):
            given, missing = ("weights", "event") if self.event is None else ("event", "weights")
            raise ValueError(
                f"{missing}: missing, while interactions.{given} is given; "
                "give both `event` and `weights`, or neither (then every event weighs 1)"
            )

    @property
    def columns(self) -> list[str]:
        """Every column that is read, each once."""
        return list(dict.fromkeys(c for c in (self.user, self.item, self.time, self.event) if c))


@dataclass(frozen=True)
class Interactions:
    """Logs whose footers have been checked.

    Attributes:
        spec: where the logs are and what their columns hold.
        files: the logs' files, sorted by path.
        rows: the number of rows of all files.
        user_type: the type of the user ids after reading: string if pseudonyms replace them.
        item_type: the type of the item ids.
        pseudonyms: what replaces user ids while the logs are read; None means that they are kept.
        forget: the users whose rows are left out while the logs are read; None means that all rows are kept.
        latest_us: events after this time, in microseconds since 1970, are dead letters; None means that none are.
    """

    spec: InteractionsSpec
    files: tuple[ParquetFile, ...]
    rows: int
    user_type: pa.DataType
    item_type: pa.DataType
    pseudonyms: Pseudonyms | None = None
    forget: Forget | None = None
    latest_us: int | None = None

    @property
    def schema(self) -> pa.Schema:
        """The schema of the events that `ReadInteractions` outputs."""
        return event_schema(self.user_type, self.item_type)

    def hiding(self, pseudonyms: Pseudonyms | None, forget: Forget | None) -> Interactions:
        """Returns the same logs, read with these pseudonyms and without the users to forget."""
        user_type = pa.string() if pseudonyms else self.user_type
        return replace(self, user_type=user_type, pseudonyms=pseudonyms, forget=forget)

    def hide_users(self, table: pa.Table) -> pa.Table:
        """Replaces the user ids of raw rows by pseudonyms, if the logs are read with pseudonyms."""
        if self.pseudonyms is None:
            return table
        return with_column(table, self.spec.user, self.pseudonyms.of(table[self.spec.user]))


def event_schema(user_type: pa.DataType, item_type: pa.DataType) -> pa.Schema:
    """Returns the schema of events: user_id, item_id, time (UTC, microseconds), weight (float64)."""
    fields = [("user_id", user_type), ("item_id", item_type), ("time", TIME_TYPE), ("weight", pa.float64())]
    return pa.schema(fields)


# --- the job -----------------------------------------------------------------------------------------------


def check_interactions(spec: InteractionsSpec, latest_us: int | None = None) -> Interactions:
    """Checks the footers of the logs before any work starts.

    Args:
        spec: where the logs are and what their columns hold.
        latest_us: see `Interactions`.

    Raises:
        JobError: no file matches, a file is not Parquet, a column is missing or has a wrong type, or there is no row.
    """
    files = list_parquet(spec.path, "interactions.path")
    rows = sum(f.num_rows for f in files)
    if rows == 0:
        raise JobError(
            f"interactions.path: {spec.path} matches {len(files)} files without a single row; "
            "give the logs' files"
        )
    user_type = require_column(files, spec.user, "interactions.user", is_id_type, "strings or integers")
    item_type = require_column(files, spec.item, "interactions.item", is_id_type, "strings or integers")
    if spec.event is not None:
        require_column(files, spec.event, "interactions.event", is_id_type, "strings or integers")
    if spec.time_unit is None:
        require_column(
            files,
            spec.time,
            "interactions.time",
            lambda t: pa.types.is_timestamp(t) or pa.types.is_date(t),
            "timestamps or dates; also integers since 1970, if interactions.time_unit is s, ms or us",
        )
    else:
        require_column(
            files,
            spec.time,
            "interactions.time",
            pa.types.is_integer,
            f"integers, because interactions.time_unit is {spec.time_unit}; leave it out for timestamps or dates",
        )
    return Interactions(spec, tuple(files), rows, user_type, item_type, latest_us=latest_us)


# --- one table ---------------------------------------------------------------------------------------------


def clean_interactions(
    table: pa.Table, spec: InteractionsSpec, latest_us: int | None = None
) -> tuple[pa.Table, pa.Table]:
    """Turns raw rows of a log into events, and rows that cannot be used into dead letters.

    Args:
        table: the columns `spec.columns`, as in the logs.
        spec: what the columns hold.
        latest_us: see `Interactions`.

    Returns:
        events: user_id, item_id, time timestamp[us, UTC], weight float64, in the order of the log.
        dead letters: a letter for each row that cannot be used, with its first fault in the order user, item, time,
            event.
    """
    users, items = _plain(table[spec.user]), _plain(table[spec.item])
    time_us, in_range = times_us(_plain(table[spec.time]), spec.time_unit)
    weight, known = _weigh(table, spec)
    events = pa.table(
        [users, items, pa.array(time_us).cast(pa.timestamp("us")).cast(TIME_TYPE), pa.array(weight)],
        schema=event_schema(users.type, items.type),
    )
    checks = [
        (Reason.NULL_USER, users.is_valid().to_numpy()),
        (Reason.NULL_ITEM, items.is_valid().to_numpy()),
        (Reason.NULL_TIME, table[spec.time].is_valid().to_numpy()),
        (Reason.TIME_OUT_OF_RANGE, in_range),
        (Reason.TIME_IN_FUTURE, time_us <= (_LAST_US if latest_us is None else latest_us)),
        (Reason.UNKNOWN_EVENT, known),
    ]
    good = np.logical_and.reduce([ok for _, ok in checks])
    if good.all():
        return events, dead_letters.SCHEMA.empty_table()
    fault = np.select([~ok for _, ok in checks], np.arange(len(checks)), -1)
    return events.filter(pa.array(good)), _letters(table, spec, fault, [reason for reason, _ in checks])


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(plain_type(column.type))


def times_us(column: pa.ChunkedArray, unit: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Converts times to microseconds since 1970.

    Args:
        column: timestamps, dates or integers, [n].
        unit: the unit of integers.

    Returns:
        int64 [n], 0 where the time is null or out of range; bool [n], False where the time is out of range.
    """
    if pa.types.is_date32(column.type):
        column, factor = column.cast(pa.int32()), 86_400_000_000
    elif pa.types.is_date64(column.type):
        column, factor = column.cast(pa.int64()), 1_000
    elif pa.types.is_timestamp(column.type):
        factor = {"s": 1_000_000, "ms": 1_000, "us": 1, "ns": 0}[column.type.unit]
        column = column.cast(pa.int64())  # Arrow stores a time with a zone as the same instant in UTC.
    else:
        factor = _UNIT_US[unit or "us"]
        if column.type == pa.uint64():  # A number that int64 cannot hold is out of range in every unit.
            column = pc.min_element_wise(column, pa.scalar(2**63 - 1, pa.uint64()), skip_nulls=False)
    raw = column.cast(pa.int64()).fill_null(0).to_numpy()
    present = column.is_valid().to_numpy()
    if factor == 0:
        raw, factor = raw // 1_000, 1  # In nanoseconds, int64 ends in 2262; the upper limit does not fit.
    in_range = (raw >= -(-_FIRST_US // factor)) & (raw <= _LAST_US // factor)
    return np.where(in_range, raw, 0) * factor, in_range | ~present


def _weigh(table: pa.Table, spec: InteractionsSpec) -> tuple[np.ndarray, np.ndarray]:
    """Returns the weight of each event, float64 [n], and whether the event's type has a weight, bool [n]."""
    if spec.event is None:
        return np.ones(table.num_rows), np.ones(table.num_rows, bool)
    weights = spec.weights or {}
    names = pa.array(list(weights), pa.string())
    place = pc.index_in(_plain(table[spec.event]).cast(pa.string()), value_set=names)
    known = place.is_valid().to_numpy()
    values = np.array(list(weights.values()), np.float64)
    return values[place.fill_null(0).to_numpy()], known


def _letters(table: pa.Table, spec: InteractionsSpec, fault: np.ndarray, reasons: list[Reason]) -> pa.Table:
    """Makes dead letters of rows.

    Args:
        table: raw rows, [n].
        spec: what the columns hold.
        fault: int64 [n], the index of the row's reason; −1 means that the row has no fault.
        reasons: the reasons.
    """
    bad = table.select(spec.columns).filter(pa.array(fault >= 0))

    def text(column: str | None) -> pa.ChunkedArray:
        if column is None:
            return pa.chunked_array([pa.repeat(pa.scalar("(no event column)"), bad.num_rows)])
        values = _plain(bad[column])
        try:
            return values.cast(pa.string()).fill_null("null")
        except pa.ArrowInvalid:  # a timestamp that is in no calendar
            return values.cast(pa.int64()).cast(pa.string()).fill_null("null")

    fields = [("user=", spec.user), (" time=", spec.time), (" event=", spec.event)]
    detail = pc.binary_join_element_wise(*(x for name, col in fields for x in (name, text(col))), "")
    n = bad.num_rows
    columns = {
        "item_id": _plain(bad[spec.item]).cast(pa.string()),
        "modality": pa.nulls(n, pa.string()),
        "stage": pa.repeat(pa.scalar(STAGE), n),
        "reason": pa.array([str(r) for r in reasons]).take(pa.array(fault[fault >= 0])),
        "detail": pc.utf8_slice_codeunits(detail, 0, dead_letters.MAX_DETAIL),
        "uri": pa.nulls(n, pa.string()),
    }
    return pa.table(columns, schema=dead_letters.SCHEMA)


@dataclass(frozen=True, eq=False)
class CleanRows:
    """What raw rows of a log became.

    Attributes:
        events: see `clean_interactions`; the schema is `Interactions.schema`.
        dead: the dead letters.
        kept: the raw rows that remain after the rows of forgotten users are left out, with pseudonyms as user ids.
        found: user_id, the forgotten users whose rows were left out.
    """

    events: pa.Table
    dead: pa.Table
    kept: pa.Table
    found: pa.Table


def clean_rows(
    raw: pa.Table, at: Interactions, gone: pa.Array | None, users: pa.Array | None = None
) -> CleanRows:
    """Replaces user ids by pseudonyms, leaves out forgotten users, and turns the remaining rows into events.

    Pseudonyms come first, because dead letters contain the user id.

    Args:
        raw: the columns `at.spec.columns`, as in the logs.
        at: the logs.
        gone: the ids of the forgotten users, as `Forget.load` returns them. None means nobody.
        users: ids of type `at.user_type`; only rows of these users are used. None means all rows.
    """
    kept = at.hide_users(raw)
    if users is not None:
        kept = kept.filter(pc.is_in(_plain(kept[at.spec.user]).cast(at.user_type), value_set=users))
    found = pa.table({"user_id": pa.array([], at.user_type)})
    if gone is not None:
        kept, found = leave_out(kept, at.spec.user, gone)
    events, dead = clean_interactions(kept, at.spec, at.latest_us)
    return CleanRows(events.cast(at.schema), dead, kept, found)  # the ids of two files may differ in width


# --- Beam --------------------------------------------------------------------------------------------------


class ReadInteractions(beam.PTransform):
    """Reads the columns of logs that are needed, row group by row group.

    Returns:
        A dict of PCollections:
            `events`: pa.Table of events, see `clean_interactions`.
            `dead`: pa.Table of dead letters.
            `rows`: int, the number of rows read.
            `users_of_dead`: pa.Table of user_id, the users who have dead letters and no event in the same row group.
            `found`: pa.Table of user_id, the users whose rows were left out, see `unisono.transforms.privacy.forget`.
    """

    def __init__(self, interactions: Interactions) -> None:
        super().__init__()
        self._interactions = interactions

    def expand(self, root: beam.pvalue.PBegin) -> dict[str, beam.PCollection]:
        others = ("dead", "rows", "users_of_dead", "found")
        out = (
            root
            | "Files" >> beam.Create(list(self._interactions.files))
            | "RowGroups" >> ReadRowGroups(self._interactions.spec.columns)
            | "Clean" >> beam.ParDo(_CleanFn(self._interactions)).with_outputs(*others, main="events")
        )
        return {"events": out.events} | {name: out[name] for name in others}


# Beam chooses the coder by these types. Without them it would pickle, and a pickled slice holds its whole table.
@with_output_types(pa.Table, dead=pa.Table, rows=int, users_of_dead=pa.Table, found=pa.Table)
class _CleanFn(beam.DoFn):
    def __init__(self, interactions: Interactions) -> None:
        self._interactions = interactions

    def setup(self) -> None:
        forget = self._interactions.forget
        self._gone = forget.load() if forget else None

    def process(self, element: tuple[int, int, pa.Table]) -> Iterable[object]:
        _, _, raw = element
        at = self._interactions
        rows = clean_rows(raw, at, self._gone)
        if rows.found.num_rows:
            yield beam.pvalue.TaggedOutput("found", rows.found)
        yield beam.pvalue.TaggedOutput("rows", raw.num_rows)
        if rows.dead.num_rows:
            yield beam.pvalue.TaggedOutput("dead", rows.dead)
            yield beam.pvalue.TaggedOutput("users_of_dead", _users_without(rows.kept, rows.events, at))
        advance("interactions", done=raw.num_rows, dead=rows.dead.num_rows)
        yield rows.events


def _users_without(table: pa.Table, events: pa.Table, at: Interactions) -> pa.Table:
    """Returns the users of raw rows who have no event among `events`: user_id, each user once."""
    everybody = pc.unique(one_chunk(_plain(table[at.spec.user])).drop_null().cast(at.user_type))
    known = pc.unique(one_chunk(events["user_id"]).cast(at.user_type))
    return pa.table({"user_id": everybody.filter(pc.invert(pc.is_in(everybody, value_set=known)))})
