"""Fetches image and audio files by URI, from the places that the job allows."""

from __future__ import annotations

import os
import posixpath
import random
import threading
import time
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from unisono.transforms.base.errors import InputError, Reason
from unisono.transforms.base.files import is_remote, join
from unisono.transforms.media.limits import MediaLimits

_ATTEMPTS = 4  # at reading a local file, for errors that may pass (as on a network file system)
_GCS_DEADLINE_S = 60.0  # for all attempts at reading one object together

_gcs_client: Any = None
_gcs_lock = threading.Lock()


@dataclass(frozen=True)
class MediaSource:
    """The places that image and audio files may be fetched from.

    Attributes:
        root: absolute directory, or gs:// prefix. Relative URIs are relative to it, and files below it may be read.
        allow: further directories and gs:// prefixes. Files below them may be read too.
        limits: what one file may cost.
    """

    root: str
    allow: tuple[str, ...] = ()
    limits: MediaLimits = field(default_factory=MediaLimits)

    @cached_property
    def _prefixes(self) -> tuple[str, ...]:
        return tuple(_normalize(p) for p in (self.root, *self.allow))

    def resolve(self, uri: str) -> str:
        """Makes a URI absolute.

        Raises:
            InputError: URI_NOT_ALLOWED; the URI lies outside `root` and `allow`, or is neither a path nor gs://.
        """
        if uri.startswith("file://"):
            uri = uri[len("file://") :]
        if is_remote(uri) and not uri.startswith("gs://"):
            raise InputError(Reason.URI_NOT_ALLOWED, "only local paths and gs:// are read")
        path = _normalize(uri if is_remote(uri) or uri.startswith("/") else join(self.root, uri))
        if not any(path.startswith(prefix.rstrip("/") + "/") for prefix in self._prefixes):
            raise InputError(Reason.URI_NOT_ALLOWED, "outside catalog.media_root and catalog.allow")
        return path

    def fetch(self, value: str | bytes) -> bytes:
        """Reads the file at a URI.

        Args:
            value: a URI, or the bytes of a file that the catalogue holds itself, which are returned unchanged.

        Raises:
            InputError: URI_NOT_ALLOWED, NOT_FOUND, TOO_MANY_BYTES, or UNAVAILABLE (after retries).
        """
        if isinstance(value, bytes):
            if len(value) > self.limits.max_media_bytes:
                raise self._too_large()
            return value
        path = self.resolve(value)
        read = _read_gcs if is_remote(path) else _read_local
        data = read(path, self.limits.max_media_bytes)
        if len(data) > self.limits.max_media_bytes:
            raise self._too_large()
        return data

    def _too_large(self) -> InputError:
        return InputError(Reason.TOO_MANY_BYTES, f"over {self.limits.max_media_bytes} bytes (limits.max_media_bytes)")


def _normalize(path: str) -> str:
    """Removes `..` from a path. Links in a local path are followed, so that no link leads out of the root either."""
    if is_remote(path):
        scheme, rest = path.split("://", 1)
        bucket, _, key = rest.partition("/")
        return f"{scheme}://{bucket}{posixpath.normpath('/' + key)}"
    return os.path.realpath(path)


def _read_local(path: str, max_bytes: int) -> bytes:
    attempt = 0
    while True:
        attempt += 1
        try:
            with open(path, "rb") as f:
                return f.read(max_bytes + 1)
        except (FileNotFoundError, NotADirectoryError) as e:
            raise InputError(Reason.NOT_FOUND, "no such file") from e
        except IsADirectoryError as e:
            raise InputError(Reason.NOT_FOUND, "a directory, not a file") from e
        except PermissionError as e:
            raise InputError(Reason.UNAVAILABLE, "permission denied") from e
        except OSError as e:
            if attempt == _ATTEMPTS:
                raise InputError(Reason.UNAVAILABLE, f"{e.strerror}, {_ATTEMPTS} attempts") from e
            time.sleep(random.uniform(0, 0.1 * 2**attempt))


def gcs_client() -> Any:
    """Returns the client of Cloud Storage that all threads of this process share, and makes it on the first call."""
    global _gcs_client
    with _gcs_lock:
        if _gcs_client is None:
            from google.cloud import storage  # type: ignore[attr-defined]

            _gcs_client = storage.Client()
        return _gcs_client


def _read_gcs(path: str, max_bytes: int) -> bytes:
    """Reads an object of Cloud Storage, but no more than `max_bytes + 1` bytes of it.

    The client itself retries after 429, 5xx, resets and timeouts, with exponential back-off and jitter.
    """
    from google.api_core import exceptions
    from google.cloud.storage.retry import DEFAULT_RETRY

    bucket, _, key = path[len("gs://") :].partition("/")
    retry = DEFAULT_RETRY.with_timeout(_GCS_DEADLINE_S)
    try:
        blob = gcs_client().bucket(bucket).blob(key)
        return bytes(blob.download_as_bytes(end=max_bytes, retry=retry))
    except exceptions.NotFound as e:
        raise InputError(Reason.NOT_FOUND, "no such file") from e
    except exceptions.RequestRangeNotSatisfiable:  # what Cloud Storage answers for an empty object
        return b""
    except exceptions.Forbidden as e:
        raise InputError(Reason.UNAVAILABLE, "permission denied") from e
    except (exceptions.GoogleAPIError, OSError) as e:
        raise InputError(Reason.UNAVAILABLE, f"{type(e).__name__} after retries for {_GCS_DEADLINE_S:.0f} s") from e
