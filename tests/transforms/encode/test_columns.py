"""The schema of embeddings/, and that a run's files have it."""

from __future__ import annotations

import pyarrow as pa

from tests.conftest import Run
from unisono.transforms.encode.columns import embeddings_schema


def test_each_modality_has_three_columns() -> None:
    schema = embeddings_schema(pa.int64(), {"joint": 3, "text": 2}, "float16")
    assert schema.names == [
        "item_id", "title", "joint_hash", "joint_encoder", "joint_embedding", "text_hash", "text_encoder",
        "text_embedding",
    ]  # fmt: skip
    assert schema.field("item_id").type == pa.int64()
    assert schema.field("text_embedding").type == pa.list_(pa.float16(), 2)


def test_a_runs_embeddings_have_the_schema(run: Run) -> None:
    table = run.part("embeddings")
    schema = embeddings_schema(pa.string(), {"text": 256, "image": 408, "audio": 235})
    assert table.schema.remove_metadata().equals(schema)
    for modality in ("text", "image", "audio"):
        found = {name: table[f"{modality}_{name}"].to_pylist() for name in ("hash", "encoder", "embedding")}
        for content, encoder, embedding in zip(*found.values(), strict=True):
            assert (encoder is None) == (embedding is None)
            assert content is None or embedding is not None
            assert encoder in (None, f"lite-{modality}-1")
            assert content is None or all(len(h) == 32 and int(h, 16) >= 0 for h in content.split(","))
