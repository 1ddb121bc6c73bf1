"""Exact top k, compared with a sort of float64 scores."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import numpy as np
import pytest

from unisono.transforms.rank import topk, topk_blocks
from unisono.transforms.rank.topk import top_items
from unisono.transforms.rank.topk_estimates import Estimates, float_estimates, int8_estimates, int8_pays


def reference(
    queries: np.ndarray,
    items: np.ndarray,
    k: int,
    exclude: tuple[np.ndarray, np.ndarray] | None = None,
    ranks: np.ndarray | None = None,
    hidden: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Scores every item in float64, rounds to float32, and sorts by score and rank."""
    ranks = np.arange(len(items)) if ranks is None else ranks
    scores = (queries.astype(np.float64) @ items.T.astype(np.float64)).astype(np.float32)
    if hidden is not None:
        scores[:, hidden] = -np.inf
    if exclude is not None:
        scores[exclude] = -np.inf
    rows = np.full((len(queries), k), -1)
    best = np.full((len(queries), k), -np.inf, np.float32)
    for u, own in enumerate(scores):
        order = np.lexsort((ranks, -own))
        order = order[own[order] > -np.inf][:k]
        rows[u, : len(order)], best[u, : len(order)] = order, own[order]
    return rows, best


def draw(seed: int, users: int = 300, items: int = 9000, dim: int = 24) -> Iterator[np.ndarray]:
    """Draws small integers in float32, so that scores are exact and many are equal."""
    rng = np.random.default_rng(seed)
    return (rng.integers(-4, 5, (n, dim)).astype(np.float32) / 8 for n in (users, items))


WAYS = ["int8", "float32", "torch-cpu"]


