"""Runs on disk or in a bucket: shard files, manifests, and the pointer to the published run."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq

from unisono.transforms.base import files
from unisono.transforms.base.errors import JobError
from unisono.transforms.base.progress import advance
from unisono.transforms.base.tables import ShardTable, pack_vectors, unpack_vectors
from unisono.transforms.base.threads import InOrder, at_end_of_bundle

_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_FORMAT = 1  # of the manifest


@dataclass(frozen=True)
class FileRecord:
    """One written file, as the manifest lists it.

    Attributes:
        part: the directory of the run it belongs to, such as `items`.
        path: relative to the store, so that a run may name files of an earlier one.
        shard: which shard, or -1 for a file that is not a shard.
    """

    part: str
    path: str
    shard: int
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a finished run consists of. Readers trust it and nothing else.

    Attributes:
        privacy: what was done for the people in the log (`unisono.transforms.privacy.statement`); None: nothing.
    """

    run_id: str
    created: str
    files: tuple[FileRecord, ...]
    format: int = _FORMAT
    privacy: Mapping[str, Any] | None = None

    def part(self, name: str) -> list[FileRecord]:
        """The files of one part, by shard."""
        return sorted((f for f in self.files if f.part == name), key=lambda f: (f.shard, f.path))

    def to_json(self) -> str:
        """Writes the manifest, files in a fixed order."""
        body = asdict(self) | {"files": [asdict(f) for f in sorted(self.files, key=lambda f: f.path)]}
        if not self.privacy:
            del body["privacy"]
        return json.dumps(body, indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Manifest:
        """Reads what `to_json` wrote."""
        body = json.loads(text)
        body["files"] = tuple(FileRecord(**f) for f in body["files"])
        return cls(**body)


@dataclass(frozen=True)
class Store:
    """A directory or gs:// prefix that holds runs.

    Attributes:
        root: absolute path or gs:// prefix.
    """

    root: str

    def path(self, relative: str) -> str:
        """Makes a manifest path absolute."""
        return files.join(self.root, relative)

    def run_path(self, run_id: str, *parts: str) -> str:
        """The absolute path of something in a run."""
        return files.join(self.root, "runs", run_id, *parts)

    def latest(self) -> str | None:
        """The published run's id, or None in a new store."""
        try:
            return files.read_bytes(self.path("LATEST")).decode().strip()
        except FileNotFoundError:
            return None

    def manifest(self, run_id: str) -> Manifest | None:
        """A run's manifest, or None while the run is not finished."""
        try:
            text = files.read_bytes(self.run_path(run_id, "manifest.json"))
        except FileNotFoundError:
            return None
        try:
            return Manifest.from_json(text)
        except (ValueError, KeyError, TypeError) as e:
            path = self.run_path(run_id, "manifest.json")
            raise JobError(f"{path}: not a manifest; take the run away, or name another in {self.root}/LATEST") from e

    def published(self) -> Manifest:
        """The published run's manifest.

        Raises:
            JobError: the store has no published run.
        """
        run_id = self.latest()
        manifest = self.manifest(run_id) if run_id else None
        if manifest is None:
            raise JobError(f"store: {self.root} has no published run; run `unisono embed` or `unisono nightly` first")
        return manifest

    def check_new_run(self, run_id: str) -> None:
        """Refuses a run id that is malformed or finished, and a store that cannot be written.

        Raises:
            JobError: any of these.
        """
        if not _RUN_ID.fullmatch(run_id):
            raise JobError(
                f"--run-id: {run_id!r} is no run id; use letters, digits, '.', '_' and '-', as in 2026-11-22"
            )
        if self.manifest(run_id) is not None:
            if self.latest() is None:  # killed between the manifest and LATEST: all that is missing is the name
                files.write_bytes(self.path("LATEST"), f"{run_id}\n".encode())
                raise JobError(f"--run-id: run {run_id!r} was finished but not published; it is now, choose another id")
            raise JobError(f"--run-id: run {run_id!r} is already finished in {self.root}; choose another id")
        try:
            files.write_bytes(self.run_path(run_id, "STARTED"), b"")
        except Exception as e:  # whatever the file system raises, the remedy is the same
            reason = str(e).splitlines()[0]
            raise JobError(f"store: cannot write to {self.root} ({reason}); name a place this user may write") from e


def shard_path(run_id: str, part: str, shard: int, shards: int) -> str:
    """Where a shard's file lies, relative to the store."""
    return f"runs/{run_id}/{part}/part-{shard:05d}-of-{shards:05d}.parquet"


def table_bytes(table: pa.Table, metadata: Mapping[str, str] | None = None) -> memoryview:
    """Lays a table out as one Parquet file in one row group.

    Vectors are left uncompressed (they do not compress), without dictionaries and without statistics; the rest is
    zstd.
    """
    table = pack_vectors(table)
    own = {f"unisono.{k}": v for k, v in (metadata or {}).items()}
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), **own})
    sink = pa.BufferOutputStream()
    leaves = [c.path for c in _leaves(table.schema)]
    vectors = {c.path for c in _leaves(table.schema) if pa.types.is_floating(c.dtype) or pa.types.is_int8(c.dtype)}
    pq.write_table(
        table,
        sink,
        row_group_size=max(table.num_rows, 1),
        compression={p: "NONE" if p in vectors else "ZSTD" for p in leaves},
        use_dictionary=[p for p in leaves if p not in vectors],
        write_statistics=[p for p in leaves if p not in vectors],
    )
    return memoryview(sink.getvalue())


