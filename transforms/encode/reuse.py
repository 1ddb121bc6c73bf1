"""Lends an earlier run's embeddings to the encode stage, which uses those whose content and encoder are unchanged."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc

from unisono.transforms.base import files
from unisono.transforms.base.errors import JobError
from unisono.transforms.base.tables import ShardTable, same_id_kind, with_column
from unisono.transforms.store.runs import FileRecord, Store, read_shard, read_table, shard_path

_LOG = logging.getLogger(__name__)

HASH, EMBEDDING = "{}_previous_hash", "{}_previous_embedding"


def lend_embeddings(table: pa.Table, previous: pa.Table, encoder_ids: Mapping[str, str]) -> pa.Table:
    """Adds `<m>_previous_hash` and `<m>_previous_embedding` to each row that an earlier run knew.

    Args:
        table: item_id …, a shard.
        previous: item_id, <m>_hash, <m>_encoder, <m>_embedding: the same shard of an earlier run.
        encoder_ids: of this run, by modality. Embeddings of any other encoder are not lent.
    """
    if not same_id_kind(previous["item_id"].type, table["item_id"].type):
        return table
    rows = pc.index_in(table["item_id"], value_set=previous["item_id"].cast(table["item_id"].type).combine_chunks())
    known = previous.take(rows)
    for modality, encoder_id in encoder_ids.items():
        if f"{modality}_embedding" not in known.schema.names:
            continue
        same = pc.fill_null(pc.equal(known[f"{modality}_encoder"], encoder_id), False)
        content = pc.if_else(same, known[f"{modality}_hash"], pa.scalar(None, pa.string()))
        table = with_column(table, HASH.format(modality), content)
        table = with_column(table, EMBEDDING.format(modality), known[f"{modality}_embedding"])
    return table


class ReuseEmbeddings(beam.PTransform):
    """Looks for each shard's embeddings in this run (one that was cut short), then in the published one.

    Args:
        store, run_id, shards: of this run.
        previous: the published run's embeddings files; of another number of shards, they are not used.
        encoder_ids: of this run, by modality.
    """

    def __init__(
        self, store: Store, run_id: str, shards: int, previous: Iterable[FileRecord], encoder_ids: Mapping[str, str]
    ) -> None:
        super().__init__()
        records = list(previous)
        by_shard = {r.shard: r for r in records} if len(records) == shards else {}
        self._args = (store, run_id, shards, by_shard, dict(encoder_ids))

    def expand(self, shards: beam.PCollection) -> beam.PCollection:
        return shards | "Lend" >> beam.ParDo(_LendEmbeddingsFn(*self._args)).with_output_types(tuple[int, pa.Table])


class _LendEmbeddingsFn(beam.DoFn):
    def __init__(
        self, store: Store, run_id: str, shards: int, previous: dict[int, FileRecord], encoder_ids: dict[str, str]
    ) -> None:
        self._store, self._run_id, self._shards = store, run_id, shards
        self._previous, self._encoder_ids = previous, encoder_ids

    def process(self, element: ShardTable) -> Iterable[ShardTable]:
        shard, table = element
        previous = self._read(shard)
        yield shard, table if previous is None else lend_embeddings(table, previous, self._encoder_ids)

    def _read(self, shard: int) -> pa.Table | None:
        own = self._store.path(shard_path(self._run_id, "embeddings", shard, self._shards))
        if files.exists(own):  # whole, or it would not bear this name
            return read_shard(files.read_bytes(own))
        record = self._previous.get(shard)
        try:
            return read_table(self._store, record) if record else None
        except JobError as e:  # a run that was tidied away costs time, not the night
            _LOG.warning("no reuse for shard %d: %s", shard, e)
            return None
