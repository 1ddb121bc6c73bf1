"""Histories, compared with plain Python over lists of events."""

from __future__ import annotations

from collections import defaultdict
from itertools import groupby
from typing import Literal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.transforms.users.samples import DAY_US, IDS, ITEMS, START_US, draw_events, draw_rows, events_of
from unisono.transforms.base.errors import JobError
from unisono.transforms.read.interactions import TIME_TYPE
from unisono.transforms.store.item_matrix import ItemMatrix
from unisono.transforms.users.history import (
    History,
    limit_a_day,
    merge_histories,
    once_a_session,
    order_history,
    rank_ids,
)
from unisono.transforms.users.profiles import ProfileSpec, Surroundings, build_profiles

MINUTE = 1 / 1440
Event = tuple[int, int, float]  # time in microseconds, item as a row of the matrix, weight


def by_user(history: History) -> dict[str, list[Event]]:
    """A history as plain lists."""
    out = {}
    for i, user in enumerate(history.user_ids.to_pylist()):
        mine = slice(history.first[i], history.first[i + 1])
        out[user] = [tuple(e) for e in zip(*(a[mine].tolist() for a in (history.time, history.rows, history.weight)),
                                           strict=True)]  # fmt: skip
    return out


def expected_order(rows: list[tuple[str, int, float, float]], items: ItemMatrix) -> dict[str, list[Event]]:
    """The known events of each user, sorted by time, by the rank of the item, and by weight."""
    out: dict[str, list[Event]] = {user: [] for user in sorted({r[0] for r in rows})}
    for user, item, day, weight in rows:
        if 0 <= item < ITEMS:
            out[user].append((START_US + round(day * DAY_US), item, weight))
    return {user: sorted(events, key=lambda e: (e[0], items.ranks[e[1]], e[2])) for user, events in out.items()}


EVENT = st.tuples(
    st.sampled_from(["a", "b", "ccc"]),
    st.integers(-1, 6),
    st.integers(0, 6).map(lambda d: d / 2),
    st.sampled_from([1.0, 3.0, -3.0]),
)


@given(rows=st.lists(EVENT, max_size=30))
@settings(max_examples=60, deadline=None)
def test_order_history_sorts_known_events(items: ItemMatrix, rows: list[tuple[str, int, float, float]]) -> None:
    history, unknown = order_history(events_of(rows), items)
    assert by_user(history) == expected_order(rows, items)
    assert unknown == sum(not 0 <= r[1] < ITEMS for r in rows)
    assert history.counts.tolist() == [len(e) for e in expected_order(rows, items).values()]


@pytest.mark.parametrize("shuffled", [False, True], ids=["by time", "shuffled"])
def test_order_history_sorts_long_histories(items: ItemMatrix, shuffled: bool) -> None:
    rng = np.random.default_rng(8)
    days = np.sort(rng.integers(0, 150, 400)) / 2  # several events at most times
    drawn = zip(rng.random(400) < 0.1, rng.integers(0, 6, 400), days, rng.integers(1, 4, 400), strict=True)
    rows = [("ab"[int(user)], int(item), float(day), float(weight)) for user, item, day, weight in drawn]
    if shuffled:
        rows = [rows[i] for i in rng.permutation(len(rows))]
    history, _ = order_history(events_of(rows), items)
    assert by_user(history) == expected_order(rows, items)


