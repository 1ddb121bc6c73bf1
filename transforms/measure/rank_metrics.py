"""Measures of ranked lists against held-out items, for each user, with bootstrap intervals over the users."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unisono.transforms.base.errors import JobError

_DRAWS_AT_ONCE = 50_000_000  # bootstrap counts that are held at once: 400 MB


@dataclass(frozen=True, eq=False)
class Ranked:
    """Lists of items, best first, one row for each user.

    Attributes:
        items: int64 [u, w], item indices; −1 after the end of a shorter list.
        scores: float [u, w], falling along a row; −inf after the end of a shorter list.
    """

    items: np.ndarray
    scores: np.ndarray

    def __post_init__(self) -> None:
        if self.items.shape != self.scores.shape or self.items.ndim != 2:
            raise ValueError(f"items {self.items.shape} and scores {self.scores.shape} differ; give two like [u, w]")

    @classmethod
    def of_lists(cls, items: np.ndarray, counts: np.ndarray) -> Ranked:
        """Arranges lists of different lengths as rows; the scores are 0.

        Args:
            items: int64, item indices, the lists of all users one after the other.
            counts: int64 [u], the length of each user's list.
        """
        here = np.arange(counts.max(initial=0)) < counts[:, None]
        rows = np.full(here.shape, -1, np.int64)
        rows[here] = items
        return cls(rows, np.where(here, 0.0, -np.inf))

    @classmethod
    def join(cls, parts: Sequence[Ranked]) -> Ranked:
        """Joins the lists of several groups of users, one group after the other; all rows have one length."""
        return cls(np.concatenate([p.items for p in parts]), np.concatenate([p.scores for p in parts]))

    def of_users(self, users: np.ndarray) -> Ranked:
        """Returns the lists of some users, given as integer indices or as a mask, bool [u]."""
        return Ranked(self.items[users], self.scores[users])


def find_hits(ranked: Ranked, relevant: tuple[np.ndarray, np.ndarray], items: int) -> np.ndarray:
    """Marks the places that hold a held-out item.

    Args:
        ranked: the lists.
        relevant: user indices and item indices, int64 [p] each: the held-out pairs, each once.
        items: number of items.

    Returns:
        bool [u, w].
    """
    keys = np.sort(relevant[0].astype(np.int64) * items + relevant[1])
    asked = np.arange(len(ranked.items))[:, None] * items + ranked.items
    place = np.minimum(np.searchsorted(keys, asked), max(len(keys) - 1, 0))
    found = keys[place] == asked if len(keys) else np.zeros(asked.shape, bool)
    return np.asarray(found & (ranked.items >= 0))


def keep_candidates(ranked: Ranked, candidates: tuple[np.ndarray, np.ndarray], items: int, width: int) -> Ranked:
    """Leaves out all but some items of each user, in the order of the lists.

    Args:
        ranked: the lists.
        candidates: user indices and item indices, int64 [p] each, each pair once.
        items: number of items.
        width: the length of the new rows, at least the largest number of a user's candidates.
    """
    kept = find_hits(ranked, candidates, items)
    user, place = np.nonzero(kept)
    column = (np.cumsum(kept, axis=1) - 1)[user, place]
    chosen = np.full((len(kept), width), -1, np.int64)
    scores = np.full((len(kept), width), -np.inf, ranked.scores.dtype)
    chosen[user, column], scores[user, column] = ranked.items[user, place], ranked.scores[user, place]
    return Ranked(chosen, scores)


def measure_users(
    ranked: Ranked, relevant: tuple[np.ndarray, np.ndarray], items: int, ks: Sequence[int]
) -> dict[str, np.ndarray]:
    """Measures each user's list.

    Let h_i be 1 if place i holds a held-out item, else 0, and let n be the number of the user's held-out items.
    precision@k is Σ_{i≤k} h_i / k, also where a list is shorter. recall@k is Σ_{i≤k} h_i / n. ndcg@k is Σ_{i≤k} h_i /
    log2(i + 1), divided by its value for the best possible order. map@k is Σ_{i≤k} h_i · (Σ_{j≤i} h_j / i) / min(n, k).
    hit@k is 1 if any h_i with i ≤ k is 1, else 0. mrr@k is 1 / i for the first such place i, and 0 if there is none.

    Args:
        ranked: the lists. Places after the end of a list hold no held-out item.
        relevant: user indices and item indices, int64 [p] each: the held-out pairs, each once.
        items: number of items.
        ks: the lengths k to measure at, each at least 1.

    Returns:
        By name, such as `recall@10`: float64 [u], NaN for a user without held-out items.

    Raises:
        JobError: there is no k, or one is below 1.

    Source: Järvelin and Kekäläinen, "Cumulated gain-based evaluation of IR techniques", ACM TOIS 20(4), 2002 (NDCG,
    with binary gains); Manning, Raghavan and Schütze, "Introduction to information retrieval", 2008, section 8.4
    (average precision).
    """
    if not ks or min(ks) < 1:
        raise JobError(f"--k: {list(ks)}; give lengths of 1 or more")
    users, width = ranked.items.shape
    wanted = np.bincount(relevant[0], minlength=users)[:users].astype(np.float64)
    deepest = max(ks)
    hits = np.zeros((users, deepest))
    hits[:, : min(width, deepest)] = find_hits(ranked, relevant, items)[:, :deepest]
    out: dict[str, np.ndarray] = {}
    for k in ks:
        values = _measure_at(hits[:, :k], wanted)
        out |= {f"{name}@{k}": np.where(wanted > 0, v, np.nan) for name, v in values.items()}
    return out


def _measure_at(hits: np.ndarray, wanted: np.ndarray) -> dict[str, np.ndarray]:
    """Measures lists of one length, whose hits are float64 [u, k]; `wanted` counts each user's held-out items."""
    k = hits.shape[1]
    places = np.arange(1, k + 1)
    discount = 1.0 / np.log2(places + 1)
    ideal = np.concatenate([[0.0], np.cumsum(discount)])
    precision = np.cumsum(hits, axis=1) / places
    best = np.minimum(wanted, k).astype(np.int64)
    some, any_hit = wanted > 0, hits.any(1)
    return {
        "precision": hits.sum(1) / k,
        "recall": hits.sum(1) / np.where(some, wanted, 1),
        "ndcg": (hits * discount).sum(1) / np.where(some, ideal[best], 1),
        "map": (hits * precision).sum(1) / np.where(some, best, 1),
        "hit": any_hit.astype(np.float64),
        "mrr": np.where(any_hit, 1.0 / (np.argmax(hits, axis=1) + 1), 0.0),
    }


