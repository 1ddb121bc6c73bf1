"""One shard: what is fetched, what is encoded, and what becomes a dead letter."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa

from tests.transforms.encode.histograms import ByteStatistics, encoded, histogram, image_table, write_files
from unisono.transforms.encode.microbatch import MicroBatcher
from unisono.transforms.encode.shard import encode_table
from unisono.transforms.media.fetch import MediaSource


def test_good_missing_and_bad_inputs(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    source = write_files(tmp_path, a=b"hello", b=b"world", empty=b"")
    table = image_table(["a", None, "b", "empty", "none", "../x"])
    result = encode_table(table, "image", MicroBatcher(ByteStatistics()), source, pool)
    got = encoded(result.table)
    np.testing.assert_allclose(got["i0"], histogram(b"hello"))
    np.testing.assert_allclose(got["i2"], histogram(b"world"))
    assert got["i1"] is got["i3"] is got["i4"] is got["i5"] is None
    assert [(x.item_id, x.modality, x.stage, str(x.reason), x.uri) for x in result.letters] == [
        ("i3", "image", "encode", "empty_file", "empty"),
        ("i4", "image", "encode", "not_found", "none"),
        ("i5", "image", "encode", "uri_not_allowed", "../x"),
    ]
    assert result.table.column_names == ["item_id", "image_hash", "image_encoder", "image_embedding"]
    assert result.table["image_encoder"].to_pylist() == ["bytes-1", None, "bytes-1", None, None, None]


def test_equal_content_is_encoded_once(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    source = write_files(tmp_path, a=b"same", b=b"same", c=b"other")
    encoder = ByteStatistics()
    result = encode_table(image_table(["a", "b", "a", "c"]), "image", MicroBatcher(encoder), source, pool)
    assert result.encoded == 2
    assert sum(encoder.batches) == 2
    got = encoded(result.table)
    assert got["i0"] == got["i1"] == got["i2"] != got["i3"]


def test_a_list_of_images_is_the_mean_of_unit_embeddings(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    source = write_files(tmp_path, a=b"hello", b=b"world")
    table = image_table([["a", "b"], ["b", "gone"], [], None], pa.list_(pa.string()))
    result = encode_table(table, "image", MicroBatcher(ByteStatistics()), source, pool)
    units = [histogram(d) / np.linalg.norm(histogram(d)) for d in (b"hello", b"world")]
    got = encoded(result.table)
    np.testing.assert_allclose(got["i0"], (units[0] + units[1]) / 2, atol=1e-7)
    np.testing.assert_allclose(got["i1"], histogram(b"world"))
    assert got["i2"] is got["i3"] is None
    assert [(x.item_id, x.uri) for x in result.letters] == [("i1", "gone")]


def test_inline_bytes(pool: ThreadPoolExecutor, tmp_path: Path) -> None:
    table = image_table([b"hello", None, b"hello"], pa.large_binary())
    result = encode_table(table, "image", MicroBatcher(ByteStatistics()), MediaSource(str(tmp_path)), pool)
    assert encoded(result.table)["i1"] is None
    assert result.encoded == 1
    np.testing.assert_allclose(encoded(result.table)["i2"], histogram(b"hello"))


def test_text_needs_no_source_and_blank_text_is_a_dead_letter() -> None:
    table = pa.table({"item_id": [1, 2, 3], "text": ["abc", "  ", None]})
    result = encode_table(table, "text", MicroBatcher(ByteStatistics()))
    np.testing.assert_allclose(encoded(result.table, "text")[1], histogram(b"abc"))
    assert [(x.item_id, str(x.reason), x.uri) for x in result.letters] == [("2", "empty_text", None)]


def test_an_empty_shard_has_its_columns(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    result = encode_table(image_table([]), "image", MicroBatcher(ByteStatistics()), MediaSource(str(tmp_path)), pool)
    assert result.table.num_rows == 0
    assert result.table.schema.field("image_embedding").type == pa.list_(pa.float32(), 16)
