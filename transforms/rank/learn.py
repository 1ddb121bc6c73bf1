"""Learns the ranking vectors of items as steps of the Beam graph: content, model, scale of new items, columns."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.typehints import with_output_types

from unisono.transforms.base.columns import HISTORY, in_sample, row_lengths
from unisono.transforms.base.progress import advance
from unisono.transforms.base.tables import ShardTable, concat_tables, from_vector_column, one_chunk
from unisono.transforms.rank.content import ContentScale, MergeMoments
from unisono.transforms.rank.exposure import DrawUsers, Tops, draw_users, merge_best
from unisono.transforms.rank.item_vectors import (
    FactorRows,
    Popularity,
    Sample,
    comparable_with,
    learned_columns,
    scale_new_items,
    tops_of,
    weighted_moments,
)
from unisono.transforms.rank.model import RankingModel, solve_model, with_new_items
from unisono.transforms.rank.sample import LearnSpec, is_touched, sample_of, touched_rows
from unisono.transforms.rank.user_vectors import kind_of_items, read_ranking
from unisono.transforms.space.fit.moments import Moments
from unisono.transforms.store.item_matrix import ItemMatrix, first_schema, per_process
from unisono.transforms.store.runs import FileRecord, Store, read_table, write_file

ITEM_FACTOR, LEFT_FACTOR = "item_factor", "left_factor"  # columns of the part factors/


# --- what the steps share ----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class FactorTable:
    """The factors of all items that somebody likes.

    Attributes:
        index: finds the rows of ids.
        items: V, float32 [m, d].
        left: A, float32 [m, d].
    """

    index: ItemMatrix
    items: np.ndarray
    left: np.ndarray

    @classmethod
    def open(cls, records: Sequence[FileRecord], root: str) -> FactorTable:
        """Maps the files of factors/ into memory, once in each process."""
        items, left = (per_process(records, root, vector_column=c) for c in (ITEM_FACTOR, LEFT_FACTOR))
        return cls(items, np.asarray(items.vectors), np.asarray(left.vectors))

    def rows(self, ids: pa.ChunkedArray) -> FactorRows:
        """Returns the factors of some items; zeros where an item has none."""
        at = self.index.lookup(ids)
        known = at >= 0
        items, left = (np.zeros((len(at), self.items.shape[1]), np.float32) for _ in range(2))
        items[known], left[known] = self.items[at[known]], self.left[at[known]]
        return FactorRows(items, left, known)

    @property
    def in_order(self) -> np.ndarray:
        """V in the order of the ids' hashes, which no number of shards changes."""
        return self.items[np.argsort(self.index.ranks)]


def model_of(
    moments: Moments,
    scale: ContentScale,
    factors: FactorTable,
    popularity: Popularity,
    content_users: float,
    published: tuple[Sequence[str], pa.Table] | None = None,
) -> RankingModel:
    """Solves a model, all but the scale of new items.

    Args:
        moments: the weighted moments of all items.
        scale: how embeddings become content columns.
        factors: of all items.
        popularity: of all items.
        content_users: `ranking.content_users`.
        published: the keys that the published history vectors go by, their own first, and a table of `item_id` and
            `history_vector` of a sample of the published items. None means that nothing is published.
    """
    width = factors.items.shape[1]
    model = solve_model(
        factors.in_order, moments, scale, width=width, ageing=popularity.ageing, content_users=content_users
    )
    if published is None:
        return model
    keys, table = published
    mine = factors.rows(table["item_id"])
    theirs, _ = from_vector_column(table[HISTORY])
    users = np.where(mine.known, popularity.rows(table["item_id"])["likes"], 0)
    same = comparable_with(mine.left @ model.turn_left, theirs, users)
    return with_new_items(model, 1.0, keys if same else [])


