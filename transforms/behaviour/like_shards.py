"""Liked pairs on Beam: two sets of shard files, by user and by item, whose rows refer to each other by number."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from unisono.transforms.base import files
from unisono.transforms.base.errors import JobError
from unisono.transforms.base.tables import (
    ShardTable,
    concat_tables,
    from_ipc,
    one_chunk,
    shard_of,
    split_by_shard,
    to_ipc,
)
from unisono.transforms.behaviour.likes import Likes
from unisono.transforms.store.runs import FileRecord, Store, shard_path, write_file

SCRATCH = "scratch/factors"  # directory in the run for files that only later steps of the same run read
_LOCAL = 32  # bits of a place that hold the row in the shard; the bits above hold the shard


@dataclass(frozen=True)
class Totals:
    """How many rows each shard of both sides has, and how many likes there are.

    Attributes:
        users: the number of users in each shard.
        items: the number of items in each shard.
        likes: the number of liked pairs.
    """

    users: tuple[int, ...]
    items: tuple[int, ...]
    likes: int


@dataclass(frozen=True, eq=False)
class LikeShard:
    """The likes of the users, or of the items, of one shard.

    Attributes:
        shard: the number of the shard.
        ids: the ids of the items, ascending. For a shard of users, the rows' numbers.
        first: int64 [rows + 1]: row r has the likes `first[r]` to `first[r + 1]`.
        others: int64 [likes], row numbers of the other side, counted over all its shards; in ascending order of the
            other side's ids.
    """

    shard: int
    ids: pa.Array
    first: np.ndarray
    others: np.ndarray


def read_likes(store: Store, record: FileRecord) -> LikeShard:
    """Reads a file that `ShardLikes` wrote.

    Raises:
        JobError: the file is missing.
    """
    try:
        table = from_ipc(files.read_bytes(store.path(record.path))).combine_chunks()
    except FileNotFoundError as e:
        raise JobError(f"{store.path(record.path)}: missing while the run needs it; run the job again") from e
    lists = one_chunk(table["others"])
    first = lists.offsets.to_numpy()
    return LikeShard(record.shard, one_chunk(table["id"]), first - first[0], lists.flatten().to_numpy())


class ShardLikes(beam.PTransform):
    """Writes liked pairs as shard files by user and by item.

    Takes `(shard, pairs)` as `liked_pairs` returns them, with all pairs of a user in the shard of the user, and every
    shard present. The shard of an item is `hash(id) % shards`. In a shard, users and items are numbered in ascending
    order of their ids. Ids cross two shuffles.

    Args:
        store: where to write. The files are not for the manifest.
        run_id: the run to write to.
        shards: the number of shards of each side.

    Returns:
        A dict of PCollections. `users` and `items`: FileRecords of the files, one for each shard. `totals`: one
        element, the `Totals`.
    """

    def __init__(self, store: Store, run_id: str, shards: int) -> None:
        super().__init__()
        self._store, self._run_id, self._shards = store, run_id, shards

    def expand(self, pairs: beam.PCollection) -> dict[str, beam.PCollection]:
        shards = self._shards
        split = pairs | "SplitByItem" >> beam.ParDo(_SplitFn(shards)).with_outputs("sizes", main="pieces")
        by_item = (
            split.pieces
            | "GroupByItem" >> beam.GroupByKey()
            | "NumberItems" >> beam.ParDo(_NumberItemsFn(shards)).with_outputs("sizes", "back", main="rows")
        )
        order = beam.MapTuple(_order_users).with_output_types(ShardTable)
        by_user = by_item.back | "GroupByUser" >> beam.GroupByKey() | "OrderUsers" >> order
        sizes = (split.sizes, by_item.sizes) | "Sizes" >> beam.Flatten()
        totals = sizes | "Totals" >> beam.combiners.ToList() | "AddTotals" >> beam.Map(_totals, shards)
        return {
            "users": by_user | "WriteUsers" >> beam.Map(self._writer("users"), beam.pvalue.AsSingleton(totals)),
            "items": by_item.rows | "WriteItems" >> beam.Map(self._writer("items"), beam.pvalue.AsSingleton(totals)),
            "totals": totals,
        }

    def _writer(self, side: str) -> _WriteLikes:
        return _WriteLikes(self._store, self._run_id, self._shards, side)


Size = tuple[str, int, int, int]  # side, shard, rows, likes


class _SplitFn(beam.DoFn):
    """Splits the pairs of a user shard by item shard; each pair gets the place of its user.

    Pieces are encoded here: a tagged output has no coder of its own, and pickling a slice copies the whole table.
    """

    def __init__(self, shards: int) -> None:
        self._shards = shards

    def process(self, element: ShardTable) -> Iterable[object]:
        shard, pairs = element
        likes = Likes.of(pairs)
        table = pairs.append_column("place", _places(pairs["user_id"], likes.user_ids, shard))
        pieces = dict(split_by_shard(table, shard_of(table["item_id"], self._shards)))
        if shard == 0:  # so that every item shard exists
            pieces = {t: table.slice(0, 0) for t in range(self._shards)} | pieces
        yield from ((t, to_ipc(piece)) for t, piece in pieces.items())
        yield beam.pvalue.TaggedOutput("sizes", ("users", shard, len(likes.user_ids), pairs.num_rows))


class _NumberItemsFn(beam.DoFn):
    """Numbers the items of a shard, orders the likes of each, and sends the items' places back to the users' shards."""

    def __init__(self, shards: int) -> None:
        self._shards = shards

    def process(self, element: tuple[int, Iterable[bytes]]) -> Iterable[object]:
        shard, pieces = element
        pairs = concat_tables([from_ipc(piece) for piece in pieces])
        likes = Likes.of(pairs)
        places = _place_of(pairs["user_id"], likes.user_ids, pairs)
        yield shard, _lists(likes.item_ids, likes.first_of_item, places[likes.users])
        user = pairs["place"].to_numpy()
        back = pa.table({
            "user_id": user & (2**_LOCAL - 1),
            "item_id": pairs["item_id"],
            "place": _places(pairs["item_id"], likes.item_ids, shard),
        })
        of_users = dict(split_by_shard(back, user >> _LOCAL))
        if shard == 0:
            of_users = {s: back.slice(0, 0) for s in range(self._shards)} | of_users
        yield from (beam.pvalue.TaggedOutput("back", (s, to_ipc(piece))) for s, piece in of_users.items())
        yield beam.pvalue.TaggedOutput("sizes", ("items", shard, len(likes.item_ids), 0))


def _order_users(shard: int, pieces: Iterable[bytes]) -> ShardTable:
    """Orders the likes of each user of a shard by item id; users are already numbers here, from 0 and without gaps."""
    pairs = concat_tables([from_ipc(piece) for piece in pieces])
    likes = Likes.of(pairs)
    places = _place_of(pairs["item_id"], likes.item_ids, pairs)
    return shard, _lists(likes.user_ids, likes.first_of_user, places[likes.items])


def _places(column: pa.ChunkedArray, ids: pa.Array, shard: int) -> pa.Array:
    """Returns the place of each row's id: the shard, and the id's position among the shard's ids."""
    rows = one_chunk(pc.index_in(column, value_set=ids)).to_numpy(zero_copy_only=False).astype(np.int64)
    return pa.array(rows | (shard << _LOCAL))


