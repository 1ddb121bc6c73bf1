"""The settings of the alignment methods."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SpaceSpec:
    """How a joint space is fitted.

    Attributes:
        method: one of `METHODS`; `auto`: `cca` or `gcca`, by the number of modalities.
        dim: how many axes; fewer where the data has fewer.
        regularization: r in λ_m = r · trace(C_mm) / d_m. None: by `whitening.default_regularization`.
        weighting: `cca`, `gcca`: axes are scaled by their correlation to this power. 0: all alike.
        hub: `procrustes`, `ridge`: the modality that the others are mapped to. None: the one with most pairs.
        remove_top: `whiten`: how many of the strongest axes of each modality are taken out.
        anchors: `anchors`: how many, drawn by hash of the item id, or which items.
        seed: trained methods draw from it.
        epochs: trained methods: at most so many passes over the sample. None: the method's own.
    """

    method: str = "auto"
    dim: int = 128
    regularization: float | None = None
    weighting: float = 1.0
    hub: str | None = None
    remove_top: int = 0
    anchors: int | tuple[str, ...] | None = None
    seed: int = 0
    epochs: int | None = None
