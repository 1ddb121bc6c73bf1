"""Catalogue → embeddings/ → space/ → items/."""

from __future__ import annotations

from dataclasses import dataclass

import apache_beam as beam
import pyarrow as pa

from unisono.pipelines.graph.hidden import hidden_ids
from unisono.pipelines.graph.outputs import Outputs
from unisono.pipelines.job.items import ItemsPlan
from unisono.pipelines.job.plan import RunPlan
from unisono.pipelines.job.users import LogPlan
from unisono.transforms.base.columns import EMBEDDING
from unisono.transforms.base.modalities import BEHAVIOUR, JOINT
from unisono.transforms.base.progress import advance
from unisono.transforms.base.tables import ShardTable
from unisono.transforms.behaviour.behaviour import EmbedBehaviour, JoinBehaviour
from unisono.transforms.behaviour.sweeps import FactorItems
from unisono.transforms.encode.reuse import ReuseEmbeddings
from unisono.transforms.encode.stage import EncodeModality
from unisono.transforms.rank.learn import LearnRanking, PublishedHistory
from unisono.transforms.rank.ranking import VectorsOfItems
from unisono.transforms.rank.sample import LearnSpec
from unisono.transforms.read.catalog import ReadCatalog, ShardByItem
from unisono.transforms.space.fit.moments import MomentsCombineFn
from unisono.transforms.space.fit.step import SAMPLE_ROWS, FitSpace, SampleEmbeddings, SampleVectors, sample_fraction
from unisono.transforms.space.fuse import FuseItems
from unisono.transforms.store.runs import ReadShards, WriteShards
from unisono.transforms.users.popularity import CountLikes


def build(
    root: beam.Pipeline,
    run: RunPlan,
    items: ItemsPlan,
    events: beam.PCollection | None,
    log: LogPlan | None = None,
) -> Outputs:
    """Adds the steps from the catalogue to item vectors to a graph.

    Args:
        root: the graph.
        run: what every part of the run needs.
        items: the plan of this part.
        events: the events that count, by user shard, for `behaviour` and `ranking`. None if the run reads no log.
        log: the plan of the log. None if the run reads no log.
    """
    out = Outputs()
    embeddings = out.files["embeddings"] = _embed(root, run, items, out)
    job, store, run_id = run.job, run.store, run.run_id

    tables = embeddings | "ReadForMoments" >> ReadShards(store)
    to_fuse = embeddings | "ReadForItems" >> ReadShards(store)
    made = None
    if job.behaviour is not None and events is not None:
        published = run.base.part(BEHAVIOUR) if run.base else []
        embed = EmbedBehaviour(job.behaviour, store, run_id, next(iter(published), None))
        behaviour = events | "Behaviour" >> embed
        out.files["behaviour"], made = behaviour["files"], behaviour["encoder"]
        tables = tables | "BehaviourForMoments" >> JoinBehaviour(behaviour["table"])
        to_fuse = to_fuse | "BehaviourForItems" >> JoinBehaviour(behaviour["table"])
        out.counts.append(to_fuse | "CountBehaviour" >> beam.MapTuple(_count_behaviour))
    columns = tables | "EmbeddingColumns" >> beam.Map(embedding_columns).with_output_types(pa.Table)
    moments = columns | "Moments" >> beam.CombineGlobally(MomentsCombineFn(job.space.sample))
    fitted = moments | "FitSpace" >> _fit_space(root, run, items, columns, made)
    out.files["space"] = fitted["files"]

    popularity, ranks = None, job.ranks
    if job.has_ranking_vectors and events is not None and log is not None and not job.privacy.noise:
        count = CountLikes(ranks.liked_above or 0.0, ranks.popularity_half_life_days)
        popularity = events | "Popularity" >> count
        if ranks.learned:
            source = Learned(events, moments, popularity, items.catalog.rows, log.interactions.rows, log.shards)
            to_fuse = _learn_ranking(root, run, to_fuse, out, source)
    fused = to_fuse | "Fuse" >> FuseItems(fitted["space"], job.output.dtype)
    out.dead.append(fused["dead"])
    shards = fused["shards"]
    if job.has_ranking_vectors and not ranks.learned:
        shards = shards | "RankByVectors" >> VectorsOfItems(ranks, job.late_modalities, popularity)
    write = WriteShards(store, run_id, "items", items.shards, items.encoder_metadata)
    out.files["items"] = shards | "WriteItems" >> write
    out.counts.append(out.files["items"] | "CountItems" >> beam.Map(lambda r: ("items.rows", r.rows)))
    return out


