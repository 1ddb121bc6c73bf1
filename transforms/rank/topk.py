"""Exact top k by inner product: float32 matrix products choose candidates, and float64 scores rank them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from unisono.transforms.base.extras import require
from unisono.transforms.base.threads import in_threads

_USER_ROWS = 1024  # queries of one product; with _ITEM_ROWS items its scores take 16 MiB, which suits the caches
_ITEM_ROWS = 4096
_CUDA_USER_ROWS = 4096
_CUDA_ITEM_ROWS = 65_536
_USERS_A_THREAD = 64
_MIN_ROOM = 256  # room for at least this many candidates of a user beyond k

Found = tuple[np.ndarray, np.ndarray]  # candidates: item indices int64 [users, room], their number int64 [users]


def top_items(
    queries: np.ndarray,
    items: np.ndarray,
    k: int,
    *,
    first: np.ndarray | None = None,
    exclude: tuple[np.ndarray, np.ndarray] | None = None,
    ranks: np.ndarray | None = None,
    bias: np.ndarray | None = None,
    device: str = "cpu",
) -> tuple[np.ndarray, np.ndarray]:
    """Finds each user's k items of highest score, exactly.

    A user's score of an item is the highest inner product of the item with any of the user's queries, plus the item's
    bias. The products are float32, and their last digits depend on how the rows are split into blocks. So every item
    within twice the largest rounding error of the k-th score is a candidate. The candidates are scored again in
    float64, rounded to float32 and ranked by these scores.

    Args:
        queries: float32 [r, dim], finite.
        items: float32 [m, dim], finite; may be memory-mapped.
        k: at least 1.
        first: int64 [u + 1]: user i has the queries `first[i]` to `first[i + 1]`. None means one query for each user.
        exclude: pairs that must not appear: user indices and item indices, integers [p] each. None means no pairs.
        ranks: int64 [m]; among equal scores, the item of lower rank comes first. None means the lower index.
        bias: float32 [m], added to the scores. An item with bias −inf never appears. None means no bias.
        device: `cpu`, or `cuda` to compute products and candidates with torch. Both return the same items and scores.

    Returns:
        Item indices int64 [u, k] and scores float32 [u, k], best first. A user with fewer than k items gets −1 and
        −inf in the remaining places.

    Raises:
        ValueError: k is below 1.
        JobError: numba is not installed.

    Guarantees:
        The result for a user depends on that user's queries and on the set of items only.
    """
    if k < 1:
        raise ValueError(f"k is {k}; at least 1 is needed")
    first = np.arange(len(queries) + 1) if first is None else np.asarray(first, np.int64)
    ranks = np.arange(len(items)) if ranks is None else ranks
    bias = np.zeros(len(items), np.float32) if bias is None else np.asarray(bias, np.float32)
    queries = np.ascontiguousarray(queries, np.float32)
    return _search(queries, first, exclude, _Items(items, bias, ranks), k, device)


@dataclass(frozen=True, eq=False)
class _Items:
    """The items that are searched.

    Attributes:
        vectors: float32 [m, dim]; may be memory-mapped.
        bias: float32 [m], added to the scores.
        ranks: int64 [m]; among equal scores, the item of lower rank comes first.
    """

    vectors: np.ndarray
    bias: np.ndarray
    ranks: np.ndarray

    def __len__(self) -> int:
        return len(self.vectors)


def _search(
    queries: np.ndarray,
    first: np.ndarray,
    exclude: tuple[np.ndarray, np.ndarray] | None,
    items: _Items,
    k: int,
    device: str,
) -> tuple[np.ndarray, np.ndarray]:
    """Does the work of `top_items`, block by block of users."""
    users = len(first) - 1
    rows, scores = np.full((users, k), -1, np.int64), np.full((users, k), -np.inf, np.float32)
    if len(items) == 0 or users == 0:
        return rows, scores
    choose = _choose_cpu if device == "cpu" else _choose_torch
    slack = 2 * _rounding(queries, first, items)
    for start, block in _blocks(queries, first, _by_user(exclude, users), slack, device):
        found = choose(block, items, k, device)
        stop = start + len(block)
        _rank(block, found, items, rows[start:stop], scores[start:stop])
    return rows, scores


@dataclass(frozen=True, eq=False)
class _Block:
    """Some users who are searched for together.

    Attributes:
        queries: float32 [r, dim], the users' queries.
        first: int64 [users + 1]: user u has the queries `first[u]` to `first[u + 1]`.
        seen_ends: int64 [users + 1]: user u has the positions `seen_ends[u]` to `seen_ends[u + 1]` of `seen`.
        seen: int64, items that must not appear, of all users.
        slack: float64 [users], how far below the k-th score a candidate may lie.
    """

    queries: np.ndarray
    first: np.ndarray
    seen_ends: np.ndarray
    seen: np.ndarray
    slack: np.ndarray

    def __len__(self) -> int:
        return len(self.slack)


def _blocks(
    queries: np.ndarray, first: np.ndarray, excluded: tuple[np.ndarray, np.ndarray], slack: np.ndarray, device: str
) -> Iterator[tuple[int, _Block]]:
    """Splits users into blocks of a limited number of queries; yields (index of the first user, block)."""
    users, most = len(slack), _USER_ROWS if device == "cpu" else _CUDA_USER_ROWS
    seen_ends, seen = excluded
    start = 0
    while start < users:
        stop = max(start + 1, int(np.searchsorted(first, first[start] + most, side="right")) - 1)
        stop = min(stop, users)
        yield start, _Block(
            queries[first[start] : first[stop]],
            first[start : stop + 1] - first[start],
            seen_ends[start : stop + 1],
            seen,
            slack[start:stop],
        )
        start = stop


def _by_user(exclude: tuple[np.ndarray, np.ndarray] | None, users: int) -> tuple[np.ndarray, np.ndarray]:
    """Sorts pairs by user, then by item: returns where each user's items begin, int64 [users + 1], and the items."""
    if exclude is None or len(exclude[0]) == 0:
        return np.zeros(users + 1, np.int64), np.empty(0, np.int64)
    user, item = np.asarray(exclude[0], np.int64), np.asarray(exclude[1], np.int64)
    order = np.lexsort((item, user))
    ends = np.searchsorted(user[order], np.arange(users + 1))
    return ends, item[order]


