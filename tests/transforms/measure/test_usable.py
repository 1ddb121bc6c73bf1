"""The events that count, compared with loops and with the profiles that count them too."""

from __future__ import annotations

from collections import Counter
from typing import Literal

import numpy as np
import pyarrow as pa
import pytest

from unisono.transforms.measure.usable import usable_events
from unisono.transforms.read.interactions import event_schema
from unisono.transforms.users.profiles import ProfileSpec

DAY = 86_400
ITEMS = pa.array([f"i{k}" for k in range(30)])


def log() -> pa.Table:
    """Users of a few events a day, a robot, repeats, and items that are not in the catalogue."""
    rng = np.random.default_rng(0)
    user = np.concatenate([rng.integers(0, 20, 600), np.full(300, 20)])
    item = rng.integers(0, 33, len(user))
    second = np.concatenate([rng.integers(0, 30 * DAY, 600), rng.integers(5 * DAY, 6 * DAY, 300)])
    return pa.table(
        [
            [f"u{u}" for u in user], [f"i{i}" for i in item],
            pa.array(second * 1_000_000).cast(pa.timestamp("us", "UTC")), rng.choice([1.0, 2.0], len(user)),
        ],
        schema=event_schema(pa.string(), pa.string()),
    )  # fmt: skip


@pytest.mark.parametrize("robots", ["cap", "drop"])
def test_robots(robots: Literal["cap", "drop"]) -> None:
    events = log()
    found = usable_events(events, ITEMS, ProfileSpec(max_events_per_day=40, robots=robots))
    known = [r for r in events.to_pylist() if int(r["item_id"][1:]) < 30]
    mine = sorted((r for r in known if r["user_id"] == "u20"), key=lambda r: r["time"])
    left = [r for r in known if r["user_id"] != "u20"] + (mine[-40:] if robots == "cap" else [])

    def key(r: dict) -> tuple:
        return tuple(r.values())

    assert sorted(found.events.to_pylist(), key=key) == sorted(left, key=key)
    assert found.robots.to_pylist() == ([] if robots == "cap" else ["u20"])
    assert found.set_aside == len(known) - len(left)
    assert found.events.schema == events.schema


def test_repeats_within_a_session_count_once() -> None:
    minutes = {"a": [0, 10, 25, 90, 200, 205], "b": [0, 300]}
    rows = [(u, "i1", m * 60_000_000, 1.0) for u, all_of in minutes.items() for m in all_of]
    user, item, time, weight = zip(*rows, strict=True)
    at = pa.array(time).cast(pa.timestamp("us", "UTC"))
    table = pa.table([user, item, at, weight], schema=event_schema(pa.string(), pa.string()))
    found = usable_events(table, ITEMS, ProfileSpec(session_minutes=30))
    left = Counter((r["user_id"], r["time"].hour * 60 + r["time"].minute) for r in found.events.to_pylist())
    assert left == Counter([("a", 25), ("a", 90), ("a", 205), ("b", 0), ("b", 300)])
    assert found.set_aside == 3
