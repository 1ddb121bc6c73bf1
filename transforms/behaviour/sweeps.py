"""Item and left factors on Beam: in one worker for a small log, by passes over shards for a large one.

A pass reads the rows of the other side from the store, memory-mapped, and writes its own rows. Each row has the same
bits as in `fit_factors`, because a row depends only on its own likes, and sums over all rows are exact.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.pvalue import AsList, AsSingleton

from unisono.transforms.base.tables import (
    ShardTable,
    concat_tables,
    from_vector_column,
    same_id_kind,
    to_vector_column,
)
from unisono.transforms.behaviour import left_factors
from unisono.transforms.behaviour.exact_sums import sum_of_outer, total
from unisono.transforms.behaviour.factors import (
    FactorSpec,
    fit_factors,
    rotated,
    settled,
    shared_products,
    solve_side,
    start_factors,
    turn_between,
)
from unisono.transforms.behaviour.left_factors import Search, Step, add_likes
from unisono.transforms.behaviour.like_shards import SCRATCH, LikeShard, ShardLikes, Totals, read_likes
from unisono.transforms.behaviour.likes import Likes, liked_pairs
from unisono.transforms.store.item_matrix import ItemMatrix
from unisono.transforms.store.runs import (
    FileRecord,
    Store,
    WriteShards,
    read_table,
    shard_path,
    table_bytes,
    write_file,
)

FACTORS = "factors"  # part of a run: the factors of the items
IN_MEMORY_PAIRS = 20_000_000  # likes of these many pairs take 0.5 GB, and their factors are solved in minutes


@dataclass(frozen=True)
class Place:
    """Where the passes of a run keep their rows.

    Attributes:
        store: the store.
        run_id: the run. Rows stand under `scratch/factors` in it, and are not for the manifest.
        shards: the number of shards of each side.
        cache_dir: the directory for memory-mapped rows on each machine. None means one under the machine's temporary
            directory. It is not the one of the item vectors, whose matrices would be dropped for those of the passes.
    """

    store: Store
    run_id: str
    shards: int
    cache_dir: str | None = None

    def write(self, name: str, shard: int, **columns: np.ndarray) -> FileRecord:
        """Writes matrices with the rows of one shard, float32 [rows, d] each."""
        rows = len(next(iter(columns.values())))
        part = f"{SCRATCH}/{name}"
        table = _table(pa.array(np.arange(rows)), **columns)
        path = shard_path(self.run_id, part, shard, self.shards)
        return write_file(self.store, part, path, table_bytes(table), shard=shard, rows=rows)

    @property
    def cache(self) -> str:
        """The directory for memory-mapped rows."""
        return self.cache_dir or os.path.join(tempfile.gettempdir(), f"unisono-factors-{os.getuid()}")

    def rows(self, records: Sequence[FileRecord], column: str) -> np.ndarray:
        """Maps the rows of all shards into memory: float32 [all rows, d]."""
        return np.asarray(ItemMatrix.open(records, self.store.root, self.cache, vector_column=column).vectors)

    def own(self, records: Iterable[FileRecord], shard: int, *columns: str) -> list[np.ndarray]:
        """Reads the rows of one shard."""
        table = read_table(self.store, next(r for r in records if r.shard == shard), list(columns))
        return [from_vector_column(table[c])[0] for c in columns]


class FactorItems(beam.PTransform):
    """Fits item and left factors from events, as `fit_factors` does.

    Takes `(shard, events)` as `ShardByUser` returns them. For a large log, the rows of each pass stay in the store, in
    `scratch/factors` of the run, until somebody removes the directory: a runner may repeat an earlier pass. They take
    about (sweeps + 20) · (users + 6 · items) · factors · 4 bytes. The manifest does not list them.

    Args:
        spec: the settings.
        liked_above: a user likes an item if the weight of one of the user's events on it is above this, and all
            weights sum to more than 0.
        store: where to write.
        run_id: the run to write to.
        shards: the number of shards: of the events, and of the items.
        log_rows: the number of rows of the log.
        published: the files of the part `factors` of the published run. Factors start from them and are turned to
            them. Empty means that there are none.
        in_memory_pairs: up to this many rows of the log, one worker solves all.
        cache_dir: the directory for memory-mapped rows on each machine. None means the machine's temporary directory.

    Returns:
        The FileRecords of the part `factors`: item_id, in ascending order, `users` (int64, how many users like the
        item), `item_factor` and `left_factor` (float32 [d]). Items without a like are not in it.

    Guarantees:
        The rows have the same bits for every number of shards, and in one worker.
    """

    def __init__(
        self,
        spec: FactorSpec,
        liked_above: float,
        store: Store,
        run_id: str,
        shards: int,
        *,
        log_rows: int,
        published: Sequence[FileRecord] = (),
        in_memory_pairs: int = IN_MEMORY_PAIRS,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__()
        self._spec, self._liked_above, self._published = spec, liked_above, tuple(published)
        self._place = Place(store, run_id, shards, cache_dir)
        self._small = log_rows <= in_memory_pairs

    def expand(self, events: beam.PCollection) -> beam.PCollection:
        spec, place, published, above = self._spec, self._place, self._published, self._liked_above
        like = beam.MapTuple(lambda shard, table: (shard, liked_pairs(table, above)))
        pairs = events | "LikedPairs" >> like.with_output_types(ShardTable)
        if self._small:
            tables = (
                pairs
                | "ToOne" >> beam.MapTuple(lambda _, t: (0, t)).with_output_types(ShardTable)
                | "Group" >> beam.GroupByKey()
                | "Solve" >> beam.MapTuple(lambda _, found: (0, _solve_all(found, spec, place, published)))
            )
        else:
            tables = pairs | "BySweeps" >> _Sweeps(spec, place, published)
        shards = 1 if self._small else place.shards
        return tables | "Write" >> WriteShards(place.store, place.run_id, FACTORS, shards, {})


def _solve_all(
    pairs: Iterable[pa.Table], spec: FactorSpec, place: Place, published: Sequence[FileRecord]
) -> pa.Table:
    likes = Likes.of(concat_tables(list(pairs)))
    start = published_factors(likes.item_ids, spec, place, published)
    fitted = fit_factors(likes, spec, start)
    return factor_table(fitted.item_ids, fitted.users, fitted.item_factors, fitted.left_factors)


def factor_table(ids: pa.Array, users: np.ndarray, items: np.ndarray, left: np.ndarray) -> pa.Table:
    """Returns the rows of a file of the part `factors`."""
    table = _table(ids, item_factor=items, left_factor=left)
    return table.add_column(1, "users", pa.array(users.astype(np.int64)))


def _table(ids: pa.Array, **columns: np.ndarray) -> pa.Table:
    """Returns a table of `item_id` and vectors that are never null, which Parquet then stores as FixedSizeList."""
    vectors = {name: to_vector_column(rows) for name, rows in columns.items()}
    schema = pa.schema([("item_id", ids.type), *(pa.field(n, v.type, nullable=False) for n, v in vectors.items())])
    return pa.table([ids, *vectors.values()], schema=schema)


def published_factors(
    ids: pa.Array, spec: FactorSpec, place: Place, published: Sequence[FileRecord]
) -> pa.Table | None:
    """Finds the published factors of items.

    Args:
        ids: [n].
        spec: the settings.
        place: where the run is.
        published: the files of the published run.

    Returns:
        item_id and item_factor of the items that have some. None if there is no file, or its factors or ids are of
        another kind.
    """
    if not published:
        return None
    matrix = ItemMatrix.open(published, place.store.root, place.cache, vector_column="item_factor")
    if matrix.dim != spec.factors or not same_id_kind(ids.type, matrix.id_type):
        return None
    rows = matrix.lookup(ids)
    known = np.flatnonzero(rows >= 0)
    return _table(ids.take(pa.array(known)), item_factor=np.asarray(matrix.vectors)[rows[known]])


# --- by sweeps ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Made:
    """What a pass returns for one shard.

    Attributes:
        record: the file with the shard's rows.
        sums: what the next pass needs to know about these rows, added up: `sum_of_outer` or `sums_of`. Sums are exact,
            so the order of the shards does not matter.
        step: the last step of the search for left factors. None before the first one.
    """

    record: FileRecord
    sums: np.ndarray
    step: Step | None = None


def _records(made: Iterable[_Made]) -> list[FileRecord]:
    return [m.record for m in made]


def _total(made: Iterable[_Made]) -> np.ndarray:
    return total(m.sums for m in made)


class _Sweeps(beam.PTransform):
    """Fits factors by passes over the shards of one side at a time: (shard, rows of the part `factors`).

    A pass is one step of the graph. The next pass gets its list of files and sums as a side input. A combine step for
    the sums would add ten steps to the graph for each pass.
    """

    def __init__(self, spec: FactorSpec, place: Place, published: tuple[FileRecord, ...]) -> None:
        super().__init__()
        self._spec, self._place, self._published = spec, place, published

    def expand(self, pairs: beam.PCollection) -> beam.PCollection:
        place, published = self._place, self._published
        likes = pairs | "ShardLikes" >> ShardLikes(place.store, place.run_id, place.shards)
        items, users = self._sweep(likes)
        left = self._left_factors(likes, users)
        made = {"items": AsList(items), "left": AsList(left)}
        if not published:
            return likes["items"] | "Join" >> beam.Map(_join, **made, shared=None, place=place)
        share = beam.Map(_shared, AsList(items), spec=self._spec, place=place, published=published)
        shared = likes["items"] | "Shared" >> share
        return likes["items"] | "JoinTurned" >> beam.Map(_join, **made, shared=AsList(shared), place=place)

    def _sweep(self, likes: dict[str, beam.PCollection]) -> tuple[beam.PCollection, beam.PCollection]:
        """Solves both sides in turn; returns what the last passes over the items and over the users made."""
        totals = AsSingleton(likes["totals"])

        def solved(side: str, n: int, others: beam.PCollection) -> beam.PCollection:
            name = f"{side}-{n:02d}"
            solve = beam.Map(_solve, AsList(others), totals=totals, spec=self._spec, place=self._place, name=name)
            return likes[side] | f"Solve{side.title()}{n}" >> solve

        items = likes["items"] | "Start" >> beam.Map(_start, self._spec, self._place, self._published)
        for n in range(self._spec.sweeps):
            items = solved("items", n, solved("users", n, items))
        return items, solved("users", self._spec.sweeps, items)

    def _left_factors(self, likes: dict[str, beam.PCollection], users: beam.PCollection) -> beam.PCollection:
        """Solves for the left factors by conjugate gradients; returns what the last pass over the items made."""
        ridge, place = self._spec.left_ridge, self._place
        search = likes["items"] | "Right" >> beam.Map(_right, AsList(users), ridge=ridge, place=place)
        for n in range(left_factors.MOST_STEPS):
            # Once the residual is small enough, passes write nothing and the last state is handed on.
            state = AsList(search)
            sums = likes["users"] | f"OfUsers{n}" >> beam.FlatMap(_image_of_users, state, place=place, n=n)
            apply = beam.FlatMap(_image, state, sums=AsList(sums), ridge=ridge, place=place, n=n)
            image = likes["items"] | f"OfItems{n}" >> apply
            advance = beam.Map(_advance, state, image=AsList(image), ridge=ridge, place=place, n=n + 1)
            search = likes["items"] | f"Advance{n}" >> advance
        return search


def _start(record: FileRecord, spec: FactorSpec, place: Place, published: Sequence[FileRecord]) -> _Made:
    """Writes the factors that the items of a shard start from."""
    likes = read_likes(place.store, record)
    rows = start_factors(likes.ids, spec, published_factors(likes.ids, spec, place, published))
    return _Made(place.write("start", likes.shard, factor=rows), sum_of_outer(rows, rows))


def _solve(
    record: FileRecord, others: Sequence[_Made], *, totals: Totals, spec: FactorSpec, place: Place, name: str
) -> _Made:
    """Solves the rows of a shard, given the other side."""
    likes = read_likes(place.store, record)
    rows = solve_side(
        likes.first,
        likes.others,
        factors=place.rows(_records(others), "factor"),
        gram=_total(others),
        spec=settled(spec, totals.likes, sum(totals.users), sum(totals.items)),
    )
    return _Made(place.write(name, likes.shard, factor=rows), sum_of_outer(rows, rows))


# --- left factors ------------------------------------------------------------------------------------------


def _right(record: FileRecord, users: Sequence[_Made], *, ridge: float, place: Place) -> _Made:
    """Begins the search for the items of a shard."""
    likes = read_likes(place.store, record)
    right = add_likes(likes.first, likes.others, place.rows(_records(users), "factor"))
    return _write_search(left_factors.first_state(right), None, likes=likes, ridge=ridge, place=place, n=0)


def _write_search(
    state: Search, step: Step | None, *, likes: LikeShard, ridge: float, place: Place, n: int
) -> _Made:
    """Writes the state of the search and z for the items of a shard."""
    z = left_factors.preconditioned(state.residual, np.diff(likes.first), ridge)
    columns = {f.name: getattr(state, f.name) for f in fields(state)}
    return _Made(place.write(f"search-{n:02d}", likes.shard, z=z, **columns), np.empty(0), step)


def _is_over(state: Sequence[_Made]) -> bool:
    step = state[0].step
    return step is not None and step.done


def _image_of_users(record: FileRecord, state: Sequence[_Made], *, place: Place, n: int) -> Iterable[FileRecord]:
    """Writes X z for the users of a shard."""
    if not _is_over(state):
        likes = read_likes(place.store, record)
        sums = add_likes(likes.first, likes.others, place.rows(_records(state), "z"))
        yield place.write(f"sums-{n:02d}", likes.shard, factor=sums)


def _image(
    record: FileRecord, state: Sequence[_Made], *, sums: Sequence[FileRecord], ridge: float, place: Place, n: int
) -> Iterable[_Made]:
    """Writes (XᵀX + ridge · I) z for the items of a shard."""
    if not _is_over(state):
        likes = read_likes(place.store, record)
        search, z = _read_search(state, likes.shard, place)
        image = add_likes(likes.first, likes.others, place.rows(sums, "factor"))
        image = left_factors.with_ridge(image, z, ridge)
        made = place.write(f"image-{n:02d}", likes.shard, factor=image)
        yield _Made(made, left_factors.sums_of(search, z, image))


def _advance(
    record: FileRecord, state: Sequence[_Made], *, image: Sequence[_Made], ridge: float, place: Place, n: int
) -> _Made:
    """Takes a step for the items of a shard, unless the search is over."""
    own = next(m for m in state if m.record.shard == record.shard)
    if _is_over(state):
        return own
    step = left_factors.next_step(_total(image), own.step)
    if step.done:
        return replace(own, step=step)
    likes = read_likes(place.store, record)
    search, z = _read_search(state, likes.shard, place)
    (rows,) = place.own(_records(image), likes.shard, "factor")
    state_after = left_factors.advance(search, z, rows, step)
    return _write_search(state_after, step, likes=likes, ridge=ridge, place=place, n=n)


def _read_search(state: Sequence[_Made], shard: int, place: Place) -> tuple[Search, np.ndarray]:
    *columns, z = place.own(_records(state), shard, *(f.name for f in fields(Search)), "z")
    return Search(*columns), z


# --- the part `factors` ------------------------------------------------------------------------------------


def _shared(
    record: FileRecord, items: Sequence[_Made], *, spec: FactorSpec, place: Place, published: Sequence[FileRecord]
) -> np.ndarray:
    """Returns what the turn to the published factors needs from the items of a shard."""
    likes = read_likes(place.store, record)
    (rows,) = place.own(_records(items), likes.shard, "factor")
    start = published_factors(likes.ids, spec, place, published)
    if start is None:
        return np.zeros((2, spec.factors, spec.factors))
    return shared_products(likes.ids, rows, start)


def _join(
    record: FileRecord,
    *,
    items: Sequence[_Made],
    left: Sequence[_Made],
    shared: Sequence[np.ndarray] | None,
    place: Place,
) -> ShardTable:
    """Joins both factors of the items of a shard, turned to the published ones if there are some."""
    likes = read_likes(place.store, record)
    (v,), (a,) = (
        place.own(_records(made), likes.shard, column) for made, column in ((items, "factor"), (left, "solution"))
    )
    turn = turn_between(total(shared)) if shared else None
    if turn is not None:
        v, a = rotated(v, turn), rotated(a, turn)
    return likes.shard, factor_table(likes.ids, np.diff(likes.first), v, a)