def _rounding(queries: np.ndarray, first: np.ndarray, items: _Items) -> np.ndarray:
    """Bounds the rounding error of a float32 score for each user, float64 [users].

    The error of an inner product is below dim · 2^-24 · ‖q‖ · ‖v‖ for any order of summation.

    Source: Higham, "Accuracy and stability of numerical algorithms", 2002, chapter 3.
    """
    longest = 0.0
    for at in range(0, len(items), _CUDA_ITEM_ROWS):  # in parts, because the items may be larger than memory
        part = np.asarray(items.vectors[at : at + _CUDA_ITEM_ROWS])
        longest = max(longest, float(np.einsum("ij,ij->i", part, part, dtype=np.float64).max(initial=0.0)))
    norms = np.sqrt(np.einsum("ij,ij->i", queries, queries, dtype=np.float64))
    of_user = np.zeros(len(first) - 1)
    np.maximum.at(of_user, np.repeat(np.arange(len(of_user)), np.diff(first)), norms)
    size = of_user * np.sqrt(longest)
    finite = np.abs(items.bias[np.isfinite(items.bias)]).max(initial=0.0)
    # Four units more than the bound: for adding the bias, and for rounding the float64 score to float32.
    return (queries.shape[1] + 4) * 2.0**-24 * (size + float(finite))


def _rank(block: _Block, found: Found, items: _Items, rows: np.ndarray, scores: np.ndarray) -> None:
    """Scores candidates in float64 and writes each user's best into `rows` and `scores`."""
    kernels, matrix, (kept, counts) = _kernels(), np.asarray(items.vectors), found

    def rank(a: int, b: int) -> None:
        of_users = kept[a:b], counts[a:b], rows[a:b], scores[a:b]
        kernels.rank(block.queries, block.first[a : b + 1], matrix, items.bias, items.ranks, *of_users)

    in_threads(np.arange(len(block) + 1), _USERS_A_THREAD, rank)


def _kernels() -> ModuleType:
    require("numba", "ranking", "ranking")
    from unisono.transforms.rank import topk_kernels

    return topk_kernels


# --- candidates --------------------------------------------------------------------------------------------


