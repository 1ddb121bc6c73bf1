"""Runs on disk: manifests, shard files and the published run, read back by pyarrow, DuckDB and hashlib."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import apache_beam as beam
import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.util import assert_that

from unisono.transforms.base.errors import JobError
from unisono.transforms.base.progress import BOARD
from unisono.transforms.base.tables import from_vector_column, to_vector_column
from unisono.transforms.store.privacy import ForgetStatement, PrivacyStatement, PseudonymsStatement
from unisono.transforms.store.runs import (
    FileRecord,
    Manifest,
    ReadShards,
    Store,
    WriteShards,
    read_json,
    read_shard,
    read_table,
    shard_path,
    table_bytes,
    write_file,
)

RNG = np.random.default_rng(0)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def items(n: int) -> pa.Table:
    """Item rows of every kind of column that a run writes."""
    present = np.arange(n) % 3 != 1
    image = to_vector_column(RNG.random((n, 4), np.float32), present)
    return pa.table({
        "item_id": [f"i{i:03d}" for i in range(n)],
        "vector": to_vector_column(RNG.random((n, 4), np.float32)),
        "image_vector": image,
        "small": to_vector_column(RNG.integers(-127, 128, (n, 4), np.int8)),
        "half": to_vector_column(RNG.random((n, 2)).astype(np.float16)),
        "modalities": pa.array([["text", "image"] if p else ["text"] for p in present], pa.list_(pa.string())),
        "weight": pa.array([0.5 if p else None for p in present], pa.float32()),
    })


# --- manifest ----------------------------------------------------------------------------------------------

# As the first release wrote it, byte for byte.
PLAIN = """{
 "created": "2026-11-01T00:00:00+00:00",
 "files": [
  {
   "bytes": 7,
   "part": "metrics",
   "path": "runs/r/metrics.json",
   "rows": 0,
   "sha256": "ab",
   "shard": -1
  }
 ],
 "format": 1,
 "run_id": "r"
}
"""
PRIVATE = PLAIN.replace(
    ' "run_id": "r"',
    """ "privacy": {
  "forget": {
   "files": [
    "/data/forget.parquet"
   ],
   "removed": 2
  },
  "pseudonyms": {
   "hash": "HMAC-SHA256, 16 bytes, hex",
   "key_fingerprint": "0f1e2d3c4b5a6978"
  }
 },
 "run_id": "r\"""",
)
RECORD = FileRecord("metrics", "runs/r/metrics.json", -1, 0, 7, "ab")
DONE = PrivacyStatement(
    PseudonymsStatement("HMAC-SHA256, 16 bytes, hex", "0f1e2d3c4b5a6978"), ForgetStatement(("/data/forget.parquet",), 2)
)


@pytest.mark.parametrize(
    ("text", "privacy"), [(PLAIN, PrivacyStatement()), (PRIVATE, DONE)], ids=["nothing done for people", "something"]
)
def test_a_manifest_keeps_the_json_of_earlier_runs(text: str, privacy: PrivacyStatement) -> None:
    manifest = Manifest("r", "2026-11-01T00:00:00+00:00", (RECORD,), privacy=privacy)
    assert manifest.to_json() == text
    assert Manifest.from_json(text) == manifest
    assert Manifest.from_json(text.encode()) == manifest


def record(part: str, shard: int, run: str = "r") -> FileRecord:
    return FileRecord(part, f"runs/{run}/{part}/part-{shard}.parquet", shard, 0, 0, "")


def test_files_are_written_in_one_order_and_a_part_is_sorted_by_shard() -> None:
    records = [record("items", 10), record("users", 0), record("items", 2), record("items", 0, "earlier")]
    texts = {Manifest("r", "now", tuple(order)).to_json() for order in (records, records[::-1])}
    assert len(texts) == 1
    paths = [f["path"] for f in json.loads(texts.pop())["files"]]
    assert paths == sorted(paths)
    manifest = Manifest("r", "now", tuple(records))
    assert [r.shard for r in manifest.part("items")] == [0, 2, 10]
    assert manifest.part("space") == []


# --- store -------------------------------------------------------------------------------------------------


def publish(store: Store, run_id: str, latest: bool = True) -> Manifest:
    manifest = Manifest(run_id, "now", ())
    path = Path(store.run_path(run_id, "manifest.json"))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(manifest.to_json())
    if latest:
        Path(store.path("LATEST")).write_text(f"{run_id}\n")
    return manifest