def quantile_length(factors: FactorTable, model: RankingModel, quantile: float | None) -> float:
    """Returns a quantile of the lengths of the ranking vectors of items with likes; None means the largest length."""
    lengths = row_lengths(factors.in_order.astype(np.float64) @ model.turn)
    return float(np.quantile(lengths, 1.0 if quantile is None else quantile)) if len(lengths) else 0.0


def finished(
    model: RankingModel, tops: Sequence[Tops], sample: Sample, factors: FactorTable, spec: LearnSpec
) -> RankingModel:
    """Sets the scale of new items, from the best scores among each part of the items."""
    length = quantile_length(factors, model, spec.ranking.cold_quantile)
    return scale_new_items(model, merge_best(tops), sample, spec.ranking, length)


def learn_ranking(
    table: pa.Table,
    factors: FactorTable,
    popularity: Popularity,
    events: pa.Table,
    *,
    scale: ContentScale,
    spec: LearnSpec,
    hidden: pa.Array | None = None,
) -> pa.Table:
    """Adds learned ranking vectors to the embeddings of a whole catalogue, in memory, as `LearnRanking` does.

    Args:
        table: the embeddings.
        factors: of all items.
        popularity: of all items.
        events: all events.
        scale: how embeddings become content columns.
        spec: the settings.
        hidden: ids of the items that must not be recommended. None means that there are none.
    """
    rows = factors.rows(table["item_id"])
    moments = weighted_moments(table, scale, rows, popularity)
    model = model_of(moments, scale, factors, popularity, spec.ranking.content_users)
    trial = with_new_items(model, 1.0)
    tried = learned_columns(table, trial, rows, popularity)
    drawn = draw_users(events, spec.ranking.liked_above or 0.0)
    sample = sample_of(drawn, [touched_rows(tried, drawn)], spec, ageing=trial.ageing, hidden=hidden)
    model = finished(trial, [tops_of(tried, sample, popularity)], sample, factors, spec)
    return learned_columns(table, model, rows, popularity, kind_of_items(spec.ranking))


# --- Beam --------------------------------------------------------------------------------------------------


class LearnRanking(beam.PTransform):
    """Adds learned ranking vectors to `(shard, embeddings)`, see `item_vectors.learned_columns`.

    Args:
        spec: the settings.
        store: where the files of factors/ are, and where the model is written.
        run_id: the run to write to.
        factors: PCollection of the FileRecords of factors/.
        moments: PCollection of one element, the moments of the embeddings.
        popularity: PCollection of one table, as `CountLikes` returns it.
        events: PCollection of (shard, events).
        hidden: PCollection of tables with `item_id`, the items that must not be recommended. None means that there are
            none.
        published: PCollection of (keys, table), as `PublishedHistory` returns them. None means that nothing is
            published.

    Returns:
        A dict of PCollections. `shards`: (shard, table). `files`: the FileRecords of the model.
    """

    def __init__(
        self,
        spec: LearnSpec,
        store: Store,
        run_id: str,
        *,
        factors: beam.PCollection,
        moments: beam.PCollection,
        popularity: beam.PCollection,
        events: beam.PCollection,
        hidden: beam.PCollection | None = None,
        published: beam.PCollection | None = None,
    ) -> None:
        super().__init__()
        self._spec, self._store, self._run_id = spec, store, run_id
        self._factors, self._moments, self._popularity = factors, moments, popularity
        self._events, self._hidden, self._published = events, hidden, published

    def expand(self, tables: beam.PCollection) -> dict[str, beam.PCollection]:
        root, spec = self._store.root, self._spec
        sides = {
            "records": beam.pvalue.AsList(self._factors),
            "popularity": beam.pvalue.AsSingleton(self._popularity),
        }
        moments = beam.pvalue.AsSingleton(self._moments)
        content = tables | "Content" >> beam.ParDo(_ContentFn(root, spec), moments=moments, **sides)
        published: Any = beam.pvalue.AsList(self._published) if self._published is not None else []
        solve = beam.ParDo(_SolveFn(root, spec), moments=moments, published=published, **sides)
        draft = content | "Merge" >> beam.CombineGlobally(MergeMoments()) | "Solve" >> solve
        people: dict[str, Any] = {
            "draft": beam.pvalue.AsSingleton(draft),
            "events": beam.pvalue.AsSingleton(self._events | "DrawUsers" >> DrawUsers(spec.ranking.liked_above or 0.0)),
            "hidden": beam.pvalue.AsList(self._hidden) if self._hidden is not None else [],
        }
        people["touched"] = beam.pvalue.AsList(
            tables
            | "Touched"
            >> beam.ParDo(_TouchedFn(root, spec), draft=people["draft"], events=people["events"], **sides)
        )
        tops = tables | "BestScores" >> beam.ParDo(_TopsFn(root, spec), **people, **sides)
        # The draft is the input, so that there is a model for a catalogue without items too.
        done = draft | "Scale" >> beam.ParDo(
            _ScaleFn(root, spec),
            tops=beam.pvalue.AsList(tops),
            events=people["events"],
            touched=people["touched"],
            hidden=people["hidden"],
            records=sides["records"],
        )
        files = done | "WriteModel" >> beam.FlatMap(_write_model, self._store, self._run_id)
        shards = tables | "Columns" >> beam.ParDo(_ColumnsFn(root, spec), model=beam.pvalue.AsSingleton(done), **sides)
        return {"shards": shards, "files": files}


