"""Reads Parquet files: all footers before any work starts, and then row groups, spread over the workers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems

from unisono.transforms.base.errors import JobError
from unisono.transforms.base.files import is_remote

RowGroupTable = tuple[int, int, pa.Table]

_FOOTER_THREADS = 16
_MAX_TABLE_BYTES = 256 * 2**20  # uncompressed; a larger row group is read as several tables
_MAX_TABLE_ROWS = 2**20


@dataclass(frozen=True)
class ParquetFile:
    """One input file, as its footer describes it.

    Attributes:
        ordinal: the file's number among the job's files, which are sorted by path.
        path: absolute or gs://.
        size: bytes of the file.
        row_groups: the number of rows of each row group.
        schema: the file's Arrow schema.
    """

    ordinal: int
    path: str
    size: int
    row_groups: tuple[int, ...]
    schema: pa.Schema = field(repr=False)

    @property
    def num_rows(self) -> int:
        """The number of rows of the file."""
        return sum(self.row_groups)


@contextmanager
def open_parquet(path: str) -> Iterator[pq.ParquetFile]:
    """Opens a Parquet file through Beam's file systems.

    Raises:
        OSError: the file cannot be opened or read.
        pa.ArrowException: the file's footer is not Parquet.
    """
    # By default, Beam decompresses a file whose name looks compressed.
    with FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED) as f:
        # Pre-buffering merges the small reads of neighbouring columns: in an object store, each read is a request.
        yield pq.ParquetFile(pa.PythonFile(f, mode="r"), pre_buffer=is_remote(path))


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


# --- footers -----------------------------------------------------------------------------------------------


def list_parquet(pattern: str | Sequence[str], key: str) -> list[ParquetFile]:
    """Finds the files that match globs, and reads all their footers.

    Args:
        pattern: one or several globs or paths, absolute or gs://.
        key: the job-file key for error messages.

    Returns:
        The files, sorted by path, each once; files without rows are among them.

    Raises:
        JobError: a pattern cannot be listed or matches nothing, or a file is not readable Parquet.
    """
    sizes: dict[str, int] = {}
    for one in [pattern] if isinstance(pattern, str) else pattern:
        try:
            found = FileSystems.match([one])[0].metadata_list
        except (BeamIOError, ValueError, OSError) as e:
            raise JobError(f"{key}: cannot list {one} ({_one_line(e)}); check path and access") from e
        if not found:
            raise JobError(f"{key}: no file matches {one}; give a file or a glob such as logs/*.parquet")
        sizes.update((m.path, m.size_in_bytes) for m in found)
    paths = sorted(sizes)
    with ThreadPoolExecutor(min(_FOOTER_THREADS, len(paths))) as pool:
        return list(pool.map(lambda i: _read_footer(i, paths[i], sizes[paths[i]], key), range(len(paths))))


def _read_footer(ordinal: int, path: str, size: int, key: str) -> ParquetFile:
    try:
        with open_parquet(path) as f:
            meta = f.metadata
            groups = tuple(meta.row_group(i).num_rows for i in range(meta.num_row_groups))
            return ParquetFile(ordinal, path, size, groups, f.schema_arrow)
    except IsADirectoryError as e:
        raise JobError(f"{key}: {path} is a directory; name its files: {path.rstrip('/')}/*.parquet") from e
    except (pa.ArrowException, OSError) as e:
        raise JobError(
            f"{key}: {path} is not a readable Parquet file ({_one_line(e)}); "
            "write it again or narrow the pattern"
        ) from e


# --- columns -----------------------------------------------------------------------------------------------


def plain_type(dtype: pa.DataType) -> pa.DataType:
    """Returns the type of a column's values: for a dictionary, the type of its entries; for a view, the plain type."""
    if pa.types.is_dictionary(dtype):
        return plain_type(dtype.value_type)
    if pa.types.is_string_view(dtype):
        return pa.string()
    return pa.binary() if pa.types.is_binary_view(dtype) else dtype


