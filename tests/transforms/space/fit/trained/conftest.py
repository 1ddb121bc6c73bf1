"""Planted data on circles, and spaces that are trained on them once for all tests of this folder."""

import numpy as np
import pyarrow as pa
import pytest

from unisono.transforms.base.columns import embeddings_of
from unisono.transforms.base.tables import to_vector_column
from unisono.transforms.space.fit.methods import fit_space
from unisono.transforms.space.fit.moments import Moments
from unisono.transforms.space.fit.spec import SpaceSpec
from unisono.transforms.space.fit.trained import autoencoder, contrastive, cross_attention, heads
from unisono.transforms.space.fit.trained.training import Recipe

TRAINED = ["contrastive", "attention", "autoencoder"]


def make_table(vectors, present):
    n = len(next(iter(vectors.values())))
    columns = {f"{m}_embedding": to_vector_column(x.astype(np.float32), present[m]) for m, x in vectors.items()}
    return pa.table({"item_id": [f"item-{i:05d}" for i in range(n)], **columns})


def draw_circles(n, seed=0, missing=0.2):
    """Draws modalities that share angles. One sees them doubled, so its linear correlation with the others is zero."""
    rng = np.random.default_rng(seed)
    angles = rng.uniform(0, 2 * np.pi, (n, 2))
    vectors = {}
    for m, turns, length in (("audio", 1, 12), ("image", 2, 16), ("text", 1, 10)):
        basis = np.random.default_rng(len(m)).standard_normal((4, length))
        points = np.concatenate([np.cos(turns * angles), np.sin(turns * angles)], axis=1)
        vectors[m] = points @ basis + 0.1 * rng.standard_normal((n, length)) + 3.0
    present = {m: rng.random(n) >= missing for m in vectors}
    return make_table(vectors, present)


def fit(table, method, **more):
    return fit_space(Moments.zero().add(embeddings_of(table)), SpaceSpec(method, dim=8, **more), table)


@pytest.fixture(scope="session")
def circles():
    """900 items to train on, and 300 whole items that training does not see."""
    return draw_circles(900, missing=0.2), draw_circles(300, seed=1, missing=0.0)


@pytest.fixture(scope="session")
def spaces(circles):
    """One space for each trained method, trained on the circles with larger steps than on real data."""
    recipe = Recipe(rate=3e-3, epochs=40, patience=20, batch=128, decay=0.01)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heads, "HIDDEN", 128)
        patch.setattr(autoencoder, "HIDDEN", 128)
        patch.setattr(heads, "_REFIT_ROWS", 0)
        for module in (contrastive, cross_attention, autoencoder):
            patch.setattr(module, "RECIPE", recipe)
        return {m: fit(circles[0], m) for m in [*TRAINED, "gcca"]}
