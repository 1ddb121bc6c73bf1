"""Noise on published profiles: the Gaussian mechanism, with the least noise that keeps the promised privacy."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from functools import cached_property
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field
from scipy.special import log_ndtr

from unisono.transforms.base.columns import row_lengths
from unisono.transforms.base.settings import settings
from unisono.transforms.base.tables import from_vector_column, to_vector_column
from unisono.transforms.store import dead_letters

Draw = Callable[[tuple[int, int]], np.ndarray]
_TINY = 1e-13  # the largest relative difference between the σ that is used and the least σ that is private
_GRID_BITS = 16  # published values are multiples of about σ / 2^_GRID_BITS
_BLOCK = 16_384  # rows that are converted to float64 at once


@settings("privacy.noise")
class NoiseSpec:
    """Gaussian noise on the one vector that is published for each user."""

    epsilon: Annotated[float, Field(gt=0, lt=500)]
    """ε of each release, for any two histories of one user."""
    delta: Annotated[float, Field(ge=1e-100, lt=1)]
    """δ of each release, for any two histories of one user."""
    clip: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Profiles are shortened to this L2 norm before noise is added. Profiles have length 1, so 1 changes nothing."""

    @property
    def sensitivity(self) -> float:
        """The largest distance between two clipped vectors."""
        return 2 * self.clip

    @cached_property
    def sigma(self) -> float:
        """Standard deviation of the noise on each value."""
        return gaussian_sigma(self.epsilon, self.delta, self.sensitivity)


# --- how much ----------------------------------------------------------------------------------------------


def gaussian_delta(sigma: float, epsilon: float, sensitivity: float) -> float:
    """Computes the least δ for which Gaussian noise is (ε, δ)-private: Φ(Δ/2σ − εσ/Δ) − e^ε · Φ(−Δ/2σ − εσ/Δ).

    Args:
        sigma: σ, the standard deviation of the noise, above 0.
        epsilon: ε, above 0.
        sensitivity: Δ, the largest L2 distance between two vectors before noise, above 0.

    Source: Balle and Wang, "Improving the Gaussian mechanism", ICML 2018, arXiv 1805.06530, theorem 8.
    """
    half, scaled = sensitivity / (2 * sigma), epsilon * sigma / sensitivity
    first, second = log_ndtr(half - scaled), epsilon + log_ndtr(-half - scaled)
    # Computed with logarithms, because e^ε can overflow and both terms can underflow a float64.
    return float(math.exp(first) * -math.expm1(min(second - first, 0.0)))


def gaussian_sigma(epsilon: float, delta: float, sensitivity: float) -> float:
    """Finds the least σ for which Gaussian noise is (ε, δ)-private.

    The value found is never below the least σ. Bisection finds it, because δ falls as σ grows.

    Args:
        epsilon: ε, above 0.
        delta: δ, between 0 and 1.
        sensitivity: Δ, the largest L2 distance between two vectors before noise, above 0.
    """
    low = high = sensitivity
    while gaussian_delta(high, epsilon, sensitivity) > delta:
        high *= 2
    while gaussian_delta(low, epsilon, sensitivity) <= delta:
        low /= 2
    while high - low > _TINY * high:
        middle = (low + high) / 2
        if not low < middle < high:
            break
        if gaussian_delta(middle, epsilon, sensitivity) > delta:
            low = middle
        else:
            high = middle
    return high


def epsilon_of_releases(spec: NoiseSpec, releases: int) -> float:
    """Computes the ε of several releases of one user's vector, each with new noise, for the same δ as one release.

    Gaussian releases together are as private as one release with √releases times the sensitivity. The vector may change
    between releases in any way.

    Args:
        spec: the noise of each release.
        releases: number of releases, at least 1.
    """
    sensitivity = spec.sensitivity * math.sqrt(releases)
    low, high = 0.0, spec.epsilon
    while gaussian_delta(spec.sigma, high, sensitivity) > spec.delta:
        high *= 2
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        if gaussian_delta(spec.sigma, middle, sensitivity) > spec.delta:
            low = middle
        else:
            high = middle
    return high


