"""The model behind learned ranking vectors: what its maps do to factors and content."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from unisono.transforms.rank.content import ContentScale, add_weighted
from unisono.transforms.rank.model import (
    COMMON,
    RankingModel,
    add_common,
    common_axes,
    solve_model,
    user_weights,
    with_new_items,
)
from unisono.transforms.space.fit.moments import Moments

N, D, K = 300, 6, 4


@pytest.fixture(scope="module")
def parts() -> dict[str, np.ndarray]:
    """Factors with a mean and with axes of different size, left factors, content and counts."""
    rng = np.random.default_rng(0)
    factors = (rng.standard_normal((N, D)) @ np.diag([3, 2, 1, 1, 0.5, 0.3]) + 0.4).astype(np.float32)
    return {
        "factors": factors,
        "left": rng.standard_normal((N, D)).astype(np.float32),
        "content": rng.standard_normal((N, K)),
        "users": rng.integers(1, 50, N),
    }


def scale() -> ContentScale:
    return ContentScale({"image": np.zeros(1), "text": np.arange(3.0)}, {"image": 0.5, "text": 2.0})


@pytest.fixture(scope="module")
def model(parts: dict[str, np.ndarray]) -> RankingModel:
    target = np.concatenate([parts["factors"], parts["left"]], axis=1)
    moments = add_weighted(parts["content"], target, parts["users"])
    return solve_model(parts["factors"], moments, scale(), width=D, ageing=True, content_users=8.0)


def vectors_of(model: RankingModel, parts: dict[str, np.ndarray], rows: slice, **kind: object) -> tuple:
    n = len(range(N)[rows])
    likes = parts["users"][rows] if kind.get("liked", True) else np.zeros(n, int)
    factors, left = (parts[p][rows] if kind.get("liked", True) else np.zeros((n, D)) for p in ("factors", "left"))
    untouched = np.full(n, bool(kind.get("untouched", False)))
    return model.item_vectors(parts["content"][rows], factors, left, likes=likes, untouched=untouched)


def test_ranking_vectors_of_items_with_likes_have_unit_covariance(model: RankingModel, parts: dict) -> None:
    ranking, _, _ = vectors_of(model, parts, slice(None))
    assert not ranking[:, D:].any()
    covariance = np.cov(ranking[:, :D].T, bias=True)
    np.testing.assert_allclose(covariance, np.eye(D), atol=0.15)  # the floor shortens the smallest axis a little
    np.testing.assert_allclose(np.diag(covariance)[:3], 1, atol=0.03)


def test_the_length_of_a_taste_is_the_deviation_of_the_users_scores(model: RankingModel, parts: dict) -> None:
    ranking, history, _ = vectors_of(replace(model, content_users=0.0), parts, slice(None))
    for rows in ([0], [1, 5, 9], list(range(40))):
        p = history[rows].sum(0)
        scores = parts["factors"].astype(float) @ parts["left"][rows].astype(float).sum(0)
        np.testing.assert_allclose(ranking[:, :D] @ p, scores, rtol=1e-6, atol=1e-6)  # the turns cancel
        assert np.linalg.norm(p) == pytest.approx(scores.std(), rel=0.02)


def test_turns_and_content_are_the_dense_solutions(model: RankingModel, parts: dict) -> None:
    v, f, users = parts["factors"].astype(float), parts["content"], parts["users"]
    gram = v.T @ v
    new = v @ np.linalg.inv(gram + 0.3 * np.trace(gram) / D * np.eye(D))
    whitened = v @ model.turn
    # Scores of new items: the turned history vectors against the turned content.
    np.testing.assert_allclose((v @ model.turn_new) @ whitened.T, new @ v.T, rtol=1e-6, atol=1e-8)
    w, size = users / (users + 20), None
    g = f.T @ (w[:, None] * f)
    size = np.trace(g) / K
    target = np.concatenate([parts["factors"], parts["left"]], axis=1).astype(float)
    expected = np.linalg.solve(g + 3 * size * np.eye(K), f.T @ (w[:, None] * target))
    np.testing.assert_allclose(model.content, expected, atol=1e-9)


def test_an_item_without_events_stands_on_its_content_alone(model: RankingModel, parts: dict) -> None:
    model = with_new_items(model, 0.7)
    ranking, history, new = vectors_of(model, parts, slice(0, 9), liked=False, untouched=True)
    predicted = parts["content"][:9] @ model.content
    assert not ranking[:, :D].any()
    np.testing.assert_allclose(ranking[:, D:], 0.7 * predicted[:, :D] @ model.turn, atol=1e-12)
    np.testing.assert_allclose(history, predicted[:, D:] @ model.turn_left, atol=1e-12)
    np.testing.assert_allclose(new, predicted[:, :D] @ model.turn_new, atol=1e-12)


def test_an_item_that_is_only_disliked_has_no_part_of_its_own(model: RankingModel, parts: dict) -> None:
    ranking, _, _ = vectors_of(with_new_items(model, 0.7), parts, slice(0, 9), liked=False)
    assert not ranking.any()


def test_history_vectors_lean_on_content_with_few_likes(model: RankingModel, parts: dict) -> None:
    one = {k: v[:1] for k, v in parts.items()}
    predicted = one["content"] @ model.content
    for likes, share in ((8, 0.5), (24, 0.75)):
        args = one["content"], one["factors"], one["left"]
        _, history, new = model.item_vectors(*args, likes=np.array([likes]), untouched=np.array([False]))
        expected = (share * one["left"] + (1 - share) * predicted[:, D:]) @ model.turn_left
        np.testing.assert_allclose(history, expected, atol=1e-9)
        expected = (share * one["factors"] + (1 - share) * predicted[:, :D]) @ model.turn_new
        np.testing.assert_allclose(new, expected, atol=1e-9)


def test_the_file_holds_the_whole_model(model: RankingModel) -> None:
    model = with_new_items(model, 0.7, ["older", "old"], newness=-0.25)
    found = RankingModel.from_bytes(model.to_bytes())
    for name in ("turn", "turn_left", "turn_new", "content"):
        np.testing.assert_array_equal(getattr(found, name), getattr(model, name))
    for name in ("content_users", "new_items", "newness", "ageing", "comparable", "key"):
        assert getattr(found, name) == getattr(model, name), name
    assert list(found.scale.means) == ["image", "text"]
    assert dict(found.scale.sizes) == {"image": 0.5, "text": 2.0}
    np.testing.assert_array_equal(found.scale.means["text"], np.arange(3.0))
    assert found.to_bytes() == model.to_bytes()


def test_the_key_changes_with_the_history_vectors_and_with_nothing_else(model: RankingModel) -> None:
    assert with_new_items(model, 3.0, ["x"], 1.0).key == model.key
    assert replace(model, turn=2 * model.turn).key == model.key
    changed = [
        replace(model, turn_left=model.turn_left + 1e-9),
        replace(model, turn_new=model.turn_new + 1e-9),
        replace(model, content=model.content + 1e-9),
        replace(model, content_users=9.0),
    ]
    assert len({m.key for m in [model, *changed]}) == 5


@pytest.mark.parametrize("n", [0, 1, 3], ids=["nobody likes anything", "one item", "fewer items than factors"])
def test_few_factors_give_a_model_of_finite_numbers(n: int, parts: dict) -> None:
    factors = parts["factors"][:n]
    moments = Moments.zero()
    if n:
        moments = add_weighted(parts["content"][:n], np.concatenate([factors, factors], 1), parts["users"][:n])
    found = solve_model(factors, moments, scale(), width=D, ageing=False)
    ranking, history, new = found.item_vectors(
        parts["content"][:2], np.zeros((2, D)), np.zeros((2, D)), likes=np.zeros(2, int), untouched=np.ones(2, bool)
    )
    assert all(np.isfinite(v.astype(np.float32)).all() for v in (ranking, history, new))


# --- what is the same for all users ------------------------------------------------------------------------


def test_common_axes_of_items() -> None:
    found = common_axes(np.array([0.0, 1.5, 3.0]), np.array([0, 9, 3]), 3.0, 9.0)
    expected = [[0, 0, 1], [np.log(2.5) / np.log(4), 1, 1 / np.sqrt(10)], [1, np.log(4) / np.log(10), 0.5]]
    np.testing.assert_allclose(found, expected, atol=1e-12)
    np.testing.assert_allclose(common_axes(np.zeros(2), np.zeros(2, int), 0.0, 0.0), [[0, 0, 1], [0, 0, 1]])


def test_weights_of_users_write_trend_bonus_and_caution_as_one_product() -> None:
    late, likes, users = 0.8, 0.5, 3
    axes = np.array([late, likes, 1 / np.sqrt(1 + users), -0.2])
    found = axes @ user_weights(trend=2.0, gain=0.6, caution=0.3)
    assert found == pytest.approx(2 * (late - likes) + 0.6 * late - 0.3 / 2 - 0.2)


def test_users_without_a_taste_are_served_by_what_is_popular_of_late() -> None:
    tastes = np.zeros((3, 2 * D), np.float32)
    tastes[0, 1], tastes[0, D + 1] = 1.0, 1.0
    tastes[1, 2] = 0.25
    weights = user_weights(trend=2.0, gain=0.0, caution=0.3)
    found = add_common(tastes, weights, learned=True)
    assert found.shape == (3, 2 * D + COMMON)
    np.testing.assert_array_equal(found[:, :-COMMON], tastes)
    np.testing.assert_allclose(found[0, -COMMON:], weights, rtol=1e-6)
    np.testing.assert_allclose(found[2, -COMMON:], [1, 0, -0.3, 1], rtol=1e-6)
    np.testing.assert_allclose(found[1, -COMMON:], 0.25 * weights + 0.75 * np.array([1, 0, -0.3, 1]), rtol=1e-6)
    np.testing.assert_allclose(add_common(tastes, weights, learned=False)[:, -COMMON:], np.tile(weights, (3, 1)))
