"""Directions of profiles, compared with formulas written out for single users."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from tests.transforms.users.samples import IDS, ITEMS, draw_rows, events_of
from unisono.transforms.base.tables import from_vector_column
from unisono.transforms.store.item_matrix import ItemMatrix
from unisono.transforms.users.directions import directions_of, popular_direction
from unisono.transforms.users.history import order_history
from unisono.transforms.users.profiles import ProfileSpec, Surroundings, build_profiles
from unisono.transforms.users.state import sum_history


def test_the_prior_weighs_items_by_their_interactions(items: ItemMatrix) -> None:
    n = np.random.default_rng(0).integers(1, 50, ITEMS)
    counts = pa.table({"item_id": [*IDS, "gone"], "n": [*n.tolist(), 9]})
    mean = n @ np.asarray(items.vectors, np.float64)
    found = popular_direction(counts, items)
    assert found is not None
    np.testing.assert_allclose(found, mean / np.linalg.norm(mean), atol=1e-6)


def test_there_is_no_prior_without_interactions_with_known_items(items: ItemMatrix) -> None:
    empty = pa.table({"item_id": pa.array([], pa.string()), "n": pa.array([], pa.int64())})
    assert popular_direction(empty, items) is None
    assert popular_direction(pa.table({"item_id": ["gone"], "n": [3]}), items) is None


def test_cold_users_lean_on_the_prior_and_less_with_every_event(items: ItemMatrix) -> None:
    prior = np.asarray(items.vectors[11])
    table = events_of([
        ("a", 5, 0, 1), ("b", 5, 0, 1), ("b", 5, 0, 1), ("c", 5, 0, 1), ("c", 5, 1, 1), ("c", 5, 2, 1),
        ("d", -1, 0, 1), ("e", 5, 0, 1), ("e", 5, 1, -1),
    ])  # fmt: skip
    spec = ProfileSpec(None, min_events=3, interests=2)
    built = build_profiles(table, Surroundings(items, prior=prior), spec)
    users = built.users
    assert users["user_id"].to_pylist() == ["a", "b", "c", "d", "e"]
    assert users["cold"].to_pylist() == [True, True, False, True, True]
    assert users["last_event"].is_valid().to_pylist() == [True, True, True, False, True]
    own = np.asarray(items.vectors[5], np.float64)
    for row, mixed in enumerate([own + 3 * prior, 2 * own + 3 * prior, own, prior, prior]):
        vector = from_vector_column(users["vector"])[0][row]
        np.testing.assert_allclose(vector, mixed / np.linalg.norm(mixed), atol=1e-6)
    assert [len(i) for i in users["interests"].to_pylist()] == [0, 0, 1, 0, 0]
    assert built.dead["reason"].to_pylist() == ["weights_cancel"]
    assert built.dead["detail"].to_pylist() == ["user=e"]


def test_directions_agree_with_the_formula_user_by_user(items: ItemMatrix) -> None:
    rows = draw_rows(300, 40, 6)
    history, _ = order_history(events_of(rows), items)
    prior = np.asarray(items.vectors[2])
    vectors, cold, cancelled = directions_of(sum_history(history, items, None, 10), prior, 4)
    alone, cold_alone, _ = directions_of(sum_history(history, items, None, 10), None, 4)
    assert not cancelled.any()
    np.testing.assert_array_equal(cold_alone, cold)
    np.testing.assert_array_equal(alone[~cold], vectors[~cold])
    for place, user in enumerate(history.user_ids.to_pylist()):
        mine = [(items.vectors[i].astype(float), w) for u, i, _, w in rows if u == user and i < ITEMS]
        assert cold[place] == (len(mine) < 4)
        expected = sum(w * v for v, w in mine) if mine else np.zeros(len(prior))
        if cold[place]:
            size = sum(abs(w) for _, w in mine)
            expected = (len(mine) * expected / size if mine else 0) + 4 * prior
        np.testing.assert_allclose(vectors[place], expected / np.linalg.norm(expected), atol=1e-6)
    assert 0 < cold.sum() < len(cold)
