"""Column suffixes, metadata keys and counter names that several steps share, and small helpers on rows."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from unisono.transforms.base.tables import from_vector_column, hash_ids, same_id_kind

EMBEDDING = "_embedding"  # ends the name of a column of embeddings, after its modality


def embeddings_of(table: pa.Table) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Views a table's `<m>_embedding` columns by modality: embeddings [n, d], present bool [n]."""
    names = [name for name in table.column_names if name.endswith(EMBEDDING)]
    return {name.removesuffix(EMBEDDING): from_vector_column(table[name]) for name in names}


def in_sample(ids: pa.Array | pa.ChunkedArray, fraction: float) -> np.ndarray:
    """Chooses about a fraction of the ids by their hash, the same on every machine: bool [n].

    The high bits decide, and shards go by the low ones, so that every shard gives its part.
    """
    if fraction >= 1.0:
        return np.ones(len(ids), bool)
    return hash_ids(ids) < np.uint64(int(fraction * 2.0**64))

COMPARABLE, NOT_COMPARABLE = b"unisono.comparable", b"unisono.not_comparable"  # in the metadata of items/


def common_rows(ids: pa.ChunkedArray, known: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Finds the ids that both columns have: rows in the first, rows in the second, int64 [c] each."""
    if not same_id_kind(ids.type, known.type):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    at = pc.index_in(ids, value_set=known.cast(ids.type).combine_chunks()).to_numpy()
    here = np.flatnonzero(~np.isnan(at)) if at.dtype.kind == "f" else np.flatnonzero(at >= 0)
    return here, at[here].astype(np.int64)


def row_lengths(vectors: np.ndarray) -> np.ndarray:
    """Returns the L2 norm of each row, [n], in the dtype of `vectors` [n, dim], without a copy of the matrix."""
    return np.sqrt(np.einsum("nd,nd->n", vectors, vectors))


def unit_rows(vectors: np.ndarray, lengths: np.ndarray | None = None) -> np.ndarray:
    """Scales rows to unit L2 norm; rows of zeros stay zero.

    Args:
        vectors: float [n, dim].
        lengths: the L2 norm of each row, [n], such as `row_lengths` returns. None means that `np.linalg.norm` computes
            them; its last digits may differ from those of `row_lengths`.
    """
    norm = np.linalg.norm(vectors, axis=1, keepdims=True) if lengths is None else lengths[:, None]
    return np.divide(vectors, norm, out=np.zeros_like(vectors), where=norm > 0)

SPACE = b"unisono.space_id"  # in the metadata of items/, users/ and state/

HALF_LIFE = b"unisono.half_life_days"

COUNT = "users.forgotten"
