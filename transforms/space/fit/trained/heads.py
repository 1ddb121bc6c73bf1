"""What the alignment methods with trained heads share: the objective, and the training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from unisono.transforms.base.columns import embeddings_of
from unisono.transforms.space.fit.moments import Moments
from unisono.transforms.space.fit.spec import SpaceSpec
from unisono.transforms.space.fit.trained.objectives import (
    mean_reciprocal_rank,
    mix_items,
    siglip,
    siglip_start,
    split_views,
)
from unisono.transforms.space.fit.trained.start import Rows, Start
from unisono.transforms.space.fit.trained.training import (
    LEAST_ROWS,
    Params,
    Recipe,
    Tensors,
    Trained,
    split_rows,
    train,
    untrained,
)
from unisono.transforms.space.parts.linear import Mixer
from unisono.transforms.space.parts.trained import residual, unit
from unisono.transforms.space.space import Batch, Space

if TYPE_CHECKING:
    import torch

HIDDEN = 256
_REFIT_ROWS = 20_000  # with fewer items, a second training uses the validation items too


@dataclass
class HeadsObjective:
    """Trains one head for each modality, starting from the closed-form projection.

    The modalities of an item are split at random into two views. The loss is SigLIP between the codes of the two views
    plus `further_loss`. A subclass overrides what its method does differently.

    Attributes:
        training: the rows to train on.
        validation: the rows to score on. None means that no score is needed.
        batch: the number of rows in a batch. The start of SigLIP's bias depends on it.
        agreement_weight: the weight of the agreement of the two views in the loss.
    """

    training: Rows
    validation: Rows | None
    batch: int
    agreement_weight: ClassVar[float] = 1.0
    _placed: dict[str, tuple[Any, Any]] = field(default_factory=dict)

    # --- what a method may override ---

    def modality_params(self, m: str, rng: np.random.Generator) -> Params:
        """Draws the parameters of one modality's head. Before training, the head is the closed-form projection."""
        k = self.training.values[m][0].shape[1]
        return {
            f"{m}.w0": np.zeros((k, self.dim)),
            f"{m}.w1": rng.standard_normal((k, HIDDEN)) / k**0.5,
            f"{m}.w2": np.zeros((HIDDEN, self.dim)),
        }

    def shared_params(self, rng: np.random.Generator) -> Params:
        """Draws the parameters that all modalities share."""
        return {}

    def fuse(self, xp: Any, params: Mapping[str, Any], parts: Any, present: Any) -> Any:
        """Returns the code of each item, [n, dim]: the mean of its present parts at unit length.

        Args:
            xp: NumPy or torch.
            params: the parameters.
            parts: [K, n, dim], unit rows.
            present: bool [K, n].
        """
        return unit(xp, xp.where(present[:, :, None], parts, xp.zeros_like(parts)).sum(axis=0))

    def further_loss(
        self, params: Tensors, code: torch.Tensor, parts: torch.Tensor, goals: torch.Tensor, present: np.ndarray
    ) -> torch.Tensor:
        """Computes the rest of the loss: the mean of SigLIP over the pairs of modalities.

        Args:
            params: the parameters.
            code: the code of the first view, [n, dim].
            parts: the projections, unit rows [K, n, dim].
            goals: the closed-form projections, [K, n, dim], of any length.
            present: bool [K, n].
        """
        import torch

        losses = []
        for a, b in combinations(range(len(parts)), 2):
            both = torch.as_tensor(present[a] & present[b], device=parts.device)
            if int(both.sum()) > 1:
                losses.append(siglip(parts[a][both], parts[b][both], params["loss.scale"], params["loss.bias"]))
        return torch.stack(losses).mean()

    def mixer(self, params: Params) -> Mixer | None:
        """Makes the space's mixer from trained parameters. None means that the space has none."""
        return None

    def findings(self, params: Params) -> dict[str, Any]:
        """Returns what the method reports about the training in addition, in JSON types."""
        return {}

    # --- what `train` asks for ---

    @property
    def rows(self) -> int:
        return self.training.present.shape[1]

    @property
    def modalities(self) -> list[str]:
        """The modalities, in ascending order."""
        return list(self.training.values)

    @property
    def dim(self) -> int:
        """The number of axes."""
        return next(iter(self.training.values.values()))[1].shape[1]

    def initial(self, rng: np.random.Generator) -> Params:
        out = siglip_start(min(self.batch, self.rows))
        for m in self.modalities:
            out |= self.modality_params(m, rng)
        out |= self.shared_params(rng)
        return {k: v.astype(np.float32) for k, v in out.items()}

    def bind(self, device: torch.device) -> None:
        import torch

        self._placed = {
            m: (torch.as_tensor(y).to(device), torch.as_tensor(g).to(device))
            for m, (y, g) in self.training.values.items()
        }

    def loss(self, params: Tensors, rows: np.ndarray, rng: np.random.Generator) -> torch.Tensor | None:
        import torch

        device = params["loss.scale"].device
        at = torch.as_tensor(rows, device=device)
        values, present = mix_items(
            {m: [y[at], g[at]] for m, (y, g) in self._placed.items()}, self.training.present[:, rows], rng
        )
        keep = present.sum(0) > 1
        if keep.sum() < 2:
            return None
        parts = torch.stack([self._head(torch, params, m, *values[m]) for m in self.modalities])
        goals = torch.stack([values[m][1] for m in self.modalities])
        views = split_views(present, rng)
        codes = [self.fuse(torch, params, parts, torch.as_tensor(v, device=device)) for v in views]
        some = torch.as_tensor(keep, device=device)
        agreement = siglip(codes[0][some], codes[1][some], params["loss.scale"], params["loss.bias"])
        return self.agreement_weight * agreement + self.further_loss(params, codes[0], parts, goals, present)

    def score(self, params: Params) -> float:
        """Returns the mean reciprocal rank of the validation rows over the pairs of modalities, without a mixer."""
        assert self.validation is not None
        parts = self.project(params, self.validation)
        return mean_reciprocal_rank(parts, dict(zip(parts, self.validation.present, strict=True)))

    def project(self, params: Params, rows: Rows) -> dict[str, np.ndarray]:
        """Applies the heads: for each modality float32 [n, dim], unit rows."""
        return {m: self._head(np, params, m, *rows.values[m]) for m in self.modalities}

    def _head(self, xp: Any, params: Mapping[str, Any], m: str, y: Any, g: Any) -> Any:
        linear = g + y @ params[f"{m}.w0"]
        return unit(xp, residual(xp, y, linear, params[f"{m}.w1"], params[f"{m}.w2"]))