def _kind(dtype: pa.DataType) -> str:
    """Names the kind of a type's values. Two files may differ in the width of their values, but not in the kind."""
    t, dtype = pa.types, plain_type(dtype)
    tests: dict[str, Callable[[pa.DataType], bool]] = {
        "unsigned 64-bit integers": t.is_uint64,  # No integer type holds all of these and negative numbers.
        "integers": t.is_integer,
        "floats": t.is_floating,
        "strings": lambda d: t.is_string(d) or t.is_large_string(d),
        "bytes": lambda d: t.is_binary(d) or t.is_large_binary(d),
        "times": lambda d: t.is_timestamp(d) or t.is_date(d),
    }
    if t.is_list(dtype) or t.is_large_list(dtype) or t.is_fixed_size_list(dtype):
        return f"lists of {_kind(dtype.value_type)}"
    return next((name for name, test in tests.items() if test(dtype)), str(dtype))


def _common_type(types: Sequence[pa.DataType]) -> pa.DataType:
    """Returns a type that holds the values of all `types`, which must be of one kind."""
    distinct = list(dict.fromkeys(types))
    if len(distinct) == 1:
        return distinct[0]
    if all(pa.types.is_integer(d) for d in distinct):
        return pa.int64()
    wide = (d for d in distinct if pa.types.is_large_string(d) or pa.types.is_large_binary(d))
    return next(wide, distinct[0])


def require_column(
    files: Sequence[ParquetFile],
    column: str,
    key: str,
    allowed: Callable[[pa.DataType], bool],
    allowed_text: str,
) -> pa.DataType:
    """Checks that all files have a column, with an allowed type and with values of one kind.

    A column of type `null`, in which all values are missing, matches the column of any other file.

    Args:
        files: at least one file.
        column: the name of the column.
        key: the job-file key that names the column, for error messages.
        allowed: returns True for an allowed type; it is called with the type of a dictionary's entries.
        allowed_text: the allowed types, for error messages.

    Returns:
        A type that holds the values of all files; never a dictionary.

    Raises:
        JobError: a file has no such column or two of them, the type is not allowed, or two files have values of
            different kinds.
    """
    typed: list[tuple[ParquetFile, pa.DataType]] = []
    for f in files:
        names = f.schema.names
        if names.count(column) != 1:
            wrong = "no column" if column not in names else f"{names.count(column)} columns"
            have = ", ".join(f"{n} ({plain_type(f.schema.field(i).type)})" for i, n in enumerate(names))
            raise JobError(f"{key}: {wrong} {column!r} in {f.path}; it has {have or 'none'}; name one")
        dtype = plain_type(f.schema.field(column).type)
        if not pa.types.is_null(dtype):
            typed.append((f, dtype))
    typed = typed or [(files[0], pa.null())]
    first, first_type = typed[0]
    for f, dtype in typed:
        if not allowed(dtype):
            raise JobError(f"{key}: column {column!r} of {f.path} is {dtype}; allowed: {allowed_text}")
        if _kind(dtype) != _kind(first_type):
            raise JobError(
                f"{key}: column {column!r} is {first_type} in {first.path} and {dtype} in {f.path}; "
                "write both files alike or narrow the pattern"
            )
    return _common_type([dtype for _, dtype in typed])


# --- row groups --------------------------------------------------------------------------------------------


class ReadRowGroups(beam.PTransform):
    """Reads some columns of files, row group by row group; row groups are spread over the workers.

    Takes a PCollection of `ParquetFile`, or of `(file ordinal, path)` for files whose footers have not been read.

    Args:
        columns: the names of the columns; in a mapping, each name has the type to cast the column to.

    Returns:
        A PCollection of `(file ordinal, first row, pa.Table)`: one element for each row group, or several if it has
        more than 256 MiB or 2^20 rows. The first row's number counts from the start of the file.
    """

    def __init__(self, columns: Sequence[str] | Mapping[str, pa.DataType]) -> None:
        super().__init__()
        self._names = list(columns)
        self._types = dict(columns) if isinstance(columns, Mapping) else {}

    def expand(self, files: beam.PCollection) -> beam.PCollection:
        return (
            files
            | "List" >> beam.FlatMap(_list_row_groups).with_output_types(tuple[int, str, int, int])
            | "Spread" >> beam.Reshuffle()
            | "Read" >> beam.ParDo(_ReadRowGroupFn(self._names, self._types)).with_output_types(RowGroupTable)
        )


