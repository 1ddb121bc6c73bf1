"""Noise: its size against numerical integrals, its law against SciPy, its guarantee against the best test."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from scipy import integrate, stats

from unisono.transforms.base.errors import JobError
from unisono.transforms.base.tables import from_vector_column, to_vector_column
from unisono.transforms.privacy.noise import (
    NoiseSpec,
    add_noise,
    epsilon_of_releases,
    gaussian_delta,
    gaussian_sigma,
    noised_profiles,
    secure_normal,
)
from unisono.transforms.read.interactions import TIME_TYPE
from unisono.transforms.users.profiles import profile_schema


def hockey_stick(sigma: float, epsilon: float, sensitivity: float) -> float:
    """∫ max(0, p − e^ε q) of p = N(Δ, σ²), q = N(0, σ²), by quadrature from where the two cross."""
    crossing = sensitivity / 2 + epsilon * sigma**2 / sensitivity

    def gap(x: float) -> float:
        return stats.norm.pdf(x, sensitivity, sigma) - np.exp(epsilon + stats.norm.logpdf(x, 0, sigma))

    return sum(
        integrate.quad(gap, crossing + a * sigma, crossing + b * sigma, epsabs=0, epsrel=1e-11)[0]
        for a, b in ((0, 0.1), (0.1, 1), (1, 4), (4, 20))
    )


@pytest.mark.parametrize("sensitivity", [0.2, 2.0])
@pytest.mark.parametrize("delta", [1e-12, 1e-6, 0.1])
@pytest.mark.parametrize("epsilon", [0.01, 0.5, 1.0, 8.0, 60.0])
def test_sigma_is_the_least_that_is_private(epsilon, delta, sensitivity):
    sigma = gaussian_sigma(epsilon, delta, sensitivity)
    assert hockey_stick(sigma, epsilon, sensitivity) == pytest.approx(delta, rel=1e-6)
    assert gaussian_delta(sigma, epsilon, sensitivity) <= delta
    assert hockey_stick(sigma * 0.999, epsilon, sensitivity) > delta
    if epsilon <= 1:  # the classic bound, which needs more
        assert sigma < sensitivity * np.sqrt(2 * np.log(1.25 / delta)) / epsilon


@pytest.mark.parametrize("releases", [1, 2, 30])
def test_releases_add_up_as_their_privacy_losses_do(releases):
    spec = NoiseSpec(0.7, 1e-6, 0.5)
    epsilon = epsilon_of_releases(spec, releases)
    # The privacy loss of a Gaussian release is N(η, 2η), η = Δ²/2σ²; losses of independent releases add.
    eta = releases * spec.sensitivity**2 / (2 * spec.sigma**2)
    loss = stats.norm(eta, np.sqrt(2 * eta))
    places = [epsilon + s * np.sqrt(2 * eta) for s in (0, 0.1, 1, 4, 20)]
    delta = sum(
        integrate.quad(lambda x: -np.expm1(epsilon - x) * loss.pdf(x), a, b, epsabs=0, epsrel=1e-10)[0]
        for a, b in pairwise(places)
    )
    assert delta == pytest.approx(1e-6, rel=1e-4)
    assert epsilon <= spec.epsilon * releases * (1 + 1e-6)


def test_the_default_noise_is_normal_and_never_the_same():
    a, b = secure_normal((1001, 101)), secure_normal((1001, 101))
    assert not np.any(a == b)
    for noise in (a, b):
        # One in a million good generators fails this.
        assert stats.kstest(noise.ravel(), "norm").pvalue > 1e-6
        assert abs(np.corrcoef(noise.ravel()[:-1], noise.ravel()[1:])[0, 1]) < 6 / np.sqrt(noise.size)
    assert secure_normal((0, 5)).shape == (0, 5)


@pytest.mark.parametrize("clip", [0.25, 1.0])
def test_vectors_are_clipped_and_noised(clip):
    rng, spec = np.random.default_rng(1), NoiseSpec(3.0, 1e-5, clip)
    vectors = rng.standard_normal((20_000, 6)).astype(np.float32) * rng.uniform(0, 0.5, (20_000, 1))
    vectors[7] = 0
    found = add_noise(vectors, spec, np.random.default_rng(2).standard_normal)
    draw = np.random.default_rng(2)  # drawn in blocks, which follow one another
    norm = np.linalg.norm(vectors.astype(float), axis=1, keepdims=True)
    clipped = vectors * np.minimum(1, clip / np.where(norm > 0, norm, 1))
    expected = clipped + spec.sigma * draw.standard_normal(vectors.shape)
    np.testing.assert_allclose(found, expected, atol=spec.sigma * 2**-16)
    # The published values lie on a grid: none tells its noise by its last bits.
    grid = 2.0 ** (np.floor(np.log2(spec.sigma)) - 16)
    np.testing.assert_array_equal(np.round(found / grid) * grid, found)


def test_two_histories_are_told_apart_no_better_than_promised():
    spec, n = NoiseSpec(1.0, 0.05, 1.0), 400_000
    one = add_noise(np.tile(np.array([1, 0], np.float32), (n, 1)), spec)[:, 0]
    other = add_noise(np.tile(np.array([-1, 0], np.float32), (n, 1)), spec)[:, 0]
    # The best test at ε: above the crossing of the two densities, Δ = 2 apart.
    threshold = spec.epsilon * spec.sigma**2 / 2
    told = np.mean(one > threshold) - np.exp(spec.epsilon) * np.mean(other > threshold)
    assert told == pytest.approx(spec.delta, abs=6 * np.exp(spec.epsilon) / np.sqrt(n))


def test_a_profile_shows_its_noised_vector_and_nothing_else():
    schema = profile_schema(pa.string(), 3, pa.string(), ("text",))
    users = pa.table(
        [
            ["b", "d"],
            to_vector_column(np.array([[1, 0, 0], [0, 1, 0]], np.float32)),
            [[{"vector": [1, 0, 0], "weight": 1.0, "item_id": "secret"}], []],
            pa.array([0.5, 0.6], pa.float32()),
            [3, 4],
            pa.array([1, 2], TIME_TYPE),
            [False, False],
        ],
        schema=schema,
    )
    spec = NoiseSpec(400.0, 0.5)  # next to no noise
    found = noised_profiles(users, pa.array(["a", "b", "c", "d"]), spec)
    assert found.schema == schema
    assert found["user_id"].to_pylist() == ["a", "b", "c", "d"]
    expected = [[0, 0, 0], [1, 0, 0], [0, 0, 0], [0, 1, 0]]
    np.testing.assert_allclose(from_vector_column(found["vector"])[0], expected, atol=10 * spec.sigma)
    assert spec.sigma < 0.1
    for name in set(schema.names) - {"user_id", "vector"}:
        assert found[name].null_count == 4


@pytest.mark.parametrize(
    ("settings", "says"),
    [((0, 1e-6, 1), "epsilon: 0"), ((1, 1, 1), "delta: 1"), ((1, 1e-6, 2), "clip: 2"), ((float("nan"), 0.1, 1), "eps")],
)
def test_what_promises_nothing_is_refused(settings, says):
    with pytest.raises(JobError, match=says):
        NoiseSpec(*settings)
