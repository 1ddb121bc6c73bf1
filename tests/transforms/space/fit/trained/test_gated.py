"""The fusion method `gated` before training."""

import numpy as np

from unisono.transforms.space.fit.trained.gated import GatedObjective
from unisono.transforms.space.parts.trained import GatedWeights


def test_before_training_every_gate_is_half_open():
    rng = np.random.default_rng(0)
    parts, present = rng.standard_normal((3, 50, 8)).astype(np.float32), rng.random((3, 50)) < 0.7
    objective = GatedObjective(parts, present, np.arange(5), None, batch=16)
    weigher = objective.weigher(objective.initial(rng))
    assert isinstance(weigher, GatedWeights)
    assert set(weigher.weights) == {"inner", "outer", "bias"}  # the loss's own parameters are left out
    np.testing.assert_allclose(weigher.weigh(parts, present), 0.5 * present)
    several = np.flatnonzero(present.sum(0) > 1)
    assert objective.rows == len(np.setdiff1d(several, np.arange(5)))
