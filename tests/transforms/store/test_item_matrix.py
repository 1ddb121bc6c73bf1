"""The memory-mapped item matrix, compared with a Python dict of the same items."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unisono.transforms.base import tables
from unisono.transforms.base.errors import JobError
from unisono.transforms.base.tables import to_vector_column
from unisono.transforms.store import item_matrix
from unisono.transforms.store.item_matrix import ItemMatrix, per_process


def write_items(path: Path, ids: pa.Array, vectors: np.ndarray, packed: bool = False) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"item_id": ids, "title": ["t"] * len(ids), "vector": to_vector_column(vectors)})
    pq.write_table(tables.pack_vectors(table) if packed else table, path, row_group_size=7)
    return str(path)


IDS = {
    "strings": pa.array([f"item {i} ü" for i in range(40)] + [""]),
    "large strings": pa.array([f"{i}" * (i % 9) + "x" * i for i in range(41)], pa.large_string()),
    "int32": pa.array([i * 7 - 100 for i in range(41)], pa.int32()),
    "uint64": pa.array([2**64 - 1 - i for i in range(41)], pa.uint64()),
}


@pytest.fixture(params=IDS, ids=str)
def items(request, tmp_path) -> tuple[list[str], pa.Array, np.ndarray]:
    ids = IDS[request.param]
    vectors = np.random.default_rng(0).standard_normal((len(ids), 5), dtype=np.float32)
    # Three files of several row groups, one of them empty. They are opened in another order than written.
    cuts = [(0, 15), (15, 15), (15, len(ids))]
    files = [
        write_items(tmp_path / f"part-{i}.parquet", ids[a:b], vectors[a:b], packed=i < 2)
        for i, (a, b) in enumerate(cuts)
    ]
    return files[::-1], ids, vectors


def test_every_id_finds_its_vector(items, tmp_path):
    files, ids, vectors = items
    matrix = ItemMatrix.open(files, cache_dir=str(tmp_path / "cache"))
    assert (len(matrix), matrix.dim, matrix.id_type) == (len(ids), 5, ids.type)
    assert matrix.vectors.dtype == np.float32
    assert isinstance(matrix.vectors, np.memmap)
    pick = np.random.default_rng(1).integers(0, len(ids), 500)
    asked = ids.take(pa.array(pick))
    for form in (asked, pa.chunked_array([asked[:100], asked[100:]]), asked.dictionary_encode()):
        np.testing.assert_array_equal(matrix.vectors[matrix.lookup(form)], vectors[pick])
    assert sorted(matrix.ranks.tolist()) == list(range(len(ids)))


@pytest.mark.parametrize("hash_bits", [64, 3, 0], ids=["as is", "eight buckets", "all collide"])
def test_unknown_ids_and_nulls_give_minus_one_whatever_collides(items, tmp_path, monkeypatch, hash_bits):
    mask = np.uint64(2**hash_bits - 1)
    monkeypatch.setattr(item_matrix, "hash_ids", lambda ids: tables.hash_ids(ids) & mask)
    files, ids, _ = items
    matrix = ItemMatrix.open(files, cache_dir=str(tmp_path / "cache"))
    stranger = pa.array([12345, 0] if pa.types.is_integer(ids.type) else ["nobody", "item"], ids.type)
    asked = pa.concat_arrays([ids[3:9], stranger, pa.nulls(1, ids.type), ids[40:]])
    rows = matrix.lookup(asked)
    place = {key: row for row, key in enumerate(ids.to_pylist())}
    assert rows.tolist() == [place.get(key, -1) for key in asked.to_pylist()]
    assert matrix.lookup(ids[:0]).tolist() == []


def test_negative_and_huge_integers_that_share_their_bits_differ(tmp_path):
    file = write_items(tmp_path / "a.parquet", pa.array([-1, 5]), np.eye(2, dtype=np.float32))
    matrix = ItemMatrix.open([file], cache_dir=str(tmp_path / "cache"))
    assert matrix.lookup(pa.array([2**64 - 1, 5], pa.uint64())).tolist() == [-1, 1]
    assert matrix.lookup(pa.array([-1, 5], pa.int16())).tolist() == [0, 1]


@given(st.lists(st.text(max_size=6), unique=True, max_size=30), st.lists(st.text(max_size=6), max_size=30))
@settings(max_examples=30, deadline=None)
def test_lookup_agrees_with_a_dict(tmp_path_factory, known, asked):
    folder = tmp_path_factory.mktemp("items")
    vectors = np.ones((len(known), 2), np.float32)
    file = write_items(folder / "a.parquet", pa.array(known, pa.string()), vectors)
    matrix = ItemMatrix.open([file], cache_dir=str(folder / "cache"))
    place = {key: row for row, key in enumerate(known)}
    asked += known
    assert matrix.lookup(pa.array(asked, pa.string())).tolist() == [place.get(a, -1) for a in asked]


def test_ids_of_another_kind_are_refused(tmp_path):
    file = write_items(tmp_path / "a.parquet", pa.array(["1", "2"]), np.eye(2, dtype=np.float32))
    matrix = ItemMatrix.open([file], cache_dir=str(tmp_path / "cache"))
    with pytest.raises(JobError, match=r"interactions\.item: ids are int64, but the items' ids are string"):
        matrix.lookup(pa.array([1, 2]))


def test_float16_vectors_are_widened(tmp_path):
    file = write_items(tmp_path / "a.parquet", pa.array([1, 2]), np.array([[0.5, 1], [2, 3]], np.float16))
    matrix = ItemMatrix.open([file], cache_dir=str(tmp_path / "cache"))
    np.testing.assert_array_equal(matrix.vectors, [[0.5, 1], [2, 3]])


@pytest.mark.parametrize(
    "fault", ["no files", "missing file", "lengths differ", "null id", "no vector column", "cache"]
)
def test_files_that_cannot_be_a_matrix_are_refused(tmp_path, fault):
    good = write_items(tmp_path / "a.parquet", pa.array(["a"]), np.ones((1, 3), np.float32))
    files, cache, says = [good], tmp_path / "cache", ""
    if fault == "no files":
        files, says = [], "no files to read item vectors from"
    elif fault == "missing file":
        files, says = [good, str(tmp_path / "b.parquet")], r"b\.parquet does not exist"
    elif fault == "lengths differ":
        files.append(write_items(tmp_path / "b.parquet", pa.array(["b"]), np.ones((1, 4), np.float32)))
        says = "vectors of different lengths"
    elif fault == "null id":
        files = [write_items(tmp_path / "b.parquet", pa.array(["b", None]), np.ones((2, 3), np.float32))]
        says = r"b\.parquet has a row without id or vector"
    elif fault == "no vector column":
        pq.write_table(pa.table({"item_id": ["b"]}), tmp_path / "b.parquet")
        files, says = [str(tmp_path / "b.parquet")], r"items\.vector: no column 'vector'"
    else:
        cache.write_text("a file where the cache should be")
        says = r"cannot keep the item matrix under .*cache"
    with pytest.raises(JobError, match=says) as e:
        ItemMatrix.open(files, cache_dir=str(cache))
    assert "\n" not in str(e.value)


@dataclass(frozen=True)
class Record:
    path: str
    sha256: str


def test_records_resolve_against_the_root_and_new_content_gets_a_new_matrix(tmp_path):
    cache = str(tmp_path / "cache")
    path = tmp_path / "runs" / "a.parquet"
    write_items(path, pa.array(["a"]), np.full((1, 2), 1, np.float32))
    first = per_process([Record("runs/a.parquet", "one")], str(tmp_path), cache)
    assert per_process([Record("runs/a.parquet", "one")], str(tmp_path), cache) is first
    write_items(path, pa.array(["a"]), np.full((1, 2), 2, np.float32))
    second = per_process([Record("runs/a.parquet", "two")], str(tmp_path), cache)
    assert second.vectors.tolist() == [[2, 2]]
    assert first.vectors.tolist() == [[1, 1]]


def test_old_matrices_are_deleted_but_still_work_where_they_are_open(tmp_path):
    cache = tmp_path / "cache"
    opened = []
    for i in range(18):
        file = write_items(tmp_path / f"{i}.parquet", pa.array([i]), np.full((1, 2), i, np.float32))
        opened.append(ItemMatrix.open([file], cache_dir=str(cache)))
    assert len([p for p in cache.iterdir() if p.is_dir()]) == 16
    assert [m.vectors[0, 0] for m in opened] == list(range(18))
    assert [m.lookup(pa.array([i]))[0] for i, m in enumerate(opened)] == [0] * 18


def test_processes_that_start_together_build_once_and_a_killed_build_is_removed(tmp_path):
    cache = tmp_path / "cache"
    file = write_items(tmp_path / "a.parquet", pa.array(["a", "b"]), np.eye(2, dtype=np.float32))
    (cache / "left-behind.tmp").mkdir(parents=True)
    script = (
        "import sys, pyarrow as pa; from unisono.transforms.store import item_matrix as m\n"
        "built = []; build = m._build\n"
        "m._build = lambda *a: (built.append(1), build(*a))\n"
        "x = m.per_process([sys.argv[1]], '', sys.argv[2])\n"
        "print(len(built), x.vectors[x.lookup(pa.array(['b']))[0]].tolist())"
    )
    command = [sys.executable, "-c", script, file, str(cache)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    lines = sorted(p.communicate(timeout=120)[0].strip() for p in running)
    assert lines == ["0 [0.0, 1.0]", "1 [0.0, 1.0]"]
    assert not list(cache.glob("*.tmp"))
