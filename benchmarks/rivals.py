"""The rivals that Unisono is compared with: how each is fitted to a case, and the settings that are tried.

A rival is fitted to `Case.log`, which holds the pairs that users liked, or all pairs, whichever validates better.
`content_rivals.py` holds those that read what items are.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse
from threadpoolctl import threadpool_limits

from benchmarks.content_rivals import content_knn, content_ridge, vbpr
from unisono.pipelines.ask.ranking_case import Case
from unisono.transforms.base.errors import JobError
from unisono.transforms.base.extras import require
from unisono.transforms.measure.baselines import Baseline, Scorer, fit_baseline

DAY_US = 86_400e6
LONG_DAYS, SHORT_EVENTS, LATE_DAYS = 30.0, 3.0, 14.0  # the half-lives of `ease_with_our_ageing`
_OWN = "unisono.transforms.behaviour"

Settings = Mapping[str, Any]
Fit = Callable[[Case, Settings], Scorer]


@dataclass(frozen=True)
class Rival:
    """A rival.

    Attributes:
        fit: fits it to a case.
        grid: the values that are tried of each setting; the first ones are the usual ones.
        ages: it gives old events less weight.
        content: it reads what items are, so it knows something about items that nobody has touched.
        for_new: it is there for such items, and is tuned on them.
    """

    fit: Fit
    grid: Mapping[str, Sequence[Any]]
    ages: bool = False
    content: bool = False
    for_new: bool = False


# --- when pairs happened -----------------------------------------------------------------------------------


@lru_cache(maxsize=32)
def pair_times(case: Case) -> np.ndarray:
    """Returns the time of each entry of `case.log`, the newest event of the pair: int64, microseconds since 1970."""
    pairs = case.train.group_by(["user_id", "item_id"]).aggregate([("time", "max")])
    people, items = case.train["user_id"].unique(), case.embeddings["item_id"].combine_chunks()
    user = pc.index_in(pairs["user_id"], value_set=people).to_numpy().astype(np.int64)
    item = pc.index_in(pairs["item_id"].cast(items.type), value_set=items).fill_null(-1).to_numpy().astype(np.int64)
    key, time_us = user * case.items + item, pairs["time_max"].cast(pa.int64()).to_numpy()
    key, time_us = key[item >= 0], time_us[item >= 0]
    order = np.argsort(key)
    rows, columns = case.log.nonzero()
    return np.asarray(time_us[order][np.searchsorted(key[order], rows * case.items + columns)])


def decayed(log: scipy.sparse.csr_array, times: np.ndarray, half_life_days: float) -> scipy.sparse.csr_array:
    """Multiplies each entry by 2^(−age / half-life), where the age is the time up to the user's newest entry.

    Args:
        log: [users, items].
        times: int64 [entries], microseconds, in the order of `log.nonzero()`.
        half_life_days: above 0.
    """
    rows, columns = log.nonzero()
    newest = np.full(log.shape[0], np.iinfo(np.int64).min)
    np.maximum.at(newest, rows, times)
    left = np.exp2((times - newest[rows]) / (half_life_days * DAY_US)) * log.data
    return scipy.sparse.csr_array((left, (rows, columns)), shape=log.shape)


def decayed_by_rank(log: scipy.sparse.csr_array, times: np.ndarray, half_life: float) -> scipy.sparse.csr_array:
    """Multiplies each entry by 2^(−rank / half-life), where the rank counts the user's strictly newer entries."""
    rows, columns = log.nonzero()
    order = np.lexsort((-times, rows))
    user, time = rows[order], times[order]
    start = np.searchsorted(user, user)
    place = np.arange(len(user))
    fresh = np.ones(len(user), bool)
    fresh[1:] = (user[1:] != user[:-1]) | (time[1:] != time[:-1])
    rank = np.empty(len(user))
    rank[order] = np.maximum.accumulate(np.where(fresh, place, 0)) - start
    left = np.exp2(-rank / half_life) * log.data
    return scipy.sparse.csr_array((left, (rows, columns)), shape=log.shape)


def late_counts(case: Case, half_life_days: float | None) -> np.ndarray:
    """Counts the users of each item in `case.log`; one counts 2^(−age / half-life), up to the newest event of the log.

    Args:
        case: the case.
        half_life_days: None means that users do not age.

    Returns:
        float64 [items].
    """
    times = pair_times(case)
    newest = pc.max(case.train["time"]).cast(pa.int64()).as_py()
    left = np.ones(len(times)) if half_life_days is None else np.exp2((times - newest) / (half_life_days * DAY_US))
    return np.bincount(case.log.nonzero()[1], left, minlength=case.items)


