"""The whole job with catalogue, media, logs and store in a bucket."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from conftest import Run
from object_store import object_store, upload

from pipelines.launch import run_job
from pipelines.search import search
from transforms import files
from transforms.encoders.base import MediaLimits
from transforms.errors import InputError, Reason
from transforms.media import MediaSource
from transforms.store import Store


@pytest.fixture(scope="module")
def bucket(run: Run):
    with object_store("shop"):
        upload(run.shop.directory, "gs://shop/data")
        yield "gs://shop"


def test_a_run_in_a_bucket_equals_a_local_one(run: Run, bucket: str, tmp_path: Path) -> None:
    body = yaml.safe_load(run.job.read_text())
    body["store"] = f"{bucket}/store"
    body["catalog"] |= {"path": f"{bucket}/data/cat*.parquet", "media_root": f"{bucket}/data"}
    body["interactions"]["path"] = f"{bucket}/data/interactions.parquet"
    job = f"{bucket}/job.yaml"
    files.write_bytes(job, yaml.safe_dump(body).encode())
    manifest = run_job(job, "cloud", [], items=True, users=True)
    assert manifest is not None
    cloud = Run(Store(body["store"]), manifest, tmp_path, run.shop)
    for part in ("embeddings", "items", "users", "dead_letters"):
        assert cloud.part(part).equals(run.part(part)), part
    hits = search(cloud.store, text="small teal kettle", k=3)
    assert [h.item_id for h in hits] == [h.item_id for h in search(run.store, text="small teal kettle", k=3)]
    # a second night reuses the first, in the bucket too
    assert run_job(job, "cloud-2", [], items=True, users=False) is not None
    assert cloud.store.latest() == "cloud-2"


def test_objects_that_cannot_be_had(bucket: str) -> None:
    files.write_bytes(f"{bucket}/media/empty.png", b"")
    files.write_bytes(f"{bucket}/media/large.png", b"x" * 100)
    source = MediaSource(f"{bucket}/media", limits=MediaLimits(max_media_bytes=50))
    assert source.fetch("empty.png") == b""
    for uri, reason in (
        ("none.png", Reason.NOT_FOUND),
        ("large.png", Reason.TOO_MANY_BYTES),
        ("../data/catalog.parquet", Reason.URI_NOT_ALLOWED),
    ):
        with pytest.raises(InputError) as e:
            source.fetch(uri)
        assert e.value.reason == reason
