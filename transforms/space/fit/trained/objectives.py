"""What trained heads and fusions minimise: agreement of an item's views, reconstruction of its modalities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations, permutations
from typing import TYPE_CHECKING, Any

import numpy as np

from unisono.transforms.base.nearest import paired_ranks
from unisono.transforms.space.fit.trained.training import Params, Tensors
from unisono.transforms.space.parts.trained import cross_attend, residual, silu, unit

if TYPE_CHECKING:
    import torch

HIDDEN = 256
_SCALE = 1.4  # log of the scale of cosines at the start; SigLIP's log 10 overfits a few thousand items by far
_MIX = 1.0  # of Beta(α, α), the share of the first item in a mixture
_AGREEMENT = 0.3  # weight of the agreement of two codes beside the reconstruction


# --- pieces of a loss --------------------------------------------------------------------------------------


def siglip(a: torch.Tensor, b: torch.Tensor, log_scale: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """−1/n Σ_ij log σ(±(scale · a_i·b_j + bias)), + where i = j: each pair is a decision of its own.

    Source: Zhai et al., "Sigmoid loss for language image pre-training", ICCV 2023, eq. 1 and algorithm 1.
    """
    import torch

    logits = log_scale.exp() * (a @ b.T) + bias
    same = 2.0 * torch.eye(len(a), dtype=a.dtype, device=a.device) - 1.0
    return -torch.nn.functional.logsigmoid(same * logits).sum() / len(a)


def split_views(present: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Drops modalities at random: two views of each item that share none where it has two modalities or more.

    Args:
        present: bool [K, n].

    Returns:
        bool [K, n] twice, parts of `present`; of an item with one modality, both hold it.
    """
    coin = rng.random(present.shape) < 0.5
    chosen = np.argmax(np.where(present, rng.random(present.shape), -1.0), axis=0)
    single = present & (np.arange(len(present))[:, None] == chosen)  # where all coins fall alike, this one moves over
    one = present & coin
    one = np.where(one.any(0), one, single)
    one = np.where((one == present).all(0), present & ~single, one)
    other = present & ~one
    return np.where(one.any(0), one, present), other


def mix_items(
    values: dict[str, list[torch.Tensor]], present: np.ndarray, rng: np.random.Generator
) -> tuple[dict[str, list[torch.Tensor]], np.ndarray]:
    """Mixes each item with another, all its modalities by one share λ ≥ ½ ~ Beta: FuseMix.

    What is mixed are embeddings, or linear images of them. A modality is in a mixture that is in both items.

    Source: Vouitsis et al., "Data-efficient multimodal fusion on a single GPU", CVPR 2024 (2023), eq. 3–4.
    """
    import torch

    n = present.shape[1]
    other = rng.permutation(n)
    share = rng.beta(_MIX, _MIX, (n, 1))
    first = next(iter(values.values()))[0]
    lam = torch.as_tensor(np.maximum(share, 1 - share), dtype=first.dtype, device=first.device)
    at = torch.as_tensor(other, device=first.device)
    mixed = {m: [lam * v + (1 - lam) * v[at] for v in several] for m, several in values.items()}
    return mixed, present & present[:, other]


def mean_reciprocal_rank(vectors: Mapping[str, np.ndarray], present: Mapping[str, np.ndarray]) -> float:
    """Averages, over pairs and directions of modalities, the reciprocal rank of an item's own other modality."""
    found = []
    for a, b in permutations(vectors, 2):
        both = present[a] & present[b]
        if both.sum() > 1:
            found.append(float((1 / paired_ranks(vectors[a][both], vectors[b][both])).mean()))
    return float(np.mean(found)) if found else 0.0


# --- heads -------------------------------------------------------------------------------------------------


@dataclass
class Rows:
    """Items as heads see them.

    Attributes:
        values: for each modality y float32 [n, k] (whitened coordinates) and g float32 [n, dim] (closed-form
            projection, of root mean square length 1); zeros where missing.
        present: bool [K, n], modalities in ascending order.
    """

    values: dict[str, tuple[np.ndarray, np.ndarray]]
    present: np.ndarray


