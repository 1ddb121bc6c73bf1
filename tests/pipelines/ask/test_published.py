"""Reading a run through its manifest: parts, rows, vectors, job files, and one line for whatever is missing."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import Run
from tests.small_shop import make_shop, write_job
from unisono.pipelines.ask.explain import explain
from unisono.pipelines.ask.published import PublishedRun, id_array
from unisono.pipelines.ask.search import Searcher
from unisono.pipelines.launch import run_job
from unisono.transforms.base.errors import JobError
from unisono.transforms.store.runs import Store


@pytest.fixture
def published(run: Run) -> PublishedRun:
    return PublishedRun.open(run.store)


def shard_tables(run: Run, part: str) -> list[pa.Table]:
    """Reads the files of a part in the order of their names, with pyarrow alone."""
    folder = Path(run.store.root) / "runs" / run.manifest.run_id / part
    return [pq.ParquetFile(path).read() for path in sorted(folder.glob("*.parquet"))]


# --- tables and rows ---------------------------------------------------------------------------------------


def test_a_part_is_its_shards_in_order_and_each_is_sorted_by_id(run: Run, published: PublishedRun) -> None:
    shards = shard_tables(run, "items")
    assert len(shards) == 4
    table = published.table("items", ["title", "item_id"])
    assert table.column_names == ["title", "item_id"]
    assert table["item_id"].to_pylist() == [i for s in shards for i in s["item_id"].to_pylist()]
    assert table["title"].to_pylist() == [t for s in shards for t in s["title"].to_pylist()]
    for chunk in table["item_id"].chunks:
        assert chunk.to_pylist() == sorted(chunk.to_pylist())


def test_vectors_of_modalities_are_fixed_size_lists_with_nulls(run: Run, published: PublishedRun) -> None:
    column = published.table("items")["image_vector"]
    assert pa.types.is_fixed_size_list(column.type)
    stored = [v for s in shard_tables(run, "items") for v in s["image_vector"].to_pylist()]
    assert column.to_pylist() == stored
    assert 0 < column.null_count < len(column)


def test_rows_come_in_the_order_of_the_ids(run: Run, published: PublishedRun) -> None:
    table = published.table("items")
    order = np.random.default_rng(0).permutation(table.num_rows)[:20]
    ids = published.ids_of("items", table["item_id"].take(pa.array(order)), "item")
    assert published.rows("items", ids, "item").equals(table.take(pa.array(order)).combine_chunks())
    assert published.rows("items", ids.slice(0, 0), "item").num_rows == 0
    with pytest.raises(JobError, match=f"item: 'nope' is not in items/ of run {run.manifest.run_id}"):
        published.rows("items", pa.array([table["item_id"][0].as_py(), "nope"]), "item")
    with pytest.raises(JobError, match="'raw id' is not in items/"):
        published.rows("items", pa.array(["nope"]), "item", ["raw id"])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ("7", ["7"]),
        (7, ["7"]),
        ([7, 8], ["7", "8"]),
        (np.array(["a", "b"]), ["a", "b"]),
        (pa.chunked_array([["a"], ["b"]]), ["a", "b"]),
        (pa.array(["a", "a"]).dictionary_encode(), ["a", "a"]),
        (pa.scalar("a"), ["a"]),
        ([], []),
    ],
    ids=["string", "integer", "integers", "NumPy", "chunked", "dictionary", "scalar", "none"],
)
def test_ids_of_any_kind_become_an_array(values: object, expected: list[str]) -> None:
    assert id_array(values, "item", pa.string()).to_pylist() == expected


@pytest.mark.parametrize(
    ("values", "dtype", "said"),
    [
        ("x", pa.int64(), "user: .*'x'.*; give int64, as the published ids are"),
        (["a", 1], None, "user: .*; give strings or integers"),
        (["a", None], pa.string(), r"user: an id is missing \(null\)"),
    ],
    ids=["not a number", "mixed", "null"],
)
def test_ids_that_cannot_be_are_one_line(values: object, dtype: pa.DataType | None, said: str) -> None:
    with pytest.raises(JobError, match=said) as e:
        id_array(values, "user", dtype)
    assert "\n" not in str(e.value)


# --- vectors -----------------------------------------------------------------------------------------------


def test_vectors_are_one_contiguous_matrix(run: Run, published: PublishedRun) -> None:
    shards = shard_tables(run, "items")
    ids, vectors = published.vectors()
    assert ids.to_pylist() == [i for s in shards for i in s["item_id"].to_pylist()]
    assert vectors.dtype == np.float32
    assert vectors.flags.c_contiguous
    np.testing.assert_array_equal(vectors, [v for s in shards for v in s["vector"].to_pylist()])


def test_vectors_of_a_modality_are_those_of_the_items_that_have_it(run: Run, published: PublishedRun) -> None:
    shards = shard_tables(run, "items")
    pairs = [(r["item_id"], r["audio_vector"]) for s in shards for r in s.to_pylist()]
    ids, vectors = published.vectors("audio")
    assert ids.to_pylist() == [i for i, v in pairs if v is not None]
    assert len(ids) < len(pairs)
    assert vectors.flags.c_contiguous
    np.testing.assert_array_equal(vectors, [v for _, v in pairs if v is not None])
    with pytest.raises(JobError, match=r"modality: .* have no 'smell'; choose audio, image, text"):
        published.vectors("smell")


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 1e-3), ("int8", 2e-2)])
def test_small_vectors_are_decoded(tmp_path: Path, dtype: str, tolerance: float) -> None:
    make_shop(tmp_path)
    both = {}
    for name in ("float32", dtype):
        job = write_job(tmp_path, name, output={"dtype": name})
        run_job(str(job), "r", [], items=True, users=False)
        both[name] = PublishedRun.open(Store(str(tmp_path / name)))
    stored = both[dtype].table("items")["vector"]
    assert stored.type.value_type == {"float16": pa.float16(), "int8": pa.int8()}[dtype]
    for modality in (None, "text"):
        (ids, exact), (same, decoded) = (both[name].vectors(modality) for name in ("float32", dtype))
        assert ids.equals(same)
        assert decoded.dtype == np.float32
        np.testing.assert_allclose(decoded, exact, atol=tolerance)
        np.testing.assert_allclose(np.linalg.norm(decoded, axis=1), 1, atol=1e-3)


# --- what is missing ---------------------------------------------------------------------------------------


def test_an_absent_part_names_the_command_that_makes_it(tmp_path: Path) -> None:
    run_job(str(write_job(make_shop(tmp_path), "s")), "r", [], items=True, users=False)
    run = PublishedRun.open(Store(str(tmp_path / "s")))
    for part, command in (("users", "profile"), ("recommendations", "recommend")):
        with pytest.raises(JobError, match=f"store: run r in .* has no {part}/; run `unisono {command}` first"):
            run.records(part)
    with pytest.raises(JobError, match="columns: items/ has no column 'colour'; it has item_id, title, vector"):
        run.table("items", ["item_id", "colour"])


def test_an_earlier_run_is_opened_by_its_id(tmp_path: Path) -> None:
    job = str(write_job(make_shop(tmp_path), "s"))
    store = Store(str(tmp_path / "s"))
    with pytest.raises(JobError, match="has no published run"):
        PublishedRun.open(store)
    for run_id in ("one", "two"):
        run_job(job, run_id, [], items=run_id == "one", users=True)
    assert PublishedRun.open(store).manifest.run_id == "two"
    assert PublishedRun.open(store, "one").manifest.run_id == "one"
    with pytest.raises(JobError, match=r"run: .* has no finished run 'three'; name one of the directories under"):
        PublishedRun.open(store, "three")


def test_each_part_is_read_with_the_job_file_of_the_run_that_made_it(tmp_path: Path) -> None:
    folder = make_shop(tmp_path)
    run_job(str(write_job(folder, "s")), "one", [], items=True, users=False)
    run_job(str(write_job(folder, "s", profiles={"interests": 1})), "two", [], items=False, users=True)
    run = PublishedRun.open(Store(str(tmp_path / "s")))
    assert run.job_of("space").profiles.interests == 3
    assert run.job_of("users").profiles.interests == run.job.profiles.interests == 1


QUESTIONS = {
    "search": lambda run: Searcher(run).search(text="red lamp"),
    "explain": lambda run: explain(run, "u1", "i1"),
    "vectors": lambda run: run.vectors(),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_shop(tmp_path_factory.mktemp("whole"))
    run_job(str(write_job(folder, "s")), "r", [], items=True, users=True)
    return folder


@pytest.mark.parametrize(
    ("question", "lost"),
    [
        *(("search", part) for part in ("items", "space", "config.yaml", "manifest.json")),
        *(("explain", part) for part in ("items", "users", "config.yaml", "manifest.json")),
        *(("vectors", part) for part in ("items", "manifest.json")),
    ],
)
def test_a_damaged_run_is_one_line_whatever_is_asked(whole: Path, tmp_path: Path, question: str, lost: str) -> None:
    shutil.copytree(whole / "s", tmp_path / "s")
    path = tmp_path / "s" / "runs" / "r" / lost
    if lost == "manifest.json":
        path.write_text('{"run_id": ')
    else:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(JobError) as e:
        QUESTIONS[question](PublishedRun.open(Store(str(tmp_path / "s"))))
    assert lost in str(e.value)
    assert "\n" not in str(e.value)


def test_a_job_file_that_is_not_one_is_one_line(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole / "s", tmp_path / "s")
    config = tmp_path / "s/runs/r/config.yaml"
    config.write_text(config.read_text() + "flavour: sweet\n")
    with pytest.raises(JobError, match=r"config.yaml: flavour: unknown key.*make a new run$"):
        _ = PublishedRun.open(Store(str(tmp_path / "s"))).job
