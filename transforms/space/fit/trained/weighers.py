"""What the fusion methods with a trained weigher share: the objective, and its training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from unisono.transforms.base.columns import embeddings_of
from unisono.transforms.base.nearest import paired_ranks
from unisono.transforms.space.fit.fusion import FusionCase, FusionFit
from unisono.transforms.space.fit.trained.objectives import siglip, siglip_start, split_views
from unisono.transforms.space.fit.trained.training import (
    LEAST_ROWS,
    Params,
    Recipe,
    Tensors,
    split_rows,
    train,
    untrained,
)
from unisono.transforms.space.parts.trained import CrossAttention, TrainedWeigher, cross_attend, unit

if TYPE_CHECKING:
    import torch

HIDDEN = 64
RECIPE = Recipe(rate=1e-3, epochs=30, decay=0.01)


@dataclass
class WeigherObjective:
    """Trains a weigher: each random view of an item should agree with the other view and with the whole item.

    Agreement is SigLIP. The projections and the mixer of the space are not trained; the mixer is applied to the
    modalities of each view. A subclass sets `part` and draws its parameters in `weigher_params`.

    Attributes:
        parts: float32 [K, n, dim], unit rows before the mixer, zero where the modality is missing.
        present: bool [K, n].
        held: int64, the validation rows. The weigher is trained on the other rows with two modalities or more.
        mixer: the mixer of the space. None means that the space has none.
        batch: the number of rows in a batch. The start of SigLIP's bias depends on it.
        part: the class of the weigher.
    """

    parts: np.ndarray
    present: np.ndarray
    held: np.ndarray
    mixer: CrossAttention | None
    batch: int
    part: ClassVar[type[TrainedWeigher]]
    _device: Any = None
    _training: np.ndarray = field(init=False)
    _views: tuple[np.ndarray, np.ndarray] = field(init=False)

    def __post_init__(self) -> None:
        several = np.flatnonzero(self.present.sum(0) > 1)
        self._training = np.setdiff1d(several, self.held)
        self._views = split_views(self.present[:, self.held], np.random.default_rng(0))

    def weigher_params(self, rng: np.random.Generator) -> Params:
        """Draws the weigher's parameters. Before training, all weights of an item are equal."""
        raise NotImplementedError

    def weigher(self, params: Mapping[str, np.ndarray]) -> TrainedWeigher:
        """Makes the weigher from trained parameters."""
        return self.part(_without_loss(params))

    # --- what `train` asks for ---

    @property
    def rows(self) -> int:
        return len(self._training)

    def initial(self, rng: np.random.Generator) -> Params:
        out = siglip_start(min(self.batch, self.rows)) | self.weigher_params(rng)
        return {k: v.astype(np.float32) for k, v in out.items()}

    def bind(self, device: torch.device) -> None:
        self._device = device

    def loss(self, params: Tensors, rows: np.ndarray, rng: np.random.Generator) -> torch.Tensor | None:
        import torch

        at = self._training[rows]
        present = self.present[:, at]
        parts = torch.as_tensor(self.parts[:, at]).to(self._device)
        views = [*split_views(present, rng), present]
        mixer = self.mixer and {k: torch.as_tensor(v, device=self._device) for k, v in self.mixer.weights.items()}
        one, other, full = (
            self._fuse(torch, params, parts, torch.as_tensor(v, device=self._device), mixer) for v in views
        )
        scale, bias = params["loss.scale"], params["loss.bias"]
        return siglip(one, other, scale, bias) + 0.5 * siglip(one, full, scale, bias) + 0.5 * siglip(
            other, full, scale, bias
        )

    def score(self, params: Params) -> float:
        """Returns the mean reciprocal rank of an item's one view if the other is the query, over both directions."""
        parts = self.parts[:, self.held]
        mixer = self.mixer and self.mixer.weights
        one, other = (self._fuse(np, params, parts, v, mixer) for v in self._views)
        return float(np.mean([(1 / paired_ranks(a, b)).mean() for a, b in ((one, other), (other, one))]))

    def _fuse(self, xp: Any, params: Mapping[str, Any], parts: Any, present: Any, mixer: Any) -> Any:
        """Returns item vectors [n, dim].

        Args:
            xp: NumPy or torch.
            params: the parameters.
            parts: [K, n, dim], unit rows.
            present: bool [K, n].
            mixer: the weights of the mixer, arrays of `xp`. None means that there is no mixer.
        """
        if mixer is not None and self.mixer is not None:
            parts = unit(xp, cross_attend(xp, mixer, parts, present, self.mixer.heads))
        weights = self.part.formula(xp, _without_loss(params), parts, present)
        return unit(xp, (xp.where(present[:, :, None], parts, xp.zeros_like(parts)) * weights[:, :, None]).sum(axis=0))


def _without_loss(params: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves out the parameters that only the loss uses."""
    return {k: v for k, v in params.items() if not k.startswith("loss.")}


def fit_weigher(objective: type[WeigherObjective], case: FusionCase) -> FusionFit:
    """Trains a weigher. It starts from equal weights and keeps them if no epoch has a better validation score.

    Args:
        objective: the method's objective.
        case: what to fit on.

    Returns:
        The weigher. `findings["training"]` reports the training. `weights` are the balanced ones, for the report: the
        weights of a trained weigher differ from item to item.

    Guarantees: see `training.train`.

    Raises:
        JobError: torch is not installed, or training diverged.
    """
    space, sample = case.space, case.sample
    recipe = RECIPE.asked(case.spec.seed, case.spec.epochs)
    bare = replace(space, outputs={}, mixer=None, weigher=None, imputer=None).align(embeddings_of(sample))
    parts = np.stack([bare.vectors[m] for m in space.modalities])
    present = np.stack([bare.present[m] for m in space.modalities])
    several = present.sum(0) > 1
    mixer = space.mixer if isinstance(space.mixer, CrossAttention) else None
    enough = bool(several.sum() >= LEAST_ROWS)
    held = split_rows(sample["item_id"], several)[1] if enough else np.empty(0, int)
    aim = objective(parts, present, held, mixer, recipe.batch)
    if not enough:
        start = aim.weigher(aim.initial(np.random.default_rng(recipe.seed)))
        return FusionFit(case.balanced, start, findings={"training": untrained(int(several.sum()))})
    found = train(aim, recipe)
    report = {
        "epoch": found.epoch,
        "history": found.history,
        "score": "mean reciprocal rank of a validation item's one half by its other",
        "rows": aim.rows,
        "validation_rows": len(held),
        "seed": recipe.seed,
    }
    return FusionFit(case.balanced, aim.weigher(found.params), findings={"training": report})
