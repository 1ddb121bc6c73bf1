"""Vectors in fewer bytes, against NumPy and pyarrow."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from unisono.transforms.base.errors import JobError
from unisono.transforms.base.nearest import neighbour_overlap
from unisono.transforms.base.tables import to_vector_column, unpack_vectors
from unisono.transforms.store.item_matrix import ItemMatrix
from unisono.transforms.store.runs import table_bytes
from unisono.transforms.store.small_vectors import (
    DTYPES,
    axis_scale,
    encode_vectors,
    read_vectors,
    scale_metadata,
)


def unit_vectors(n: int, dim: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((n, dim)) * np.geomspace(1, 0.01, dim)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def stored(vectors: np.ndarray, dtype: str, present: np.ndarray | None = None) -> pa.Table:
    """A table as it comes back from a Parquet file."""
    scale = axis_scale(vectors) if dtype == "int8" else None
    column = to_vector_column(encode_vectors(vectors, dtype, scale), present)
    table = pa.table({"vector": column}).replace_schema_metadata(scale_metadata(dtype, scale))
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return pq.read_table(sink)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 0), ("float16", 5e-4), ("int8", 0.01)])
@pytest.mark.parametrize("n", [0, 1, 200])
def test_vectors_come_back_within_their_rounding(dtype: str, tolerance: float, n: int) -> None:
    vectors = unit_vectors(n, 32)
    table = stored(vectors, dtype)
    assert str(table.schema.field("vector").type.value_type) == {"float16": "halffloat", "float32": "float"}.get(
        dtype, "int8"
    )
    got, present = read_vectors(table)
    assert got.dtype == np.float32
    assert got.shape == vectors.shape
    assert present.all()
    np.testing.assert_allclose(got, vectors, atol=tolerance)
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-3)


def test_int8_is_the_nearest_step_of_each_axis() -> None:
    vectors = unit_vectors(50, 6)
    scale = axis_scale(vectors)
    largest = np.array([max(abs(float(v)) for v in vectors[:, axis]) for axis in range(6)])
    np.testing.assert_allclose(scale, largest / 127, rtol=1e-12)
    encoded = encode_vectors(vectors, "int8", scale)
    assert encoded.dtype == np.int8
    for row, column in np.ndindex(vectors.shape):
        assert encoded[row, column] == round(float(vectors[row, column]) / float(scale[column]))
    assert np.abs(encoded).max(0).tolist() == [127] * 6


def test_values_beyond_the_scale_are_cut_off() -> None:
    encoded = encode_vectors(np.array([[5, -5, 0.5]], np.float32), "int8", np.array([0.01] * 3))
    assert encoded.tolist() == [[127, -127, 50]]


SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, max_side=8)


@given(hnp.arrays(np.float32, SHAPES, elements=st.floats(-1, 1, width=32)))
def test_a_step_is_never_zero_and_the_error_is_half_a_step(vectors: np.ndarray) -> None:
    scale = axis_scale(vectors)
    assert (scale > 0).all()
    error = np.abs(encode_vectors(vectors, "int8", scale) * scale - vectors)
    assert (error <= 0.5001 * scale).all()


def test_an_axis_of_zeros_has_a_scale() -> None:
    assert axis_scale(np.zeros((3, 2), np.float32)).tolist() == [1 / 127] * 2
    assert axis_scale(np.empty((0, 2), np.float32)).tolist() == [1 / 127] * 2


def test_metadata_only_for_int8() -> None:
    scale = np.array([0.5, 0.25])
    assert scale_metadata("int8", scale) == {"unisono.scale": "[0.5, 0.25]"}
    assert [scale_metadata(d, scale) for d in DTYPES if d != "int8"] == [{}, {}]


def test_float32_is_not_copied() -> None:
    vectors = unit_vectors(5, 4)
    got, _ = read_vectors(pa.table({"vector": to_vector_column(vectors)}))
    assert np.shares_memory(got, vectors)


@pytest.mark.parametrize("dtype", DTYPES)
def test_null_rows_are_marked(dtype: str) -> None:
    present = np.array([True, False, True])
    scale = np.array([0.01] * 4) if dtype == "int8" else None
    column = to_vector_column(encode_vectors(unit_vectors(3, 4), dtype, scale), present)
    table = pa.table({"image_vector": column}).replace_schema_metadata(scale_metadata(dtype, scale))
    assert read_vectors(table, "image_vector")[1].tolist() == present.tolist()


def test_int8_without_a_scale_is_refused() -> None:
    with pytest.raises(JobError, match=r"^output\.dtype: int8 needs a space with a scale"):
        encode_vectors(unit_vectors(2, 3), "int8", None)


@pytest.mark.parametrize("scale", [None, [0.5], [0.1] * 4], ids=["none", "too short", "too long"])
def test_a_file_without_its_scale_is_refused_in_one_line(scale: list[float] | None) -> None:
    table = pa.table({"vector": to_vector_column(np.ones((2, 3), np.int8))})
    if scale is not None:
        table = table.replace_schema_metadata({"unisono.scale": json.dumps(scale)})
    with pytest.raises(JobError, match=rf"^items\.vector: int8 vectors of 3 axes.* has {len(scale or [])} values") as e:
        read_vectors(table)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_a_file_of_every_dtype_is_read_back(tmp_path: Path, dtype: str) -> None:
    rng = np.random.default_rng(0)
    vectors = unit_vectors(400, 16)
    scale = axis_scale(vectors)
    present = rng.random(400) < 0.7
    table = pa.table({
        "item_id": [f"i{i}" for i in range(400)],
        "vector": to_vector_column(encode_vectors(vectors, dtype, scale)),
        "text_vector": to_vector_column(encode_vectors(vectors, dtype, scale), present),
    }).replace_schema_metadata(scale_metadata(dtype, scale))  # fmt: skip
    path = tmp_path / "items.parquet"
    path.write_bytes(table_bytes(table))
    back = unpack_vectors(pq.read_table(path))
    tolerance = {"float32": 0, "float16": 5e-4, "int8": scale.max()}[dtype]
    got, _ = read_vectors(back)
    np.testing.assert_allclose(got, vectors, atol=tolerance)
    assert got.dtype == np.float32
    part, here = read_vectors(back, "text_vector")
    np.testing.assert_array_equal(here, present)
    np.testing.assert_allclose(part[here], vectors[here], atol=tolerance)
    matrix = ItemMatrix.open([str(path)], cache_dir=str(tmp_path / "cache"))
    np.testing.assert_allclose(matrix.vectors, got, atol=1e-7)
    assert neighbour_overlap(vectors, got) > (0.9 if dtype == "int8" else 0.99)
    if dtype == "int8":
        np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-6)
        with pytest.raises(JobError, match=r"items\.vector: int8 vectors of 16 axes"):
            read_vectors(back.replace_schema_metadata({}))
        with pytest.raises(JobError, match=r"output\.dtype: int8 needs"):
            encode_vectors(vectors, dtype, None)