@dataclass
class HeadsObjective:
    """Trains a head for each modality, from the closed-form projection on.

    Attributes:
        method: `contrastive`: each pair of modalities of an item agrees (SigLIP), and so do the means of two
            views that share no modality. `attention`: the views go through cross-attention first.
            `autoencoder`: from the code of one view (the mean of its modalities) every present modality is
            reconstructed; codes of two views agree. What is reconstructed is a modality's closed-form projection
            at unit length: whole embeddings would spend the code on what is private to one modality.
        training, validation: rows.
        batch: of the recipe; the start of SigLIP's bias follows from it.
        heads: of cross-attention.
    """

    method: str
    training: Rows
    validation: Rows | None
    batch: int
    heads: int = 4
    _placed: dict[str, tuple[Any, Any]] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return self.training.present.shape[1]

    @property
    def modalities(self) -> list[str]:
        return list(self.training.values)

    def initial(self, rng: np.random.Generator) -> Params:
        out = {"loss.scale": np.array(_SCALE), "loss.bias": np.array(-np.log(max(min(self.batch, self.rows) - 1, 1)))}
        dim = next(iter(self.training.values.values()))[1].shape[1]
        for m, (y, _) in self.training.values.items():
            k = y.shape[1]
            out[f"{m}.w0"] = np.zeros((k, dim))
            out[f"{m}.w1"] = rng.standard_normal((k, HIDDEN)) / k**0.5
            out[f"{m}.w2"] = np.zeros((HIDDEN, dim))
            if self.method == "autoencoder":
                out[f"{m}.d0"] = np.eye(dim)
                out[f"{m}.d1"] = rng.standard_normal((dim, HIDDEN)) * 3 / dim**0.5
                out[f"{m}.d2"] = np.zeros((HIDDEN, dim))
        if self.method == "attention":
            for name in ("query", "key", "value"):
                out[name] = rng.standard_normal((dim, dim)) / dim**0.5
            out["out"] = np.zeros((dim, dim))
            out["kind"] = rng.standard_normal((len(self.modalities), dim)) * 0.1
        return {k: v.astype(np.float32) for k, v in out.items()}

    def bind(self, device: torch.device) -> None:
        import torch

        self._placed = {m: (torch.as_tensor(y).to(device), torch.as_tensor(g).to(device))
                        for m, (y, g) in self.training.values.items()}  # fmt: skip

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
        views = split_views(present, rng)
        codes = [self.fuse(torch, params, parts, torch.as_tensor(v, device=device)) for v in views]
        some = torch.as_tensor(keep, device=device)
        agreement = siglip(codes[0][some], codes[1][some], params["loss.scale"], params["loss.bias"])
        if self.method == "autoencoder":
            targets = torch.stack([unit(torch, values[m][1]) for m in self.modalities])
            return self._error(params, codes[0], targets, present) + _AGREEMENT * agreement
        return agreement + self._pairs(params, parts, present)

    def _pairs(self, params: Tensors, parts: torch.Tensor, present: np.ndarray) -> torch.Tensor:
        """Mean of SigLIP over the pairs of modalities that meet in the batch."""
        import torch

        losses = []
        for a, b in combinations(range(len(parts)), 2):
            both = torch.as_tensor(present[a] & present[b], device=parts.device)
            if int(both.sum()) > 1:
                losses.append(siglip(parts[a][both], parts[b][both], params["loss.scale"], params["loss.bias"]))
        return torch.stack(losses).mean()

    def _error(
        self, params: Tensors, code: torch.Tensor, targets: torch.Tensor, present: np.ndarray
    ) -> torch.Tensor:
        """Σ_m mean over the items that have m of |decoded_m − target_m|²."""
        import torch

        there = torch.as_tensor(present, device=code.device)
        out = torch.zeros((), device=code.device)
        for i, m in enumerate(self.modalities):
            error = (decode(torch, params, m, code) - targets[i]).square().sum(1)
            out = out + (error * there[i]).sum() / max(int(present[i].sum()), 1)
        return out

    def _head(self, xp: Any, params: Mapping[str, Any], m: str, y: Any, g: Any) -> Any:
        linear = g + y @ params[f"{m}.w0"]
        return unit(xp, residual(xp, y, linear, params[f"{m}.w1"], params[f"{m}.w2"]))

    def fuse(self, xp: Any, params: Mapping[str, Any], parts: Any, present: Any) -> Any:
        """The unit mean of the present parts [K, n, dim], after cross-attention if the method has it: [n, dim]."""
        if self.method == "attention":
            parts = unit(xp, cross_attend(xp, params, parts, present, self.heads))
        return unit(xp, xp.where(present[:, :, None], parts, xp.zeros_like(parts)).sum(axis=0))

    def score(self, params: Params) -> float:
        """Mean reciprocal rank over the pairs of modalities, each projected by itself."""
        assert self.validation is not None
        parts = self.project(params, self.validation)
        return mean_reciprocal_rank(parts, dict(zip(parts, self.validation.present, strict=True)))

    def project(self, params: Params, rows: Rows) -> dict[str, np.ndarray]:
        """Applies the heads: for each modality float32 [n, dim], unit rows."""
        return {m: self._head(np, params, m, *rows.values[m]) for m in self.modalities}

    def explained(self, params: Params) -> dict[str, float]:
        """How much of each modality of the validation items the code of their other ones gives back: 1 − error / 1."""
        assert self.validation is not None
        parts = np.stack(list(self.project(params, self.validation).values()))
        present = self.validation.present
        out = {}
        for i, m in enumerate(self.modalities):
            others = present & (np.arange(len(present)) != i)[:, None]
            rows = present[i] & others.any(0)
            if rows.any():
                code = self.fuse(np, params, parts[:, rows], others[:, rows])
                target = unit(np, self.validation.values[m][1][rows])
                error = np.sum((decode(np, params, m, code) - target) ** 2, 1).mean()
                out[m] = round(1.0 - float(error / np.sum((target - target.mean(0)) ** 2, 1).mean()), 4)
        return out


def decode(xp: Any, params: Mapping[str, Any], m: str, code: Any) -> Any:
    """Reconstructs a modality from the joint code."""
    return code @ params[f"{m}.d0"] + silu(xp, code @ params[f"{m}.d1"]) @ params[f"{m}.d2"]
