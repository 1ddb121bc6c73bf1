"""Names of columns, metadata keys and counters that several steps share, and small helpers for rows."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from unisono.transforms.base.tables import from_vector_column, hash_ids, same_id_kind

EMBEDDING = "_embedding"  # suffix of a column of embeddings, after the modality
RANKING_VECTOR = "ranking_vector"  # column of items/ and users/
HISTORY, HISTORY_NEW = "history_vector", "history_vector_new"  # columns of items/
RANKING_COLUMNS = (RANKING_VECTOR, HISTORY, HISTORY_NEW)
TASTE = "taste"  # column of profiles before they get a ranking vector
# Keys of schema metadata.
SPACE = b"unisono.space_id"  # in items/, users/ and state/
HALF_LIFE = b"unisono.half_life_days"  # in state/
COMPARABLE = b"unisono.comparable"  # in items/: JSON list of the earlier space_ids with comparable vectors
NOT_COMPARABLE = b"unisono.not_comparable"  # in items/: why the vectors of the published run are not comparable
RANKING = b"unisono.ranking"  # in items/ and users/: JSON that says how the ranking vectors were made
PROFILES = b"unisono.profiles"  # in users/: JSON of the section `profiles` that the profiles were made with
TASTES = b"unisono.tastes"  # in state/: the key of the history vectors that `older` was summed from
FORGOTTEN_COUNT = "users.forgotten"  # counter of the users who were left out (`privacy.forget`)


def embeddings_of(table: pa.Table) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns a table's `<m>_embedding` columns by modality: embeddings [n, dim] and present, bool [n]."""
    names = [name for name in table.column_names if name.endswith(EMBEDDING)]
    return {name.removesuffix(EMBEDDING): from_vector_column(table[name]) for name in names}


def in_sample(ids: pa.Array | pa.ChunkedArray, fraction: float) -> np.ndarray:
    """Draws about a fraction of the ids by their hash, the same ids on every machine.

    The high bits of the hash decide. The low bits choose an id's shard, so every shard has about the same fraction.

    Args:
        ids: strings or integers without nulls, [n].
        fraction: 0 to 1; 1 or more means all.

    Returns:
        bool [n], True for the ids that were drawn.
    """
    if fraction >= 1.0:
        return np.ones(len(ids), bool)
    return hash_ids(ids) < np.uint64(int(fraction * 2.0**64))


def common_rows(ids: pa.ChunkedArray, known: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Finds the ids that two columns have in common.

    Returns:
        The rows of these ids in `ids` and in `known`, int64 [c] each. There are none if one column holds strings and
        the other one integers.
    """
    if not same_id_kind(ids.type, known.type):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    at = pc.index_in(ids, value_set=known.cast(ids.type).combine_chunks()).to_numpy()
    here = np.flatnonzero(~np.isnan(at)) if at.dtype.kind == "f" else np.flatnonzero(at >= 0)
    return here, at[here].astype(np.int64)


def row_lengths(vectors: np.ndarray) -> np.ndarray:
    """Returns the L2 norm of each row of a float matrix, [n], in its dtype, without a copy of the matrix."""
    return np.sqrt(np.einsum("nd,nd->n", vectors, vectors))


def unit_rows(vectors: np.ndarray, lengths: np.ndarray | None = None) -> np.ndarray:
    """Scales each row of a float matrix to unit L2 norm; a row of zeros stays.

    Args:
        vectors: float [n, dim].
        lengths: the L2 norm of each row, [n], such as `row_lengths` returns. None means that `np.linalg.norm` computes
            them; the last digits of its result may differ from those of `row_lengths`.

    Returns:
        float [n, dim], in the dtype of `vectors`.
    """
    norm = np.linalg.norm(vectors, axis=1, keepdims=True) if lengths is None else lengths[:, None]
    return np.divide(vectors, norm, out=np.zeros_like(vectors), where=norm > 0)
