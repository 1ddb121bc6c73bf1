"""Catalogue → embeddings/ → space/ → items/."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import apache_beam as beam
import pyarrow as pa

from pipelines.plan import Plan
from transforms.behaviour import EmbedBehaviour, JoinBehaviour
from transforms.catalog import ReadCatalog, ShardByItem
from transforms.encode import EncodeModality
from transforms.fit_space import FitSpace
from transforms.fusion import FuseItems
from transforms.moments import MomentsCombineFn
from transforms.progress import advance
from transforms.reuse import ReuseEmbeddings
from transforms.store import FileRecord, Store, WriteShards, read_table
from transforms.tables import ShardTable


@dataclass
class Outputs:
    """What a pipeline leaves for the next one and for the publish.

    Attributes:
        files: PCollections of FileRecord, by part.
        counts: PCollections of (name, int).
        dead: PCollections of dead-letter tables.
    """

    files: dict[str, beam.PCollection] = field(default_factory=dict)
    counts: list[beam.PCollection] = field(default_factory=list)
    dead: list[beam.PCollection] = field(default_factory=list)


def build(root: beam.Pipeline, plan: Plan, events: beam.PCollection | None = None) -> Outputs:
    """Adds the steps from the catalogue to item vectors to a graph.

    Args:
        root: the graph.
        plan: checked.
        events: by user shard, where behaviour is a modality.
    """
    assert plan.catalog is not None
    out = Outputs()
    embeddings = out.files["embeddings"] = _embed(root, plan, out)
    job, store, run_id = plan.job, plan.store, plan.run_id

    tables = embeddings | "ReadForMoments" >> ReadShards(store)
    to_fuse = embeddings | "ReadForItems" >> ReadShards(store)
    if job.behaviour_spec is not None and events is not None:
        behaviour = events | "Behaviour" >> EmbedBehaviour(job.behaviour_spec, store, run_id)
        out.files["behaviour"] = behaviour["files"]
        tables = tables | "BehaviourForMoments" >> JoinBehaviour(behaviour["table"])
        to_fuse = to_fuse | "BehaviourForItems" >> JoinBehaviour(behaviour["table"])
    moments = (
        tables
        | "EmbeddingColumns" >> beam.Map(_embedding_columns).with_output_types(pa.Table)
        | "Moments" >> beam.CombineGlobally(MomentsCombineFn(job.space.sample))
    )
    fitted = moments | "FitSpace" >> FitSpace(
        store, run_id, job.space.method, plan.dim, job.space.regularization, plan.encoder_ids
    )
    out.files["space"] = fitted["files"]

    fused = to_fuse | "Fuse" >> FuseItems(fitted["space"], dict(job.fusion.weights.items()))
    out.dead.append(fused["dead"])
    out.files["items"] = fused["shards"] | "WriteItems" >> WriteShards(store, run_id, "items", plan.shards, {})
    out.counts.append(out.files["items"] | "CountItems" >> beam.Map(lambda r: ("items.rows", r.rows)))
    return out


def _embed(root: beam.Pipeline, plan: Plan, out: Outputs) -> beam.PCollection:
    """The part that needs the encoders: it ends in embeddings/, which later runs reuse."""
    assert plan.catalog is not None
    job = plan.job
    read = root | "ReadCatalog" >> ReadCatalog(plan.catalog)
    out.counts.append(read["rows"] | "CountRows" >> beam.Map(lambda n: ("catalog.rows", n)))
    sharded = read["items"] | "ShardByItem" >> ShardByItem(plan.shards, plan.catalog)
    out.dead += [read["dead"], sharded["dead"]]
    previous = plan.base.part("embeddings") if plan.base else []
    shards = sharded["shards"] | "ReuseEmbeddings" >> ReuseEmbeddings(
        plan.store, plan.run_id, plan.shards, previous, plan.encoder_ids
    )
    for spec, _ in plan.encoders:
        source = None if spec.modality == "text" else job.media_source
        encode = EncodeModality(spec, source, job.output.embedding_dtype)
        encoded = shards | f"Encode{spec.modality.capitalize()}" >> encode
        shards = encoded["shards"]
        out.dead.append(encoded["dead"])
        out.counts.append(encoded["counts"])
    metadata = {f"encoder_id.{m}": e for m, e in plan.encoder_ids.items()}
    return shards | "WriteEmbeddings" >> WriteShards(plan.store, plan.run_id, "embeddings", plan.shards, metadata)


def _embedding_columns(element: ShardTable) -> pa.Table:
    _, table = element
    advance("moments", done=table.num_rows)
    return table.select([c for c in table.schema.names if c == "item_id" or c.endswith("_embedding")])


class ReadShards(beam.PTransform):
    """Reads shard files back from the store, spread anew over the workers."""

    def __init__(self, store: Store) -> None:
        super().__init__()
        self._store = store

    def expand(self, records: beam.PCollection) -> beam.PCollection:
        store = self._store

        def read(record: FileRecord) -> Iterable[ShardTable]:
            yield record.shard, read_table(store, record)

        typed = tuple[int, pa.Table]
        return records | "Spread" >> beam.Reshuffle() | "Read" >> beam.FlatMap(read).with_output_types(typed)
