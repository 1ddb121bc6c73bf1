"""Baselines for rankings: popularity, random scores, item neighbours, and factorisations by the package `implicit`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np
import pyarrow as pa
import scipy.sparse

from unisono.transforms.base.errors import JobError
from unisono.transforms.base.extras import is_installed, require
from unisono.transforms.base.nearest import best_columns
from unisono.transforms.base.tables import hash_ids

_ROWS_AT_ONCE = 256

Scorer = Callable[[np.ndarray], np.ndarray]  # from user rows, int64 [b], to scores, float [b, items]


@dataclass(frozen=True)
class Baseline:
    """The name of a baseline and its options.

    Attributes:
        name: one of `BASELINES`.
        options: values by option; `fit_baseline` lists the options. Options that are not named keep their defaults.
    """

    name: str
    options: Mapping[str, float] = field(default_factory=dict)


def fit_baseline(spec: Baseline, log: scipy.sparse.csr_array, seed: int = 0) -> Scorer:
    """Fits a baseline to a log.

    The options and their defaults are: for `cosine`, neighbours (100) and shrink (0); for `bm25`, neighbours (100), k1
    (1.2) and b (0.75); for `als`, factors (64), regularization (0.01), alpha (1) and iterations (15); for `bpr`,
    factors (64), learning_rate (0.01), regularization (0.01) and iterations (100). `popular` and `random` have none.

    Args:
        spec: the method and its options.
        log: [users, items], 0 or more: how strongly each user interacted with each item.
        seed: seed of the methods that draw random numbers.

    Returns:
        A function from user rows, int64 [b], to scores, float [b, items].

    Raises:
        JobError: there is no such method or option, or the package that the method needs is not installed.

    Guarantees:
        The same input gives the same scores. For that, `als` and `bpr` run on one thread.
    """
    if spec.name not in _FITS:
        raise JobError(f"--baselines: {spec.name!r} is none of {', '.join(BASELINES)}; choose among them")
    fit, defaults = _FITS[spec.name]
    unknown = sorted(set(spec.options) - set(defaults))
    if unknown:
        allowed = ", ".join(defaults) or "none"
        raise JobError(f"--baselines: {spec.name} has no option {unknown[0]!r}; allowed: {allowed}")
    return fit(log, seed, **{**defaults, **spec.options})


def has_implicit() -> bool:
    """Says whether the package that `als` and `bpr` need is installed."""
    return is_installed("implicit")


def _popular(log: scipy.sparse.csr_array, seed: int) -> Scorer:
    n = np.asarray(log.sum(0)).ravel().astype(np.float64)
    return lambda users: np.broadcast_to(n, (len(users), len(n)))


def _random(log: scipy.sparse.csr_array, seed: int) -> Scorer:
    """Returns random scores that depend on the user, the item and the seed only."""
    items = log.shape[1]

    def score(users: np.ndarray) -> np.ndarray:
        keys = (users.astype(np.int64)[:, None] * items + np.arange(items)).ravel() + (seed << 44)
        return (hash_ids(pa.array(keys)) >> np.uint64(11)).astype(np.float64).reshape(len(users), items) / 2.0**53

    return score


# --- item neighbours ---------------------------------------------------------------------------------------


def _cosine(log: scipy.sparse.csr_array, seed: int, neighbours: float, shrink: float) -> Scorer:
    """Scores an item i by Σ x_uj · s_ij over the user's items j, where s_ij = xᵢ·xⱼ / (‖xᵢ‖‖xⱼ‖ + shrink).

    Source: Sarwar et al., "Item-based collaborative filtering recommendation algorithms", WWW 2001; Dacrema et al.,
    "Are we really making much progress?", RecSys 2019 (shrinkage).
    """
    x = scipy.sparse.csc_array(log, dtype=np.float64)
    norm = np.sqrt(np.asarray(x.multiply(x).sum(0)).ravel())
    products = (x.T @ x).tocoo()
    values = products.data / (norm[products.row] * norm[products.col] + shrink)
    likeness = scipy.sparse.csr_array((values, (products.row, products.col)), shape=products.shape)
    return _by_neighbours(log, keep_nearest(likeness, int(neighbours)))


def _bm25(log: scipy.sparse.csr_array, seed: int, neighbours: float, k1: float, b: float) -> Scorer:
    """Scores an item i by Σ x_uj · s_ij over the user's items j, where s_ij is the inner product of BM25 weights.

    Items are the documents and users the terms. The weight of a user in an item is
    x (k1 + 1) / (k1 · (1 − b + b · length / mean length) + x) · idf, with idf = log(items) − log(1 + number of the
    user's items), as in `implicit.nearest_neighbours.BM25Recommender`.

    Source: Robertson and Zaragoza, "The probabilistic relevance framework", 2009, equation 3.15.
    """
    x = scipy.sparse.coo_array(log, dtype=np.float64)
    idf = np.log(x.shape[1]) - np.log1p(np.bincount(x.row, minlength=x.shape[0]))
    length = np.asarray(x.sum(0)).ravel()
    norm = 1.0 - b + b * length / max(length.mean(), 1e-300)
    data = x.data * (k1 + 1.0) / (k1 * norm[x.col] + x.data) * idf[x.row]
    weighted = scipy.sparse.csc_array(scipy.sparse.coo_array((data, (x.row, x.col)), shape=x.shape))
    return _by_neighbours(log, keep_nearest(scipy.sparse.csr_array(weighted.T @ weighted), int(neighbours)))


def keep_nearest(likeness: scipy.sparse.csr_array, most: int) -> scipy.sparse.csr_array:
    """Keeps the `most` largest entries above 0 of each row; of equal entries, those in lower columns."""
    parts = []
    for start in range(0, likeness.shape[0], _ROWS_AT_ONCE):  # a few dense rows are faster than sorting sparse entries
        block = likeness[start : start + _ROWS_AT_ONCE].toarray()
        kept = np.zeros(block.shape, bool)
        np.put_along_axis(kept, best_columns(block, most), True, axis=1)
        parts.append(scipy.sparse.csr_array(np.where(kept & (block > 0), block, 0)))
    return scipy.sparse.csr_array(scipy.sparse.vstack(parts)) if parts else likeness


def _by_neighbours(log: scipy.sparse.csr_array, likeness: scipy.sparse.csr_array) -> Scorer:
    # Row j of `likeness` holds the items nearest to item j, so a user's scores are the sum of the rows of their items.
    return lambda users: (log[users].astype(np.float64) @ likeness).toarray()


# --- implicit ----------------------------------------------------------------------------------------------


def _als(
    log: scipy.sparse.csr_array, seed: int, factors: float, regularization: float, alpha: float, iterations: float
) -> Scorer:
    """Fits alternating least squares.

    Source: Hu, Koren and Volinsky, "Collaborative filtering for implicit feedback datasets", ICDM 2008.
    """
    settings = {"factors": int(factors), "regularization": regularization, "alpha": alpha}
    return _of_factors("als", "AlternatingLeastSquares", log, seed, {**settings, "iterations": int(iterations)})


def _bpr(
    log: scipy.sparse.csr_array,
    seed: int,
    factors: float,
    learning_rate: float,
    regularization: float,
    iterations: float,
) -> Scorer:
    """Fits Bayesian personalised ranking.

    Source: Rendle et al., "BPR: Bayesian personalized ranking from implicit feedback", UAI 2009.
    """
    settings = {"factors": int(factors), "learning_rate": learning_rate, "regularization": regularization}
    return _of_factors("bpr", "BayesianPersonalizedRanking", log, seed, {**settings, "iterations": int(iterations)})


def _of_factors(module: str, name: str, log: scipy.sparse.csr_array, seed: int, settings: dict[str, Any]) -> Scorer:
    require("implicit", "ranking", "--baselines", module)
    from threadpoolctl import threadpool_limits

    make = getattr(import_module(f"implicit.cpu.{module}"), name)
    with threadpool_limits(1, "blas"):  # implicit warns if BLAS runs threads beside its own
        model = make(**settings, random_state=seed, num_threads=1)
        model.fit(scipy.sparse.csr_matrix(log, dtype=np.float32), show_progress=False)
    users = np.asarray(model.user_factors, np.float64)
    items = np.asarray(model.item_factors, np.float64)
    return lambda rows: users[rows] @ items.T


_FITS: dict[str, tuple[Callable[..., Scorer], dict[str, float]]] = {
    "popular": (_popular, {}),
    "random": (_random, {}),
    "cosine": (_cosine, {"neighbours": 100, "shrink": 0}),
    "bm25": (_bm25, {"neighbours": 100, "k1": 1.2, "b": 0.75}),
    "als": (_als, {"factors": 64, "regularization": 0.01, "alpha": 1, "iterations": 15}),
    "bpr": (_bpr, {"factors": 64, "learning_rate": 0.01, "regularization": 0.01, "iterations": 100}),
}
BASELINES = tuple(_FITS)
