"""From aligned vectors of each modality to one item vector."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import apache_beam as beam
import numpy as np
import pyarrow as pa

from transforms.dead_letters import dead_letters_of_rows
from transforms.errors import JobError, Reason
from transforms.moments import embeddings_of
from transforms.progress import advance
from transforms.space import Space
from transforms.tables import ShardTable, to_vector_column

_BLOCK_ROWS = 1024
_CANCELLED = 1e-6  # a sum shorter than this part of its weights has no direction


@dataclass(frozen=True, eq=False)
class Fused:
    """Item vectors and how they split.

    Attributes:
        vectors: float32 [n, dim], unit rows; zeros where not ok.
        part_weights: for each modality float32 [n], such that a vector is Σ_m part_weights[m] · aligned_m; 0
            where the modality is missing.
        ok: bool [n]; False where nothing is present, or what is present cancels out.
    """

    vectors: np.ndarray
    part_weights: dict[str, np.ndarray]
    ok: np.ndarray


def fuse(aligned: Mapping[str, tuple[np.ndarray, np.ndarray]], weights: Mapping[str, float]) -> Fused:
    """Adds up what is present with fixed weights, scaled to unit length.

    Args:
        aligned: for each modality its vectors in the joint space, float32 [n, dim] unit rows, and present,
            bool [n]. Rows that are not present may hold anything.
        weights: of each modality, ≥ 0; one that is not named weighs 1, one that weighs 0 takes no part.

    Guarantees: a row's bits depend on that row alone, and not on the order of the modalities.

    Raises:
        JobError: there is no modality, or a weight is not a number ≥ 0.
    """
    if not aligned:
        raise JobError("fusion: there is no modality to fuse; configure a catalog column for at least one")
    for m, weight in weights.items():
        if not 0 <= weight < np.inf:
            raise JobError(f"fusion.weights.{m}: {weight} is not a number ≥ 0; set one")
    names = sorted(aligned)
    n, dim = aligned[names[0]][0].shape
    vectors = np.zeros((n, dim), np.float32)
    parts = {m: np.zeros(n, np.float32) for m in names}
    ok = np.zeros(n, bool)
    for start in range(0, n, _BLOCK_ROWS):
        rows = slice(start, min(start + _BLOCK_ROWS, n))
        given = np.stack([weights.get(m, 1.0) * aligned[m][1][rows] for m in names])
        blocks = {m: _where(aligned[m][0][rows], aligned[m][1][rows]) for m in names}
        norm = np.sqrt(_squares(_weighted_sum(blocks, given)))
        total = given.sum(0)
        ok[rows] = (norm > _CANCELLED * total) & (total > 0)
        split = np.where(ok[rows], given / np.where(ok[rows], norm, 1.0), 0.0).astype(np.float32)
        for m, part in zip(names, split, strict=True):
            parts[m][rows] = part
        # From the rounded parts, so that the stored parts give the stored vector to its last digit.
        vectors[rows] = _weighted_sum(blocks, split.astype(np.float64))
    return Fused(vectors, parts, ok)


def align_table(table: pa.Table, space: Space) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Maps a table's `<m>_embedding` columns into the space.

    Returns:
        For each modality of the space, float32 [n, dim] unit rows and present, bool [n]. A modality is not
        present where its embedding is null, its column is not there, or its projection vanishes.
    """
    embeddings = embeddings_of(table)
    out = {}
    for m in space.modalities:
        vectors = np.zeros((table.num_rows, space.dim), np.float32)
        present = np.zeros(table.num_rows, bool)
        if m in embeddings:
            raw, present = embeddings[m]
            whole = bool(present.all())
            vectors[present] = space.project(m, raw if whole else raw[present])
            present = present & (np.abs(vectors).max(1, initial=0.0) > 0)
        out[m] = vectors, present
    return out