def trend(case: Case, half_life_days: float) -> np.ndarray:
    """Returns how much more popular each item is of late than in all: float64 [items], 0 for items without users."""
    late, ever = (np.log1p(late_counts(case, h)) for h in (half_life_days, None))
    return np.asarray(late / max(late.max(), 1e-300) - ever / max(ever.max(), 1e-300))


# --- popularity and neighbours -----------------------------------------------------------------------------


def _baseline(name: str) -> Fit:
    return lambda case, settings: fit_baseline(Baseline(name, dict(settings)), case.log)


def popular_aged(case: Case, settings: Settings) -> Scorer:
    """Scores items by the number of their users, who count less the longer ago they came."""
    n = late_counts(case, settings["half_life_days"])
    return lambda users: np.broadcast_to(n, (len(users), len(n)))


@lru_cache(maxsize=24)
def ease_weights(case: Case, ridge: float) -> np.ndarray:
    """Fits EASE: float64 [items, items], of which column j scores item j.

    Source: Steck, "Embarrassingly shallow autoencoders for sparse data", WWW 2019, equation 8.
    """
    gram = (case.log.T @ case.log).toarray()
    gram[np.diag_indices_from(gram)] += ridge
    inverse = np.linalg.inv(gram)
    weights = inverse / -np.diag(inverse)
    weights[np.diag_indices_from(weights)] = 0.0
    return np.asarray(weights)


def ease(case: Case, settings: Settings) -> Scorer:
    """Fits EASE."""
    weights = ease_weights(case, settings["ridge"])
    return lambda users: case.log[users] @ weights


def ease_aged(case: Case, settings: Settings) -> Scorer:
    """Fits EASE and scores users by their decayed histories."""
    weights = ease_weights(case, settings["ridge"])
    history = decayed(case.log, pair_times(case), settings["half_life_days"])
    return lambda users: history[users] @ weights


def ease_with_our_ageing(case: Case, settings: Settings) -> Scorer:
    """Fits EASE and gives it what ages in our ranking vectors: a long and a short history, and the trend of items.

    The scores are s / σ(s) + g · trend. Here s are EASE's scores of the history long + ρ · short, and σ(s) is the
    standard deviation of a user's s over the items that somebody likes. The row says how much of our lead is due to the
    ageing, and how much to the model.
    """
    weights, times = ease_weights(case, settings["ridge"]), pair_times(case)
    history = decayed(case.log, times, LONG_DAYS)
    history = history + settings["recent"] * decayed_by_rank(case.log, times, SHORT_EVENTS)
    axis = settings["trend"] * trend(case, LATE_DAYS)
    warm = case.log.sum(0) > 0

    def score(users: np.ndarray) -> np.ndarray:
        plain = history[users] @ weights
        return np.asarray(plain / np.maximum(plain[:, warm].std(1, keepdims=True), 1e-300) + axis)

    return score


# --- factorisations ----------------------------------------------------------------------------------------


def fold_in(
    items: np.ndarray, log: scipy.sparse.csr_array, observed: float, unobserved: float, ridge: np.ndarray
) -> np.ndarray:
    """Solves for users, given the vectors v of items: (unobserved Σ_all v vᵀ + observed Σ_own v vᵀ + r I) u = Σ_own v.

    Args:
        items: float [items, d].
        log: [users, items]; every entry counts as 1.
        observed: weight of the items that a user has.
        unobserved: weight of all items.
        ridge: float [users], r of each user, above 0.

    Returns:
        float64 [users, d].
    """
    v = np.asarray(items, np.float64)
    gram, unit = unobserved * (v.T @ v), np.eye(v.shape[1])
    out = np.zeros((log.shape[0], v.shape[1]))
    for user in range(log.shape[0]):  # one system for each user, each with other items
        mine = v[log.indices[log.indptr[user] : log.indptr[user + 1]]]
        out[user] = np.linalg.solve(gram + observed * (mine.T @ mine) + ridge[user] * unit, mine.sum(0))
    return out


def ials_of_implicit(case: Case, settings: Settings) -> Scorer:
    """Fits ALS with `implicit`, forgets its users, and solves for each user from the history.

    The package weighs an observed pair alpha instead of 1, so alpha − 1 more than all pairs. Its right side is alpha
    times that of `fold_in`, which changes no order.
    """
    require("implicit", "ranking", "benchmarks.ranking", "als")
    model = import_module("implicit.cpu.als").AlternatingLeastSquares(
        **{"iterations": 15, **settings}, random_state=0, num_threads=1
    )
    with threadpool_limits(1, "blas"):  # implicit warns if BLAS runs threads beside its own
        model.fit(scipy.sparse.csr_matrix(case.log, dtype=np.float32), show_progress=False)
    v = np.asarray(model.item_factors, np.float64)

    def score(users: np.ndarray) -> np.ndarray:
        ridge = np.full(len(users), settings["regularization"])
        return fold_in(v, case.log[users], settings["alpha"] - 1.0, 1.0, ridge) @ v.T

    return score


