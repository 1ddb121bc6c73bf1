"""Noise, compared with numerical integrals (its size), SciPy (its distribution) and the best test (its promise)."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from scipy import integrate, stats

from unisono.transforms.base.errors import JobError, Reason
from unisono.transforms.base.tables import from_vector_column, to_vector_column
from unisono.transforms.privacy.noise import (
    NoiseSpec,
    add_noise,
    epsilon_of_releases,
    gaussian_delta,
    gaussian_sigma,
    noised_profiles,
    secure_normal,
    withhold,
)
from unisono.transforms.read.interactions import TIME_TYPE
from unisono.transforms.store.dead_letters import SCHEMA, DeadLetter, dead_letter_table
from unisono.transforms.users.profiles import profile_schema


def hockey_stick(sigma: float, epsilon: float, sensitivity: float) -> float:
    """The integral of max(0, p − e^ε q) for p = N(Δ, σ²) and q = N(0, σ²), by quadrature from where the two cross."""
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
def test_sigma_is_the_least_that_is_private(epsilon: float, delta: float, sensitivity: float) -> None:
    sigma = gaussian_sigma(epsilon, delta, sensitivity)
    assert hockey_stick(sigma, epsilon, sensitivity) == pytest.approx(delta, rel=1e-6)
    assert gaussian_delta(sigma, epsilon, sensitivity) <= delta
    assert hockey_stick(sigma * 0.999, epsilon, sensitivity) > delta
    if epsilon <= 1:  # the classic bound needs more noise
        assert sigma < sensitivity * np.sqrt(2 * np.log(1.25 / delta)) / epsilon


@pytest.mark.parametrize("releases", [1, 2, 30])
def test_several_releases_have_the_sum_of_their_privacy_losses(releases: int) -> None:
    spec = NoiseSpec(0.7, 1e-6, 0.5)
    epsilon = epsilon_of_releases(spec, releases)
    # The privacy loss of a Gaussian release is N(η, 2η) with η = Δ²/2σ². The losses of independent releases add up.
    eta = releases * spec.sensitivity**2 / (2 * spec.sigma**2)
    loss = stats.norm(eta, np.sqrt(2 * eta))
    places = [epsilon + s * np.sqrt(2 * eta) for s in (0, 0.1, 1, 4, 20)]
    delta = sum(
        integrate.quad(lambda x: -np.expm1(epsilon - x) * loss.pdf(x), a, b, epsabs=0, epsrel=1e-10)[0]
        for a, b in pairwise(places)
    )
    assert delta == pytest.approx(1e-6, rel=1e-4)
    assert epsilon <= spec.epsilon * releases * (1 + 1e-6)


def test_the_default_noise_is_normal_and_never_the_same() -> None:
    a, b = secure_normal((1001, 101)), secure_normal((1001, 101))
    assert not np.any(a == b)
    for noise in (a, b):
        # A good generator fails this once in a million times.
        assert stats.kstest(noise.ravel(), "norm").pvalue > 1e-6
        assert abs(np.corrcoef(noise.ravel()[:-1], noise.ravel()[1:])[0, 1]) < 6 / np.sqrt(noise.size)
    assert secure_normal((0, 5)).shape == (0, 5)


@pytest.mark.parametrize("clip", [0.25, 1.0])
def test_vectors_are_clipped_and_noised(clip: float) -> None:
    rng, spec = np.random.default_rng(1), NoiseSpec(3.0, 1e-5, clip)
    vectors = rng.standard_normal((20_000, 6)).astype(np.float32) * rng.uniform(0, 0.5, (20_000, 1))
    vectors[7] = 0
    found = add_noise(vectors, spec, np.random.default_rng(2).standard_normal)
    draw = np.random.default_rng(2)  # `add_noise` draws block after block, which gives the same numbers
    norm = np.linalg.norm(vectors.astype(float), axis=1, keepdims=True)
    clipped = vectors * np.minimum(1, clip / np.where(norm > 0, norm, 1))
    expected = clipped + spec.sigma * draw.standard_normal(vectors.shape)
    np.testing.assert_allclose(found, expected, atol=spec.sigma * 2**-16)
    # The published values lie on a grid, so their last bits reveal nothing about the noise.
    grid = 2.0 ** (np.floor(np.log2(spec.sigma)) - 16)
    np.testing.assert_array_equal(np.round(found / grid) * grid, found)


def test_two_histories_cannot_be_told_apart_better_than_promised() -> None:
    spec, n = NoiseSpec(1.0, 0.05, 1.0), 400_000
    one = add_noise(np.tile(np.array([1, 0], np.float32), (n, 1)), spec)[:, 0]
    other = add_noise(np.tile(np.array([-1, 0], np.float32), (n, 1)), spec)[:, 0]
    # The best test at ε decides by the point where p crosses e^ε q; the two means lie Δ = 2 apart.
    threshold = spec.epsilon * spec.sigma**2 / 2
    told = np.mean(one > threshold) - np.exp(spec.epsilon) * np.mean(other > threshold)
    assert told == pytest.approx(spec.delta, abs=6 * np.exp(spec.epsilon) / np.sqrt(n))


def test_a_profile_shows_its_noised_vector_and_nothing_else() -> None:
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
    spec = NoiseSpec(400.0, 0.5)  # almost no noise
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
    [
        ((0, 1e-6, 1), "epsilon: .*0"), ((1, 1, 1), "delta: .*1"), ((1, 1e-6, 2), "clip: .*2"),
        ((float("nan"), 0.1, 1), "eps"),
    ],
)
def test_settings_that_promise_nothing_are_refused(settings: tuple[float, float, float], says: str) -> None:
    with pytest.raises(JobError, match=says):
        NoiseSpec(*settings)


def test_withheld_dead_letters_show_stage_and_reason_only() -> None:
    letter = DeadLetter("item-1", "text", "interactions", Reason.NULL_TIME, "user=ann", "file:///x")
    found = withhold(dead_letter_table([letter]))
    assert found.schema == SCHEMA
    assert found.to_pylist() == [
        {**dict.fromkeys(SCHEMA.names), "stage": "interactions", "reason": "null_time"},
    ]