def _place_of(column: pa.ChunkedArray, ids: pa.Array, pairs: pa.Table) -> np.ndarray:
    """Returns the place of each distinct id, int64 [ids], given the pairs that hold it beside the id."""
    rows = one_chunk(pc.index_in(column, value_set=ids)).to_numpy(zero_copy_only=False).astype(np.int64)
    places = np.empty(len(ids), np.int64)
    places[rows] = pairs["place"].to_numpy()
    return places


def _lists(ids: pa.Array, first: np.ndarray, places: np.ndarray) -> pa.Table:
    return pa.table({"id": ids, "others": pa.LargeListArray.from_arrays(pa.array(first), pa.array(places))})


def _totals(sizes: list[Size], shards: int) -> Totals:
    rows = {side: [0] * shards for side in ("users", "items")}
    for side, shard, n, _ in sizes:
        rows[side][shard] = n
    return Totals(tuple(rows["users"]), tuple(rows["items"]), sum(likes for *_, likes in sizes))


@dataclass(frozen=True)
class _WriteLikes:
    """Turns places into numbers that count over all shards, and writes a shard.

    Attributes:
        store: where to write.
        run_id: the run to write to.
        shards: the number of shards.
        side: `users` or `items`.
    """

    store: Store
    run_id: str
    shards: int
    side: str

    def __call__(self, element: ShardTable, totals: Totals) -> FileRecord:
        shard, table = element
        starts = np.concatenate([[0], np.cumsum(totals.items if self.side == "users" else totals.users)])
        lists = one_chunk(table["others"])
        places = lists.flatten().to_numpy()
        others = starts[places >> _LOCAL] + (places & (2**_LOCAL - 1))
        first = lists.offsets.to_numpy()
        table = _lists(one_chunk(table["id"]), first - first[0], others)
        part = f"{SCRATCH}/likes-of-{self.side}"
        path = shard_path(self.run_id, part, shard, self.shards).replace(".parquet", ".arrow")
        return write_file(self.store, part, path, to_ipc(table), shard=shard, rows=table.num_rows)
