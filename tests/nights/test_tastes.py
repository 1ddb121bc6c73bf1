"""Recommendations on the demo's planted tastes, with a run of the whole job."""

from __future__ import annotations

import shutil
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests.conftest import Run
from unisono.pipelines.demo.demo import popular_items, served_recall
from unisono.pipelines.launch import run_job
from unisono.transforms.store.runs import Store, read_table


def lists_of(path) -> dict[str, set[str]]:
    out = defaultdict(set)
    table = pq.read_table(path)
    for user, item in zip(table["user_id"].to_pylist(), table["item_id"].to_pylist(), strict=True):
        out[user].add(item)
    return out


def recall(recommended: dict[str, list[str]], heldout: dict[str, set[str]], k: int) -> float:
    """Computes recall with sets, user by user."""
    found = [len(set(recommended[u][:k]) & later) / len(later) for u, later in heldout.items() if u in recommended]
    return float(np.mean(found))


def test_recommend_after_the_demo_finds_later_events(run: Run, tmp_path: Path):
    # As `unisono recommend --config job.yaml` after `unisono demo`, with the job file that the demo writes.
    body = yaml.safe_load(run.job.read_text())
    assert body["ranking"] == {"k": 50}
    shutil.copytree(run.store.root, tmp_path / "store")  # Other tests use the original store.
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(body | {"store": str(tmp_path / "store")}))
    store = Store(str(tmp_path / "store"))
    manifest = run_job(str(tmp_path / "job.yaml"), "tastes", [], items=False, users=False, recommend=True)
    assert manifest is not None
    tables = [read_table(store, r) for r in manifest.part("recommendations")]
    seen, heldout = lists_of(run.shop.interactions), lists_of(run.shop.heldout)
    served = {r["user_id"]: r["item_ids"] for t in tables for r in t.to_pylist()}
    assert len(served) == 40
    assert all(len(items) == 50 and not seen[user] & set(items) for user, items in served.items())
    catalog = set(pq.read_table(run.shop.catalog)["item_id"].to_pylist())
    counts: dict[str, int] = defaultdict(int)
    for item in pq.read_table(run.shop.interactions)["item_id"].to_pylist():
        counts[item] += item in catalog
    order = sorted(catalog, key=lambda i: (-counts[i], i))
    popular = {user: [i for i in order if i not in seen[user]] for user in served}
    assert recall(served, heldout, 10) > 1.3 * recall(popular, heldout, 10)

    # The demo and the benchmark compute the same figures.
    whole = pa.concat_tables(tables).combine_chunks()
    assert served_recall(whole, run.shop, 10)[1].mean() == pytest.approx(recall(served, heldout, 10))
    by_all = popular_items(whole, run.shop, 10)
    assert served_recall(by_all, run.shop, 10)[1].mean() == pytest.approx(recall(popular, heldout, 10), abs=0.01)
