"""Concatenation against scikit-learn's principal components."""

import numpy as np
from sklearn.decomposition import PCA

from tests.transforms.space.sample import NAMES, aligned_rows, draw, moments_of, report_of, table_of
from unisono.transforms.space.fit.fusion import fit_fusion
from unisono.transforms.space.fit.methods import fit_space
from unisono.transforms.space.fit.spec import FusionSpec, SpaceSpec
from unisono.transforms.space.fuse import item_vectors


def test_concat_is_pca_of_the_modalities_side_by_side():
    batch = draw(missing=0.0)
    space, table = fit_space(moments_of(batch), SpaceSpec("gcca", 6, 0.1)), table_of(batch)
    out = fit_fusion(space, table, FusionSpec("concat"))
    weights = {m: report_of(out).modalities[m].weight for m in NAMES}
    z = aligned_rows(space, table)
    side_by_side = np.concatenate([weights[m] * z[m] for m in NAMES], axis=1)
    want = PCA(space.dim, svd_solver="full").fit_transform(side_by_side)
    want /= np.linalg.norm(want, axis=1, keepdims=True)
    got = item_vectors(out, table)[0].vectors
    np.testing.assert_allclose(got * np.sign((got * want).sum(0)), want, atol=2e-6)
