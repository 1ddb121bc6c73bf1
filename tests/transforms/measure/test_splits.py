"""Splits of a log, compared with pandas and with loops over users: no training event is held out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from unisono.transforms.base.errors import JobError
from unisono.transforms.measure.splits import SPLITS, SplitSpec, split_events
from unisono.transforms.read.interactions import event_schema


def log(seed: int = 0, n: int = 3000, times: int = 500) -> pa.Table:
    """Draws events with repeats, equal times, negative weights, and users with a single event."""
    rng = np.random.default_rng(seed)
    users = [f"u{i}" for i in rng.zipf(1.4, n).clip(1, 200)]
    items = rng.integers(0, 80, n)
    weight = rng.choice([-1.0, 0.5, 1.0, 2.0], n)
    time = pa.array(rng.integers(0, times, n) * 1_000_000).cast(pa.timestamp("us", tz="UTC"))
    return pa.table([users, items, time, weight], schema=event_schema(pa.string(), pa.int64()))


def frame(table: pa.Table) -> pd.DataFrame:
    return table.to_pandas()


def pairs(table: pa.Table) -> set[tuple[str, int]]:
    return set(zip(table["user_id"].to_pylist(), table["item_id"].to_pylist(), strict=True))


@pytest.mark.parametrize("method", SPLITS)
def test_the_order_of_the_rows_does_not_matter_and_no_pair_is_on_both_sides(method: str) -> None:
    events = log()
    one = split_events(events, SplitSpec(method))
    mixed = events.take(pa.array(np.random.default_rng(9).permutation(events.num_rows)))
    other = split_events(mixed, SplitSpec(method))
    assert one.held.equals(other.held)
    key = ["user_id", "item_id", "time", "weight"]
    pd.testing.assert_frame_equal(
        frame(one.train).sort_values(key, ignore_index=True), frame(other.train).sort_values(key, ignore_index=True)
    )
    assert not pairs(one.held) & pairs(one.train)
    assert len(pairs(one.held)) == one.held.num_rows > 0
    weights = frame(events).groupby(["user_id", "item_id"]).weight.max()
    assert all(weights[p] > 0 for p in pairs(one.held))


def test_global_time_trains_on_nothing_at_or_after_the_cut() -> None:
    events = log(1)
    split = split_events(events, SplitSpec("global-time", 0.25))
    data = frame(events)
    assert split.cut is not None
    cut = pd.Timestamp(split.cut.as_py())
    assert frame(split.train).time.max() < cut
    assert len(split.train) == (data.time < cut).sum()
    later = (data.time >= cut).mean()
    one_moment = data.groupby("time").size().max() / len(data)
    assert 0.25 - one_moment <= later <= 0.25
    after = data[data.time >= cut].groupby(["user_id", "item_id"]).weight.sum()
    wanted = {p for p, w in after.items() if w > 0} - pairs(split.train)
    assert pairs(split.held) == wanted


def test_leave_last_out_equals_a_loop_over_users() -> None:
    events = log(2)
    split = split_events(events, SplitSpec("leave-last-out", relevant=0.7))
    train, held = [], set()
    for user, mine in frame(events).groupby("user_id"):
        rows = list(mine.sort_values(["time", "item_id", "weight"], kind="stable").itertuples())
        liked = [i for i, r in enumerate(rows) if r.weight > 0.7]
        end = liked[-1] if liked and liked[-1] > 0 else len(rows)
        train += rows[:end]
        if end < len(rows) and rows[end].item_id not in {r.item_id for r in rows[:end]}:
            held.add((user, rows[end].item_id))
    assert pairs(split.held) == held
    assert split.train.num_rows == len(train)
    assert sorted(frame(split.train).weight) == sorted(r.weight for r in train)


@pytest.mark.parametrize(
    ("method", "key"),
    [("random", lambda p: p), ("new-items", lambda p: p[1])],
    ids=["random", "new-items"],
)
def test_draws_hold_out_whole_keys_of_about_the_fraction(
    method: str, key: Callable[[tuple[str, int]], object]
) -> None:
    events = log(3, n=6000)
    every = {key(p) for p in pairs(events)}
    split = split_events(events, SplitSpec(method, 0.3))
    left = {key(p) for p in pairs(split.train)}
    assert not left & {key(p) for p in pairs(split.held)}
    spread = 4 * np.sqrt(0.3 * 0.7 / len(every))
    assert abs(1 - len(left) / len(every) - 0.3) < spread
    again = split_events(events, SplitSpec(method, 0.3, seed=1))
    assert not again.train.equals(split.train)


def test_impossible_splits_are_refused() -> None:
    with pytest.raises(JobError, match="--split: 'yesterday' is none of global-time"):
        SplitSpec("yesterday")
    with pytest.raises(JobError, match="--fraction"):
        SplitSpec(fraction=1.0)
    with pytest.raises(JobError, match="0 events to learn from"):
        split_events(log(4, times=1), SplitSpec())