def test_paths_of_a_store() -> None:
    for root in ("/data/store", "gs://bucket/store"):
        at = Store(root)
        assert at.path("runs/r/x") == f"{root}/runs/r/x"
        assert at.run_path("r", "items") == f"{root}/runs/r/items"
    assert shard_path("r", "items", 7, 64) == "runs/r/items/part-00007-of-00064.parquet"


def test_a_new_store_has_no_published_run(store: Store) -> None:
    assert store.latest() is None
    assert store.manifest("r") is None
    with pytest.raises(JobError, match=r"^store: .*/store has no published run; run `unisono embed`"):
        store.published()


def test_the_published_run_is_the_one_that_latest_names(store: Store) -> None:
    publish(store, "monday")
    tuesday = publish(store, "tuesday")
    publish(store, "wednesday", latest=False)
    assert store.latest() == "tuesday"
    assert store.published() == tuesday
    (Path(store.root) / "LATEST").write_text("thursday\n")
    with pytest.raises(JobError, match="has no published run"):
        store.published()


@pytest.mark.parametrize(
    "text",
    ['{"run_id": ', "[]", "{}", '{"files": []}', PLAIN.replace('"rows": 0,', ""), PLAIN.replace("shard", "shards")],
    ids=["torn", "a list", "no files", "no run id", "a record without rows", "a record with an unknown key"],
)
def test_a_damaged_manifest_is_refused_in_one_line(store: Store, text: str) -> None:
    publish(store, "r")
    Path(store.run_path("r", "manifest.json")).write_text(text)
    with pytest.raises(JobError, match=r"runs/r/manifest\.json: not a manifest; delete the run, or name another") as e:
        store.published()
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("run_id", ["r", "2026-11-22", "a.b_c-D", "x" * 128])
def test_a_good_run_id_creates_the_run(store: Store, run_id: str) -> None:
    store.check_new_run(run_id)
    assert Path(store.run_path(run_id, "STARTED")).read_bytes() == b""
    store.check_new_run(run_id)  # a second attempt at the same run


@pytest.mark.parametrize("run_id", ["", ".hidden", "-x", "a/b", "a b", "größe", "x" * 129, "r\n"])
def test_a_bad_run_id_is_refused(store: Store, run_id: str) -> None:
    with pytest.raises(JobError, match=r"^--run-id: .* is not a run id; use letters, digits"):
        store.check_new_run(run_id)
    assert not Path(store.root).exists()


def test_a_finished_run_is_not_made_again(store: Store) -> None:
    publish(store, "r")
    with pytest.raises(JobError, match=r"^--run-id: run 'r' is already finished in .*; choose another id"):
        store.check_new_run("r")


def test_a_run_killed_before_it_was_named_is_published(store: Store) -> None:
    publish(store, "r", latest=False)
    with pytest.raises(JobError, match=r"run 'r' was finished but not published; it is published now"):
        store.check_new_run("r")
    assert store.latest() == "r"


def test_a_store_that_cannot_be_written_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(JobError, match=r"^store: cannot write to .*/file .*name a place") as e:
        Store(str(tmp_path / "file")).check_new_run("r")
    assert "\n" not in str(e.value)


# --- shard files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 1, 50])
def test_a_table_comes_back_and_other_readers_see_the_same(tmp_path: Path, n: int) -> None:
    table = items(n)
    data = bytes(table_bytes(table, {"run_id": "r"}))
    back = read_shard(data)
    assert back.to_pydict() == table.to_pydict()
    assert back.schema.field("image_vector").type == pa.list_(pa.float32(), 4)
    assert all(back.column(i).num_chunks <= 1 for i in range(back.num_columns))

    path = tmp_path / "x.parquet"
    path.write_bytes(data)
    assert pq.read_table(path).to_pydict() == table.to_pydict()
    query = f"select item_id, vector, image_vector, modalities, weight from '{path}'"
    rows = duckdb.connect().execute(query).fetchall()
    names = ("item_id", "vector", "image_vector", "modalities", "weight")
    expected = list(zip(*(table[name].to_pylist() for name in names), strict=True))
    assert [tuple(list(v) if isinstance(v, tuple) else v for v in row) for row in rows] == expected


def test_only_the_columns_that_are_asked_for_are_read() -> None:
    back = read_shard(bytes(table_bytes(items(5))), ["image_vector", "item_id"])
    assert set(back.column_names) == {"image_vector", "item_id"}
    assert from_vector_column(back["image_vector"])[1].tolist() == [True, False, True, True, False]


