"""Conversions between Arrow and NumPy, shards by hash, and the coder that sends tables through a shuffle."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

ShardTable = tuple[int, pa.Table]  # the number of a shard, and its rows


def one_chunk(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Returns a column as one array; copies it only if it has several chunks."""
    if not isinstance(column, pa.ChunkedArray):
        return column
    if column.num_chunks == 1:
        return column.chunk(0)
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


_DIM = b"unisono.dim"
# Arrow's own `to_pandas_dtype` imports pandas, which is not in the base install.
_NUMPY_TYPES = {pa.from_numpy_dtype(t): np.dtype(t) for t in (np.float16, np.float32, np.float64, np.int8)}


# --- vectors -----------------------------------------------------------------------------------------------


def to_vector_column(vectors: np.ndarray, present: np.ndarray | None = None) -> pa.FixedSizeListArray:
    """Wraps a matrix as a FixedSizeList column without copying its values.

    Args:
        vectors: float16, float32, float64 or int8 [n, dim]; rows that are not present may hold anything.
        present: bool [n]; False makes a row null. None means that all rows are present.
    """
    n, dim = vectors.shape
    flat = pa.array(np.ascontiguousarray(vectors).reshape(-1))
    mask = None if present is None or present.all() else pa.array(~present)
    if n == 0:
        return pa.array([], pa.list_(flat.type, dim))
    return pa.FixedSizeListArray.from_arrays(flat, type=pa.list_(flat.type, dim), mask=mask)


