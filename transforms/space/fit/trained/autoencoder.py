"""The alignment method `autoencoder`: the code of some modalities of an item is trained to reconstruct all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from unisono.transforms.space.fit.moments import Moments
from unisono.transforms.space.fit.spec import SpaceSpec
from unisono.transforms.space.fit.trained.heads import HIDDEN, HeadsObjective, fit_heads
from unisono.transforms.space.fit.trained.training import Params, Recipe, Tensors
from unisono.transforms.space.parts.trained import silu, unit
from unisono.transforms.space.space import Space

if TYPE_CHECKING:
    import torch

RECIPE = Recipe(rate=3e-4)


@dataclass
class AutoencoderObjective(HeadsObjective):
    """Trains heads and decoders.

    Every present modality is reconstructed from the code of one view. The goal is the modality's closed-form projection
    at unit length, and not its embedding: for that, the code would have to hold what only one modality knows.
    """

    agreement_weight: ClassVar[float] = 0.3

    def modality_params(self, m: str, rng: np.random.Generator) -> Params:
        """Draws the parameters of one modality's head and decoder. Before training, the decoder returns the code."""
        return super().modality_params(m, rng) | {
            f"{m}.d0": np.eye(self.dim),
            f"{m}.d1": rng.standard_normal((self.dim, HIDDEN)) * 3 / self.dim**0.5,
            f"{m}.d2": np.zeros((HIDDEN, self.dim)),
        }

    def further_loss(
        self, params: Tensors, code: torch.Tensor, parts: torch.Tensor, goals: torch.Tensor, present: np.ndarray
    ) -> torch.Tensor:
        """Computes Σ_m |decoded_m − goal_m|², averaged over the items that have m."""
        import torch

        goals = unit(torch, goals)
        there = torch.as_tensor(present, device=code.device)
        out = torch.zeros((), device=code.device)
        for i, m in enumerate(self.modalities):
            error = (decode(torch, params, m, code) - goals[i]).square().sum(1)
            out = out + (error * there[i]).sum() / max(int(present[i].sum()), 1)
        return out

    def findings(self, params: Params) -> dict[str, Any]:
        """Returns `explained`: for each modality, 1 − the mean squared error over the variance, on validation items.

        Each modality is reconstructed from the code of the item's other modalities.
        """
        assert self.validation is not None
        parts = np.stack(list(self.project(params, self.validation).values()))
        present = self.validation.present
        out = {}
        for i, m in enumerate(self.modalities):
            others = present & (np.arange(len(present)) != i)[:, None]
            rows = present[i] & others.any(0)
            if rows.any():
                code = self.fuse(np, params, parts[:, rows], others[:, rows])
                goal = unit(np, self.validation.values[m][1][rows])
                error = np.sum((decode(np, params, m, code) - goal) ** 2, 1).mean()
                out[m] = round(1.0 - float(error / np.sum((goal - goal.mean(0)) ** 2, 1).mean()), 4)
        return {"explained": out}


def decode(xp: Any, params: Mapping[str, Any], m: str, code: Any) -> Any:
    """Reconstructs one modality from the joint code.

    Args:
        xp: NumPy or torch.
        params: as `AutoencoderObjective.modality_params` names them.
        m: the modality.
        code: [n, dim].
    """
    return code @ params[f"{m}.d0"] + silu(xp, code @ params[f"{m}.d1"]) @ params[f"{m}.d2"]


def fit_autoencoder(moments: Moments, used: list[str], spec: SpaceSpec, sample: pa.Table) -> Space:
    """Trains heads by reconstruction, see `fit_heads`. The decoders are not part of the space."""
    return fit_heads(AutoencoderObjective, RECIPE, moments, used, spec, sample)