def _choose_cpu(block: _Block, items: _Items, k: int, device: str) -> Found:
    """Chooses candidates among all items by products of one block of items after another.

    A bound that rises with each user's k-th score so far rejects almost every score with one comparison. So the
    selection takes a fraction of the time of the product; `argpartition` of each block would take longer than it.
    """
    kernels = _kernels()
    room = max(4 * k, k + _MIN_ROOM)
    kept = np.empty((len(block), room), np.int64)
    scores = np.empty((len(block), room), np.float32)
    counts = np.zeros(len(block), np.int64)
    bounds = np.full(len(block), np.finfo(np.float32).min, np.float32)
    crowded = np.zeros(len(block), bool)
    product = np.empty((len(block.queries), min(_ITEM_ROWS, len(items))), np.float32)
    seen_at = block.seen_ends[:-1].copy()

    def scan(view: np.ndarray, start: int) -> None:
        here = items.bias[start : start + view.shape[1]]
        in_threads(
            np.arange(len(block) + 1),
            _USERS_A_THREAD,
            lambda a, b: kernels.scan(
                view, block.first[a : b + 1], here, start, block.seen, seen_at[a:b], block.seen_ends[a : b + 1],
                block.slack[a:b], k, bounds[a:b], kept[a:b], scores[a:b], counts[a:b], crowded[a:b],
            ),
        )  # fmt: skip

    for start in range(0, len(items), _ITEM_ROWS):
        part = np.asarray(items.vectors[start : start + _ITEM_ROWS])
        view = product[:, : len(part)] if len(part) == product.shape[1] else np.empty(
            (len(product), len(part)), np.float32
        )
        np.matmul(block.queries, part.T, out=view)
        scan(view, start)
    if crowded.any():
        kept, counts = _all_of_crowded(block, len(items), kept, counts, crowded)
    return kept, counts


def _all_of_crowded(
    block: _Block, items: int, kept: np.ndarray, counts: np.ndarray, crowded: np.ndarray
) -> Found:
    """Makes every item that may appear a candidate of each crowded user, whose candidates need more room than there is.

    A crowded user costs one row of float64 scores. Only hundreds of items with nearly equal scores make a user crowded.
    """
    wide = np.full((len(kept), items), -1, np.int64)
    wide[:, : kept.shape[1]] = kept[:, :items]
    for u in np.flatnonzero(crowded).tolist():
        seen = block.seen[block.seen_ends[u] : block.seen_ends[u + 1]]
        rest = np.setdiff1d(np.arange(items), seen)
        wide[u, : len(rest)] = rest
        counts[u] = len(rest)
    return wide, counts


def _choose_torch(block: _Block, items: _Items, k: int, device: str) -> Found:
    """Chooses candidates as `_choose_cpu` does, with torch's product and top-k.

    `device` is a torch device; tests pass `torch-cpu` for torch on the CPU.
    """
    import torch

    where = torch.device(device.removeprefix("torch-"))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")  # the error of TF32 is larger than the bound
    try:
        best, kept = _torch_blocks(torch, where, block, items, k)
    finally:
        torch.set_float32_matmul_precision(before)
    kth = best[:, min(k, best.shape[1]) - 1]
    near = best >= np.where(np.isfinite(kth), kth - block.slack, -np.inf)[:, None]
    near &= best > -np.inf
    counts = near.sum(1)
    crowded = near.all(1) & (best.shape[1] < len(items))
    if crowded.any():
        kept, counts = _all_of_crowded(block, len(items), kept, counts, crowded)
    return kept, counts


def _torch_blocks(torch: Any, where: Any, block: _Block, items: _Items, k: int) -> Found:
    """Returns float32 scores and item indices of each user's best items, best first: [users, ≤ k + _MIN_ROOM] each."""
    queries = torch.from_numpy(block.queries).to(where)
    several = len(block.queries) != len(block)
    owner = torch.from_numpy(np.repeat(np.arange(len(block)), np.diff(block.first))).to(where)
    row = np.repeat(np.arange(len(block)), np.diff(block.seen_ends))
    seen = block.seen[block.seen_ends[0] : block.seen_ends[-1]]
    best = torch.empty((len(block), 0), device=where)
    index = torch.empty((len(block), 0), dtype=torch.int64, device=where)
    for start in range(0, len(items), _CUDA_ITEM_ROWS):
        part = torch.from_numpy(np.array(items.vectors[start : start + _CUDA_ITEM_ROWS])).to(where)
        scores = queries @ part.T
        if several:
            most = torch.full((len(block), len(part)), -torch.inf, device=where)
            scores = most.scatter_reduce_(0, owner[:, None].expand_as(scores), scores, "amax")
        scores += torch.from_numpy(items.bias[start : start + len(part)]).to(where)
        inside = (seen >= start) & (seen < start + len(part))
        at = torch.from_numpy(row[inside]).to(where), torch.from_numpy(seen[inside] - start).to(where)
        scores[at] = -torch.inf
        top, place = scores.topk(min(k + _MIN_ROOM, len(part)), dim=1)
        best, index = torch.cat([best, top], 1), torch.cat([index, place + start], 1)
        best, place = best.topk(min(k + _MIN_ROOM, best.shape[1]), dim=1)
        index = index.gather(1, place)
    return best.cpu().numpy(), index.cpu().numpy()
