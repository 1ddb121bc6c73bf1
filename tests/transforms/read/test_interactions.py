"""Logs become events: compared with a loop over the rows in plain Python."""

from __future__ import annotations

import datetime as dt

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unisono.transforms.base.errors import JobError, Reason
from unisono.transforms.read.interactions import (
    TIME_TYPE,
    InteractionsSpec,
    check_interactions,
    clean_interactions,
)
from unisono.transforms.store import dead_letters

UTC = dt.UTC
NOON = dt.datetime(2026, 3, 1, 12, tzinfo=UTC)
WEIGHTS = (("view", 1.0), ("buy", 5.0), ("dislike", -3.0))
SPEC = InteractionsSpec("logs/*.parquet", "user", "item", "ts", "event", WEIGHTS)


def log(**columns: object) -> pa.Table:
    base = {
        "user": ["u1", "u2", "u1"],
        "item": ["a", "b", "c"],
        "ts": pa.array([NOON] * 3, TIME_TYPE),
        "event": ["view", "buy", "dislike"],
    }
    return pa.table(base | columns)


# --- the job ---------------------------------------------------------------------------------------------


def write(tmp_path, *tables: pa.Table, row_group_size: int | None = None) -> InteractionsSpec:
    for i, table in enumerate(tables):
        pq.write_table(table, tmp_path / f"log-{i}.parquet", row_group_size=row_group_size)
    return InteractionsSpec(str(tmp_path / "*.parquet"), "user", "item", "ts", "event", WEIGHTS)


def with_spec(spec: InteractionsSpec, **changes: object) -> InteractionsSpec:
    return InteractionsSpec(**(spec.__dict__ | changes))


def case(name: str, columns: dict, changes: dict, *says: str):
    return pytest.param(columns, changes, says, id=name)


@pytest.mark.parametrize(
    ("columns", "changes", "says"),
    [
        case("missing column", {}, {"user": "uid"}, "interactions.user", "'uid'", "item (string)"),
        case("float ids", {"item": [1.0, 2.0, 3.0]}, {}, "interactions.item", "double", "strings or"),
        case("integer time", {"ts": [1, 2, 3]}, {}, "interactions.time", "int64", "time_unit"),
        case("string time", {"ts": ["2026"] * 3}, {}, "interactions.time", "string", "timestamps"),
        case("unit in vain", {}, {"time_unit": "s"}, "interactions.time", "timestamp", "integers"),
        case("unknown unit", {}, {"time_unit": "min"}, "interactions.time_unit", "'min'", "s, ms"),
        case("event without weights", {}, {"weights": None}, "interactions.weights", "missing"),
        case("weights without event", {}, {"event": None}, "interactions.event", "missing"),
        case("weight nan", {}, {"weights": (("view", float("nan")),)}, "interactions.weights.view"),
        case("no file", {}, {"path": "/nowhere/*"}, "interactions.path", "/nowhere/*"),
        case("directory", {}, {"path": "/tmp"}, "interactions.path", "/tmp", "directory"),
    ],
)
def test_a_bad_job_is_refused_in_one_line(tmp_path, columns, changes, says):
    spec = with_spec(write(tmp_path, log(**columns)), **changes)
    with pytest.raises(JobError) as e:
        check_interactions(spec)
    assert "\n" not in str(e.value)
    for part in says:
        assert part in str(e.value)


def test_no_rows_bad_files_and_disagreeing_files_are_refused(tmp_path):
    spec = write(tmp_path, log().slice(0, 0))
    with pytest.raises(JobError, match="without a single row"):
        check_interactions(spec)
    pq.write_table(log(user=[1, 2, 3]), tmp_path / "log-1.parquet")
    with pytest.raises(JobError, match=r"string in .*log-0.*int64 in .*log-1"):
        check_interactions(spec)
    (tmp_path / "log-1.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(JobError, match=r"log-1\.parquet is not a readable Parquet"):
        check_interactions(spec)


def test_files_may_differ_in_width_encoding_and_missing_values(tmp_path):
    spec = write(
        tmp_path,
        log(user=pa.array([1, 2, 3], pa.int32()), event=pa.array(["view"] * 3).dictionary_encode()),
        log(user=pa.array([1, 2, 3], pa.int64()), event=pa.nulls(3)),
    )
    looked = check_interactions(spec)
    assert (looked.rows, looked.user_type, looked.item_type) == (6, pa.int64(), pa.string())


# --- one table -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("times", "unit", "expected"),
    [
        pytest.param(pa.array([NOON, NOON], pa.timestamp("s", "UTC")), None, NOON, id="seconds"),
        pytest.param(pa.array([NOON, NOON], pa.timestamp("ns", "UTC")), None, NOON, id="nanoseconds"),
        pytest.param(pa.array([NOON, NOON], pa.timestamp("ms", "Asia/Tokyo")), None, NOON, id="zone"),
        pytest.param(pa.array([NOON.replace(tzinfo=None)] * 2), None, NOON, id="no zone is UTC"),
        pytest.param(pa.array([NOON.date()] * 2), None, NOON.replace(hour=0), id="date32"),
        pytest.param(pa.array([NOON.date()] * 2, pa.date64()), None, NOON.replace(hour=0), id="date64"),
        pytest.param(pa.array([int(NOON.timestamp())] * 2), "s", NOON, id="integers of seconds"),
        pytest.param(pa.array([int(NOON.timestamp() * 1e3)] * 2, pa.uint64()), "ms", NOON, id="unsigned"),
        pytest.param(pa.array([int(NOON.timestamp() * 1e6)] * 2), "us", NOON, id="integers of us"),
    ],
)
def test_times_of_every_type_become_utc_microseconds(times, unit, expected):
    spec = with_spec(SPEC, time_unit=unit)
    events, dead = clean_interactions(log().slice(0, 2).set_column(2, "ts", times), spec)
    assert dead.num_rows == 0
    assert events.schema.field("time").type == TIME_TYPE
    assert events["time"].to_pylist() == [expected] * 2