def ials_of_ours(case: Case, settings: Settings) -> Scorer:
    """Fits our own iALS and solves for each user from the history.

    Source: Rendle et al., "Revisiting the performance of iALS on item recommendation benchmarks", RecSys 2022.
    """
    if importlib.util.find_spec(f"{_OWN}.factors") is None:
        raise JobError(f"benchmarks.ranking: {_OWN}.factors is not there; `ials, our items` needs it")
    likes, factors = (import_module(f"{_OWN}.{name}") for name in ("likes", "factors"))
    ids = case.embeddings["item_id"].combine_chunks()
    user, item = case.log.nonzero()
    pairs = pa.table({"user_id": user, "item_id": ids.take(pa.array(item))})
    fitted = factors.fit_factors(likes.Likes.of(pairs), factors.FactorSpec(**settings))
    v = np.zeros((case.items, settings["factors"]))
    v[pc.index_in(fitted.item_ids, value_set=ids).to_numpy()] = fitted.item_factors
    unobserved, regularization = settings["unobserved"], settings["regularization"]

    def score(users: np.ndarray) -> np.ndarray:
        log = case.log[users]
        ridge = regularization * (np.diff(log.indptr) + unobserved * len(fitted.item_ids))
        return fold_in(v, log, 1.0, unobserved, ridge) @ v.T

    return score


# --- all of them -------------------------------------------------------------------------------------------

_ALS = {"factors": (64, 16, 32, 128), "regularization": (0.01, 0.1, 1.0, 10.0), "alpha": (5.0, 2.0, 10.0, 20.0)}
RIVALS: dict[str, Rival] = {
    "popular": Rival(_baseline("popular"), {}),
    "popular, aged": Rival(popular_aged, {"half_life_days": (14.0, 60.0, 30.0, 7.0, 3.0, 1.0)}, ages=True),
    "random": Rival(_baseline("random"), {}),
    "cosine": Rival(_baseline("cosine"), {"neighbours": (100, 20, 50, 300), "shrink": (0.0, 10.0, 30.0, 100.0)}),
    "bm25": Rival(
        _baseline("bm25"),
        {"neighbours": (100, 20, 50, 300), "k1": (1.2, 0.5, 5.0, 50.0), "b": (0.75, 0.2, 0.5, 1.0)},
    ),
    "ease": Rival(ease, {"ridge": (200.0, 30.0, 60.0, 100.0, 150.0, 300.0, 500.0, 1000.0, 2000.0)}),
    "ease, aged": Rival(
        ease_aged,
        {"ridge": (200.0, 100.0, 500.0, 1000.0), "half_life_days": (30.0, 180.0, 90.0, 7.0, 1.0, 0.03, 0.003, 0.001)},
        ages=True,
    ),
    "ease, our ageing and trend": Rival(
        ease_with_our_ageing,
        {"ridge": (200.0, 100.0, 500.0, 1000.0), "recent": (1, 0, 3, 10), "trend": (1, 0, 2, 4, 8, 16)},
        ages=True,
    ),
    "als": Rival(_baseline("als"), _ALS),
    "ials, implicit's items": Rival(ials_of_implicit, _ALS),
    "ials, our items": Rival(
        ials_of_ours,
        {
            "factors": (64, 32, 128), "regularization": (0.01, 0.001, 0.003, 0.03, 0.1),
            "unobserved": (0.5, 0.05, 0.1, 0.2, 1.0), "sweeps": (10,), "seed": (0,),
        },
    ),
    "bpr": Rival(
        _baseline("bpr"),
        {
            "factors": (64, 16), "learning_rate": (0.01, 0.003, 0.03, 0.1), "regularization": (0.01, 0.001, 0.03, 0.1),
            "iterations": (100, 50, 200),
        },
    ),
    "vbpr": Rival(
        vbpr,
        {
            "factors": (32, 8, 64), "content_factors": (32, 8, 64), "learning_rate": (0.005, 0.002, 0.02),
            "regularization": (0.01, 0.003, 0.03, 0.1), "content_regularization": (0.0, 0.1), "epochs": (20, 10, 40),
        },
        content=True,
    ),
    "content knn": Rival(
        content_knn,
        {"neighbours": (100, 10, 30, 300, 1000), "normalised": (True, False), "power": (1, 2, 4)},
        content=True, for_new=True,
    ),
    "content ridge": Rival(
        content_ridge,
        {"ridge": (10.0, 1.0, 3.0, 30.0, 100.0, 300.0), "unobserved": (1.0, 0.3, 0.1, 0.03, 0.01)},
        content=True, for_new=True,
    ),
}  # fmt: skip
