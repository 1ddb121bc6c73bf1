"""Exact top k by inner product: estimates of the scores choose candidates, and float64 scores rank them."""

from __future__ import annotations

import numpy as np

from unisono.transforms.rank.topk_blocks import find
from unisono.transforms.rank.topk_estimates import float_estimates, int8_estimates, int8_pays
from unisono.transforms.rank.topk_search import Search, by_user, kernels, rank_all
from unisono.transforms.rank.topk_torch import search_torch

_PROBE = 512  # users for whom int8 estimates are tried first
_MOST_CROWDED = 0.2  # the fraction of them for whom int8 estimates may be too coarse


def top_items(
    queries: np.ndarray,
    items: np.ndarray,
    k: int,
    *,
    exclude: tuple[np.ndarray, np.ndarray] | None = None,
    ranks: np.ndarray | None = None,
    hidden: np.ndarray | None = None,
    device: str = "cpu",
) -> tuple[np.ndarray, np.ndarray]:
    """Finds each user's k items of highest score, exactly. The score is the inner product.

    Products of float32 or, where torch and the processor are fast at it, of int8 values estimate the scores. Every
    item that can be among the best k by the bounds of these estimates is a candidate. The candidates are scored in
    float64, rounded to float32 and ranked by these scores.

    Args:
        queries: float32 [u, dim], finite, one row for each user.
        items: float32 [m, dim], finite; may be memory-mapped.
        k: at least 1.
        exclude: pairs that must not appear: user indices and item indices, integers [p] each. None means no pairs.
        ranks: int64 [m]; among equal scores, the item of lower rank comes first. None means the lower index.
        hidden: bool [m], true for an item that never appears. None means no item.
        device: `cpu`, or `cuda` to compute products and candidates with torch. Both return the same items and scores.

    Returns:
        Item indices int64 [u, k] and scores float32 [u, k], best first. A user with fewer than k items gets −1 and
        −inf in the remaining places.

    Raises:
        ValueError: k is below 1.
        JobError: numba is not installed.

    Guarantees:
        The result for a user depends on that user's query and on the set of items only.
    """
    if k < 1:
        raise ValueError(f"k is {k}; at least 1 is needed")
    found = np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), -np.inf, np.float32)
    if len(items) and len(queries):
        ranks = np.arange(len(items)) if ranks is None else np.asarray(ranks, np.int64)
        hidden = np.zeros(len(items), bool) if hidden is None else np.asarray(hidden, bool)
        seen = by_user(exclude, len(queries))
        search = Search(np.ascontiguousarray(queries, np.float32), items, ranks, hidden, seen, k)
        if device == "cpu":
            _search_cpu(search, *found)
        else:
            search_torch(search, device, *found)
    return found


def _search_cpu(search: Search, rows: np.ndarray, scores: np.ndarray) -> None:
    """Searches by the cheapest estimates, then for crowded users by finer ones, then by none.

    If int8 estimates crowd many of the first users, all other users are searched for by float32 ones.
    """
    kernels()
    users, crowded = np.arange(len(search.queries)), np.ones(len(search.queries), bool)
    if int8_pays(len(users), *search.items.shape):
        coarse = int8_estimates(search.queries, search.items)
        if coarse is not None:
            find(search, coarse, users[:_PROBE], (crowded, rows, scores))
            if crowded[:_PROBE].mean() <= _MOST_CROWDED:
                find(search, coarse, users[_PROBE:], (crowded, rows, scores))
    left = np.flatnonzero(crowded)
    if len(left):
        find(search, float_estimates(search.queries, search.items), left, (crowded, rows, scores))
    for user in np.flatnonzero(crowded).tolist():
        rank_all(search, user, rows, scores)
