"""Measures the way from an interaction log to profile files: `unisono profile` and a hand-written script in one run.

    python -m benchmarks.profiles                                        # 10,000,000 events, 100,000 items × 256
    python -m benchmarks.profiles --events 1000000

`unisono` is the job of that command: job file, checks, the Beam graph on the local runner, published run. `script` is
what an engineer would write for one machine: Polars reads, joins and sorts the log, SciPy's sparse product adds up item
vectors in float32 on every core, and the profiles are written as Parquet files. Both read the same log (users, items
and event types are strings) and the same published items, and write

    user_id, vector (256 floats), text_affinity, events, last_event

Both run first without interests (`interests: 0`), then with `interests: 3`, the default of the job file. The script
finds interests by SciPy's Ward linkage in as many processes as there are cores. Each run is a process of its own. The
data are drawn from a seed: users and items by power laws, 90 days, four event types, and an unknown item in 1 of 100
events. The files of both are compared. Prints one JSON object, the ratios of time first.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

WEIGHTS = {"view": 1.0, "cart": 3.0, "purchase": 5.0, "dislike": -3.0}
HALF_LIFE_DAYS, RECENT, SPLIT = 30, 100, 0.02
DAY_US = 86_400_000_000
ITEM_FILES, LOG_FILES, ROW_GROUP = 16, 10, 131_072
SCRIPT_BLOCK = 16_384  # users in one file of the script


# --- data --------------------------------------------------------------------------------------------------


def power_law(rng: np.random.Generator, n: int, among: int, offset: float, exponent: float) -> np.ndarray:
    """Draws n integers below `among`; the r-th most common one has a probability ∝ (r + offset)^−exponent."""
    ends = np.cumsum((np.arange(among) + offset) ** -exponent)
    return rng.permutation(among)[np.searchsorted(ends, rng.random(n) * ends[-1]).clip(0, among - 1)]


def make_data(root: Path, events: int, users: int, items: int, dim: int) -> None:
    """Writes a store with published items, a log and a job file."""
    from unisono.transforms.base.columns import unit_rows
    from unisono.transforms.base.tables import shard_of, split_by_shard, to_vector_column
    from unisono.transforms.store.runs import Manifest, Store, shard_path, table_bytes, write_file

    rng = np.random.default_rng(0)
    # The items form a hundred groups, because interests assume that the items of one taste are near each other.
    centres = rng.standard_normal((100, dim))
    vectors = centres[rng.integers(0, 100, items)] + 0.7 * rng.standard_normal((items, dim))
    vectors = unit_rows(vectors).astype(np.float32)
    column = to_vector_column(vectors)
    table = pa.table({"item_id": [f"item-{i:07d}" for i in range(items)], "vector": column, "text_vector": column})
    schema = table.schema.set(1, pa.field("vector", column.type, nullable=False))
    table = table.cast(schema).replace_schema_metadata({"unisono.space_id": "benchmark", "unisono.dim": str(dim)})
    store = Store(str(root / "store"))
    records = [
        write_file(store, "items", path, table_bytes(part), shard, part.num_rows)
        for shard, part in split_by_shard(table, shard_of(table["item_id"], ITEM_FILES))
        if (path := shard_path("items", "items", shard, ITEM_FILES))
    ]
    (root / "store/runs/items/manifest.json").write_text(Manifest("items", "2026-01-01", tuple(records)).to_json())
    (root / "store/LATEST").write_text("items\n")

    (root / "log").mkdir()
    user_ids, item_ids = (pa.array([f"{k}-{i:07d}" for i in range(n)]) for k, n in (("user", users), ("item", items)))
    who = power_law(rng, events, users, 50, 0.7).astype(np.int32)
    what = power_law(rng, events, items, 100, 0.9).astype(np.int32)
    what = np.where(rng.random(events) < 0.01, items, what)
    item_ids = pa.concat_arrays([item_ids, pa.array(["item-gone"])])
    when = np.sort(1_780_000_000_000_000 + (rng.random(events) * 90 * DAY_US).astype(np.int64))
    kind = rng.choice(len(WEIGHTS), events, p=[0.7, 0.15, 0.1, 0.05])
    names = pa.array(list(WEIGHTS))
    for number, part in enumerate(np.array_split(np.arange(events), LOG_FILES)):
        log = pa.table({
            "user_id": user_ids.take(pa.array(who[part])),
            "item_id": item_ids.take(pa.array(what[part])),
            "timestamp": pa.array(when[part], pa.timestamp("us", "UTC")),
            "event": names.take(pa.array(kind[part])),
        })
        pq.write_table(log, root / f"log/part-{number:02d}.parquet", row_group_size=ROW_GROUP, compression="zstd")


def write_job(root: Path, interests: int) -> Path:
    """Writes the job file as JSON, which is also YAML."""
    body = {
        "store": "store",
        "catalog": {"path": "none.parquet", "id": "item_id", "text": ["title"]},
        "interactions": {
            "path": "log/*.parquet", "user": "user_id", "item": "item_id", "time": "timestamp", "event": "event",
            "weights": WEIGHTS,
        },
        "profiles": {"half_life_days": HALF_LIFE_DAYS, "interests": interests, "recent_events": RECENT},
    }  # fmt: skip
    path = root / "job.yaml"
    path.write_text(json.dumps(body))
    return path


# --- the two sides ------------------------------------------------------------------------------------------


def run_unisono(root: Path, interests: int) -> None:
    """Runs what `unisono profile --config job.yaml --run-id r` runs."""
    from unisono.pipelines.launch import run_job

    run_job(str(write_job(root, interests)), "r", [], items=False, users=True)


@dataclass(frozen=True, eq=False)
class _Log:
    """The log as the script holds it, sorted by user and time.

    Attributes:
        user_ids: [u].
        first: int64 [u + 1]: user i has the events `first[i]` to `first[i + 1]`.
        row: int32 [e], each event's item.
        weight: float32 [e], after decay.
        last: time of each user's newest event [u].
    """

    user_ids: pa.Array
    first: np.ndarray
    row: np.ndarray
    weight: np.ndarray
    last: pa.Array


def _read_script_log(root: Path, item_ids: Any) -> _Log:
    import polars as pl

    rows = item_ids.to_frame().with_row_index("row")
    types = pl.DataFrame({"event": list(WEIGHTS), "weight": list(WEIGHTS.values())})
    log = (
        pl.scan_parquet(root / "log/*.parquet")
        .join(types.lazy(), on="event")
        .join(rows.lazy(), on="item_id")
        .select("user_id", "timestamp", "row", "weight")
        .sort("user_id", "timestamp")
        .collect()
    )
    users = log.group_by("user_id", maintain_order=True).agg(
        pl.len().alias("events"), pl.col("timestamp").last().alias("last_event")
    )
    counts = users["events"].to_numpy().astype(np.int64)
    first = np.concatenate([[0], np.cumsum(counts)])
    time_us = log["timestamp"].to_physical().to_numpy()
    age = np.repeat(time_us[first[1:] - 1], counts) - time_us
    weight = (log["weight"].to_numpy() * np.exp2(-age / (HALF_LIFE_DAYS * DAY_US))).astype(np.float32)
    row = log["row"].to_numpy().astype(np.int32)
    return _Log(users["user_id"].to_arrow().cast(pa.string()), first, row, weight, users["last_event"].to_arrow())


def run_script(root: Path, interests: int) -> None:
    """Runs the hand-written script."""
    import polars as pl
    from scipy.sparse import csr_matrix

    items = pl.read_parquet(root / "store/runs/items/items/*.parquet", columns=["item_id", "vector", "text_vector"])
    vectors, text = (np.stack(list(items[c].to_numpy())) for c in ("vector", "text_vector"))
    log = _read_script_log(root, items["item_id"])
    first, weight, counts = log.first, log.weight, np.diff(log.first)
    recent = np.repeat(first[1:], counts) - np.arange(len(log.row)) <= RECENT
    liked = np.where(recent & (weight > 0), weight, np.float32(0))
    found = _script_interests(root, log, np.where(recent, weight, 0), vectors, interests) if interests else None
    out = root / "script"
    out.mkdir()

    def write(start: int) -> None:
        stop = min(start + SCRIPT_BLOCK, len(counts))
        events, ends = slice(first[start], first[stop]), first[start : stop + 1] - first[start]
        shape = (stop - start, len(vectors))
        sums = csr_matrix((weight[events], log.row[events], ends), shape) @ vectors
        sums /= np.linalg.norm(sums, axis=1, keepdims=True)
        own = csr_matrix((liked[events], log.row[events], ends), shape) @ text
        total = np.add.reduceat(liked[events], ends[:-1])
        with np.errstate(invalid="ignore"):
            affinity = np.linalg.norm(own, axis=1) / total
        columns = {
            "user_id": log.user_ids.slice(start, stop - start),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(sums.reshape(-1)), vectors.shape[1]),
            "text_affinity": pa.array(affinity, mask=~(total > 0)),
            "events": pa.array(counts[start:stop]),
            "last_event": log.last.slice(start, stop - start),
        }
        if found is not None:
            columns["interests"] = found[start // SCRIPT_BLOCK]
        pq.write_table(pa.table(columns), out / f"part-{start:09d}.parquet", compression="zstd", use_dictionary=False)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(write, range(0, len(counts), SCRIPT_BLOCK)))


def _script_interests(
    root: Path, log: _Log, weight: np.ndarray, vectors: np.ndarray, most: int
) -> list[pa.Array]:
    """Finds Ward's clusters of each user's recent liked items, on every core; one array for each block of users."""
    import multiprocessing

    ids = pa.concat_arrays(
        pq.read_table(root / "store/runs/items/items", columns=["item_id"])["item_id"].chunks
    )
    _SHARED.update(first=log.first, row=log.row, weight=weight, vectors=vectors, most=most)
    with multiprocessing.get_context("fork").Pool(os.cpu_count()) as pool:
        blocks = pool.map(_script_block, range(0, len(log.first) - 1, SCRIPT_BLOCK), 1)
    out = []
    for ends, centres, shares, medoids in blocks:
        fields = [
            pa.FixedSizeListArray.from_arrays(pa.array(centres.reshape(-1)), vectors.shape[1]),
            pa.array(shares), ids.take(pa.array(medoids)),
        ]  # fmt: skip
        struct = pa.StructArray.from_arrays(fields, names=["vector", "weight", "item_id"])
        out.append(pa.ListArray.from_arrays(pa.array(ends), struct))
    return out


_SHARED: dict[str, Any] = {}  # what the forked processes inherit


def _script_block(start: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Clusters one block of users: where each user's interests begin, and their vectors, weights and medoids."""
    from scipy.cluster.hierarchy import fcluster, linkage

    first, row, weight, vectors, most = (_SHARED[k] for k in ("first", "row", "weight", "vectors", "most"))
    ends, centres, shares, medoids = [0], [], [], []
    for u in range(start, min(start + SCRIPT_BLOCK, len(first) - 1)):
        mine = slice(max(first[u], first[u + 1] - RECENT), first[u + 1])
        own, place = np.unique(row[mine], return_inverse=True)
        total = np.bincount(place, weight[mine])
        own, total = own[total > 0], total[total > 0]
        if len(own) == 0:
            ends.append(ends[-1])
            continue
        x, label = vectors[own], np.ones(len(own), int)
        if len(own) > 1:
            tree = linkage(x, "ward")
            added = tree[:, 2] ** 2
            label = fcluster(tree, min(most, 1 + int((added >= SPLIT * added.sum()).sum())), "maxclust")
        here = []
        for c in np.unique(label):
            of = label == c
            mean = x[of].sum(0)
            distance = of.sum() * np.einsum("id,id->i", x[of], x[of]) - 2 * x[of] @ mean
            centre = total[of] @ x[of]
            here.append((total[of].sum() / total.sum(), centre / np.linalg.norm(centre), own[of][distance.argmin()]))
        here.sort(key=lambda h: -h[0])
        shares += [h[0] for h in here]
        centres += [h[1] for h in here]
        medoids += [h[2] for h in here]
        ends.append(len(shares))
    packed = np.array(centres, np.float32), np.array(shares, np.float32), np.array(medoids, np.int64)
    return np.array(ends, np.int32), *packed