def test_vectors_are_not_compressed_and_all_else_is() -> None:
    meta = pq.read_metadata(io.BytesIO(bytes(table_bytes(items(500)))))
    assert meta.num_row_groups == 1
    group = meta.row_group(0)
    found = {group.column(i).path_in_schema.split(".")[0]: group.column(i) for i in range(group.num_columns)}
    for name in ("vector", "image_vector", "small", "half"):
        assert found[name].compression == "UNCOMPRESSED"
        assert not found[name].has_dictionary_page
        assert found[name].statistics is None
    for name in ("item_id", "modalities"):
        assert found[name].compression == "ZSTD"
        assert found[name].has_dictionary_page


def test_metadata_stand_in_the_footer_beside_the_tables_own() -> None:
    table = items(1).replace_schema_metadata({"unisono.scale": "[1]"})
    schema = pq.read_schema(io.BytesIO(bytes(table_bytes(table, {"run_id": "r", "dim": "4"}))))
    assert schema.metadata[b"unisono.run_id"] == b"r"
    assert schema.metadata[b"unisono.dim"] == b"4"
    assert schema.metadata[b"unisono.scale"] == b"[1]"


def test_a_record_says_what_was_written(store: Store) -> None:
    for data in (b"", b'{"rows": 3}', memoryview(b"some bytes")):
        found = write_file(store, "metrics", "runs/r/metrics.json", data, rows=3)
        on_disk = Path(store.path(found.path)).read_bytes()
        assert on_disk == bytes(data)
        assert (found.bytes, found.rows, found.shard) == (len(on_disk), 3, -1)
        assert found.sha256 == hashlib.sha256(on_disk).hexdigest()
    write_file(store, "metrics", "runs/r/metrics.json", b'{"rows": 3}')
    assert read_json(store, "runs/r/metrics.json") == {"rows": 3}


def written(store: Store) -> FileRecord:
    path = shard_path("r", "items", 0, 1)
    return write_file(store, "items", path, table_bytes(items(20)), 0, 20)


def test_a_torn_file_is_refused_in_one_line(store: Store) -> None:
    found = written(store)
    path = Path(store.path(found.path))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(JobError, match=rf"^{path}: {found.bytes - 1} bytes, the manifest says {found.bytes}; ") as e:
        read_table(store, found)
    assert "\n" not in str(e.value)


def test_a_missing_file_is_refused_in_one_line(store: Store) -> None:
    found = written(store)
    Path(store.path(found.path)).unlink()
    with pytest.raises(JobError, match=rf"^{store.path(found.path)}: missing, but the manifest lists it; ") as e:
        read_table(store, found)
    assert "\n" not in str(e.value)


# --- Beam --------------------------------------------------------------------------------------------------


def test_shards_are_written_and_read_back_empty_ones_too(store: Store) -> None:
    tables = {0: items(30), 1: items(0), 2: items(1)}

    def as_on_disk(records: list[FileRecord]) -> None:
        assert sorted((r.shard, r.rows, r.part) for r in records) == [(s, tables[s].num_rows, "items") for s in tables]
        for r in records:
            path = Path(store.path(r.path))
            assert path.name == f"part-{r.shard:05d}-of-00003.parquet"
            assert hashlib.sha256(path.read_bytes()).hexdigest() == r.sha256
            assert pq.read_schema(path).metadata[b"unisono.run_id"] == b"r"
            assert pq.read_schema(path).metadata[b"unisono.dim"] == b"4"

    def as_before(found: list[tuple[int, pa.Table]]) -> None:
        assert {shard: table.to_pydict() for shard, table in found} == {s: t.to_pydict() for s, t in tables.items()}

    BOARD.clear()
    with beam.Pipeline(runner=FnApiRunner()) as p:
        write = WriteShards(store, "r", "items", 3, {"dim": "4"})
        made = p | beam.Create(list(tables.items())).with_output_types(tuple[int, pa.Table]) | write
        assert_that(made, as_on_disk, "Records")
        assert_that(made | ReadShards(store), as_before, "Tables")
    assert BOARD.snapshot()["write-items"].done == 31
    whole = pq.read_table(Path(store.run_path("r", "items")))
    assert whole.num_rows == 31


def test_a_retry_writes_the_same_bytes(store: Store) -> None:
    table = items(40)

    def write() -> dict[str, str]:
        with beam.Pipeline(runner=FnApiRunner()) as p:
            created = p | beam.Create([(0, table)]).with_output_types(tuple[int, pa.Table])
            _ = created | WriteShards(store, "r", "items", 1, {})
        found = Path(store.run_path("r", "items")).iterdir()
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in found}

    first = write()
    assert list(first) == ["part-00000-of-00001.parquet"]
    assert write() == first
