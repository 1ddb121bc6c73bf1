"""The settings of a joint space and of its fusion."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import Field

from unisono.transforms.base.modalities import ALL
from unisono.transforms.base.settings import NonNegative, Positive, one_of, settings
from unisono.transforms.space.registry import FUSIONS, METHODS

DEFAULT_DIM = 128


@settings("space")
class SpaceSpec:
    """How the joint space is fitted."""

    method: Annotated[str, one_of(METHODS)] = "auto"
    """The alignment method. `auto` means `cca` for two modalities and `gcca` for three or more."""
    dim: Positive | None = None
    """The number of axes. By default 128, or as many as the embeddings allow."""
    regularization: NonNegative | None = None
    """r in λ_m = r · trace(C_mm) / d_m. By default it is estimated from the data."""
    weighting: NonNegative = 1.0
    """For `cca` and `gcca`: each axis is scaled by its correlation to this power. 0 means that all axes count alike."""
    hub: Annotated[str, one_of(ALL)] | None = None
    """For `procrustes` and `ridge`: the modality that the others are mapped to. By default the one with most pairs."""
    remove_top: Annotated[int, Field(ge=0)] = 0
    """For `whiten`: how many of the strongest axes of each modality are removed."""
    anchors: Positive | Annotated[tuple[str, ...], Field(min_length=2)] | None = None
    """For `anchors`: how many items are drawn, by hash of their ids, or the ids of the items. By default 512."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the trained methods."""
    epochs: Positive | None = None
    """For trained methods: the most passes over the sample. By default the method's own number."""
    sample: Annotated[float, Field(gt=0, le=1)] = 1.0
    """The share of the items whose embeddings are summed for fitting, drawn by hash of their ids."""
    refit: Literal["never", "always", "on_drift"] = "always"
    """`always`: every run fits a new space. `never`: the published space is kept. `on_drift`: a new space is published
    if it would move the published vectors by more than `drift_threshold`."""
    drift_threshold: Annotated[float, Field(ge=0, le=2)] = 0.02
    """A limit on 1 − the mean cosine between an item's new vector and its published vector, over the common items."""
    inertia: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """How much of the published space a refit keeps, if that space could be kept whole."""

    @property
    def axes(self) -> int:
        """The number of axes that is asked for."""
        return DEFAULT_DIM if self.dim is None else self.dim

    def key(self) -> dict[str, Any]:
        """Returns the settings that a fitted space depends on, in JSON types."""
        own = asdict(self)
        return {name: own[name] for name in _FITTED_WITH}


_FITTED_WITH = (
    "method", "dim", "regularization", "weighting", "hub", "remove_top", "anchors", "seed", "epochs"
)  # fmt: skip


@settings("fusion")
class FusionSpec:
    """How the aligned modalities of an item become one vector."""

    method: Annotated[str, one_of(FUSIONS)] = "mean"
    """The fusion method."""
    weights: Literal["learned"] | dict[Annotated[str, one_of(ALL)], Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict
    )
    """For `weighted`: the weight of each modality, 1 where it is not named, or `learned`."""
    impute: bool = False
    """Missing modalities are predicted from those that the item has; the column `imputed` names them."""
    seed: Annotated[int, Field(ge=0)] | None = None
    """Seed of the trained methods. By default `space.seed`."""
    epochs: Positive | None = None
    """For trained methods: the most passes over the sample. By default `space.epochs`."""

    def __post_init__(self) -> None:
        if self.weights and self.method != "weighted":
            raise ValueError(f"`weights` are used by method weighted, not by {self.method}; take one of them out")
