"""Recognizes logs that were added to sums before, under their own path or as a copy."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems

from unisono.transforms.base.errors import JobError
from unisono.transforms.base.tables import hash_ids, one_chunk
from unisono.transforms.read.interactions import Interactions, times_us
from unisono.transforms.store.parquet import ParquetFile, plain_type, read_first_rows

HEAD_ROWS = 1000
_THREADS = 16
_TAIL_BYTES = 65_536
_REMEDY = "name the new logs only, or set profiles.incremental: restart to start again from all of them"


@dataclass(frozen=True)
class KnownLog:
    """What is kept of a log that was added.

    Attributes:
        path: the file.
        bytes: the size of the file.
        rows: the number of rows. None means that the entry was written before rows were kept.
        head: a hash of the first `HEAD_ROWS` events, or of all if there are fewer, hexadecimal. None means that the
            entry was written before there was one.
    """

    path: str
    bytes: int
    rows: int | None = None
    head: str | None = None

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> KnownLog:
        """Reads an entry of state/logs.json."""
        return cls(entry["path"], entry["bytes"], entry.get("rows"), entry.get("head"))


def describe_logs(log: Interactions) -> list[KnownLog]:
    """Describes the files of a log that have rows.

    Args:
        log: the log, with the pseudonyms that it is read with.

    Raises:
        JobError: a file is damaged or missing.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(lambda f: _describe(f, log), (f for f in log.files if f.num_rows)))


def _describe(file: ParquetFile, log: Interactions) -> KnownLog:
    at = log.spec
    raw = log.hide_users(read_first_rows(file, at.columns, HEAD_ROWS))
    time, _ = times_us(raw[at.time].cast(plain_type(raw[at.time].type)), at.time_unit)
    words = [_hash(raw[c]) for c in (at.user, at.item, at.event) if c] + [time.astype(np.int64).view(np.uint64)]
    digest = hashlib.sha256(np.stack(words, axis=1).astype("<u8").tobytes())
    return KnownLog(file.path, file.size, file.num_rows, digest.hexdigest())


def _hash(column: pa.ChunkedArray) -> np.ndarray:
    ids = one_chunk(column.cast(plain_type(column.type)))
    return hash_ids(ids.cast(pa.string()).fill_null(""))


def check_new_logs(new: Sequence[KnownLog], before: Sequence[KnownLog]) -> None:
    """Refuses logs whose events would count twice.

    Args:
        new: the logs that are to be added.
        before: the logs that were added before.

    Raises:
        JobError: a log has the path of an earlier log, or begins with the events of an earlier log or of another new
            one, or is a copy of what lies at the path of an earlier log now.
    """
    paths, heads = ({getattr(b, by): b for b in before} for by in ("path", "head"))
    for one in new:
        if (old := paths.get(one.path)) is not None:
            raise JobError(f"interactions.path: {one.path} is in the published state already, {_say_change(old, one)}")
        if one.head in heads:
            raise JobError(
                f"interactions.path: {one.path} begins with the same events as {heads[one.head].path}, which is in the "
                f"published state already, and would count twice; {_REMEDY}"
            )
    first: dict[str | None, str] = {}
    for one in new:
        if (other := first.setdefault(one.head, one.path)) != one.path:
            raise JobError(
                f"interactions.path: {one.path} begins with the same events as {other}, and would count twice; leave "
                "one of them out"
            )
    _refuse_copies_of_grown(new, before)


def _say_change(old: KnownLog, new: KnownLog) -> str:
    if old.bytes == new.bytes and old.head in (new.head, None):
        return f"and would count twice; {_REMEDY}"
    was, now = f"{old.bytes:,} bytes", f"{new.bytes:,}"
    if old.rows is not None:
        was, now = f"{old.rows:,} rows", f"{new.rows:,}"
    return (
        f"with {was}, and now has {now}; write new events to files of other names, or set profiles.incremental: "
        "restart to start again from all logs"
    )


def _refuse_copies_of_grown(new: Sequence[KnownLog], before: Sequence[KnownLog]) -> None:
    with ThreadPoolExecutor(_THREADS) as pool:
        sizes = list(pool.map(_size_now, (b.path for b in before)))
    for old, size in zip(before, sizes, strict=True):
        for one in new:
            if size == one.bytes != old.bytes and _tail(old.path, size) == _tail(one.path, size):
                raise JobError(
                    f"interactions.path: {one.path} is a copy of {old.path}, of which a part is in the published state "
                    f"already and would count twice; {_REMEDY}"
                )


def _size_now(path: str) -> int | None:
    """Returns the size of a file; None if it is gone, or out of reach by now, as old logs may be."""
    try:
        found = FileSystems.match([path])[0].metadata_list
    except (BeamIOError, OSError):
        return None
    return next((m.size_in_bytes for m in found if m.path == path), None)


def _tail(path: str, size: int) -> bytes:
    """Reads the end of a file: the footer of a Parquet file, which holds the statistics of its columns."""
    with FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED) as f:
        f.seek(max(0, size - _TAIL_BYTES), os.SEEK_SET)
        return bytes(f.read())
