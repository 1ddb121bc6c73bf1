"""Reads a catalogue and groups its rows into shards; each item has one row."""

from __future__ import annotations

import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.typehints import with_output_types
from pydantic import BeforeValidator

from unisono.transforms.base.errors import JobError, Reason
from unisono.transforms.base.modalities import CATALOG
from unisono.transforms.base.progress import advance
from unisono.transforms.base.settings import settings
from unisono.transforms.base.tables import ShardTable, concat_tables, is_id_type, one_chunk, shard_of, split_by_shard
from unisono.transforms.store.dead_letters import dead_letters_of_rows
from unisono.transforms.store.parquet import ParquetFile, ReadRowGroups, list_parquet, plain_type, require_column

# Stands between text columns. Every tokenizer treats it as white space, and it adds no second full stop to a sentence.
JOINER = "\n"
STAGE = "catalog"


def _text_columns(value: Any) -> Any:
    """Reads the name of a single column as a list of one; refuses templates that do more than name columns."""
    if not isinstance(value, str):
        return value
    if "{" not in value:
        return (value,)
    if any(spec or how for _, _, spec, how in string.Formatter().parse(value)):
        raise ValueError("a template takes plain {column} fields, without ! or :")
    return value


def columns_of_text(text: tuple[str, ...] | str) -> tuple[str, ...]:
    """Names the columns of a list of columns or of a template, each once."""
    if isinstance(text, str):
        return tuple(dict.fromkeys(name for _, name, _, _ in string.Formatter().parse(text) if name))
    return text


@settings("catalog")
class CatalogSpec:
    """The files of the catalogue, and what its columns mean."""

    path: str
    """A Parquet file or a glob of Parquet files."""
    id: str
    """The column of item ids: strings or integers. The output keeps the type."""
    text: Annotated[tuple[str, ...] | str | None, BeforeValidator(_text_columns)] = None
    """The text columns, which are joined by a line break, or a template such as "{title}. {description}"."""
    title: str | None = None
    """The column shown to people. By default the first text column."""
    image: str | None = None
    """The column of pictures: URIs or bytes, one or a list for each item."""
    audio: str | None = None
    """The column of sounds: URIs or bytes, one or a list for each item."""
    media_root: str | None = None
    """The directory in which relative URIs are looked up. By default the directory of the catalogue."""
    allow: tuple[str, ...] = ()
    """Prefixes of URIs that may be read besides those under `media_root`."""

    def __post_init__(self) -> None:
        if self.text is not None and not self.text_columns:
            raise ValueError("text: names no column")
        if not self.modalities:
            raise ValueError("names no modality; give at least one of text, image, audio")

    @property
    def text_columns(self) -> tuple[str, ...]:
        """The columns that the text is made of."""
        return () if self.text is None else columns_of_text(self.text)

    @property
    def title_column(self) -> str | None:
        """The column shown to people."""
        return self.title or next(iter(self.text_columns), None)

    @property
    def columns(self) -> list[str]:
        """Every column that is read."""
        wanted = [self.id, self.title_column, *self.text_columns, *self.media.values()]
        return list(dict.fromkeys(c for c in wanted if c))

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities that the catalogue has a column for."""
        return tuple(m for m in CATALOG if getattr(self, m))

    @property
    def media(self) -> dict[str, str]:
        """The columns of URIs or bytes, by modality: every modality except text."""
        return {m: getattr(self, m) for m in self.modalities if m != "text"}


@dataclass(frozen=True)
class Catalog:
    """A catalogue whose footers have been checked.

    Attributes:
        spec: where the catalogue is and what its columns hold.
        files: the catalogue's files, sorted by path.
        rows: the number of rows of all files.
        id_type: the type of the item ids.
    """

    spec: CatalogSpec
    files: tuple[ParquetFile, ...]
    rows: int
    id_type: pa.DataType


def _is_text(dtype: pa.DataType) -> bool:
    dtype = plain_type(dtype)
    if pa.types.is_list(dtype) or pa.types.is_large_list(dtype):
        dtype = dtype.value_type
        return pa.types.is_string(dtype) or pa.types.is_large_string(dtype)
    scalar = pa.types.is_integer(dtype) or pa.types.is_floating(dtype) or pa.types.is_boolean(dtype)
    return scalar or pa.types.is_string(dtype) or pa.types.is_large_string(dtype) or pa.types.is_null(dtype)


def _is_media(dtype: pa.DataType) -> bool:
    dtype = plain_type(dtype)
    if pa.types.is_list(dtype) or pa.types.is_large_list(dtype):
        dtype = plain_type(dtype.value_type)
    text = pa.types.is_string(dtype) or pa.types.is_large_string(dtype)
    return text or pa.types.is_binary(dtype) or pa.types.is_large_binary(dtype) or pa.types.is_null(dtype)


def check_catalog(spec: CatalogSpec) -> Catalog:
    """Checks the footers of a catalogue's files before any work starts.

    Raises:
        JobError: no file matches, a file is not Parquet, a column is missing or has a wrong type, or there is no row.
    """
    found = list_parquet(spec.path, "catalog.path")
    rows = sum(f.num_rows for f in found)
    if rows == 0:
        raise JobError(
            f"catalog.path: {spec.path} matches {len(found)} files without a single row; give the catalogue's files"
        )
    id_type = require_column(found, spec.id, "catalog.id", is_id_type, "strings or integers")
    for column in spec.text_columns:
        require_column(found, column, "catalog.text", _is_text, "strings, numbers, booleans or lists of strings")
    if spec.title:
        require_column(found, spec.title, "catalog.title", _is_text, "strings, numbers, booleans or lists of strings")
    for modality, column in spec.media.items():
        require_column(found, column, f"catalog.{modality}", _is_media, "URIs (strings) or bytes, one or a list")
    return Catalog(spec, tuple(found), rows, id_type)


# --- one row group -----------------------------------------------------------------------------------------


def _as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Casts a text column to strings; a list of strings becomes one string, separated by commas."""
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        return pc.binary_join(_without_nulls(one_chunk(column.cast(pa.list_(pa.string())))), ", ")
    return column.cast(pa.string())


