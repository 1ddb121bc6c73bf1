"""Compiled loops of the exact top k: they choose candidates by float32 scores and rank them by float64 scores."""

from __future__ import annotations

import numpy as np

from unisono.transforms.base.compiled import compiled

_CHUNK = 64  # this many scores are compared with the bound before any of them is handled on its own


@compiled
def scan(
    product: np.ndarray,
    first: np.ndarray,
    bias: np.ndarray,
    start: int,
    seen: np.ndarray,
    seen_at: np.ndarray,
    seen_ends: np.ndarray,
    slack: np.ndarray,
    k: int,
    bounds: np.ndarray,
    kept: np.ndarray,
    scores: np.ndarray,
    counts: np.ndarray,
    crowded: np.ndarray,
) -> None:
    """Adds the items of one block to the candidates of some users.

    Args:
        product: float32 [queries, width], inner products of the users' queries and the block's items.
        first: int64 [users + 1]: user u has the queries `first[u]` to `first[u + 1]`.
        bias: float32 [width], added to each item's score.
        start: index of the block's first item.
        seen: int64, items that must not appear, by user and ascending.
        seen_at: int64 [users], position in `seen` of the user's first item that is not below `start`; moved on.
        seen_ends: int64 [users + 1]: user u has the positions `seen_ends[u]` to `seen_ends[u + 1]` of `seen`.
        slack: float64 [users], how far below the k-th score a candidate may lie.
        k: how many items are wanted.
        bounds: float32 [users], the score that a candidate must reach; raised.
        kept: int64 [users, room], the candidates' item indices; extended.
        scores: float32 [users, room], the candidates' scores; extended.
        counts: int64 [users], number of candidates; raised.
        crowded: bool [users], set for a user whose candidates need more than `room` places.
    """
    width = product.shape[1]
    level = np.empty(width, np.float32)
    for u in range(len(first) - 1):
        if crowded[u] or first[u] == first[u + 1]:
            continue
        _best_of_queries(product, first[u], first[u + 1], bias, level)
        while seen_at[u] < seen_ends[u + 1] and seen[seen_at[u]] < start + width:
            level[seen[seen_at[u]] - start] = -np.inf
            seen_at[u] += 1
        bounds[u], counts[u], crowded[u] = _keep(
            level, start, slack[u], k, bounds[u], counts[u], kept[u], scores[u]
        )


@compiled
def _best_of_queries(product: np.ndarray, start: int, stop: int, bias: np.ndarray, level: np.ndarray) -> None:
    """Writes into `level` each item's highest score by the queries `start` to `stop`, plus its bias."""
    width = len(level)
    row = product[start]
    for j in range(width):
        level[j] = row[j]
    for r in range(start + 1, stop):
        row = product[r]
        for j in range(width):
            level[j] = max(level[j], row[j])
    for j in range(width):
        level[j] += bias[j]


@compiled
def _keep(
    level: np.ndarray,
    start: int,
    slack: float,
    k: int,
    bound: float,
    count: int,
    kept: np.ndarray,
    scores: np.ndarray,
) -> tuple[float, int, bool]:
    """Adds the items whose score reaches the bound; returns the new bound, the new count, and whether room is short.

    Most chunks hold no score that reaches the bound, and are passed after one comparison without branches.
    """
    room = len(kept)
    for c in range(0, len(level), _CHUNK):
        end = min(c + _CHUNK, len(level))
        hits = 0
        for j in range(c, end):
            hits += level[j] >= bound
        if hits == 0:
            continue
        for j in range(c, end):
            if level[j] >= bound:
                if count == room:
                    bound, count = _compact(kept, scores, count, k, slack)
                    if count == room:
                        return bound, count, True
                    if level[j] < bound:
                        continue
                kept[count], scores[count] = start + j, level[j]
                count += 1
    if count > 2 * k:  # the next block then has a higher bound
        bound, count = _compact(kept, scores, count, k, slack)
    return bound, count, False


@compiled
def _compact(kept: np.ndarray, scores: np.ndarray, count: int, k: int, slack: float) -> tuple[float, int]:
    """Drops the candidates that lie more than the slack below the k-th score; returns the new bound and count."""
    kth = np.partition(scores[:count], count - k)[count - k]
    bound = np.nextafter(np.float32(kth - slack), np.float32(-np.inf))
    n = 0
    for i in range(count):
        if scores[i] >= bound:
            kept[n], scores[n] = kept[i], scores[i]
            n += 1
    return bound, n


@compiled
def rank(
    queries: np.ndarray,
    first: np.ndarray,
    items: np.ndarray,
    bias: np.ndarray,
    ranks: np.ndarray,
    kept: np.ndarray,
    counts: np.ndarray,
    out: np.ndarray,
    out_scores: np.ndarray,
) -> None:
    """Scores the candidates of some users in float64 and writes each user's best.

    Args:
        queries: float32 [queries, dim].
        first: int64 [users + 1]: user u has the queries `first[u]` to `first[u + 1]`.
        items: float32 [items, dim].
        bias: float32 [items], added to each item's score.
        ranks: int64 [items]; among equal scores, the item of lower rank comes first.
        kept: int64 [users, room], item indices of the candidates.
        counts: int64 [users], number of candidates.
        out: int64 [users, k], receives item indices; places without an item keep what they hold.
        out_scores: float32 [users, k], receives the scores.
    """
    for u in range(len(counts)):
        if first[u] == first[u + 1]:
            continue
        n = counts[u]
        mine = kept[u, :n]
        mine = mine[np.argsort(ranks[mine])]
        exact = np.empty(n, np.float32)
        for i in range(n):
            best = -np.inf
            for r in range(first[u], first[u + 1]):
                best = max(best, _dot(queries[r], items[mine[i]]))
            exact[i] = np.float32(best + bias[mine[i]])
        place = np.argsort(-exact, kind="mergesort")  # stable, so equal scores stay in order of rank
        for at in range(min(n, out.shape[1])):
            i = place[at]
            if exact[i] == -np.inf:
                break
            out[u, at], out_scores[u, at] = mine[i], exact[i]


@compiled
def _dot(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the inner product in float64, summed in one fixed order over eight lanes.

    With a single sum, each addition would have to wait for the one before it.
    """
    lanes = np.zeros(8)
    whole = len(a) // 8 * 8
    for d in range(0, whole, 8):
        for i in range(8):
            lanes[i] += np.float64(a[d + i]) * np.float64(b[d + i])
    total = 0.0
    for i in range(8):
        total += lanes[i]
    for d in range(whole, len(a)):
        total += np.float64(a[d]) * np.float64(b[d])
    return total
