"""Users who asked to be forgotten: their rows are removed wherever user data is read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.typehints import with_output_types

from unisono.transforms.base.columns import FORGOTTEN_COUNT
from unisono.transforms.base.errors import JobError
from unisono.transforms.base.tables import ShardTable, concat_tables, is_id_type, one_chunk, same_id_kind
from unisono.transforms.privacy.pseudonyms import Pseudonyms
from unisono.transforms.store.parquet import ParquetFile, list_parquet, plain_type, read_rows, require_column

KEY = "privacy.forget"
COLUMN = "user_id"
_FOUND = pa.schema([(COLUMN, pa.string())])


@dataclass(frozen=True)
class Forget:
    """A checked list of the users to forget. Workers read the files themselves, so no id travels with the Beam graph.

    Attributes:
        files: Parquet files with a column `user_id` that holds raw ids.
        pseudonyms: what replaces the ids in the data that is read. None means that the data holds raw ids.
    """

    files: tuple[ParquetFile, ...]
    pseudonyms: Pseudonyms | None = None

    def load(self) -> pa.Array:
        """Reads the distinct ids of the users to forget, as strings, in the form in which the data holds them."""
        ids = [pa.chunked_array([], pa.string())]
        for table in read_rows(self.files, [COLUMN]):
            column = table[COLUMN]
            ids.append(column.cast(plain_type(column.type)).cast(pa.string()))
        distinct = pc.unique(pa.chunked_array([c for part in ids for c in part.chunks], pa.string())).drop_null()
        return self.pseudonyms.of(distinct) if self.pseudonyms else distinct


def check_forget(path: str, user_type: pa.DataType | None, whose: str, pseudonyms: Pseudonyms | None) -> Forget:
    """Checks a list of users to forget before any work starts. The list may be empty.

    Args:
        path: Parquet files with a column `user_id` of raw ids.
        user_type: type of the ids that the list is compared with. None means that the types are not compared.
        whose: names the source of those ids in the error message, such as `interactions.user`.
        pseudonyms: what replaces the ids in the data. None means that the data holds raw ids.

    Raises:
        JobError: there is no file or no such column, or one side has strings and the other has integers.
    """
    files = tuple(list_parquet(path, KEY))
    found = require_column(files, COLUMN, KEY, is_id_type, "strings or integers")
    if user_type is not None and not same_id_kind(found, user_type):
        raise JobError(
            f"{KEY}: column {COLUMN!r} of {files[0].path} holds {found}, {whose} {user_type}; "
            "write both as strings or both as integers"
        )
    return Forget(files, pseudonyms)


def leave_out(table: pa.Table, column: str, gone: pa.Array) -> tuple[pa.Table, pa.Table]:
    """Removes the rows of users who are to be forgotten.

    Args:
        table: rows of any users.
        column: name of the column of user ids.
        gone: ids of the users to forget, as `Forget.load` returns them.

    Returns:
        The remaining rows, in their order, and a table with the column user_id (string): the removed users, each once.
    """
    if not len(gone):
        return table, _FOUND.empty_table()
    ids = table[column]
    ids = one_chunk(ids.cast(plain_type(ids.type)).cast(pa.string()))
    hit = pc.is_in(ids, value_set=gone)
    if not hit.true_count:
        return table, _FOUND.empty_table()
    return table.filter(pc.invert(hit)), pa.table([pc.unique(ids.filter(hit))], schema=_FOUND)


# --- Beam --------------------------------------------------------------------------------------------------


class ForgetUsers(beam.PTransform):
    """Removes the rows of users who are to be forgotten from `(shard, table with user_id)`.

    Args:
        forget: the checked list.

    Returns:
        A dict of PCollections: `shards` of (shard, pa.Table), and `found` of pa.Table with the removed users' ids.
    """

    def __init__(self, forget: Forget) -> None:
        super().__init__()
        self._forget = forget

    def expand(self, shards: beam.PCollection) -> dict[str, beam.PCollection]:
        out = shards | "LeaveOut" >> beam.ParDo(_LeaveOutFn(self._forget)).with_outputs("found", main="shards")
        return {"shards": out.shards, "found": out.found}


@with_output_types(ShardTable, found=pa.Table)
class _LeaveOutFn(beam.DoFn):
    def __init__(self, forget: Forget) -> None:
        self._forget = forget

    def setup(self) -> None:
        self._gone = self._forget.load()

    def process(self, element: ShardTable) -> Iterable[object]:
        shard, table = element
        kept, found = leave_out(table, COLUMN, self._gone)
        if found.num_rows:
            yield beam.pvalue.TaggedOutput("found", found)
        yield shard, kept


class CountForgotten(beam.PTransform):
    """Counts the distinct users in the tables `found` of `ForgetUsers`.

    Returns:
        A PCollection of one element, (`users.forgotten`, int), also if the number is 0.
    """

    def expand(self, found: beam.PCollection) -> beam.PCollection:
        nobody = found.pipeline | "Nobody" >> beam.Create([_FOUND.empty_table()])
        return (
            (found, nobody)
            | "Flatten" >> beam.Flatten()
            | "Union" >> beam.CombineGlobally(_union).without_defaults()
            | "Count" >> beam.Map(lambda t: (FORGOTTEN_COUNT, t.num_rows))
        )


def _union(tables: Iterable[pa.Table]) -> pa.Table:
    return pa.table([pc.unique(one_chunk(concat_tables(list(tables))[COLUMN]))], schema=_FOUND)
