"""The method `attention`: its parameters before training, and the mixer of a trained space."""

import numpy as np
import pytest

from unisono.transforms.space.fit.trained.cross_attention import CrossAttentionObjective
from unisono.transforms.space.fit.trained.heads import HeadsObjective
from unisono.transforms.space.fit.trained.start import Rows


def example(dim):
    rng = np.random.default_rng(0)
    present = rng.random((3, 20)) < 0.7
    values = {m: (np.zeros((20, 5), np.float32), np.zeros((20, dim), np.float32)) for m in ("a", "b", "c")}
    parts = rng.standard_normal((3, 20, dim))
    parts /= np.linalg.norm(parts, axis=-1, keepdims=True)
    return Rows(values, present), parts, present


@pytest.mark.parametrize(("dim", "heads"), [(8, 4), (6, 2), (7, 1)])
def test_before_training_the_mixer_changes_nothing(dim, heads):
    rows, parts, present = example(dim)
    objective = CrossAttentionObjective(rows, None, batch=10)
    assert objective.heads == heads
    params = objective.initial(np.random.default_rng(1))
    plain = HeadsObjective(rows, None, batch=10).fuse(np, {}, parts, present)
    np.testing.assert_allclose(objective.fuse(np, params, parts, present), plain, atol=1e-12)
    mixer = objective.mixer(params)
    assert mixer.heads == heads
    np.testing.assert_allclose(mixer.mix(parts, present)[present], parts[present], atol=1e-12)


def test_a_trained_space_has_a_mixer_that_changes_items(spaces, circles):
    mixer = spaces["attention"].mixer
    assert mixer.kind == "cross_attention"
    assert np.abs(mixer.weights["out"]).max() > 0
    assert spaces["contrastive"].mixer is None
