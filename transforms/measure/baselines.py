"""Baselines for rankings: popularity, random scores, item neighbours, EASE, content, and those of `implicit`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any

import numpy as np
import pyarrow as pa
import scipy.linalg
import scipy.sparse

from unisono.transforms.base.columns import unit_rows
from unisono.transforms.base.errors import JobError
from unisono.transforms.base.extras import is_installed, require
from unisono.transforms.base.nearest import best_columns
from unisono.transforms.base.tables import hash_ids

_ROWS_AT_ONCE = 256
MOST_EASE_ITEMS = 20_000  # EASE inverts a dense matrix of the items: 3.2 GB for this many, and a few minutes

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


@dataclass(frozen=True, eq=False)
class Known:
    """What some baselines use beside the log.

    Attributes:
        age_days: float64, 0 or more: for each entry of the log, in the order of its `data`, the days from the pair's
            newest event to the newest event of all. None means that nothing ages.
        content: the items' embeddings by modality, [items, d], and which of them are present, bool [items].
        order: int64 [items], the items in the order in which equal neighbours are taken. None means by column. An
            order by hash keeps the items' names out of the figures.
    """

    age_days: np.ndarray | None = None
    content: Mapping[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    order: np.ndarray | None = None


def fit_baseline(spec: Baseline, log: scipy.sparse.csr_array, seed: int = 0, known: Known | None = None) -> Scorer:
    """Fits a baseline to a log.

    The options and their defaults are: for `popular-aged`, half_life_days (14); for `cosine`, neighbours (100) and
    shrink (0); for `bm25`, neighbours (100), k1 (1.2) and b (0.75); for `ease`, ridge (200); for `ease-aged`, ridge
    (200) and half_life_days (30); for `als`, factors (64), regularization (0.01), alpha (1) and iterations (15); for
    `bpr`, factors (64), learning_rate (0.01), regularization (0.01) and iterations (100). `popular`, `random` and
    `content` have none.

    Args:
        spec: the method and its options.
        log: [users, items], above 0 where a user likes an item: how strongly. There are no entries of 0.
        seed: seed of the methods that draw random numbers.
        known: what `popular-aged`, `ease-aged`, `content`, `cosine` and `bm25` use beside the log. None means nothing:
            then nothing ages, and every score of `content` is 0.

    Returns:
        A function from user rows, int64 [b], to scores, float [b, items].

    Raises:
        JobError: there is no such method or option, the package that the method needs is not installed, or there are
            too many items for EASE.

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
    return fit(_Training(log, seed, known or Known()), **{**defaults, **spec.options})


@dataclass(frozen=True, eq=False)
class _Training:
    """What a baseline is fitted to."""

    log: scipy.sparse.csr_array
    seed: int
    known: Known

    def aged(self, half_life_days: float) -> scipy.sparse.csr_array:
        """Returns the log with each entry multiplied by 2^(−age / half-life)."""
        if self.known.age_days is None:
            return self.log
        left = np.exp2(-self.known.age_days / half_life_days)
        return scipy.sparse.csr_array((self.log.data * left, self.log.indices, self.log.indptr), shape=self.log.shape)


def has_implicit() -> bool:
    """Says whether the package that `als` and `bpr` need is installed."""
    return is_installed("implicit")


def _popular(t: _Training) -> Scorer:
    """Scores an item by the number of users who like it."""
    return _same_for_all(np.bincount(t.log.indices, minlength=t.log.shape[1]).astype(np.float64))


def _popular_aged(t: _Training, half_life_days: float) -> Scorer:
    """Scores an item by Σ 2^(−age / half-life) over the users who like it."""
    ones = replace(t, log=scipy.sparse.csr_array((np.ones(t.log.nnz), t.log.indices, t.log.indptr), shape=t.log.shape))
    return _same_for_all(np.asarray(ones.aged(half_life_days).sum(0)).ravel())


def _same_for_all(scores: np.ndarray) -> Scorer:
    return lambda users: np.broadcast_to(scores, (len(users), len(scores)))


def _random(t: _Training) -> Scorer:
    """Returns random scores that depend on the user, the item and the seed only."""
    items, start = t.log.shape[1], t.seed * 0xD1B54A32D192ED03 % 2**62

    def score(users: np.ndarray) -> np.ndarray:
        keys = (users.astype(np.int64)[:, None] * items + np.arange(items)).ravel() + start
        return (hash_ids(pa.array(keys)) >> np.uint64(11)).astype(np.float64).reshape(len(users), items) / 2.0**53

    return score


# --- item neighbours ---------------------------------------------------------------------------------------