# --- comparison --------------------------------------------------------------------------------------------


def compare(root: Path, dim: int, interests: bool) -> dict[str, float]:
    """Compares the files of both and returns the largest differences.

    Raises:
        SystemExit: users, numbers of events, times or nulls differ, or a vector or an affinity differs by more than
            1e-5.
    """
    names = ["user_id", "vector", "text_affinity", "events", "last_event"] + (["interests"] if interests else [])
    cold = 0  # users with unknown items only: Unisono gives them a profile from popular items, the script gives none
    # File by file, because each side has half a gigabyte of vectors. Ours are sharded by hash, so ids are matched.
    theirs = pq.read_table(root / "script", columns=names).combine_chunks()
    seen, worst, alike = 0, {"vector": 0.0, "text_affinity": 0.0}, []
    for path in sorted((root / "store/runs/r/users").glob("*.parquet")):
        ours = pq.read_table(path, columns=[*names, "cold"])
        cold += pc.sum(ours["cold"]).as_py() or 0
        ours = ours.filter(pc.invert(ours["cold"])).combine_chunks()
        mine = theirs.take(pc.index_in(ours["user_id"], theirs["user_id"].combine_chunks()))
        seen += len(ours)
        for name in ("user_id", "events", "last_event"):
            if not ours[name].cast(mine[name].type).equals(mine[name]):
                raise SystemExit(f"{path}: {name} differs from the script's")
        a, b = (_flat(t["vector"]) for t in (ours, mine))
        worst["vector"] = max(worst["vector"], float(np.abs(a - b).max()))
        a, b = (t["text_affinity"].to_numpy() for t in (ours, mine))
        if (np.isnan(a) != np.isnan(b)).any():
            raise SystemExit(f"{path}: other users lack an affinity than in the script's files")
        worst["text_affinity"] = max(worst["text_affinity"], float(np.nanmax(np.abs(a - b))))
        if interests:
            alike.append(_interests_alike(ours["interests"], mine["interests"], dim))
    if seen != len(theirs) or max(worst.values()) > 1e-5:
        raise SystemExit(f"Unisono has {seen} users, the script {len(theirs)}; the largest differences are {worst}")
    worst["cold_users_of_unisono_alone"] = cold
    if interests:
        worst["users_of_equal_interests"] = round(float(np.concatenate(alike).mean()), 6)
    return worst


