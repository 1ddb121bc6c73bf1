"""A finished run of a store, opened for reading: every question to a run starts here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from unisono.pipelines.job.job import Job
from unisono.pipelines.job.load import load_job
from unisono.transforms.base import files
from unisono.transforms.base.columns import PROFILES
from unisono.transforms.base.errors import JobError
from unisono.transforms.base.tables import concat_tables, one_chunk, shard_of
from unisono.transforms.space.space import Space
from unisono.transforms.store.parquet import open_parquet
from unisono.transforms.store.runs import FileRecord, Manifest, Store, read_table
from unisono.transforms.store.small_vectors import read_vectors
from unisono.transforms.users.profiles import ProfileSpec

# The command that makes each part of a run. Any run makes the parts that are not named here.
_COMMANDS = {
    "items": "unisono embed",
    "embeddings": "unisono embed",
    "space": "unisono embed",
    "quality": "unisono embed",
    "users": "unisono profile",
    "recommendations": "unisono recommend",
}
_MODALITY_VECTOR = "_vector"


@dataclass(frozen=True, eq=False)
class PublishedRun:
    """A finished run of a store. Everything is read through the run's manifest.

    Attributes:
        store: The store that holds the run.
        manifest: The manifest of the run.
    """

    store: Store
    manifest: Manifest
    _jobs: dict[str, Job] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def open(cls, store: Store, run_id: str | None = None) -> PublishedRun:
        """Opens the published run of a store, or an earlier run by its id.

        Args:
            store: The store.
            run_id: The id of a finished run. None means the published run.

        Raises:
            JobError: The store has no published run, or no finished run of that id.
        """
        if run_id is None:
            return cls(store, store.published())
        manifest = store.manifest(run_id)
        if manifest is None:
            raise JobError(
                f"run: {store.root} has no finished run {run_id!r}; name one of the directories under "
                f"{store.path('runs')} that has a manifest.json, or leave the run out for the published one"
            )
        return cls(store, manifest)

    # --- parts ---

    def records(self, part: str) -> list[FileRecord]:
        """Lists the files of a part, by shard.

        Raises:
            JobError: The run does not have this part. The line names the command that makes it.
        """
        found = self.manifest.part(part)
        if not found:
            command = _COMMANDS.get(part, "unisono nightly")
            raise JobError(
                f"store: run {self.manifest.run_id} in {self.store.root} has no {part}/; run `{command}` first"
            )
        return found

    def table(self, part: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Reads all shards of a part.

        Args:
            part: The name of the part, such as `items`.
            columns: The columns to read, in this order. None means all columns.

        Returns:
            A table with one chunk per shard: shards in order, rows as they are stored (sorted by id in a shard).

        Raises:
            JobError: The run does not have this part, the part does not have a column, or a file is damaged.
        """
        names = self._schema(part).names
        wanted = names if columns is None else list(columns)
        if missing := [c for c in wanted if c not in names]:
            raise JobError(f"columns: {part}/ has no column {missing[0]!r}; it has {', '.join(names)}")
        return pa.concat_tables([read_table(self.store, r, wanted).select(wanted) for r in self.records(part)])

    def rows(self, part: str, ids: pa.Array, key: str, asked: Sequence[object] | None = None) -> pa.Table:
        """Reads the rows of some ids, in the order of the ids, from the shards that hold them.

        Args:
            part: A part whose first column holds unique ids.
            ids: The ids, of the type of that column (see `ids_of`).
            key: What an error line calls such an id: `user` or `item`.
            asked: The ids as the caller gave them, for the error line. None means `ids` themselves.

        Raises:
            JobError: The run does not have this part, or an id is not in it.
        """
        records = self.records(part)
        shards = shard_of(ids, len(records))
        tables, places = [], []
        for shard in np.unique(shards).tolist():
            here = np.flatnonzero(shards == shard)
            table = read_table(self.store, records[shard])
            row = pc.index_in(ids.take(pa.array(here)), value_set=one_chunk(table.column(0)))
            if row.null_count:
                first = int(here[row.is_null().to_numpy(zero_copy_only=False)][0])
                name = ids[first].as_py() if asked is None else asked[first]
                raise JobError(f"{key}: {name!r} is not in {part}/ of run {self.manifest.run_id}")
            tables.append(table.take(row))
            places.append(here)
        if not tables:
            return read_table(self.store, records[0]).slice(0, 0)
        return concat_tables(tables).take(pa.array(np.argsort(np.concatenate(places))))

    def ids_of(self, part: str, values: object, key: str) -> pa.Array:
        """Turns ids that a caller gave into the type of the ids of a part.

        Args:
            part: A part whose first column holds the ids.
            values: One id, or a sequence, NumPy array or Arrow array of ids.
            key: What an error line calls such an id: `user` or `item`.

        Raises:
            JobError: The run does not have this part, or an id is missing or cannot be of its type.
        """
        return id_array(values, key, self._schema(part).field(0).type)

    def vectors(self, modality: str | None = None) -> tuple[pa.Array, np.ndarray]:
        """Reads the item vectors as one matrix, decoded to float32.

        Args:
            modality: None means the fused vectors. A name means the vectors of this modality alone, of the items
                that have one.

        Returns:
            item ids [n], and vectors float32 [n, dim], C-contiguous, unit rows.

        Raises:
            JobError: The run has no items, or its items have no vectors of this modality.
        """
        column = "vector" if modality is None else modality + _MODALITY_VECTOR
        names = self._schema("items").names
        if column not in names:
            have = ", ".join(c.removesuffix(_MODALITY_VECTOR) for c in names if c.endswith(_MODALITY_VECTOR))
            raise JobError(f"modality: the items of run {self.manifest.run_id} have no {modality!r}; choose {have}")
        records = self.records("items")
        ids, matrix, n = [], np.empty((0, 0), np.float32), 0
        for record in records:
            table = read_table(self.store, record, ["item_id", column])
            vectors, present = read_vectors(table, column)
            if record is records[0]:
                matrix = np.empty((sum(r.rows for r in records), vectors.shape[1]), np.float32)
            found = int(np.count_nonzero(present))
            matrix[n : n + found] = vectors if found == len(present) else vectors[present]
            ids.append(one_chunk(table["item_id"]).filter(pa.array(present)))
            n += found
        return pa.concat_arrays(ids), matrix[:n]

    def _schema(self, part: str) -> pa.Schema:
        """Reads the schema of a part in the footer of its first file."""
        path = self.store.path(self.records(part)[0].path)
        try:
            with open_parquet(path) as f:
                return f.schema_arrow
        except (OSError, pa.ArrowException) as e:
            raise JobError(f"{path}: missing or damaged, and the manifest names it; make a new run") from e

    # --- what the run was made with ---

    @cached_property
    def space(self) -> Space:
        """The joint space that the items are in."""
        record = next(r for r in self.records("space") if r.path.endswith(".safetensors"))
        return Space.from_bytes(_read(self.store.path(record.path)))

    @property
    def job(self) -> Job:
        """The job file of the run itself, with every default filled in and every path absolute."""
        return self._job(self.manifest.run_id)

    def job_of(self, part: str) -> Job:
        """Returns the job file of the run that made a part: a run can stand on parts of an earlier run.

        The rows of users/ may be written anew by a run that makes no profiles, with another job file. So the section
        `profiles` is that of the run that made the profiles.

        Raises:
            JobError: The run does not have this part, or that job file is missing or not valid.
        """
        job = self._job(self.records(part)[0].path.split("/")[1])
        made = (self._schema(part).metadata or {}).get(PROFILES) if part == "users" else None
        return job.model_copy(update={"profiles": ProfileSpec(**json.loads(made))}) if made else job

    def _job(self, run_id: str) -> Job:
        if run_id not in self._jobs:
            path = self.store.run_path(run_id, "config.yaml")
            _read(path)  # a missing file gets a line of its own
            try:
                self._jobs[run_id] = load_job(path)
            except JobError as e:
                raise JobError(f"{e}; this version of Unisono cannot read the run's job file: make a new run") from e
        return self._jobs[run_id]


