"""Rivals that read what items are: content neighbours, one ridge regression a user, and VBPR."""

from __future__ import annotations

import contextlib
import io
import itertools
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib import import_module
from typing import Any

import numpy as np
import scipy.sparse
from threadpoolctl import threadpool_limits

from unisono.pipelines.ask.ranking_case import Case
from unisono.transforms.base.columns import embeddings_of, unit_rows
from unisono.transforms.base.errors import JobError
from unisono.transforms.base.extras import is_installed
from unisono.transforms.measure.baselines import Scorer, keep_nearest

Settings = Mapping[str, Any]


@lru_cache(maxsize=32)
def features_of(case: Case) -> np.ndarray:
    """Returns the embeddings of all modalities side by side.

    Each modality is centred and scaled to an RMS norm of 1 over the items that have it; other items have zeros.

    Returns:
        float64 [items, k].

    Raises:
        JobError: the case holds no embedding.
    """
    parts = []
    for x, present in embeddings_of(case.embeddings).values():
        part = np.zeros(x.shape)
        if present.any():
            part[present] = x[present] - x[present].mean(0, dtype=np.float64)
            part /= max(np.sqrt((part[present] ** 2).sum(1).mean()), 1e-300)
        parts.append(part)
    if not parts:
        raise JobError("benchmarks.ranking: there are no embeddings; run `unisono embed` with the job first")
    return np.hstack(parts)


# --- neighbours --------------------------------------------------------------------------------------------


def content_knn(case: Case, settings: Settings) -> Scorer:
    """Scores an item by how many of its neighbours a user has.

    An item's neighbours are the items with the highest cosine of their features among those that somebody touched. The
    score is Σ s_ij^power over the neighbours j that the user has. If `normalised`, it is divided by the sum over all
    neighbours.
    """
    unit = unit_rows(features_of(case))
    likeness = np.maximum(unit @ unit.T, 0.0) ** settings["power"]
    np.fill_diagonal(likeness, 0.0)
    likeness[:, case.new] = 0.0
    near = keep_nearest(scipy.sparse.csr_array(likeness), settings["neighbours"])
    if settings["normalised"]:
        total = np.asarray(near.sum(1)).ravel()
        near = scipy.sparse.csr_array(near.multiply(1.0 / np.maximum(total, 1e-300)[:, None]))
    by_item = scipy.sparse.csr_array(near.T)
    return lambda users: (case.log[users] @ by_item).toarray()


# --- one regression a user ---------------------------------------------------------------------------------


def content_ridge(case: Case, settings: Settings) -> Scorer:
    """Scores items by a linear model of their features, one for each user.

    The model is fitted to 1 for the items that the user has, and to 0 for the others that somebody touched. An item
    that the user has weighs 1, any other one `unobserved`; `ridge` penalises all coefficients but the constant.

    With G = unobserved Σ x xᵀ + ridge · I over the touched items and K = X G⁻¹ Xᵀ over all items, the scores of a user
    with the items S are K[:, S] (I + (1 − unobserved) K[S, S])⁻¹ 1, by the Woodbury identity. So a user costs |S|³
    instead of the cube of the number of features.
    """
    x = np.hstack([features_of(case), np.ones((case.items, 1))])
    touched = x[~case.new]
    penalty = np.full(x.shape[1], settings["ridge"])
    penalty[-1] = 0.0
    kernel = x @ np.linalg.solve(settings["unobserved"] * (touched.T @ touched) + np.diag(penalty), x.T)
    more = 1.0 - settings["unobserved"]

    def score(users: np.ndarray) -> np.ndarray:
        log = scipy.sparse.csr_array(case.log[users])
        weights = log.astype(np.float64)
        for start, end in itertools.pairwise(log.indptr):  # one system for each user, each with other items
            mine = log.indices[start:end]
            inner = np.eye(len(mine)) + more * kernel[np.ix_(mine, mine)]
            weights.data[start:end] = np.linalg.solve(inner, np.ones(len(mine)))
        return np.asarray(weights @ kernel)

    return score


# --- VBPR --------------------------------------------------------------------------------------------------


def vbpr(case: Case, settings: Settings, seed: int = 0) -> Scorer:
    """Fits VBPR with the package `cornac`.

    Only the drawing of triples is ours, because that of the package is a Python loop over the pairs. The model is
    fitted to the items that somebody has; the factors and biases of the others are 0, so only their content counts.

    Raises:
        JobError: cornac or torch is not installed.

    Source: He and McAuley, "VBPR: visual Bayesian personalized ranking from implicit feedback", AAAI 2016.
    """
    if missing := [name for name in ("cornac", "torch") if not is_installed(name)]:
        raise JobError(f"benchmarks.ranking: vbpr needs {missing[0]}, which is not installed; pip install cornac torch")
    warm = np.flatnonzero(np.diff(scipy.sparse.csc_array(case.log).indptr))
    features = features_of(case)
    model = import_module("cornac.models").VBPR(
        k=settings["factors"],
        k2=settings["content_factors"],
        n_epochs=settings["epochs"],
        batch_size=1024,
        learning_rate=settings["learning_rate"],
        lambda_w=settings["regularization"],
        lambda_b=settings["regularization"],
        lambda_e=settings["content_regularization"],
        verbose=False,
        seed=seed,
    )
    log = scipy.sparse.csr_array(case.log[:, warm])
    import_module("torch")  # so that its threads are limited too: the batches are too small for several
    # The package prints a line when it is done.
    with threadpool_limits(1), contextlib.redirect_stdout(io.StringIO()):
        model.fit(_training_set(log, features[warm], seed))
    users = np.hstack([model.gamma_user, model.theta_user, np.ones((log.shape[0], 1))])
    items = np.zeros((case.items, users.shape[1]))
    items[warm, : model.k] = model.gamma_item
    items[:, model.k : -1] = features @ model.emb_matrix
    items[:, -1] = (features @ model.beta_prime).ravel()
    items[warm, -1] += model.beta_item
    return lambda rows: users[rows] @ items.T


def _training_set(log: scipy.sparse.csr_array, features: np.ndarray, seed: int) -> Any:
    """Wraps a log and the features of its items as a training set of cornac, with a fast way to draw triples."""
    data = import_module("cornac.data")
    users, items = log.nonzero()
    # Every user and item is named, in order, so that cornac's numbers are ours.
    names = {u: u for u in range(log.shape[0])}, {i: i for i in range(log.shape[1])}
    ratings = list(zip(users.tolist(), items.tolist(), np.ones(len(users)).tolist(), strict=True))
    made = data.Dataset.build(ratings, global_uid_map=names[0], global_iid_map=names[1], seed=seed)
    pictures = data.ImageModality(features=features.astype(np.float32), ids=list(range(len(features))))
    made.add_modalities(item_image=pictures.build(id_map=names[1]))
    have, rng = log.toarray() > 0, np.random.default_rng(seed)

    def draw(batch_size: int, shuffle: bool = True) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        order = rng.permutation(len(users))
        for start in range(0, len(order), batch_size):
            user, item = users[order[start : start + batch_size]], items[order[start : start + batch_size]]
            other = rng.integers(0, log.shape[1], len(user))
            while (known := have[user, other]).any():
                # A user who has every item has no other one; such a pair is drawn once more and then kept.
                other[known] = rng.integers(0, log.shape[1], int(known.sum()))
                if have[user[known]].all(1).any():
                    break
            yield user, item, other

    made.uij_iter = draw
    return made
