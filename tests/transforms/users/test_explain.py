"""Contributions of events, compared with the published vectors and with loops over the events."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from tests.transforms.users.samples import DAY_US, IDS, draw_events, draw_modalities, events_of
from unisono.transforms.store.item_matrix import ItemMatrix
from unisono.transforms.users.explain import interest_parts, modality_parts, profile_parts
from unisono.transforms.users.history import History, order_history
from unisono.transforms.users.profiles import ProfileSpec, Surroundings, build_profiles


def one_user(items: ItemMatrix, seed: int = 1) -> tuple[pa.Table, History]:
    """The events of one user, as a table and as a history."""
    table = draw_events(120, 1, seed)
    return table, order_history(table, items)[0]


@pytest.mark.parametrize("delta", [1.0, 0.5], ids=["plain", "refined"])
def test_parts_of_a_profile_add_up_to_the_built_profile(items: ItemMatrix, delta: float) -> None:
    table, history = one_user(items)
    modalities = draw_modalities(2)
    spec = ProfileSpec(25, interests=0, recent_events=30, delta=delta, temperature=0.3)
    built = build_profiles(table, Surroundings(items, modalities), spec)
    parts = profile_parts(history, items, modalities, spec, False)
    assert parts.shape == (len(history.time), items.dim)
    np.testing.assert_allclose(parts.sum(0), built.users["vector"][0].as_py(), atol=1e-6)


def test_each_part_of_a_plain_profile_is_its_events_weighted_vector(items: ItemMatrix) -> None:
    _, history = one_user(items)
    spec = ProfileSpec(25, interests=0)
    newest = history.time.max()
    weighted = []
    for time, row, weight in zip(history.time, history.rows, history.weight, strict=True):
        weighted.append(weight * 0.5 ** ((newest - time) / DAY_US / 25) * items.vectors[row].astype(float))
    expected = np.array(weighted) / np.linalg.norm(np.sum(weighted, axis=0))
    np.testing.assert_allclose(profile_parts(history, items, {}, spec, False), expected, atol=1e-9)


def test_parts_of_a_cold_profile_leave_room_for_the_prior(items: ItemMatrix) -> None:
    table = events_of([("a", 3, 0, 1.0), ("a", 9, 5, 5.0)])
    history, _ = order_history(table, items)
    spec, prior = ProfileSpec(None, min_events=4, interests=0), np.asarray(items.vectors[30], np.float64)
    built = build_profiles(table, Surroundings(items, prior=prior.astype(np.float32)), spec)
    parts = profile_parts(history, items, {}, spec, True)
    v = np.asarray(items.vectors, np.float64)
    np.testing.assert_allclose(parts, 2 * np.array([1 * v[3], 5 * v[9]]) / 6, atol=1e-9)
    mixed = parts.sum(0) + 4 * prior
    np.testing.assert_allclose(mixed / np.linalg.norm(mixed), built.users["vector"][0].as_py(), atol=1e-6)
    nothing, _ = order_history(events_of([("a", -1, 0, 1.0)]), items)
    assert profile_parts(nothing, items, {}, spec, True).shape == (0, items.dim)


def test_parts_of_interests_add_up_to_them_and_come_from_their_own_items(items: ItemMatrix) -> None:
    table, history = one_user(items, 3)
    spec = ProfileSpec(25, interests=4, interest_split=0.0, recent_events=60)
    (interests,) = build_profiles(table, Surroundings(items), spec).users["interests"].to_pylist()
    assert len(interests) == 4
    rows: list[set[int]] = []
    for number, interest in enumerate(interests):
        parts = interest_parts(history, items, spec, number)
        np.testing.assert_allclose(parts.sum(0), interest["vector"], atol=1e-6)
        assert not parts[: len(history.time) - 60].any()
        rows.append(set(history.rows[parts.any(1)].tolist()))
        assert IDS.index(interest["item_id"]) in rows[-1]
    assert sum(map(len, rows)) == len(set.union(*rows))  # no item is in two interests


def test_parts_of_a_modality_add_up_to_its_vector(items: ItemMatrix) -> None:
    table, history = one_user(items, 4)
    modalities = draw_modalities(5)
    spec = ProfileSpec(25, interests=0, recent_events=40)
    users = build_profiles(table, Surroundings(items, modalities, with_vectors=True), spec).users
    for name, matrix in modalities.items():
        parts = modality_parts(history, matrix, spec)
        np.testing.assert_allclose(parts.sum(0), users[f"{name}_vector"][0].as_py(), atol=1e-6)
        disliked = history.weight <= 0
        assert not parts[disliked].any()
        assert not parts[:-40].any()