def _cosine(t: _Training, neighbours: float, shrink: float) -> Scorer:
    """Scores an item i by Σ x_uj · s_ij over the user's items j, where s_ij = xᵢ·xⱼ / (‖xᵢ‖‖xⱼ‖ + shrink).

    Source: Sarwar et al., "Item-based collaborative filtering recommendation algorithms", WWW 2001; Dacrema et al.,
    "Are we really making much progress?", RecSys 2019 (shrinkage).
    """
    x = scipy.sparse.csc_array(t.log, dtype=np.float64)
    norm = np.sqrt(np.asarray(x.multiply(x).sum(0)).ravel())
    products = (x.T @ x).tocoo()
    values = products.data / (norm[products.row] * norm[products.col] + shrink)
    likeness = scipy.sparse.csr_array((values, (products.row, products.col)), shape=products.shape)
    return _by_items(t.log, keep_nearest(likeness, int(neighbours), t.known.order))


def _bm25(t: _Training, neighbours: float, k1: float, b: float) -> Scorer:
    """Scores an item i by Σ x_uj · s_ij over the user's items j, where s_ij is the inner product of BM25 weights.

    Items are the documents and users the terms. The weight of a user in an item is
    x (k1 + 1) / (k1 · (1 − b + b · length / mean length) + x) · idf, with idf = log(items) − log(1 + number of the
    user's items), as in `implicit.nearest_neighbours.BM25Recommender`.

    Source: Robertson and Zaragoza, "The probabilistic relevance framework", 2009, equation 3.15.
    """
    x = scipy.sparse.coo_array(t.log, dtype=np.float64)
    idf = np.log(x.shape[1]) - np.log1p(np.bincount(x.row, minlength=x.shape[0]))
    length = np.asarray(x.sum(0)).ravel()
    norm = 1.0 - b + b * length / max(length.mean(), 1e-300)
    data = x.data * (k1 + 1.0) / (k1 * norm[x.col] + x.data) * idf[x.row]
    weighted = scipy.sparse.csc_array(scipy.sparse.coo_array((data, (x.row, x.col)), shape=x.shape))
    likeness = scipy.sparse.csr_array(weighted.T @ weighted)
    return _by_items(t.log, keep_nearest(likeness, int(neighbours), t.known.order))


def keep_nearest(
    likeness: scipy.sparse.csr_array, most: int, order: np.ndarray | None = None
) -> scipy.sparse.csr_array:
    """Keeps the `most` largest entries above 0 of each row.

    Args:
        likeness: [n, items].
        most: how many entries are kept.
        order: int64 [items], the columns in the order in which equal entries are kept. None means from left to right.
    """
    order = np.arange(likeness.shape[1]) if order is None else order
    parts = []
    for start in range(0, likeness.shape[0], _ROWS_AT_ONCE):  # a few dense rows are faster than sorting sparse entries
        block = likeness[start : start + _ROWS_AT_ONCE].toarray()
        kept = np.zeros(block.shape, bool)
        np.put_along_axis(kept, order[best_columns(block[:, order], most)], True, axis=1)
        parts.append(scipy.sparse.csr_array(np.where(kept & (block > 0), block, 0)))
    return scipy.sparse.csr_array(scipy.sparse.vstack(parts)) if parts else likeness


def _by_items(log: scipy.sparse.csr_array, weights: scipy.sparse.csr_array) -> Scorer:
    # Row j of `weights` holds what item j adds to the other items, so a user's scores are the sum of the rows of the
    # user's items.
    return lambda users: (log[users].astype(np.float64) @ weights).toarray()


# --- EASE --------------------------------------------------------------------------------------------------


def _ease(t: _Training, ridge: float) -> Scorer:
    """Scores an item i by Σ x_uj · B_ji over the user's items j, with B as in `ease_weights`."""
    return _ease_of(t, t.log, ridge)


def _ease_aged(t: _Training, ridge: float, half_life_days: float) -> Scorer:
    """Scores as `ease` does, but a user's x_uj is halved with every half-life of its age. B does not age."""
    return _ease_of(t, t.aged(half_life_days), ridge)


def _ease_of(t: _Training, history: scipy.sparse.csr_array, ridge: float) -> Scorer:
    n = t.log.shape[1]
    liked = np.flatnonzero(np.bincount(t.log.indices, minlength=n))  # the scores of all other items are 0
    if len(liked) > MOST_EASE_ITEMS:
        raise JobError(
            f"--baselines: EASE inverts a matrix of {len(liked):,} items, and at most {MOST_EASE_ITEMS:,} are allowed; "
            "leave out ease and ease-aged"
        )
    weights = ease_weights(scipy.sparse.csc_array(t.log)[:, liked], ridge)
    mine = scipy.sparse.csr_array(scipy.sparse.csc_array(history)[:, liked])

    def score(users: np.ndarray) -> np.ndarray:
        out = np.zeros((len(users), n))
        out[:, liked] = mine[users] @ weights
        return out

    return score


