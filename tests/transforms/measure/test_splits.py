"""Splits of a log, compared with pandas and with loops over users: no training event is held out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from unisono.transforms.base.errors import JobError
from unisono.transforms.measure.splits import SPLITS, SplitSpec, split_events, split_of_logs
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


@pytest.mark.parametrize("times", [10**9, 40], ids=["distinct", "ties"])
def test_leave_last_out_equals_a_loop_over_users(times: int) -> None:
    events = log(2, times=times)
    split = split_events(events, SplitSpec("leave-last-out", relevant=0.7))
    left, held = dict(list(frame(split.train).groupby("user_id"))), {}
    for user, item in pairs(split.held):
        assert user not in held
        held[user] = item
    for user, mine in frame(events).groupby("user_id"):
        liked = mine[mine.weight > 0.7]
        last = liked.time.max()
        seen = left[user]
        if not len(liked) or len(mine) == 1:
            assert len(seen) == len(mine)
            continue
        at_last = set(liked[liked.time == last].item_id)
        before, after = mine[mine.time < last], mine[mine.time > last]
        if not len(before) and len(seen) == len(mine):
            continue  # the held-out event would have been the user's first
        assert not (seen.time > last).any()
        assert len(seen) + len(after) < len(mine)  # at least the held-out event is gone
        assert (seen.time < last).sum() == len(before)
        if user in held:
            assert held[user] in at_last - set(seen.item_id)
        elif times > 1000:
            assert at_last <= set(before.item_id)


def test_names_of_items_do_not_decide_which_of_the_last_ones_is_held_out() -> None:
    rng = np.random.default_rng(5)
    users, each, items = 1500, 6, 60
    share = (w := 1 / np.arange(1, items + 1)) / w.sum()
    item = np.concatenate([rng.choice(items, each, replace=False, p=share) for _ in range(users)])
    user, weight = np.repeat(np.arange(users), each), np.ones(users * each)
    time = pa.array(np.tile([0, *[1] * (each - 1)], users)).cast(pa.timestamp("us", tz="UTC"))
    last = item.reshape(users, each)[:, 1:]  # one of the last five is held out
    spread = 4 * last.std() / np.sqrt(users)
    found = {}
    for name, rename in {"rising": lambda i: i, "falling": lambda i: items - 1 - i}.items():
        ids = np.array([f"i{rename(i):02d}" for i in range(items)])
        table = pa.table([user, ids[item], time, weight], schema=event_schema(pa.int64(), pa.string()))
        for seed in (0, 1):
            held = split_events(table, SplitSpec("leave-last-out", seed=seed)).held
            found[name, seed] = [rename(int(i[1:])) for i in held["item_id"].to_pylist()]
            assert len(found[name, seed]) == users
            assert abs(np.mean(found[name, seed]) - last.mean()) < spread
    assert np.mean(np.array(found["rising", 0]) == np.array(found["rising", 1])) < 0.4  # chance is 0.2


def test_an_event_of_weight_0_does_not_make_an_item_known() -> None:
    rows = [("a", 1, 0, 0.0), ("a", 2, 1, 1.0), ("a", 3, 2, -1.0), ("a", 1, 9, 1.0), ("a", 2, 9, 1.0), ("a", 3, 9, 1.0)]
    user, item, time, weight = zip(*rows, strict=True)
    at = pa.array(time).cast(pa.timestamp("us", tz="UTC"))
    table = pa.table([user, item, at, weight], schema=event_schema(pa.string(), pa.int64()))
    assert pairs(split_events(table, SplitSpec(fraction=0.5)).held) == {("a", 1)}
    assert pairs(split_of_logs(table.slice(0, 3), table.slice(3)).held) == {("a", 1)}


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
