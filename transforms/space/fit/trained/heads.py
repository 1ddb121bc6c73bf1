"""Trains a joint space on a sample of embeddings: `contrastive`, `attention`, `autoencoder`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from unisono.transforms.base.columns import embeddings_of
from unisono.transforms.space.fit.canonical import solve_gcca
from unisono.transforms.space.fit.moments import Moments
from unisono.transforms.space.fit.spec import SpaceSpec
from unisono.transforms.space.fit.trained.objectives import HeadsObjective, Rows
from unisono.transforms.space.fit.trained.training import LEAST_ROWS, Params, Recipe, Trained, split_rows, train
from unisono.transforms.space.fit.whitening import whitener
from unisono.transforms.space.parts.trained import CrossAttention, TrainedHead
from unisono.transforms.space.space import LinearMap, Space

_INNER = 192  # whitened coordinates that a head sees at most
_REFIT_ROWS = 20_000  # with fewer, validation rows are too dear to be left out of the final training
RECIPES = {
    "contrastive": Recipe(rate=1e-4),
    "attention": Recipe(rate=1e-4),
    "autoencoder": Recipe(rate=3e-4),
}

Batch = Mapping[str, tuple[np.ndarray, np.ndarray]]


def fit_heads(sample: pa.Table, moments: Moments, used: list[str], spec: SpaceSpec) -> Space:
    """Trains a head for each modality, and cross-attention if asked for.

    Training starts from regularised generalised CCA and changes it only as far as items that it does not see
    are then paired better: what validates worse than the start is not kept (`info["training"]["epoch"]` is then
    0). Up to `_REFIT_ROWS` items it is done twice, the second time on all of them, for the epochs that the first
    found best.

    Args:
        sample: `item_id` and `<m>_embedding` (null: missing), rows in the order of their ids.
        moments: of all items.
        used: modalities.
        spec: `method` is one of `RECIPES`; `seed`, `epochs` and what `gcca` takes are used.

    Returns:
        A space of `TrainedHead`s (and a `CrossAttention`), or of linear maps where nothing was trained.

    Guarantees: see `training.train`.

    Raises:
        JobError: torch is not installed, or training diverged.
    """
    recipe = replace(RECIPES[spec.method], seed=spec.seed)
    recipe = replace(recipe, epochs=spec.epochs) if spec.epochs is not None else recipe
    embeddings = {m: pair for m, pair in embeddings_of(sample).items() if m in used}
    several = np.sum([p for _, p in embeddings.values()], axis=0) > 1
    whole = _Start(moments, used, spec)
    if several.sum() < LEAST_ROWS:
        return whole.space({"epoch": 0, "why": f"{several.sum()} of at least {LEAST_ROWS} items have two modalities"})
    training, held = split_rows(sample["item_id"], several)
    at_start = _Start(Moments.zero().add(_take(embeddings, training)), used, spec)
    objective = HeadsObjective(
        spec.method,
        at_start.rows(_take(embeddings, training)),
        at_start.rows(_take(embeddings, held)),
        recipe.batch,
        _heads(at_start.dim),
    )
    found = train(objective, recipe)
    info: dict[str, Any] = {
        "epoch": found.epoch,
        "rates": found.rates,
        "history": found.history,
        "score": "mean reciprocal rank of validation items over pairs of modalities",
        "rows": len(training),
        "validation_rows": len(held),
        "seed": recipe.seed,
        "refitted": False,
    }
    if spec.method == "autoencoder":
        info["explained"] = objective.explained(found.params)
    if found.epoch == 0:
        return whole.space(info)
    if len(several) < _REFIT_ROWS:
        objective = replace(
            objective, training=whole.rows(embeddings), validation=None, heads=_heads(whole.dim), _placed={}
        )
        found = train(objective, recipe, found.rates)
        at_start, info["refitted"] = whole, True
    return at_start.space(info, found, objective)


def _heads(dim: int) -> int:
    return next(h for h in (4, 2, 1) if dim % h == 0)


def _take(embeddings: Batch, rows: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {m: (x[rows], present[rows]) for m, (x, present) in embeddings.items()}


class _Start:
    """The closed form that training starts from."""

    def __init__(self, moments: Moments, used: list[str], spec: SpaceSpec) -> None:
        used = [m for m in sorted(used) if m in moments.dims]
        maps, self._found = solve_gcca(moments, used, replace(spec, method="gcca"))
        self._mean = {m: moments.mean(m) for m in used}
        self._inner, self._map = {}, {}
        for m in used:
            covariance = moments.covariance(m, m)
            self._inner[m] = whitener(moments, m, spec.regularization).basis[:, :_INNER]
            power = float(np.sum(maps[m] * (covariance @ maps[m])))
            self._map[m] = maps[m] / power**0.5 if power > 0 else maps[m]
        self.dim = next(iter(maps.values())).shape[1]

    def rows(self, embeddings: Batch) -> Rows:
        """Computes what heads see, in float64, kept as float32."""
        values = {}
        for m in self._mean:
            x, present = embeddings[m]
            y = np.zeros((len(x), self._inner[m].shape[1]), np.float32)
            g = np.zeros((len(x), self.dim), np.float32)
            for start in range(0, len(x), 4096):
                rows = slice(start, start + 4096)
                centred = np.where(present[rows, None], x[rows] - self._mean[m], 0.0)
                y[rows], g[rows] = centred @ self._inner[m], centred @ self._map[m]
            values[m] = y, g
        return Rows(values, np.stack([embeddings[m][1] for m in self._mean]))

    def space(
        self, info: dict[str, Any], found: Trained | None = None, objective: HeadsObjective | None = None
    ) -> Space:
        """Makes the space as it is at the start, or as it was trained."""
        told = {**self._found, "training": info}
        if found is None or objective is None:
            return Space("", {m: LinearMap(self._mean[m], self._map[m]) for m in self._mean}, info=told)
        mixer = _mixer(found.params, objective) if objective.method == "attention" else None
        return Space("", {m: self._head(found.params, m) for m in self._mean}, mixer=mixer, info=told)

    def _head(self, params: Params, m: str) -> TrainedHead:
        """The linear part of what was learned goes into the map."""
        learned = self._map[m] + self._inner[m] @ params[f"{m}.w0"].astype(np.float64)
        return TrainedHead(self._mean[m], self._inner[m], learned, params[f"{m}.w1"], params[f"{m}.w2"])


def _mixer(params: Params, objective: HeadsObjective) -> CrossAttention:
    names = ("query", "key", "value", "out", "kind")
    return CrossAttention({k: params[k] for k in names}, objective.heads)
