"""Rivals that read what items are: content neighbours, one ridge regression a user, and VBPR."""

from __future__ import annotations

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
from unisono.transforms.base.extras import require
from unisono.transforms.measure.baselines import Scorer, keep_nearest

Settings = Mapping[str, Any]
_BATCH = 1024  # triples


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
    """Fits VBPR: b_i + β·f_i + γ_u·γ_i + θ_u·(E f_i), where f_i are the features of item i.

    Written here because the one in cornac 3.0.1 is another model: it adds β·f [n, 1] to the rest [n], so that a batch
    of n triples becomes n × n. Items that nobody has keep b = 0 and γ = 0, so only their content counts; they are not
    drawn as the other item of a triple either.

    Raises:
        JobError: torch is not installed.

    Source: He and McAuley, "VBPR: visual Bayesian personalized ranking from implicit feedback", AAAI 2016, equations 4
    and 7. Adam instead of plain SGD, as in cornac.
    """
    require("torch", "models", "benchmarks.ranking", "vbpr")
    torch = import_module("torch")
    rng, features = np.random.default_rng(seed), features_of(case)
    people, wide = case.log.shape[0], features.shape[1]
    few, k = settings["factors"], settings["content_factors"]
    shapes = {"user": (people, few), "item": (case.items, few), "taste": (people, k), "map": (wide, k)}
    start = {name: rng.normal(0, 0.1, shape) for name, shape in shapes.items()}
    start |= {"bias": np.zeros(case.items), "content_bias": np.zeros(wide)}
    made = {name: torch.tensor(x, dtype=torch.float32, requires_grad=True) for name, x in start.items()}
    with threadpool_limits(1):  # the batches are too small for several threads
        _descend(torch, made, torch.tensor(features, dtype=torch.float32), case.log, settings, rng)
    fit = {name: x.detach().numpy().astype(np.float64) for name, x in made.items()}
    untouched = np.bincount(case.log.nonzero()[1], minlength=case.items) == 0
    fit["item"][untouched] = 0.0
    of_items = np.hstack([fit["item"], features @ fit["map"]])
    of_all = fit["bias"] + features @ fit["content_bias"]
    of_users = np.hstack([fit["user"], fit["taste"]])
    return lambda rows: of_users[rows] @ of_items.T + of_all


def _descend(
    torch: Any, fit: dict[str, Any], features: Any, log: scipy.sparse.csr_array, settings: Settings, rng: Any
) -> None:
    """Minimises Σ −ln σ(x_ui − x_uj) over triples, with half the squares of the parameters that a batch uses."""
    optimizer = torch.optim.Adam(list(fit.values()), lr=settings["learning_rate"])
    for _ in range(settings["epochs"]):
        for u, i, j in draw_triples(log, _BATCH, rng):
            user, taste, item, other = fit["user"][u], fit["taste"][u], fit["item"][i], fit["item"][j]
            apart = features[i] - features[j]
            better = fit["bias"][i] - fit["bias"][j] + apart @ fit["content_bias"]
            better = better + (user * (item - other)).sum(1) + (taste * (apart @ fit["map"])).sum(1)
            used = user, taste, item, other, fit["bias"][i], fit["bias"][j]
            penalty = settings["regularization"] * sum((x**2).sum() for x in used)
            penalty = penalty + settings["content_regularization"] * sum(
                (fit[name] ** 2).sum() for name in ("map", "content_bias")
            )
            loss = penalty / 2 - torch.nn.functional.logsigmoid(better).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def draw_triples(
    log: scipy.sparse.csr_array, size: int, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yields every pair of a log once, in random order, with an item that the user does not have and somebody else has.

    A pair of a user who has all of these items comes without such an item and is left out.

    Args:
        log: [users, items].
        size: the number of triples in a batch; the last one may be smaller.
        rng: draws the order and the items.

    Yields:
        user, item and other item, int64 [n] each.
    """
    have = log.toarray() > 0
    known = np.flatnonzero(have.any(0))
    users, items = (x.astype(np.int64) for x in log.nonzero())
    free = have[:, known].sum(1) < len(known)
    users, items = users[free[users]], items[free[users]]
    order = rng.permutation(len(users))
    for start in range(0, len(order), size):
        user, item = users[order[start : start + size]], items[order[start : start + size]]
        other = rng.choice(known, len(user))
        while len(again := np.flatnonzero(have[user, other])):
            other[again] = rng.choice(known, len(again))
        yield user, item, other
