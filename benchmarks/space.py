"""Compares the steps from embeddings files to item files with the arithmetic alone and the same reads and writes.

    python -m benchmarks.space                                   # 1,000,000 items × 3 modalities × 512 values
    python -m benchmarks.space --items 100000 --dim 256          # smaller

Two child processes run one after the other, on the same files, with the same number of BLAS threads.
`unisono` runs the steps of the job's graph after encoding (read, moments, fit, read, align, fuse, write) on the local
Beam runner. `bare` does only the necessary work in a NumPy loop: it reads each file, adds one symmetric product,
solves the eigenproblems, reads each file again, multiplies once for each modality, scales to unit length, adds up,
and writes each file. The result is one JSON object: the seconds and the peak resident memory of each, and the ratio
of the seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.linalg

MODALITIES = ("audio", "image", "text")
ROWS = 8192  # rows of a file
MISSING = 0.1


def make_embeddings(root: Path, items: int, dim: int) -> None:
    """Writes embeddings files with planted common factors. A tenth of each modality is missing."""
    from unisono.transforms.base.tables import to_vector_column
    from unisono.transforms.store.runs import Store, shard_path, table_bytes, write_file

    store, shards = Store(str(root)), -(-items // ROWS)
    rng = np.random.default_rng(0)
    mixing = {m: rng.standard_normal((64, dim)).astype(np.float32) / 8 for m in MODALITIES}
    records = []
    for shard in range(shards):
        n = min(ROWS, items - shard * ROWS)
        common = rng.standard_normal((n, 64), np.float32)
        columns: dict[str, object] = {"item_id": [f"item-{shard * ROWS + i:08d}" for i in range(n)]}
        columns["title"] = [f"Item {i}" for i in range(n)]
        for m in MODALITIES:
            x = common @ mixing[m] + rng.standard_normal((n, dim), np.float32)
            columns[f"{m}_embedding"] = to_vector_column(x, rng.random(n) >= MISSING)
        path = shard_path("made", "embeddings", shard, shards)
        record = write_file(store, "embeddings", path, table_bytes(pa.table(columns)), shard, n)
        records.append(vars(record))
    (root / "records.json").write_text(json.dumps(records))


def run_unisono(root: Path, items: int, dim: int, axes: int) -> None:
    """Runs the steps of the job as a Beam graph."""
    import apache_beam as beam

    from unisono.pipelines.graph.items import embedding_columns
    from unisono.pipelines.launch import beam_options, launch
    from unisono.transforms.space.fit.moments import MomentsCombineFn
    from unisono.transforms.space.fit.run import FitSettings
    from unisono.transforms.space.fit.spec import FusionSpec, SpaceSpec
    from unisono.transforms.space.fit.step import SAMPLE_ROWS, FitSpace, SampleEmbeddings
    from unisono.transforms.space.fuse import FuseItems
    from unisono.transforms.store.runs import FileRecord, ReadShards, Store, WriteShards

    store = Store(str(root))
    records = [FileRecord(**r) for r in json.loads((root / "records.json").read_text())]

    def build(pipeline: beam.Pipeline) -> None:
        files = pipeline | beam.Create(records)
        columns = beam.Map(embedding_columns).with_output_types(pa.Table)
        tables = files | "ReadForMoments" >> ReadShards(store) | "Columns" >> columns
        moments = tables | "Moments" >> beam.CombineGlobally(MomentsCombineFn(1.0))
        sample = tables | "Sample" >> SampleEmbeddings(min(1.0, SAMPLE_ROWS / items))
        settings = FitSettings(SpaceSpec("gcca", axes), FusionSpec("mean"))
        fitted = moments | "Fit" >> FitSpace(store, "unisono", settings, sample)
        fused = files | "ReadForItems" >> ReadShards(store) | "Fuse" >> FuseItems(fitted["space"])
        fused["shards"] | "Write" >> WriteShards(store, "unisono", "items", len(records), {})

    launch(build, beam_options([]), {})


def run_bare(root: Path, items: int, dim: int, axes: int) -> None:
    """Runs the arithmetic alone."""
    paths = [root / r["path"] for r in json.loads((root / "records.json").read_text())]
    out = root / "runs" / "bare" / "items"
    out.mkdir(parents=True)
    width = 3 * (dim + 1)
    gram = np.zeros((width, width))
    for path in paths:
        embeddings, present, _ = _read(path, dim)
        z = np.zeros((len(present[0]), width))
        for k in range(3):
            z[:, k * (dim + 1) : (k + 1) * (dim + 1) - 1] = embeddings[k]
            z[:, (k + 1) * (dim + 1) - 1] = present[k]
        gram += z.T @ z
    means, maps = _solve(gram, dim, axes)
    for path in paths:
        embeddings, present, table = _read(path, dim)
        columns = {"item_id": table["item_id"], "title": table["title"]}
        total = 0.0
        for k, m in enumerate(MODALITIES):
            y = (embeddings[k] - means[k]) @ maps[k]
            y *= (present[k] / np.linalg.norm(y, axis=1))[:, None]
            total = total + y
            columns[f"{m}_vector"] = _lists(y.astype(np.float32), present[k])
        norm = np.linalg.norm(total, axis=1)
        for k, m in enumerate(MODALITIES):
            columns[f"{m}_weight"] = pa.array((present[k] / np.maximum(norm, 1e-9)).astype(np.float32))
        vectors = (total / np.maximum(norm, 1e-9)[:, None]).astype(np.float32)
        columns["vector"] = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), axes)
        pq.write_table(pa.table(columns), out / path.name, compression="NONE", use_dictionary=False)


def _read(path: Path, dim: int) -> tuple[list[np.ndarray], list[np.ndarray], pa.Table]:
    table = pq.read_table(path)
    embeddings, present = [], []
    for m in MODALITIES:
        column = table[f"{m}_embedding"].combine_chunks()
        here = column.is_valid().to_numpy(zero_copy_only=False)
        x = np.zeros((len(here), dim), np.float32)
        x[here] = column.flatten().to_numpy().reshape(-1, dim)
        embeddings.append(x)
        present.append(here)
    return embeddings, present, table


def _lists(vectors: np.ndarray, present: np.ndarray) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum(present) * vectors.shape[1]]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(vectors[present].reshape(-1)), mask=pa.array(~present))


def _solve(gram: np.ndarray, dim: int, axes: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Solves GCCA by two eigenproblems: whitens each modality, then finds the joint axes."""
    one = [(k + 1) * (dim + 1) - 1 for k in range(3)]
    span = [slice(k * (dim + 1), (k + 1) * (dim + 1) - 1) for k in range(3)]
    whitening, joint = [], np.eye(3 * dim)
    for k in range(3):
        n = gram[one[k], one[k]]
        mean = gram[span[k], one[k]] / n
        values, vectors = scipy.linalg.eigh(gram[span[k], span[k]] / n - np.outer(mean, mean))
        whitening.append(vectors / np.sqrt(values + 0.1 * values.mean()))
    for a in range(3):
        for b in range(a):
            n = gram[one[a], one[b]]
            cross = gram[span[a], span[b]] / n - np.outer(gram[span[a], one[b]], gram[one[a], span[b]]) / n**2
            block = whitening[a].T @ cross @ whitening[b]
            joint[a * dim : (a + 1) * dim, b * dim : (b + 1) * dim] = block
            joint[b * dim : (b + 1) * dim, a * dim : (a + 1) * dim] = block.T
    values, vectors = scipy.linalg.eigh(joint, subset_by_index=[3 * dim - axes, 3 * dim - 1])
    means = [gram[span[k], one[k]] / gram[one[k], one[k]] for k in range(3)]
    return means, [whitening[k] @ vectors[k * dim : (k + 1) * dim] * (values - 1) / 2 for k in range(3)]


