"""Conversions between Arrow and NumPy, and shards by hash."""

from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unisono.transforms.base.tables import (
    TableCoder,
    _fnv1a,
    from_vector_column,
    hash_ids,
    pack_vectors,
    shard_of,
    split_by_shard,
    to_vector_column,
    unpack_vectors,
)


def fnv1a(text: str) -> int:
    h = 0xCBF29CE484222325
    for byte in text.encode():
        h = ((h ^ byte) * 0x100000001B3) % 2**64
    return h


@given(st.lists(st.text(max_size=30), min_size=1, max_size=40))
def test_string_hash_is_fnv1a_of_the_utf8_bytes(ids: list[str]) -> None:
    assert _fnv1a(pa.array(ids)).tolist() == [fnv1a(i) for i in ids]


@pytest.mark.parametrize("ids", [["user-1", "user-2", "Größe"], ["", ""], ["x"], ["é", "ab"]], ids=str)
def test_string_hash_of_equally_long_ids(ids: list[str]) -> None:
    assert _fnv1a(pa.array(["longer", *ids]).slice(1)).tolist() == [fnv1a(i) for i in ids]


def test_hash_ignores_slices_chunks_and_string_width() -> None:
    ids = pa.array(["a", "bb", "", "Größe", "名前"])
    whole = hash_ids(ids)
    assert hash_ids(ids.slice(2)).tolist() == whole[2:].tolist()
    assert hash_ids(pa.chunked_array([ids.slice(0, 2), ids.slice(2)])).tolist() == whole.tolist()
    assert hash_ids(ids.cast(pa.large_string())).tolist() == whole.tolist()


@pytest.mark.parametrize("dtype", [pa.int8(), pa.int32(), pa.int64(), pa.uint16()], ids=str)
def test_integer_hash_depends_on_the_value_not_the_width(dtype: pa.DataType) -> None:
    values = [0, 1, 7, 100]
    assert hash_ids(pa.array(values, dtype)).tolist() == hash_ids(pa.array(values, pa.int64())).tolist()


def test_hash_is_the_same_in_another_python() -> None:
    code = (
        "import pyarrow as pa; from unisono.transforms.base.tables import hash_ids;"
        "print(hash_ids(pa.array(['a', 'b', 'item-1'])).tolist())"
    )
    # PYTHONHASHSEED changes Python's own hashes. Shards must not depend on it.
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "12345"}
    ).stdout
    assert printed.strip() == str(hash_ids(pa.array(["a", "b", "item-1"])).tolist())


@pytest.mark.parametrize("make", [lambda i: f"item-{i:06d}", lambda i: i], ids=["string", "integer"])
def test_shards_are_balanced(make) -> None:
    counts = np.bincount(shard_of(pa.array([make(i) for i in range(64_000)]), 64), minlength=64)
    # A shard's count is binomial with mean 1,000 and standard deviation √(n p (1 − p)) ≈ 31.4; allow six of them.
    assert np.abs(counts - 1000).max() < 190


def test_split_by_shard_keeps_every_row_in_its_place() -> None:
    table = pa.table({"id": [f"i{i}" for i in range(100)], "n": list(range(100))})
    shard = shard_of(table["id"], 7)
    seen: dict[str, int] = {}
    for s, part in split_by_shard(table, shard):
        assert set(shard_of(part["id"], 7)) == {s}
        assert part["n"].to_pylist() == sorted(part["n"].to_pylist())
        seen.update(zip(part["id"].to_pylist(), part["n"].to_pylist(), strict=True))
    assert seen == dict(zip(table["id"].to_pylist(), table["n"].to_pylist(), strict=True))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int8], ids=lambda d: d.__name__)
def test_vector_column_round_trips_through_parquet_with_nulls(dtype: type) -> None:
    vectors: np.ndarray = np.arange(12, dtype=dtype).reshape(4, 3)
    present = np.array([True, False, True, True])
    sink = io.BytesIO()
    pq.write_table(pack_vectors(pa.table({"v": to_vector_column(vectors, present)})), sink)
    table = pq.read_table(sink)
    assert [None if x is None else len(x) for x in table["v"].to_pylist()] == [3, None, 3, 3]
    got, there = from_vector_column(unpack_vectors(table)["v"])
    assert there.tolist() == present.tolist()
    assert got.dtype == dtype
    np.testing.assert_array_equal(got[there], vectors[present])


def test_a_column_of_nulls_keeps_its_length_in_parquet() -> None:
    sink = io.BytesIO()
    column = to_vector_column(np.zeros((2, 5), np.float32), np.zeros(2, bool))
    pq.write_table(pack_vectors(pa.table({"v": column})), sink)
    table = unpack_vectors(pq.read_table(sink))
    assert table.schema.field("v").type == pa.list_(pa.float32(), 5)
    assert table["v"].null_count == 2


def test_vector_column_is_a_view() -> None:
    vectors = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    column = to_vector_column(vectors)
    got, _ = from_vector_column(column)
    assert np.shares_memory(got, vectors)
    sliced, _ = from_vector_column(column.slice(2, 2))
    np.testing.assert_array_equal(sliced, vectors[2:4])


def test_vector_column_of_no_rows() -> None:
    got, present = from_vector_column(to_vector_column(np.empty((0, 8), np.float32)))
    assert got.shape == (0, 8)
    assert present.shape == (0,)


def test_table_coder_sends_a_slice_alone() -> None:
    table = pa.table({"x": np.arange(100_000)})
    coder = TableCoder()
    encoded = coder.encode(table.slice(10, 5))
    assert len(encoded) < 1000
    assert coder.decode(encoded)["x"].to_pylist() == [10, 11, 12, 13, 14]