@pytest.mark.parametrize(
    ("times", "unit"),
    [
        pytest.param(pa.array([int(NOON.timestamp() * 1e3)] * 3), "s", id="milliseconds taken for seconds"),
        pytest.param(pa.array([int(NOON.timestamp())] * 3), "ms", id="seconds taken for milliseconds"),
        pytest.param(pa.array([int(NOON.timestamp() * 1e3)] * 3), "us", id="milliseconds taken for microseconds"),
        pytest.param(pa.array([2**64 - 1] * 3, pa.uint64()), "us", id="beyond int64"),
        pytest.param(pa.array([2**62] * 3, pa.timestamp("s")), None, id="timestamp beyond any calendar"),
    ],
)
def test_times_out_of_range_are_dead_letters(times, unit):
    events, dead = clean_interactions(log(ts=times), with_spec(SPEC, time_unit=unit))
    assert events.num_rows == 0
    assert dead["reason"].to_pylist() == [Reason.TIME_OUT_OF_RANGE] * 3
    assert "user=u1 time=" in dead["detail"][0].as_py()


def test_events_of_the_future_are_dead_letters():
    table = log()
    latest = max(t for t in table["ts"].cast(pa.timestamp("us")).cast(pa.int64()).to_pylist() if t is not None)
    spec = with_spec(SPEC, latest_us=latest - 1)
    before, _ = clean_interactions(table, SPEC)
    events, dead = clean_interactions(table, spec)
    late = sum(t == latest for t in before["time"].cast(pa.int64()).to_pylist())
    assert late > 0
    assert dead["reason"].to_pylist().count(Reason.TIME_IN_FUTURE) == late
    assert events.num_rows == before.num_rows - late


ROW = st.tuples(
    st.sampled_from([None, "u1", "u2", ""]),
    st.sampled_from([None, "a", "b"]),
    st.sampled_from([None, NOON, NOON + dt.timedelta(days=1)]),
    st.sampled_from([None, "view", "buy", "dislike", "share", "VIEW"]),
)


@given(st.lists(ROW, max_size=30), st.booleans(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_every_row_is_an_event_or_one_dead_letter(rows, encoded, integer_ids):
    def ids(values: list) -> pa.Array:
        if integer_ids:
            return pa.array([None if v is None else len(v) + sum(map(ord, v)) for v in values], pa.int32())
        column = pa.array(values, pa.string())
        return column.dictionary_encode() if encoded else column

    columns = list(zip(*rows, strict=True)) or [(), (), (), ()]
    event = pa.array(columns[3], pa.string())
    users, items = ids(list(columns[0])), ids(list(columns[1]))
    table = pa.table({
        "user": users, "item": items, "ts": pa.array(columns[2], TIME_TYPE),
        "event": event.dictionary_encode() if encoded else event,
    })
    events, dead = clean_interactions(table, SPEC)

    good, bad = [], []
    for user, item, (_, _, time, name) in zip(users.to_pylist(), items.to_pylist(), rows, strict=True):
        checks = {
            Reason.NULL_USER: user is None,
            Reason.NULL_ITEM: item is None,
            Reason.NULL_TIME: time is None,
            Reason.UNKNOWN_EVENT: name not in dict(WEIGHTS),
        }
        reason = next((r for r, wrong in checks.items() if wrong), None)
        if reason is None:
            good.append({"user_id": user, "item_id": item, "time": time, "weight": dict(WEIGHTS)[name]})
        else:
            bad.append((None if item is None else str(item), "interactions", reason.value, user, name))
    assert events.to_pylist() == good
    assert dead.schema == dead_letters.SCHEMA
    assert [(d["item_id"], d["stage"], d["reason"]) for d in dead.to_pylist()] == [b[:3] for b in bad]
    for letter, (_, _, _, user, name) in zip(dead["detail"].to_pylist(), bad, strict=True):
        assert letter.startswith(f"user={'null' if user is None else user} time=")
        assert letter.endswith(f"event={'null' if name is None else name}")


def test_without_an_event_column_every_event_weighs_one():
    spec = with_spec(SPEC, event=None, weights=None)
    events, dead = clean_interactions(log(user=["u1", None, "u3"]).select(["user", "item", "ts"]), spec)
    assert events["weight"].to_pylist() == [1.0, 1.0]
    assert dead["reason"].to_pylist() == ["null_user"]


def test_event_types_may_be_integers():
    spec = with_spec(SPEC, weights=(("1", 1.0), ("2", -2.5)))
    events, dead = clean_interactions(log(event=[2, 7, 1]), spec)
    assert events["weight"].to_pylist() == [-2.5, 1.0]
    assert dead["detail"].to_pylist()[0].endswith("event=7")
