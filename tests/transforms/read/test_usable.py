"""The events that count, compared with loops over single rows."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from unisono.transforms.read.interactions import event_schema
from unisono.transforms.read.usable import UsableSpec, usable_events

DAY = 86_400
MINUTE_US = 60_000_000


def log(seed: int = 0) -> pa.Table:
    """Users of a few events a day, and a robot."""
    rng = np.random.default_rng(seed)
    user = np.concatenate([rng.integers(0, 20, 600), np.full(300, 20)])
    second = np.concatenate([rng.integers(0, 30 * DAY, 600), rng.integers(5 * DAY, 6 * DAY, 300)])
    return pa.table(
        [
            [f"u{u}" for u in user], [f"i{i}" for i in rng.integers(0, 33, len(user))],
            pa.array(second * 1_000_000).cast(pa.timestamp("us", "UTC")), rng.choice([1.0, 2.0], len(user)),
        ],
        schema=event_schema(pa.string(), pa.string()),
    )  # fmt: skip


def rows(table: pa.Table) -> Counter[tuple]:
    return Counter(tuple(r.values()) for r in table.to_pylist())


def once_a_session(events: pa.Table, minutes: float) -> Counter[tuple]:
    """Leaves out repeats with a loop over each user's events from the newest to the oldest."""
    left: Counter[tuple] = Counter()
    every = sorted(events.to_pylist(), key=lambda r: (r["user_id"], r["time"]))
    later: dict[str, Any] | None = None
    told: set[tuple] = set()
    for r in reversed(every):
        known = later is not None and later["user_id"] == r["user_id"]
        if not known or later is None or (later["time"] - r["time"]).total_seconds() > minutes * 60:
            told = set()
        if (r["item_id"], r["weight"]) not in told:
            left[tuple(r.values())] += 1
        told.add((r["item_id"], r["weight"]))
        later = r
    return left


@pytest.mark.parametrize("drop", [False, True], ids=["cap", "drop"])
def test_robots(drop: bool) -> None:
    events = log()
    found = usable_events(events, UsableSpec(max_events_per_day=40, drop_robots=drop))
    mine = sorted((r for r in events.to_pylist() if r["user_id"] == "u20"), key=lambda r: r["time"])
    others = [r for r in events.to_pylist() if r["user_id"] != "u20"]
    assert rows(found.events) == Counter(tuple(r.values()) for r in others + ([] if drop else mine[-40:]))
    assert found.robots.to_pylist() == (["u20"] if drop else [])
    assert found.events.schema == events.schema


@pytest.mark.parametrize("minutes", [1.5, 30, 600])
def test_repeats_within_a_session_count_once(minutes: float) -> None:
    events = log()
    assert rows(usable_events(events, UsableSpec(session_minutes=minutes)).events) == once_a_session(events, minutes)


def test_the_end_of_a_session() -> None:
    minutes = {"a": [0, 10, 25, 90, 200, 205], "b": [0, 300]}
    user, at = zip(*((u, m * MINUTE_US) for u, all_of in minutes.items() for m in all_of), strict=True)
    time = pa.array(at).cast(pa.timestamp("us", "UTC"))
    n = len(user)
    table = pa.table([user, ["i1"] * n, time, [1.0] * n], schema=event_schema(pa.string(), pa.string()))
    found = usable_events(table, UsableSpec(session_minutes=30)).events
    left = [(r["user_id"], r["time"].hour * 60 + r["time"].minute) for r in found.to_pylist()]
    assert left == [("a", 25), ("a", 90), ("a", 205), ("b", 0), ("b", 300)]


@pytest.mark.parametrize("drop", [False, True], ids=["cap", "drop"])
@pytest.mark.parametrize("minutes", [None, 30.0])
def test_order_and_other_users_change_nothing(drop: bool, minutes: float | None) -> None:
    events = log()
    # Whole hours give many events one time, so that the order of equal times decides which of them the cap keeps.
    hours = pa.array(events["time"].cast(pa.int64()).to_numpy() // (60 * MINUTE_US) * 60 * MINUTE_US)
    events = events.set_column(2, "time", hours.cast(pa.timestamp("us", "UTC")))
    spec = UsableSpec(minutes, 40, drop)
    found = usable_events(events, spec)
    mixed = events.take(np.random.default_rng(1).permutation(events.num_rows))
    assert rows(usable_events(mixed, spec).events) == rows(found.events)
    parts = [events.filter(pa.array([u in some for u in events["user_id"].to_pylist()]))
             for some in ({"u1", "u20"}, {f"u{k}" for k in range(20)} - {"u1"})]  # fmt: skip
    apart = [usable_events(p, spec) for p in parts]
    assert rows(pa.concat_tables([a.events for a in apart])) == rows(found.events)
    assert usable_events(found.events, spec).events.equals(found.events)


def test_nothing_to_leave_out_copies_nothing() -> None:
    events = log()
    for spec in (UsableSpec(), UsableSpec(max_events_per_day=5000), UsableSpec(max_events_per_day=300)):
        assert usable_events(events, spec).events is events
    assert usable_events(events.slice(0, 0), UsableSpec(30, 1, True)).events.num_rows == 0
    assert not UsableSpec(max_events_per_day=900).may_leave_out(900)
    assert UsableSpec(max_events_per_day=900).may_leave_out(901)
    assert UsableSpec(session_minutes=1).may_leave_out(2)