def _flat(column: pa.ChunkedArray) -> np.ndarray:
    return column.combine_chunks().flatten().to_numpy()


def _interests_alike(a: pa.ChunkedArray, b: pa.ChunkedArray, dim: int) -> np.ndarray:
    """Says for each user whether weights and vectors of the interests agree to 1e-5, bool [users].

    Interests with equal weights may be in either order, and then count as different.
    """
    a, b = a.combine_chunks(), b.combine_chunks()
    counts = [pc.list_value_length(x).to_numpy() for x in (a, b)]
    same = counts[0] == counts[1]
    a, b = a.filter(pa.array(same)), b.filter(pa.array(same))
    user = np.repeat(np.flatnonzero(same), counts[0][same])
    weights = [pc.struct_field(x.flatten(), "weight").to_numpy() for x in (a, b)]
    off = np.abs(weights[0] - weights[1])
    vectors = [pc.struct_field(x.flatten(), "vector").flatten().to_numpy().reshape(-1, dim) for x in (a, b)]
    off = np.maximum(off, np.abs(vectors[0] - vectors[1]).max(1))
    same[user[off > 1e-5]] = False
    return same


# --- the run -----------------------------------------------------------------------------------------------


def peak_bytes(process: subprocess.Popen) -> int:
    """Samples a process until it ends: its resident memory plus the unshared memory of its children."""
    import psutil

    me, peak, stop = psutil.Process(process.pid), [0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.1):
            try:
                children = sum(c.memory_full_info().uss for c in me.children(recursive=True))
                peak[0] = max(peak[0], me.memory_info().rss + children)
            except psutil.Error:  # a process ended between two calls
                continue

    thread = threading.Thread(target=watch)
    thread.start()
    code = process.wait()
    stop.set()
    thread.join()
    if code:
        raise SystemExit(f"{process.args!r} ended with {code}")
    return peak[0]


