"""A real HTTP object store on loopback, spoken to through google-cloud-storage and Beam's own gs:// file system."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def object_store(bucket: str) -> Iterator[None]:
    """Runs the store with one empty bucket; STORAGE_EMULATOR_HOST leads every client there."""
    from apache_beam.internal.gcp import auth
    from gcp_storage_emulator.server import create_server

    import unisono.transforms.media.fetch

    with pytest.MonkeyPatch.context() as patch:
        # Without credentials Beam asks the metadata server for them for 23 seconds; None makes it anonymous.
        patch.setattr(auth._Credentials, "_credentials_init", True)
        patch.setattr(auth._Credentials, "_credentials", None)
        patch.setattr(unisono.transforms.media.fetch, "_gcs_client", None)
        server = create_server("127.0.0.1", 0, in_memory=True, default_bucket=bucket)
        server.start()
        host, port = server._api._httpd.socket.getsockname()
        patch.setenv("STORAGE_EMULATOR_HOST", f"http://{host}:{port}")
        try:
            yield
        finally:
            server.stop()


def upload(directory: Path, prefix: str) -> None:
    """Copies a directory into the store."""
    from google.cloud import storage  # type: ignore[attr-defined]

    bucket, _, root = prefix.removeprefix("gs://").partition("/")
    client = storage.Client()
    for folder, _, names in os.walk(directory):
        for name in names:
            path = Path(folder) / name
            key = f"{root}/{path.relative_to(directory).as_posix()}"
            client.bucket(bucket).blob(key).upload_from_filename(str(path))
