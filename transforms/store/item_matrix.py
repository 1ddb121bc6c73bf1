"""All item vectors as one memory-mapped matrix on each machine, with an exact index from ids to rows."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.io.filesystems import FileSystems
from filelock import FileLock

from unisono.transforms.base.errors import JobError
from unisono.transforms.base.files import is_remote, join
from unisono.transforms.base.tables import hash_ids, is_id_type, one_chunk, same_id_kind, unpack_vectors
from unisono.transforms.store.parquet import (
    ParquetFile,
    list_parquet,
    open_parquet,
    plain_type,
    read_rows,
    require_column,
)
from unisono.transforms.store.small_vectors import read_vectors

_FORMAT = 2  # version of the format of the files in the cache
# A run uses matrices of item, ranking and history vectors, and one for each modality.
_KEPT_ON_DISK = 16  # how many matrices stay in the cache of a machine, the most recently used ones
_KEPT_IN_PROCESS = 16  # how many matrices a process keeps open
_VECTOR_TYPES = (pa.float32(), pa.float16(), pa.int8())
_KEY = "items"  # the name of the files in error messages
_MODALITY_VECTOR = "_vector"  # suffix of a column of vectors that may hold nulls, after the modality
_DISK_ERRORS = frozenset(
    (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)
)


class HasPath(Protocol):
    """A file of a run, such as `FileRecord`."""

    @property
    def path(self) -> str: ...


@dataclass(frozen=True, eq=False, repr=False)
class ItemMatrix:
    """The vectors of all items. The processes of a machine share them through the operating system's page cache.

    The rows are in the order of the files, which are sorted by path.

    Attributes:
        vectors: float32 [n, dim], memory-mapped, read-only.
        ranks: int64 [n], the position of each row in an order of the items that depends only on their ids.
        id_type: the type of the items' ids.
    """

    vectors: np.memmap
    ranks: np.ndarray
    id_type: pa.DataType
    _ids: pa.Array  # [n], the id of each row, memory-mapped
    _hashes: np.ndarray  # uint64 [n], the hashes of the ids, ascending
    _rows: np.ndarray  # int64 [n], the row of each hash

    def __len__(self) -> int:
        return int(self.vectors.shape[0])

    @property
    def dim(self) -> int:
        """The number of axes of a vector."""
        return int(self.vectors.shape[1])

    @classmethod
    def open(
        cls,
        files: Sequence[str | HasPath],
        root: str = "",
        cache_dir: str | None = None,
        id_column: str = "item_id",
        vector_column: str = "vector",
    ) -> ItemMatrix:
        """Opens the matrix of a list of Parquet files. The first process on a machine that asks for it builds it.

        Building reads one row group at a time. Only the sort of the ids' hashes needs memory for all items, 24 bytes
        for each. A null vector in a modality's column (`<m>_vector`) becomes a row of zeros.

        Args:
            files: paths, or records with a `path`. If a record has a `sha256`, the file's size and time are not read.
            root: the directory or gs:// prefix that relative paths start from.
            cache_dir: the directory of the matrices, 4 · n · dim bytes each; None means a directory under the
                temporary directory.
            id_column: the column of ids, strings or integers.
            vector_column: the column of vectors.

        Raises:
            JobError: there is no file, a file is missing or unreadable, a column is missing or has a wrong type, an id
                is null, a vector in another column than `<m>_vector` is null, the vectors have different lengths, or
                the cache cannot be written.
        """
        sources = _Sources.of(files, root, id_column, vector_column)
        cache = Path(cache_dir) if cache_dir else _default_cache_dir()
        place = cache / sources.key()
        try:
            cache.mkdir(parents=True, exist_ok=True)
            # One lock for the directory: no process may build or prune while another one builds, opens or prunes.
            with FileLock(cache / ".lock"):
                if not (place / "meta.json").exists():
                    _build(sources, cache, place)
                os.utime(place)
                matrix = _open(cls, place)
                _prune(cache, place)
        except OSError as e:
            if e.errno not in _DISK_ERRORS:
                raise
            raise JobError(
                f"{_KEY}: cannot keep the item matrix under {cache} ({e}); free space there or set TMPDIR"
            ) from e
        return matrix

    def ids(self, rows: np.ndarray) -> pa.Array:
        """Returns the ids of rows, int64 [m], in the type of the items' ids."""
        return self._ids.take(pa.array(rows, pa.int64())).cast(self.id_type)

    def lookup(self, ids: pa.Array | pa.ChunkedArray) -> np.ndarray:
        """Finds the row of each id.

        Args:
            ids: strings or integers, [m], with nulls or without.

        Returns:
            int64 [m]; −1 where the item is unknown or the id is null.

        Raises:
            JobError: `ids` are strings and the items' ids are integers, or the other way round.
        """
        if not same_id_kind(plain_type(ids.type), self.id_type):
            raise JobError(
                f"interactions.item: ids are {plain_type(ids.type)}, but the items' ids are {self.id_type}; "
                "write both columns as strings or both as integers"
            )
        # A log names each item in many events, so only distinct ids are hashed and compared.
        if pa.types.is_dictionary(ids.type):
            encoded = one_chunk(ids.unify_dictionaries() if isinstance(ids, pa.ChunkedArray) else ids)
        else:
            encoded = one_chunk(ids).dictionary_encode()
        rows = self._lookup_distinct(encoded.dictionary)
        codes = encoded.indices.fill_null(len(rows)).to_numpy(zero_copy_only=False)
        return np.append(rows, -1)[codes]

    def _lookup_distinct(self, ids: pa.Array) -> np.ndarray:
        """Finds rows by hash, and then compares the ids, because two ids can have the same hash."""
        found = np.full(len(ids), -1, np.int64)
        if len(self) == 0 or len(ids) == 0:
            return found
        wanted = hash_ids(ids)
        ascending = np.argsort(wanted)  # A search for ascending hashes uses the processor's cache: six times as fast.
        place = np.empty(len(ids), np.int64)
        place[ascending] = np.searchsorted(self._hashes, wanted[ascending])
        open_ = np.arange(len(ids))
        while len(open_):  # Ids with equal hashes lie side by side: compare the first ones, then the next ones.
            inside = place[open_] < len(self)
            open_ = open_[inside]
            open_ = open_[self._hashes[place[open_]] == wanted[open_]]
            rows = self._rows[place[open_]]
            same = _equal(self._ids.take(pa.array(rows)), ids.take(pa.array(open_)))
            found[open_[same]] = rows[same]
            open_ = open_[~same]
            place[open_] += 1
        return found


