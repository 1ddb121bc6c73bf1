"""Compares embeddings by their directions."""

from __future__ import annotations

import numpy as np


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Computes the cosine of each row of `a` with the same row of `b`, in float64. A single row is broadcast."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    out: np.ndarray = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    return out
