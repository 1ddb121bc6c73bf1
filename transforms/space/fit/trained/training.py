"""The training loop: seeded, with a validation split and early stopping."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa

from unisono.transforms.base.errors import JobError
from unisono.transforms.base.progress import advance
from unisono.transforms.base.tables import hash_ids

if TYPE_CHECKING:
    import torch

Params = dict[str, np.ndarray]
Tensors = Mapping[str, "torch.Tensor"]
LEAST_ROWS = 40  # with two modalities or more; with fewer nothing is trained
_VALIDATION = (0.1, 200, 2000, 0.3)  # of the rows; at least; at most; but no more than this part of them
_CUT = 0.3
_SPLIT = np.uint64(0x9E3779B97F4A7C15)  # so that the split is not the one by which the sample was drawn


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        epochs: at most so many passes over the rows.
        patience: passes without a better validation score after which training goes back to the best one with a
            smaller rate, or ends.
        cuts: how often the rate is made smaller, to `_CUT` of what it was.
        batch: rows a step.
        rate, decay: learning rate at the start, and weight decay of AdamW (Loshchilov, Hutter, "Decoupled weight decay
            regularization", ICLR 2019); decay is on matrices only.
        seed: of every random draw.
    """

    epochs: int = 30
    patience: int = 4
    cuts: int = 2
    batch: int = 256
    rate: float = 1e-4
    decay: float = 0.05
    seed: int = 0


@dataclass(frozen=True)
class Trained:
    """What came out.

    Attributes:
        params: float32, of the best epoch.
        epoch: the best one; 0: as they were before training.
        rates: the learning rate of each epoch that led to it.
        history: the validation score before training and after each epoch; empty without validation.
    """

    params: Params
    epoch: int
    rates: list[float]
    history: list[float]


class Objective(Protocol):
    """What is trained, and on what."""

    @property
    def rows(self) -> int:
        """How many rows train."""
        ...

    def initial(self, rng: np.random.Generator) -> Params:
        """Draws parameters, float32; epoch 0."""
        ...

    def bind(self, device: torch.device) -> None:
        """Puts the training rows on a device."""
        ...

    def loss(self, params: Tensors, rows: np.ndarray, rng: np.random.Generator) -> torch.Tensor | None:
        """Computes the loss on some rows; None where they give nothing to learn from."""
        ...

    def score(self, params: Params) -> float:
        """Scores parameters on the validation rows; higher is better."""
        ...


def split_rows(ids: pa.Array | pa.ChunkedArray, usable: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Chooses validation rows by hash of the item id.

    Args:
        ids: [n].
        usable: bool [n]; only such rows validate.

    Returns:
        Training rows and validation rows, ascending.
    """
    part, least, most, cap = _VALIDATION
    candidates = np.flatnonzero(usable)
    count = int(min(max(part * len(candidates), least), most, cap * len(candidates)))
    order = np.argsort(hash_ids(ids)[candidates] ^ _SPLIT, kind="stable")
    chosen = np.sort(candidates[order[:count]])
    return np.setdiff1d(np.arange(len(usable)), chosen), chosen


def train(objective: Objective, recipe: Recipe, rates: list[float] | None = None) -> Trained:
    """Trains with AdamW.

    Args:
        objective: what.
        recipe: how.
        rates: None: validation decides. Otherwise one epoch with each of them, and no score is asked for.

    Guarantees: on one machine's CPU the same rows, recipe and objective give the same bits: torch keeps to one
    thread meanwhile, which with matrices of this size is as fast as several. On CUDA, where there is one, they agree
    to rounding.

    Raises:
        JobError: torch is not installed, or the loss is not finite.
    """
    torch = _torch()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run = _Run(torch, objective, recipe)
        return run.validated() if rates is None else run.at(rates)
    finally:
        torch.set_num_threads(threads)


class _Run:
    """Parameters on their way."""

    def __init__(self, torch: Any, objective: Objective, recipe: Recipe) -> None:
        self._torch, self._objective, self._recipe = torch, objective, recipe
        self._rng = np.random.default_rng(recipe.seed)
        self._start = objective.initial(self._rng)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        objective.bind(self._device)
        self._set(self._start)

    def _set(self, values: Params) -> None:
        """Goes on from these parameters, with an optimiser that remembers nothing."""
        torch, recipe = self._torch, self._recipe
        self._params = {k: torch.tensor(v, device=self._device, requires_grad=True) for k, v in values.items()}
        groups = [
            {"params": [v for v in self._params.values() if v.ndim >= 2], "weight_decay": recipe.decay},
            {"params": [v for v in self._params.values() if v.ndim < 2], "weight_decay": 0.0},
        ]
        self._optimiser = torch.optim.AdamW([g for g in groups if g["params"]], lr=recipe.rate)

    def _step(self, rate: float) -> Params:
        """Trains for an epoch."""
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        _epoch(self._objective, self._params, self._optimiser, self._recipe, self._rng)
        return {k: v.detach().cpu().numpy().copy() for k, v in self._params.items()}

    def at(self, rates: list[float]) -> Trained:
        """Trains with given rates."""
        params = self._start
        for rate in rates:
            params = self._step(rate)
        return Trained(params, len(rates), rates, [])

    def validated(self) -> Trained:
        """Trains until validation is no longer better."""
        recipe = self._recipe
        best = Trained(self._start, 0, [], [])
        history = [self._objective.score(self._start)]
        rate, rates, stale, cuts = recipe.rate, list[float](), 0, 0
        for epoch in range(1, recipe.epochs + 1):
            now = self._step(rate)
            rates.append(rate)
            history.append(self._objective.score(now))
            stale += 1
            if history[-1] > history[best.epoch]:
                best, stale = Trained(now, epoch, list(rates), []), 0
            elif stale >= recipe.patience:
                if cuts == recipe.cuts:
                    break
                self._set(best.params)
                rate, rates, stale, cuts = rate * _CUT, list(best.rates), 0, cuts + 1
        return replace(best, history=[round(float(h), 6) for h in history])


def _epoch(
    objective: Objective, params: dict[str, torch.Tensor], optimiser: Any, recipe: Recipe, rng: np.random.Generator
) -> None:
    """Goes over the rows once; what a last batch lacks is left out, as its loss would be of another scale."""
    size = min(recipe.batch, objective.rows)
    order = rng.permutation(objective.rows)
    for start in range(0, objective.rows - size + 1, size):
        loss = objective.loss(params, order[start : start + size], rng)
        if loss is None:
            continue
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    if not all(bool(v.isfinite().all()) for v in params.values()):
        raise JobError("space: training diverged (numbers are no longer finite); look at the embeddings' scale")
    advance("train", done=objective.rows)


def _torch() -> Any:
    try:
        import torch
    except ImportError as e:
        raise JobError("space.method: this one is trained with torch; pip install 'unisono[models]'") from e
    return torch