def _equal(a: pa.Array, b: pa.Array) -> np.ndarray:
    if pa.types.is_integer(a.type):  # Arrow compares signed and unsigned integers by value only within int64.
        return (a.to_numpy() == b.to_numpy()) & ((a.to_numpy() < 0) == (b.to_numpy() < 0))
    return pc.equal(a, b.cast(a.type)).to_numpy(zero_copy_only=False)


# --- one matrix in each process ----------------------------------------------------------------------------

_opened: dict[tuple[str, str], ItemMatrix] = {}
_lock = threading.Lock()


def per_process(
    files: Sequence[str | HasPath], root: str = "", cache_dir: str | None = None, vector_column: str = "vector"
) -> ItemMatrix:
    """Returns this process's `ItemMatrix` of these files and this column, and opens it at the first call.

    `beam.utils.shared.Shared` does not fit: it keeps one object, and the stages of a process would evict each other's.

    Args:
        files: see `ItemMatrix.open`.
        root: see `ItemMatrix.open`.
        cache_dir: see `ItemMatrix.open`.
        vector_column: see `ItemMatrix.open`.

    Raises:
        JobError: see `ItemMatrix.open`.
    """
    key = (_Sources.of(files, root, "item_id", vector_column).key(), cache_dir or "")
    with _lock:
        if key not in _opened:
            while len(_opened) >= _KEPT_IN_PROCESS:
                del _opened[next(iter(_opened))]
            _opened[key] = ItemMatrix.open(files, root, cache_dir, vector_column=vector_column)
        return _opened[key]


def modality_vectors(
    files: Sequence[str | HasPath], modality: str, root: str = "", cache_dir: str | None = None
) -> np.ndarray:
    """Returns the items' vectors of one modality.

    Args:
        files: see `ItemMatrix.open`.
        modality: such as `image`.
        root: see `ItemMatrix.open`.
        cache_dir: see `ItemMatrix.open`.

    Returns:
        float32 [n, dim]; a row is zero where the item lacks the modality. If the items have no column of the modality,
        because it could not be fitted, all rows are zero and take no memory.

    Raises:
        JobError: see `ItemMatrix.open`.
    """
    column = modality + _MODALITY_VECTOR
    if column in first_schema(files, root).names:
        return np.asarray(per_process(files, root, cache_dir, column).vectors)
    return np.broadcast_to(np.float32(0), per_process(files, root, cache_dir).vectors.shape)