@dataclass(frozen=True)
class _Leaf:
    path: str
    dtype: pa.DataType


def _leaves(schema: pa.Schema) -> Iterator[_Leaf]:
    """Walks the leaf columns by the dotted paths under which Parquet knows them."""

    def walk(path: str, dtype: pa.DataType) -> Iterator[_Leaf]:
        if pa.types.is_struct(dtype):
            for i in range(dtype.num_fields):
                yield from walk(f"{path}.{dtype.field(i).name}", dtype.field(i).type)
        elif pa.types.is_list(dtype) or pa.types.is_large_list(dtype) or pa.types.is_fixed_size_list(dtype):
            yield from walk(f"{path}.list.element", dtype.value_type)
        else:
            yield _Leaf(path, dtype)

    for f in schema:
        yield from walk(f.name, f.type)


def write_file(
    store: Store, part: str, path: str, data: bytes | memoryview, shard: int = -1, rows: int = 0
) -> FileRecord:
    """Writes one file of a run and tells what the manifest will say of it. A retry rewrites the same file."""
    files.write_bytes(store.path(path), data)
    return FileRecord(part, path, shard, rows, len(data), hashlib.sha256(data).hexdigest())


def read_table(store: Store, record: FileRecord, columns: list[str] | None = None) -> pa.Table:
    """Reads a shard file, one chunk per column.

    Raises:
        JobError: the file is not the size the manifest says.
    """
    try:
        data = files.read_bytes(store.path(record.path))
    except FileNotFoundError as e:
        raise JobError(
            f"{store.path(record.path)}: missing, and the manifest names it; bring it back or make a new run"
        ) from e
    if len(data) != record.bytes:
        raise JobError(
            f"{store.path(record.path)}: {len(data)} bytes, the manifest says {record.bytes}; "
            "the run is damaged, make a new one"
        )
    return read_shard(data, columns)


def read_shard(data: bytes, columns: list[str] | None = None) -> pa.Table:
    """Reads what `table_bytes` laid out, one chunk per column."""
    return unpack_vectors(pq.read_table(pa.BufferReader(data), columns=columns).combine_chunks())


class WriteShards(beam.PTransform):
    """Writes each `(shard, table)` as the one file of its shard; gives a `FileRecord` each.

    Args:
        store: where.
        run_id: of which run.
        part: its directory, such as `items`.
        shards: how many there are in all.
        metadata: key-value pairs for the Parquet footer, kept under `unisono.`.
    """

    def __init__(self, store: Store, run_id: str, part: str, shards: int, metadata: Mapping[str, str]) -> None:
        super().__init__()
        self._args = (store, run_id, part, shards, {"run_id": run_id, **metadata})

    def expand(self, tables: beam.PCollection) -> beam.PCollection:
        return tables | "Write" >> beam.ParDo(_WriteShardFn(*self._args))


class _WriteShardFn(beam.DoFn):
    def __init__(self, store: Store, run_id: str, part: str, shards: int, metadata: dict[str, str]) -> None:
        self._store, self._run_id, self._part, self._shards = store, run_id, part, shards
        self._metadata = metadata

    def start_bundle(self) -> None:
        self._ahead: InOrder[FileRecord] = InOrder()

    def process(self, element: ShardTable) -> Iterable[FileRecord]:
        for record in self._ahead.put(self._write, *element):
            yield self._written(record)

    def finish_bundle(self) -> Iterable[object]:
        yield from at_end_of_bundle(self._written(record) for record in self._ahead.rest())

    def _write(self, shard: int, table: pa.Table) -> FileRecord:
        path = shard_path(self._run_id, self._part, shard, self._shards)
        return write_file(self._store, self._part, path, table_bytes(table, self._metadata), shard, table.num_rows)

    def _written(self, record: FileRecord) -> FileRecord:
        advance(f"write-{self._part}", done=record.rows)
        return record


def read_json(store: Store, path: str) -> Any:
    """Reads a JSON file of a run."""
    return json.loads(files.read_bytes(store.path(path)))


class ReadShards(beam.PTransform):
    """Reads shard files back from the store, spread anew over the workers."""

    def __init__(self, store: Store) -> None:
        super().__init__()
        self._store = store

    def expand(self, records: beam.PCollection) -> beam.PCollection:
        store = self._store

        def read(record: FileRecord) -> Iterable[ShardTable]:
            yield record.shard, read_table(store, record)

        typed = tuple[int, pa.Table]
        return records | "Spread" >> beam.Reshuffle() | "Read" >> beam.FlatMap(read).with_output_types(typed)