def fit_heads(
    objective: Callable[[Rows, Rows | None, int], HeadsObjective],
    recipe: Recipe,
    moments: Moments,
    used: list[str],
    spec: SpaceSpec,
    sample: pa.Table,
) -> Space:
    """Trains one head for each modality.

    Training starts from regularised generalised CCA, the closed form. The result is the epoch that pairs the modalities
    of the validation items best. If no epoch is better than the closed form, the space is the closed form and the
    report's `epoch` is 0. With fewer than `_REFIT_ROWS` items the heads are trained twice: the second time on all
    items, with the learning rates of the epochs that led to the best one.

    Args:
        objective: makes the method's objective from training rows, validation rows and the batch size.
        recipe: how to train. If `spec` asks for a seed or a number of epochs, these are used instead of the recipe's.
        moments: the moments of the embeddings of all items.
        used: the modalities to align.
        spec: `seed`, `epochs` and what `solve_gcca` uses are used.
        sample: see `space.registry.AlignmentMethod`.

    Returns:
        A space of `TrainedHead`s, or of linear maps if nothing was trained. `info.findings["training"]` is the report.

    Guarantees: see `training.train`.

    Raises:
        JobError: torch is not installed, or training diverged.
    """
    recipe = recipe.asked(spec.seed, spec.epochs)
    embeddings = {m: pair for m, pair in embeddings_of(sample).items() if m in used}
    several = np.sum([p for _, p in embeddings.values()], axis=0) > 1
    start = Start(moments, used, spec)
    if several.sum() < LEAST_ROWS:
        return start.untrained(untrained(int(several.sum())))
    training, held = split_rows(sample["item_id"], several)
    # The validation items must not have been seen by the closed form either.
    first = Start(Moments.zero().add(_take(embeddings, training)), used, spec)
    trial = objective(first.rows(_take(embeddings, training)), first.rows(_take(embeddings, held)), recipe.batch)
    found = train(trial, recipe)
    report = _report(found, recipe, len(training), len(held)) | trial.findings(found.params)
    if found.epoch == 0:
        return start.untrained(report)
    if len(several) >= _REFIT_ROWS:
        return first.trained(report, found.params, trial.mixer(found.params))
    final = objective(start.rows(embeddings), None, recipe.batch)
    found = train(final, recipe, found.rates)
    return start.trained(report | {"refitted": True}, found.params, final.mixer(found.params))


def _report(found: Trained, recipe: Recipe, training: int, held: int) -> dict[str, Any]:
    return {
        "epoch": found.epoch,
        "rates": found.rates,
        "history": found.history,
        "score": "mean reciprocal rank of validation items over pairs of modalities",
        "rows": training,
        "validation_rows": held,
        "seed": recipe.seed,
        "refitted": False,
    }


def _take(embeddings: Batch, rows: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {m: (x[rows], present[rows]) for m, (x, present) in embeddings.items()}
