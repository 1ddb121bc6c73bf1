"""Factors on Beam against `fit_factors` in memory, bit for bit."""

from __future__ import annotations

from pathlib import Path

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from unisono.transforms.base.tables import ShardTable, from_vector_column, shard_of, split_by_shard
from unisono.transforms.behaviour import left_factors
from unisono.transforms.behaviour.factors import Factors, FactorSpec, fit_factors
from unisono.transforms.behaviour.like_shards import SCRATCH
from unisono.transforms.behaviour.likes import Likes, liked_pairs
from unisono.transforms.behaviour.sweeps import FACTORS, FactorItems, factor_table
from unisono.transforms.store.runs import FileRecord, Store, read_table, table_bytes, write_file

_found: list[FileRecord] = []  # FnApiRunner works in this process
SPEC = FactorSpec(factors=6, sweeps=2)


def draw(strings: bool, n: int = 900, users: int = 50, items: int = 30) -> pa.Table:
    """Draws events of popular and rare items, a tenth of them dislikes."""
    rng = np.random.default_rng(4)
    item = (items * rng.random(n) ** 2).astype(int)
    user = rng.integers(0, users, n)
    return pa.table({
        "user_id": pa.array([f"u{u}" for u in user]) if strings else pa.array(user - 20),
        "item_id": pa.array([f"i{i}" for i in item]) if strings else pa.array(item * 3),
        "weight": rng.choice([1.0, 3.0, -3.0], n, p=[0.6, 0.3, 0.1]),
    })


def _keep(record: FileRecord) -> None:
    _found.append(record)


def run(
    events: pa.Table, folder: Path, shards: int, *, in_memory: bool = False, published: tuple[FileRecord, ...] = ()
) -> list[FileRecord]:
    """Runs the step on events that are sharded by user, and returns the written files."""
    parts = {s: events.slice(0, 0) for s in range(shards)} | dict(
        split_by_shard(events, shard_of(events["user_id"], shards))
    )
    step = FactorItems(
        SPEC, 0.5, Store(str(folder)), "r1", shards,
        log_rows=events.num_rows, in_memory_pairs=10**6 if in_memory else 0, published=published,
        cache_dir=str(folder / "cache"),
    )  # fmt: skip
    with beam.Pipeline(runner=FnApiRunner()) as p:
        files = p | beam.Create(list(parts.items())).with_output_types(ShardTable) | step
        files | beam.Map(_keep)
    found = sorted(_found, key=lambda record: record.shard)
    _found.clear()
    return found


def in_memory(events: pa.Table, start: pa.Table | None = None) -> Factors:
    return fit_factors(Likes.of(liked_pairs(events, 0.5)), SPEC, start)


def check_equal(files: list[FileRecord], folder: Path, fitted: Factors) -> None:
    """Checks that the files hold the rows of `fitted`, bit for bit, each shard in order of id."""
    tables = [read_table(Store(str(folder)), f) for f in files]
    for table in tables:
        ids = table["item_id"].to_pylist()
        assert ids == sorted(ids)
    whole = pa.concat_tables(tables).sort_by("item_id")
    assert whole["item_id"].to_pylist() == fitted.item_ids.to_pylist()
    assert whole["users"].to_numpy().tolist() == fitted.users.tolist()
    for name, expected in (("item_factor", fitted.item_factors), ("left_factor", fitted.left_factors)):
        assert from_vector_column(whole[name])[0].tobytes() == np.ascontiguousarray(expected).tobytes()


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer steps make a smaller graph; here the search ends by their number."""
    monkeypatch.setattr(left_factors, "MOST_STEPS", 3)


@pytest.mark.parametrize(("shards", "strings"), [(1, True), (3, False), (4, True)])
def test_sweeps_return_the_bits_of_the_form_in_memory(shards, strings, tmp_path, monkeypatch):
    monkeypatch.setattr(left_factors, "MOST_STEPS", 14)
    events = draw(strings)
    files = run(events, tmp_path, shards)
    assert [f.shard for f in files] == list(range(shards))
    check_equal(files, tmp_path, in_memory(events))
    steps = {p.parent.name for p in (tmp_path / f"runs/r1/{SCRATCH}").glob("search-*/*")}
    assert 3 < len(steps) < 14  # the search ended by its residual


def test_a_small_log_is_solved_in_one_worker(tmp_path):
    events = draw(True)
    files = run(events, tmp_path, 3, in_memory=True)
    assert [f.path for f in files] == ["runs/r1/factors/part-00000-of-00001.parquet"]
    check_equal(files, tmp_path, in_memory(events))
    schema = pq.read_schema(tmp_path / files[0].path)
    assert schema.field("users").type == pa.int64()
    for name in ("item_factor", "left_factor"):
        assert schema.field(name).type == pa.list_(pa.field("element", pa.float32()), 6)


@pytest.mark.parametrize("one_worker", [True, False])
@pytest.mark.parametrize("known", [(0, 3, 6, 999), ()], ids=["some known", "none known"])
def test_published_factors_are_the_start_and_the_axes(known, one_worker, tmp_path):
    events = draw(False)
    rng = np.random.default_rng(0)
    known = [*known, *range(9, 60, 3)] if known else [1000, 1001]
    vectors = rng.standard_normal((len(known), 6)).astype(np.float32)
    table = factor_table(pa.array(known), np.ones(len(known)), vectors, vectors)
    store = Store(str(tmp_path))
    published = [
        write_file(store, FACTORS, f"runs/r0/factors/part-{i}.parquet", table_bytes(part), i, part.num_rows)
        for i, part in enumerate((table.slice(0, 2), table.slice(2)))
    ]
    fitted = in_memory(events, table)
    assert (fitted.item_factors.tobytes() == in_memory(events).item_factors.tobytes()) == (len(known) == 2)
    files = run(events, tmp_path, 2, in_memory=one_worker, published=tuple(published))
    check_equal(files, tmp_path, fitted)


@pytest.mark.parametrize("one_worker", [True, False])
def test_a_log_in_which_nobody_likes_anything(one_worker, tmp_path):
    events = draw(True)
    events = events.set_column(2, "weight", pa.array(np.zeros(events.num_rows)))
    files = run(events, tmp_path, 2, in_memory=one_worker)
    assert sum(f.rows for f in files) == 0
    assert len(files) == (1 if one_worker else 2)
    assert read_table(Store(str(tmp_path)), files[0]).schema.names == ["item_id", "users", "item_factor", "left_factor"]
