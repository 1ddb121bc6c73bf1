"""Runs in a directory or a bucket: shard files, manifests, and LATEST, which names the published run."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq

from unisono.transforms.base import files
from unisono.transforms.base.errors import JobError
from unisono.transforms.base.progress import advance
from unisono.transforms.base.tables import ShardTable, pack_vectors, unpack_vectors
from unisono.transforms.base.threads import InOrder, at_end_of_bundle
from unisono.transforms.store.privacy import PrivacyStatement

_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_FORMAT = 1  # version of the manifest's format


@dataclass(frozen=True)
class FileRecord:
    """One written file, as the manifest lists it.

    Attributes:
        part: the directory in the run that the file belongs to, such as `items`.
        path: relative to the store, because a manifest can also list files of an earlier run.
        shard: the number of the shard; -1 means that the file is not a shard.
        rows: rows in a shard file; 0 for other files.
        bytes: the size of the file.
        sha256: the hash of the file's content, hexadecimal.
    """

    part: str
    path: str
    shard: int
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The list of all files of a finished run. Readers use the files that it lists and no others.

    Attributes:
        run_id: the run's id.
        created: UTC time of launch, ISO 8601.
        files: every file of the run, and the files of earlier runs that it uses.
        format: version of the manifest's format.
        privacy: how the users in the log were protected.
    """

    run_id: str
    created: str
    files: tuple[FileRecord, ...]
    format: int = _FORMAT
    privacy: PrivacyStatement = field(default_factory=PrivacyStatement)

    def part(self, name: str) -> list[FileRecord]:
        """Returns the files of one part, sorted by shard."""
        return sorted((f for f in self.files if f.part == name), key=lambda f: (f.shard, f.path))

    def to_json(self) -> str:
        """Returns the manifest as JSON: files sorted by path, and `privacy` only if something was done."""
        body: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        body["files"] = [asdict(f) for f in sorted(self.files, key=lambda f: f.path)]
        body["privacy"] = self.privacy.to_json()
        if not body["privacy"]:
            del body["privacy"]
        return json.dumps(body, indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Manifest:
        """Reads what `to_json` returned.

        Raises:
            ValueError: the text is not JSON.
            KeyError, TypeError: the JSON is not a manifest.
        """
        body = json.loads(text)
        body["files"] = tuple(FileRecord(**f) for f in body["files"])
        body["privacy"] = PrivacyStatement.from_json(body.get("privacy") or {})
        return cls(**body)


@dataclass(frozen=True)
class Store:
    """A directory or gs:// prefix that holds runs.

    Attributes:
        root: absolute path or gs:// prefix.
    """

    root: str

    def path(self, relative: str) -> str:
        """Returns the absolute path of a file that a manifest lists."""
        return files.join(self.root, relative)

    def run_path(self, run_id: str, *parts: str) -> str:
        """Returns the absolute path of a file or directory in a run."""
        return files.join(self.root, "runs", run_id, *parts)

    def latest(self) -> str | None:
        """Returns the published run's id; None means that no run is published."""
        try:
            return files.read_bytes(self.path("LATEST")).decode().strip()
        except FileNotFoundError:
            return None

    def manifest(self, run_id: str) -> Manifest | None:
        """Returns a run's manifest; None means that the run is not finished.

        Raises:
            JobError: the manifest is damaged.
        """
        try:
            text = files.read_bytes(self.run_path(run_id, "manifest.json"))
        except FileNotFoundError:
            return None
        try:
            return Manifest.from_json(text)
        except (ValueError, KeyError, TypeError) as e:
            path = self.run_path(run_id, "manifest.json")
            raise JobError(f"{path}: not a manifest; delete the run, or name another one in {self.root}/LATEST") from e

    def published(self) -> Manifest:
        """Returns the published run's manifest.

        Raises:
            JobError: the store has no published run.
        """
        run_id = self.latest()
        manifest = self.manifest(run_id) if run_id else None
        if manifest is None:
            raise JobError(f"store: {self.root} has no published run; run `unisono embed` or `unisono nightly` first")
        return manifest

    def check_new_run(self, run_id: str) -> None:
        """Checks that a run can be made under this id, and creates its directory.

        If a run with this id has a manifest and the store has no published run, that run was killed just before it was
        published. Then it is published here.

        Raises:
            JobError: the id is malformed, a run with this id is finished, or the store cannot be written.
        """
        if not _RUN_ID.fullmatch(run_id):
            raise JobError(
                f"--run-id: {run_id!r} is not a run id; use letters, digits, '.', '_' and '-', as in 2026-11-22"
            )
        if self.manifest(run_id) is not None:
            if self.latest() is None:  # The run was killed after it wrote the manifest and before it wrote LATEST.
                files.write_bytes(self.path("LATEST"), f"{run_id}\n".encode())
                raise JobError(
                    f"--run-id: run {run_id!r} was finished but not published; it is published now, choose another id"
                )
            raise JobError(f"--run-id: run {run_id!r} is already finished in {self.root}; choose another id")
        try:
            files.write_bytes(self.run_path(run_id, "STARTED"), b"")
        except Exception as e:  # Each file system raises its own errors, and the remedy is the same for all.
            reason = str(e).splitlines()[0]
            raise JobError(
                f"store: cannot write to {self.root} ({reason}); name a place that this user can write to"
            ) from e


def shard_path(run_id: str, part: str, shard: int, shards: int) -> str:
    """Returns the path of a shard's file, relative to the store."""
    return f"runs/{run_id}/{part}/part-{shard:05d}-of-{shards:05d}.parquet"


def table_bytes(table: pa.Table, metadata: Mapping[str, str] | None = None) -> memoryview:
    """Encodes a table as a Parquet file with one row group.

    Vectors do not get smaller by compression: they are stored without compression, dictionary and statistics. All other
    columns are compressed with zstd.

    Args:
        table: any table; nullable vectors are packed.
        metadata: key-value pairs for the Parquet footer; each key gets the prefix `unisono.`.
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
    """Lists the leaf columns of a schema, with the dotted paths that Parquet gives them."""

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
    """Writes one file of a run and returns its record for the manifest. A retry writes the same file again."""
    files.write_bytes(store.path(path), data)
    sha256 = hashlib.sha256(data).hexdigest()
    return FileRecord(part, path, shard=shard, rows=rows, bytes=len(data), sha256=sha256)


def read_table(store: Store, record: FileRecord, columns: list[str] | None = None) -> pa.Table:
    """Reads a shard file, with one chunk per column.

    Args:
        store: the store that the file is in.
        record: the file, as the manifest lists it.
        columns: the columns to read; None means all.

    Raises:
        JobError: the file is missing, or its size is not the size in the manifest.
    """
    try:
        data = files.read_bytes(store.path(record.path))
    except FileNotFoundError as e:
        raise JobError(
            f"{store.path(record.path)}: missing, but the manifest lists it; bring it back or make a new run"
        ) from e
    if len(data) != record.bytes:
        raise JobError(
            f"{store.path(record.path)}: {len(data)} bytes, the manifest says {record.bytes}; "
            "the run is damaged, make a new one"
        )
    return read_shard(data, columns)


def read_shard(data: bytes, columns: list[str] | None = None) -> pa.Table:
    """Decodes a file that `table_bytes` encoded, with one chunk per column."""
    return unpack_vectors(pq.read_table(pa.BufferReader(data), columns=columns).combine_chunks())


class WriteShards(beam.PTransform):
    """Writes each `(shard, table)` as one file and outputs its `FileRecord`.

    Args:
        store: the store to write to.
        run_id: the run that the files belong to.
        part: the directory in the run, such as `items`.
        shards: the number of all shards.
        metadata: key-value pairs for the Parquet footer; each key gets the prefix `unisono.`.
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
        data = table_bytes(table, self._metadata)
        return write_file(self._store, self._part, path, data, shard=shard, rows=table.num_rows)

    def _written(self, record: FileRecord) -> FileRecord:
        advance(f"write-{self._part}", done=record.rows)
        return record


def read_json(store: Store, path: str) -> Any:
    """Reads a JSON file of a run.

    Args:
        store: the store that the file is in.
        path: relative to the store.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not JSON.
    """
    return json.loads(files.read_bytes(store.path(path)))


class ReadShards(beam.PTransform):
    """Reads shard files from the store: takes `FileRecord`s, outputs `(shard, table)`, spread over the workers."""

    def __init__(self, store: Store) -> None:
        super().__init__()
        self._store = store

    def expand(self, records: beam.PCollection) -> beam.PCollection:
        store = self._store

        def read(record: FileRecord) -> Iterable[ShardTable]:
            yield record.shard, read_table(store, record)

        typed = tuple[int, pa.Table]
        return records | "Spread" >> beam.Reshuffle() | "Read" >> beam.FlatMap(read).with_output_types(typed)
