"""What trained heads and weighers share: the loss, random views and mixtures of items, and the score."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import permutations
from typing import TYPE_CHECKING

import numpy as np

from unisono.transforms.base.nearest import paired_ranks

if TYPE_CHECKING:
    import torch

_SCALE = 1.4  # log of the scale of cosines before training; SigLIP's log 10 overfits a few thousand items strongly
_MIX = 1.0  # α of the distribution Beta(α, α) of the shares in a mixture


def siglip(a: torch.Tensor, b: torch.Tensor, log_scale: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Computes −1/n Σ_ij log σ(±(scale · a_i·b_j + bias)), with + where i = j: each pair is classified on its own.

    Source: Zhai et al., "Sigmoid loss for language image pre-training", ICCV 2023, eq. 1 and algorithm 1.

    Args:
        a: unit rows [n, dim].
        b: unit rows [n, dim] of the same items.
        log_scale: the logarithm of the scale.
        bias: added to every scaled cosine.
    """
    import torch

    logits = log_scale.exp() * (a @ b.T) + bias
    same = 2.0 * torch.eye(len(a), dtype=a.dtype, device=a.device) - 1.0
    return -torch.nn.functional.logsigmoid(same * logits).sum() / len(a)


def siglip_start(batch: int) -> dict[str, np.ndarray]:
    """Returns the scale and bias of `siglip` before training. The bias matches the share of right pairs in a batch."""
    return {"loss.scale": np.array(_SCALE), "loss.bias": np.array(-np.log(max(batch - 1, 1)))}


def split_views(present: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Splits the modalities of each item at random into two views.

    Args:
        present: bool [K, n].
        rng: the source of randomness.

    Returns:
        Two views, bool [K, n] each. The views of an item with two modalities or more have no modality in common, and
        each has at least one. Both views of an item with one modality have that modality.
    """
    coin = rng.random(present.shape) < 0.5
    chosen = np.argmax(np.where(present, rng.random(present.shape), -1.0), axis=0)
    # If all modalities of an item fall on one side, this modality moves to the other.
    single = present & (np.arange(len(present))[:, None] == chosen)
    one = present & coin
    one = np.where(one.any(0), one, single)
    one = np.where((one == present).all(0), present & ~single, one)
    other = present & ~one
    return np.where(one.any(0), one, present), other


def mix_items(
    values: dict[str, list[torch.Tensor]], present: np.ndarray, rng: np.random.Generator
) -> tuple[dict[str, list[torch.Tensor]], np.ndarray]:
    """Mixes each item with another one: λ · its own values + (1 − λ) · the other's, λ ≥ ½ drawn from Beta.

    All modalities of an item are mixed with the same partner and the same λ. A mixture has the modalities that both
    items have.

    Source: Vouitsis et al., "Data-efficient multimodal fusion on a single GPU", CVPR 2024 (2023), eq. 3–4 (FuseMix).

    Args:
        values: for each modality embeddings or linear images of them, [n, k] each.
        present: bool [K, n].
        rng: the source of randomness.

    Returns:
        The mixed values, in the form of `values`; present, bool [K, n].
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
    """Averages the reciprocal rank of an item, queried by one modality and ranked by another, over all such pairs.

    Args:
        vectors: for each modality unit rows [n, dim] of the same items.
        present: for each modality bool [n].
    """
    found = []
    for a, b in permutations(vectors, 2):
        both = present[a] & present[b]
        if both.sum() > 1:
            found.append(float((1 / paired_ranks(vectors[a][both], vectors[b][both])).mean()))
    return float(np.mean(found)) if found else 0.0