def area_under_curve(ranked: Ranked, relevant: tuple[np.ndarray, np.ndarray], items: int) -> np.ndarray:
    """Computes the probability that a held-out item of a user has a higher score than another candidate.

    Pairs with equal scores count half.

    Args:
        ranked: all candidates of each user. A held-out item that is not in the user's list is not a candidate.
        relevant: user indices and item indices, int64 [p] each: the held-out pairs, each once.
        items: number of items.

    Returns:
        float64 [u], NaN for a user whose candidates are all held out, or who has no held-out candidate.

    Source: Hanley and McNeil, "The meaning and use of the area under a ROC curve", Radiology 143, 1982 (the area is the
    Mann–Whitney statistic).
    """
    hits = find_hits(ranked, relevant, items)
    real = ranked.items >= 0
    users, width = real.shape
    if width == 0:
        return np.full(users, np.nan)
    # Places with equal scores share the middle of their ranks.
    new = np.ones((users, width), bool)
    new[:, 1:] = (ranked.scores[:, 1:] != ranked.scores[:, :-1]) | (real[:, 1:] != real[:, :-1])
    start = np.maximum.accumulate(np.where(new, np.arange(width), 0), axis=1)
    last = np.ones((users, width), bool)
    last[:, :-1] = new[:, 1:]
    end = np.minimum.accumulate(np.where(last, np.arange(width), width)[:, ::-1], axis=1)[:, ::-1]
    rank = (start + end) / 2.0
    positives = hits.sum(1).astype(np.float64)
    negatives = real.sum(1) - positives
    above = positives * (positives - 1) / 2  # the sum of ranks if the held-out items were the only candidates
    beaten_by = (rank * hits).sum(1) - above
    pairs = positives * negatives
    return np.where(pairs > 0, 1.0 - beaten_by / np.where(pairs > 0, pairs, 1), np.nan)


