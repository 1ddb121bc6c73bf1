"""Trains how modalities are weighed in an item: `gated`, `attention`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from unisono.transforms.base.columns import embeddings_of
from unisono.transforms.base.nearest import paired_ranks
from unisono.transforms.space.fit.trained.objectives import siglip, split_views
from unisono.transforms.space.fit.trained.training import LEAST_ROWS, Params, Recipe, Tensors, split_rows, train
from unisono.transforms.space.parts.trained import (
    AttentionWeights,
    CrossAttention,
    GatedWeights,
    cross_attend,
    gate,
    pool,
    unit,
)
from unisono.transforms.space.space import Space

if TYPE_CHECKING:
    import torch

    from unisono.transforms.space.fit.spec import FusionSpec

_HIDDEN = 64
_SCALE = 1.4
_RECIPE = Recipe(rate=1e-3, epochs=30, decay=0.01)
_FORMULAS: dict[str, Callable[..., Any]] = {"gated": gate, "attention": pool}
_WEIGHERS: dict[str, type[GatedWeights]] = {"gated": GatedWeights, "attention": AttentionWeights}


@dataclass
class FusionObjective:
    """An item of which modalities were dropped at random agrees with the rest of it, and with its full self.

    Both by SigLIP. The projections and the mixer stay as they are: a mixer is applied to what a view holds.

    Attributes:
        method: `gated` or `attention`.
        parts: float32 [K, n, dim], unit rows before the mixer; zeros where missing.
        present: bool [K, n].
        held: validation rows; the others train.
        mixer: of the space.
    """

    method: str
    parts: np.ndarray
    present: np.ndarray
    held: np.ndarray
    mixer: CrossAttention | None
    batch: int
    _device: Any = None
    _training: np.ndarray = field(init=False)
    _views: tuple[np.ndarray, np.ndarray] = field(init=False)

    def __post_init__(self) -> None:
        several = np.flatnonzero(self.present.sum(0) > 1)
        self._training = np.setdiff1d(several, self.held)
        self._views = split_views(self.present[:, self.held], np.random.default_rng(0))

    @property
    def rows(self) -> int:
        return len(self._training)

    def initial(self, rng: np.random.Generator) -> Params:
        k, _, dim = self.parts.shape
        out = {"loss.scale": np.array(_SCALE), "loss.bias": np.array(-np.log(max(min(self.batch, self.rows) - 1, 1)))}
        if self.method == "gated":
            out["inner"] = rng.standard_normal((k * (dim + 1), _HIDDEN)) / k**0.5
            out |= {"outer": np.zeros((_HIDDEN, k)), "bias": np.zeros(k)}
        else:
            out["key"] = rng.standard_normal((dim, _HIDDEN))
            out["kind"] = rng.standard_normal((k, _HIDDEN)) * 0.1
            out |= {"query": np.zeros((dim, _HIDDEN)), "start": np.zeros(_HIDDEN)}
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
            self.fuse(torch, params, parts, torch.as_tensor(v, device=self._device), mixer) for v in views
        )
        scale, bias = params["loss.scale"], params["loss.bias"]
        return siglip(one, other, scale, bias) + 0.5 * siglip(one, full, scale, bias) + 0.5 * siglip(
            other, full, scale, bias
        )

    def fuse(self, xp: Any, params: Mapping[str, Any], parts: Any, present: Any, mixer: Any) -> Any:
        """Item vectors [n, dim] of parts [K, n, dim]."""
        if mixer is not None and self.mixer is not None:
            parts = unit(xp, cross_attend(xp, mixer, parts, present, self.mixer.heads))
        weights = _FORMULAS[self.method](xp, weigher_params(params), parts, present)
        return unit(xp, (xp.where(present[:, :, None], parts, xp.zeros_like(parts)) * weights[:, :, None]).sum(axis=0))

    def score(self, params: Params) -> float:
        """Mean reciprocal rank of an item's one view by its other, both directions."""
        parts = self.parts[:, self.held]
        mixer = self.mixer and self.mixer.weights
        one, other = (self.fuse(np, params, parts, v, mixer) for v in self._views)
        return float(np.mean([(1 / paired_ranks(a, b)).mean() for a, b in ((one, other), (other, one))]))


def weigher_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves out what only the loss uses."""
    return {k: v for k, v in params.items() if not k.startswith("loss.")}


def fit_weigher(space: Space, sample: pa.Table, spec: FusionSpec) -> tuple[GatedWeights, dict[str, Any]]:
    """Trains a weigher; it starts from equal weights, and stays there if nothing validates better.

    Args:
        space: fitted, without outputs.
        sample: `item_id` and `<m>_embedding` columns (null: missing).
        spec: `method` is `gated` or `attention`; `seed` and `epochs` are used.

    Returns:
        The weigher, and how the training went.

    Guarantees: see `training.train`.

    Raises:
        JobError: torch is not installed, or training diverged.
    """
    recipe = replace(_RECIPE, seed=spec.seed or 0)
    recipe = replace(recipe, epochs=spec.epochs) if spec.epochs is not None else recipe
    bare = replace(space, outputs={}, mixer=None, weigher=None, imputer=None).align(embeddings_of(sample))
    parts = np.stack([bare.vectors[m] for m in space.modalities])
    present = np.stack([bare.present[m] for m in space.modalities])
    several = present.sum(0) > 1
    mixer = space.mixer if isinstance(space.mixer, CrossAttention) else None
    enough = bool(several.sum() >= LEAST_ROWS)
    held = split_rows(sample["item_id"], several)[1] if enough else np.empty(0, int)
    objective = FusionObjective(spec.method, parts, present, held, mixer, recipe.batch)
    if not enough:
        params = objective.initial(np.random.default_rng(recipe.seed))
        why = f"{several.sum()} of at least {LEAST_ROWS} items have two modalities"
        return _WEIGHERS[spec.method](weigher_params(params)), {"epoch": 0, "why": why}
    found = train(objective, recipe)
    told = {
        "epoch": found.epoch,
        "history": found.history,
        "score": "mean reciprocal rank of a validation item's one half by its other",
        "rows": objective.rows,
        "validation_rows": len(held),
        "seed": recipe.seed,
    }
    return _WEIGHERS[spec.method](weigher_params(found.params)), told
