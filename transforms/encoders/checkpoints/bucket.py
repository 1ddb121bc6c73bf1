"""Fetches checkpoints from buckets, once per machine, into a cache that is checked before it is used again.

    weights/<state>/files/…           the checkpoint
    weights/<state>/fetched.json      sizes and SHA-256 of its files
    weights/<state>.lock              held by the process that fetches or checks it

The cache lies in the directory named by the environment variable UNISONO_CACHE, by default ~/.cache/unisono.
`<state>` is a hash of the objects' names, sizes and CRC-32C. So a checkpoint that is replaced in its bucket gets a new
directory, and processes that still read the old directory are not disturbed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import filelock

from unisono.transforms.base.errors import JobError
from unisono.transforms.encoders.checkpoints.formats import FETCHED, PICKLED, first_line, matches
from unisono.transforms.media.fetch import gcs_client

_LOCK_S = 3600.0  # how long to wait for another process that fetches the same checkpoint
_DEADLINE_S = 600.0  # for all attempts at fetching one object together

_checked: set[str] = set()  # states whose files this process has already compared with their hashes


def cache_root() -> Path:
    """Returns the directory of fetched checkpoints on this machine."""
    return Path(os.environ.get("UNISONO_CACHE", "~/.cache/unisono")).expanduser() / "weights"


def fetch_directory(key: str, uri: str) -> Path:
    """Returns a local copy of a gs:// directory: the cached copy if it is complete, else a new one.

    The configuration, the tokenizer and safetensors files are fetched. Weights in other formats are not.

    Args:
        key: the job-file key that the error messages name.
        uri: gs://bucket/prefix, with or without a slash at the end.

    Raises:
        JobError: the directory cannot be listed or read, it holds no safetensors, a file arrives damaged, or another
            process holds the lock for too long.
    """
    blobs = _list(key, uri)
    facts = sorted((name, blob.size, blob.crc32c) for name, blob in blobs.items())
    state = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]
    place = cache_root() / state
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(place.with_suffix(".lock"), timeout=_LOCK_S):
            if not _is_complete(place, state):
                _fetch(key, blobs, place)
                _checked.add(state)
    except filelock.Timeout as error:
        held = f"{place.name}.lock in {place.parent}"
        raise JobError(f"{key}: another process has held {held} for {_LOCK_S:.0f} s; end that process") from error
    return place / "files"


def _list(key: str, uri: str) -> dict[str, Any]:
    """Lists the objects to fetch, by their path below the directory.

    Raises:
        JobError: the directory cannot be listed, is empty, or holds no safetensors.
    """
    bucket, _, prefix = uri.removeprefix("gs://").partition("/")
    prefix = prefix.rstrip("/") + "/" if prefix.rstrip("/") else ""
    try:
        found = {b.name[len(prefix) :]: b for b in gcs_client().list_blobs(bucket, prefix=prefix, timeout=60.0)}
    except Exception as error:  # such as no such bucket, no permission, no credentials, no network
        raise JobError(f"{key}: {uri} cannot be listed ({type(error).__name__}: {first_line(error)})") from error
    if not found:
        raise JobError(f"{key}: there are no objects under {uri}; check bucket and prefix")
    wanted = {n: b for n, b in found.items() if matches(n, FETCHED) and ".." not in n.split("/")}
    if not any(n.endswith(".safetensors") for n in wanted):
        pickled = sorted(n for n in found if matches(n, PICKLED))
        what = f"holds {pickled[0]} but no safetensors" if pickled else "holds no safetensors"
        raise JobError(
            f"{key}: {uri} {what}; weights are never unpickled: where you trust them, save them as "
            "safetensors, and copy the new files to the bucket"
        )
    return wanted


def _is_complete(place: Path, state: str) -> bool:
    """Compares the cached files with what was fetched: sizes on each call, contents once per process."""
    try:
        records = json.loads((place / "fetched.json").read_text())
        complete = all((place / "files" / name).stat().st_size == r["size"] for name, r in records.items())
        if complete and state not in _checked:
            complete = all(_sha256(place / "files" / name) == r["sha256"] for name, r in records.items())
    except (OSError, ValueError, KeyError, TypeError):
        return False
    if complete:
        _checked.add(state)
    return complete


def _fetch(key: str, blobs: dict[str, Any], place: Path) -> None:
    """Fetches objects into a directory beside `place`, checks each, and renames that directory to `place`.

    Raises:
        JobError: an object cannot be fetched, or arrives damaged.
    """
    from google.cloud.storage.retry import DEFAULT_RETRY

    beside = place.with_suffix(".part")
    shutil.rmtree(beside, ignore_errors=True)  # left by a process that died; this process holds the lock
    shutil.rmtree(place, ignore_errors=True)
    records = {}
    for name, blob in blobs.items():
        path, source = beside / "files" / name, f"gs://{blob.bucket.name}/{blob.name}"
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            blob.download_to_filename(path, timeout=_DEADLINE_S, retry=DEFAULT_RETRY.with_timeout(_DEADLINE_S))
        except Exception as error:  # such as network, permission, a checksum of the transfer, a full disk
            raise JobError(f"{key}: {source} cannot be fetched ({first_line(error)})") from error
        if path.stat().st_size != blob.size or (blob.crc32c and _crc32c(path) != blob.crc32c):
            raise JobError(f"{key}: {source} arrived damaged; run again, or upload it again")
        records[name] = {"size": blob.size, "sha256": _sha256(path)}
    (beside / "fetched.json").write_text(json.dumps(records, indent=1))
    beside.rename(place)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _crc32c(path: Path) -> str:
    """Returns the CRC-32C of a file in base64, the form in which Cloud Storage states it."""
    import google_crc32c

    checksum = google_crc32c.Checksum()
    with path.open("rb") as stream:
        while block := stream.read(2**20):
            checksum.update(block)
    return base64.b64encode(checksum.digest()).decode()