# --- the noise ---------------------------------------------------------------------------------------------


def secure_normal(shape: tuple[int, int]) -> np.ndarray:
    """Draws standard normal numbers, float64, from the operating system's cryptographic generator.

    The state of an ordinary generator can be computed from enough of its output. Somebody who knows the vector of one
    user could do that and then remove the noise of all users.

    Source: Box and Muller, "A note on the generation of random normal deviates", 1958.
    """
    n = shape[0] * shape[1]
    pairs = -(-n // 2)
    bits = np.frombuffer(os.urandom(16 * pairs), np.uint64).reshape(2, pairs) >> np.uint64(11)
    uniform = (bits.astype(np.float64) + 0.5) * 2.0**-53  # between 0 and 1, so the logarithm is finite
    radius, angle = np.sqrt(-2 * np.log(uniform[0])), 2 * np.pi * uniform[1]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:n].reshape(shape)


def add_noise(vectors: np.ndarray, spec: NoiseSpec, draw: Draw = secure_normal) -> np.ndarray:
    """Shortens each row to an L2 norm of at most `clip` and adds N(0, σ²) to each value.

    The sums are rounded to a fixed grid of about σ / 2^16, because the low bits of a sum of floats reveal its parts.

    Args:
        vectors: float [n, dim]; a zero row becomes noise only.
        spec: the noise.
        draw: returns standard normal numbers of a given shape. Only tests pass another function than the default.

    Returns:
        float32 [n, dim], not of unit length.

    Source: Mironov, "On significance of the least significant bits for differential privacy", CCS 2012.
    """
    out = np.empty(vectors.shape, np.float32)
    grid = 2.0 ** (math.floor(math.log2(spec.sigma)) - _GRID_BITS)
    for start in range(0, len(out), _BLOCK):
        rows = vectors[start : start + _BLOCK].astype(np.float64)
        norm = row_lengths(rows)[:, None]
        rows *= np.minimum(1.0, np.divide(spec.clip, norm, out=np.ones_like(norm), where=norm > 0))
        out[start : start + _BLOCK] = np.rint((rows + spec.sigma * draw(rows.shape)) / grid) * grid
    return out


def noised_profiles(users: pa.Table, everybody: pa.Array, spec: NoiseSpec, draw: Draw = secure_normal) -> pa.Table:
    """Makes the profiles of a shard that may be published: ids, noised vectors, and null in every other column.

    Every user of the log has a row, because a missing row would reveal something about the user's history. The vector
    of a user without a profile is noise only.

    Args:
        users: profiles, a table of `profile_schema`.
        everybody: distinct ids of all users of the log, ascending; they include the ids of `users`.
        spec: the noise.
        draw: as in `add_noise`.

    Returns:
        A table of `profile_schema` with one row for each id of `everybody`, in that order.
    """
    vectors, _ = from_vector_column(users["vector"])
    clean = np.zeros((len(everybody), vectors.shape[1]), np.float32)
    clean[pc.index_in(users["user_id"], value_set=everybody).to_numpy()] = vectors
    columns = {"user_id": everybody, "vector": to_vector_column(add_noise(clean, spec, draw))}
    return pa.table(
        [columns.get(f.name, pa.nulls(len(everybody), f.type)) for f in users.schema], schema=users.schema
    )


def withhold(letters: pa.Table) -> pa.Table:
    """Keeps only the stage and the reason of dead letters; the other columns would show a user's raw history."""
    kept = {"stage", "reason"}
    return pa.table(
        [letters[f.name] if f.name in kept else pa.nulls(letters.num_rows, f.type) for f in dead_letters.SCHEMA],
        schema=dead_letters.SCHEMA,
    )