def _without_nulls(lists: pa.ListArray) -> pa.ListArray:
    """Removes null elements from lists: with a null element, the joined string would be null."""
    values, rows = pc.list_flatten(lists), pc.list_parent_indices(lists).to_numpy()
    if not values.null_count:
        return lists
    valid = values.is_valid()
    lengths = np.bincount(rows[valid.to_numpy(zero_copy_only=False)], minlength=len(lists))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values.filter(valid), mask=lists.is_null())


def _trimmed(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.utf8_trim_whitespace(pc.fill_null(_as_text(column), ""))


def compose_text(table: pa.Table, text: Sequence[str] | str) -> pa.ChunkedArray | pa.Array:
    """Makes the text of each row from its text columns.

    Args:
        table: with the text columns.
        text: the names of columns to join, or a template such as `{title}. {description}`.

    Returns:
        string [n]. A text is null if all its columns are null: the item lacks the modality. Otherwise, null columns
        are left out.
    """
    if isinstance(text, str):
        names = columns_of_text(text)
        parts = [
            piece
            for literal, name, _, _ in string.Formatter().parse(text)
            for piece in (pa.scalar(literal), _as_text(table[name]) if name else None)
            if piece is not None
        ]
        joined = pc.binary_join_element_wise(*parts, "", null_handling="replace", null_replacement="")
    else:
        names = tuple(text)
        joined = _trimmed(table[names[0]])
        # Two columns at a time: Arrow 25's join with null_handling="skip" drops rows in which all parts are null.
        for part in (_trimmed(table[name]) for name in names[1:]):
            both = pc.binary_join_element_wise(joined, part, JOINER)
            joined = pc.if_else(pc.equal(part, ""), joined, pc.if_else(pc.equal(joined, ""), part, both))
    present = pc.is_valid(table[names[0]])
    for name in names[1:]:
        present = pc.or_(present, pc.is_valid(table[name]))
    return pc.if_else(present, pc.utf8_trim_whitespace(joined), pa.scalar(None, pa.string()))


def _as_media(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Casts a media column to strings, bytes, or lists of one of them."""
    dtype = plain_type(column.type)
    listed = pa.types.is_list(dtype) or pa.types.is_large_list(dtype)
    item = plain_type(dtype.value_type) if listed else dtype
    binary = pa.types.is_binary(item) or pa.types.is_large_binary(item)
    target = pa.large_binary() if binary else pa.string()
    return column.cast(pa.list_(target) if listed else target)


def read_items(table: pa.Table, catalog: Catalog, first_row: int) -> tuple[pa.Table, pa.Table]:
    """Turns a row group into the columns that later steps use.

    Args:
        table: the columns `catalog.spec.columns`.
        catalog: a catalogue from `check_catalog`.
        first_row: a number for the first row. Numbers ascend over the whole catalogue; among rows with equal ids, the
            row with the lowest number stays.

    Returns:
        items: item_id, title, a raw column for each modality, and row (int64); without rows whose id is null.
        dead letters: a letter for each row whose id is null.
    """
    spec = catalog.spec
    ids = table[spec.id].cast(catalog.id_type)
    columns: dict[str, pa.Array | pa.ChunkedArray] = {"item_id": ids}
    title = _as_text(table[spec.title_column]) if spec.title_column else pa.nulls(len(table), pa.string())
    columns["title"] = title
    if spec.text:
        columns["text"] = compose_text(table, spec.text)
    for modality, column in spec.media.items():
        columns[modality] = _as_media(table[column])
    columns["row"] = pa.array(np.arange(first_row, first_row + len(table), dtype=np.int64))
    null = one_chunk(ids.is_null()).to_numpy(zero_copy_only=False)
    detail = f"column {spec.id!r} is null"
    dead = dead_letters_of_rows(ids, null, STAGE, Reason.NULL_ID, detail)
    items = pa.table(columns)
    return (items.filter(pa.array(~null)) if null.any() else items), dead


def hidden_items(rows: pa.Table, id_column: str, column: str) -> pa.Table:
    """Selects the items that may not be shown, by a boolean column of the catalogue.

    Args:
        rows: rows of the catalogue.
        id_column: the column of item ids. Rows without an id are left out.
        column: true where an item may be shown. A missing value counts as false.

    Returns:
        A table of `item_id`.
    """
    hidden = rows.filter(pc.invert(pc.fill_null(rows[column], False)))
    return pa.table({"item_id": hidden[id_column].drop_null()})


class ReadCatalog(beam.PTransform):
    """Reads the columns of a catalogue that are needed, row group by row group.

    Returns:
        A dict of PCollections: `items` (pa.Table of items), `dead` (pa.Table of dead letters), `rows` (int, the number
        of rows read).
    """

    def __init__(self, catalog: Catalog) -> None:
        super().__init__()
        self._catalog = catalog

    def expand(self, root: beam.pvalue.PBegin) -> dict[str, beam.PCollection]:
        out = (
            root
            | "Files" >> beam.Create(list(self._catalog.files))
            | "RowGroups" >> ReadRowGroups(self._catalog.spec.columns)
            | "Items" >> beam.ParDo(_ReadItemsFn(self._catalog)).with_outputs("dead", "rows", main="items")
        )
        return {"items": out.items, "dead": out.dead, "rows": out.rows}


# Beam chooses the coder by these types. Without them it would pickle, and a pickled slice holds its whole table.
@with_output_types(pa.Table, dead=pa.Table, rows=int)
class _ReadItemsFn(beam.DoFn):
    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def process(self, element: tuple[int, int, pa.Table]) -> Iterable[object]:
        ordinal, first_row, table = element
        items, dead = read_items(table, self._catalog, (ordinal << 40) + first_row)
        yield beam.pvalue.TaggedOutput("rows", table.num_rows)
        if dead.num_rows:
            yield beam.pvalue.TaggedOutput("dead", dead)
        advance("read", done=table.num_rows, dead=dead.num_rows)
        yield items


# --- shards ------------------------------------------------------------------------------------------------


def merge_shard(tables: Sequence[pa.Table]) -> tuple[pa.Table, pa.Table]:
    """Joins the pieces of a shard into one table, sorted by id, with one row for each id.

    Among rows with equal ids, the first row in the catalogue stays; the others become dead letters.

    Returns:
        items: item_id, title and a raw column for each modality.
        dead letters: a letter for each row that did not stay.
    """
    table = concat_tables(tables)
    table = table.take(pc.sort_indices(table, [("item_id", "ascending"), ("row", "ascending")]))
    ids = table["item_id"].combine_chunks()
    again = np.zeros(len(table), bool)
    if len(table) > 1:
        again[1:] = pc.equal(ids[1:], ids[:-1]).to_numpy(zero_copy_only=False)
    dead = dead_letters_of_rows(ids, again, STAGE, Reason.DUPLICATE_ID, "the id's first row in the catalogue was kept")
    table = table.drop_columns(["row"])
    return (table.filter(pa.array(~again)) if again.any() else table).combine_chunks(), dead


class ShardByItem(beam.PTransform):
    """Groups items into shards by a stable hash of their ids.

    Args:
        shards: the number of shards.
        catalog: the catalogue that the items come from.

    Returns:
        A dict of PCollections: `shards` ((shard, pa.Table), also for empty shards), `dead` (pa.Table of dead letters).
    """

    def __init__(self, shards: int, catalog: Catalog) -> None:
        super().__init__()
        self._shards = shards
        self._empty = read_items(_empty(catalog), catalog, 0)[0]

    def expand(self, items: beam.PCollection) -> dict[str, beam.PCollection]:
        shards, empty = self._shards, self._empty
        typed = tuple[int, pa.Table]
        pieces = items | "Split" >> beam.FlatMap(
            lambda t: split_by_shard(t, shard_of(t["item_id"], shards))
        ).with_output_types(typed)
        every = (
            items.pipeline
            | "EveryShard" >> beam.Create(range(shards))
            | "Empty" >> beam.Map(lambda s: (s, empty)).with_output_types(typed)
        )
        out = (
            (pieces, every)
            | "Flatten" >> beam.Flatten()
            | "Group" >> beam.GroupByKey()
            | "Merge" >> beam.ParDo(_MergeShardFn()).with_outputs("dead", main="shards")
        )
        return {"shards": out.shards, "dead": out.dead}


def _empty(catalog: Catalog) -> pa.Table:
    return catalog.files[0].schema.empty_table().select(catalog.spec.columns)


@with_output_types(ShardTable, dead=pa.Table)
class _MergeShardFn(beam.DoFn):
    def process(self, element: tuple[int, Iterable[pa.Table]]) -> Iterable[object]:
        shard, pieces = element
        table, dead = merge_shard(list(pieces))
        if dead.num_rows:
            yield beam.pvalue.TaggedOutput("dead", dead)
        advance("shard", done=table.num_rows, dead=dead.num_rows)
        result: ShardTable = (shard, table)
        yield result
