"""A base install: a whole run over texts, and jobs that need an extra, which are refused before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests.without_extras import run_without_extras
from unisono.transforms.base.tables import from_vector_column
from unisono.transforms.store.runs import Store, read_table

COMMAND = "from unisono.pipelines.cli import main\nsys.argv = {!r}\nmain()\n"


def write_job(directory: Path, catalog: dict[str, str], **sections: Any) -> Path:
    things = ("lamp", "chair", "drum", "bell")
    texts = [f"a {colour} {thing}" for colour in ("red", "green", "blue") for thing in things]
    columns = {"id": [f"i{n}" for n in range(len(texts))], "t": texts, "file": ["a"] * len(texts)}
    pq.write_table(pa.table(columns), directory / "c.parquet")
    body = {"store": "out", "catalog": {"path": "c.parquet", "id": "id", **catalog}, "space": {"dim": 8}, **sections}
    (directory / "job.yaml").write_text(yaml.safe_dump(body))
    return directory / "job.yaml"


def test_a_base_install_makes_item_vectors_of_texts(tmp_path: Path) -> None:
    job = write_job(tmp_path, {"text": "t"})
    done = run_without_extras(COMMAND.format(["unisono", "nightly", "--config", str(job), "--run-id", "r1"]), tmp_path)
    assert done.returncode == 0, done.stderr
    store = Store(str(tmp_path / "out"))
    items = pa.concat_tables(read_table(store, r) for r in store.published().part("items"))
    vectors, present = from_vector_column(items["vector"])
    assert sorted(items["item_id"].to_pylist()) == sorted(f"i{n}" for n in range(12))
    assert present.all()
    assert vectors.shape == (12, 8)
    asked = ["unisono", "search", "--store", store.root, "--text", "a green drum", "-k", "1"]
    found = run_without_extras(COMMAND.format(asked), tmp_path)
    assert "a green drum" in found.stdout, found.stderr


@pytest.mark.parametrize(
    ("catalog", "encoders", "message"),
    [
        pytest.param(
            {"text": "t", "image": "file"}, {},
            "encoders.image: lite needs pillow and scikit-image, which are not installed; pip install 'unisono[image]'",
            id="image",
        ),
        pytest.param(
            {"audio": "file"}, {},
            "encoders.audio: lite needs librosa, soundfile and soxr, which are not installed; "
            "pip install 'unisono[audio]'",
            id="audio",
        ),
        pytest.param(
            {"text": "t"}, {"text": "sentence-transformers/all-MiniLM-L6-v2"},
            "encoders.text: sentence-transformers/all-MiniLM-L6-v2 needs torch and transformers, which are not "
            "installed; pip install 'unisono[models]'",
            id="models",
        ),
        pytest.param(
            {"text": "t", "image": "file"}, {"image": "none", "joint": "st/some/model"},
            "encoders.joint: st/some/model needs torch, sentence-transformers and pillow, which are not installed; "
            "pip install 'unisono[omni,image]'",
            id="omni",
        ),
        pytest.param(
            {"text": "t", "image": "file", "media_root": "gs://shop/media"}, {},
            "catalog.media_root: gs://shop/media needs google-cloud-storage, which is not installed; "
            "pip install 'unisono[gcp]'",
            id="gcp",
        ),
    ],
)  # fmt: skip
def test_a_job_that_needs_an_extra_is_refused_before_any_work(
    catalog: dict[str, str], encoders: dict[str, str], message: str, tmp_path: Path
) -> None:
    job = write_job(tmp_path, catalog, encoders=encoders)
    done = run_without_extras(COMMAND.format(["unisono", "nightly", "--config", str(job)]), tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [f"unisono: error: {message}"]
    assert not (tmp_path / "out").exists()


def test_the_demo_says_what_it_needs(tmp_path: Path) -> None:
    done = run_without_extras(COMMAND.format(["unisono", "demo", "--out", str(tmp_path / "demo")]), tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("unisono: error: demo: needs pillow, scikit-image, ")
    assert done.stderr.endswith("which are not installed; pip install 'unisono[demo]'\n")
    assert not (tmp_path / "demo").exists()
