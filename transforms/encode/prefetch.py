"""Fetches and prepares inputs in threads, ahead of the encoder, and limits how much may wait for it."""

from __future__ import annotations

import hashlib
import itertools
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from unisono.transforms.base.errors import InputError, Reason
from unisono.transforms.encoders.base import Encoder
from unisono.transforms.media.fetch import MediaSource

# Limits on the prepared inputs that wait for the encoder.
HELD_BYTES = 256 * 2**20
HELD_ITEMS = 512


@dataclass
class Loaded:
    """The outcome of loading one value.

    Attributes:
        index: the place of the value among the distinct values.
        content: the hash of the value's content. None means that the value, or every part of a
            joint value, cannot be used.
        prepared: the input in the form that the encoder takes. None means that an embedding of the content is
            known, or that the value cannot be used.
        failure: why the value cannot be used. None means that it can be used.
        nbytes: the bytes that `prepared` holds.
        lost: the parts of a joint value that cannot be used, and why. `prepared` then holds the other parts.
    """

    index: int
    content: str | None = None
    prepared: Any = None
    failure: InputError | None = None
    nbytes: int = 0
    lost: tuple[tuple[str, InputError], ...] = ()


def load(
    index: int, value: pa.Scalar, source: MediaSource | None, encoder: Encoder, is_known: Callable[[str], bool]
) -> Loaded:
    """Fetches one value, hashes its content, and prepares it for the encoder.

    Args:
        index: the place of the value among the distinct values.
        value: a text, a URI, the bytes of a file, or a struct of these.
        source: where media are fetched from. None means that the value is a text.
        encoder: prepares the content.
        is_known: returns True for the hash of a content whose embedding is known. Such a content is not prepared.
    """
    if pa.types.is_struct(value.type):
        assert source is not None
        return _load_joint(index, value.as_py(), source, encoder, is_known)
    try:
        raw = value.as_py()
        data = source.fetch(raw) if source else raw
        octets = data.encode() if isinstance(data, str) else data
        if isinstance(data, str) and not data.strip():
            raise InputError(Reason.EMPTY_TEXT, "nothing but white space")
        content = hashlib.blake2b(octets, digest_size=16).hexdigest()
        if is_known(content):
            return Loaded(index, content)
        prepared = encoder.prepare(data)
        return Loaded(index, content, prepared, nbytes=getattr(prepared, "nbytes", len(octets)))
    except InputError as e:
        return Loaded(index, failure=e)


def _load_joint(
    index: int,
    raw: dict[str, Any],
    source: MediaSource,
    encoder: Encoder,
    is_known: Callable[[str], bool],
) -> Loaded:
    """Fetches the parts of a joint value, hashes them together, and prepares them for the encoder.

    Args:
        index: as in `load`.
        raw: the value of each part: for text a string, for image and audio a URI, bytes, or a list of either. A part
            that is None, blank or an empty list is left out.
        source: as in `load`.
        encoder: as in `load`.
        is_known: as in `load`.
    """
    parts: dict[str, Any] = {}
    lost: list[tuple[str, InputError]] = []
    digest = hashlib.blake2b(digest_size=16)
    for name, value in raw.items():
        values = [v for v in (value if isinstance(value, list) else [value]) if v is not None]
        if name == "text":
            values = [v for v in values if v.strip()]
        try:
            found = [v if name == "text" else source.fetch(v) for v in values]
        except InputError as e:
            lost.append((name, e))
            continue
        for data in found:
            octets = data.encode() if isinstance(data, str) else data
            digest.update(f"{name} {len(octets)} ".encode())
            digest.update(octets)
        if found:
            parts[name] = found if len(found) > 1 else found[0]
    if not parts:
        return Loaded(index, lost=tuple(lost))
    content = digest.hexdigest()
    if is_known(content):
        return Loaded(index, content, lost=tuple(lost))
    try:
        prepared = encoder.prepare(parts)
    except InputError as e:
        if len(parts) == 1:
            return Loaded(index, lost=(*lost, (next(iter(parts)), e)))
        return Loaded(index, failure=e, lost=tuple(lost))
    lost += getattr(prepared, "lost", ())
    return Loaded(index, content, prepared, nbytes=prepared.nbytes, lost=tuple(lost))


def prefetch_pool() -> ThreadPoolExecutor:
    """Makes the threads that fetch and prepare.

    There are more threads than cores, because they often wait for storage. They run at the lowest priority: a forward
    pass on the CPU is split over all cores and waits for the slowest, so a decoder that takes one core for a moment
    would delay all of them.
    """
    return ThreadPoolExecutor(4 + (os.cpu_count() or 1), "prefetch", initializer=_lower_priority)


def _lower_priority() -> None:
    if sys.platform == "linux":  # elsewhere the priority belongs to the process, not to the thread
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


class _Room:
    """Limits the bytes of the results that wait for the consumer.

    Args:
        held_bytes: no job starts while the results that wait hold this many bytes.
    """

    def __init__(self, held_bytes: int) -> None:
        self._limit = held_bytes
        self._changed = threading.Condition()
        self._held = self._taken = 0

    def run(self, place: int, job: Callable[[], Loaded]) -> Loaded:
        """Waits for room, then runs a job. The jobs are numbered 0, 1, … in the order of the consumer."""
        with self._changed:  # the job that the consumer waits for may always start: only the consumer makes room
            self._changed.wait_for(lambda: self._held < self._limit or place == self._taken)
        loaded = job()
        with self._changed:
            self._held += loaded.nbytes
        return loaded

    def take(self, loaded: Loaded) -> None:
        """Notes that the consumer has taken the next result."""
        with self._changed:
            self._held -= loaded.nbytes
            self._taken += 1
            self._changed.notify_all()

    def open(self) -> None:
        """Lets every waiting job go on."""
        with self._changed:
            self._held = -(2**62)
            self._changed.notify_all()


def load_ahead(
    jobs: Sequence[Callable[[], Loaded]],
    pool: ThreadPoolExecutor | None,
    held_items: int = HELD_ITEMS,
    held_bytes: int = HELD_BYTES,
) -> Iterator[Loaded]:
    """Runs jobs in threads, ahead of the consumer, and yields their results in the order of the jobs.

    If a job raises an error, the error is raised in place of its result.

    Args:
        jobs: the jobs.
        pool: the threads. None means that each job runs when its result is asked for.
        held_items: the largest number of jobs that run or wait for the consumer.
        held_bytes: no job starts while the results that wait hold this many bytes. Each job that already runs then may
            exceed the limit by one result.
    """
    if pool is None:
        yield from (job() for job in jobs)
        return
    waiting: deque[Future[Loaded]] = deque()
    room = _Room(held_bytes)
    remaining = enumerate(jobs)
    try:
        for _ in jobs:
            for place, job in itertools.islice(remaining, held_items - len(waiting)):
                waiting.append(pool.submit(room.run, place, job))
            loaded = waiting.popleft().result()
            room.take(loaded)
            yield loaded
    finally:  # the consumer may stop early: then no job must stay behind, neither queued nor waiting for room
        for future in waiting:
            future.cancel()
        room.open()