def _list_row_groups(file: ParquetFile | tuple[int, str]) -> Iterable[tuple[int, str, int, int]]:
    if not isinstance(file, ParquetFile):
        file = _read_footer(file[0], file[1], 0, "input")
    first_row = 0
    for group, rows in enumerate(file.row_groups):
        if rows:
            yield file.ordinal, file.path, group, first_row
        first_row += rows


class _ReadRowGroupFn(beam.DoFn):
    def __init__(self, names: list[str], types: dict[str, pa.DataType]) -> None:
        self._names, self._types = names, types

    def process(self, element: tuple[int, str, int, int]) -> Iterable[RowGroupTable]:
        ordinal, path, group, first_row = element
        for table in read_row_group(path, group, self._names):
            yield ordinal, first_row, self._cast(table)
            first_row += table.num_rows

    def _cast(self, table: pa.Table) -> pa.Table:
        if not self._types:
            return table
        return table.cast(pa.schema([(name, self._types[name]) for name in self._names]))


def read_row_group(path: str, group: int, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Reads columns of one row group, as tables of at most 256 MiB (uncompressed) and 2^20 rows.

    Args:
        path: the file, absolute or gs://.
        group: the number of the row group in the file.
        columns: the names of the columns.

    Raises:
        JobError: the file or one of its pages is damaged, or the file is missing.
        OSError: the file could not be reached; Beam tries again.
    """
    try:
        yield from _row_group_tables(path, group, list(columns))
    except (pa.ArrowException, OSError) as e:
        # For a damaged page, Arrow raises OSError itself. Its subclasses mean that the file could not be reached.
        if isinstance(e, OSError) and type(e) not in (OSError, FileNotFoundError):
            raise
        raise JobError(
            f"{path}: row group {group} cannot be read ({_one_line(e)}); "
            "write the file again or take it out of the pattern"
        ) from e


def read_rows(files: Iterable[ParquetFile], columns: Sequence[str]) -> Iterator[pa.Table]:
    """Reads columns of all rows of some files on this machine, file by file; see `read_row_group`.

    Args:
        files: the files.
        columns: the names of the columns.

    Raises:
        JobError: a file is damaged or missing.
    """
    for file in files:
        for group in range(len(file.row_groups)):
            yield from read_row_group(file.path, group, columns)


def read_first_rows(file: ParquetFile, columns: Sequence[str], most: int) -> pa.Table:
    """Reads columns of the first rows of a file, at most `most` rows.

    Raises:
        JobError: the file is damaged or missing.
    """
    try:
        with open_parquet(file.path) as f:
            batches, rows = [], 0
            for batch in f.iter_batches(most, columns=list(columns)):
                batches.append(batch.slice(0, most - rows))
                rows += len(batches[-1])
                if rows == most:
                    break
            schema = pa.schema([file.schema.field(c) for c in columns])
            return pa.Table.from_batches([b.select(columns) for b in batches], schema)
    except (pa.ArrowException, OSError) as e:
        raise JobError(
            f"{file.path}: the first rows cannot be read ({_one_line(e)}); "
            "write the file again or take it out of the pattern"
        ) from e


def _row_group_tables(path: str, group: int, columns: list[str]) -> Iterator[pa.Table]:
    with open_parquet(path) as f:
        meta = f.metadata.row_group(group)
        wanted = set(columns)
        chunks = (meta.column(i) for i in range(meta.num_columns))
        size = sum(c.total_uncompressed_size for c in chunks if c.path_in_schema.split(".")[0] in wanted)
        rows = max(1, min(_MAX_TABLE_ROWS, meta.num_rows * _MAX_TABLE_BYTES // max(size, 1)))
        if meta.num_rows <= rows:
            yield f.read_row_group(group, columns).select(columns)
        else:
            for batch in f.iter_batches(rows, [group], columns):
                yield pa.Table.from_batches([batch]).select(columns)