def _fit_space(
    root: beam.Pipeline, run: RunPlan, items: ItemsPlan, tables: beam.PCollection, made: beam.PCollection | None
) -> FitSpace:
    """Makes the step that fits the space, with everything that it reads besides the moments."""
    job = run.job
    fraction = sample_fraction(job.space.method, items.catalog.rows)
    named = job.space.anchors if isinstance(job.space.anchors, tuple) else ()
    sample = tables | "Sample" >> SampleEmbeddings(fraction, named)
    settings = job.fit_settings(items.dim, items.encoder_ids)
    base = run.base
    spaces = [f for f in base.part("space") if f.path.endswith(".safetensors")] if base else []
    previous = None
    if base and spaces:
        records = root | "PublishedItems" >> beam.Create(base.part("items"))
        previous = records | "PublishedVectors" >> SampleVectors(run.store, fraction)
    published = spaces[0] if spaces else None
    return FitSpace(run.store, run.run_id, settings, sample, previous=previous, published=published, made=made)


@dataclass(frozen=True)
class Learned:
    """What ranking vectors are learned from, besides the embeddings.

    Attributes:
        events: the events that count, by user shard.
        moments: one element, the moments of the embeddings.
        popularity: one table, as `CountLikes` returns it.
        rows: the number of rows of the catalogue.
        log_rows: the number of rows of the log.
        shards: the number of user shards.
    """

    events: beam.PCollection
    moments: beam.PCollection
    popularity: beam.PCollection
    rows: int
    log_rows: int
    shards: int


def _learn_ranking(
    root: beam.Pipeline, run: RunPlan, tables: beam.PCollection, out: Outputs, source: Learned
) -> beam.PCollection:
    """Adds the steps that learn ranking vectors. Returns `(shard, embeddings)` with the ranking columns."""
    job, store, base = run.job, run.store, run.base
    spec = job.ranks
    factor = FactorItems(
        spec.factor_spec,
        spec.liked_above or 0.0,
        store,
        run.run_id,
        source.shards,
        log_rows=source.log_rows,
        published=base.part("factors") if base else (),
    )
    factors = out.files["factors"] = source.events | "Factors" >> factor
    published = None
    if base:
        records = root | "PublishedRanking" >> beam.Create(base.part("items"))
        fraction = min(1.0, SAMPLE_ROWS / max(source.rows, 1))
        published = records | "PublishedHistory" >> PublishedHistory(store, fraction)
    learned = tables | "LearnRanking" >> LearnRanking(
        LearnSpec(spec, job.profiles),
        store,
        run.run_id,
        factors=factors,
        moments=source.moments,
        popularity=source.popularity,
        events=source.events,
        hidden=hidden_ids(root, run.filter) if run.filter else None,
        published=published,
    )
    out.files["ranking"] = learned["files"]
    return learned["shards"]


def _embed(root: beam.Pipeline, run: RunPlan, items: ItemsPlan, out: Outputs) -> beam.PCollection:
    """Adds the steps that need encoders. They end with the files of embeddings/, which later runs reuse."""
    job = run.job
    read = root | "ReadCatalog" >> ReadCatalog(items.catalog)
    out.counts.append(read["rows"] | "CountRows" >> beam.Map(lambda n: ("catalog.rows", n)))
    sharded = read["items"] | "ShardByItem" >> ShardByItem(items.shards, items.catalog)
    out.dead += [read["dead"], sharded["dead"]]
    previous = run.base.part("embeddings") if run.base else []
    shards = sharded["shards"] | "ReuseEmbeddings" >> ReuseEmbeddings(
        run.store, run.run_id, items.shards, previous, items.encoder_ids
    )
    alone = [spec for spec, _ in items.encoders if spec.modality != JOINT]
    # The joint encoder runs first, since each of the others removes its raw column.
    for spec in [*(spec for spec, _ in items.encoders if spec.modality == JOINT), *alone]:
        source = None if spec.modality == "text" else job.media_source
        spent = set(items.catalog.spec.modalities) - {s.modality for s in alone} if spec.modality == JOINT else ()
        encode = EncodeModality(spec, source, job.output.embedding_dtype, sorted(spent))
        encoded = shards | f"Encode{spec.modality.capitalize()}" >> encode
        shards = encoded["shards"]
        out.dead.append(encoded["dead"])
        out.counts.append(encoded["counts"])
    write = WriteShards(run.store, run.run_id, "embeddings", items.shards, items.encoder_metadata)
    return shards | "WriteEmbeddings" >> write


def _count_behaviour(_: int, table: pa.Table) -> tuple[str, int]:
    column = table[BEHAVIOUR + EMBEDDING]
    return f"embeddings.{BEHAVIOUR}", len(column) - column.null_count


def embedding_columns(element: ShardTable) -> pa.Table:
    """Keeps the ids and the embeddings of a shard."""
    _, table = element
    advance("moments", done=table.num_rows)
    return table.select([c for c in table.schema.names if c == "item_id" or c.endswith(EMBEDDING)])