def fuse_table(
    table: pa.Table, space: Space, weights: Mapping[str, float], carry: Sequence[str] = ()
) -> tuple[pa.Table, pa.Table]:
    """Turns a table of embeddings into one of item vectors, rows in their order.

    Args:
        table: `item_id`, `<m>_embedding` (null: missing), and the columns of `carry`.
        space: the joint space.
        weights: of each modality; see `fuse`.
        carry: names of columns to take over as they are, those that the table has.

    Returns:
        Items (`item_id`, carried columns, `vector` fixed_size_list<float32>[dim], `modalities` list<string>:
        those in the vector, and for each modality of the space `<m>_vector` and `<m>_weight`, null where
        missing), and the rows (`item_id`, carried columns) that give no vector.
    """
    aligned = align_table(table, space)
    fused = fuse(aligned, weights)
    kept = table.select(["item_id", *(c for c in carry if c in table.column_names)])
    used = np.stack([aligned[m][1] & (weights.get(m, 1.0) > 0) for m in space.modalities], axis=1)
    columns: dict[str, pa.Array | pa.ChunkedArray] = {c: kept[c] for c in kept.column_names}
    columns["vector"] = to_vector_column(fused.vectors)
    columns["modalities"] = _name_lists(used, space.modalities)
    for m in space.modalities:
        vectors, present = aligned[m]
        columns[f"{m}_vector"] = to_vector_column(vectors, present)
        columns[f"{m}_weight"] = pa.array(fused.part_weights[m], mask=~present)
    items = pa.table(columns)
    place = items.schema.get_field_index("vector")
    # Never null, and declared so: readers of any kind then see one fixed length.
    items = items.cast(items.schema.set(place, items.schema.field(place).with_nullable(False)))
    if fused.ok.all():
        return items, kept.slice(0, 0)
    return items.filter(pa.array(fused.ok)), kept.filter(pa.array(~fused.ok))


def _where(vectors: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Casts to float64, zeros where not present."""
    out = vectors.astype(np.float64)
    out[~present] = 0.0
    return out


def _weighted_sum(blocks: Mapping[str, np.ndarray], weights: np.ndarray) -> np.ndarray:
    """Σ_m weights[m] · blocks[m], element by element in the order of the modalities: float64 [n, dim]."""
    return np.sum([w[:, None] * block for w, block in zip(weights, blocks.values(), strict=True)], axis=0)


def _squares(vectors: np.ndarray) -> np.ndarray:
    return np.einsum("ij,ij->i", vectors, vectors)


def _name_lists(used: np.ndarray, names: Sequence[str]) -> pa.Array:
    """Turns bool [n, len(names)] into list<string> [n]."""
    ends = np.cumsum(used.sum(1), dtype=np.int32)
    values = pa.array(names, pa.string()).take(pa.array(np.nonzero(used)[1]))
    return pa.ListArray.from_arrays(pa.array(np.concatenate([np.zeros(1, np.int32), ends])), values)


class FuseItems(beam.PTransform):
    """Turns `(shard, embeddings)` into `(shard, items)`.

    Args:
        space: PCollection of the one space, as bytes.
        weights: of each modality; see `fuse`.

    Returns:
        A dict of PCollections: `shards` (the schema's metadata name the space), `dead` (pa.Table: rows that
        give no vector, as dead letters of stage `catalog`).
    """

    def __init__(self, space: beam.PCollection, weights: Mapping[str, float]) -> None:
        super().__init__()
        self._space, self._weights = space, dict(weights)

    def expand(self, shards: beam.PCollection) -> dict[str, beam.PCollection]:
        fn = _FuseItemsFn(self._weights)
        out = shards | "Fuse" >> beam.ParDo(fn, beam.pvalue.AsSingleton(self._space)).with_outputs(
            "dead", main="shards"
        )
        return {"shards": out.shards, "dead": out.dead}


class _FuseItemsFn(beam.DoFn):
    def __init__(self, weights: dict[str, float]) -> None:
        self._weights = weights
        self._space: Space | None = None

    def process(self, element: ShardTable, space: bytes) -> Iterable[object]:
        if self._space is None:  # one space a run, so one a worker
            self._space = Space.from_bytes(space)
        shard, table = element
        items, lost = fuse_table(table, self._space, self._weights, carry=["title"])
        if lost.num_rows:
            every = np.ones(lost.num_rows, bool)
            detail = "none of its modalities can be used; see its other dead letters, if any"
            letters = dead_letters_of_rows(lost["item_id"], every, "catalog", Reason.NO_MODALITY, detail)
            yield beam.pvalue.TaggedOutput("dead", letters)
        advance("fuse", done=items.num_rows, dead=lost.num_rows)
        metadata = {"unisono.space_id": self._space.space_id, "unisono.dim": str(self._space.dim)}
        yield shard, items.replace_schema_metadata(metadata)
