"""Whole small files by Beam's file systems: local paths and gs:// alike."""

from __future__ import annotations

import uuid

from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems


def is_remote(path: str) -> bool:
    """Says whether a path names an object store rather than a local file."""
    return "://" in path


def join(root: str, *parts: str) -> str:
    """Joins with forward slashes, which both kinds of path take."""
    return "/".join([root.rstrip("/"), *(p.strip("/") for p in parts)])


def exists(path: str) -> bool:
    """Says whether a file is there."""
    return bool(FileSystems.exists(path))


def read_bytes(path: str) -> bytes:
    """Reads a file whole, as stored.

    Raises:
        FileNotFoundError: it is not there.
    """
    try:
        with FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED) as f:
            return bytes(f.read())
    except FileNotFoundError:
        raise
    except Exception as e:  # for a missing object each file system raises an error of its own
        if not exists(path):
            raise FileNotFoundError(path) from e
        raise


def write_bytes(path: str, data: bytes | memoryview) -> None:
    """Writes a file beside its place and renames it: a reader sees the old file or the new, never a part."""
    beside = f"{path}.{uuid.uuid4().hex[:8]}.tmp"
    with FileSystems.create(beside, compression_type=CompressionTypes.UNCOMPRESSED) as f:
        f.write(data)
    FileSystems.rename([beside], [path])
