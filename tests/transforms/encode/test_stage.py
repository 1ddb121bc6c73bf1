"""The encode stage: what is fetched, what is encoded, what fails, what is reused."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from unisono.transforms.base.errors import InputError, JobError, Reason
from unisono.transforms.base.tables import from_vector_column
from unisono.transforms.encode.microbatch import MicroBatcher
from unisono.transforms.encode.prefetch import Loaded, load_ahead
from unisono.transforms.encode.reuse import lend_embeddings
from unisono.transforms.encode.stage import encode_table
from unisono.transforms.media.fetch import MediaSource


class ByteStatistics:
    """A small true encoder: the histogram of an input's bytes, in 16 bins; it notes what it is asked for."""

    dim = 16
    batch_cost = 8

    def __init__(self, encoder_id: str = "bytes-1", most: int = 10**9) -> None:
        self.encoder_id, self.most = encoder_id, most
        self.prepared: Counter[bytes] = Counter()
        self.batches: list[int] = []
        self._lock = threading.Lock()

    def prepare(self, raw: str | bytes) -> np.ndarray:
        data = raw.encode() if isinstance(raw, str) else raw
        with self._lock:
            self.prepared[data] += 1
        if not data:
            raise InputError(Reason.EMPTY_FILE, "zero bytes")
        return np.frombuffer(data, np.uint8)

    def cost(self, prepared: np.ndarray) -> int:
        return 1

    def encode(self, batch: Sequence[np.ndarray]) -> np.ndarray:
        self.batches.append(len(batch))
        if len(batch) > self.most:
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB")
        if any(b[:6].tobytes() == b"poison" for b in batch):
            raise ValueError("bad kernel launch")
        rows = [np.bincount(b // 16, minlength=16) / len(b) for b in batch]
        return np.array(rows, np.float32)


def histogram(data: bytes) -> np.ndarray:
    counts = np.zeros(16)
    for byte in data:
        counts[byte // 16] += 1
    return (counts / len(data)).astype(np.float32)


@pytest.fixture(scope="module")
def pool():
    with ThreadPoolExecutor(4) as p:
        yield p


def write_files(root: Path, **content: bytes) -> MediaSource:
    for name, data in content.items():
        (root / name).write_bytes(data)
    return MediaSource(str(root))


def image_table(images, dtype=None) -> pa.Table:
    ids = [f"i{n}" for n in range(len(images))]
    return pa.table({"item_id": ids, "image": pa.array(images, dtype or pa.string())})


def encoded(table: pa.Table, modality: str = "image") -> dict[Any, Any]:
    return dict(zip(table["item_id"].to_pylist(), table[f"{modality}_embedding"].to_pylist(), strict=True))


def test_good_missing_and_bad_inputs(tmp_path: Path, pool) -> None:
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


def test_equal_content_is_encoded_once(tmp_path: Path, pool) -> None:
    source = write_files(tmp_path, a=b"same", b=b"same", c=b"other")
    encoder = ByteStatistics()
    result = encode_table(image_table(["a", "b", "a", "c"]), "image", MicroBatcher(encoder), source, pool)
    assert result.encoded == 2
    assert sum(encoder.batches) == 2
    got = encoded(result.table)
    assert got["i0"] == got["i1"] == got["i2"] != got["i3"]


def test_a_list_of_images_is_the_mean_of_unit_embeddings(tmp_path: Path, pool) -> None:
    source = write_files(tmp_path, a=b"hello", b=b"world")
    table = image_table([["a", "b"], ["b", "gone"], [], None], pa.list_(pa.string()))
    result = encode_table(table, "image", MicroBatcher(ByteStatistics()), source, pool)
    units = [histogram(d) / np.linalg.norm(histogram(d)) for d in (b"hello", b"world")]
    got = encoded(result.table)
    np.testing.assert_allclose(got["i0"], (units[0] + units[1]) / 2, atol=1e-7)
    np.testing.assert_allclose(got["i1"], histogram(b"world"))
    assert got["i2"] is got["i3"] is None
    assert [(x.item_id, x.uri) for x in result.letters] == [("i1", "gone")]


def test_inline_bytes(pool, tmp_path: Path) -> None:
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


def test_an_empty_shard_has_its_columns(tmp_path: Path, pool) -> None:
    result = encode_table(image_table([]), "image", MicroBatcher(ByteStatistics()), MediaSource(str(tmp_path)), pool)
    assert result.table.num_rows == 0
    assert result.table.schema.field("image_embedding").type == pa.list_(pa.float32(), 16)


# --- failures of the encoder -------------------------------------------------------------------------------


def test_out_of_memory_halves_the_batch_and_is_remembered(tmp_path: Path, pool) -> None:
    source = write_files(tmp_path, **{f"f{i}": f"content {i}".encode() for i in range(40)})
    encoder = ByteStatistics(most=3)
    batcher = MicroBatcher(encoder)
    result = encode_table(image_table([f"f{i}" for i in range(40)]), "image", batcher, source, pool)
    assert not result.letters
    for i in range(40):
        np.testing.assert_allclose(encoded(result.table)[f"i{i}"], histogram(f"content {i}".encode()))
    assert batcher.safe_cost <= 3
    assert sum(n > 3 for n in encoder.batches) <= 3  # 8 → 4 → 2: then never again


def test_one_poisonous_input_among_500_costs_one_dead_letter(tmp_path: Path, pool) -> None:
    content = {f"f{i}": f"content {i}".encode() for i in range(500)} | {"f123": b"poison"}
    source = write_files(tmp_path, **content)
    result = encode_table(image_table(list(content)), "image", MicroBatcher(ByteStatistics()), source, pool)
    assert [(x.item_id, str(x.reason)) for x in result.letters] == [("i123", "encoder_failed")]
    assert result.table["image_embedding"].null_count == 1


def test_an_encoder_that_fails_on_everything_is_a_job_error(tmp_path: Path, pool) -> None:
    source = write_files(tmp_path, **{f"f{i}": f"poison {i}".encode() for i in range(20)})
    with pytest.raises(JobError, match="every one of 8 inputs failed"):
        encode_table(image_table([f"f{i}" for i in range(20)]), "image", MicroBatcher(ByteStatistics()), source, pool)


# --- prefetch ----------------------------------------------------------------------------------------------


def test_prefetch_keeps_order_and_bounds_what_waits(pool) -> None:
    running, most = 0, 0
    lock = threading.Lock()

    def job(i: int) -> Loaded:
        nonlocal running, most
        time.sleep(0.001 * (i % 3))
        with lock:
            running += 1
            most = max(most, running)
        return Loaded(i, nbytes=100)

    seen = []
    for item in load_ahead([partial(job, i) for i in range(60)], pool, held_items=50, held_bytes=1000):
        time.sleep(0.002)
        with lock:
            running -= 1
        seen.append(item.index)
    assert seen == list(range(60))
    assert most <= 10 + 4 + 1  # held_bytes / nbytes, the threads, and the one in the consumer's hand


def test_prefetch_runs_ahead_of_a_slow_consumer(pool) -> None:
    def job(i: int) -> Loaded:
        time.sleep(0.02)
        return Loaded(i)

    started = time.monotonic()
    for _ in load_ahead([partial(job, i) for i in range(20)], pool):
        time.sleep(0.02)
    assert time.monotonic() - started < 0.7  # one after the other would be 0.8


# --- reuse -------------------------------------------------------------------------------------------------


def run_again(tmp_path: Path, pool, images, change, encoder_id="bytes-1", dtype=None):
    """Encodes, changes files, encodes again with the first run's embeddings lent."""
    source = write_files(tmp_path, a=b"hello", b=b"world", c=b"third")
    table = image_table(images, dtype)
    first = encode_table(table, "image", MicroBatcher(ByteStatistics()), source, pool).table
    for name, data in change.items():
        (tmp_path / name).write_bytes(data)
    encoder = ByteStatistics(encoder_id)
    lent = lend_embeddings(table, first, {"image": encoder_id})
    result = encode_table(lent, "image", MicroBatcher(encoder), source, pool)
    fresh = encode_table(table, "image", MicroBatcher(ByteStatistics(encoder_id)), source, pool)
    np.testing.assert_array_equal(
        from_vector_column(result.table["image_embedding"])[0], from_vector_column(fresh.table["image_embedding"])[0]
    )
    assert result.table["image_hash"].to_pylist() == fresh.table["image_hash"].to_pylist()
    assert [x[:4] for x in result.letters] == [x[:4] for x in fresh.letters]
    return result, encoder


def test_unchanged_content_is_not_prepared_again(tmp_path: Path, pool) -> None:
    result, encoder = run_again(tmp_path, pool, ["a", "b", "c"], {"b": b"changed"})
    assert result.reused == 2
    assert set(encoder.prepared) == {b"changed"}


def test_another_encoder_reuses_nothing(tmp_path: Path, pool) -> None:
    result, _ = run_again(tmp_path, pool, ["a", "b"], {}, encoder_id="bytes-2")
    assert result.reused == 0
    assert result.encoded == 2


def test_a_list_is_reused_whole_and_reencoded_where_a_part_changed(tmp_path: Path, pool) -> None:
    images = [["a", "b"], ["b", "c"]]
    result, encoder = run_again(tmp_path, pool, images, {"a": b"changed"}, dtype=pa.list_(pa.string()))
    assert result.reused == 1
    assert set(encoder.prepared) == {b"changed", b"world"}  # "world" was lent, but row 0 needs it anew


def test_a_failure_is_reported_every_night(tmp_path: Path, pool) -> None:
    result, _ = run_again(tmp_path, pool, ["a", "gone"], {})
    assert [(x.item_id, str(x.reason)) for x in result.letters] == [("i1", "not_found")]
    assert result.reused == 1