def id_array(values: object, key: str, dtype: pa.DataType | None = None) -> pa.Array:
    """Makes an Arrow array of one id, or of a sequence, NumPy array or Arrow array of ids.

    Args:
        values: The ids, strings or integers.
        key: What an error line calls such an id: `user` or `item`.
        dtype: The type of the result. None means the type that the values have.

    Raises:
        JobError: An id is missing (null) or cannot be of this type.
    """
    if isinstance(values, pa.Scalar):
        values = values.as_py()
    if isinstance(values, str) or not hasattr(values, "__iter__"):
        values = [values]
    arrow = isinstance(values, pa.Array | pa.ChunkedArray)
    try:
        ids = one_chunk(values) if arrow else pa.array(list(values), from_pandas=True)
        ids = ids if dtype is None else ids.cast(dtype)
    except pa.ArrowException as e:
        allowed = f"{dtype}, as the published ids are" if dtype else "strings or integers"
        raise JobError(f"{key}: {' '.join(str(e).split())}; give {allowed}") from e
    if ids.null_count:
        raise JobError(f"{key}: an id is missing (null); give one id for each row")
    return ids


def _read(path: str) -> bytes:
    try:
        return files.read_bytes(path)
    except FileNotFoundError as e:
        raise JobError(f"{path}: missing, and the manifest names it; bring it back or make a new run") from e
