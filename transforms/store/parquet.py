"""Parquet files as they lie: footers before any work, then row groups, spread over the workers."""

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
_MAX_TABLE_BYTES = 256 * 2**20  # uncompressed; a larger row group comes out in several tables
_MAX_TABLE_ROWS = 2**20


@dataclass(frozen=True)
class ParquetFile:
    """One input file, as its footer describes it.

    Attributes:
        ordinal: its place among the files of the job, sorted by path.
        path: absolute or gs://.
        size: bytes as stored.
        row_groups: rows of each row group.
    """

    ordinal: int
    path: str
    size: int
    row_groups: tuple[int, ...]
    schema: pa.Schema = field(repr=False)

    @property
    def num_rows(self) -> int:
        """Rows of the file."""
        return sum(self.row_groups)


@contextmanager
def open_parquet(path: str) -> Iterator[pq.ParquetFile]:
    """Opens a Parquet file by Beam's file systems.

    Raises:
        OSError, pa.ArrowException: it cannot be opened, or its footer is not Parquet.
    """
    # Uncompressed: the default would unpack a file by the look of its name.
    with FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED) as f:
        # Pre-buffering merges the small reads of neighbouring columns, each a request on object storage.
        yield pq.ParquetFile(pa.PythonFile(f, mode="r"), pre_buffer=is_remote(path))


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


# --- footers -----------------------------------------------------------------------------------------------


def list_parquet(pattern: str | Sequence[str], key: str) -> list[ParquetFile]:
    """Finds the files of a glob and reads every footer.

    Args:
        pattern: one or several globs or paths, absolute or gs://.
        key: the job-file key that messages name.

    Returns:
        Files sorted by path, each once; they may hold no rows.

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
            f"{key}: {path} is no readable Parquet file ({_one_line(e)}); "
            "write it again or narrow the pattern"
        ) from e


# --- columns -----------------------------------------------------------------------------------------------


def plain_type(dtype: pa.DataType) -> pa.DataType:
    """Gives the type of a column's values: what a dictionary encodes, the plain twin of a view."""
    if pa.types.is_dictionary(dtype):
        return plain_type(dtype.value_type)
    if pa.types.is_string_view(dtype):
        return pa.string()
    return pa.binary() if pa.types.is_binary_view(dtype) else dtype


def _kind(dtype: pa.DataType) -> str:
    """Names what values of a type have in common: two files may differ in width, not in kind."""
    t, dtype = pa.types, plain_type(dtype)
    tests: dict[str, Callable[[pa.DataType], bool]] = {
        "unsigned 64-bit integers": t.is_uint64,  # no type holds these and negative ones
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
    """The type that holds values of all `types`, which are of one kind."""
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
    """Checks that every file has a column, of an allowed type and of one kind.

    A file in which the column's type is `null` (every value is missing) agrees with any other.

    Args:
        files: at least one.
        key: the job-file key that names the column.
        allowed: says whether a type will do; dictionaries are shown as what they encode.
        allowed_text: what is allowed, for a person.

    Returns:
        The type that holds the values of all files, without dictionaries.

    Raises:
        JobError: the column is missing or there twice, of a type not allowed, or of two kinds in two files.
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
    """Reads files row group by row group, only some columns; row groups are spread over the workers.

    Takes a PCollection of `ParquetFile`, or of `(file ordinal, path)` for files that no footer was read of.

    Args:
        columns: names; a mapping also gives the type that each is cast to.

    Returns:
        A PCollection of `(file ordinal, first row, pa.Table)`, one element a row group, or several where it
        is over 256 MiB or 2^20 rows. The first row is counted from the start of the file.
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
    """Reads columns of one row group, in tables of a bounded size.

    Raises:
        JobError: the file or one of its pages is damaged.
    """
    try:
        yield from _row_group_tables(path, group, list(columns))
    except (pa.ArrowException, OSError) as e:
        # Of a bad page Arrow says plain OSError; its subclasses are faults of the way: Beam tries again.
        if isinstance(e, OSError) and type(e) not in (OSError, FileNotFoundError):
            raise
        raise JobError(
            f"{path}: row group {group} cannot be read ({_one_line(e)}); "
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
