"""Threads that use all processors of a worker: on the rows of a compiled loop, or on the elements of a bundle."""

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
    """Runs `work(start, stop)` on ranges of rows, on as many threads as there are processors, at most 16.

    Args:
        ends: int64 [rows + 1], rising; row i costs `ends[i + 1] − ends[i]`, in any unit. Ranges get about equal costs.
        least: the lowest cost, in the same unit, for which a thread is started.
        work: computes rows `start` to `stop − 1`. It must release the interpreter's lock and write nothing except
            the results of its own rows. A row's result must not depend on the range that the row is in.

    Raises:
        Exception: whatever `work` raised.
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
    """Works on several elements of a bundle at once, on threads, and returns the results in the elements' order.

    Args:
        most: how many elements are worked on at once, if there are as many processors.
    """

    def __init__(self, most: int = 4) -> None:
        self._ahead = max(1, min(os.cpu_count() or 1, most))
        self._pool = ThreadPoolExecutor(self._ahead)
        self._pending: deque[Future[T]] = deque()

    def put(self, work: Callable[..., T], *args: object) -> Iterator[T]:
        """Starts `work(*args)` and yields earlier results that are ready. Nothing happens until it is iterated over.

        Raises:
            Exception: whatever an earlier `work` raised, in place of its result.
        """
        self._pending.append(self._pool.submit(work, *args))
        while len(self._pending) > self._ahead or (self._pending and self._pending[0].done()):
            yield self._pending.popleft().result()

    def rest(self) -> Iterator[T]:
        """Waits for the results that are left, yields them, and ends the threads.

        Raises:
            Exception: whatever a `work` raised, in place of its result.
        """
        while self._pending:
            yield self._pending.popleft().result()
        self._pool.shutdown()


def at_end_of_bundle(outputs: Iterable[object]) -> Iterator[object]:
    """Puts outputs of `finish_bundle`, tagged or not, into the global window, as Beam requires."""
    for output in outputs:
        if isinstance(output, beam.pvalue.TaggedOutput):
            yield beam.pvalue.TaggedOutput(output.tag, _windowed(output.value))
        else:
            yield _windowed(output)


def _windowed(value: object) -> Any:
    """Puts one value into the global window."""
    return GlobalWindows.windowed_value(value)
