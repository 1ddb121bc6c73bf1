"""What a recommender has to beat: popularity, chance, item neighbours, and `implicit`'s factorisations."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np
import pyarrow as pa
import scipy.sparse

from unisono.transforms.base.errors import JobError
from unisono.transforms.base.tables import hash_ids

_ROWS_AT_ONCE = 256

Scorer = Callable[[np.ndarray], np.ndarray]  # users, int64 [b] → scores, float [b, items]


@dataclass(frozen=True)
class Baseline:
    """A method by name, with its settings.

    Attributes:
        name: one of `BASELINES`.
        options: what `fit_baseline` says of it.
    """

    name: str
    options: Mapping[str, float] = field(default_factory=dict)


def fit_baseline(spec: Baseline, log: scipy.sparse.csr_array, seed: int = 0) -> Scorer:
    """Fits a baseline to what users turned to.

    Options: `popular` none; `random` none; `cosine` neighbours (100), shrink (0); `bm25` neighbours (100), k1 (1.2),
    b (0.75); `als` factors (64), regularization (0.01), alpha (1), iterations (15); `bpr` factors (64),
    learning_rate (0.01), regularization (0.01), iterations (100).

    Args:
        log: [users, items], ≥ 0; its entries are how much a user turned to an item.
        seed: of those that draw.

    Guarantees: the same scores for the same input (`als`, `bpr`: on one thread, which they are held to).

    Raises:
        JobError: no such method or option, or the package that it needs is not installed.
    """
    if spec.name not in _FITS:
        raise JobError(f"--baselines: {spec.name!r} is none of {', '.join(BASELINES)}; choose of them")
    fit, defaults = _FITS[spec.name]
    unknown = sorted(set(spec.options) - set(defaults))
    if unknown:
        allowed = ", ".join(defaults) or "none"
        raise JobError(f"--baselines: {spec.name} has no option {unknown[0]!r}; allowed: {allowed}")
    return fit(log, seed, **{**defaults, **spec.options})


def has_implicit() -> bool:
    """Says whether `als` and `bpr` can be fitted here."""
    return importlib.util.find_spec("implicit") is not None


def _popular(log: scipy.sparse.csr_array, seed: int) -> Scorer:
    n = np.asarray(log.sum(0)).ravel().astype(np.float64)
    return lambda users: np.broadcast_to(n, (len(users), len(n)))


def _random(log: scipy.sparse.csr_array, seed: int) -> Scorer:
    """Scores that depend on user, item and seed alone."""
    items = log.shape[1]

    def score(users: np.ndarray) -> np.ndarray:
        keys = (users.astype(np.int64)[:, None] * items + np.arange(items)).ravel() + (seed << 44)
        return (hash_ids(pa.array(keys)) >> np.uint64(11)).astype(np.float64).reshape(len(users), items) / 2.0**53

    return score


# --- item neighbours ---------------------------------------------------------------------------------------


def _cosine(log: scipy.sparse.csr_array, seed: int, neighbours: float, shrink: float) -> Scorer:
    """Σ over the user's items of x_uj · s_ij, s the cosine of columns, xᵢ·xⱼ / (‖xᵢ‖‖xⱼ‖ + shrink).

    Source: Sarwar et al., WWW 2001; shrinkage as in Dacrema et al., RecSys 2019.
    """
    x = scipy.sparse.csc_array(log, dtype=np.float64)
    norm = np.sqrt(np.asarray(x.multiply(x).sum(0)).ravel())
    products = (x.T @ x).tocoo()
    values = products.data / (norm[products.row] * norm[products.col] + shrink)
    likeness = scipy.sparse.csr_array((values, (products.row, products.col)), shape=products.shape)
    return _by_neighbours(log, nearest(likeness, int(neighbours)))


def _bm25(log: scipy.sparse.csr_array, seed: int, neighbours: float, k1: float, b: float) -> Scorer:
    """The same with s the inner products of the items' BM25 weights, items as documents and users as terms.

    An item's weight of a user is x (k1 + 1) / (k1 · (1 − b + b · length / mean length) + x) · idf, and
    idf = log(items) − log(1 + the user's items), as in `implicit.nearest_neighbours.BM25Recommender`.

    Source: Robertson, Zaragoza, "The probabilistic relevance framework", 2009, eq. 3.15.
    """
    x = scipy.sparse.coo_array(log, dtype=np.float64)
    idf = np.log(x.shape[1]) - np.log1p(np.bincount(x.row, minlength=x.shape[0]))
    length = np.asarray(x.sum(0)).ravel()
    norm = 1.0 - b + b * length / max(length.mean(), 1e-300)
    data = x.data * (k1 + 1.0) / (k1 * norm[x.col] + x.data) * idf[x.row]
    weighted = scipy.sparse.csc_array(scipy.sparse.coo_array((data, (x.row, x.col)), shape=x.shape))
    return _by_neighbours(log, nearest(scipy.sparse.csr_array(weighted.T @ weighted), int(neighbours)))


def nearest(likeness: scipy.sparse.csr_array, most: int) -> scipy.sparse.csr_array:
    """Leaves the `most` largest entries above zero of each row; of equal ones, those of lower columns."""
    n, m = likeness.shape
    parts = []
    for start in range(0, n, _ROWS_AT_ONCE):  # dense, but a few rows at a time: a partition beats sorting all entries
        block = likeness[start : start + _ROWS_AT_ONCE].toarray()
        if most < m:
            kth = np.partition(block, m - most, axis=1)[:, m - most, None]
            above, level = block > kth, block == kth
            room = most - above.sum(1, keepdims=True)
            block[~(above | (level & (np.cumsum(level, axis=1) <= room)))] = 0
        parts.append(scipy.sparse.csr_array(np.where(block > 0, block, 0)))
    return scipy.sparse.csr_array(scipy.sparse.vstack(parts)) if parts else likeness


def _by_neighbours(log: scipy.sparse.csr_array, likeness: scipy.sparse.csr_array) -> Scorer:
    # A row holds what is nearest to an item of the user's, so the scores of all items are rows added up.
    return lambda users: (log[users].astype(np.float64) @ likeness).toarray()


# --- implicit ----------------------------------------------------------------------------------------------


def _als(
    log: scipy.sparse.csr_array, seed: int, factors: float, regularization: float, alpha: float, iterations: float
) -> Scorer:
    """Hu, Koren, Volinsky, "Collaborative filtering for implicit feedback datasets", ICDM 2008."""
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
    """Rendle et al., "BPR: Bayesian personalized ranking from implicit feedback", UAI 2009."""
    settings = {"factors": int(factors), "learning_rate": learning_rate, "regularization": regularization}
    return _of_factors("bpr", "BayesianPersonalizedRanking", log, seed, {**settings, "iterations": int(iterations)})


def _of_factors(module: str, name: str, log: scipy.sparse.csr_array, seed: int, settings: dict[str, Any]) -> Scorer:
    if not has_implicit():
        raise JobError(f"--baselines: {module} needs the package implicit; pip install 'unisono[ranking]'")
    from threadpoolctl import threadpool_limits

    make = getattr(import_module(f"implicit.cpu.{module}"), name)
    with threadpool_limits(1, "blas"):  # whose threads would fight those of the model: it says so at length
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
