"""From aligned vectors of each modality to one item vector."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.typehints import with_output_types

from unisono.transforms.base.columns import embeddings_of
from unisono.transforms.base.errors import JobError, Reason
from unisono.transforms.base.progress import advance
from unisono.transforms.base.tables import ShardTable, to_vector_column
from unisono.transforms.space.space import Aligned, Space, comparable_metadata
from unisono.transforms.store.dead_letters import dead_letters_of_rows
from unisono.transforms.store.small_vectors import encode_vectors, scale_metadata

_BLOCK_ROWS = 1024
_CANCELLED = 1e-6  # a sum shorter than this part of its weights has no direction


@dataclass(frozen=True, eq=False)
class Fused:
    """Item vectors and how they split.

    Attributes:
        vectors: float32 [n, dim], unit rows; zeros where not ok.
        part_weights: for each modality float32 [n], such that a vector is Σ_m part_weights[m] · aligned_m; 0
            where the modality takes no part.
        ok: bool [n]; False where nothing takes part, or what does cancels out.
    """

    vectors: np.ndarray
    part_weights: dict[str, np.ndarray]
    ok: np.ndarray


def fuse(vectors: Mapping[str, np.ndarray], weights: Mapping[str, np.ndarray]) -> Fused:
    """Adds up the modalities of each item by their weights, scaled to unit length.

    Args:
        vectors: for each modality its vectors in the joint space, float32 [n, dim] unit rows. Rows of weight 0
            may hold anything.
        weights: for each modality float64 [n], ≥ 0; 0 where it takes no part.

    Guarantees: a row's bits depend on that row alone, and not on the order of the modalities.

    Raises:
        JobError: there is no modality.
    """
    if not vectors:
        raise JobError("fusion: there is no modality to fuse; configure a catalog column for at least one")
    names = sorted(vectors)
    n, dim = vectors[names[0]].shape
    out = np.zeros((n, dim), np.float32)
    parts = {m: np.zeros(n, np.float32) for m in names}
    ok = np.zeros(n, bool)
    for start in range(0, n, _BLOCK_ROWS):
        rows = slice(start, min(start + _BLOCK_ROWS, n))
        given = np.stack([weights[m][rows] for m in names])
        blocks = {m: _where(vectors[m][rows], weights[m][rows] > 0) for m in names}
        norm = np.sqrt(_squares(_weighted_sum(blocks, given)))
        total = given.sum(0)
        ok[rows] = (norm > _CANCELLED * total) & (total > 0)
        split = np.where(ok[rows], given / np.where(ok[rows], norm, 1.0), 0.0).astype(np.float32)
        for m, part in zip(names, split, strict=True):
            parts[m][rows] = part
        # From the rounded parts, so that the stored parts give the stored vector to its last digit.
        out[rows] = _weighted_sum(blocks, split.astype(np.float64))
    return Fused(out, parts, ok)


def item_vectors(space: Space, table: pa.Table) -> tuple[Fused, Aligned]:
    """Maps a table's `<m>_embedding` columns (null: missing) into the space and fuses them."""
    batch = {m: pair for m, pair in embeddings_of(table).items() if m in space.modalities}
    none = np.zeros(table.num_rows, bool)
    for m in space.modalities:
        batch.setdefault(m, (np.zeros((table.num_rows, space.projections[m].dim_in), np.float32), none))
    aligned = space.align(batch)
    return fuse(aligned.vectors, aligned.weights), aligned


def fuse_table(
    table: pa.Table, space: Space, carry: Sequence[str] = (), dtype: str = "float32"
) -> tuple[pa.Table, pa.Table]:
    """Turns a table of embeddings into one of item vectors, rows in their order.

    Args:
        table: `item_id`, `<m>_embedding` (null: missing), and the columns of `carry`.
        space: the joint space.
        carry: names of columns to take over as they are, those that the table has.
        dtype: of the vectors: see `small_vectors.encode_vectors`.

    Returns:
        Items (`item_id`, carried columns, `vector` fixed_size_list[dim], `modalities` list<string>: those of
        the item that are in the vector, `imputed` list<string> if the space imputes: those predicted from the
        others, and for each modality of the space `<m>_vector` and `<m>_weight`, null where neither), and the
        rows (`item_id`, carried columns) that give no vector. vector = Σ_m `<m>_weight` · `<m>_vector`, to the
        last digit of float32.
    """
    fused, aligned = item_vectors(space, table)
    kept = table.select(["item_id", *(c for c in carry if c in table.column_names)])
    names = space.modalities
    in_vector = {m: aligned.weights[m] > 0 for m in names}
    columns: dict[str, pa.Array | pa.ChunkedArray] = {c: kept[c] for c in kept.column_names}
    columns["vector"] = to_vector_column(encode_vectors(fused.vectors, dtype, space.scale))
    columns["modalities"] = _name_lists(np.stack([aligned.present[m] & in_vector[m] for m in names], axis=1), names)
    if space.imputer is not None:
        columns["imputed"] = _name_lists(np.stack([aligned.imputed[m] & in_vector[m] for m in names], axis=1), names)
    for m in names:
        there = aligned.present[m] | (aligned.imputed[m] & in_vector[m])
        columns[f"{m}_vector"] = to_vector_column(encode_vectors(aligned.vectors[m], dtype, space.scale), there)
        columns[f"{m}_weight"] = pa.array(fused.part_weights[m], mask=~there)
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
        dtype: of the vectors; `int8` needs a space that knows its `scale`.

    Returns:
        A dict of PCollections: `shards` (the schema's metadata name the space), `dead` (pa.Table: rows that
        give no vector, as dead letters of stage `catalog`).
    """

    def __init__(self, space: beam.PCollection, dtype: str = "float32") -> None:
        super().__init__()
        self._space, self._dtype = space, dtype

    def expand(self, shards: beam.PCollection) -> dict[str, beam.PCollection]:
        fn = _FuseItemsFn(self._dtype)
        out = shards | "Fuse" >> beam.ParDo(fn, beam.pvalue.AsSingleton(self._space)).with_outputs(
            "dead", main="shards"
        )
        return {"shards": out.shards, "dead": out.dead}


@with_output_types(ShardTable, dead=pa.Table)
class _FuseItemsFn(beam.DoFn):
    def __init__(self, dtype: str) -> None:
        self._dtype = dtype
        self._space: Space | None = None

    def process(self, element: ShardTable, space: bytes) -> Iterable[object]:
        if self._space is None:  # one space a run, so one a worker
            self._space = Space.from_bytes(space)
        shard, table = element
        items, lost = fuse_table(table, self._space, ["title"], self._dtype)
        if lost.num_rows:
            every = np.ones(lost.num_rows, bool)
            detail = "none of its modalities can be used; see its other dead letters, if any"
            letters = dead_letters_of_rows(lost["item_id"], every, "catalog", Reason.NO_MODALITY, detail)
            yield beam.pvalue.TaggedOutput("dead", letters)
        advance("fuse", done=items.num_rows, dead=lost.num_rows)
        metadata = {"unisono.space_id": self._space.space_id, "unisono.dim": str(self._space.dim)}
        metadata |= scale_metadata(self._dtype, self._space.scale)
        items = items.replace_schema_metadata(metadata)
        yield shard, items.replace_schema_metadata(items.schema.metadata | comparable_metadata(self._space))
