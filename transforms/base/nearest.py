"""Exact nearest rows, and measures of them: whether a row finds its pair, and whether its neighbours share its label.

NumPy only. Scores are computed in float64 and compared in float32, so equal vectors have equal scores, no matter how
the rows are split into blocks. `rank.topk` finds the best items of large catalogues faster; it needs numba.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unisono.transforms.base.columns import unit_rows

_BLOCK_VALUES = 1 << 22  # scores that are in memory at once: 32 MiB of float64


def _block_rows(columns: int) -> int:
    return max(1, _BLOCK_VALUES // max(columns, 1))


def _finite(vectors: np.ndarray) -> np.ndarray:
    vectors = np.asarray(vectors, np.float64)
    if not np.isfinite(vectors).all():
        raise ValueError("vectors hold NaN or infinity; finite values are needed")
    return vectors


def _unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Scales rows to unit L2 norm in float64; a row of zeros stays, so its cosine with any row is 0."""
    return unit_rows(_finite(vectors))


def _check_k(k: int) -> None:
    if k < 1:
        raise ValueError(f"k is {k}; at least 1 is needed")


# --- retrieval of pairs ------------------------------------------------------------------------------------


def paired_ranks(queries: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Ranks each query's own target among all targets by cosine.

    Args:
        queries: float [n, dim].
        targets: float [n, dim]; row i is the own target of query i.

    Returns:
        float64 [n]; 1 is the best rank. Targets with equal scores share the middle of their ranks: if all n scores are
        equal, each rank is (n + 1) / 2.

    Raises:
        ValueError: the shapes differ, there is no row, or a value is not finite.
    """
    if queries.shape != targets.shape or queries.ndim != 2 or len(queries) == 0:
        raise ValueError(f"queries {queries.shape}, targets {targets.shape}: two equal shapes [n > 0, dim] are needed")
    queries, targets = _unit_rows(queries), _unit_rows(targets)
    ranks = np.empty(len(queries))
    step = _block_rows(len(targets))
    for start in range(0, len(queries), step):
        scores = (queries[start : start + step] @ targets.T).astype(np.float32)
        rows = np.arange(len(scores))
        own = scores[rows, start + rows][:, None]
        above, level = (scores > own).sum(1), (scores == own).sum(1)
        ranks[start : start + step] = above + (level + 1) / 2
    return ranks


def retrieval(queries: np.ndarray, targets: np.ndarray, ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """Measures how well queries find their own targets.

    Args:
        queries: float [n, dim].
        targets: float [n, dim]; row i is the own target of query i.
        ks: the lengths k at which recall is measured, each 1 or more.

    Returns:
        `recall@k` for each k (the fraction of ranks up to k), `median_rank`, `mrr` (the mean of 1 / rank), and `n`. The
        ranks are those of `paired_ranks`.

    Raises:
        ValueError: a k is below 1, the shapes differ, there is no row, or a value is not finite.
    """
    for k in ks:
        _check_k(k)
    ranks = paired_ranks(queries, targets)
    found = {f"recall@{k}": float((ranks <= k).mean()) for k in ks}
    return found | {"median_rank": float(np.median(ranks)), "mrr": float((1 / ranks).mean()), "n": len(ranks)}


def chance_recall(n: int, k: int) -> float:
    """Returns the mean recall@k of a random order of n candidates.

    Raises:
        ValueError: k is below 1.
    """
    _check_k(k)
    return min(k, n) / n


def chance_mrr(n: int) -> float:
    """Returns the mean reciprocal rank of a random order of n candidates: the n-th harmonic number divided by n."""
    return float((1 / np.arange(1, n + 1)).mean())


# --- neighbours of the same label --------------------------------------------------------------------------


def same_label_neighbours(vectors: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Measures which fraction of a row's k nearest other rows has the row's label, on average over rows.

    Nearest means the highest cosine; among equal cosines, the row with the lower index comes first.

    Args:
        vectors: float [n, dim].
        labels: [n], of any dtype whose values can be compared.
        k: the number of neighbours; if there are fewer other rows, all of them are taken.

    Raises:
        ValueError: there are fewer than two rows, the lengths differ, or a value is not finite.
    """
    if len(vectors) != len(labels) or len(vectors) < 2:
        raise ValueError(f"{len(vectors)} vectors, {len(labels)} labels: equal numbers, 2 or more, are needed")
    unit = _unit_rows(vectors)
    rows = np.arange(len(unit))
    neighbours, _ = top_k(unit, unit, min(k, len(unit) - 1), exclude=(rows, rows))
    _, codes = np.unique(labels, return_inverse=True)
    return float((codes[neighbours] == codes[:, None]).mean())


def chance_same_label(labels: np.ndarray) -> float:
    """Returns the mean of `same_label_neighbours` for random vectors.

    Args:
        labels: [n], of any dtype whose values can be compared.
    """
    _, counts = np.unique(labels, return_counts=True)
    n = int(counts.sum())
    return float((counts * (counts - 1)).sum() / (n * (n - 1)))


# --- exact top k -------------------------------------------------------------------------------------------


def best_columns(scores: np.ndarray, k: int, ties: np.ndarray | None = None) -> np.ndarray:
    """Finds the columns of each row's k highest scores.

    Args:
        scores: float [n, m].
        k: at least 1.
        ties: [n, m]; among equal scores, the lower value comes first. None means that the lower column comes first.

    Returns:
        int64 [n, min(k, m)], best first.
    """
    k = min(k, scores.shape[1])
    if ties is not None:
        return np.lexsort((ties, -scores))[:, :k]
    if k < scores.shape[1]:
        chosen = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        least = np.take_along_axis(scores, chosen, 1).min(1, keepdims=True)
        # Among scores equal to the k-th highest, argpartition chooses arbitrarily. Choose the lowest columns instead.
        crowded = np.flatnonzero((scores >= least).sum(1) > k)
        if len(crowded):
            part, edge = scores[crowded], least[crowded]
            room = k - (part > edge).sum(1, keepdims=True)
            level = part == edge
            keep = (part > edge) | (level & (level.cumsum(1) <= room))
            chosen[crowded] = np.nonzero(keep)[1].reshape(-1, k)
        chosen = np.sort(chosen, axis=1)
    else:
        chosen = np.broadcast_to(np.arange(k), (len(scores), k))
    order = np.argsort(-np.take_along_axis(scores, chosen, 1), axis=1, kind="stable")
    return np.take_along_axis(chosen, order, 1)


def top_k(
    queries: np.ndarray,
    items: np.ndarray,
    k: int,
    exclude: tuple[np.ndarray, np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Finds for each query the k items with the highest inner products, exactly.

    Among equal scores, the item with the lower index comes first.

    Args:
        queries: float [n, dim].
        items: float [m, dim].
        k: at least 1.
        exclude: pairs that must not appear: query indices and item indices, integers [p] each. None means no pairs.

    Returns:
        indices: int64 [n, min(k, m)], item indices, best first. Where `exclude` leaves fewer items, the rest is −1.
        scores: float32 [n, min(k, m)]; −inf where the index is −1.

    Raises:
        ValueError: k is below 1, there is no item, or a value is not finite.
    """
    _check_k(k)
    if len(items) == 0:
        raise ValueError("no items to rank")
    k = min(k, len(items))
    queries, items = _finite(queries), _finite(items)
    indices = np.empty((len(queries), k), np.int64)
    best = np.empty((len(queries), k), np.float32)
    if exclude is not None:
        order = np.argsort(exclude[0], kind="stable")
        out_row, out_item = np.asarray(exclude[0])[order], np.asarray(exclude[1])[order]
    step = _block_rows(len(items))
    for start in range(0, len(queries), step):
        scores = (queries[start : start + step] @ items.T).astype(np.float32)
        if exclude is not None:
            low, high = np.searchsorted(out_row, (start, start + len(scores)))
            scores[out_row[low:high] - start, out_item[low:high]] = -np.inf
        chosen = best_columns(scores, k)
        indices[start : start + step] = chosen
        best[start : start + step] = np.take_along_axis(scores, chosen, 1)
    indices[np.isneginf(best)] = -1
    return indices, best


def neighbour_overlap(a: np.ndarray, b: np.ndarray, k: int = 10) -> float:
    """Measures how well the neighbours in two spaces agree.

    Args:
        a: float [n, dim_a], the vectors of n items in one space.
        b: float [n, dim_b], the vectors of the same items in the other space.
        k: the number of neighbours; if there are fewer other rows, all of them are taken.

    Returns:
        The fraction of a row's k nearest other rows (by cosine) in `a` that are also among those in `b`, on average
        over rows.

    Raises:
        ValueError: the lengths differ, there are fewer than two rows, or a value is not finite.
    """
    if len(a) != len(b) or len(a) < 2:
        raise ValueError(f"{len(a)} and {len(b)} rows: equal numbers, 2 or more, are needed")
    rows = np.arange(len(a))
    k = min(k, len(a) - 1)
    first, second = (top_k(u, u, k, exclude=(rows, rows))[0] for u in (_unit_rows(a), _unit_rows(b)))
    return float((first[:, :, None] == second[:, None, :]).any(2).mean())
