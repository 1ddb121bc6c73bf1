"""The ranking vectors of users: from tastes or profiles, made anew with other settings, or refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from unisono.transforms.base.errors import JobError
from unisono.transforms.base.tables import to_vector_column
from unisono.transforms.rank.spec import RankingSpec
from unisono.transforms.rank.user_vectors import (
    add_ranking_vectors,
    is_made_with,
    kind_of_items,
    queries_of,
    read_ranking,
    reweigh,
    suits,
    weights_of,
)

DIM, D, USERS = 4, 3, 5
LEARNED: dict[str, Any] = {"method": "learned", "ageing": True, "key": "abc"}
VECTORS: dict[str, Any] = {"method": "vectors", "fusion": "early", "ageing": True}


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    vectors = rng.standard_normal(shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def profiles() -> pa.Table:
    """Profiles of five users: the second has no taste, the third half of one, and the fourth no interests."""
    rng = np.random.default_rng(0)
    tastes = np.concatenate([unit(rng, USERS, D), unit(rng, USERS, D)], axis=1)
    tastes *= np.array([1, 0, 0.5, 1, 1], np.float32)[:, None]
    kind = pa.list_(pa.struct([("vector", pa.list_(pa.float32(), DIM)), ("weight", pa.float32())]))
    drawn = unit(rng, USERS, 2, DIM).tolist()
    interests = [[{"vector": v, "weight": w} for v, w in zip(own, (0.75, 0.25), strict=True)] for own in drawn]
    interests[3] = []
    return pa.table({
        "user_id": [f"u{u}" for u in range(USERS)],
        "vector": to_vector_column(unit(rng, USERS, DIM)),
        "interests": pa.array(interests, kind),
        "text_vector": to_vector_column(unit(rng, USERS, DIM), np.arange(USERS) != 4),
        "image_vector": to_vector_column(unit(rng, USERS, DIM)),
        "taste": to_vector_column(tastes),
    })


def spec_of(**settings: Any) -> RankingSpec:
    return RankingSpec(**({"liked_above": 0.0} | settings))


def rows(table: pa.Table, column: str = "ranking_vector") -> np.ndarray:
    return np.stack(table[column].to_pylist())


# --- weights -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "ageing", "expected"),
    [
        ({}, True, [1, -1, 0, 1]),
        ({}, False, [0, 0, 0, 1]),
        ({"trend": 4.0}, False, [4, -4, 0, 1]),
        ({"popularity_bonus": 0.5, "caution": 0.2}, True, [1.5, -1, -0.2, 1]),
        ({"popularity_penalty": 0.5, "trend": 0.0}, True, [-0.5, 0, 0, 1]),
        ({"method": "vectors"}, True, [0, 0, 0, 1]),
        ({"method": "vectors", "trend": 0.5}, False, [0.5, -0.5, 0, 1]),
    ],
)
def test_weights_on_the_common_axes(settings: dict, ageing: bool, expected: list[float]) -> None:
    np.testing.assert_allclose(weights_of(spec_of(**settings), ageing), expected, atol=1e-12)


# --- from profiles -----------------------------------------------------------------------------------------


def test_learned_vectors_are_tastes_and_weights() -> None:
    made = add_ranking_vectors(profiles(), spec_of(caution=0.2), LEARNED)
    assert "taste" not in made.column_names
    found = rows(made)
    np.testing.assert_array_equal(found[:, : 2 * D], rows(profiles(), "taste"))
    full, alone = np.array([1, -1, -0.2, 1]), np.array([1, 0, -0.2, 1])
    np.testing.assert_allclose(found[[0, 3, 4], 2 * D :], np.tile(full, (3, 1)), atol=1e-6)
    np.testing.assert_allclose(found[1, 2 * D :], alone, atol=1e-6)
    np.testing.assert_allclose(found[2, 2 * D :], (full + alone) / 2, atol=1e-6)
    assert made.schema.field("ranking_vector").type == pa.list_(pa.float32(), 2 * D + 4)
    assert not made.schema.field("ranking_vector").nullable


def test_vectors_are_weighted_interests_or_the_profile() -> None:
    table = profiles().drop_columns(["taste"])
    found = rows(add_ranking_vectors(table, spec_of(method="vectors"), VECTORS))
    for u, row in enumerate(table.to_pylist()):
        own = sum((i["weight"] * np.array(i["vector"]) for i in row["interests"]), np.zeros(DIM))
        np.testing.assert_allclose(found[u, :DIM], own if row["interests"] else row["vector"], atol=1e-6)
    by_profile = rows(add_ranking_vectors(table, spec_of(interests="profile"), VECTORS))
    np.testing.assert_array_equal(by_profile[:, :DIM], rows(table, "vector"))


def test_late_queries_hold_the_vectors_of_all_modalities() -> None:
    spec = spec_of(fusion="late", weights={"text": 2.0})
    found = queries_of(profiles(), spec, ["image", "text"])
    np.testing.assert_array_equal(found[:, :DIM], rows(profiles(), "image_vector"))
    for u, text in enumerate(profiles()["text_vector"].to_pylist()):
        np.testing.assert_allclose(found[u, DIM:], np.zeros(DIM) if text is None else 2 * np.array(text), atol=1e-6)


# --- made anew ---------------------------------------------------------------------------------------------

CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "bonus": (LEARNED, {}, {"popularity_bonus": 0.7}),
    "trend and caution": (LEARNED, {"popularity_penalty": 1.0}, {"trend": 5.0, "caution": 1.0}),
    "penalty": (VECTORS, {"method": "vectors"}, {"method": "vectors", "popularity_penalty": 0.4}),
    "profile": (VECTORS, {"method": "vectors"}, {"method": "vectors", "interests": "profile"}),
}


@pytest.mark.parametrize("name", CHANGES)
def test_users_written_anew_are_those_of_the_new_settings(name: str) -> None:
    items, before, after = CHANGES[name]
    table = profiles() if items is LEARNED else profiles().drop_columns(["taste"])
    made = add_ranking_vectors(table, spec_of(**before), items)
    assert is_made_with(made.schema, spec_of(**before), items)
    assert not is_made_with(made.schema, spec_of(**after), items)
    assert not is_made_with(made.schema, spec_of(**before), items | {"key": "other"})
    expected = add_ranking_vectors(table, spec_of(**after), items)
    found = reweigh(made, spec_of(**after), items)
    np.testing.assert_array_equal(rows(found), rows(expected))
    assert found.schema.equals(expected.schema, check_metadata=True)


@pytest.mark.parametrize(("key", "value"), [("recent", 2.0), ("recent_half_life", 7.0), ("liked_above", 1.0)])
def test_settings_that_need_the_log_are_refused(key: str, value: float) -> None:
    made = add_ranking_vectors(profiles(), spec_of(), LEARNED)
    with pytest.raises(JobError, match=rf"ranking\.{key}: {value}, .* run `unisono profile`, or keep it"):
        reweigh(made, spec_of(**{key: value}), LEARNED)


def test_users_without_learned_vectors_are_refused() -> None:
    made = add_ranking_vectors(profiles().drop_columns(["taste"]), spec_of(method="vectors"), VECTORS)
    for table in (made, profiles()):
        with pytest.raises(JobError, match="the published users have no learned ranking vectors"):
            reweigh(table, spec_of(), LEARNED)


# --- published items ---------------------------------------------------------------------------------------


def test_items_say_what_they_were_made_with() -> None:
    about = {"unisono.ranking": json.dumps({"ageing": True, "key": "k", "comparable": [], **kind_of_items(spec_of())})}
    made = read_ranking(pa.schema([], metadata=about))
    assert read_ranking(pa.schema([])) == {}
    assert suits(spec_of(), (), made)
    assert suits(spec_of(popularity_bonus=1.0, trend=3.0, caution=1.0, recent=5.0, k=3), (), made)
    assert not suits(spec_of(popularity_half_life_days=3.0), (), made)  # counted anew
    assert not suits(spec_of(method="vectors"), (), made)  # made of the item vectors


@pytest.mark.parametrize(
    ("key", "value"),
    [("factors", 3), ("regularization", 1.0), ("unobserved", 0.1), ("sweeps", 2), ("content_users", 0.0),
     ("cold_exposure", 0.5), ("cold_quantile", 0.8), ("liked_above", 2.0)],
)  # fmt: skip
def test_settings_of_learned_items_are_refused(key: str, value: float) -> None:
    made = {"ageing": True, "key": "k", "comparable": [], **kind_of_items(spec_of())}
    with pytest.raises(JobError, match=rf"ranking\.{key}: {value}, the published items were made with .*nightly") as e:
        suits(spec_of(**{key: value}), (), made)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(("items", "has"), [({}, "have none"), (VECTORS, "have vectors that are not learned")])
def test_items_that_were_not_learned_are_refused(items: dict, has: str) -> None:
    with pytest.raises(JobError, match=f"ranking: needs .* and the published items {has}"):
        suits(spec_of(), (), items)
