"""Groups the events of interaction logs into shards of users."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import apache_beam as beam
import pyarrow as pa
from apache_beam.typehints import with_output_types

from unisono.transforms.base.tables import ShardTable, concat_tables, from_ipc, shard_of, split_by_shard, to_ipc
from unisono.transforms.base.threads import InOrder, at_end_of_bundle
from unisono.transforms.read.interactions import Interactions


class ShardByUser(beam.PTransform):
    """Groups events into shards by a stable hash of their users.

    Takes the `events` of `ReadInteractions`, which must be at least one table. Outputs `(shard, pa.Table)`, also for
    empty shards. The order of rows in a shard differs from run to run: later steps must not depend on it.

    Args:
        shards: the number of shards.
        interactions: the logs that the events come from.
    """

    def __init__(self, shards: int, interactions: Interactions) -> None:
        super().__init__()
        self._shards = shards
        self._empty = interactions.schema.empty_table()

    def expand(self, events: beam.PCollection) -> beam.PCollection:
        return (
            events
            | "Split" >> beam.ParDo(_SplitFn(self._shards, self._empty))
            | "Group" >> beam.GroupByKey()
            | "Merge" >> beam.ParDo(_MergeFn())
        )


class GroupUsersOfDead(beam.PTransform):
    """Groups `users_of_dead` of `ReadInteractions` into `(shard, pa.Table)`, each user once; no empty shards.

    Args:
        shards: the number of shards.
    """

    def __init__(self, shards: int) -> None:
        super().__init__()
        self._shards = shards

    def expand(self, users: beam.PCollection) -> beam.PCollection:
        shards = self._shards
        return (
            users
            | "Split" >> beam.FlatMap(
                lambda t: split_by_shard(t, shard_of(t["user_id"], shards))
            ).with_output_types(ShardTable)
            | "Group" >> beam.GroupByKey()
            | "Distinct" >> beam.MapTuple(_distinct_users).with_output_types(ShardTable)
        )


def _distinct_users(shard: int, tables: Iterable[pa.Table]) -> ShardTable:
    return shard, concat_tables(list(tables)).group_by("user_id").aggregate([])


@with_output_types(tuple[int, bytes])
class _SplitFn(beam.DoFn):
    """Splits tables by shard. For the first table of a bundle, it adds an empty piece for each shard without a row.

    So every shard has at least one piece: there is at least one table, and Beam repeats a failed bundle as a whole.
    Flattening the events with a list of empty shards would send every event through one more stage.

    Pieces are encoded here and decoded in `_MergeFn`, on threads. A coder would run on the worker's only thread.
    """

    def __init__(self, shards: int, empty: pa.Table) -> None:
        self._shards, self._empty = shards, empty

    def start_bundle(self) -> None:
        self._first = True
        self._ahead: InOrder[list[tuple[int, bytes]]] = InOrder()

    def process(self, table: pa.Table) -> Iterable[tuple[int, bytes]]:
        for pieces in self._ahead.put(self._split, table, self._first):
            yield from pieces
        self._first = False

    def finish_bundle(self) -> Iterable[object]:
        yield from at_end_of_bundle(piece for pieces in self._ahead.rest() for piece in pieces)

    def _split(self, table: pa.Table, every: bool) -> list[tuple[int, bytes]]:
        pieces = split_by_shard(table, shard_of(table["user_id"], self._shards))
        packed = [(shard, to_ipc(piece)) for shard, piece in pieces]
        missing = set(range(self._shards)) - {shard for shard, _ in packed} if every else set()
        return [*packed, *((shard, to_ipc(self._empty)) for shard in sorted(missing))]


@with_output_types(ShardTable)
class _MergeFn(beam.DoFn):
    """Decodes and joins the pieces of a shard."""

    def start_bundle(self) -> None:
        self._ahead: InOrder[ShardTable] = InOrder()

    def process(self, element: tuple[int, Iterable[bytes]]) -> Iterable[ShardTable]:
        shard, pieces = element
        yield from self._ahead.put(_merge_shard, shard, list(pieces))

    def finish_bundle(self) -> Iterable[object]:
        yield from at_end_of_bundle(self._ahead.rest())


def _merge_shard(shard: int, pieces: Sequence[bytes]) -> ShardTable:
    return shard, concat_tables([from_ipc(piece) for piece in pieces])
