"""Finds the embeddings of earlier runs. The encode stage reuses them if neither content nor encoder has changed."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc

from unisono.transforms.base import files
from unisono.transforms.base.columns import EMBEDDING
from unisono.transforms.base.errors import JobError
from unisono.transforms.base.tables import ShardTable, same_id_kind, with_column
from unisono.transforms.encode.columns import ENCODER, HASH, PREVIOUS_EMBEDDING, PREVIOUS_HASH
from unisono.transforms.store.runs import FileRecord, Store, read_shard, read_table, shard_path

_LOG = logging.getLogger(__name__)


def add_previous(table: pa.Table, previous: pa.Table, encoder_ids: Mapping[str, str]) -> pa.Table:
    """Adds the columns `<m>_previous_hash` and `<m>_previous_embedding` to a shard.

    They are null for items that the earlier run does not have.

    Args:
        table: the shard, with item_id.
        previous: the same shard of an earlier run's embeddings/.
        encoder_ids: the encoder_ids of this run, by modality. Embeddings of other encoders are not added.
    """
    if not same_id_kind(previous["item_id"].type, table["item_id"].type):
        return table
    rows = pc.index_in(table["item_id"], value_set=previous["item_id"].cast(table["item_id"].type).combine_chunks())
    found = previous.take(rows)
    for modality, encoder_id in encoder_ids.items():
        if modality + EMBEDDING not in found.schema.names:
            continue
        same = pc.fill_null(pc.equal(found[modality + ENCODER], encoder_id), False)
        content = pc.if_else(same, found[modality + HASH], pa.scalar(None, pa.string()))
        table = with_column(table, modality + PREVIOUS_HASH, content)
        table = with_column(table, modality + PREVIOUS_EMBEDDING, found[modality + EMBEDDING])
    return table


class ReuseEmbeddings(beam.PTransform):
    """Adds to each `(shard, table)` the embeddings that an earlier run made of its items, as `add_previous` does.

    If this run was interrupted and had already written the shard, its own embeddings are added. Otherwise those of the
    published run are added.

    Args:
        store: where this run and the published run are.
        run_id: the id of this run.
        shards: the number of shards of this run.
        previous: the embeddings/ files of the published run. They are not used if their number differs from `shards`.
        encoder_ids: the encoder_ids of this run, by modality.
    """

    def __init__(
        self, store: Store, run_id: str, shards: int, previous: Iterable[FileRecord], encoder_ids: Mapping[str, str]
    ) -> None:
        super().__init__()
        records = list(previous)
        by_shard = {r.shard: r for r in records} if len(records) == shards else {}
        self._args = (store, run_id, shards, by_shard, dict(encoder_ids))

    def expand(self, shards: beam.PCollection) -> beam.PCollection:
        fn = _ReuseEmbeddingsFn(*self._args)
        return shards | "AddPrevious" >> beam.ParDo(fn).with_output_types(tuple[int, pa.Table])


class _ReuseEmbeddingsFn(beam.DoFn):
    def __init__(
        self, store: Store, run_id: str, shards: int, previous: dict[int, FileRecord], encoder_ids: dict[str, str]
    ) -> None:
        self._store, self._run_id, self._shards = store, run_id, shards
        self._previous, self._encoder_ids = previous, encoder_ids

    def process(self, element: ShardTable) -> Iterable[ShardTable]:
        shard, table = element
        previous = self._read(shard)
        yield shard, table if previous is None else add_previous(table, previous, self._encoder_ids)

    def _read(self, shard: int) -> pa.Table | None:
        own = self._store.path(shard_path(self._run_id, "embeddings", shard, self._shards))
        if files.exists(own):  # a file gets this name only when it is complete
            return read_shard(files.read_bytes(own))
        record = self._previous.get(shard)
        try:
            return read_table(self._store, record) if record else None
        except JobError as e:  # the published run was deleted, so everything is encoded again
            _LOG.warning("no reuse for shard %d: %s", shard, e)
            return None
