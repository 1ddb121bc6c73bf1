"""States, compared with sums by loops and with one pass over all events."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.transforms.users.samples import DAY_US, DIM, IDS, START_US, draw_events, draw_modalities, events_of
from unisono.transforms.base.errors import JobError
from unisono.transforms.base.tables import to_vector_column
from unisono.transforms.store.item_matrix import ItemMatrix
from unisono.transforms.store.runs import read_shard, table_bytes
from unisono.transforms.users.history import order_history
from unisono.transforms.users.profiles import ProfileSpec, Surroundings, build_profiles
from unisono.transforms.users.state import (
    UserState,
    add_rows,
    check_state,
    decay,
    merge_states,
    read_state,
    remembered_events,
    state_schema,
    state_table,
    sum_history,
)

FULL = ProfileSpec(15, min_events=2, interests=3, recent_events=20, delta=0.7)
FULL_PLAIN = ProfileSpec(15, interests=3)


def assert_close(a: UserState, b: UserState) -> None:
    assert a.user_ids.equals(b.user_ids)
    for name in ("vectors", "weights", "magnitudes"):
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), atol=1e-9)
    for name in ("events", "newest"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    for name in ("first", "time", "rows", "weight"):
        np.testing.assert_array_equal(getattr(a.recent, name), getattr(b.recent, name))


def test_decay_halves_with_every_half_life() -> None:
    ages = np.array([0, 3 * DAY_US, 6 * DAY_US, 12 * DAY_US])
    np.testing.assert_allclose(decay(ages, 3.0), [1, 0.5, 0.25, 0.0625])
    np.testing.assert_array_equal(decay(ages, None), np.ones(4))


@pytest.mark.parametrize("half_life", [None, 9.0], ids=["ageless", "aged"])
def test_sums_agree_with_a_loop_over_the_events(items: ItemMatrix, half_life: float | None) -> None:
    table = draw_events(1500, 40, 1)
    history, _ = order_history(table, items)
    found = sum_history(history, items, half_life, 7)
    for i in range(len(history.user_ids)):
        mine = range(history.first[i], history.first[i + 1])
        newest = max((history.time[e] for e in mine), default=0)
        total, weight, size = np.zeros(DIM), 0.0, 0.0
        for e in mine:
            age_days = (newest - history.time[e]) / DAY_US
            w = history.weight[e] * (1.0 if half_life is None else 0.5 ** (age_days / half_life))
            total, weight, size = total + w * items.vectors[history.rows[e]].astype(float), weight + w, size + abs(w)
        np.testing.assert_allclose(found.vectors[i], total, atol=1e-9)
        np.testing.assert_allclose([found.weights[i], found.magnitudes[i]], [weight, size], atol=1e-9)
        assert (found.events[i], found.newest[i]) == (len(mine), newest)
        assert found.recent.counts[i] == min(7, len(mine))


def test_add_rows_agrees_with_numpy() -> None:
    rng = np.random.default_rng(2)
    matrix = rng.standard_normal((50, 9)).astype(np.float32)
    rows, weight = rng.integers(0, 50, 400), rng.standard_normal(400)
    first = np.concatenate([[0], np.sort(rng.integers(0, 401, 19)), [400]])
    expected = np.zeros((20, 9))
    np.add.at(expected, np.repeat(np.arange(20), np.diff(first)), weight[:, None] * matrix[rows].astype(float))
    np.testing.assert_allclose(add_rows(matrix, rows, weight, first), expected, atol=1e-12)


# --- merging ---


@pytest.mark.parametrize("older_first", [True, False])
def test_merged_states_equal_the_state_of_all_events(items: ItemMatrix, older_first: bool) -> None:
    table = draw_events(1200, 40, 3)
    late = pa.compute.greater(table["time"], pa.scalar(START_US + 40 * DAY_US, table["time"].type))
    both = [table.filter(pa.compute.invert(late)), table.filter(late)]
    older, newer = (sum_history(order_history(t, items)[0], items, 11.0, 6) for t in both)
    one, other = (older, newer) if older_first else (newer, older)
    merged = merge_states(one, other, items, half_life_days=11.0, recent=6)
    assert_close(merged, sum_history(order_history(table, items)[0], items, 11.0, 6))


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 0, 2)], ids=["in order", "out of order"])
def test_nights_added_one_by_one_equal_one_pass(items: ItemMatrix, order: tuple[int, ...]) -> None:
    table = draw_events(2500, 70, 9)
    around = Surroundings(items, draw_modalities(1), np.asarray(items.vectors[0]))
    night = (table["time"].cast(pa.int64()).to_numpy() - START_US) // (25 * DAY_US)
    state = None
    for number in order:
        built = build_profiles(table.filter(pa.array(night == number)), around, FULL, state=state)
        state = read_shard(table_bytes(state_table(built.sums, items)).tobytes())  # as the next run reads it
    whole = build_profiles(table, around, FULL)
    for column in whole.users.column_names:
        if column == "vector" or column.endswith("affinity"):
            a, b = (np.array(t[column].to_pylist(), float) for t in (built.users, whole.users))
            np.testing.assert_allclose(a, b, atol=1e-6)
        elif column != "interests":
            assert built.users[column].to_pylist() == whole.users[column].to_pylist()
    for a, b in zip(built.users["interests"].to_pylist(), whole.users["interests"].to_pylist(), strict=True):
        assert [i["item_id"] for i in a] == [i["item_id"] for i in b]
        np.testing.assert_allclose([i["weight"] for i in a], [i["weight"] for i in b], atol=1e-6)
    np.testing.assert_allclose(built.sums.vectors, whole.sums.vectors, atol=1e-6)


def test_a_night_without_events_keeps_everybody(items: ItemMatrix) -> None:
    table = draw_events(300, 20, 3)
    first = build_profiles(table, Surroundings(items), FULL_PLAIN)
    state = state_table(first.sums, items)
    again = build_profiles(table.slice(0, 0), Surroundings(items), FULL_PLAIN, state=state)
    assert again.users.equals(first.users)


# --- as tables ---


def test_a_state_survives_its_table(items: ItemMatrix) -> None:
    history, _ = order_history(draw_events(400, 25, 4), items)
    state = sum_history(history, items, 20.0, 5)
    table = state_table(state, items)
    assert table.schema == state_schema(pa.string(), pa.string(), DIM)
    assert_close(read_state(read_shard(table_bytes(table).tobytes()), items), state)
    # The newest events of each user, in the columns of the log.
    kept = remembered_events(table)
    assert kept.column_names == ["user_id", "item_id", "time", "weight"]
    names, recent = state.user_ids.to_pylist(), state.recent
    assert kept["user_id"].to_pylist() == [names[u] for u in recent.user.tolist()]
    assert kept["item_id"].to_pylist() == [IDS[r] for r in recent.rows.tolist()]
    assert kept["time"].cast(pa.int64()).to_pylist() == recent.time.tolist()
    assert kept["weight"].to_pylist() == recent.weight.tolist()


def test_recent_events_of_items_that_are_gone_are_left_out(items: ItemMatrix, tmp_path: Path) -> None:
    state = sum_history(order_history(events_of([("a", 1, 0, 1), ("a", 2, 1, 1)]), items)[0], items, None, 5)
    table = state_table(state, items)
    left = pa.table({"item_id": IDS[2:], "vector": to_vector_column(np.asarray(items.vectors[2:]))})
    pq.write_table(left, tmp_path / "p.parquet")
    fewer = ItemMatrix.open([str(tmp_path / "p.parquet")], cache_dir=str(tmp_path))
    back = read_state(table, fewer)
    assert back.recent.rows.tolist() == [0]  # item-002, now the first row
    np.testing.assert_array_equal(back.vectors, state.vectors)


MARKS = {b"unisono.space_id": b"old", b"unisono.half_life_days": b"15"}
TURNED = {b"unisono.space_id": b"now", b"unisono.comparable": b'["mid", "old"]'}


@pytest.mark.parametrize(
    ("have", "said", "dim", "says"),
    [
        (MARKS, {b"unisono.space_id": b"old"}, DIM, ""),
        (MARKS, TURNED, DIM, ""),
        (
            MARKS,
            {b"unisono.space_id": b"now", b"unisono.comparable": b"[]", b"unisono.not_comparable": b"too far"},
            DIM,
            r"profiles.incremental: .*space old.*now, which is not comparable with it \(too far\)",
        ),
        (MARKS, {b"unisono.space_id": b"now"}, DIM, "which is not comparable with it; run once with .*restart"),
        (MARKS, TURNED, 5, "their vectors have 5 values, not 7"),
        (MARKS | {b"unisono.half_life_days": b"30"}, TURNED, DIM, "profiles.half_life_days: 15.*30"),
    ],
    ids=["same space", "comparable", "not comparable", "nothing said", "length", "half-life"],
)
def test_a_state_that_does_not_fit_is_refused(
    items: ItemMatrix, have: dict[bytes, bytes], said: dict[bytes, bytes], dim: int, says: str
) -> None:
    sums = build_profiles(draw_events(30, 3, 0), Surroundings(items), FULL_PLAIN).sums
    state = state_table(sums, items).replace_schema_metadata(have)
    with pytest.raises(JobError, match=says) if says else contextlib.nullcontext():
        check_state(state, said, dim, 15)
