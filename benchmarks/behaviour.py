"""Measures iALS and the left factors: CPU time of an epoch, divided by that of implicit's exact solver in one run.

    python -m benchmarks.behaviour                # 200,000 users × 20,000 items × 4,000,000 likes × 64 factors
    python -m benchmarks.behaviour --only memory  # 10,000,000 events × 500,000 users × 100,000 items

An epoch solves all users given the items and then all items given the users. Both programs run on one core and start
from the same item factors; epochs alternate, and the smallest time of each program counts. implicit knows only one
regularization for all rows, so it gets the one that stands for ours at the mean number of likes. Then the loss of its
factors, put into our loss, may be compared with the loss of ours. The likes are synthetic: users are drawn uniformly,
items by a power law of exponent 0.9, and half of the likes of a user fall on one of fifty groups of items.

The memory is the peak of a process that reads a log in Parquet, finds the liked pairs, and fits factors with one sweep
(further sweeps need no more). It includes Python, Arrow and numba. Prints one JSON object, the ratio first.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.sparse

from unisono.transforms.behaviour.exact_sums import sum_of_outer, total
from unisono.transforms.behaviour.factors import FactorSpec, fit_factors, settled, solve_side, start_factors
from unisono.transforms.behaviour.left_factors import solve_left_factors
from unisono.transforms.behaviour.likes import Likes, liked_pairs


def draw_pairs(rng: np.random.Generator, users: int, items: int, pairs: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws distinct pairs in random order: users and items, int64 [pairs] each."""
    ends = np.cumsum((np.arange(items) + 20) ** -0.9)
    keys = np.empty(0, np.int64)
    while len(keys) < pairs:
        user = rng.integers(0, users, pairs)
        item = np.searchsorted(ends, rng.random(pairs) * ends[-1]).clip(0, items - 1)
        group = item - item % 50 + user % 50
        item = np.where((rng.random(pairs) < 0.5) & (group < items), group, item)
        keys = np.unique(np.concatenate([keys, user * items + item]))
    keys = rng.permutation(keys)[:pairs]
    return keys // items, rng.permutation(items)[keys % items]


# --- CPU time ----------------------------------------------------------------------------------------------


def loss(likes: Likes, users: np.ndarray, items: np.ndarray, spec: FactorSpec) -> float:
    """Computes the loss that `fit_factors` minimizes, in float64."""
    fit, n = 0.0, np.diff(likes.first_of_user)
    owner = np.repeat(np.arange(len(n)), n)
    for at in range(0, len(owner), 1_000_000):
        u, v = users[owner[at : at + 1_000_000]], items[likes.items[at : at + 1_000_000]]
        fit += float(((1 - np.einsum("nd,nd->n", u, v, dtype=np.float64)) ** 2).sum())
    grams = [x.astype(np.float64).T @ x.astype(np.float64) for x in (users, items)]
    norms = [np.einsum("nd,nd->n", x, x, dtype=np.float64) for x in (users, items)]
    counts = n + spec.unobserved * len(items), np.diff(likes.first_of_item) + spec.unobserved * len(users)
    ridge = sum(float(c @ x) for c, x in zip(counts, norms, strict=True))
    assert spec.regularization is not None
    return fit + spec.unobserved * float((grams[0] * grams[1]).sum()) + spec.regularization * ridge


