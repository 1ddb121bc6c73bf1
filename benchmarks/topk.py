"""Measures the exact top k of users against items: Unisono's rate, divided by the rate of a bare loop in one run.

    python -m benchmarks.topk                     # 100,000 users × 100,000 items × 256, top 100
    python -m benchmarks.topk --users 4000 --items 20000
    python -m benchmarks.topk --device cuda

The bare loop does only what is necessary: for each block of users and items `torch.matmul` and `torch.topk` (or NumPy's
`matmul` and `argpartition`), then the merge of the results. It is tried with several block sizes, and the fastest
counts. It runs over `--bare-users` of the users, because its time is linear in their number. Prints one JSON object,
the ratio first.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time

import numpy as np

from unisono.transforms.base.columns import unit_rows
from unisono.transforms.base.extras import is_installed
from unisono.transforms.rank.topk import top_items


def bare_numpy(queries: np.ndarray, items: np.ndarray, k: int, rows: int, columns: int) -> np.ndarray:
    """Searches with NumPy in blocks of `rows` × `columns`: item indices [n, k], best first."""
    out = np.empty((len(queries), k), np.int64)
    for start in range(0, len(queries), rows):
        q = queries[start : start + rows]
        best, index = np.empty((len(q), 0), np.float32), np.empty((len(q), 0), np.int64)
        for at in range(0, len(items), columns):
            scores = q @ items[at : at + columns].T
            top = np.argpartition(scores, -min(k, scores.shape[1]), axis=1)[:, -k:]
            best = np.concatenate([best, np.take_along_axis(scores, top, 1)], 1)
            index = np.concatenate([index, top + at], 1)
        order = np.argsort(-best, axis=1)[:, :k]
        out[start : start + rows] = np.take_along_axis(index, order, 1)
    return out


def bare_torch(queries: np.ndarray, items: np.ndarray, k: int, rows: int, columns: int, device: str) -> np.ndarray:
    """Searches with torch in blocks of `rows` × `columns`: item indices [n, k], best first."""
    import torch

    torch.set_float32_matmul_precision("highest")
    there = torch.from_numpy(items).to(device)
    out = np.empty((len(queries), k), np.int64)
    for start in range(0, len(queries), rows):
        q = torch.from_numpy(queries[start : start + rows]).to(device)
        tops, places = [], []
        for at in range(0, len(items), columns):
            scores = q @ there[at : at + columns].T
            top, place = scores.topk(min(k, scores.shape[1]), dim=1)
            tops.append(top)
            places.append(place + at)
        order = torch.cat(tops, 1).topk(k, dim=1).indices
        out[start : start + rows] = torch.cat(places, 1).gather(1, order).cpu().numpy()
    return out


def measure_bare(queries: np.ndarray, items: np.ndarray, k: int, device: str) -> tuple[dict[str, float], np.ndarray]:
    """Runs the bare loop with every library and block size.

    Returns:
        Users per second by library and block size, and the item indices that the last one found.
    """
    sizes = [(1024, 4096), (512, 16_384), (256, len(items))] if device == "cpu" else [(4096, len(items))]
    libraries = ["torch"] if is_installed("torch") else []
    if device == "cpu" or not libraries:
        libraries.append("numpy")
    rates, found = {}, np.empty((0, k), np.int64)
    for library in libraries:
        for rows, columns in sizes:
            started = time.perf_counter()
            if library == "numpy":
                found = bare_numpy(queries, items, k, rows, columns)
            else:
                found = bare_torch(queries, items, k, rows, columns, device)
            rates[f"{library} {rows} × {columns}"] = len(queries) / (time.perf_counter() - started)
    return rates, found


def main() -> None:
    """Prints one JSON object: the ratio, both rates, and the fraction of users for whom both find the same items."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("-k", type=int, default=100)
    parser.add_argument("--bare-users", type=int, default=4096)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    queries, items = (
        unit_rows(rng.standard_normal((n, args.dim)).astype(np.float32)) for n in (args.users, args.items)
    )
    n = min(args.bare_users, args.users)
    top_items(queries[:64], items[:5000], args.k, device=args.device)  # compiles the loops
    bare, reference = measure_bare(queries[:n], items, args.k, args.device)
    started = time.perf_counter()
    mine, _ = top_items(queries, items, args.k, device=args.device)
    rate = args.users / (time.perf_counter() - started)
    same = float((np.sort(mine[:n], 1) == np.sort(reference, 1)).all(1).mean())
    result = {
        "ratio": round(rate / max(bare.values()), 3),
        "unisono_users_per_s": round(rate, 1),
        "bare_users_per_s": {name: round(r, 1) for name, r in bare.items()},
        "unisono_gflop_per_s": round(rate * args.items * args.dim * 2 / 1e9, 1),
        # The bare loop ranks by float32 scores. Their last digits can exchange items near the k-th place.
        "users_with_the_same_items": round(same, 5),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2),
        **{name: getattr(args, name) for name in ("users", "items", "dim", "k", "bare_users", "device")},
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
