"""Exact top k with torch: candidates by its product and top-k, on a GPU."""

from __future__ import annotations

from typing import Any

import numpy as np

from unisono.transforms.rank.topk_estimates import float_estimates
from unisono.transforms.rank.topk_search import Search, kernels, rank_all

_USER_ROWS = 4096
_ITEM_ROWS = 65_536
_MORE = 256  # room for this many candidates of a user beyond k


def search_torch(search: Search, device: str, rows: np.ndarray, scores: np.ndarray) -> None:
    """Searches with torch's product and top-k.

    `device` is a torch device; tests pass `torch-cpu` for torch on the CPU.
    """
    import torch

    loops, where = kernels(), torch.device(device.removeprefix("torch-"))
    estimates = float_estimates(search.queries, search.items)
    errors = (estimates.reach * estimates.near.max()).astype(np.float32)[:, None]
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")  # the error of TF32 is larger than the bound
    try:
        for start in range(0, len(rows), _USER_ROWS):
            users = slice(start, min(start + _USER_ROWS, len(rows)))
            best, kept = _torch_block(torch, where, search.of(np.arange(users.start, users.stop)))
            lower, upper = best - errors[users], best + errors[users]
            counts = ((upper >= lower[:, min(search.k, best.shape[1]) - 1, None]) & (best > -np.inf)).sum(1)
            crowded = (counts == best.shape[1]) & (best.shape[1] < len(search.items))
            counts[crowded] = 0
            loops.rank(
                search.queries[users], np.asarray(search.items), search.ranks, estimates.unit[users],
                kept, lower, upper, counts, rows[users], scores[users],
            )  # fmt: skip
            for user in (np.flatnonzero(crowded) + start).tolist():
                rank_all(search, user, rows, scores)
    finally:
        torch.set_float32_matmul_precision(before)


def _torch_block(torch: Any, where: Any, search: Search) -> tuple[np.ndarray, np.ndarray]:
    """Returns float32 scores and item indices of each user's best items, best first: [users, ≤ k + _MORE] each."""
    queries, n = torch.from_numpy(search.queries).to(where), len(search.queries)
    counts = search.seen.stop - search.seen.start
    row = np.repeat(np.arange(n), counts)
    seen = np.concatenate([search.seen.of(u) for u in range(n)]) if counts.any() else np.empty(0, np.int64)
    best = torch.empty((n, 0), device=where)
    index = torch.empty((n, 0), dtype=torch.int64, device=where)
    for start in range(0, len(search.items), _ITEM_ROWS):
        part = torch.from_numpy(np.array(search.items[start : start + _ITEM_ROWS])).to(where)
        scores = queries @ part.T
        if search.hidden.any():
            scores[:, torch.from_numpy(search.hidden[start : start + len(part)]).to(where)] = -torch.inf
        inside = (seen >= start) & (seen < start + len(part))
        at = torch.from_numpy(row[inside]).to(where), torch.from_numpy(seen[inside] - start).to(where)
        scores[at] = -torch.inf
        top, place = scores.topk(min(search.k + _MORE, len(part)), dim=1)
        best, index = torch.cat([best, top], 1), torch.cat([index, place + start], 1)
        best, place = best.topk(min(search.k + _MORE, best.shape[1]), dim=1)
        index = index.gather(1, place)
    return best.cpu().numpy(), index.cpu().numpy()