class Implicit:
    """The solver of implicit, with its weights and regularization chosen such that it minimizes nearly our loss.

    Up to a constant and a factor, our loss has the weight (1 + a₀)/a₀ and the target 1/(1 + a₀) for a liked pair where
    implicit has the target 1. So our factors are implicit's times √(1/(1 + a₀)), apart from a balance of both sides.
    """

    def __init__(self, likes: Likes, spec: FactorSpec, start: np.ndarray) -> None:
        from implicit.cpu.als import AlternatingLeastSquares

        m, n, a = len(likes.user_ids), len(likes.item_ids), spec.unobserved
        weight = np.full(len(likes.items), (1 + a) / a, np.float32)
        self._by_user = scipy.sparse.csr_matrix((weight, likes.items, likes.first_of_user.astype(np.int32)), (m, n))
        self._by_item = scipy.sparse.csr_matrix((weight, likes.users, likes.first_of_item.astype(np.int32)), (n, m))
        ridge = spec.regularization or 0.0
        of_user, of_item = (ridge * (len(weight) / x + a * y) / a for x, y in ((m, n), (n, m)))
        self._balance = (of_item / of_user) ** 0.25 / np.sqrt(1 + a), (of_user / of_item) ** 0.25 / np.sqrt(1 + a)
        self._users = np.zeros((m, spec.factors), np.float32)
        self._items = (start / self._balance[1]).astype(np.float32)
        ridge = (1 + a) * np.sqrt(of_user * of_item)
        model = AlternatingLeastSquares(spec.factors, float(ridge), use_cg=False, use_native=True, num_threads=1)
        self._solve = lambda likes, x, y: model.solver(likes, x, y, float(ridge), num_threads=1)

    def epoch(self) -> None:
        """Solves all users, and then all items."""
        self._solve(self._by_user, self._users, self._items)
        self._solve(self._by_item, self._items, self._users)

    def factors(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns user and item factors on the scale of ours."""
        return self._users * np.float32(self._balance[0]), self._items * np.float32(self._balance[1])


def measure_time(args: argparse.Namespace) -> dict[str, Any]:
    """Measures epochs of both programs and the left factors on one core."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    rng = np.random.default_rng(0)
    users, items = draw_pairs(rng, args.users, args.items, args.likes)
    likes = Likes.of(pa.table({"user_id": users, "item_id": items}))
    sizes = len(likes.items), len(likes.user_ids), len(likes.item_ids)
    spec = settled(FactorSpec(factors=args.factors), *sizes)
    fit_factors(Likes.of(pa.table({"user_id": users[:500], "item_id": items[:500]})), spec)  # compiles the loops
    v = start_factors(likes.item_ids, spec)
    rival = Implicit(likes, spec, v)
    mine, other = [], []
    for _ in range(args.epochs):
        started = time.process_time()
        u = solve_side(
            likes.first_of_user, likes.items, factors=v, gram=total([sum_of_outer(v, v)]), spec=spec
        )
        v = solve_side(
            likes.first_of_item, likes.users, factors=u, gram=total([sum_of_outer(u, u)]), spec=spec
        )
        between = time.process_time()
        rival.epoch()
        mine.append(between - started)
        other.append(time.process_time() - between)
    started = time.process_time()
    solve_left_factors(likes, u, spec.left_ridge)
    left = time.process_time() - started
    return {
        "ratio": round(min(mine) / min(other), 3),
        "epoch_cpu_s": round(min(mine), 2),
        "implicit_epoch_cpu_s": round(min(other), 2),
        "left_factors_cpu_s": round(left, 2),
        "loss": round(loss(likes, u, v, spec), 1),
        "loss_of_implicit": round(loss(likes, *rival.factors(), spec), 1),
        **{name: getattr(args, name) for name in ("users", "items", "likes", "factors", "epochs")},
    }


# --- memory ------------------------------------------------------------------------------------------------


def write_log(path: Path, users: int, items: int, events: int) -> None:
    """Writes a log of user_id, item_id and weight, with strings as ids; one event in ten is a dislike."""
    rng = np.random.default_rng(0)
    user, item = draw_pairs(rng, users, items, events)
    weight = np.where(rng.random(events) < 0.1, -1.0, 1.0)
    ids = (pa.array(np.char.add(prefix, x.astype(str))) for prefix, x in (("user-", user), ("item-", item)))
    pq.write_table(pa.table({**dict(zip(("user_id", "item_id"), ids, strict=True)), "weight": weight}), path)


def fit_log(path: Path, factors: int) -> dict[str, Any]:
    """Fits the factors of a log, and returns the peak memory of this process."""
    pairs = liked_pairs(pq.read_table(path), 0.0)
    fitted = fit_factors(Likes.of(pairs), FactorSpec(factors=factors, sweeps=1))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return {"peak_gb": round(peak, 2), "liked_pairs": pairs.num_rows, "items_with_likes": len(fitted.item_ids)}


def measure_memory(args: argparse.Namespace) -> dict[str, Any]:
    """Measures the peak memory in processes of their own, because the peak of a process never falls."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.parquet"
        command = [sys.executable, "-m", "benchmarks.behaviour", "--log", str(path)]
        sizes = ["--log-users", args.log_users, "--log-items", args.log_items, "--events", args.events]
        subprocess.run([*command, *map(str, sizes)], check=True)
        done = subprocess.run([*command, "--factors", str(args.factors)], check=True, stdout=subprocess.PIPE)
    return {**json.loads(done.stdout), **{name: getattr(args, name) for name in ("log_users", "log_items", "events")}}


def main() -> None:
    """Prints one JSON object: the ratio, CPU times, both losses, and the peak memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=200_000)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--likes", type=int, default=4_000_000)
    parser.add_argument("--factors", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--log-users", type=int, default=500_000)
    parser.add_argument("--log-items", type=int, default=100_000)
    parser.add_argument("--events", type=int, default=10_000_000)
    parser.add_argument("--only", choices=["time", "memory"])
    parser.add_argument("--log", type=Path, help=argparse.SUPPRESS)  # what the processes of `measure_memory` do
    args = parser.parse_args()
    if args.log and args.log.exists():
        print(json.dumps(fit_log(args.log, args.factors)))
    elif args.log:
        write_log(args.log, args.log_users, args.log_items, args.events)
    else:
        result = {} if args.only == "memory" else measure_time(args)
        if args.only != "time":
            result |= measure_memory(args)
        print(json.dumps({**result, "cores": os.cpu_count(), "load": os.getloadavg()[0]}, indent=1))


if __name__ == "__main__":
    main()