def ease_weights(log: scipy.sparse.csc_array, ridge: float) -> np.ndarray:
    """Computes B_ij = −P_ij / P_jj with P = (XᵀX + ridge · I)^{-1}, zero on the diagonal: float64 [items, items].

    Args:
        log: X, [users, items].
        ridge: above 0.

    Source: Steck, "Embarrassingly shallow autoencoders for sparse data", WWW 2019, equation 8.
    """
    n = log.shape[1]
    gram = np.empty((n, n))
    for start in range(0, n, _ROWS_AT_ONCE):  # the sparse product of all items at once takes more memory than `gram`
        block = slice(start, start + _ROWS_AT_ONCE)
        gram[block] = (log[:, block].T @ log).toarray()
    gram[np.diag_indices(n)] += ridge
    # The matrix is symmetric. In its transposed form it is in the order of memory that lets LAPACK work in place.
    inverse = scipy.linalg.inv(gram.T, overwrite_a=True, check_finite=False) if n else gram
    weights = np.divide(inverse, -np.diag(inverse), out=inverse)
    weights[np.diag_indices(n)] = 0.0
    return np.asarray(weights)


# --- content -----------------------------------------------------------------------------------------------


def _content(t: _Training) -> Scorer:
    """Scores an item by the cosine of its embedding and the mean of the embeddings of the user's items.

    Embeddings are centred and scaled to unit length first. With several modalities, the score is the mean over those
    that the item has. An item without an embedding scores 0.
    """
    parts = []
    has = np.zeros(t.log.shape[1])
    for vectors, present in t.known.content.values():
        rows = np.zeros(vectors.shape, np.float32)
        if present.any():
            rows[present] = vectors[present] - vectors[present].mean(0, dtype=np.float64)
        parts.append(unit_rows(rows))
        has += present

    def score(users: np.ndarray) -> np.ndarray:
        log = t.log[users].astype(np.float32)
        out = np.zeros((len(users), t.log.shape[1]))
        for rows in parts:
            out += unit_rows(log @ rows) @ rows.T
        return out / np.maximum(has, 1)

    return score


# --- implicit ----------------------------------------------------------------------------------------------


def _als(t: _Training, factors: float, regularization: float, alpha: float, iterations: float) -> Scorer:
    """Fits alternating least squares.

    Source: Hu, Koren and Volinsky, "Collaborative filtering for implicit feedback datasets", ICDM 2008.
    """
    settings = {"factors": int(factors), "regularization": regularization, "alpha": alpha}
    return _of_factors("als", "AlternatingLeastSquares", t, {**settings, "iterations": int(iterations)})


def _bpr(t: _Training, factors: float, learning_rate: float, regularization: float, iterations: float) -> Scorer:
    """Fits Bayesian personalised ranking.

    Source: Rendle et al., "BPR: Bayesian personalized ranking from implicit feedback", UAI 2009.
    """
    settings = {"factors": int(factors), "learning_rate": learning_rate, "regularization": regularization}
    return _of_factors("bpr", "BayesianPersonalizedRanking", t, {**settings, "iterations": int(iterations)})


def _of_factors(module: str, name: str, t: _Training, settings: dict[str, Any]) -> Scorer:
    require("implicit", "ranking", "--baselines", module)
    from threadpoolctl import threadpool_limits

    make = getattr(import_module(f"implicit.cpu.{module}"), name)
    with threadpool_limits(1, "blas"):  # implicit warns if BLAS runs threads beside its own
        model = make(**settings, random_state=t.seed, num_threads=1)
        model.fit(scipy.sparse.csr_matrix(t.log, dtype=np.float32), show_progress=False)
    users = np.asarray(model.user_factors, np.float64)
    items = np.asarray(model.item_factors, np.float64)
    return lambda rows: users[rows] @ items.T


_FITS: dict[str, tuple[Callable[..., Scorer], dict[str, float]]] = {
    "popular": (_popular, {}),
    "popular-aged": (_popular_aged, {"half_life_days": 14}),
    "random": (_random, {}),
    "cosine": (_cosine, {"neighbours": 100, "shrink": 0}),
    "bm25": (_bm25, {"neighbours": 100, "k1": 1.2, "b": 0.75}),
    "ease": (_ease, {"ridge": 200}),
    "ease-aged": (_ease_aged, {"ridge": 200, "half_life_days": 30}),
    "content": (_content, {}),
    "als": (_als, {"factors": 64, "regularization": 0.01, "alpha": 1, "iterations": 15}),
    "bpr": (_bpr, {"factors": 64, "learning_rate": 0.01, "regularization": 0.01, "iterations": 100}),
}
BASELINES = tuple(_FITS)