def test_the_order_of_the_rows_does_not_matter(items: ItemMatrix) -> None:
    table = draw_events(2000, 50, 1)
    one, _ = order_history(table, items)
    other, _ = order_history(table.take(pa.array(np.random.default_rng(2).permutation(len(table)))), items)
    for name in ("first", "time", "rows", "weight"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_ids_of_another_kind_are_refused(items: ItemMatrix) -> None:
    table = events_of([("a", 1, 0, 1)]).set_column(1, "item_id", pa.array([1]))
    with pytest.raises(JobError, match=r"interactions.item: ids are int64"):
        order_history(table, items)


def test_rank_ids_numbers_distinct_ids_in_ascending_order() -> None:
    ids = pa.chunked_array([["b", "a"], ["c", "b"]])
    distinct, place = rank_ids(ids)
    assert distinct.to_pylist() == ["a", "b", "c"]
    assert place.tolist() == [1, 0, 2, 1]


# --- choosing events and users ---


def test_keep_newest_and_without_users_agree_with_lists(items: ItemMatrix) -> None:
    history, _ = order_history(draw_events(500, 12, 3), items)
    plain = by_user(history)
    mask = np.random.default_rng(4).random(len(history.time)) < 0.6
    chosen = iter(mask.tolist())
    expected = {user: [e for e in events if next(chosen)] for user, events in plain.items()}
    assert by_user(history.keep(mask)) == expected
    assert by_user(history.newest(5)) == {user: events[-5:] for user, events in plain.items()}
    names = list(plain)
    left = history.without_users(np.array([0, 3, 11]))
    assert by_user(left) == {user: plain[user] for user in names if user not in (names[0], names[3], names[11])}
    assert left.user.tolist() == [i for i, events in enumerate(by_user(left).values()) for _ in events]


def test_merged_histories_equal_the_history_of_all_events(items: ItemMatrix) -> None:
    rows = draw_rows(600, 20, 5)
    parts = [order_history(events_of(rows[a::3]), items)[0] for a in range(3)]
    whole, _ = order_history(events_of(rows), items)
    assert by_user(merge_histories(parts, items)) == by_user(whole)
    assert merge_histories(parts, items).user_ids.equals(whole.user_ids)


# --- what does not count ---


@given(rows=st.lists(EVENT, max_size=30), minutes=st.sampled_from([30.0, 720.0, 1440.0]))
@settings(max_examples=60, deadline=None)
def test_once_a_session_keeps_the_newest_of_equal_events(
    items: ItemMatrix, rows: list[tuple[str, int, float, float]], minutes: float
) -> None:
    history, _ = order_history(events_of(rows), items)
    expected = {}
    for user, events in by_user(history).items():
        kept: dict[tuple[int, int, float], Event] = {}
        session, before = 0, None
        for time, item, weight in events:
            if before is not None and time - before > minutes * 60_000_000:
                session += 1
            before = time
            kept[session, item, weight] = (time, item, weight)  # a later event replaces an equal one
        expected[user] = sorted(kept.values(), key=lambda e: (e[0], items.ranks[e[1]], e[2]))
    assert by_user(once_a_session(history, minutes)) == expected


def test_repeats_count_once_a_session(items: ItemMatrix) -> None:
    table = events_of([
        # one session
        ("a", 1, 0, 1), ("a", 1, 10 * MINUTE, 1), ("a", 2, 20 * MINUTE, 1), ("a", 1, 45 * MINUTE, 1),
        ("a", 1, 45 * MINUTE, 3),  # another weight, as of another event type
        ("a", 1, 80 * MINUTE, 1),  # another session
        ("b", 1, 80 * MINUTE, 1),
    ])  # fmt: skip
    built = build_profiles(table, Surroundings(items), ProfileSpec(None, session_minutes=30))
    assert built.users["events"].to_pylist() == [4, 1]
    assert built.counts["events.set_aside"] == 2
    kept = [START_US + round(t * MINUTE * DAY_US) for t in (20, 45)]
    assert built.sums.recent.time[:2].tolist() == kept


@pytest.mark.parametrize("drop", [False, True], ids=["cap", "drop"])
def test_limit_a_day_agrees_with_a_loop_over_days(items: ItemMatrix, drop: bool) -> None:
    rows = [(u, i, d % 7, w) for u, i, d, w in draw_rows(600, 15, 7)]
    history, _ = order_history(events_of(rows), items)
    left, letters = limit_a_day(history, 12, drop)
    expected, robots = {}, {}
    for user, events in by_user(history).items():
        days = [list(g) for _, g in groupby(events, key=lambda e: e[0] // DAY_US)]
        worst = max(map(len, days), default=0)
        if worst > 12:
            kept = [] if drop else [e for day in days for e in day[-12:]]
            robots[user] = (worst, len(events) - len(kept))
            if drop:
                continue
            events = kept
        expected[user] = events
    assert by_user(left) == expected
    assert 0 < len(robots) < 15
    assert letters["detail"].to_pylist() == [
        f"user={user} {worst} events on one day, 12 allowed, {lost} left out" for user, (worst, lost) in robots.items()
    ]
    assert set(letters["reason"].to_pylist()) == {"too_many_events"}


def test_nobody_is_a_robot_without_events(items: ItemMatrix) -> None:
    history, _ = order_history(events_of([("a", -1, 0, 1)]), items)
    left, letters = limit_a_day(history, 1, True)
    assert by_user(left) == {"a": []}
    assert letters.num_rows == 0
    assert by_user(once_a_session(history, 5)) == {"a": []}


@pytest.mark.parametrize("robots", ["cap", "drop"])
def test_a_user_with_a_million_events_is_named(items: ItemMatrix, robots: Literal["cap", "drop"]) -> None:
    rng = np.random.default_rng(0)
    n = 1_000_000
    robot = pa.table({
        "user_id": pa.DictionaryArray.from_arrays(pa.array(np.zeros(n, np.int32)), pa.array(["bot"])).cast(pa.string()),
        "item_id": pa.array(IDS).take(pa.array(rng.integers(0, ITEMS, n))),
        "time": pa.array(START_US + rng.integers(0, 2 * DAY_US, n), TIME_TYPE),
        "weight": np.ones(n),
    })
    table = pa.concat_tables([events_of([("ann", 4, 0, 1)]), robot])
    built = build_profiles(table, Surroundings(items), ProfileSpec(None, max_events_per_day=1000, robots=robots))
    (letter,) = built.dead.to_pylist()
    assert (letter["stage"], letter["reason"]) == ("profiles", "too_many_events")
    assert letter["detail"].startswith("user=bot ")
    per_day: dict[int, list[int]] = defaultdict(list)
    for time in robot["time"].cast(pa.int64()).to_pylist():
        per_day[time // DAY_US].append(time)
    expected = {"cap": (["ann", "bot"], [1, 1000 * len(per_day)]), "drop": (["ann"], [1])}[robots]
    assert (built.users["user_id"].to_pylist(), built.users["events"].to_pylist()) == expected
    assert built.counts["users.seen"] == 2
    if robots == "cap":  # the newest events of each day
        kept = [t for times in per_day.values() for t in sorted(times)[-1000:]]
        assert built.sums.newest[1] == max(kept)
        assert built.users["events"][1].as_py() == len(kept)
