"""A whole run with the modality `joint`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.conftest import run_with
from unisono.pipelines.ask.published import PublishedRun
from unisono.pipelines.ask.search import Searcher
from unisono.pipelines.demo.shop import generate_shop
from unisono.transforms.base.tables import from_vector_column


def test_a_run_with_a_joint_modality(omni: Path, tmp_path: Path) -> None:
    shop = generate_shop(tmp_path / "shop" / "shop", items=60, users=10)
    encoders = {"text": "none", "joint": {"model": f"st/{omni}", "max_pixels": 10_000, "audio_seconds": 1}}
    limits = {"max_dead_letter_fraction": 0.5}
    run = run_with(tmp_path / "run", shop, shards=2, encoders=encoders, interactions=None, limits=limits)
    embeddings, items = run.part("embeddings"), run.part("items")
    names = embeddings.schema.names
    assert {"joint_embedding", "image_embedding", "audio_embedding"} <= set(names)
    assert not {"text", "image", "audio", "joint", "text_embedding"} & set(names)
    vectors, present = from_vector_column(items["joint_vector"])
    assert present.sum() > 40
    assert {"joint"} < {m for row in items["modalities"].to_pylist() for m in row}
    np.testing.assert_allclose(np.linalg.norm(vectors[present], axis=1), 1, atol=1e-5)
    hits = Searcher(PublishedRun.open(run.store)).search(text="red lamp", k=3)  # the joint encoder encodes the query
    assert len(hits) == 3
