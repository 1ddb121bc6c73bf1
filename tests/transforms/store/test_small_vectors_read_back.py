"""Vectors of every dtype, written to a file and read back by each reader."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.transforms.space.sample import unit
from unisono.transforms.base.errors import JobError
from unisono.transforms.base.nearest import neighbour_overlap
from unisono.transforms.base.tables import to_vector_column, unpack_vectors
from unisono.transforms.store.item_matrix import ItemMatrix
from unisono.transforms.store.runs import table_bytes
from unisono.transforms.store.small_vectors import axis_scale, encode_vectors, read_vectors, scale_metadata


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_every_dtype_is_read_back(tmp_path, dtype):
    rng = np.random.default_rng(0)
    vectors = unit(rng.standard_normal((400, 16)) * np.linspace(2, 0.1, 16))
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
