"""Stores item vectors in fewer bytes, as float16 or as int8 with a scale for each axis, and reads them back."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa

from unisono.transforms.base.columns import row_lengths, unit_rows
from unisono.transforms.base.errors import JobError
from unisono.transforms.base.tables import from_vector_column

DTYPES = ("float32", "float16", "int8")
_SCALE = b"unisono.scale"  # schema metadata of a file of int8 vectors: JSON list of a float for each axis
_STEPS = 127  # int8 values are −127 … 127


def axis_scale(vectors: np.ndarray) -> np.ndarray:
    """Chooses the size of an int8 step on each axis: the largest absolute value on the axis becomes 127 steps.

    Args:
        vectors: float [n, dim].

    Returns:
        float64 [dim], above 0.

    Source: Jacob et al., "Quantization and training of neural networks for efficient integer-arithmetic-only
    inference", CVPR 2018, eq. 1 with zero point 0, for each axis.
    """
    largest = np.abs(vectors).max(0, initial=0.0).astype(np.float64)
    return np.where(largest > 0, largest, 1.0) / _STEPS


def encode_vectors(vectors: np.ndarray, dtype: str, scale: np.ndarray | None) -> np.ndarray:
    """Converts vectors to the dtype in which they are stored.

    Args:
        vectors: float32 [n, dim].
        dtype: one of `DTYPES`.
        scale: float64 [dim], the size of an int8 step on each axis; None is allowed for other dtypes only.

    Returns:
        [n, dim] in that dtype; int8 values beyond ±127 steps become ±127.

    Raises:
        JobError: the dtype is `int8` and there is no scale.
    """
    if dtype != "int8":
        return vectors.astype(dtype, copy=False)
    if scale is None:
        raise JobError("output.dtype: int8 needs a space with a scale for each axis; set space.refit: always once")
    return np.clip(np.rint(vectors / scale), -_STEPS, _STEPS).astype(np.int8)


def scale_metadata(dtype: str, scale: np.ndarray | None) -> dict[str, str]:
    """Returns the schema metadata that `read_vectors` needs to read what `encode_vectors` returned.

    Args:
        dtype: one of `DTYPES`.
        scale: float64 [dim], the size of an int8 step on each axis; None means no scale.
    """
    return {_SCALE.decode(): json.dumps(scale.tolist())} if dtype == "int8" and scale is not None else {}


def read_vectors(table: pa.Table, column: str = "vector") -> tuple[np.ndarray, np.ndarray]:
    """Reads a column of unit vectors, in whichever dtype it is stored.

    Args:
        table: with the schema metadata of its file.
        column: a column of fixed-size lists.

    Returns:
        vectors: float32 [n, dim]. A column of float32 is not copied. Vectors of int8 are scaled to unit length again,
            because int8 rounds coarsely.
        present: bool [n], False for null rows.

    Raises:
        JobError: the column is int8, and the metadata do not hold a scale for each axis.
    """
    stored, present = from_vector_column(table[column])
    if stored.dtype != np.int8:
        return stored.astype(np.float32, copy=False), present
    vectors = stored.astype(np.float32)
    scale = np.array(json.loads((table.schema.metadata or {}).get(_SCALE, b"[]")), np.float32)
    if len(scale) != vectors.shape[1]:
        raise JobError(
            f"items.{column}: int8 vectors of {vectors.shape[1]} axes, but the file's metadata unisono.scale has "
            f"{len(scale)} values; read files that Unisono wrote, with their metadata"
        )
    vectors *= scale
    return unit_rows(vectors, row_lengths(vectors)), present