class _Steps(beam.DoFn):
    """What the steps have in common: what they read is opened once."""

    def __init__(self, root: str, spec: LearnSpec) -> None:
        self._root, self._spec = root, spec
        self._opened: dict[str, Any] = {}

    def factors(self, records: Sequence[FileRecord]) -> FactorTable:
        if "factors" not in self._opened:
            self._opened["factors"] = FactorTable.open(records, self._root)
        return self._opened["factors"]

    def popularity(self, counts: pa.Table) -> Popularity:
        if "popularity" not in self._opened:
            self._opened["popularity"] = Popularity.of(counts)
        return self._opened["popularity"]

    def trial(self, draft: bytes) -> RankingModel:
        if "trial" not in self._opened:
            model = RankingModel.from_bytes(draft)
            self._opened["trial"] = with_new_items(model, 1.0, model.comparable)
        return self._opened["trial"]

    def columns(
        self, table: pa.Table, model: RankingModel, records: Sequence[FileRecord], popularity: pa.Table
    ) -> pa.Table:
        rows = self.factors(records).rows(table["item_id"])
        return learned_columns(table, model, rows, self.popularity(popularity), kind_of_items(self._spec.ranking))

    def sample(
        self, draft: bytes, events: pa.Table, touched: Sequence[pa.Table], hidden: Sequence[pa.Table]
    ) -> Sample:
        if "sample" not in self._opened:
            shut = one_chunk(concat_tables(list(hidden))["item_id"]) if hidden else None
            ageing = self.trial(draft).ageing
            self._opened["sample"] = sample_of(events, touched, self._spec, ageing=ageing, hidden=shut)
        return self._opened["sample"]


@with_output_types(Moments)
class _ContentFn(_Steps):
    def process(
        self, element: ShardTable, records: Sequence[FileRecord], moments: Moments, popularity: pa.Table
    ) -> Iterable[Moments]:
        _, table = element
        rows = self.factors(records).rows(table["item_id"])
        yield weighted_moments(table, ContentScale.of(moments), rows, self.popularity(popularity))


@with_output_types(bytes)
class _SolveFn(_Steps):
    def process(
        self,
        weighted: Moments,
        records: Sequence[FileRecord],
        moments: Moments,
        popularity: pa.Table,
        published: Sequence[tuple[Sequence[str], pa.Table]],
    ) -> Iterable[bytes]:
        before = None
        if published:
            before = published[0][0], concat_tables([table for _, table in published])
        factors, scale = self.factors(records), ContentScale.of(moments)
        users = self._spec.ranking.content_users
        yield model_of(weighted, scale, factors, self.popularity(popularity), users, before).to_bytes()


