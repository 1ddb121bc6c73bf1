"""The encode stage in a graph: its outputs, their number format, and the columns that a joint encoder leaves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.util import assert_that, equal_to

from tests.media_files import image_file
from unisono.transforms.encode.columns import embeddings_schema
from unisono.transforms.encode.stage import EncodeModality, _EncodeModalityFn
from unisono.transforms.encoders.base import EncoderSpec
from unisono.transforms.encoders.registry import get_encoder
from unisono.transforms.media.fetch import MediaSource

LITE = EncoderSpec("image", "lite")


@pytest.fixture
def source(tmp_path: Path) -> MediaSource:
    for name, level in (("a", 0), ("b", 200)):
        (tmp_path / name).write_bytes(image_file(np.full((8, 8, 3), level, np.uint8)))
    return MediaSource(str(tmp_path))


def shard() -> pa.Table:
    rows = {"item_id": ["1", "2", "3", "4"], "title": ["x"] * 4, "image": ["a", "b", None, "gone"]}
    return pa.table({name: pa.array(values, pa.string()) for name, values in rows.items()})


def _describe(shard: int, table: pa.Table) -> tuple[int, list[str], list[bool]]:
    return shard, table.column_names, table["image_embedding"].is_valid().to_pylist()


def _reasons(table: pa.Table) -> list[tuple[str, str]]:
    return list(zip(table["item_id"].to_pylist(), table["reason"].to_pylist(), strict=True))


def test_shards_dead_letters_and_counts_come_out(source: MediaSource) -> None:
    names = ["item_id", "title", "image_hash", "image_encoder", "image_embedding"]
    with beam.Pipeline(runner=FnApiRunner()) as p:
        out = p | beam.Create([(5, shard())]) | EncodeModality(LITE, source)
        described = out["shards"] | beam.MapTuple(_describe)
        assert_that(described, equal_to([(5, names, [True, True, False, False])]), label="shards")
        letters = out["dead"] | "Reasons" >> beam.FlatMap(_reasons)
        assert_that(letters, equal_to([("4", "not_found")]), label="dead")
        counts = [("embeddings.image", 2), ("encoded.image", 2), ("reused.image", 0)]
        assert_that(out["counts"], equal_to(counts), label="counts")


def process(spec: EncoderSpec, source: MediaSource | None, table: pa.Table, *arguments: Any) -> pa.Table:
    """Runs the stage's DoFn on one shard, and returns the shard that comes out."""
    fn = _EncodeModalityFn(spec, source, *arguments)
    fn.setup()
    outputs: Iterable[Any] = list(fn.process((0, table)))
    fn.teardown()
    (encoded,) = (o for o in outputs if not isinstance(o, beam.pvalue.TaggedOutput))
    return encoded[1]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_embeddings_have_the_jobs_number_format(dtype: str, source: MediaSource, tmp_path: Path) -> None:
    table = process(LITE, source, shard(), dtype, ())
    assert table.schema.equals(embeddings_schema(pa.string(), {"image": 408}, dtype))
    encoder = get_encoder(LITE)
    expected = encoder.encode([encoder.prepare((tmp_path / "b").read_bytes())])[0].astype(dtype)
    np.testing.assert_array_equal(np.array(table["image_embedding"][1].as_py(), dtype), expected)


class Lengths:
    """A joint encoder: the number of parts in an input."""

    encoder_id, dim, batch_cost = "parts-1", 1, 4

    def prepare(self, raw: dict[str, Any]) -> Any:
        return np.array([len(raw)])

    def cost(self, prepared: Any) -> int:
        return 1

    def encode(self, batch: Any) -> np.ndarray:
        return np.array(batch, np.float32)


def test_a_joint_encoder_removes_only_what_no_other_needs(
    source: MediaSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unisono.transforms.encode.stage.get_encoder", lambda spec: Lengths())
    table = shard().append_column("text", pa.array(["red", None, "blue", None], pa.string()))
    joint = EncoderSpec("joint", "st/any", (("parts", ("text", "image")),))
    made = process(joint, source, table, "float32", ("text",))
    assert made.column_names == ["item_id", "title", "image", "joint_hash", "joint_encoder", "joint_embedding"]
    assert made["joint_embedding"].to_pylist() == [[2.0], [1.0], [1.0], None]
    assert Counter(made["joint_hash"].is_valid().to_pylist()) == {True: 3, False: 1}
