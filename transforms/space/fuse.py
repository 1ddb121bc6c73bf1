"""Fuses the vectors of an item's modalities into one item vector, and builds the table of items/."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.typehints import with_output_types

from unisono.transforms.base.columns import RANKING, RANKING_COLUMNS, embeddings_of, row_lengths
from unisono.transforms.base.errors import JobError, Reason
from unisono.transforms.base.progress import advance
from unisono.transforms.base.tables import ShardTable, to_vector_column
from unisono.transforms.space.space import Aligned, Space, comparable_metadata
from unisono.transforms.store.dead_letters import dead_letters_of_rows
from unisono.transforms.store.small_vectors import encode_vectors, scale_metadata

_BLOCK_ROWS = 1024
_CANCELLED = 1e-6  # a sum shorter than this fraction of its total weight has no direction


@dataclass(frozen=True, eq=False)
class Fused:
    """Item vectors, and the weight of each modality in them.

    Attributes:
        vectors: float32 [n, dim], unit rows. Rows are zero where `ok` is False.
        part_weights: the weight of each modality, float32 [n]. An item's vector is the sum of its modalities' vectors
            times these weights. A weight is 0 where the item's vector does not use the modality.
        ok: bool [n]. False where no modality has a weight, or where the weighted vectors cancel.
    """

    vectors: np.ndarray
    part_weights: dict[str, np.ndarray]
    ok: np.ndarray


def fuse(vectors: Mapping[str, np.ndarray], weights: Mapping[str, np.ndarray]) -> Fused:
    """Adds up the weighted vectors of each item's modalities and scales the sum to unit length.

    Args:
        vectors: for each modality its vectors in the joint space, float32 [n, dim], unit rows. Rows of weight 0 may
            hold anything.
        weights: the weight of each modality, float64 [n], ≥ 0. 0 means that the item's vector does not use the
            modality.

    Guarantees: the bits of a row depend on that row alone, and not on the order in which modalities are passed.

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
        norm = row_lengths(_weighted_sum(blocks, given))
        total = given.sum(0)
        ok[rows] = (norm > _CANCELLED * total) & (total > 0)
        split = np.where(ok[rows], given / np.where(ok[rows], norm, 1.0), 0.0).astype(np.float32)
        for m, part in zip(names, split, strict=True):
            parts[m][rows] = part
        # Computed from the rounded weights: the stored parts then add up to the stored vector exactly.
        out[rows] = _weighted_sum(blocks, split.astype(np.float64))
    return Fused(out, parts, ok)


def item_vectors(space: Space, table: pa.Table) -> tuple[Fused, Aligned]:
    """Maps the `<m>_embedding` columns of a table (null: missing) into the space and fuses them."""
    batch = {m: pair for m, pair in embeddings_of(table).items() if m in space.modalities}
    none = np.zeros(table.num_rows, bool)
    for m in space.modalities:
        batch.setdefault(m, (np.zeros((table.num_rows, space.projections[m].dim_in), np.float32), none))
    aligned = space.align(batch)
    return fuse(aligned.vectors, aligned.weights), aligned


def items_schema(
    id_type: pa.DataType,
    dim: int,
    modalities: Sequence[str],
    dtype: str = "float32",
    imputes: bool = False,
    carried: Sequence[pa.Field] = (),
) -> pa.Schema:
    """Returns the schema of items/.

    The columns, in this order:
    `item_id`: `id_type`.
    The carried columns, such as `title`: as in the catalogue.
    `vector`: fixed_size_list<dtype>[dim], not null: the item vector.
    `modalities`: list<string>: the item's own modalities that the vector uses.
    `imputed`: list<string>: the modalities that the vector uses and that were predicted from the item's other
    modalities. Only if the space imputes.
    Then, for each modality of the space in ascending order:
    `<m>_vector`: fixed_size_list<dtype>[dim]: the modality's own unit vector. Null where the modality is neither
    present nor imputed.
    `<m>_weight`: float32: vector = Σ_m `<m>_weight` · `<m>_vector`, exact in float32 where the vectors are stored as
    float32. Null where `<m>_vector` is null.

    Args:
        id_type: the type of the catalogue's ids, strings or integers.
        dim: the number of axes of the space.
        modalities: the modalities of the space.
        dtype: float32, float16 or int8. For int8 the file's metadata hold the scale of each axis.
        imputes: whether the space predicts missing modalities.
        carried: columns that are copied from the catalogue.
    """
    vectors = pa.list_(pa.from_numpy_dtype(np.dtype(dtype)), dim)
    fields = [pa.field("item_id", id_type), *carried, pa.field("vector", vectors, nullable=False)]
    fields += [pa.field(name, pa.list_(pa.string())) for name in ("modalities", *(["imputed"] if imputes else []))]
    for m in sorted(modalities):
        fields += [pa.field(f"{m}_vector", vectors), pa.field(f"{m}_weight", pa.float32())]
    return pa.schema(fields)


