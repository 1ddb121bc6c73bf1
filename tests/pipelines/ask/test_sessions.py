"""Events as callers give them: every form becomes one table, and what cannot be used is one line."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from tests.small_shop import write_job
from unisono.pipelines.ask.sessions import SESSION, session_events
from unisono.pipelines.job.job import Job
from unisono.pipelines.job.load import load_job
from unisono.transforms.base.errors import JobError

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A job with integer times in seconds, and weights view 1, buy 5, dislike −3."""
    return load_job(str(write_job(tmp_path_factory.mktemp("job"), "s")))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A job without a log."""
    sections: dict[str, Any] = {"interactions": None, "behaviour": None}
    return load_job(str(write_job(tmp_path_factory.mktemp("job"), "s", **sections)))


def rows(table: pa.Table) -> list[tuple]:
    return [tuple(r.values()) for r in table.to_pylist()]


COLUMNS: dict[str, list] = {
    "user_id": ["b", "a", "b"],
    "item_id": ["i1", "i2", "i3"],
    "time": [NOON, NOON, NOON],
    "event": ["buy", "view", "dislike"],
}
ENCODED = pa.array(COLUMNS["item_id"]).dictionary_encode()
FORMS: dict[str, Callable[[], object]] = {
    "table": lambda: pa.table(COLUMNS),
    "record batch": lambda: pa.RecordBatch.from_pydict(COLUMNS),
    "columns": lambda: COLUMNS,
    "dictionaries": lambda: pa.table(COLUMNS).to_pylist(),
    "pandas": lambda: pd.DataFrame(COLUMNS, index=[7, 3, 9]),
    "pandas with a named index": lambda: pd.DataFrame(COLUMNS, index=["x", "y", "z"]),
    "polars": lambda: pl.DataFrame(COLUMNS),
    "dictionary-encoded": lambda: pa.table(COLUMNS | {"item_id": ENCODED}),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_events(job: Job, form: str) -> None:
    events = session_events(FORMS[form](), job, pa.string())
    expected = [("b", "i1", NOON, 5.0), ("a", "i2", NOON, 1.0), ("b", "i3", NOON, -3.0)]
    assert rows(events) == expected
    assert events.schema.field("time").type == pa.timestamp("us", tz="UTC")


def test_without_user_ids_there_is_one_session_in_the_given_order(job: Job) -> None:
    events = session_events([{"item_id": "i9"}, {"item_id": "i1"}, {"item_id": "i9"}], job, pa.string())
    assert events["user_id"].to_pylist() == [SESSION] * 3
    assert events["item_id"].to_pylist() == ["i9", "i1", "i9"]
    assert events["weight"].to_pylist() == [1.0] * 3
    micros = events["time"].cast(pa.int64()).to_pylist()
    assert [t - micros[0] for t in micros] == [0, 1, 2]


@pytest.mark.parametrize(
    "times",
    [[NOON], [NOON.replace(tzinfo=None)], [int(NOON.timestamp())], pa.array([NOON], pa.timestamp("ns", tz="CET"))],
    ids=["UTC", "no zone", "seconds", "another zone"],
)
def test_times_of_any_kind_are_the_same_moment(job: Job, times: object) -> None:
    events = session_events({"item_id": ["i1"], "time": times}, job, pa.string())
    assert events["time"].to_pylist() == [NOON]


def test_a_date_is_its_first_moment(job: Job) -> None:
    events = session_events({"item_id": ["i1"], "time": [date(2026, 3, 1)]}, job, pa.string())
    assert events["time"].to_pylist() == [NOON.replace(hour=0)]


def test_weights_of_the_caller(plain: Job) -> None:
    events = session_events({"item_id": ["i1", "i2"], "weight": [2, -0.5]}, plain, pa.string())
    assert events["weight"].to_pylist() == [2.0, -0.5]


def test_no_events_are_one_session_without_items_or_no_session(job: Job) -> None:
    one = session_events([], job, pa.int64())
    assert one["user_id"].to_pylist() == [SESSION]
    assert one["item_id"].to_pylist() == [None]
    nobody = pa.table({"user_id": pa.array([], pa.string()), "item_id": pa.array([], pa.string())})
    assert session_events(nobody, job, pa.string()).num_rows == 0


BAD: dict[str, tuple[object, str]] = {
    "unknown column": ([{"item_id": "a", "wieght": 2}], "events: unknown column 'wieght'; allowed: user_id, item_id"),
    "no item column": ([{"user_id": "u"}], "events: no column 'item_id'; it has user_id"),
    "no dictionaries": (["a", "b"], "events: a list must hold dictionaries"),
    "no table": (7, "events: cannot make a table of int"),
    "mixed types": ({"item_id": ["a", 1]}, "events: cannot make a table of dict"),
    "item ids of another kind": ({"item_id": [1]}, "events.item_id: int64, the ids of the items are string"),
    "item ids of no kind": ({"item_id": [1.5]}, "events.item_id: double; give strings or integers"),
    "user ids of no kind": ({"item_id": ["a"], "user_id": [True]}, "events.user_id: bool; give strings or integers"),
    "missing item": ({"item_id": ["a", None]}, r"events: 1 of 2 cannot be used; the first: null_item \(item_id=None"),
    "missing user": ({"item_id": ["a"], "user_id": pa.nulls(1, pa.string())}, "the first: null_user"),
    "missing time": ([{"item_id": "a", "time": NOON}, {"item_id": "b"}], "the first: null_time .item_id=b"),
    "words as time": ({"item_id": ["a"], "time": ["noon"]}, "events.time: string; give timestamps, dates"),
    "unknown event": ({"item_id": ["a"], "event": ["sneeze"]}, "the first: unknown_event .*event=sneeze"),
    "both weights": ({"item_id": ["a"], "event": ["buy"], "weight": [1]}, "events: has both `event` and `weight`"),
    "words as weight": ({"item_id": ["a"], "weight": ["much"]}, "events.weight: string; give numbers"),
    "no number": ({"item_id": ["a"], "weight": [float("nan")]}, "events.weight: a weight is missing or not finite"),
}


@pytest.mark.parametrize(("events", "said"), BAD.values(), ids=BAD)
def test_events_that_cannot_be_used_are_one_line(job: Job, events: object, said: str) -> None:
    with pytest.raises(JobError, match=said) as e:
        session_events(events, job, pa.string())
    assert "\n" not in str(e.value)


def test_what_only_a_job_with_a_log_knows(plain: Job) -> None:
    with pytest.raises(JobError, match=r"events.event: the job has no interactions.weights; give `weight`"):
        session_events({"item_id": ["a"], "event": ["buy"]}, plain, pa.string())
    with pytest.raises(JobError, match=r"events.time: integers, and the job has no interactions.time_unit"):
        session_events({"item_id": ["a"], "time": [5]}, plain, pa.string())
