"""Reads and writes whole small files, local or gs://, through Beam's file systems."""

from __future__ import annotations

import uuid

from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems


def is_remote(path: str) -> bool:
    """Returns True if a path is in an object store, such as gs://, and not a local file."""
    return "://" in path


def join(root: str, *parts: str) -> str:
    """Joins the parts of a path with forward slashes, which local paths and gs:// both use."""
    return "/".join([root.rstrip("/"), *(p.strip("/") for p in parts)])


def exists(path: str) -> bool:
    """Returns True if a file exists."""
    return bool(FileSystems.exists(path))


def read_bytes(path: str) -> bytes:
    """Reads a whole file without decompressing it.

    Raises:
        FileNotFoundError: the file does not exist.
    """
    try:
        with FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED) as f:
            return bytes(f.read())
    except FileNotFoundError:
        raise
    except Exception as e:  # Each file system raises its own error for a missing file.
        if not exists(path):
            raise FileNotFoundError(path) from e
        raise


def write_bytes(path: str, data: bytes | memoryview) -> None:
    """Writes a file under another name and renames it: a reader sees the old file or the new one, never a part."""
    beside = f"{path}.{uuid.uuid4().hex[:8]}.tmp"
    with FileSystems.create(beside, compression_type=CompressionTypes.UNCOMPRESSED) as f:
        f.write(data)
    FileSystems.rename([beside], [path])