def first_schema(files: Sequence[str | HasPath], root: str = "") -> pa.Schema:
    """Reads the schema, with its metadata, from the footer of the file whose path comes first.

    Args:
        files: paths, or records with a `path`.
        root: the directory or gs:// prefix that relative paths start from.
    """
    path = min(f if isinstance(f, str) else f.path for f in files)
    with open_parquet(_absolute(path, root)) as f:
        return f.schema_arrow


def _absolute(path: str, root: str) -> str:
    """Joins a relative path to the root, if there is a root."""
    return join(root, path) if root and not (is_remote(path) or path.startswith("/")) else path


# --- building and opening ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Sources:
    """The files and columns that a matrix is built from.

    Attributes:
        files: path and mark of each file, sorted by path. The mark changes when the file's content changes: it is the
            hash of the content, or else the size and time of the file.
        id_column: the column of ids.
        vector_column: the column of vectors.
    """

    files: tuple[tuple[str, str], ...]
    id_column: str
    vector_column: str

    @classmethod
    def of(cls, files: Sequence[str | HasPath], root: str, id_column: str, vector_column: str) -> _Sources:
        if not files:
            raise JobError(f"{_KEY}: no files to read item vectors from; run `unisono embed` first")
        marked: list[tuple[str, str]] = []
        unmarked: list[str] = []
        for f in files:
            path = _absolute(f if isinstance(f, str) else f.path, root)
            sha256 = "" if isinstance(f, str) else getattr(f, "sha256", "")
            if sha256:
                marked.append((path, sha256))
            else:
                unmarked.append(path)
        for path, match in zip(unmarked, FileSystems.match(unmarked) if unmarked else [], strict=True):
            if not match.metadata_list:
                raise JobError(f"{_KEY}: {path} does not exist; run `unisono embed` again")
            m = match.metadata_list[0]
            marked.append((path, f"{m.size_in_bytes} {m.last_updated_in_seconds}"))
        return cls(tuple(sorted(marked)), id_column, vector_column)

    def key(self) -> str:
        body = json.dumps([_FORMAT, self.files, self.id_column, self.vector_column])
        return hashlib.sha256(body.encode()).hexdigest()[:32]


def _default_cache_dir() -> Path:
    return Path(tempfile.gettempdir()) / f"unisono-item-matrix-{os.getuid()}"


def _prune(cache: Path, keep: Path) -> None:
    """Removes all matrices except the most recently used. A process that has one open can go on using it."""
    found = sorted((p for p in cache.iterdir() if p.is_dir() and p != keep), key=lambda p: -p.stat().st_mtime)
    for old in found[_KEPT_ON_DISK - 1 :]:
        shutil.rmtree(old, ignore_errors=True)


def _build(sources: _Sources, cache: Path, place: Path) -> None:
    """Writes vectors, ids and index to a temporary directory, and then renames it."""
    found = list_parquet([path for path, _ in sources.files], _KEY)
    id_key = f"{_KEY}.{sources.id_column}"
    id_type = require_column(found, sources.id_column, id_key, is_id_type, "strings or integers")
    dim = _dimension(found, sources.vector_column)
    for stale in cache.glob("*.tmp"):  # Its process has ended, because this process holds the lock.
        shutil.rmtree(stale, ignore_errors=True)
    beside = place.with_suffix(".tmp")
    beside.mkdir()
    hashes = _write_columns(found, sources, id_type, dim, beside)
    rows = np.argsort(hashes, kind="stable")  # int64; among equal hashes the first row comes first
    np.save(beside / "hashes.npy", hashes[rows])
    np.save(beside / "rows.npy", rows)
    ranks = np.empty_like(rows)
    ranks[rows] = np.arange(len(rows))
    np.save(beside / "ranks.npy", ranks)
    meta = {"rows": len(rows), "integer": pa.types.is_integer(id_type), "id_type": str(id_type)}
    (beside / "meta.json").write_text(json.dumps(meta))
    beside.rename(place)


