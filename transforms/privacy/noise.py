"""Noise on published profiles: the Gaussian mechanism, calibrated exactly."""

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

from unisono.transforms.base.settings import settings
from unisono.transforms.base.tables import from_vector_column, to_vector_column
from unisono.transforms.store import dead_letters

Draw = Callable[[tuple[int, int]], np.ndarray]
_TINY = 1e-13  # how near σ comes to the least that will do, relative
_GRID_BITS = 16
_BLOCK = 16_384  # rows whose float64 workings are held at once


@settings("privacy.noise")
class NoiseSpec:
    """Gaussian noise on the one vector that is published of each user."""

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
    """Gives the least δ for which Gaussian noise is (ε, δ)-private: Φ(Δ/2σ − εσ/Δ) − e^ε · Φ(−Δ/2σ − εσ/Δ).

    Source: Balle and Wang, "Improving the Gaussian mechanism", ICML 2018, arXiv 1805.06530, theorem 8.
    """
    half, scaled = sensitivity / (2 * sigma), epsilon * sigma / sensitivity
    first, second = log_ndtr(half - scaled), epsilon + log_ndtr(-half - scaled)
    # In logarithms: e^ε overflows, and both terms may lie below what a float64 holds.
    return float(math.exp(first) * -math.expm1(min(second - first, 0.0)))


def gaussian_sigma(epsilon: float, delta: float, sensitivity: float) -> float:
    """Finds the least σ that is (ε, δ)-private, from above, by bisection: δ falls as σ grows."""
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
    """Gives the ε, at the spec's δ, of publishing a user's vector so many times, each with fresh noise.

    Gaussian releases compose to one with √releases times the sensitivity; two nights may differ in any way.
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
    """Draws standard normals, float64, out of the operating system's cryptographic generator (Box and Muller).

    A seeded generator would do for statistics, but who learns its state, from a user whose vector he knows, say,
    takes the noise off everybody.
    """
    n = shape[0] * shape[1]
    pairs = -(-n // 2)
    bits = np.frombuffer(os.urandom(16 * pairs), np.uint64).reshape(2, pairs) >> np.uint64(11)
    uniform = (bits.astype(np.float64) + 0.5) * 2.0**-53  # in (0, 1), its logarithm finite
    radius, angle = np.sqrt(-2 * np.log(uniform[0])), 2 * np.pi * uniform[1]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:n].reshape(shape)


def add_noise(vectors: np.ndarray, spec: NoiseSpec, draw: Draw = secure_normal) -> np.ndarray:
    """Clips each row to L2 norm `clip` and adds N(0, σ²) to each value: float32 [n, dim], not of unit length.

    What comes out is rounded to a fixed grid of about σ/2^16: the low bits of a sum of floats tell its summands
    apart (Mironov, "On significance of the least significant bits for differential privacy", CCS 2012).

    Args:
        vectors: float [n, dim]; zero rows become noise alone.
        draw: gives standard normals; another than the default is for tests.
    """
    out = np.empty(vectors.shape, np.float32)
    grid = 2.0 ** (math.floor(math.log2(spec.sigma)) - _GRID_BITS)
    for start in range(0, len(out), _BLOCK):
        rows = vectors[start : start + _BLOCK].astype(np.float64)
        norm = np.sqrt(np.einsum("nd,nd->n", rows, rows))[:, None]
        rows *= np.minimum(1.0, np.divide(spec.clip, norm, out=np.ones_like(norm), where=norm > 0))
        out[start : start + _BLOCK] = np.rint((rows + spec.sigma * draw(rows.shape)) / grid) * grid
    return out


def noised_profiles(users: pa.Table, everybody: pa.Array, spec: NoiseSpec, draw: Draw = secure_normal) -> pa.Table:
    """Gives the profiles that may be published of a shard: noised vectors, and nothing else that is of the user.

    Whoever is in the log has a row, with noise alone where there is no profile: a missing row would tell of the
    user's history. Every other column is null.

    Args:
        users: `profile_schema`.
        everybody: distinct ids, ascending, with those of `users` among them.
    """
    vectors, _ = from_vector_column(users["vector"])
    clean = np.zeros((len(everybody), vectors.shape[1]), np.float32)
    clean[pc.index_in(users["user_id"], value_set=everybody).to_numpy()] = vectors
    columns = {"user_id": everybody, "vector": to_vector_column(add_noise(clean, spec, draw))}
    return pa.table(
        [columns.get(f.name, pa.nulls(len(everybody), f.type)) for f in users.schema], schema=users.schema
    )


def withhold(letters: pa.Table) -> pa.Table:
    """Leaves of the dead letters of users' events their stage and reason: the rest is raw history."""
    kept = {"stage", "reason"}
    return pa.table(
        [letters[f.name] if f.name in kept else pa.nulls(letters.num_rows, f.type) for f in dead_letters.SCHEMA],
        schema=dead_letters.SCHEMA,
    )
