"""The training loop: seeded, with validation rows and early stopping."""

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
LEAST_ROWS = 40  # with fewer items that have two modalities or more, nothing is trained
# The number of validation rows: the fraction of the rows that is wanted, the least number, the largest number, and a
# fraction that is never exceeded.
_VALIDATION = (0.1, 200, 2000, 0.3)
_CUT = 0.3  # the learning rate is multiplied by this when it is reduced
_SPLIT = np.uint64(0x9E3779B97F4A7C15)  # makes the split independent of the hash by which the sample was drawn


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        epochs: the largest number of passes over the rows.
        patience: the number of passes without a better validation score after which training returns to the best
            parameters and reduces the learning rate, or ends.
        cuts: how often the learning rate is reduced, each time to `_CUT` of its value.
        batch: the number of rows in a step.
        rate: the learning rate at the start.
        decay: the weight decay of AdamW, for matrices only (Loshchilov, Hutter, "Decoupled weight decay
            regularization", ICLR 2019).
        seed: seeds every random draw.
    """

    epochs: int = 30
    patience: int = 4
    cuts: int = 2
    batch: int = 256
    rate: float = 1e-4
    decay: float = 0.05
    seed: int = 0

    def asked(self, seed: int | None, epochs: int | None) -> Recipe:
        """Copies the recipe with the seed and the number of epochs of the job file. None keeps the recipe's value."""
        return replace(
            self, seed=self.seed if seed is None else seed, epochs=self.epochs if epochs is None else epochs
        )


@dataclass(frozen=True)
class Trained:
    """The result of a training.

    Attributes:
        params: float32, the parameters of the best epoch.
        epoch: the number of the best epoch. 0 means that no epoch was better than the start.
        rates: the learning rate of each epoch that led to the best one.
        history: the validation score before training and after each epoch. Empty without validation.
    """

    params: Params
    epoch: int
    rates: list[float]
    history: list[float]


class Objective(Protocol):
    """The parameters to train, the rows to train on, the loss and the score."""

    @property
    def rows(self) -> int:
        """The number of training rows."""
        ...

    def initial(self, rng: np.random.Generator) -> Params:
        """Draws the parameters before training, float32."""
        ...

    def bind(self, device: torch.device) -> None:
        """Copies the training rows to a device."""
        ...

    def loss(self, params: Tensors, rows: np.ndarray, rng: np.random.Generator) -> torch.Tensor | None:
        """Computes the loss on some rows. None means that these rows cannot be trained on."""
        ...

    def score(self, params: Params) -> float:
        """Scores parameters on the validation rows. Higher is better."""
        ...


def split_rows(ids: pa.Array | pa.ChunkedArray, usable: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Chooses validation rows by hash of the item id.

    Args:
        ids: item ids, [n].
        usable: bool [n]. Only these rows may become validation rows.

    Returns:
        The training rows and the validation rows, each in ascending order.
    """
    part, least, most, cap = _VALIDATION
    candidates = np.flatnonzero(usable)
    count = int(min(max(part * len(candidates), least), most, cap * len(candidates)))
    order = np.argsort(hash_ids(ids)[candidates] ^ _SPLIT, kind="stable")
    chosen = np.sort(candidates[order[:count]])
    return np.setdiff1d(np.arange(len(usable)), chosen), chosen


def untrained(rows: int) -> dict[str, Any]:
    """Returns the report of a training that did not take place.

    Args:
        rows: the number of items with two modalities or more.
    """
    return {"epoch": 0, "why": f"{rows} of at least {LEAST_ROWS} items have two modalities"}


def train(objective: Objective, recipe: Recipe, rates: list[float] | None = None) -> Trained:
    """Trains the objective's parameters with AdamW.

    Args:
        objective: what to train.
        recipe: how to train.
        rates: the learning rate of each epoch; there is then no validation. None means that the validation score
            decides about learning rates and the end.

    Guarantees: on the CPU of one machine, the same rows, recipe and objective give the same result bit for bit. For
    this, torch runs in one thread, which is as fast as several for matrices of this size. On CUDA results agree up to
    rounding errors.

    Raises:
        JobError: torch is not installed, or a parameter is no longer finite.
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
    """A training in progress."""

    def __init__(self, torch: Any, objective: Objective, recipe: Recipe) -> None:
        self._torch, self._objective, self._recipe = torch, objective, recipe
        self._rng = np.random.default_rng(recipe.seed)
        self._start = objective.initial(self._rng)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        objective.bind(self._device)
        self._set(self._start)

    def _set(self, values: Params) -> None:
        """Continues from these parameters with a new optimiser."""
        torch, recipe = self._torch, self._recipe
        self._params = {k: torch.tensor(v, device=self._device, requires_grad=True) for k, v in values.items()}
        groups = [
            {"params": [v for v in self._params.values() if v.ndim >= 2], "weight_decay": recipe.decay},
            {"params": [v for v in self._params.values() if v.ndim < 2], "weight_decay": 0.0},
        ]
        self._optimiser = torch.optim.AdamW([g for g in groups if g["params"]], lr=recipe.rate)

    def _step(self, rate: float) -> Params:
        """Trains for one epoch and returns the parameters."""
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        _epoch(self._objective, self._params, self._optimiser, self._recipe, self._rng)
        return {k: v.detach().cpu().numpy().copy() for k, v in self._params.items()}

    def at(self, rates: list[float]) -> Trained:
        """Trains one epoch at each learning rate."""
        params = self._start
        for rate in rates:
            params = self._step(rate)
        return Trained(params, len(rates), rates, [])

    def validated(self) -> Trained:
        """Trains until the validation score no longer improves."""
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
    """Trains on each row once. An incomplete last batch is skipped, because its loss would have another scale.

    Raises:
        JobError: a parameter is no longer finite.
    """
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
        raise JobError("space: training diverged (parameters are not finite); look at the scale of the embeddings")
    advance("train", done=objective.rows)


def _torch() -> Any:
    """Imports torch.

    Raises:
        JobError: torch is not installed.
    """
    try:
        import torch
    except ImportError as e:
        raise JobError(
            "space.method: this method is trained with torch, which is not installed; pip install 'unisono[models]'"
        ) from e
    return torch
