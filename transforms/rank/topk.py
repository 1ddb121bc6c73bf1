"""Exact top k by inner product: float32 matrix products choose candidates, float64 decides among them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from unisono.transforms.base.threads import in_threads

_USER_ROWS = 1024  # rows of a product: the block of scores (16 MiB) stays near the processor
_ITEM_ROWS = 4096
_CUDA_USER_ROWS = 4096
_CUDA_ITEM_ROWS = 65_536
_USERS_A_THREAD = 64
_MIN_ROOM = 256  # candidates held for a user, at least


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

    A user's score of an item is the highest inner product of any of the user's queries with it, plus the
    item's bias. Products are float32, whose last digits depend on how rows are blocked; so every item within
    twice the worst rounding error of the k-th is kept and scored again in float64, and those scores, rounded
    to float32, are ranked. (The error of an inner product in any order of summation is below
    dim · 2^-24 · ‖q‖ · ‖v‖: Higham, Accuracy and Stability of Numerical Algorithms, 2002, ch. 3.)

    Args:
        queries: float32 [r, dim], finite.
        items: float32 [m, dim], finite; may be memory-mapped.
        k: at least 1.
        first: int64 [u + 1]: user i has the queries `first[i]` to `first[i + 1]`. None: one each.
        exclude: user index and item index, integers [p] each: pairs that must not appear.
        ranks: int64 [m]: ties go to the lower rank. None: to the lower index.
        bias: float32 [m], added to the scores. An item of bias −inf never appears.
        device: `cpu`, or `cuda` for products and a first choice by torch. Both give the same.

    Returns:
        item indices int64 and scores float32, [u, k], best first; where fewer items are left, −1 and −inf.

    Guarantees: a user's row depends on that user's queries and on the set of items alone.
    """
    if k < 1:
        raise ValueError(f"k is {k}; at least 1 is needed")
    first = np.arange(len(queries) + 1) if first is None else np.asarray(first, np.int64)
    users, m = len(first) - 1, len(items)
    ranks = np.arange(m) if ranks is None else ranks
    bias = np.zeros(m, np.float32) if bias is None else np.asarray(bias, np.float32)
    queries = np.ascontiguousarray(queries, np.float32)
    out = np.full((users, k), -1, np.int64), np.full((users, k), -np.inf, np.float32)
    if m == 0 or users == 0:
        return out
    seen_ends, seen_items = _by_user(exclude, users)
    slack = 2 * _rounding(queries, first, items, bias)
    choose = _choose_cpu if device == "cpu" else _choose_torch
    start = 0
    while start < users:
        stop = max(start + 1, int(np.searchsorted(first, first[start] + _user_rows(device), side="right")) - 1)
        stop = min(stop, users)
        block = _Block(
            queries[first[start] : first[stop]],
            first[start : stop + 1] - first[start],
            seen_ends[start : stop + 1],
            seen_items,
            slack[start:stop],
        )
        found = choose(block, items, bias, k, device)
        _rank(block, found, items, bias, ranks, out[0][start:stop], out[1][start:stop])
        start = stop
    return out


def _rank(
    block: _Block,
    found: Found,
    items: np.ndarray,
    bias: np.ndarray,
    ranks: np.ndarray,
    rows: np.ndarray,
    scores: np.ndarray,
) -> None:
    """Scores candidates in float64 and writes each user's best."""
    kernels, matrix, (kept, counts) = _kernels(), np.asarray(items), found

    def rank(a: int, b: int) -> None:
        of_users = kept[a:b], counts[a:b], rows[a:b], scores[a:b]
        kernels.rank(block.queries, block.first[a : b + 1], matrix, bias, ranks, *of_users)

    in_threads(np.arange(len(block) + 1), _USERS_A_THREAD, rank)


def _user_rows(device: str) -> int:
    return _USER_ROWS if device == "cpu" else _CUDA_USER_ROWS


class _Block:
    """Some users' queries, what each has seen, and how far below the k-th score a candidate may lie."""

    def __init__(
        self, queries: np.ndarray, first: np.ndarray, ends: np.ndarray, seen: np.ndarray, slack: np.ndarray
    ) -> None:
        self.queries, self.first, self.seen_ends, self.seen, self.slack = queries, first, ends, seen, slack

    def __len__(self) -> int:
        return len(self.slack)


Found = tuple[np.ndarray, np.ndarray]  # item indices int64 [users, room], how many of them count [users]


def _by_user(exclude: tuple[np.ndarray, np.ndarray] | None, users: int) -> tuple[np.ndarray, np.ndarray]:
    """Sorts pairs by user, then item: bounds int64 [users + 1], items int64 [p]."""
    if exclude is None or len(exclude[0]) == 0:
        return np.zeros(users + 1, np.int64), np.empty(0, np.int64)
    user, item = np.asarray(exclude[0], np.int64), np.asarray(exclude[1], np.int64)
    order = np.lexsort((item, user))
    ends = np.searchsorted(user[order], np.arange(users + 1))
    return ends, item[order]


