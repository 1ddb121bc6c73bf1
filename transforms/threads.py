"""Compiled loops over rows that do not depend on each other, on every processor."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np

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
