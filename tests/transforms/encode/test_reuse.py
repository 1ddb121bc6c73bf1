"""Embeddings of an earlier run: reused where content and encoder are unchanged, and only there."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.util import assert_that, equal_to

from tests.transforms.encode.histograms import ByteStatistics, image_table, write_files
from unisono.transforms.base.tables import from_vector_column
from unisono.transforms.encode.microbatch import MicroBatcher
from unisono.transforms.encode.reuse import ReuseEmbeddings, _ReuseEmbeddingsFn, add_previous
from unisono.transforms.encode.shard import EncodeResult, encode_table
from unisono.transforms.store.runs import FileRecord, Store, shard_path, table_bytes, write_file


def run_again(
    tmp_path: Path,
    pool: ThreadPoolExecutor,
    images: Sequence[Any],
    change: dict[str, bytes],
    encoder_id: str = "bytes-1",
    dtype: pa.DataType | None = None,
) -> tuple[EncodeResult, ByteStatistics]:
    """Encodes, changes files, and encodes again with the embeddings of the first run.

    Returns:
        The second result, after a check that it equals one without reuse, and the second encoder.
    """
    source = write_files(tmp_path, a=b"hello", b=b"world", c=b"third")
    table = image_table(images, dtype)
    first = encode_table(table, "image", MicroBatcher(ByteStatistics()), source, pool).table
    for name, data in change.items():
        (tmp_path / name).write_bytes(data)
    encoder = ByteStatistics(encoder_id)
    table_again = add_previous(table, first, {"image": encoder_id})
    result = encode_table(table_again, "image", MicroBatcher(encoder), source, pool)
    fresh = encode_table(table, "image", MicroBatcher(ByteStatistics(encoder_id)), source, pool)
    np.testing.assert_array_equal(
        from_vector_column(result.table["image_embedding"])[0], from_vector_column(fresh.table["image_embedding"])[0]
    )
    assert result.table["image_hash"].to_pylist() == fresh.table["image_hash"].to_pylist()
    assert [x[:4] for x in result.letters] == [x[:4] for x in fresh.letters]
    return result, encoder


def test_unchanged_content_is_not_prepared_again(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    result, encoder = run_again(tmp_path, pool, ["a", "b", "c"], {"b": b"changed"})
    assert result.reused == 2
    assert set(encoder.prepared) == {b"changed"}


def test_another_encoder_reuses_nothing(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    result, _ = run_again(tmp_path, pool, ["a", "b"], {}, encoder_id="bytes-2")
    assert result.reused == 0
    assert result.encoded == 2


def test_a_list_is_reused_whole_and_reencoded_where_a_part_changed(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    images = [["a", "b"], ["b", "c"]]
    result, encoder = run_again(tmp_path, pool, images, {"a": b"changed"}, dtype=pa.list_(pa.string()))
    assert result.reused == 1
    assert set(encoder.prepared) == {b"changed", b"world"}  # the embedding of "world" alone was not stored


def test_a_failure_is_reported_by_every_run(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    result, _ = run_again(tmp_path, pool, ["a", "gone"], {})
    assert [(x.item_id, str(x.reason)) for x in result.letters] == [("i1", "not_found")]
    assert result.reused == 1


def test_rows_are_matched_by_id_and_new_items_have_nothing() -> None:
    previous = pa.table({
        "item_id": pa.array([5, 3], pa.int64()), "image_hash": ["h5", "h3"], "image_encoder": ["bytes-1", "old"],
        "image_embedding": pa.array([[1.0], [2.0]], pa.list_(pa.float32(), 1)),
    })  # fmt: skip
    table = pa.table({"item_id": pa.array([3, 4, 5], pa.int32())})
    added = add_previous(table, previous, {"image": "bytes-1", "text": "t"})
    assert added.column_names == ["item_id", "image_previous_hash", "image_previous_embedding"]
    assert added["image_previous_hash"].to_pylist() == [None, None, "h5"]
    assert add_previous(pa.table({"item_id": ["3"]}), previous, {"image": "bytes-1"}).column_names == ["item_id"]


def write_embeddings(store: Store, run_id: str, content: str) -> FileRecord:
    """Writes the only shard of a run's embeddings/, with one item `a`."""
    embedding = pa.array([[1.0]], pa.list_(pa.float32(), 1))
    columns = {"item_id": ["a"], "image_hash": [content], "image_encoder": ["bytes-1"], "image_embedding": embedding}
    path = shard_path(run_id, "embeddings", 0, 1)
    return write_file(store, "embeddings", path, table_bytes(pa.table(columns)), shard=0, rows=1)


@pytest.mark.parametrize(
    ("run_id", "shards", "expected"),
    [
        pytest.param("r2", 1, "of r2", id="an-interrupted-run-goes-on"),
        pytest.param("r3", 1, "of r1", id="a-new-run"),
        pytest.param("r3", 2, None, id="another-number-of-shards"),
    ],
)
def test_this_runs_own_file_comes_before_the_published_one(
    run_id: str, shards: int, expected: str | None, tmp_path: Path
) -> None:
    store = Store(str(tmp_path))
    published, _ = (write_embeddings(store, r, f"of {r}") for r in ("r1", "r2"))
    with beam.Pipeline(runner=FnApiRunner()) as p:
        tables = (
            p
            | beam.Create([(0, pa.table({"item_id": ["a"]}))])
            | ReuseEmbeddings(store, run_id, shards, [published], {"image": "bytes-1"})
        )
        assert_that(tables | beam.MapTuple(_previous_hash), equal_to([expected]))


def _previous_hash(_: int, table: pa.Table) -> str | None:
    return table["image_previous_hash"][0].as_py() if "image_previous_hash" in table.column_names else None


def test_a_published_file_that_is_gone_is_not_reused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Store(str(tmp_path))
    published = write_embeddings(store, "r1", "of r1")
    Path(store.path(published.path)).unlink()
    fn = _ReuseEmbeddingsFn(store, "r2", 1, {0: published}, {"image": "bytes-1"})
    ((shard, table),) = fn.process((0, pa.table({"item_id": ["a"]})))
    assert (shard, table.column_names) == (0, ["item_id"])
    assert "no reuse for shard 0" in caplog.text