def measure_lists(
    ranked: Ranked, users_of_item: np.ndarray, users: int, ks: Sequence[int], shown: np.ndarray | None = None
) -> dict[str, float]:
    """Measures properties of the lists that do not depend on held-out items.

    Let n_i be the number of users who interacted with item i. coverage@k is the fraction of all items that are among
    the first k of some list. novelty@k is the mean self-information −log2((n_i + 1) / (users + 1)) of the recommended
    items, in bits. popularity@k is the mean n_i of the recommended items, divided by the mean n_i of all items; 1 means
    no bias. gini@k says how unequally often the items are recommended, from 0 (all equally often) to 1.

    Args:
        ranked: the lists.
        users_of_item: n_i, int64 [items].
        users: number of users that n_i counts.
        ks: the lengths k to measure at.
        shown: bool [items], the items that may be recommended; "all items" are these. None means all.

    Returns:
        By name, such as `coverage@10`; NaN where nothing is recommended, except for coverage.

    Source: Zhou et al., "Solving the apparent diversity-accuracy dilemma of recommender systems", PNAS 107(10), 2010
    (self-information); Abdollahpouri et al., "Managing popularity bias in recommender systems with personalized
    re-ranking", FLAIRS 2019 (average recommendation popularity); Gini, "Variabilità e mutabilità", 1912.
    """
    among = np.ones(len(users_of_item), bool) if shown is None else shown
    n = int(among.sum())
    bits = -np.log2((users_of_item + 1.0) / (users + 1.0))
    mean = users_of_item[among].mean() if n else 0.0
    out: dict[str, float] = {}
    for k in ks:
        listed = ranked.items[:, :k]
        listed = listed[listed >= 0]
        times = np.bincount(listed, minlength=len(among))[among]
        nothing = len(listed) == 0
        out[f"coverage@{k}"] = float(np.mean(times > 0)) if n else 0.0
        out[f"novelty@{k}"] = float("nan") if nothing else float(bits[listed].mean())
        out[f"popularity@{k}"] = float("nan") if nothing or not mean else float(users_of_item[listed].mean() / mean)
        rising = np.sort(times).astype(np.float64)
        weighted = float((2 * np.arange(1, n + 1) - n - 1) @ rising)
        out[f"gini@{k}"] = float("nan") if nothing else weighted / (n * rising.sum())
    return out


def bootstrap_interval(
    values: np.ndarray, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Computes the mean over users and its percentile bootstrap interval.

    Users are drawn with replacement, so the numbers of times that they are drawn are multinomial. The same seed draws
    the same users for all arrays of one length. So the interval of the differences between two methods is a paired
    interval.

    Args:
        values: float64 [u]; NaN values are left out.
        level: coverage of the interval, between 0 and 1.
        draws: number of bootstrap samples.
        seed: seed of the random numbers.

    Returns:
        The mean, and the low and the high end of the interval; all NaN if there is no value.

    Source: Efron and Tibshirani, "An introduction to the bootstrap", 1993, chapter 13.
    """
    values = values[~np.isnan(values)]
    n = len(values)
    if n == 0:
        return (float("nan"),) * 3
    rng = np.random.default_rng(seed)
    means = np.empty(draws)
    at_once = max(1, _DRAWS_AT_ONCE // n)
    for start in range(0, draws, at_once):
        stop = min(start + at_once, draws)
        counts = rng.multinomial(n, np.full(n, 1.0 / n), size=stop - start)
        # A sum for each row instead of a matrix product, because BLAS may add in any order.
        means[start:stop] = np.einsum("dn,n->d", counts.astype(np.float64), values) / n
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(values.mean()), float(low), float(high)
