"""Exact top k, compared with a sort of float64 scores."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from unisono.transforms.rank.topk import top_items


def reference(
    queries: np.ndarray,
    items: np.ndarray,
    k: int,
    first: np.ndarray | None = None,
    exclude: tuple[np.ndarray, np.ndarray] | None = None,
    ranks: np.ndarray | None = None,
    bias: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Scores every item in float64, rounds to float32, and sorts by score and rank."""
    first = np.arange(len(queries) + 1) if first is None else first
    ranks = np.arange(len(items)) if ranks is None else ranks
    scores = queries.astype(np.float64) @ items.T.astype(np.float64)
    rows = np.full((len(first) - 1, k), -1)
    best = np.full((len(first) - 1, k), -np.inf, np.float32)
    for u in range(len(first) - 1):
        own = scores[first[u] : first[u + 1]].max(0, initial=-np.inf)
        own = (own + (0 if bias is None else bias)).astype(np.float32)
        if exclude is not None:
            own[exclude[1][exclude[0] == u]] = -np.inf
        order = np.lexsort((ranks, -own))
        order = order[own[order] > -np.inf][:k]
        rows[u, : len(order)], best[u, : len(order)] = order, own[order]
    return rows, best


def draw(seed: int, users: int = 70, items: int = 9000, dim: int = 24) -> Iterator[np.ndarray]:
    """Draws small integers in float32, so that scores are exact and many are equal."""
    rng = np.random.default_rng(seed)
    return (rng.integers(-4, 5, (n, dim)).astype(np.float32) / 8 for n in (users, items))


DEVICES = ["cpu", "torch-cpu"]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", ["plain", "interests", "excluded", "ranks", "bias", "all"])
def test_agrees_with_a_sort(case: str, device: str) -> None:
    queries, items = draw(1)
    rng = np.random.default_rng(2)
    options: dict = {}
    if case in ("interests", "all"):
        counts = rng.integers(0, 4, 40)  # some users have no query at all
        counts[-1] = max(0, 70 - counts[:-1].sum())
        options["first"] = np.minimum(np.concatenate([[0], np.cumsum(counts)]), 70)
    if case in ("excluded", "all"):
        users = len(options["first"]) - 1 if "first" in options else 70
        options["exclude"] = rng.integers(0, users, 20_000), rng.integers(0, len(items), 20_000)
    if case in ("ranks", "all"):
        options["ranks"] = rng.permutation(len(items))
    if case in ("bias", "all"):
        options["bias"] = np.where(rng.random(len(items)) < 0.3, -np.inf, rng.integers(-3, 1, len(items)) / 4)
    rows, scores = top_items(queries, items, 50, device=device, **options)
    expected = reference(queries, items, 50, **options)
    np.testing.assert_array_equal(rows, expected[0])
    np.testing.assert_array_equal(scores, expected[1])


@pytest.mark.parametrize("device", DEVICES)
def test_real_numbers_agree_with_float64(device: str) -> None:
    rng = np.random.default_rng(3)
    queries, items = (rng.standard_normal((n, 96)).astype(np.float32) for n in (50, 12_000))
    rows, scores = top_items(queries, items, 100, device=device)
    exact = queries.astype(np.float64) @ items.T.astype(np.float64)
    np.testing.assert_allclose(scores, -np.sort(-exact, 1)[:, :100], rtol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(exact, rows, 1), scores, rtol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
def test_more_equal_items_than_candidates_have_room(device: str) -> None:
    rng = np.random.default_rng(4)
    items = np.repeat(rng.standard_normal((3, 8)).astype(np.float32), 4000, axis=0)
    queries = rng.standard_normal((5, 8)).astype(np.float32)
    exclude = np.array([0, 0, 1]), np.array([0, 4000, 8001])
    rows, _ = top_items(queries, items, 30, exclude=exclude, device=device)
    np.testing.assert_array_equal(rows, reference(queries, items, 30, exclude=exclude)[0])


def test_does_not_depend_on_how_users_and_items_are_blocked() -> None:
    rng = np.random.default_rng(5)
    queries, items = (rng.standard_normal((n, 32)).astype(np.float32) for n in (300, 5000))
    rows, scores = top_items(queries, items, 20)
    shuffle = rng.permutation(len(items))
    for u in (0, 17, 299):
        alone, alone_scores = top_items(queries[u : u + 1], items[shuffle], 20, ranks=shuffle)
        np.testing.assert_array_equal(shuffle[alone[0]], rows[u])
        np.testing.assert_array_equal(alone_scores[0], scores[u])  # bit for bit


@pytest.mark.parametrize(
    ("users", "items", "k"), [(0, 5, 3), (4, 0, 3), (3, 2, 10), (1, 1, 1)],
    ids=["no users", "no items", "k beyond the items", "one of each"],
)  # fmt: skip
def test_corners(users: int, items: int, k: int) -> None:
    queries, shelf = np.ones((users, 4), np.float32), np.ones((items, 4), np.float32)
    rows, scores = top_items(queries, shelf, k)
    assert rows.shape == scores.shape == (users, k)
    expected = np.full((users, k), -1)
    expected[:, : min(items, k)] = np.arange(items)[:k]
    np.testing.assert_array_equal(rows, expected)
    assert (np.isneginf(scores) == (rows < 0)).all()


def test_k_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="k is 0"):
        top_items(np.ones((1, 2), np.float32), np.ones((1, 2), np.float32), 0)