def from_vector_column(column: pa.Array | pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Views a FixedSizeList column as a matrix; copies it only if it has several chunks.

    Returns:
        vectors: [n, dim] in the column's dtype; rows that are not present hold undefined values.
        present: bool [n], False for null rows.
    """
    column = one_chunk(column)
    dim = column.type.list_size
    dtype = _NUMPY_TYPES[column.type.value_type]
    n = len(column)
    if n == 0:
        return np.empty((0, dim), dtype), np.empty(0, bool)
    values = column.values
    # In a file from Parquet, the values of a null row are null too, and then `values.to_numpy()` would copy.
    start = (column.offset * dim + values.offset) * dtype.itemsize
    vectors = np.frombuffer(values.buffers()[1], dtype, count=n * dim, offset=start).reshape(n, dim)
    if column.null_count == 0:
        return vectors, np.ones(n, bool)
    return vectors, column.is_valid().to_numpy(zero_copy_only=False)


def pack_vectors(table: pa.Table) -> pa.Table:
    """Turns nullable FixedSizeList columns into List columns, the form in which they are stored.

    Arrow up to version 25 cannot read the Parquet file that it writes for a FixedSizeList with nulls
    (apache/arrow#35692). The length of the vectors goes into the field's metadata.
    """
    for i, field in enumerate(table.schema):
        if not (pa.types.is_fixed_size_list(field.type) and field.nullable):
            continue
        vectors, present = from_vector_column(table.column(i))
        dim = field.type.list_size
        offsets = np.concatenate([[0], np.cumsum(present, dtype=np.int64) * dim]).astype(np.int32)
        values = pa.array((vectors if present.all() else vectors[present]).reshape(-1))
        column = pa.ListArray.from_arrays(pa.array(offsets), values, mask=pa.array(~present))
        named = pa.field(field.name, column.type, metadata={_DIM: str(dim)})
        table = table.set_column(i, named, column)
    return table


def unpack_vectors(table: pa.Table) -> pa.Table:
    """Turns the columns that `pack_vectors` changed back; copies only columns with nulls."""
    for i, field in enumerate(table.schema):
        dim = (field.metadata or {}).get(_DIM)
        if dim is None:
            continue
        column, dim = one_chunk(table.column(i)), int(dim)
        present = column.is_valid().to_numpy(zero_copy_only=False)
        values = column.flatten().to_numpy().reshape(-1, dim)
        if not present.all():
            dense = np.zeros((len(column), dim), values.dtype)
            dense[present] = values
            values = dense
        table = table.set_column(i, field.name, to_vector_column(values, present))
    return table


def with_column(table: pa.Table, name: str, column: pa.Array | pa.ChunkedArray) -> pa.Table:
    """Returns a table with this column, in place of a column of the same name if there is one."""
    index = table.schema.get_field_index(name)
    return table.append_column(name, column) if index < 0 else table.set_column(index, name, column)


def concat_tables(tables: Sequence[pa.Table]) -> pa.Table:
    """Concatenates tables with the same schema into one, with one chunk per column."""
    return pa.concat_tables(tables).combine_chunks() if len(tables) != 1 else tables[0].combine_chunks()


# --- shards ------------------------------------------------------------------------------------------------

_FNV_OFFSET = np.uint64(0xCBF29CE484222325)
_FNV_PRIME = np.uint64(0x100000001B3)


def _mix64(h: np.ndarray) -> np.ndarray:
    """Mixes 64-bit hashes until each output bit depends on every input bit.

    Source: fmix64 of MurmurHash3 (Appleby).
    """
    h = h ^ (h >> np.uint64(33))
    h = h * np.uint64(0xFF51AFD7ED558CCD)
    h = h ^ (h >> np.uint64(33))
    h = h * np.uint64(0xC4CEB9FE1A85EC53)
    return h ^ (h >> np.uint64(33))


def _fnv1a(strings: pa.Array) -> np.ndarray:
    """Hashes the UTF-8 bytes of strings to uint64 [n], all rows at once, with one pass per byte position.

    Source: FNV-1a (Fowler, Noll, Vo).
    """
    strings = strings.cast(pa.large_binary())
    offsets = np.frombuffer(strings.buffers()[1], np.int64, len(strings) + 1, strings.offset * 8)
    data = strings.buffers()[2]
    octets = np.frombuffer(data, np.uint8) if data is not None and data.size else np.zeros(1, np.uint8)
    lengths = np.diff(offsets)
    if len(strings) and (lengths == lengths[0]).all():  # then the bytes form a matrix, and need no gathering
        h = np.full(len(strings), _FNV_OFFSET, np.uint64)
        for column in octets[offsets[0] : offsets[-1]].reshape(len(strings), -1).T:
            h = (h ^ column) * _FNV_PRIME
        return h
    order = np.argsort(-lengths, kind="stable")  # Longest first: the rows that have a byte at a position are a prefix.
    starts, lengths = offsets[:-1][order], lengths[order]
    h = np.full(len(strings), _FNV_OFFSET, np.uint64)
    active = len(h)
    for position in range(int(lengths[0]) if active else 0):
        active = int(np.searchsorted(-lengths, -position, side="left"))  # the number of rows with length > position
        h[:active] = (h[:active] ^ octets[starts[:active] + position]) * _FNV_PRIME
    out = np.empty_like(h)
    out[order] = h
    return out


def hash_ids(ids: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Hashes ids to uint64 [n]; the hash is the same on every machine and for every Python and library version.

    Args:
        ids: strings or integers without nulls, [n]. An integer's hash depends on its value, not on its width.
    """
    ids = one_chunk(ids)
    if len(ids) == 0:
        return np.empty(0, np.uint64)
    if pa.types.is_integer(ids.type):
        raw = ids.cast(pa.uint64() if ids.type == pa.uint64() else pa.int64()).to_numpy().view(np.uint64)
        return _mix64(raw + np.uint64(0x9E3779B97F4A7C15))
    return _mix64(_fnv1a(ids))


def shard_of(ids: pa.Array | pa.ChunkedArray, shards: int) -> np.ndarray:
    """Returns the shard of each id, int64 [n] in 0 … shards − 1."""
    return (hash_ids(ids) % np.uint64(shards)).astype(np.int64)


def split_by_shard(table: pa.Table, shard: np.ndarray) -> Iterable[ShardTable]:
    """Splits a table by the shard of each row; shards come in ascending order, and rows keep their order.

    Args:
        table: n rows.
        shard: int64 [n].

    Returns:
        `(shard, table)` for each shard that has rows.
    """
    if table.num_rows == 0:
        return
    narrow = shard.astype(np.uint16) if shard.max() < 2**16 else shard  # NumPy sorts these by radix
    order = np.argsort(narrow, kind="stable")
    bounds = np.flatnonzero(np.diff(shard[order])) + 1
    table = table.take(pa.array(order))
    starts = np.concatenate([[0], bounds])
    ends = np.concatenate([bounds, [len(order)]])
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        yield int(shard[order[start]]), table.slice(start, end - start)


def is_id_type(dtype: pa.DataType) -> bool:
    """Returns True if a column of this type can hold ids: strings or integers."""
    return pa.types.is_string(dtype) or pa.types.is_large_string(dtype) or pa.types.is_integer(dtype)


def same_id_kind(a: pa.DataType, b: pa.DataType) -> bool:
    """Returns True if ids of these two types can be compared: both are integers, or both are not."""
    return pa.types.is_integer(a) == pa.types.is_integer(b)


def sort_by_id(table: pa.Table, column: str = "item_id") -> pa.Table:
    """Sorts rows by id, ascending."""
    return table.take(pc.sort_indices(table[column])).combine_chunks()


# --- coder -------------------------------------------------------------------------------------------------


_PLAIN, _SMALL = pa.ipc.IpcWriteOptions(), pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)


def _is_dense(dtype: pa.DataType) -> bool:
    """Returns True if columns of this type hardly get smaller by compression: bytes, vectors, or lists of them."""
    if pa.types.is_list(dtype) or pa.types.is_large_list(dtype) or pa.types.is_fixed_size_list(dtype):
        return pa.types.is_floating(dtype.value_type) or _is_dense(dtype.value_type)
    return pa.types.is_binary(dtype) or pa.types.is_large_binary(dtype)


def to_ipc(table: pa.Table) -> bytes:
    """Encodes a table as an Arrow IPC stream. For a slice, only the slice's own rows are encoded.

    A table of ids, times and texts is compressed with LZ4, because a runner copies tables several times. A table of
    events gets two fifths smaller. A table with media or vectors is not compressed, and decoding it copies nothing.
    """
    sink = pa.BufferOutputStream()
    options = _PLAIN if any(_is_dense(t) for t in table.schema.types) else _SMALL
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def from_ipc(packed: bytes) -> pa.Table:
    """Decodes a table that `to_ipc` encoded."""
    return pa.ipc.open_stream(pa.py_buffer(packed)).read_all()


class TableCoder(beam.coders.Coder):
    """Sends tables through a shuffle as Arrow IPC streams."""

    def encode(self, value: pa.Table) -> bytes:
        return to_ipc(value)

    def decode(self, encoded: bytes) -> pa.Table:
        return from_ipc(encoded)

    def estimate_size(self, value: pa.Table) -> int:
        return value.nbytes  # Beam's own estimate, for its metrics, would encode the table.

    def is_deterministic(self) -> bool:
        return False

    def to_type_hint(self) -> type:
        return pa.Table


beam.coders.registry.register_coder(pa.Table, TableCoder)