def _dimension(files: Sequence[ParquetFile], column: str) -> int:
    key = f"{_KEY}.{column}"
    # Some files hold vectors as lists, with the length in the field's metadata. Check the types after unpacking.
    seen = [replace(f, schema=unpack_vectors(f.schema.empty_table()).schema) for f in files]
    require_column(
        seen,
        column,
        key,
        lambda t: pa.types.is_fixed_size_list(t) and t.value_type in _VECTOR_TYPES,
        "fixed_size_list of float32, float16 or int8",
    )
    dims = {f.schema.field(column).type.list_size: f.path for f in seen}
    if len(dims) > 1:
        raise JobError(f"{key}: vectors of different lengths in two files, {dims}; read the items of one run")
    return int(next(iter(dims)))


def _row_tables(files: Sequence[ParquetFile], columns: Sequence[str]) -> Iterator[tuple[str, pa.Table]]:
    for f in files:
        for table in read_rows([f], columns):
            yield f.path, unpack_vectors(table)


def _write_columns(
    files: Sequence[ParquetFile], sources: _Sources, id_type: pa.DataType, dim: int, to: Path
) -> np.ndarray:
    """Writes vectors and ids to plain files, row group by row group; returns the hashes of the ids, uint64 [n]."""
    n = sum(f.num_rows for f in files)
    integer = pa.types.is_integer(id_type)
    hashes = np.empty(n, np.uint64)
    row, octets = 0, 0
    header: dict[str, Any] = {"descr": "<f4", "fortran_order": False, "shape": (n, dim)}
    with (
        (to / "vectors.npy").open("wb") as vectors,
        (to / "ids.bin").open("wb") as ids,
        (to / "ends.bin").open("wb") as ends,
    ):
        np.lib.format.write_array_header_1_0(vectors, header)
        ends.write(np.zeros(1, np.int64).tobytes())
        for path, table in _row_tables(files, (sources.id_column, sources.vector_column)):
            column, present = read_vectors(table, sources.vector_column)
            keys = one_chunk(table[sources.id_column].cast(id_type if integer else pa.large_string()))
            if keys.null_count or not (present.all() or sources.vector_column.endswith(_MODALITY_VECTOR)):
                raise JobError(f"{_KEY}: {path} has a row without id or vector; run `unisono embed` again")
            if not present.all():
                column = np.where(present[:, None], column, np.float32(0))
            vectors.write(np.ascontiguousarray(column, "<f4").data)
            hashes[row : row + len(keys)] = hash_ids(keys)
            if integer:
                ids.write(keys.cast(_integer_type(id_type)).to_numpy().data)
            else:
                offsets = np.frombuffer(keys.buffers()[1], np.int64, len(keys) + 1, keys.offset * 8)
                if len(keys) and offsets[-1] > offsets[0]:
                    ids.write(memoryview(keys.buffers()[2])[offsets[0] : offsets[-1]])
                ends.write((offsets[1:] - offsets[0] + octets).tobytes())
                octets += int(offsets[-1] - offsets[0])
            row += len(keys)
    return hashes


def _integer_type(id_type: pa.DataType) -> pa.DataType:
    return pa.uint64() if id_type == pa.uint64() else pa.int64()


def _open(cls: type[ItemMatrix], place: Path) -> ItemMatrix:
    meta = json.loads((place / "meta.json").read_text())
    n = meta["rows"]

    def buffer(name: str) -> pa.Buffer:
        if (place / name).stat().st_size == 0:  # An empty file cannot be mapped.
            return pa.py_buffer(b"")
        with pa.memory_map(str(place / name)) as f:
            return f.read_buffer()

    id_type = pa.type_for_alias(meta["id_type"])
    if meta["integer"]:
        ids = pa.Array.from_buffers(_integer_type(id_type), n, [None, buffer("ids.bin")])
    else:
        ids = pa.LargeStringArray.from_buffers(n, buffer("ends.bin"), buffer("ids.bin"))
    vectors, ranks, hashes, rows = (
        np.load(place / f"{name}.npy", mmap_mode="r" if n else None)
        for name in ("vectors", "ranks", "hashes", "rows")
    )
    return cls(vectors, ranks, id_type, ids, hashes, rows)
