"""Measures the exact top k of users against items: Unisono's rate, divided by the rate of faiss's `IndexFlatIP`.

    python -m benchmarks.topk                     # 100,000 users × 100,000 items × 256, top 100
    python -m benchmarks.topk --users 4096 --items 20000 --rounds 5
    python -m benchmarks.topk --device cuda

The rivals are faiss's `IndexFlatIP` (`pip install faiss-cpu`) if it is installed, and the bare products by NumPy and by
torch alone, without any selection. Each runs over `--rival-users` of the users, because its time is linear in their
number, in turn with ours, `--rounds` times. All use as many threads as there are processors. Rates are medians over the
rounds. Prints one JSON object, the ratio first; without faiss it is the ratio to the fastest bare product.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from unisono.transforms.base.columns import unit_rows
from unisono.transforms.base.extras import is_installed
from unisono.transforms.rank.topk import top_items

_BLOCK = (2048, 1024)  # users and items of one bare product
Search = Callable[[np.ndarray], np.ndarray | None]


def faiss_flat(items: np.ndarray, k: int) -> Search:
    """Prepares faiss's exact search: item indices [n, k] of queries [n, dim]."""
    import faiss

    faiss.omp_set_num_threads(os.cpu_count() or 1)
    index = faiss.IndexFlatIP(items.shape[1])
    index.add(items)
    return lambda queries: index.search(queries, k)[1]


def numpy_product(items: np.ndarray) -> Search:
    """Prepares the products of queries and items by NumPy, which are then dropped."""
    rows, columns = _BLOCK
    out = np.empty(_BLOCK, np.float32)

    def run(queries: np.ndarray) -> None:
        for start in range(0, len(queries), rows):
            q = queries[start : start + rows]
            for at in range(0, len(items), columns):
                part = items[at : at + columns]
                np.matmul(q, part.T, out=out[: len(q), : len(part)])

    return run


def torch_product(items: np.ndarray, device: str) -> Search:
    """Prepares the products of queries and items by torch, which are then dropped."""
    import torch

    torch.set_float32_matmul_precision("highest")
    rows, columns = _BLOCK if device == "cpu" else (4096, len(items))
    there = torch.from_numpy(items).to(device)

    def run(queries: np.ndarray) -> None:
        for start in range(0, len(queries), rows):
            q = torch.from_numpy(queries[start : start + rows]).to(device)
            for at in range(0, len(items), columns):
                torch.matmul(q, there[at : at + columns].T)
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def make_rivals(items: np.ndarray, k: int, device: str) -> dict[str, Search]:
    """Prepares every rival that is installed, by name."""
    rivals: dict[str, Search] = {}
    if device == "cpu":
        if is_installed("faiss"):
            rivals["faiss IndexFlatIP"] = faiss_flat(items, k)
        rivals["product by numpy"] = numpy_product(items)
    if is_installed("torch"):
        rivals["product by torch"] = torch_product(items, device)
    return rivals


def measure(
    ours: Search, rivals: Mapping[str, Search], queries: np.ndarray, rival_users: int, rounds: int
) -> tuple[dict[str, float], dict[str, Any]]:
    """Runs ours and every rival in turn.

    Returns:
        Users per second, the median over the rounds, and what the last run found, both by name.
    """
    rates: dict[str, list[float]] = {name: [] for name in ("unisono", *rivals)}
    found = {}
    for _ in range(rounds):
        for name, search in {"unisono": ours, **rivals}.items():
            some = queries if name == "unisono" else queries[:rival_users]
            started = time.perf_counter()
            found[name] = search(some)
            rates[name].append(len(some) / (time.perf_counter() - started))
    return {name: statistics.median(r) for name, r in rates.items()}, found


def main() -> None:
    """Prints one JSON object: the ratio, all rates, and the fraction of users for whom faiss finds the same items."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("-k", type=int, default=100)
    parser.add_argument("--rival-users", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    queries, items = (
        unit_rows(rng.standard_normal((n, args.dim)).astype(np.float32)) for n in (args.users, args.items)
    )
    top_items(queries[:600], items[:5000], args.k, device=args.device)  # compiles the loops
    rivals = make_rivals(items, args.k, args.device)
    rates, found = measure(
        lambda q: top_items(q, items, args.k, device=args.device)[0], rivals, queries, args.rival_users, args.rounds
    )
    rival = "faiss IndexFlatIP" if "faiss IndexFlatIP" in rates else max(rivals, key=lambda name: rates[name])
    result = {
        "ratio": round(rates["unisono"] / rates[rival], 3),
        "to": rival,
        "users_per_s": {name: round(r, 1) for name, r in rates.items()},
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2),
        **{name: getattr(args, name) for name in ("users", "items", "dim", "k", "rival_users", "rounds", "device")},
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
    }
    ours, theirs = found["unisono"], found[rival]
    if ours is not None and theirs is not None:
        # faiss ranks by float32 scores. Their last digits can exchange items near the k-th place.
        same = np.sort(ours[: len(theirs)], 1) == np.sort(theirs, 1)
        result["users_with_the_same_items"] = round(float(same.all(1).mean()), 5)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
