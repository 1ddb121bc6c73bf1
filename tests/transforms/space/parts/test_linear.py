"""The linear parts: maps, fixed weights, and the length that counts as a rounding error."""

import numpy as np

from unisono.transforms.space.parts.linear import FixedWeights, LinearMap


def test_a_map_is_centred_and_linear():
    rng = np.random.default_rng(0)
    mean, matrix, x = rng.standard_normal(5), rng.standard_normal((5, 3)), rng.standard_normal((7, 5))
    part = LinearMap(mean, matrix)
    assert (part.dim_in, part.dim) == (5, 3)
    want = [[sum((x[i, j] - mean[j]) * matrix[j, k] for j in range(5)) for k in range(3)] for i in range(7)]
    np.testing.assert_allclose(part.apply(x), want, rtol=1e-12)
    again = LinearMap.from_tensors(part.tensors())
    np.testing.assert_array_equal(again.apply(x), part.apply(x))


def test_rounding_errors_stay_below_the_floor():
    rng = np.random.default_rng(1)
    mean = 1000 * rng.standard_normal(400)
    part = LinearMap(mean, rng.standard_normal((400, 8)))
    noise = np.finfo(np.float64).eps * np.abs(mean)
    nearly = mean + noise * rng.choice([-1, 1], (50, 400))
    assert np.linalg.norm(part.apply(nearly), axis=1).max() < part.floor
    assert np.linalg.norm(part.apply(mean[None] + 1e-3)) > part.floor


def test_fixed_weights_are_zero_where_not_present():
    present = np.array([[True, False], [True, True]])
    part = FixedWeights.from_tensors(FixedWeights(np.array([2.0, 0.5])).tensors())
    np.testing.assert_array_equal(part.weigh(np.zeros((2, 2, 3)), present), [[2.0, 0.0], [0.5, 0.5]])
