"""Measures of ranked lists against what was held out, user by user, with bootstrap intervals over the users."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unisono.transforms.base.errors import JobError

_DRAWS_AT_ONCE = 50_000_000  # entries of a block of bootstrap counts: 400 MB


@dataclass(frozen=True, eq=False)
class Ranked:
    """Lists of items, best first, a row a user.

    Attributes:
        items: int64 [u, w], rows of items; −1 behind the end of a shorter list.
        scores: float [u, w], falling; −inf behind the end.
    """

    items: np.ndarray
    scores: np.ndarray

    def __post_init__(self) -> None:
        if self.items.shape != self.scores.shape or self.items.ndim != 2:
            raise ValueError(f"items {self.items.shape} and scores {self.scores.shape} differ; give two like [u, w]")

    def of_users(self, users: np.ndarray) -> Ranked:
        """Chooses users, int64 places or a mask."""
        return Ranked(self.items[users], self.scores[users])

    def of_items(self, wanted: np.ndarray) -> Ranked:
        """Leaves only the items that bool [n] `wanted` names; the lists close up."""
        stay = (self.items >= 0) & wanted[np.maximum(self.items, 0)]
        order = np.argsort(~stay, axis=1, kind="stable")
        left = np.take_along_axis(stay, order, 1)
        items = np.where(left, np.take_along_axis(self.items, order, 1), -1)
        return Ranked(items, np.where(left, np.take_along_axis(self.scores, order, 1), -np.inf))


def find_hits(ranked: Ranked, relevant: tuple[np.ndarray, np.ndarray], items: int) -> np.ndarray:
    """Says which places hold what was held out: bool [u, w].

    Args:
        relevant: user and item, int64 [p] each: the pairs held out, each once.
        items: how many there are.
    """
    keys = np.sort(relevant[0].astype(np.int64) * items + relevant[1])
    asked = np.arange(len(ranked.items))[:, None] * items + ranked.items
    place = np.minimum(np.searchsorted(keys, asked), max(len(keys) - 1, 0))
    found = keys[place] == asked if len(keys) else np.zeros(asked.shape, bool)
    return np.asarray(found & (ranked.items >= 0))


def measure_users(
    ranked: Ranked, relevant: tuple[np.ndarray, np.ndarray], items: int, ks: Sequence[int]
) -> dict[str, np.ndarray]:
    """Measures each user's list.

    With h_i = 1 where place i holds a held-out item and n the number of the user's held-out items:
    recall@k Σ_{i≤k} h_i / n; ndcg@k Σ h_i / log2(i + 1) over the same sum of the best order; map@k
    Σ_{i≤k} h_i · (Σ_{j≤i} h_j / i) / min(n, k); hit@k 1 where any h_i is; mrr@k the reciprocal of the first
    such place, else 0.

    Args:
        ranked: may be shorter than k: places that are not there miss.
        relevant: user and item, int64 [p] each, each pair once.
        items: how many there are.
        ks: lengths to measure at.

    Returns:
        float64 [u] by name, NaN for users with nothing held out.

    Source: Järvelin, Kekäläinen, ACM TOIS 20(4), 2002 (NDCG, binary gains); Manning, Raghavan, Schütze,
    "Introduction to information retrieval", 2008, ch. 8.4 (average precision).
    """
    if not ks or min(ks) < 1:
        raise JobError(f"--k: {list(ks)}; give lengths of 1 or more")
    users, width = ranked.items.shape
    wanted = np.bincount(relevant[0], minlength=users)[:users].astype(np.float64)
    deepest = max(ks)
    hits = np.zeros((users, deepest))
    hits[:, : min(width, deepest)] = find_hits(ranked, relevant, items)[:, :deepest]
    places = np.arange(1, deepest + 1)
    discount = 1.0 / np.log2(places + 1)
    precision = np.cumsum(hits, axis=1) / places
    ideal = np.concatenate([[0.0], np.cumsum(discount)])
    some = wanted > 0
    out: dict[str, np.ndarray] = {}
    for k in ks:
        h = hits[:, :k]
        best = np.minimum(wanted, k).astype(np.int64)
        any_hit = h.any(1)
        values = {
            "recall": h.sum(1) / np.where(some, wanted, 1),
            "ndcg": (h * discount[:k]).sum(1) / np.where(some, ideal[best], 1),
            "map": (h * precision[:, :k]).sum(1) / np.where(some, best, 1),
            "hit": any_hit.astype(np.float64),
            "mrr": np.where(any_hit, 1.0 / (np.argmax(h, axis=1) + 1), 0.0),
        }
        out |= {f"{name}@{k}": np.where(some, v, np.nan) for name, v in values.items()}
    return out


def area_under_curve(ranked: Ranked, relevant: tuple[np.ndarray, np.ndarray], items: int) -> np.ndarray:
    """Gives the chance that a held-out item stands above another candidate of the user; equal scores count half.

    Args:
        ranked: every candidate of each user; a held-out item that is not in the list is no candidate.

    Returns:
        float64 [u], NaN where a user has no held-out candidate, or no other.

    Source: Hanley, McNeil, Radiology 143, 1982 (the area is the Mann–Whitney statistic).
    """
    hits = find_hits(ranked, relevant, items)
    real = ranked.items >= 0
    users, width = real.shape
    if width == 0:
        return np.full(users, np.nan)
    # A place's rank is the middle of the run of equal scores that it is in.
    new = np.ones((users, width), bool)
    new[:, 1:] = (ranked.scores[:, 1:] != ranked.scores[:, :-1]) | (real[:, 1:] != real[:, :-1])
    start = np.maximum.accumulate(np.where(new, np.arange(width), 0), axis=1)
    last = np.ones((users, width), bool)
    last[:, :-1] = new[:, 1:]
    end = np.minimum.accumulate(np.where(last, np.arange(width), width)[:, ::-1], axis=1)[:, ::-1]
    rank = (start + end) / 2.0
    positives = hits.sum(1).astype(np.float64)
    negatives = real.sum(1) - positives
    above = positives * (positives - 1) / 2  # what held-out items alone would make of the sum of ranks
    beaten_by = (rank * hits).sum(1) - above
    pairs = positives * negatives
    return np.where(pairs > 0, 1.0 - beaten_by / np.where(pairs > 0, pairs, 1), np.nan)


def measure_lists(ranked: Ranked, turned: np.ndarray, users: int, ks: Sequence[int]) -> dict[str, float]:
    """Measures what the lists are like, whatever was held out.

    coverage@k: the part of all items that is in some user's first k. novelty@k: the mean self-information
    −log2((n_i + 1) / (users + 1)) of what is recommended, in bits. popularity@k: the mean n_i / users of it, over
    the mean of all items, so 1 is no bias. gini@k: how unequally items are shown, 0 (all alike) to 1.

    Args:
        turned: n, int64 [items]: how many users turned to each item before.
        users: how many there were before.

    Source: Zhou et al., PNAS 107(10), 2010 (self-information); Abdollahpouri et al., "Managing popularity bias",
    FLAIRS 2019 (average recommendation popularity); Gini 1912.
    """
    n = len(turned)
    bits = -np.log2((turned + 1.0) / (users + 1.0))
    out: dict[str, float] = {}
    for k in ks:
        shown = ranked.items[:, :k]
        shown = shown[shown >= 0]
        times = np.bincount(shown, minlength=n)
        nothing = len(shown) == 0
        mean = turned.mean() if n else 0.0
        out[f"coverage@{k}"] = float(np.mean(times > 0)) if n else 0.0
        out[f"novelty@{k}"] = float("nan") if nothing else float(bits[shown].mean())
        out[f"popularity@{k}"] = float("nan") if nothing or not mean else float(turned[shown].mean() / mean)
        rising = np.sort(times).astype(np.float64)
        weighted = float((2 * np.arange(1, n + 1) - n - 1) @ rising)
        out[f"gini@{k}"] = float("nan") if nothing else weighted / (n * rising.sum())
    return out


def bootstrap_interval(
    values: np.ndarray, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Gives the mean over users and the percentile bootstrap interval of it.

    Users are drawn with replacement, which is to say that their counts are multinomial. One seed draws the same
    users for values of the same length: the interval of a difference is that of the differences.

    Args:
        values: float64 [u]; NaN are left out.

    Returns:
        mean, low, high; NaN where there is no value.

    Source: Efron, Tibshirani, "An introduction to the bootstrap", 1993, ch. 13.
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
        # Row by row sums, not a product: BLAS may add in an order of its own.
        means[start:stop] = np.einsum("dn,n->d", counts.astype(np.float64), values) / n
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(values.mean()), float(low), float(high)
