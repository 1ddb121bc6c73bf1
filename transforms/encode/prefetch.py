"""Fetches and prepares raw inputs in threads, ahead of the encoder, within bounds on what waits."""

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

HELD_BYTES = 256 * 2**20  # prepared inputs that wait for the encoder
HELD_ITEMS = 512


@dataclass
class Loaded:
    """One distinct raw value, fetched.

    Attributes:
        index: which.
        content: hash of its bytes; None if it could not be fetched or prepared.
        prepared: model-ready; None where an earlier embedding of this content is at hand, or after a failure.
        failure: why it cannot be used.
        nbytes: what `prepared` holds.
        lost: of a joint input: the parts that cannot be used, and why; the others are in `prepared`, if any.
    """

    index: int
    content: str | None = None
    prepared: Any = None
    failure: InputError | None = None
    nbytes: int = 0
    lost: tuple[tuple[str, InputError], ...] = ()


def load(
    index: int, value: pa.Scalar, source: MediaSource | None, encoder: Encoder, is_lent: Callable[[str], bool]
) -> Loaded:
    """Fetches one value, hashes its content and, unless an embedding of that content is lent, prepares it."""
    if pa.types.is_struct(value.type):
        return _load_joint(index, value.as_py(), source, encoder, is_lent)
    try:
        raw = value.as_py()
        data = source.fetch(raw) if source else raw
        octets = data.encode() if isinstance(data, str) else data
        if isinstance(data, str) and not data.strip():
            raise InputError(Reason.EMPTY_TEXT, "nothing but white space")
        content = hashlib.blake2b(octets, digest_size=16).hexdigest()
        if is_lent(content):
            return Loaded(index, content)
        prepared = encoder.prepare(data)
        return Loaded(index, content, prepared, nbytes=getattr(prepared, "nbytes", len(octets)))
    except InputError as e:
        return Loaded(index, failure=e)


def _load_joint(
    index: int,
    raw: dict[str, Any],
    source: MediaSource | None,
    encoder: Encoder,
    is_lent: Callable[[str], bool],
) -> Loaded:
    """Loads an item's parts, {"text": str, "image": URI or bytes, one or a list, …}; null parts are left out."""
    assert source is not None
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
    if is_lent(content):
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
    """Makes the threads that fetch and prepare: more than cores, for they wait for storage as often as they decode.

    They give way to the encoder. A forward on the CPU is split over all cores and waits for its slowest part: a
    decoder that takes one core for a moment stalls the others too.
    """
    return ThreadPoolExecutor(4 + (os.cpu_count() or 1), "prefetch", initializer=_give_way)


def _give_way() -> None:
    if sys.platform == "linux":  # only there is priority a thread's own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


def load_ahead(
    jobs: Sequence[Callable[[], Loaded]],
    pool: ThreadPoolExecutor | None,
    held_items: int = HELD_ITEMS,
    held_bytes: int = HELD_BYTES,
) -> Iterator[Loaded]:
    """Runs jobs in the pool, ahead of the consumer, and gives their results in order.

    At most `held_items` jobs are given out, and none starts while results that wait hold `held_bytes`; the jobs
    under way may pass that by one input each. Without a pool each job runs when it is asked for.
    """
    if pool is None:
        yield from (job() for job in jobs)
        return
    waiting: deque[Future[Loaded]] = deque()
    room = threading.Condition()
    held = taken = 0

    def run(place: int, job: Callable[[], Loaded]) -> Loaded:
        nonlocal held
        with room:  # the one that is waited for may always start, or nothing would ever make room
            room.wait_for(lambda: held < held_bytes or place == taken)
        loaded = job()
        with room:
            held += loaded.nbytes
        return loaded

    remaining = enumerate(jobs)
    try:
        for _ in jobs:
            for place, job in itertools.islice(remaining, held_items - len(waiting)):
                waiting.append(pool.submit(run, place, job))
            loaded = waiting.popleft().result()
            with room:
                held -= loaded.nbytes
                taken += 1
                room.notify_all()
            yield loaded
    finally:  # a consumer that stops early leaves no work behind, and no thread waiting for room
        for future in waiting:
            future.cancel()
        with room:
            held = -(2**62)
            room.notify_all()