def _rounding(queries: np.ndarray, first: np.ndarray, items: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Bounds the error of a float32 score for each user, float64 [users]; see `top_items`."""
    longest = 0.0
    for at in range(0, len(items), _CUDA_ITEM_ROWS):  # a memory map: never all of it at once
        part = np.asarray(items[at : at + _CUDA_ITEM_ROWS])
        longest = max(longest, float(np.einsum("ij,ij->i", part, part, dtype=np.float64).max(initial=0.0)))
    norms = np.sqrt(np.einsum("ij,ij->i", queries, queries, dtype=np.float64))
    of_user = np.zeros(len(first) - 1)
    np.maximum.at(of_user, np.repeat(np.arange(len(of_user)), np.diff(first)), norms)
    size = of_user * np.sqrt(longest)
    finite = np.abs(bias[np.isfinite(bias)]).max(initial=0.0)
    # Four units more than the bound: for the bias and for rounding the float64 score to float32.
    return (queries.shape[1] + 4) * 2.0**-24 * (size + float(finite))


# --- candidates --------------------------------------------------------------------------------------------


def _choose_cpu(block: _Block, items: np.ndarray, bias: np.ndarray, k: int, device: str) -> Found:
    """Runs a block of users against all items, keeping what may be among the k best.

    A running k-th score for each user turns almost every score away at one comparison, so that the selection
    costs a fraction of the product, where `argpartition` of each block costs more than it.
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
        here = bias[start : start + view.shape[1]]
        in_threads(
            np.arange(len(block) + 1),
            _USERS_A_THREAD,
            lambda a, b: kernels.scan(
                view, block.first[a : b + 1], here, start, block.seen, seen_at[a:b], block.seen_ends[a : b + 1],
                block.slack[a:b], k, bounds[a:b], kept[a:b], scores[a:b], counts[a:b], crowded[a:b],
            ),
        )  # fmt: skip

    for start in range(0, len(items), _ITEM_ROWS):
        part = np.asarray(items[start : start + _ITEM_ROWS])
        view = product[:, : len(part)] if len(part) == product.shape[1] else np.empty(
            (len(product), len(part)), np.float32
        )
        np.matmul(block.queries, part.T, out=view)
        scan(view, start)
    if crowded.any():
        kept, counts = _all_of_crowded(block, items, kept, counts, crowded)
    return kept, counts


def _all_of_crowded(
    block: _Block, items: np.ndarray, kept: np.ndarray, counts: np.ndarray, crowded: np.ndarray
) -> Found:
    """Gives users with more items level with the k-th than there is room for every item as a candidate.

    One such user costs a row of float64 scores; it takes hundreds of equal vectors to make one.
    """
    wide = np.full((len(kept), len(items)), -1, np.int64)
    wide[:, : kept.shape[1]] = kept[:, : len(items)]
    for u in np.flatnonzero(crowded).tolist():
        seen = block.seen[block.seen_ends[u] : block.seen_ends[u + 1]]
        rest = np.setdiff1d(np.arange(len(items)), seen)
        wide[u, : len(rest)] = rest
        counts[u] = len(rest)
    return wide, counts


def _choose_torch(block: _Block, items: np.ndarray, bias: np.ndarray, k: int, device: str) -> Found:
    """Does what `_choose_cpu` does by torch's product and top-k, with room for what rounding may turn."""
    import torch

    where = torch.device(device.removeprefix("torch-"))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")  # TF32's error is beyond the bound
    try:
        best, kept = _torch_blocks(torch, where, block, items, bias, k)
    finally:
        torch.set_float32_matmul_precision(before)
    kth = best[:, min(k, best.shape[1]) - 1]
    near = best >= np.where(np.isfinite(kth), kth - block.slack, -np.inf)[:, None]
    near &= best > -np.inf
    counts = near.sum(1)
    crowded = near.all(1) & (best.shape[1] < len(items))
    if crowded.any():
        kept, counts = _all_of_crowded(block, items, kept, counts, crowded)
    return kept, counts


def _torch_blocks(torch: Any, where: Any, block: _Block, items: np.ndarray, bias: np.ndarray, k: int) -> Found:
    """Gives float32 scores and item indices of each user's best, falling: [users, k + room]."""
    queries = torch.from_numpy(block.queries).to(where)
    several = len(block.queries) != len(block)
    owner = torch.from_numpy(np.repeat(np.arange(len(block)), np.diff(block.first))).to(where)
    row = np.repeat(np.arange(len(block)), np.diff(block.seen_ends))
    seen = block.seen[block.seen_ends[0] : block.seen_ends[-1]]
    best = torch.empty((len(block), 0), device=where)
    index = torch.empty((len(block), 0), dtype=torch.int64, device=where)
    for start in range(0, len(items), _CUDA_ITEM_ROWS):
        part = torch.from_numpy(np.array(items[start : start + _CUDA_ITEM_ROWS])).to(where)
        scores = queries @ part.T
        if several:
            most = torch.full((len(block), len(part)), -torch.inf, device=where)
            scores = most.scatter_reduce_(0, owner[:, None].expand_as(scores), scores, "amax")
        scores += torch.from_numpy(bias[start : start + len(part)]).to(where)
        inside = (seen >= start) & (seen < start + len(part))
        at = torch.from_numpy(row[inside]).to(where), torch.from_numpy(seen[inside] - start).to(where)
        scores[at] = -torch.inf
        top, place = scores.topk(min(k + _MIN_ROOM, len(part)), dim=1)
        best, index = torch.cat([best, top], 1), torch.cat([index, place + start], 1)
        best, place = best.topk(min(k + _MIN_ROOM, best.shape[1]), dim=1)
        index = index.gather(1, place)
    return best.cpu().numpy(), index.cpu().numpy()


# --- compiled ----------------------------------------------------------------------------------------------


class _Kernels:
    def __init__(self, scan: Callable[..., None], rank: Callable[..., None]) -> None:
        self.scan, self.rank = scan, rank


@cache
def _kernels() -> _Kernels:
    """Compiles the two loops, about two seconds a process."""
    import numba  # imported here, for `import unisono.transforms.rank.topk` must stay light

    @numba.njit(nogil=True)
    def compact(kept, scores, count, k, slack):  # type: ignore[no-untyped-def]
        """Keeps what is not below the k-th score by more than the slack; gives the new bound and count."""
        kth = np.partition(scores[:count], count - k)[count - k]
        bound = np.nextafter(np.float32(kth - slack), np.float32(-np.inf))
        n = 0
        for i in range(count):
            if scores[i] >= bound:
                kept[n], scores[n] = kept[i], scores[i]
                n += 1
        return bound, n

    @numba.njit(nogil=True)
    def scan(  # type: ignore[no-untyped-def]
        product, first, bias, start, seen, seen_at, seen_ends, slack, k, bounds, kept, scores, counts, crowded
    ):
        width = product.shape[1]
        level = np.empty(width, np.float32)
        room = kept.shape[1]
        for u in range(len(first) - 1):
            if crowded[u] or first[u] == first[u + 1]:
                continue
            row = product[first[u]]
            for j in range(width):
                level[j] = row[j]
            for r in range(first[u] + 1, first[u + 1]):
                row = product[r]
                for j in range(width):
                    level[j] = max(level[j], row[j])
            for j in range(width):
                level[j] += bias[j]
            while seen_at[u] < seen_ends[u + 1] and seen[seen_at[u]] < start + width:
                level[seen[seen_at[u]] - start] = -np.inf
                seen_at[u] += 1
            bound, count = bounds[u], counts[u]
            for c in range(0, width, 64):  # most chunks hold no score that counts, and are passed at one glance
                end = min(c + 64, width)
                hits = 0
                for j in range(c, end):
                    hits += level[j] >= bound
                if hits == 0:
                    continue
                for j in range(c, end):
                    if level[j] >= bound:
                        if count == room:
                            bound, count = compact(kept[u], scores[u], count, k, slack[u])
                            if count == room:
                                crowded[u] = True
                                break
                            if level[j] < bound:
                                continue
                        kept[u, count], scores[u, count] = start + j, level[j]
                        count += 1
                if crowded[u]:
                    break
            if count > 2 * k and not crowded[u]:  # a higher bound for the next block
                bound, count = compact(kept[u], scores[u], count, k, slack[u])
            bounds[u], counts[u] = bound, count

    @numba.njit(nogil=True)
    def dot(a, b):  # type: ignore[no-untyped-def]
        """Sums in eight lanes, in one fixed order: a single sum would wait on itself."""
        lanes = np.zeros(8)
        whole = len(a) // 8 * 8
        for d in range(0, whole, 8):
            for i in range(8):
                lanes[i] += np.float64(a[d + i]) * np.float64(b[d + i])
        total = 0.0
        for i in range(8):
            total += lanes[i]
        for d in range(whole, len(a)):
            total += np.float64(a[d]) * np.float64(b[d])
        return total

    @numba.njit(nogil=True)
    def rank(queries, first, items, bias, ranks, kept, counts, out, out_scores):  # type: ignore[no-untyped-def]
        for u in range(len(counts)):
            if first[u] == first[u + 1]:
                continue
            n = counts[u]
            mine = kept[u, :n]
            mine = mine[np.argsort(ranks[mine])]
            exact = np.empty(n, np.float32)
            for i in range(n):
                best = -np.inf
                for r in range(first[u], first[u + 1]):
                    best = max(best, dot(queries[r], items[mine[i]]))
                exact[i] = np.float32(best + bias[mine[i]])
            place = np.argsort(-exact, kind="mergesort")  # stable: ties stay in order of rank
            for at in range(min(n, out.shape[1])):
                i = place[at]
                if exact[i] == -np.inf:
                    break
                out[u, at], out_scores[u, at] = mine[i], exact[i]

    return _Kernels(scan, rank)
