"""Item vectors in fewer bytes: float16, int8 with a scale for each axis, or fewer axes; and back again."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa

from unisono.transforms.base.errors import JobError
from unisono.transforms.base.tables import from_vector_column

DTYPES = ("float32", "float16", "int8")
_SCALE = b"unisono.scale"  # in a file's schema metadata: JSON, a float for each axis
_STEPS = 127


def axis_scale(vectors: np.ndarray) -> np.ndarray:
    """Gives the size of an int8 step on each axis, float64 [dim]: the largest value seen is 127 steps.

    Source: Jacob et al., "Quantization and training of neural networks for efficient integer-arithmetic-only
    inference", CVPR 2018, eq. 1 with zero point 0, an axis each.
    """
    largest = np.abs(vectors).max(0, initial=0.0).astype(np.float64)
    return np.where(largest > 0, largest, 1.0) / _STEPS


def encode_vectors(vectors: np.ndarray, dtype: str, scale: np.ndarray | None) -> np.ndarray:
    """Casts float32 [n, dim] to what is stored; with `int8`, values beyond ±127 steps are cut off.

    Raises:
        JobError: `int8` without a scale.
    """
    if dtype != "int8":
        return vectors.astype(dtype, copy=False)
    if scale is None:
        raise JobError("output.dtype: int8 needs a space with a scale for each axis; set space.refit: always once")
    return np.clip(np.rint(vectors / scale), -_STEPS, _STEPS).astype(np.int8)


def scale_metadata(dtype: str, scale: np.ndarray | None) -> dict[str, str]:
    """Gives what the schema's metadata must hold for `read_vectors` to undo `encode_vectors`."""
    return {_SCALE.decode(): json.dumps(scale.tolist())} if dtype == "int8" and scale is not None else {}


def read_vectors(table: pa.Table, column: str = "vector") -> tuple[np.ndarray, np.ndarray]:
    """Reads a column of unit vectors, in whichever dtype it is stored.

    Args:
        table: with its file's schema metadata.

    Returns:
        float32 [n, dim], present bool [n]. float32 is not copied, float16 is widened; rows of int8, whose
        rounding is coarse, are scaled to unit length again.

    Raises:
        JobError: the column is int8 and the metadata give no scale of as many axes.
    """
    stored, present = from_vector_column(table[column])
    if stored.dtype != np.int8:
        return stored.astype(np.float32, copy=False), present
    vectors = stored.astype(np.float32)
    scale = np.array(json.loads((table.schema.metadata or {}).get(_SCALE, b"[]")), np.float32)
    if len(scale) != vectors.shape[1]:
        raise JobError(
            f"items.{column}: int8 of {vectors.shape[1]} axes, and the file's metadata unisono.scale has "
            f"{len(scale)}; read files that Unisono wrote, with their metadata"
        )
    vectors *= scale
    norm = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
    return np.divide(vectors, norm[:, None], out=vectors, where=norm[:, None] > 0), present