def _child(kind: str, root: Path, args: argparse.Namespace) -> dict[str, float]:
    sizes = ["--items", str(args.items), "--dim", str(args.dim), "--axes", str(args.axes)]
    env = os.environ | {k: str(args.threads) for k in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    command = [sys.executable, __file__, "--child", kind, "--root", str(root), *sizes]
    done = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--axes", type=int, default=128)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--root", type=Path, help="where to put the files; default: a temporary directory")
    parser.add_argument("--child", choices=("unisono", "bare"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        started = time.monotonic()
        {"unisono": run_unisono, "bare": run_bare}[args.child](args.root, args.items, args.dim, args.axes)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"seconds": round(time.monotonic() - started, 2), "peak_gb": round(peak / 1e9, 2)}))
        return
    root = Path(tempfile.mkdtemp(prefix="unisono-space-", dir=args.root))
    try:
        make_embeddings(root, args.items, args.dim)
        found = {}
        for kind in ("bare", "unisono"):
            found[kind] = _child(kind, root, args)
            shutil.rmtree(root / "runs" / kind, ignore_errors=True)
        sizes = {"items": args.items, "dim": args.dim, "axes": args.axes, "threads": args.threads}
        ratio = round(found["unisono"]["seconds"] / found["bare"]["seconds"], 2)
        print(json.dumps({**sizes, **found, "ratio": ratio}))
    finally:
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
