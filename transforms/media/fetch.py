"""Fetches images and audio by URI, within what the job allows."""

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

_ATTEMPTS = 4  # of a local read that fails for a passing reason (a network file system)
_GCS_DEADLINE_S = 60.0  # of all attempts at one object together

_gcs_client: Any = None
_gcs_lock = threading.Lock()


@dataclass(frozen=True)
class MediaSource:
    """Where media may come from.

    Attributes:
        root: absolute directory or gs:// prefix that relative URIs resolve in; no URI may leave it …
        allow: … but for these further prefixes.
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
            InputError: it lies outside `root` and `allow`, or is of a kind that is not read.
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
        """Gives the bytes of a URI, or of inline media as they are.

        Raises:
            InputError: not allowed, not found, too large, or unavailable after retries.
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
    """Removes `..`, and follows links where a path is local: a link must not lead out of the root either."""
    if is_remote(path):
        scheme, rest = path.split("://", 1)
        bucket, _, key = rest.partition("/")
        return f"{scheme}://{bucket}{posixpath.normpath('/' + key)}"
    return os.path.realpath(path)


def _read_local(path: str, max_bytes: int) -> bytes:
    for attempt in range(_ATTEMPTS):
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
            if attempt == _ATTEMPTS - 1:
                raise InputError(Reason.UNAVAILABLE, f"{e.strerror}, {_ATTEMPTS} attempts") from e
            time.sleep(random.uniform(0, 0.2 * 2**attempt))
    raise AssertionError("unreachable")


def gcs_client() -> Any:
    """The process's one client of Cloud Storage."""
    global _gcs_client
    with _gcs_lock:
        if _gcs_client is None:
            from google.cloud import storage  # type: ignore[attr-defined]

            _gcs_client = storage.Client()
        return _gcs_client


def _read_gcs(path: str, max_bytes: int) -> bytes:
    """Reads an object with the client's own retry: 429, 5xx, resets and time-outs, exponential with jitter."""
    from google.api_core import exceptions
    from google.cloud.storage.retry import DEFAULT_RETRY

    bucket, _, key = path[len("gs://") :].partition("/")
    retry = DEFAULT_RETRY.with_timeout(_GCS_DEADLINE_S)
    try:
        blob = gcs_client().bucket(bucket).blob(key)
        # A range, so that an object far over the limit is never read whole.
        return bytes(blob.download_as_bytes(end=max_bytes, retry=retry))
    except exceptions.NotFound as e:
        raise InputError(Reason.NOT_FOUND, "no such file") from e
    except exceptions.RequestRangeNotSatisfiable:  # the answer to any range of an empty object
        return b""
    except exceptions.Forbidden as e:
        raise InputError(Reason.UNAVAILABLE, "permission denied") from e
    except (exceptions.GoogleAPIError, OSError) as e:
        raise InputError(Reason.UNAVAILABLE, f"{type(e).__name__} after retries for {_GCS_DEADLINE_S:.0f} s") from e
