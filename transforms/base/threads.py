"""Every processor for one worker: rows of a compiled loop, and elements of a bundle, that do not need each other."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from typing import Any, Generic, TypeVar

import apache_beam as beam
import numpy as np
from apache_beam.transforms.window import GlobalWindows

T = TypeVar("T")

_MOST_THREADS = 16


def in_threads(ends: np.ndarray, least: int, work: Callable[[int, int], None]) -> None:
    """Runs `work(start, stop)` over ranges of rows, as many at once as there are processors.

    `work` must let go of the interpreter's lock and write what belongs to its rows alone; the result of no row may
    depend on the range it is in.

    Args:
        ends: int64 [rows + 1], rising: row i costs as much as `ends[i + 1] − ends[i]` says.
        least: the cost that is worth a thread.
    """
    rows, cost = len(ends) - 1, int(ends[-1] - ends[0])
    threads = min(os.cpu_count() or 1, _MOST_THREADS, cost // least, rows)
    if threads <= 1:
        return work(0, rows)
    wanted = ends[0] + cost * np.arange(1, threads) // threads
    bounds = [0, *np.searchsorted(ends, wanted).tolist(), rows]
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(work, a, b) for a, b in pairwise(bounds) if b > a]:
            done.result()


class InOrder(Generic[T]):
    """Does a bundle's work on threads, a few elements ahead, and gives the results in the order of the elements.

    As many elements are held as there are processors, at most `most`. What `put` raised is raised where its result
    is due.
    """

    def __init__(self, most: int = 4) -> None:
        self._ahead = max(1, min(os.cpu_count() or 1, most))
        self._pool = ThreadPoolExecutor(self._ahead)
        self._pending: deque[Future[T]] = deque()

    def put(self, work: Callable[..., T], *args: object) -> Iterator[T]:
        """Begins `work(*args)`; gives what is due: nothing, or the result of an earlier one."""
        self._pending.append(self._pool.submit(work, *args))
        while len(self._pending) > self._ahead or (self._pending and self._pending[0].done()):
            yield self._pending.popleft().result()

    def rest(self) -> Iterator[T]:
        """Gives what is left, and ends the threads."""
        while self._pending:
            yield self._pending.popleft().result()
        self._pool.shutdown()


def at_end_of_bundle(outputs: Iterable[object]) -> Iterator[object]:
    """Wraps what `finish_bundle` gives, tagged or not, as Beam asks: in the global window."""
    for output in outputs:
        if isinstance(output, beam.pvalue.TaggedOutput):
            yield beam.pvalue.TaggedOutput(output.tag, _windowed(output.value))
        else:
            yield _windowed(output)


def _windowed(value: object) -> Any:
    return GlobalWindows.windowed_value(value)
