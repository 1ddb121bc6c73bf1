"""The fusion method `concat`: the modalities of an item side by side, reduced to their principal axes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import scipy.linalg

from unisono.transforms.space.fit.fusion import FusionCase, FusionFit
from unisono.transforms.space.fit.impute import joint_covariance
from unisono.transforms.space.fit.moments import Moments
from unisono.transforms.space.fit.whitening import signs
from unisono.transforms.space.parts.linear import Output


def fit_concat(case: FusionCase) -> FusionFit:
    """Balances the modalities, see `balanced_weights`, and fits the outputs of `concat_outputs` to them."""
    weights, space = case.balanced, case.space
    return FusionFit(weights, outputs=concat_outputs(case.moments, space.modalities, weights, space.inner_dim))


def concat_outputs(
    moments: Moments, modalities: tuple[str, ...], weights: Mapping[str, float], dim: int
) -> dict[str, Output]:
    """Returns the principal components of the weighted modalities side by side, as one output for each modality.

    An item's vector has the direction of Σ_m w_m (z_m − μ_m) P_m over the modalities it has. P are the leading
    eigenvectors of the joint covariance of the w_m z_m. Covariances are computed from the available cases, so
    a rare modality does not lose influence. `<m>_vector` is then (z_m − μ_m) P_m at unit length. The sum of
    `<m>_weight` · `<m>_vector` is exactly the item's vector. A query by one modality can be compared with both.

    Source: Hotelling 1933 (PCA); Kiela, Bottou, "Learning image embeddings using convolutional neural networks for
    improved multi-modal semantics", EMNLP 2014, §3.3 (normalised, weighted concatenation).

    Args:
        moments: the moments of the unit vectors of each modality.
        modalities: the modalities of the space.
        weights: the weight of each modality. A modality that is not named has weight 1.
        dim: the number of axes to keep.
    """
    dims = moments.dims
    scale = np.concatenate([np.full(dims[m], weights.get(m, 1.0)) for m in dims])
    joint = joint_covariance(moments) * np.outer(scale, scale)
    dim = min(dim, len(joint))
    axes = scipy.linalg.eigh(joint, subset_by_index=[len(joint) - dim, len(joint) - 1])[1][:, ::-1]
    axes = axes * signs(axes) * scale[:, None]
    ends = np.cumsum(list(dims.values()))
    spans = {m: slice(end - d, end) for (m, d), end in zip(dims.items(), ends, strict=True)}
    return {m: Output(moments.mean(m), np.ascontiguousarray(axes[spans[m]])) for m in modalities}