@pytest.fixture(params=WAYS)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A `device` of `top_items`, with int8 estimates allowed or not."""
    if request.param != "float32" and importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")
    if request.param == "int8":
        monkeypatch.setattr(topk, "int8_pays", lambda users, items, dim: items > 0)
        monkeypatch.setattr(topk_blocks, "_LEAST_BLOCKS", 1)  # a guess is the first bound, also for few items
    if request.param == "float32":
        monkeypatch.setattr(topk, "int8_pays", lambda users, items, dim: False)
    return "torch-cpu" if request.param == "torch-cpu" else "cpu"


@pytest.mark.parametrize("case", ["plain", "excluded", "ranks", "hidden", "all"])
def test_agrees_with_a_sort(case: str, device: str) -> None:
    queries, items = draw(1)
    rng = np.random.default_rng(2)
    options: dict = {}
    if case in ("excluded", "all"):
        options["exclude"] = rng.integers(0, 300, 20_000), rng.integers(0, len(items), 20_000)
    if case in ("ranks", "all"):
        options["ranks"] = rng.permutation(len(items))
    if case in ("hidden", "all"):
        options["hidden"] = rng.random(len(items)) < 0.6
    rows, scores = top_items(queries, items, 50, device=device, **options)
    expected = reference(queries, items, 50, **options)
    np.testing.assert_array_equal(rows, expected[0])
    np.testing.assert_array_equal(scores, expected[1])


@pytest.mark.parametrize("shape", ["alike", "lengths", "columns", "all scores below 0", "tiny", "one direction"])
def test_real_numbers_agree_with_float64(shape: str, device: str) -> None:
    rng = np.random.default_rng(3)
    queries, items = (rng.standard_normal((n, 97)).astype(np.float32) for n in (300, 20_000))
    if shape == "lengths":
        items *= rng.lognormal(0, 2, (len(items), 1)).astype(np.float32)
        queries *= rng.lognormal(0, 2, (len(queries), 1)).astype(np.float32)
        items[::7] = queries[::5] = 0
    elif shape == "columns":
        items *= rng.lognormal(0, 3, 97).astype(np.float32)
        queries[:, 3] = items[:, 4] = 0
    elif shape == "all scores below 0":
        queries[:, 0], items[:, 0] = -30, 30
    elif shape == "tiny":
        queries *= np.float32(1e-12)
        items *= np.float32(1e-12)
    elif shape == "one direction":  # scores differ by little, so there are more candidates than room
        items[:, 1:] *= np.float32(1e-4)
        items[:, 0] = 1
    rows, scores = top_items(queries, items, 100, device=device)
    np.testing.assert_array_equal(rows, reference(queries, items, 100)[0])
    exact = queries.astype(np.float64) @ items.T.astype(np.float64)
    np.testing.assert_allclose(scores, -np.sort(-exact, 1)[:, :100], rtol=1e-6, atol=1e-40)


def test_more_equal_items_than_candidates_have_room(device: str) -> None:
    rng = np.random.default_rng(4)
    items = np.repeat(rng.standard_normal((3, 8)).astype(np.float32), 4000, axis=0)
    queries = rng.standard_normal((5, 8)).astype(np.float32)
    exclude = np.array([0, 0, 1]), np.array([0, 4000, 8001])
    rows, _ = top_items(queries, items, 30, exclude=exclude, device=device)
    np.testing.assert_array_equal(rows, reference(queries, items, 30, exclude=exclude)[0])


def test_a_guess_that_is_too_high_is_corrected(device: str) -> None:
    """The sample that the guess comes from holds the only items of high score, and they are excluded."""
    rng = np.random.default_rng(5)
    queries, items = (rng.standard_normal((n, 16)).astype(np.float32) for n in (40, 20_000))
    sampled = np.arange(2048) * len(items) // 2048
    queries[:, 0], items[:, 0] = 5, 0
    items[sampled, 0] = 5
    exclude = np.repeat(np.arange(40), len(sampled)), np.tile(sampled, 40)
    rows, _ = top_items(queries, items, 30, exclude=exclude, device=device)
    np.testing.assert_array_equal(rows, reference(queries, items, 30, exclude=exclude)[0])


@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_scores_are_within_the_error_of_their_estimates(kind: str) -> None:
    rng = np.random.default_rng(6)
    queries, items = (rng.standard_normal((n, 65)).astype(np.float32) for n in (60, 5000))
    items *= rng.lognormal(0, 1, (len(items), 1)).astype(np.float32)
    if kind == "int8" and not int8_pays(1000, 5000, 65):
        pytest.skip("int8 products are not fast here")
    estimates: Estimates | None = (float_estimates if kind == "float32" else int8_estimates)(queries, items)
    assert estimates is not None
    exact = queries.astype(np.float64) @ items[estimates.ids].T.astype(np.float64)
    for block, start in enumerate(range(0, len(items), 2048)):
        places = slice(start, min(start + 2048, len(items)))
        product: np.ndarray = np.empty((len(queries), places.stop - start), estimates.dtype)
        estimates.product(np.arange(len(queries)), places, product)
        error = estimates.reach * estimates.near[block] + estimates.loose * estimates.size[block]
        off = np.abs(exact[:, places] - estimates.unit[:, None] * product * estimates.scale[block])
        assert (off <= (estimates.unit * error)[:, None]).all()


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
def test_corners(users: int, items: int, k: int, device: str) -> None:
    queries, shelf = np.ones((users, 4), np.float32), np.ones((items, 4), np.float32)
    rows, scores = top_items(queries, shelf, k, device=device)
    assert rows.shape == scores.shape == (users, k)
    expected = np.full((users, k), -1)
    expected[:, : min(items, k)] = np.arange(items)[:k]
    np.testing.assert_array_equal(rows, expected)
    assert (np.isneginf(scores) == (rows < 0)).all()


def test_int8_products_leave_the_number_of_torch_threads_as_it_was() -> None:
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    queries, items = draw(7, users=600)
    top_items(queries, items, 10)
    assert torch.get_num_threads() == before


def test_k_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="k is 0"):
        top_items(np.ones((1, 2), np.float32), np.ones((1, 2), np.float32), 0)