def fuse_table(
    table: pa.Table, space: Space, carry: Sequence[str] = (), dtype: str = "float32"
) -> tuple[pa.Table, pa.Table]:
    """Turns a table of embeddings into a table of item vectors. Rows keep their order.

    Args:
        table: `item_id`, `<m>_embedding` (null: missing), and the columns of `carry`. Ranking columns, if there are
            any, come last in the result.
        space: the joint space.
        carry: names of columns to copy. A name that the table does not have is ignored.
        dtype: how vectors are stored, see `small_vectors.encode_vectors`.

    Returns:
        The items that have a vector, see `items_schema`; and `item_id` and the carried columns of the rows that have
        none.
    """
    fused, aligned = item_vectors(space, table)
    kept = table.select(["item_id", *(c for c in carry if c in table.column_names)])
    names, dim = space.modalities, space.dim
    carried = [pa.field(c, kept[c].type) for c in kept.column_names[1:]]
    schema = items_schema(
        kept["item_id"].type, dim, names, dtype=dtype, imputes=space.imputer is not None, carried=carried
    )
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
    items = pa.table(columns, schema=schema)
    for c in RANKING_COLUMNS:
        if c in table.column_names:
            items = items.append_column(table.schema.field(c), table[c])
    if fused.ok.all():
        return items, kept.slice(0, 0)
    return items.filter(pa.array(fused.ok)), kept.filter(pa.array(~fused.ok))


def _where(vectors: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Casts vectors to float64 and sets the rows that are not present to zero."""
    out = vectors.astype(np.float64)
    out[~present] = 0.0
    return out


def _weighted_sum(blocks: Mapping[str, np.ndarray], weights: np.ndarray) -> np.ndarray:
    """Computes Σ_m weights[m] · blocks[m] in the order of `blocks`: float64 [n, dim]."""
    return np.sum([w[:, None] * block for w, block in zip(weights, blocks.values(), strict=True)], axis=0)


def _name_lists(used: np.ndarray, names: Sequence[str]) -> pa.Array:
    """Lists for each row of bool [n, len(names)] the names where it is True: list<string> [n]."""
    ends = np.cumsum(used.sum(1), dtype=np.int32)
    values = pa.array(names, pa.string()).take(pa.array(np.nonzero(used)[1]))
    return pa.ListArray.from_arrays(pa.array(np.concatenate([np.zeros(1, np.int32), ends])), values)


class FuseItems(beam.PTransform):
    """Turns `(shard, embeddings)` into `(shard, items)`.

    Args:
        space: a PCollection of one element, the bytes of the space.
        dtype: how vectors are stored. int8 needs a space that knows its `scale`.

    Returns:
        A dict of PCollections. `shards`: `(shard, items)`, see `items_schema`; the schema's metadata name the space.
        `dead`: dead letters of stage `catalog`, one for each row that has no vector.
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
        if self._space is None:  # a run has one space
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
        if RANKING in (table.schema.metadata or {}):
            metadata[RANKING.decode()] = table.schema.metadata[RANKING].decode()
        items = items.replace_schema_metadata(metadata)
        yield shard, items.replace_schema_metadata(items.schema.metadata | comparable_metadata(self._space))
