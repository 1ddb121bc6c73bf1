"""The fusion method `attention` before training."""

import numpy as np

from unisono.transforms.space.fit.trained.attention_pooling import AttentionPoolingObjective
from unisono.transforms.space.parts.trained import AttentionWeights


def test_before_training_all_weights_are_one():
    rng = np.random.default_rng(0)
    parts, present = rng.standard_normal((3, 50, 8)).astype(np.float32), rng.random((3, 50)) < 0.7
    objective = AttentionPoolingObjective(parts, present, np.arange(5), None, batch=16)
    weigher = objective.weigher(objective.initial(rng))
    assert isinstance(weigher, AttentionWeights)
    assert set(weigher.weights) == {"query", "start", "key", "kind"}
    np.testing.assert_allclose(weigher.weigh(parts, present), present.astype(float))
