"""Recommendation lists: each user's best items by the inner product of ranking vectors, but no hidden or seen ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.typehints import with_output_types

from unisono.transforms.base.columns import RANKING_VECTOR
from unisono.transforms.base.extras import is_installed
from unisono.transforms.base.progress import advance
from unisono.transforms.base.tables import ShardTable, from_vector_column, one_chunk
from unisono.transforms.rank.item_vectors import Popularity, recount, vector_columns
from unisono.transforms.rank.lists import diversify, list_table, merge_ranked
from unisono.transforms.rank.spec import RankingSpec
from unisono.transforms.rank.topk import top_items
from unisono.transforms.rank.user_vectors import add_ranking_vectors, kind_of_items, read_ranking, reweigh
from unisono.transforms.store.item_matrix import HasPath, ItemMatrix, per_process

# --- one shard of users against a slice of the items -------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Shelf:
    """The items that are ranked.

    Attributes:
        items: the matrix of their ranking vectors, which finds ids and rows.
        hidden: bool [items], True for an item that must not be recommended. None means that there are none.
    """

    items: ItemMatrix
    hidden: np.ndarray | None = None


def make_shelf(items: ItemMatrix, hidden: Sequence[pa.Table]) -> Shelf:
    """Prepares items for ranking.

    Args:
        items: the matrix of the items' ranking vectors.
        hidden: tables of `item_id`, the items that must not be recommended.
    """
    if not hidden:
        return Shelf(items)
    shut = np.zeros(len(items), bool)
    for table in hidden:
        rows = items.lookup(table["item_id"])
        shut[rows[rows >= 0]] = True
    return Shelf(items, shut)


def rank_items(users: pa.Table, seen: pa.Table | None, shelf: Shelf, spec: RankingSpec) -> pa.Table:
    """Finds each user's best items on a shelf.

    Args:
        users: `user_id` and `ranking_vector`, a row for each user.
        seen: user_id, item_id: pairs that must not be recommended. None means that there are none.
        shelf: the items.
        spec: the settings.

    Returns:
        A table of `recommendation_schema`, in the order of `users`, with up to `spec.pool` items for each user.

    Raises:
        JobError: numba is not installed.
    """
    queries, _ = from_vector_column(users[RANKING_VECTOR])
    exclude = None
    if seen is not None and seen.num_rows:
        user = pc.index_in(seen["user_id"].cast(users["user_id"].type), value_set=one_chunk(users["user_id"]))
        user = user.fill_null(-1).to_numpy().astype(np.int64)
        item = shelf.items.lookup(seen["item_id"])
        known = (user >= 0) & (item >= 0)
        exclude = user[known], item[known]
    rows, scores = top_items(
        queries,
        shelf.items.vectors,
        spec.pool,
        exclude=exclude,
        ranks=shelf.items.ranks,
        hidden=shelf.hidden,
        device=_device(spec.device),
    )
    found = rows >= 0
    return list_table(users["user_id"], shelf.items.ids(rows[found]), scores[found], found.sum(1))


def _device(asked: str) -> str:
    if asked != "auto":
        return asked
    if not is_installed("torch"):
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def distinct_pairs(events: pa.Table) -> pa.Table:
    """Returns the distinct pairs (user_id, item_id) of a shard's events; an event of weight 0 does not count."""
    said = events.filter(pc.not_equal(events["weight"], 0.0)) if "weight" in events.column_names else events
    return said.select(["user_id", "item_id"]).group_by(["user_id", "item_id"]).aggregate([])


# --- Beam --------------------------------------------------------------------------------------------------


class RecommendItems(beam.PTransform):
    """Ranks items for shards of users: from `(shard, (users, seen pairs or None))` to `(shard, pa.Table)`.

    Each shard of users is searched against each slice of the items, and the lists are merged by shard.

    Args:
        items: the files of items/ as a side input: paths, or records with a `path`.
        spec: the settings.
        hidden: PCollection of tables with `item_id`, the items that must not be recommended. None means that there are
            none.
        root: the directory that relative paths of `items` are joined to.
        cache_dir: the directory for the matrices on each machine. None means the machine's temporary directory.
    """

    def __init__(
        self,
        items: beam.pvalue.AsList,
        spec: RankingSpec,
        *,
        hidden: beam.PCollection | None = None,
        root: str = "",
        cache_dir: str | None = None,
    ) -> None:
        super().__init__()
        self._items, self._spec, self._place = items, spec, (root, cache_dir)
        self._hidden = hidden

    def expand(self, users: beam.PCollection) -> beam.PCollection:
        hidden: Any = [] if self._hidden is None else beam.pvalue.AsList(self._hidden)
        slices = self._spec.slices
        return (
            users
            | "Slices" >> beam.FlatMapTuple(lambda shard, pair: [(shard, s, *pair) for s in range(slices)])
            | "Spread" >> beam.Reshuffle()
            | "Rank" >> beam.ParDo(_RankSliceFn(self._spec, *self._place), self._items, hidden)
            | "ByUserShard" >> beam.GroupByKey()
            | "Merge" >> beam.ParDo(_MergeFn(self._spec, *self._place), self._items)
        )