@with_output_types(pa.Table)
class _TouchedFn(_Steps):
    def process(
        self,
        element: ShardTable,
        draft: bytes,
        events: pa.Table,
        records: Sequence[FileRecord],
        popularity: pa.Table,
    ) -> Iterable[pa.Table]:
        _, table = element
        mine = table.filter(is_touched(table, events))
        if mine.num_rows:
            yield touched_rows(self.columns(mine, self.trial(draft), records, popularity), events)


@with_output_types(Any)
class _TopsFn(_Steps):
    def process(
        self,
        element: ShardTable,
        draft: bytes,
        events: pa.Table,
        touched: Sequence[pa.Table],
        hidden: Sequence[pa.Table],
        records: Sequence[FileRecord],
        popularity: pa.Table,
    ) -> Iterable[Tops]:
        _, table = element
        tried = self.columns(table, self.trial(draft), records, popularity)
        yield tops_of(tried, self.sample(draft, events, touched, hidden), self.popularity(popularity))


@with_output_types(bytes)
class _ScaleFn(_Steps):
    def process(
        self,
        draft: bytes,
        tops: Sequence[Tops],
        events: pa.Table,
        touched: Sequence[pa.Table],
        hidden: Sequence[pa.Table],
        records: Sequence[FileRecord],
    ) -> Iterable[bytes]:
        model = self.trial(draft)
        if tops:
            sample = self.sample(draft, events, touched, hidden)
            model = finished(model, tops, sample, self.factors(records), self._spec)
        yield model.to_bytes()


@with_output_types(ShardTable)
class _ColumnsFn(_Steps):
    def process(
        self, element: ShardTable, model: bytes, records: Sequence[FileRecord], popularity: pa.Table
    ) -> Iterable[ShardTable]:
        if "model" not in self._opened:
            self._opened["model"] = RankingModel.from_bytes(model)
        shard, table = element
        table = self.columns(table, self._opened["model"], records, popularity)
        advance("rank-items", done=table.num_rows)
        yield shard, table


class PublishedHistory(beam.PTransform):
    """Reads the history vectors of a sample of the items of an earlier run, from the FileRecords of its items/.

    Returns (keys, table): the keys that these vectors go by, their own first, and `item_id` and `history_vector`.
    Nothing comes of items without history vectors.

    Args:
        store: where the earlier run lies.
        fraction: about this fraction of the items is drawn, by hash of their ids.
    """

    def __init__(self, store: Store, fraction: float) -> None:
        super().__init__()
        self._args = (store, fraction)

    def expand(self, records: beam.PCollection) -> beam.PCollection:
        return records | "Spread" >> beam.Reshuffle() | "Read" >> beam.FlatMap(_read_history, *self._args)


def _read_history(record: FileRecord, store: Store, fraction: float) -> Iterable[tuple[tuple[str, ...], pa.Table]]:
    schema = first_schema([record], store.root)
    if HISTORY in schema.names:
        made = read_ranking(schema)
        table = read_table(store, record, ["item_id", HISTORY])
        yield (made["key"], *made["comparable"]), table.filter(pa.array(in_sample(table["item_id"], fraction)))


def _write_model(data: bytes, store: Store, run_id: str) -> Iterable[FileRecord]:
    model = RankingModel.from_bytes(data)
    about = {
        "key": model.key,
        "factors": model.factors,
        "content": {m: len(v) for m, v in model.scale.means.items()},
        "new_items": model.new_items,
        "newness": model.newness,
        "ageing": model.ageing,
        "comparable": list(model.comparable),
    }
    text = json.dumps(about, indent=1, sort_keys=True).encode() + b"\n"
    for name, content in (("ranking/ranking.safetensors", data), ("ranking/ranking.json", text)):
        yield write_file(store, "ranking", f"runs/{run_id}/{name}", content)
