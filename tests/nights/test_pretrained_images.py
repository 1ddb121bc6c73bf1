"""Whole runs with a CLIP checkpoint: refusals before any work, and pictures that are found by words."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests.pictures import write_pictures
from unisono.pipelines.ask.published import PublishedRun
from unisono.pipelines.ask.search import Searcher
from unisono.transforms.encoders.base import EncoderSpec
from unisono.transforms.encoders.clip import towers as family
from unisono.transforms.encoders.registry import get_encoder
from unisono.transforms.store.runs import Store

torch = pytest.importorskip("torch")
pytest.importorskip("open_clip")


def write_job(directory: Path, names: list[str], image: object) -> Path:
    texts = [f"item number {n} in {c}" for n, c in zip(range(len(names)), ["red", "green", "blue"] * 99, strict=False)]
    pq.write_table(pa.table({"id": names, "t": texts, "image": names}), directory / "c.parquet")
    body = {
        "store": "out",
        "catalog": {"path": "c.parquet", "id": "id", "text": "t", "image": "image"},
        "encoders": {"image": image},
        "space": {"dim": 8},
    }
    (directory / "job.yaml").write_text(yaml.safe_dump(body))
    return directory / "job.yaml"


def unisono(*args: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "unisono.pipelines.cli", *args]
    return subprocess.run(command, capture_output=True, text=True, env=env)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        pytest.param({"model": "open_clip/ViT-B-32"}, "encoders.image.weights: missing; give a tag", id="none"),
        pytest.param(
            {"model": "open_clip/ViT-B-32", "weights": "./gone"}, "image.weights: no file or directory", id="gone"
        ),
        pytest.param(
            {"model": "open_clip/ViT-B-32", "weights": "./wrong"}, "image.weights: the checkpoint has embed", id="wrong"
        ),
        pytest.param(
            {"model": "open_clip/ViT-B-32", "weights": "./pickle.pt"}, "pickle.pt is not a safetensors", id="pickle"
        ),
    ],
)
def test_a_missing_or_wrong_checkpoint_is_one_line_before_any_work(
    image: dict, message: str, clip: Path, tmp_path: Path
) -> None:
    names = write_pictures(tmp_path, 3)
    job = write_job(tmp_path, names, image)
    (tmp_path / "wrong").symlink_to(clip)
    (tmp_path / "pickle.pt").write_bytes(b"x")
    done = unisono("embed", "--config", str(job))
    assert done.returncode == 1
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("unisono: error: ")
    assert message in lines[0]
    assert not (tmp_path / "out").exists()


def test_words_ask_the_pictures_too(clip: Path, tmp_path: Path) -> None:
    names = write_pictures(tmp_path, 40)
    job = write_job(tmp_path, names, {"model": "open_clip", "weights": str(clip), "device": "cpu"})
    done = unisono("embed", "--config", str(job), "--run-id", "r1")
    assert done.returncode == 0, done.stderr
    store = Store(str(tmp_path / "out"))
    query = "a red bell"
    # The expected query: the mean of the text encoder's vector and CLIP's text vector, each in the joint space.
    searcher = Searcher(PublishedRun.open(store))
    space = searcher.space
    lite = get_encoder(EncoderSpec("text", "lite"))
    tower = family.load(EncoderSpec("text", "open_clip", (("device", "cpu"), ("weights", str(clip)))))
    parts = [
        space.project("text", lite.encode([lite.prepare(query)]))[0],
        space.project("image", tower.encode([tower.prepare(query)]))[0],
    ]
    expected = np.add(*parts) / np.linalg.norm(np.add(*parts))
    got = searcher.embed_query("text", query)
    np.testing.assert_allclose(got, expected, atol=1e-6)
    assert not np.allclose(got, parts[0], atol=1e-3)
    best = int(np.argmax(searcher.vectors @ expected))
    assert searcher.search(text=query, k=3)["item_id"][0] == searcher.items["item_id"][best]
    # And a picture finds itself.
    assert searcher.search(image=str(tmp_path / names[7]), k=40)["rank"][0].as_py() == 1


def test_words_ask_pictures_where_there_is_no_text(clip: Path, tmp_path: Path) -> None:
    names = write_pictures(tmp_path, 20)
    job = write_job(tmp_path, names, {"model": "open_clip", "weights": str(clip), "device": "cpu"})
    body = yaml.safe_load(job.read_text())
    del body["catalog"]["text"]
    job.write_text(yaml.safe_dump(body))
    done = unisono("embed", "--config", str(job))
    assert done.returncode == 0, done.stderr
    store = Store(str(tmp_path / "out"))
    assert len(Searcher(PublishedRun.open(store)).search(text="a red bell", k=3)) == 3
