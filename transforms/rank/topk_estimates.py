"""Estimates of inner products, each with a bound of its error: float32 by NumPy, or int8 by torch.

An int8 product takes about a quarter of the time of a float32 one on processors with instructions for it (VNNI).
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from unisono.transforms.base.extras import is_installed
from unisono.transforms.base.threads import in_threads

BLOCK_ROWS = 2048  # items of one block
_LEAST_USERS = 256  # for fewer, rounding all items takes longer than int8 products save
_LEAST_ITEMS = 2048
_MOST_DIM = 100_000  # a sum of so many int8 products still fits int32
_SAMPLE = 4096  # rows from which the size of a column is estimated
_ROWS_A_THREAD = 1024
_PART_ROWS = 65_536
_UNIT = 2.0**-24  # the rounding error of a float32 value of 1


@dataclass(frozen=True, eq=False)
class Estimates(ABC):
    """Estimated scores of all users and items, in blocks of `BLOCK_ROWS` items.

    The score of user u and an item of block b is `unit[u]` · (product · scale[b] ± error), where the error is
    `reach[u]` · near[b] + `loose[u]` · size[b]. It has room for the rounding of float32 arithmetic with it, and of the
    score itself.

    Attributes:
        queries: [users, dim].
        vectors: [items, dim], in order of `ids`.
        ids: int32 [items], the index of the item at each place.
        scale: float64 [blocks], above 0.
        near: float64 [blocks], the greatest error of an item for a query of length 1.
        size: float64 [blocks], the greatest length of an item.
        unit: float64 [users], above 0.
        reach: float64 [users], length of the query, in units.
        loose: float64 [users], error of the query for an item of length 1, in units.
        dtype: the dtype of products.
        one_thread: whether a product is computed on the calling thread alone.
    """

    queries: np.ndarray
    vectors: np.ndarray
    ids: np.ndarray
    scale: np.ndarray
    near: np.ndarray
    size: np.ndarray
    unit: np.ndarray
    reach: np.ndarray
    loose: np.ndarray
    dtype: ClassVar[type]
    one_thread: ClassVar[bool]

    @abstractmethod
    def product(self, users: np.ndarray, places: slice | np.ndarray, out: np.ndarray) -> None:
        """Writes the products of users and of the items at `places` into `out`, C-contiguous of `dtype`."""


def _margin(dim: int) -> float:
    """Bounds the rounding error of a float32 inner product of two unit vectors, and of eight operations with it.

    It is below dim · 2^-24 for any order of summation.

    Source: Higham, "Accuracy and stability of numerical algorithms", 2002, chapter 3.
    """
    return (dim + 8) * _UNIT


def _by_block(values: np.ndarray) -> np.ndarray:
    """Returns the highest value of each block."""
    return np.maximum.reduceat(values, np.arange(0, len(values), BLOCK_ROWS))


# --- float32 -----------------------------------------------------------------------------------------------


class FloatEstimates(Estimates):
    """Estimates from float32 products by NumPy."""

    dtype = np.float32
    one_thread = False

    def product(self, users: np.ndarray, places: slice | np.ndarray, out: np.ndarray) -> None:
        np.matmul(self.queries[users], np.asarray(self.vectors[places]).T, out=out)


def float_estimates(queries: np.ndarray, vectors: np.ndarray) -> FloatEstimates:
    """Prepares float32 estimates.

    Args:
        queries: float32 [users, dim].
        vectors: float32 [items, dim]; may be memory-mapped.
    """
    near = _by_block(_margin(queries.shape[1]) * _lengths(vectors))
    return FloatEstimates(
        queries,
        vectors,
        ids=np.arange(len(vectors), dtype=np.int32),
        scale=np.ones(len(near)),
        near=near,
        size=np.zeros(len(near)),
        unit=np.ones(len(queries)),
        reach=_lengths(queries),
        loose=np.zeros(len(queries)),
    )


def _lengths(rows: np.ndarray) -> np.ndarray:
    """Returns the L2 norms of rows, float64, in parts, because the rows may be larger than memory."""
    out = np.empty(len(rows))
    for at in range(0, len(rows), _PART_ROWS):
        part = np.asarray(rows[at : at + _PART_ROWS])
        out[at : at + len(part)] = np.sqrt(np.einsum("ij,ij->i", part, part, dtype=np.float64))
    return out


# --- int8 --------------------------------------------------------------------------------------------------


class Int8Estimates(Estimates):
    """Estimates from int8 products by torch."""

    dtype = np.int32
    one_thread = True

    def product(self, users: np.ndarray, places: slice | np.ndarray, out: np.ndarray) -> None:
        import torch

        torch.set_num_threads(1)  # the caller has a thread for each processor, and `threads_of_torch` around them
        queries, vectors = torch.from_numpy(self.queries[users]), torch.from_numpy(self.vectors[places])
        torch._int_mm(queries, vectors.T, out=torch.from_numpy(out))


def int8_pays(users: int, items: int, dim: int) -> bool:
    """Says whether int8 estimates are possible here and faster than float32 ones."""
    if users < _LEAST_USERS or items < _LEAST_ITEMS or dim > _MOST_DIM or not is_installed("torch"):
        return False
    from llvmlite.binding import get_host_cpu_features  # comes with numba

    # Without these instructions, torch's int8 products are slow and may saturate.
    features = get_host_cpu_features()
    if not (features.get("avx512vnni") or features.get("avxvnni")):
        return False
    import torch

    return hasattr(torch, "_int_mm") and torch.backends.mkldnn.is_available()


def int8_estimates(queries: np.ndarray, vectors: np.ndarray) -> Int8Estimates | None:
    """Prepares int8 estimates.

    Every query and every block of items is rounded to steps of its own length. Items with similar highest values are
    in one block. With q = q' + a and v = v' + b, where q' and v' are rounded, the error of q'·v' is
    |q·b + a·v'| ≤ ‖q‖ ‖b‖ + ‖a‖ ‖v'‖.

    Args:
        queries: float32 [users, dim].
        vectors: float32 [items, dim]; may be memory-mapped.

    Returns:
        The estimates, or None where numbers are too large for them.
    """
    vectors, factor = np.asarray(vectors), _balance(queries, vectors)
    inverse = np.divide(1, factor, out=factor.copy(), where=factor > 0)
    unit = _steps(_highest(queries, inverse))
    q, q_size, q_rest = _quantize(queries, inverse, unit, np.arange(len(queries)))
    most = _highest(vectors, factor)
    ids = np.argsort(-most, kind="stable")  # from the highest, so that the bounds of scores rise early
    scale = _steps(most[ids[::BLOCK_ROWS]])
    places = np.empty(len(ids), np.int64)
    places[ids] = np.arange(len(ids))
    v, size, rest = _quantize(vectors, factor, scale[places // BLOCK_ROWS], places)
    near = _by_block(rest + _margin(queries.shape[1]) * (size + rest))
    if not (np.isfinite(q_size).all() and np.isfinite(near).all()):
        return None
    return Int8Estimates(
        q,
        v,
        ids=ids.astype(np.int32),
        scale=scale.astype(np.float64),
        near=near,
        size=_by_block(size),
        unit=unit.astype(np.float64),
        reach=(q_size + q_rest) / unit,
        loose=q_rest / unit,
    )


def _balance(queries: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Returns powers of two, float32 [dim], that make columns alike if items are multiplied and users divided by them.

    Inner products stay the same, and columns that matter more for them get larger numbers. A column in which all
    queries are 0 gets 0.
    """
    mean = _squares(queries), _squares(vectors[:: max(1, len(vectors) // _SAMPLE)])
    given = (mean[0] > 0) & (mean[1] > 0)
    ratio = np.divide(mean[0], mean[1], out=np.ones_like(mean[0]), where=given)
    power = np.clip(np.round(np.log2(ratio) / 4), -20, 20)
    return np.where(mean[0] > 0, 2.0**power, 0).astype(np.float32)


def _squares(rows: np.ndarray) -> np.ndarray:
    """Returns the mean square of each column, float64."""
    return np.einsum("ij,ij->j", rows, rows, dtype=np.float64) / max(len(rows), 1)


def _steps(highest: np.ndarray) -> np.ndarray:
    """Returns steps of which 127 reach the highest values. A value that is as good as zero gets steps of 1."""
    return np.where(highest > 1e-30, highest * np.float32((1 + 4 * _UNIT) / 127), np.float32(1))


def _highest(rows: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Returns each row's highest absolute value after columns are multiplied by `factor`, float32."""
    from unisono.transforms.rank import topk_kernels

    out = np.empty(len(rows), np.float32)
    def work(a: int, b: int) -> None:
        topk_kernels.highest(rows[a:b], factor, out[a:b])

    in_threads(np.arange(len(rows) + 1), _ROWS_A_THREAD, work)
    return out


def _quantize(
    rows: np.ndarray, factor: np.ndarray, step: np.ndarray, places: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rounds rows to int8, see `topk_kernels.quantize`; returns rounded rows, their norms, and norms of the rest."""
    from unisono.transforms.rank import topk_kernels

    out, size, rest = np.empty(rows.shape, np.int8), np.empty(len(rows)), np.empty(len(rows))

    def work(a: int, b: int) -> None:
        topk_kernels.quantize(rows[a:b], factor, step[a:b], places[a:b], out, size, rest)

    in_threads(np.arange(len(rows) + 1), _ROWS_A_THREAD, work)
    return out, size, rest


_torch_lock = threading.Lock()
_torch_users: list[int] = []  # the number of threads to set when the last user of torch ends, once for each user


@contextmanager
def threads_of_torch() -> Iterator[None]:
    """Sets torch's number of threads back at the end, whatever is set meanwhile."""
    import torch

    with _torch_lock:
        _torch_users.append(_torch_users[0] if _torch_users else torch.get_num_threads())
    try:
        yield
    finally:
        with _torch_lock:
            before = _torch_users.pop()
            if not _torch_users:
                torch.set_num_threads(before)
