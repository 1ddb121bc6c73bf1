"""Tastes: against loops over events, and folded night by night against one pass."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.transforms.users.samples import IDS, ITEMS, draw_rows, events_of
from unisono.transforms.base.columns import TASTE
from unisono.transforms.base.errors import JobError
from unisono.transforms.base.tables import from_vector_column
from unisono.transforms.store.item_matrix import ItemMatrix
from unisono.transforms.users.history import History, order_history
from unisono.transforms.users.profiles import ProfileSpec, Surroundings, build_profiles
from unisono.transforms.users.state import check_state, state_table
from unisono.transforms.users.tastes import Tastes, TasteSpec, newer_liked, taste_vectors, tastes_of

D = 5


class Event(NamedTuple):
    """An event of a known item."""

    day: float
    item: int
    weight: float


def tastes_with(**spec: Any) -> Tastes:
    """Draws history vectors; some items have none."""
    rng = np.random.default_rng(11)
    history, new = (rng.standard_normal((ITEMS, D)).astype(np.float32) for _ in range(2))
    history[::9] = 0
    return Tastes(TasteSpec(**{"half_life_days": 20.0, "recent": 2.0, "recent_half_life": 3.0, **spec}), history, new)


def place_of(items: ItemMatrix) -> np.ndarray:
    """Returns the row in the item matrix of each of `IDS`."""
    return items.lookup(pa.array(IDS))


def taste_by_loop(events: list[Event], tastes: Tastes, recent: int, place: np.ndarray) -> np.ndarray:
    """Computes the taste of one user in plain Python. The times must differ where `recent` cuts."""
    spec = tastes.spec
    warm, new = np.zeros(D), np.zeros(D)
    newest = max(e.day for e in events)
    latest = sorted(events, key=lambda e: -e.day)[:recent]
    for e in events:
        if e.weight <= spec.liked_above:
            continue
        age = 1.0 if spec.half_life_days is None else 2 ** (-(newest - e.day) / spec.half_life_days)
        factor = age
        if e in latest:
            newer = sum(1 for other in events if other.day > e.day and other.weight > spec.liked_above)
            factor += (spec.recent or 0.0) * 2 ** (-newer / spec.recent_half_life)
        warm += e.weight * factor * tastes.history[place[e.item]]
        new += e.weight * tastes.history_new[place[e.item]]
    share = min(1.0, len(events) / spec.min_events)
    lengths = [np.linalg.norm(v) for v in (warm, new)]
    return np.concatenate([share * v / n if n else v for v, n in zip((warm, new), lengths, strict=True)])


def by_user(rows: list[tuple[str, int, float, float]]) -> dict[str, list[Event]]:
    out: dict[str, list[Event]] = defaultdict(list)
    for user, item, day, weight in rows:
        if 0 <= item < ITEMS:
            out[user].append(Event(day, item, weight))
    return out


def distinct_times(rows: list[tuple[str, int, float, float]]) -> list[tuple[str, int, float, float]]:
    """Moves the events apart, each by a few milliseconds."""
    return [(u, i, t + n * 1e-7, w) for n, (u, i, t, w) in enumerate(rows)]


def history_of(rows: list[tuple[str, int, float, float]], items: ItemMatrix) -> History:
    return order_history(events_of(rows), items)[0]


# --- the number of newer events ----------------------------------------------------------------------------

ROWS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c"]), st.integers(0, 9), st.integers(0, 4), st.sampled_from([-3.0, 0.0, 1.0, 2.0])
    ),
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(rows=ROWS, liked_above=st.sampled_from([0.0, 1.0]))
def test_newer_events_are_counted_strictly(items: ItemMatrix, rows: list, liked_above: float) -> None:
    history = history_of([(u, i, float(t), w) for u, i, t, w in rows], items)
    found = newer_liked(history, TasteSpec(liked_above=liked_above))
    user = history.user
    for e in range(len(history.time)):
        newer = [
            o for o in range(len(history.time))
            if user[o] == user[e] and history.time[o] > history.time[e] and history.weight[o] > liked_above
        ]  # fmt: skip
        assert found[e] == len(newer)


# --- one pass ----------------------------------------------------------------------------------------------

SPECS: dict[str, dict] = {
    "plain": {},
    "no ageing": {"half_life_days": None},
    "whole history alone": {"recent": 0.0},
    "likes above a weight": {"liked_above": 1.0},
    "short tastes": {"min_events": 9},
}


@pytest.mark.parametrize("recent", [2, 100])
@pytest.mark.parametrize("name", SPECS)
def test_a_taste_is_the_direction_of_a_sum_over_liked_events(items: ItemMatrix, name: str, recent: int) -> None:
    rows = distinct_times(draw_rows(600, 25, seed=2))
    tastes = tastes_with(**SPECS[name])
    history = history_of(rows, items)
    found = tastes_of(history, tastes, recent)
    events, place = by_user(rows), place_of(items)
    assert found.dtype == np.float32
    assert found.shape == (len(history.user_ids), 2 * D)
    few = 0
    for user, own in zip(history.user_ids.to_pylist(), found, strict=True):
        if not events[user]:
            assert not own.any()
            continue
        np.testing.assert_allclose(own, taste_by_loop(events[user], tastes, recent, place), atol=1e-6)
        few += len(events[user]) < tastes.spec.min_events
    assert bool(few) == (name == "short tastes")


def test_a_user_with_half_of_the_events_has_half_a_taste(items: ItemMatrix) -> None:
    rows = [("u", 1, 0.0, 1.0), ("u", 2, 1.0, 1.0)]
    found = tastes_of(history_of(rows, items), tastes_with(min_events=4), 100)[0]
    np.testing.assert_allclose([np.linalg.norm(found[:D]), np.linalg.norm(found[D:])], [0.5, 0.5], atol=1e-6)


def test_dislikes_and_weight_0_leave_no_taste_and_change_none(items: ItemMatrix) -> None:
    alone = [("u", 1, 0.0, 1.0), ("u", 2, 5.0, 2.0)]
    with_others = [*alone, ("u", 3, 1.0, -3.0), ("u", 4, 2.0, 0.0), ("w", 5, 0.0, -1.0), ("w", 6, 0.0, 0.0)]
    a, b = (tastes_of(history_of(rows, items), tastes_with(), 100) for rows in (alone, with_others))
    np.testing.assert_array_equal(a[0], b[0])
    assert not b[1].any()


def test_sums_that_are_not_kept_one_by_one_are_added(items: ItemMatrix) -> None:
    history = history_of([("u", 1, 0.0, 1.0)], items)
    older = np.zeros((1, 2 * D))
    older[0, 1], older[0, D + 2] = 3.0, 4.0
    tastes = tastes_with(recent=0.0)
    found = taste_vectors(history, tastes, newest=history.time, events=np.array([5]), older=older)[0]
    row = place_of(items)[1]
    halves = (found[:D], tastes.history, older[0, :D]), (found[D:], tastes.history_new, older[0, D:])
    for part, matrix, rest in halves:
        sums = matrix[row] + rest
        np.testing.assert_allclose(part, sums / np.linalg.norm(sums), atol=1e-6)


def test_the_weight_of_the_latest_events_follows_the_length_of_the_log() -> None:
    assert TasteSpec().after(True).recent == 1.0
    assert TasteSpec().after(False).recent == 0.0
    assert TasteSpec(recent=3.0).after(False).recent == 3.0


# --- nights ------------------------------------------------------------------------------------------------


def fold(parts: list[list[tuple]], around: Surroundings, spec: ProfileSpec) -> dict[str, np.ndarray]:
    """Builds profiles part by part, with the state of each night as a table. Returns tastes by user."""
    state, built = None, None
    for rows in parts:
        built = build_profiles(events_of(rows), around, spec, state=state)
        state = state_table(built.sums, around.items)
    assert built is not None
    users = built.users
    return dict(zip(users["user_id"].to_pylist(), from_vector_column(users[TASTE])[0], strict=True))


def around_of(items: ItemMatrix, **spec: Any) -> Surroundings:
    prior = np.zeros(items.dim, np.float32)
    prior[0] = 1
    return Surroundings(items, prior=prior, tastes=tastes_with(**spec))


ORDERS = {
    "3 nights": (3, [0, 1, 2]),
    "10 nights": (10, list(range(10))),
    "an older night after newer ones": (3, [1, 2, 0]),
    "10 nights backwards": (10, list(range(9, -1, -1))),
}


@pytest.mark.parametrize("recent", [2, 7, 100])
@pytest.mark.parametrize("order", ORDERS)
def test_nights_add_up_to_one_pass(items: ItemMatrix, order: str, recent: int) -> None:
    rows = sorted(draw_rows(900, 40, seed=5), key=lambda r: r[2])  # half-day steps: many ties of time
    around, spec = around_of(items, min_events=4), ProfileSpec(recent_events=recent, interests=0, half_life_days=20.0)
    nights, wanted = ORDERS[order]
    cuts = np.linspace(0, len(rows), nights + 1).astype(int)
    parts = [rows[cuts[n] : cuts[n + 1]] for n in wanted]
    whole, folded = fold([rows], around, spec), fold(parts, around, spec)
    assert whole.keys() == folded.keys()
    assert max(len(e) for e in by_user(rows).values()) > 100
    for user, taste in whole.items():
        np.testing.assert_allclose(folded[user], taste, atol=1e-6)


@pytest.mark.parametrize("recent", [2, 100])
def test_folded_tastes_are_those_of_the_loop(items: ItemMatrix, recent: int) -> None:
    rows = distinct_times(sorted(draw_rows(500, 20, seed=6), key=lambda r: r[2]))
    around, spec = around_of(items), ProfileSpec(recent_events=recent, interests=0, half_life_days=20.0)
    folded = fold([rows[:200], rows[350:], rows[200:350]], around, spec)
    assert around.tastes is not None
    events, place = by_user(rows), place_of(items)
    for user, taste in folded.items():
        if events[user]:
            np.testing.assert_allclose(taste, taste_by_loop(events[user], around.tastes, recent, place), atol=1e-6)


@pytest.mark.parametrize("recent", [2, 100])
def test_the_order_of_rows_changes_no_bit(items: ItemMatrix, recent: int) -> None:
    rows = draw_rows(700, 30, seed=7)
    around, spec = around_of(items), ProfileSpec(recent_events=recent, interests=0, half_life_days=20.0)
    shuffled = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    one, other = fold([rows], around, spec), fold([shuffled], around, spec)
    for user, taste in one.items():
        np.testing.assert_array_equal(taste, other[user])


def test_a_long_pause_does_not_make_old_events_count_anew(items: ItemMatrix) -> None:
    """After 10,000 days of 20-day half-lives the old sum is 0 in float64, and the new event alone is left."""
    rows = [("u", 1, 0.0, 1.0), ("u", 2, 1.0, 1.0), ("u", 3, 10_000.0, 1.0)]
    around, spec = around_of(items, recent=0.0), ProfileSpec(recent_events=1, interests=0, half_life_days=20.0)
    found = fold([rows[:2], rows[2:]], around, spec)["u"]
    assert around.tastes is not None
    alone = around.tastes.history[place_of(items)[3]]
    np.testing.assert_allclose(found[:D], alone / np.linalg.norm(alone), atol=1e-6)
    assert math.isclose(float(np.linalg.norm(found[D:])), 1.0, abs_tol=1e-6)


def test_sums_of_other_history_vectors_are_refused(items: ItemMatrix) -> None:
    """Only sums bind a state to its history vectors: while it keeps all events one by one, they can be summed anew."""
    around, marks = around_of(items), {b"unisono.half_life_days": b"20.0", b"unisono.tastes": b"abc"}
    states = []
    for recent in (1, 2):
        spec = ProfileSpec(interests=0, half_life_days=20.0, recent_events=recent)
        sums = build_profiles(events_of([("u", 1, 0.0, 1.0), ("u", 2, 1.0, 1.0)]), around, spec).sums
        states.append(state_table(sums, items).replace_schema_metadata(marks))
    state, whole = states
    vectors = tastes_with()
    for key, comparable in (("abc", ()), ("other", ("older", "abc"))):
        same = Tastes(vectors.spec, vectors.history, vectors.history_new, key, comparable)
        check_state(state, {}, items.dim, 20.0, same)
    other = Tastes(vectors.spec, vectors.history, vectors.history_new, "other", ("older",))
    with pytest.raises(JobError, match=r"other history vectors than those of the items .*incremental: restart"):
        check_state(state, {}, items.dim, 20.0, other)
    check_state(whole, {}, items.dim, 20.0, other)
