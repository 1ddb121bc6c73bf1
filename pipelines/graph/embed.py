"""Catalogue → embeddings/ → space/ → items/."""

from __future__ import annotations

import apache_beam as beam
import pyarrow as pa

from unisono.pipelines.graph.outputs import Outputs
from unisono.pipelines.job.plan import Plan
from unisono.transforms.base.columns import EMBEDDING
from unisono.transforms.base.progress import advance
from unisono.transforms.base.tables import ShardTable
from unisono.transforms.behaviour.behaviour import BEHAVIOUR, EmbedBehaviour, JoinBehaviour
from unisono.transforms.encode.reuse import ReuseEmbeddings
from unisono.transforms.encode.stage import EncodeModality
from unisono.transforms.encoders.base import JOINT
from unisono.transforms.read.catalog import ReadCatalog, ShardByItem
from unisono.transforms.space.fit.methods import needs_sample
from unisono.transforms.space.fit.moments import MomentsCombineFn
from unisono.transforms.space.fit.step import SAMPLE_ROWS, TRAINING_ROWS, FitSpace, SampleEmbeddings, SampleVectors
from unisono.transforms.space.fuse import FuseItems
from unisono.transforms.store.runs import ReadShards, WriteShards


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
    made = None
    if job.behaviour_spec is not None and events is not None:
        published = plan.base.part(BEHAVIOUR) if plan.base else []
        embed = EmbedBehaviour(job.behaviour_spec, store, run_id, next(iter(published), None))
        behaviour = events | "Behaviour" >> embed
        out.files["behaviour"], made = behaviour["files"], behaviour["encoder"]
        tables = tables | "BehaviourForMoments" >> JoinBehaviour(behaviour["table"])
        to_fuse = to_fuse | "BehaviourForItems" >> JoinBehaviour(behaviour["table"])
        out.counts.append(to_fuse | "CountBehaviour" >> beam.MapTuple(_count_behaviour))
    columns = tables | "EmbeddingColumns" >> beam.Map(_embedding_columns).with_output_types(pa.Table)
    moments = columns | "Moments" >> beam.CombineGlobally(MomentsCombineFn(job.space.sample))
    fitted = moments | "FitSpace" >> _fit_space(root, plan, columns, made)
    out.files["space"] = fitted["files"]

    fused = to_fuse | "Fuse" >> FuseItems(fitted["space"], job.output.dtype)
    out.dead.append(fused["dead"])
    write = WriteShards(store, run_id, "items", plan.shards, plan.encoder_metadata)
    out.files["items"] = fused["shards"] | "WriteItems" >> write
    out.counts.append(out.files["items"] | "CountItems" >> beam.Map(lambda r: ("items.rows", r.rows)))
    return out


def _fit_space(
    root: beam.Pipeline, plan: Plan, tables: beam.PCollection, made: beam.PCollection | None
) -> FitSpace:
    """The step that fits the space, with what it looks at besides the moments."""
    assert plan.catalog is not None
    job, rows = plan.job, max(plan.catalog.rows, 1)
    wanted = TRAINING_ROWS if needs_sample(job.space.method) else SAMPLE_ROWS
    fraction = min(1.0, wanted / rows)
    named = job.space.anchors if isinstance(job.space.anchors, list) else ()
    sample = tables | "Sample" >> SampleEmbeddings(fraction, named)
    settings = job.fit_settings(plan.dim, plan.encoder_ids)
    base = plan.base
    spaces = [f for f in base.part("space") if f.path.endswith(".safetensors")] if base else []
    previous = None
    if base and spaces:
        records = root | "PublishedItems" >> beam.Create(base.part("items"))
        previous = records | "PublishedVectors" >> SampleVectors(plan.store, fraction)
    return FitSpace(plan.store, plan.run_id, settings, sample, previous, spaces[0] if spaces else None, made)


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
    alone = [spec for spec, _ in plan.encoders if spec.modality != JOINT]
    # The joint encoder first: each of the others takes its raw column away.
    for spec in [*(spec for spec, _ in plan.encoders if spec.modality == JOINT), *alone]:
        source = None if spec.modality == "text" else job.media_source
        spent = set(job.catalog_spec.modalities) - {s.modality for s in alone} if spec.modality == JOINT else ()
        encode = EncodeModality(spec, source, job.output.embedding_dtype, sorted(spent))
        encoded = shards | f"Encode{spec.modality.capitalize()}" >> encode
        shards = encoded["shards"]
        out.dead.append(encoded["dead"])
        out.counts.append(encoded["counts"])
    metadata = plan.encoder_metadata
    return shards | "WriteEmbeddings" >> WriteShards(plan.store, plan.run_id, "embeddings", plan.shards, metadata)


def _count_behaviour(_: int, table: pa.Table) -> tuple[str, int]:
    column = table[BEHAVIOUR + EMBEDDING]
    return f"embeddings.{BEHAVIOUR}", len(column) - column.null_count


def _embedding_columns(element: ShardTable) -> pa.Table:
    _, table = element
    advance("moments", done=table.num_rows)
    return table.select([c for c in table.schema.names if c == "item_id" or c.endswith("_embedding")])


