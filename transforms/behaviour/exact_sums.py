"""Sums over rows that have the same bits however the rows are split into shards, threads and blocks.

Each term is rounded to multiples of a grid 2^k, the rest to multiples of a finer grid, and each grid is added up on its
own in float64. A sum of multiples of 2^k below 2^(53 + k) is exact, so the order of its terms does not matter.

Source: Demmel and Nguyen, "Parallel reproducible summation", IEEE TC 64(7), 2015 (sums in bins).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from types import ModuleType

import numpy as np

from unisono.transforms.base.extras import require
from unisono.transforms.base.threads import in_threads

# Neighbouring grids lie 27 bits apart. So the rests of up to 2^27 (134 million) rows have an exact sum on the next
# grid. The coarsest one holds sums up to 2^61, the second one up to 2^34; terms are rounded to 2^-46.
_GRIDS = 1.5 * 2.0**52 * np.array([2.0**8, 2.0**-19, 2.0**-46])
_VALUES_A_THREAD = 4_000_000


def sum_of_outer(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Computes Σ_r a[r] b[r]ᵀ as sums over two grids.

    Args:
        a: float32 [rows, d]. Columns have a sum of squares below 2^34.
        b: float32 [rows, e]; the same holds.

    Returns:
        float64 [2, d, e], to be added to the sums of other rows; `total` turns them into the matrix [d, e].
    """
    cost = a.shape[1] * b.shape[1]
    return _in_threads(
        len(a), cost, (2, a.shape[1], b.shape[1]), lambda i, j, out: kernels().add_outer(
            a[i:j], b[i:j], float(_GRIDS[1]), float(_GRIDS[2]), out
        )
    )  # fmt: skip


def sum_of_products(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Computes Σ_r a[r, c] · b[r, c] for each column c as sums over three grids.

    Args:
        a: float32 [rows, d].
        b: float32 [rows, d].

    Returns:
        float64 [3, d], to be added to the sums of other rows; `total` turns them into the products [d].
    """
    return _in_threads(
        len(a), a.shape[1], (3, a.shape[1]), lambda i, j, out: kernels().add_products(a[i:j], b[i:j], _GRIDS, out)
    )


def total(sums: Iterable[np.ndarray]) -> np.ndarray:
    """Adds up the sums of all shards, in any order, and returns one float64 number for each entry."""
    added = np.sum(list(sums), axis=0)
    out = added[-1]
    for grid in added[-2::-1]:  # the finest grid first
        out = out + grid
    return np.asarray(out)


def kernels() -> ModuleType:
    """Imports the compiled loops of matrix factorization."""
    require("numba", "ranking", "ranking.method", "learned")
    from unisono.transforms.behaviour import factor_kernels

    return factor_kernels


def _in_threads(
    rows: int, cost: int, shape: tuple[int, ...], work: Callable[[int, int, np.ndarray], None]
) -> np.ndarray:
    """Adds up what `work(start, stop, out)` adds to an `out` of its own for each range of rows."""
    out, lock = np.zeros(shape), threading.Lock()

    def part(start: int, stop: int) -> None:
        own = np.zeros(shape)
        work(start, stop, own)
        with lock:
            np.add(out, own, out=out)

    in_threads(np.arange(rows + 1, dtype=np.int64) * cost, _VALUES_A_THREAD, part)
    return out
