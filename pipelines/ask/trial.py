"""Runs a job in memory on a part of the log, from embeddings and events to lists, with the steps of the graph."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from unisono.pipelines.job.job import Job
from unisono.pipelines.job.users import CLOCK_SLACK_S
from unisono.transforms.base.columns import EMBEDDING, RANKING_VECTOR, embeddings_of, in_sample
from unisono.transforms.base.errors import JobError
from unisono.transforms.base.modalities import BEHAVIOUR
from unisono.transforms.base.tables import concat_tables, one_chunk, sort_by_id
from unisono.transforms.behaviour.behaviour import add_pairs, count_pairs, embed_pairs, join_behaviour
from unisono.transforms.behaviour.factors import fit_factors
from unisono.transforms.behaviour.likes import Likes, liked_pairs
from unisono.transforms.behaviour.sweeps import factor_table
from unisono.transforms.measure.rank_metrics import Ranked
from unisono.transforms.privacy.forget import check_forget
from unisono.transforms.rank.content import ContentScale
from unisono.transforms.rank.item_vectors import Popularity, vector_columns
from unisono.transforms.rank.learn import ITEM_FACTOR, LEFT_FACTOR, FactorTable, learn_ranking
from unisono.transforms.rank.lists import diversify
from unisono.transforms.rank.ranking import distinct_pairs, make_shelf, rank_items
from unisono.transforms.rank.sample import LearnSpec
from unisono.transforms.rank.user_vectors import add_ranking_vectors, kind_of_items, read_ranking, taste_spec
from unisono.transforms.read.interactions import check_interactions, clean_rows
from unisono.transforms.read.usable import usable_events
from unisono.transforms.space.fit.methods import possible_axes
from unisono.transforms.space.fit.moments import Moments
from unisono.transforms.space.fit.run import fit_run
from unisono.transforms.space.fit.step import sample_fraction
from unisono.transforms.space.fuse import fuse_table
from unisono.transforms.store.item_matrix import ItemMatrix
from unisono.transforms.store.parquet import open_parquet, read_rows
from unisono.transforms.store.runs import Store, read_table, table_bytes
from unisono.transforms.store.small_vectors import scale_metadata
from unisono.transforms.users.popularity import add_likes, count_items, count_likes
from unisono.transforms.users.profiles import Surroundings, build_profiles, popular_direction
from unisono.transforms.users.tastes import Tastes, read_tastes


@dataclass(frozen=True, eq=False)
class Items:
    """The item vectors of a job.

    Attributes:
        matrix: the fused vectors.
        modalities: the vectors of each modality by name, float32 [items, dim]. A missing modality is a row of zeros.
        place: int64 [items], the row in the table of embeddings of each row of the matrix.
        ranking: the matrix of the ranking vectors, with the same rows.
        tastes: what tastes are made from. None means that ranking vectors are not learned.
        about: what the items say of their ranking vectors.
    """

    matrix: ItemMatrix
    modalities: dict[str, np.ndarray]
    place: np.ndarray
    ranking: ItemMatrix
    tastes: Tastes | None
    about: dict[str, Any]


def read_embeddings(store: Store) -> pa.Table:
    """Reads the embeddings of all items of the published run.

    Returns:
        `item_id` and the `<m>_embedding` columns, in ascending order of the ids.

    Raises:
        JobError: the published run has no embeddings.
    """
    records = store.published().part("embeddings")
    if not records:
        raise JobError(f"store: the published run in {store.root} has no embeddings/; run `unisono embed` first")
    tables = [read_table(store, r) for r in records]
    kept = [t.select(["item_id", *(c for c in t.column_names if c.endswith(EMBEDDING))]) for t in tables]
    return sort_by_id(concat_tables(kept))


def read_events(job: Job, path: str | None = None) -> tuple[pa.Table, int]:
    """Reads a whole log as a run would read it now: without forgotten people, and without events in the future.

    User ids are not replaced by pseudonyms, because this writes nothing.

    Args:
        job: the job.
        path: a file or glob of logs whose columns are those of the job's log. None means the job's log.

    Returns:
        The events, as `clean_interactions` returns them, and the number of rows that could not be used.

    Raises:
        JobError: the job has no log, or the log cannot be read.
    """
    spec = job.log if path is None else replace(job.log, path=path)
    log = check_interactions(spec, latest_us=int((time.time() + CLOCK_SLACK_S) * 1e6))
    forget = job.privacy.forget
    gone = check_forget(forget, log.user_type, "interactions.user", None).load() if forget else None
    cleaned = [clean_rows(raw, log, gone) for raw in read_rows(log.files, log.spec.columns)]
    return concat_tables([c.events for c in cleaned]), sum(c.dead.num_rows for c in cleaned)


def without(job: Job, dropped: Collection[str]) -> Job:
    """Copies a job without some modalities and without the settings that name them."""

    def keep(weights: Any) -> Any:
        return {m: w for m, w in weights.items() if m not in dropped} if isinstance(weights, dict) else weights

    space, fusion, ranking = job.space, job.fusion, job.ranking
    if space.hub in dropped:
        space = replace(space, hub=None)
    fusion = replace(fusion, weights=keep(fusion.weights))
    if ranking is not None:
        ranking = replace(ranking, weights=keep(ranking.weights))
    encoders = replace(job.encoders, **{m: None for m in dropped if m != BEHAVIOUR})
    behaviour = None if BEHAVIOUR in dropped else job.behaviour
    parts = {"space": space, "fusion": fusion, "ranking": ranking, "encoders": encoders, "behaviour": behaviour}
    return job.model_copy(update=parts)


def build_items(job: Job, embeddings: pa.Table, train: pa.Table, hidden: pa.Table | None = None) -> Items:
    """Makes the item vectors and ranking vectors of a job, with the steps of the graph.

    Args:
        job: the job.
        embeddings: `item_id` and `<m>_embedding`, in ascending order of the ids. Modalities that the job does not have
            are not used.
        train: the events that may be seen. Robots and repeats are left out here.
        hidden: `item_id` of the items that must not be recommended. None means that there are none.
    """
    train = usable_events(train, job.usable).events
    table = embeddings.select(["item_id", *(m + EMBEDDING for m in job.modalities)])
    if (spec := job.behaviour) is not None:
        pairs = add_pairs([count_pairs(train, spec.recent_items, spec.liked_above)])
        table = join_behaviour(table, embed_pairs(pairs, spec))
    fraction = sample_fraction(job.space.method, table.num_rows)
    sample = table.filter(pa.array(in_sample(table["item_id"], fraction)))
    counted = table.filter(pa.array(in_sample(table["item_id"], job.space.sample)))
    dims = {m: x.shape[1] for m, (x, _) in embeddings_of(table.slice(0, 1)).items()}
    settings = job.fit_settings(possible_axes(job.space, dims), {})
    moments = Moments.zero().add(embeddings_of(counted))
    space, _ = fit_run(moments, sample, settings)
    counts = None
    if not job.privacy.noise:
        at = job.ranks
        age = at.popularity_half_life_days
        counts = add_likes([count_likes(train, at.liked_above or 0.0, age)], age)
    popularity = Popularity.of(counts)
    # An item matrix is built from files. It stays mapped into memory after the files are deleted.
    with tempfile.TemporaryDirectory(prefix="unisono-trial-") as home:
        if job.ranks.learned:
            shut = None if hidden is None else one_chunk(hidden["item_id"])
            factors = _factor_table(job, train, home)
            learn = LearnSpec(job.ranks, job.profiles)
            table = learn_ranking(
                table, factors, popularity, train, scale=ContentScale.of(moments), spec=learn, hidden=shut
            )
        fused, _ = fuse_table(table, space, dtype=job.output.dtype)
        fused = fused.replace_schema_metadata(table.schema.metadata)
        if not job.ranks.learned:
            late = job.late_modalities
            fused = vector_columns(fused, job.ranks, late, popularity, kind_of_items(job.ranks, late))
        path = _write(home, "items", fused, scale_metadata(job.output.dtype, space.scale))
        return _open_items(job, path, home, table)


def _open_items(job: Job, path: str, home: str, table: pa.Table) -> Items:
    matrix = ItemMatrix.open([path], cache_dir=home)
    with open_parquet(path) as f:
        schema = f.schema_arrow
    modalities = {
        m: np.asarray(ItemMatrix.open([path], cache_dir=home, vector_column=f"{m}_vector").vectors)
        for m in job.space_modalities
        if f"{m}_vector" in schema.names
    }
    ids = matrix.ids(np.arange(len(matrix)))
    place = pc.index_in(ids.cast(table["item_id"].type), value_set=one_chunk(table["item_id"]))
    at = job.profiles
    tastes = None
    if job.ranks.learned:
        spec = taste_spec(job.ranks, half_life_days=at.half_life_days, min_events=at.min_events)
        tastes = read_tastes([path], spec, cache_dir=home)
    ranking = ItemMatrix.open([path], cache_dir=home, vector_column=RANKING_VECTOR)
    places = place.to_numpy().astype(np.int64)
    return Items(matrix, modalities, places, ranking, tastes, read_ranking(schema))


def _factor_table(job: Job, train: pa.Table, home: str) -> FactorTable:
    likes = Likes.of(liked_pairs(train, job.ranks.liked_above or 0.0))
    found = fit_factors(likes, job.ranks.factor_spec)
    table = factor_table(found.item_ids, found.users, found.item_factors, found.left_factors)
    path = _write(home, "factors", table, {})
    items, left = (ItemMatrix.open([path], cache_dir=home, vector_column=c) for c in (ITEM_FACTOR, LEFT_FACTOR))
    return FactorTable(items, np.asarray(items.vectors), np.asarray(left.vectors))


def _write(home: str, name: str, table: pa.Table, metadata: Mapping[str, str]) -> str:
    path = os.path.join(home, f"{name}.parquet")
    with open(path, "wb") as f:
        f.write(table_bytes(table, metadata))
    return path


def build_users(job: Job, items: Items, train: pa.Table, who: pa.Array) -> pa.Table:
    """Makes the profiles of some users.

    Args:
        job: the job.
        items: the item vectors of the job.
        train: the events that may be seen. The prior of cold users is made from everybody's.
        who: the ids of the users.
    """
    prior = popular_direction(count_items(usable_events(train, job.usable).events), items.matrix)
    around = Surroundings(
        items.matrix, items.modalities, prior, with_vectors=bool(job.late_modalities), tastes=_tastes_of(job, items)
    )
    theirs = train.filter(pc.is_in(train["user_id"], value_set=who))
    return add_ranking_vectors(build_profiles(theirs, around, job.profiles).users, job.ranks, items.about)


def _tastes_of(job: Job, items: Items) -> Tastes | None:
    """Returns what tastes are made from, with the settings of this job: other jobs may share the items."""
    if items.tastes is None:
        return None
    at = job.profiles
    spec = taste_spec(job.ranks, half_life_days=at.half_life_days, min_events=at.min_events)
    return replace(items.tastes, spec=spec.after(bool(items.about["ageing"])))


def rank_users_items(
    job: Job,
    items: Items,
    users: pa.Table,
    train: pa.Table,
    *,
    who: pa.Array,
    width: int,
    hidden: pa.Table | None = None,
) -> Ranked:
    """Ranks items for users as `unisono recommend` does, but without `ranking.filter`.

    Args:
        job: the job.
        items: the item vectors of the job.
        users: the profiles, as `build_users` returns them.
        train: the events that may be seen.
        who: the ids of the users. A user without a profile has an empty list.
        width: the length of a list.
        hidden: `item_id` of the items that must not be recommended.

    Returns:
        A row for each of `who`. Items are named by their row in the table of embeddings.
    """
    spec = replace(job.ranks, k=width, slices=1)
    shelf = make_shelf(items.ranking, [] if hidden is None else [hidden])
    seen = distinct_pairs(train.filter(pc.is_in(train["user_id"], value_set=who))) if spec.exclude_seen else None
    ranked = rank_items(users, seen, shelf, spec)
    if spec.diversity:
        ranked = diversify(ranked, items.matrix, spec.k, spec.diversity)
    return _as_places(ranked, items, who, width)


def _as_places(ranked: pa.Table, items: Items, who: pa.Array, width: int) -> Ranked:
    user = pc.index_in(one_chunk(ranked["user_id"]), value_set=who).to_numpy().astype(np.int64)
    counts = pc.list_value_length(ranked["item_ids"]).to_numpy().astype(np.int64)
    ends = np.cumsum(counts)
    row = np.repeat(user, counts)
    column = np.arange(len(row)) - np.repeat(ends - counts, counts)
    found = np.full((len(who), width), -1, np.int64)
    scores = np.full((len(who), width), -np.inf, np.float32)
    rows = items.matrix.lookup(one_chunk(ranked["item_ids"]).flatten())
    found[row, column] = items.place[rows]
    scores[row, column] = one_chunk(ranked["scores"]).flatten().to_numpy()
    return Ranked(found, scores)