def _files_of_slice(files: Sequence[str | HasPath], number: int, slices: int) -> list[str | HasPath]:
    return sorted(files, key=lambda f: f if isinstance(f, str) else f.path)[number::slices]


@with_output_types(ShardTable)
class _RankSliceFn(beam.DoFn):
    def __init__(self, spec: RankingSpec, root: str, cache_dir: str | None) -> None:
        self._spec, self._root, self._cache_dir = spec, root, cache_dir
        self._shelf: tuple[int, Shelf] | None = None

    def process(
        self,
        element: tuple[int, int, pa.Table, pa.Table | None],
        items: Sequence[str | HasPath],
        hidden: Sequence[pa.Table],
    ) -> Iterable[ShardTable]:
        shard, number, users, seen = element
        files = _files_of_slice(items, number, self._spec.slices)
        if not files:
            return
        if self._shelf is None or self._shelf[0] != number:
            matrix = per_process(files, self._root, self._cache_dir, RANKING_VECTOR)
            self._shelf = number, make_shelf(matrix, hidden)
        ranked = rank_items(users, seen, self._shelf[1], self._spec)
        advance("recommend", done=users.num_rows)
        yield shard, ranked


@with_output_types(ShardTable)
class _MergeFn(beam.DoFn):
    def __init__(self, spec: RankingSpec, root: str, cache_dir: str | None) -> None:
        self._spec, self._root, self._cache_dir = spec, root, cache_dir

    def process(
        self, element: tuple[int, Iterable[pa.Table]], items: Sequence[str | HasPath]
    ) -> Iterable[ShardTable]:
        shard, parts = element
        ranked = merge_ranked(list(parts), self._spec.pool)
        if self._spec.diversity:
            ranked = diversify(
                ranked, per_process(items, self._root, self._cache_dir), self._spec.k, self._spec.diversity
            )
        yield shard, ranked


class VectorsOfItems(beam.PTransform):
    """Gives `(shard, items)` ranking vectors that need no learning.

    These are made of the item vectors, see `item_vectors.vector_columns`; or they are learned ones, which items have
    already, with the popularity counted anew, see `item_vectors.recount`.

    Args:
        spec: the settings.
        modalities: the modalities of late fusion; () for early fusion.
        popularity: PCollection of one table, as `CountLikes` returns it. None means that popularity does not count.
    """

    def __init__(
        self, spec: RankingSpec, modalities: Sequence[str] = (), popularity: beam.PCollection | None = None
    ) -> None:
        super().__init__()
        self._spec, self._modalities, self._popularity = spec, tuple(modalities), popularity

    def expand(self, shards: beam.PCollection) -> beam.PCollection:
        counts: Any = [] if self._popularity is None else beam.pvalue.AsList(self._popularity)
        add = beam.Map(_add_vectors, self._spec, self._modalities, counts).with_output_types(ShardTable)
        return shards | "Add" >> add


def _add_vectors(
    element: ShardTable, spec: RankingSpec, modalities: tuple[str, ...], counts: Sequence[pa.Table]
) -> ShardTable:
    shard, table = element
    popularity, kind = Popularity.of(next(iter(counts), None)), kind_of_items(spec, modalities)
    if spec.learned:
        return shard, recount(table, popularity, kind)
    return shard, vector_columns(table, spec, modalities, popularity, kind)


class VectorsOfUsers(beam.PTransform):
    """Adds `ranking_vector` to `(shard, users)` as `BuildProfiles` returns them; see `user_vectors`."""

    def __init__(self, spec: RankingSpec) -> None:
        super().__init__()
        self._spec = spec

    def expand(self, shards: beam.PCollection) -> beam.PCollection:
        spec = self._spec

        def add(shard: int, users: pa.Table) -> ShardTable:
            return shard, add_ranking_vectors(users, spec, read_ranking(users.schema))

        return shards | "Add" >> beam.MapTuple(add).with_output_types(ShardTable)


class ReweighUsers(beam.PTransform):
    """Gives published `(shard, users)` the ranking vectors of other settings; see `user_vectors.reweigh`.

    Args:
        spec: the settings.
        items: what the items' files say of their ranking vectors, see `user_vectors.read_ranking`.
    """

    def __init__(self, spec: RankingSpec, items: Mapping[str, Any]) -> None:
        super().__init__()
        self._spec, self._about = spec, dict(items)

    def expand(self, shards: beam.PCollection) -> beam.PCollection:
        spec, about = self._spec, self._about
        change = beam.MapTuple(lambda shard, users: (shard, reweigh(users, spec, about)))
        return shards | "Reweigh" >> change.with_output_types(ShardTable)
