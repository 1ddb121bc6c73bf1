"""Affinities, vectors of one modality and refined profiles, compared with loops over the events."""

from __future__ import annotations

import numpy as np
import pytest

from tests.transforms.users.samples import DAY_US, DIM, draw_events, draw_modalities, events_of
from unisono.transforms.base.tables import from_vector_column
from unisono.transforms.store.item_matrix import ItemMatrix
from unisono.transforms.users.attention import ModalityView, refine_profiles, view_modality
from unisono.transforms.users.history import order_history
from unisono.transforms.users.profiles import ProfileSpec, Surroundings, build_profiles


@pytest.mark.parametrize("delta", [1.0, 0.6, 0.0])
def test_affinity_and_refinement_agree_with_loops(items: ItemMatrix, delta: float) -> None:
    table, matrices = draw_events(800, 40, 5), draw_modalities(6)
    spec = ProfileSpec(20, recent_events=15, delta=delta, temperature=0.2)
    users = build_profiles(table, Surroundings(items, matrices, with_vectors=True), spec).users
    plain = build_profiles(table, Surroundings(items), ProfileSpec(20)).users
    profiles = from_vector_column(plain["vector"])[0].astype(np.float64)
    history, _ = order_history(table, items)
    place = {u: i for i, u in enumerate(history.user_ids.to_pylist())}
    for row, user in enumerate(users["user_id"].to_pylist()):
        u, z = place[user], profiles[row]
        mine = np.arange(history.first[u], history.first[u + 1])[-15:]
        newest = history.time[history.first[u + 1] - 1]
        weight = history.weight[mine] * 0.5 ** ((newest - history.time[mine]) / DAY_US / 20)
        contexts = []
        for m, matrix in matrices.items():
            v = matrix[history.rows[mine]].astype(np.float64)
            use = (weight > 0) & v.any(1)
            affinity, own = users[f"{m}_affinity"][row].as_py(), users[f"{m}_vector"][row].as_py()
            if not use.any():
                assert affinity is None
                assert own is None
                continue
            total = weight[use] @ v[use]
            np.testing.assert_allclose(affinity, np.linalg.norm(total) / weight[use].sum(), rtol=1e-5)
            np.testing.assert_allclose(own, total / np.linalg.norm(total), atol=1e-6)
            a = weight[use] * np.exp(v[use] @ z / 0.2)
            contexts.append(a @ v[use] / a.sum())
        expected = z
        if contexts:
            expected = delta * z + (1 - delta) * np.mean(contexts, axis=0)
            expected /= np.linalg.norm(expected)
        np.testing.assert_allclose(users["vector"][row].as_py(), expected, atol=1e-6)


def test_a_lower_temperature_attends_more_to_the_nearest_item(items: ItemMatrix) -> None:
    history, _ = order_history(events_of([("a", 1, 0, 1), ("a", 2, 1, 1), ("a", 3, 2, 1)]), items)
    matrix, profile = np.asarray(items.vectors), np.asarray(items.vectors[2:3])
    nearness = []
    for temperature in (10.0, 0.3, 0.01):
        view = view_modality(history, np.ones(3), matrix=matrix, profiles=profile, temperature=temperature)
        nearness.append(float(view.attended[0] @ profile[0]))
    assert nearness == sorted(nearness)
    assert nearness[-1] == pytest.approx(1, abs=1e-3)
    plain = view_modality(history, np.ones(3), matrix=matrix, profiles=profile, temperature=None)
    assert not plain.attended.any()
    np.testing.assert_allclose(plain.sums[0], matrix[1:4].astype(float).sum(0), atol=1e-6)


def test_equal_items_have_affinity_one_and_disliked_items_take_no_part(items: ItemMatrix) -> None:
    history, _ = order_history(events_of([("a", 4, 0, 1), ("a", 4, 1, 3), ("b", 4, 0, -1)]), items)
    view = view_modality(
        history, history.weight, matrix=np.asarray(items.vectors), profiles=np.zeros((2, DIM), np.float32),
        temperature=None,
    )  # fmt: skip
    assert view.affinity[0] == pytest.approx(1)
    np.testing.assert_allclose(view.vectors[0], items.vectors[4], atol=1e-6)
    assert np.isnan(view.affinity[1])
    assert not view.vectors[1].any()


def test_refinement_averages_over_the_modalities_that_a_user_has() -> None:
    z = np.eye(3, dtype=np.float32)
    attended = np.array([[0.0, 0.6, 0.0], [0.0, 0.0, 0.5], [0.0, 0.0, 0.0]])
    text = ModalityView(attended, np.array([0.6, 0.5, np.nan]), attended)
    other = np.array([[0.2, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    image = ModalityView(other, np.array([0.2, np.nan, np.nan]), other)
    found = refine_profiles(z, {"text": text, "image": image}, 0.25)
    expected = np.array([[0.25 + 0.75 * 0.1, 0.75 * 0.3, 0], [0, 0.25, 0.75 * 0.5], [0, 0, 1]])
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-6)
    np.testing.assert_array_equal(refine_profiles(z, {}, 0.25), z)
