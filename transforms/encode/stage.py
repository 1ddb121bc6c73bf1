"""The encode stage of a graph: one transform for each modality."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.typehints import with_output_types

from unisono.transforms.base.columns import EMBEDDING
from unisono.transforms.base.modalities import JOINT
from unisono.transforms.base.progress import advance
from unisono.transforms.base.tables import ShardTable, from_vector_column, to_vector_column, with_column
from unisono.transforms.encode.microbatch import MicroBatcher
from unisono.transforms.encode.prefetch import prefetch_pool
from unisono.transforms.encode.shard import encode_table, join_parts
from unisono.transforms.encoders.base import EncoderSpec
from unisono.transforms.encoders.registry import get_encoder
from unisono.transforms.media.fetch import MediaSource
from unisono.transforms.store.dead_letters import dead_letter_table


class EncodeModality(beam.PTransform):
    """Encodes one modality of `(shard, table)`, as `unisono.transforms.encode.shard.encode_table` does.

    Args:
        spec: the encoder. A joint encoder takes the raw columns that its option `parts` names. It leaves them in the
            table for the encoders after it, except those in `spent`.
        source: where media are fetched from. None means that the modality is text.
        dtype: the number format of stored embeddings, `float16` or `float32`.
        spent: raw columns that a joint encoder removes, because no later encoder needs them.

    Returns:
        A dict of PCollections: `shards` ((shard, pa.Table)), `dead` (pa.Table), `counts` ((name, int)).
    """

    def __init__(
        self, spec: EncoderSpec, source: MediaSource | None, dtype: str = "float32", spent: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self._args = (spec, source, dtype, tuple(spent))

    def expand(self, shards: beam.PCollection) -> dict[str, beam.PCollection]:
        fn = _EncodeModalityFn(*self._args)
        out = shards | "Encode" >> beam.ParDo(fn).with_outputs("dead", "counts", main="shards")
        return {"shards": out.shards, "dead": out.dead, "counts": out.counts}


@with_output_types(ShardTable, dead=pa.Table, counts=tuple[str, int])
class _EncodeModalityFn(beam.DoFn):
    def __init__(self, spec: EncoderSpec, source: MediaSource | None, dtype: str, spent: tuple[str, ...]) -> None:
        self._spec, self._source, self._dtype, self._spent = spec, source, dtype, spent

    def setup(self) -> None:
        self._batcher = MicroBatcher(get_encoder(self._spec))
        self._pool = prefetch_pool() if self._source else None

    def teardown(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def process(self, element: ShardTable) -> Iterable[object]:
        shard, table = element
        modality = self._spec.modality
        if modality == JOINT:
            table = join_parts(table, dict(self._spec.options)["parts"]).drop_columns(self._spent)
        stage = f"encode-{modality}"
        shown = 0

        def on_rows(done: int) -> None:
            nonlocal shown
            if done > shown:
                advance(stage, done=done - shown)
                shown = done

        result = encode_table(table, modality, self._batcher, source=self._source, pool=self._pool, on_rows=on_rows)
        if result.letters:
            advance(stage, dead=len(result.letters))
            yield beam.pvalue.TaggedOutput("dead", dead_letter_table(result.letters))
        name = modality + EMBEDDING
        if self._dtype == "float16":
            vectors, present = from_vector_column(result.table[name])
            result.table = with_column(result.table, name, to_vector_column(vectors.astype(np.float16), present))
        held = len(table) - result.table[name].null_count
        for key, count in (("embeddings", held), ("encoded", result.encoded), ("reused", result.reused)):
            yield beam.pvalue.TaggedOutput("counts", (f"{key}.{modality}", count))
        yield shard, result.table
