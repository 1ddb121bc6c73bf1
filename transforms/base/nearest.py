"""Metrics: how well a space pairs modalities, groups what belongs together, and ranks what users turn to.

NumPy only. Scores are computed in float64 and compared in float32: equal vectors tie, whatever the blocking.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_BLOCK_VALUES = 1 << 22  # scores held at a time: 32 MiB of float64


def _block_rows(columns: int) -> int:
    return max(1, _BLOCK_VALUES // max(columns, 1))


def _finite(vectors: np.ndarray) -> np.ndarray:
    vectors = np.asarray(vectors, np.float64)
    if not np.isfinite(vectors).all():
        raise ValueError("vectors hold NaN or infinity; finite values are needed")
    return vectors


def _unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Scales rows to unit L2 norm in float64; a zero row stays zero, so its cosine with anything is 0."""
    vectors = _finite(vectors)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)


def _check_k(k: int) -> None:
    if k < 1:
        raise ValueError(f"k is {k}; at least 1 is needed")


# --- retrieval of pairs ------------------------------------------------------------------------------------


def paired_ranks(queries: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Ranks each query's own target among all targets by cosine.

    Args:
        queries: float [n, dim]; row i belongs to row i of `targets`.
        targets: float [n, dim].

    Returns:
        float64 [n], 1 is best. Ties count by mid-rank: where all n targets tie, the rank is (n + 1) / 2.

    Raises:
        ValueError: the shapes differ, there is no row, or a value is not finite.
    """
    if queries.shape != targets.shape or queries.ndim != 2 or len(queries) == 0:
        raise ValueError(f"queries {queries.shape}, targets {targets.shape}: two equal [n > 0, dim] needed")
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
    """Measures how well queries find their own targets; see `paired_ranks` for arguments, ties and errors.

    Returns:
        `recall@k` per k (the fraction of ranks ≤ k), `median_rank`, `mrr` (mean of 1 / rank), `n`.
    """
    for k in ks:
        _check_k(k)
    ranks = paired_ranks(queries, targets)
    found = {f"recall@{k}": float((ranks <= k).mean()) for k in ks}
    return found | {"median_rank": float(np.median(ranks)), "mrr": float((1 / ranks).mean()), "n": len(ranks)}


def chance_recall(n: int, k: int) -> float:
    """Gives the recall@k that a random order of n candidates has on average."""
    _check_k(k)
    return min(k, n) / n


def chance_mrr(n: int) -> float:
    """Gives the mean reciprocal rank that a random order of n candidates has: the n-th harmonic number over n."""
    return float((1 / np.arange(1, n + 1)).mean())


# --- neighbours of the same label --------------------------------------------------------------------------


def same_label_neighbours(vectors: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Gives the mean fraction of a row's k nearest others (cosine; ties by lower row) that share its label.

    Args:
        vectors: float [n, dim].
        labels: [n], any dtype that compares.
        k: where fewer than k others exist, all of them count.

    Raises:
        ValueError: fewer than two rows, lengths that differ, or a value that is not finite.
    """
    if len(vectors) != len(labels) or len(vectors) < 2:
        raise ValueError(f"{len(vectors)} vectors, {len(labels)} labels: equal numbers, 2 or more, needed")
    unit = _unit_rows(vectors)
    rows = np.arange(len(unit))
    neighbours, _ = top_k(unit, unit, min(k, len(unit) - 1), exclude=(rows, rows))
    _, codes = np.unique(labels, return_inverse=True)
    return float((codes[neighbours] == codes[:, None]).mean())


def chance_same_label(labels: np.ndarray) -> float:
    """Gives what `same_label_neighbours` is on average for vectors that know nothing of the labels."""
    _, counts = np.unique(labels, return_counts=True)
    n = int(counts.sum())
    return float((counts * (counts - 1)).sum() / (n * (n - 1)))


# --- exact top k -------------------------------------------------------------------------------------------


def _top_of_block(scores: np.ndarray, k: int) -> np.ndarray:
    """Gives the columns of each row's k highest scores, best first, ties by lower column: int64 [n, k]."""
    if k < scores.shape[1]:
        chosen = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        least = np.take_along_axis(scores, chosen, 1).min(1, keepdims=True)
        # argpartition takes any of those level with the k-th; where too many are level, the first must win.
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
    """Finds each query's k items of highest inner product, exactly; ties by lower item index.

    Args:
        queries: float [n, dim].
        items: float [m, dim].
        k: at least 1.
        exclude: query index and item index, integers [p] each: pairs that must not appear.

    Returns:
        item indices int64 and scores float32, [n, min(k, m)], best first. Where exclusion leaves fewer items,
        the rest is −1 with score −inf.

    Raises:
        ValueError: k below 1, no item, or a value that is not finite.
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
        chosen = _top_of_block(scores, k)
        indices[start : start + step] = chosen
        best[start : start + step] = np.take_along_axis(scores, chosen, 1)
    indices[np.isneginf(best)] = -1
    return indices, best


def neighbour_overlap(a: np.ndarray, b: np.ndarray, k: int = 10) -> float:
    """Gives the mean fraction of a row's k nearest others by `a` that are also among those by `b` (cosine).

    Args:
        a, b: float [n, dim], rows of the same items; the two dims may differ.

    Raises:
        ValueError: lengths that differ, fewer than two rows, or a value that is not finite.
    """
    if len(a) != len(b) or len(a) < 2:
        raise ValueError(f"{len(a)} and {len(b)} rows: equal numbers, 2 or more, needed")
    rows = np.arange(len(a))
    k = min(k, len(a) - 1)
    first, second = (top_k(u, u, k, exclude=(rows, rows))[0] for u in (_unit_rows(a), _unit_rows(b)))
    return float((first[:, :, None] == second[:, None, :]).any(2).mean())


# --- rankings against what users turned to -----------------------------------------------------------------


def _hits(ranked: np.ndarray, users: np.ndarray, items: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Marks the hits of each user who has relevant items.

    Returns:
        hits: bool [u, min(k, width)]; relevant: how many distinct relevant items each of them has, int64 [u].

    Raises:
        ValueError: k below 1, lengths that differ, a user outside `ranked`, or no pair at all.
    """
    _check_k(k)
    users, items = np.asarray(users, np.int64), np.asarray(items, np.int64)
    if len(users) != len(items) or len(users) == 0:
        raise ValueError(f"{len(users)} users, {len(items)} items: equal numbers, at least one, are needed")
    if users.min() < 0 or users.max() >= len(ranked) or items.min() < 0:
        raise ValueError(f"pairs must have 0 <= user < {len(ranked)} and item >= 0")
    ranked = np.asarray(ranked, np.int64)[:, :k]
    width = max(int(items.max()), int(ranked.max(initial=0))) + 1
    pairs = np.unique(users * width + items)
    owners, relevant = np.unique(pairs // width, return_counts=True)
    shown = ranked[owners]
    hits = np.isin(owners[:, None] * width + shown, pairs) & (shown >= 0)
    return hits, relevant


def recall_at_k(ranked: np.ndarray, users: np.ndarray, items: np.ndarray, k: int) -> float:
    """Gives the fraction of a user's relevant items that are among the first k, averaged over users.

    Args:
        ranked: int [users, width], item indices without repeats, best first; −1 for none.
        users: int [p], the row in `ranked` of each relevant pair; repeats of a pair count once.
        items: int [p], the item index of each relevant pair.
        k: places that count.

    Users without a relevant item are left out.

    Raises:
        ValueError: k below 1, lengths that differ, a user outside `ranked`, or no pair at all.
    """
    hits, relevant = _hits(ranked, users, items, k)
    return float((hits.sum(1) / relevant).mean())


def hit_rate_at_k(ranked: np.ndarray, users: np.ndarray, items: np.ndarray, k: int) -> float:
    """Gives the fraction of users with at least one relevant item among the first k; see `recall_at_k`."""
    hits, _ = _hits(ranked, users, items, k)
    return float(hits.any(1).mean())


def ndcg_at_k(ranked: np.ndarray, users: np.ndarray, items: np.ndarray, k: int) -> float:
    """Gives the normalised discounted cumulative gain, gain 1 for a relevant item; see `recall_at_k`.

    The discount is 1 / log2(1 + place); the ideal starts with min(k, relevant) hits.

    Source: Järvelin and Kekäläinen, 2002.
    """
    hits, relevant = _hits(ranked, users, items, k)
    discount = 1 / np.log2(np.arange(2, k + 2))
    ideal = discount.cumsum()[np.minimum(relevant, k) - 1]
    return float((hits @ discount[: hits.shape[1]] / ideal).mean())