def measure(kind: str, root: Path, interests: int) -> dict[str, float]:
    """Runs one side in a process of its own, measured from the start of Python to its end."""
    command = [sys.executable, __file__, "--child", kind, "--root", str(root), "--interests", str(interests)]
    cache = root / "tmp"  # empty, so that the item matrix is built anew
    cache.mkdir(exist_ok=True)
    before, started = os.times(), time.monotonic()
    peak = peak_bytes(subprocess.Popen(command, env=os.environ | {"TMPDIR": str(cache)}, stdout=sys.stderr))
    seconds, after = time.monotonic() - started, os.times()
    busy = after.children_user + after.children_system - before.children_user - before.children_system
    return {"seconds": round(seconds, 2), "processor_s": round(busy, 1), "peak_gb": round(peak / 1e9, 2)}


def main() -> None:
    """Runs both sides for each number of interests and prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=10_000_000)
    parser.add_argument("--users", type=int, help="default: one user for 20 events")
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--interests", type=int, nargs="*", default=[0, 3])
    parser.add_argument("--root", type=Path, help="directory for the files; default: a temporary one")
    parser.add_argument("--child", choices=("unisono", "script"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        {"unisono": run_unisono, "script": run_script}[args.child](args.root, args.interests[0])
        return
    users = args.users or max(1, args.events // 20)
    root = Path(tempfile.mkdtemp(prefix="unisono-profiles-", dir=args.root))
    try:
        make_data(root, args.events, users, args.items, args.dim)
        ratios, found = {}, {}
        for interests in args.interests:
            runs = {kind: measure(kind, root, interests) for kind in ("script", "unisono")}
            ratios[f"interests: {interests}"] = round(runs["unisono"]["seconds"] / runs["script"]["seconds"], 2)
            found[f"interests: {interests}"] = runs | {"differences": compare(root, args.dim, interests > 0)}
            shutil.rmtree(root / "script")
            shutil.rmtree(root / "store/runs/r")
            (root / "store/LATEST").write_text("items\n")
        sizes = {"events": args.events, "users": users, "items": args.items, "dim": args.dim, "cores": os.cpu_count()}
        print(json.dumps({"ratio": ratios, **found, **sizes, "load": os.getloadavg()[0]}, indent=1))
    finally:
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
