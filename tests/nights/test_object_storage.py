"""Runs of the whole job with the catalogue, media, logs and store in a bucket."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import Run
from tests.object_store import object_store, upload
from unisono.pipelines.ask.published import PublishedRun
from unisono.pipelines.ask.search import Searcher
from unisono.pipelines.graph import nightly
from unisono.pipelines.job.load import load_job
from unisono.pipelines.job.plan import plan_run
from unisono.pipelines.launch import beam_options, launch, run_job
from unisono.transforms.base import files
from unisono.transforms.base.errors import InputError, JobError, Reason
from unisono.transforms.media.fetch import MediaSource
from unisono.transforms.media.limits import MediaLimits
from unisono.transforms.store.runs import Store


@pytest.fixture(scope="module")
def bucket(run: Run):
    with object_store("shop"):
        upload(run.shop.directory, "gs://shop/data")
        yield "gs://shop"


@pytest.fixture(scope="module")
def job(run: Run, bucket: str) -> str:
    body = yaml.safe_load(run.job.read_text())
    body["store"] = f"{bucket}/store"
    body["catalog"] |= {"path": f"{bucket}/data/cat*.parquet", "media_root": f"{bucket}/data"}
    body["interactions"]["path"] = f"{bucket}/data/interactions.parquet"
    path = f"{bucket}/job.yaml"
    files.write_bytes(path, yaml.safe_dump(body).encode())
    return path


def test_a_run_in_a_bucket_equals_a_local_one(run: Run, bucket: str, job: str, tmp_path: Path) -> None:
    manifest = run_job(job, "cloud", [], items=True, users=True)
    assert manifest is not None
    cloud = Run(Store(f"{bucket}/store"), manifest, tmp_path, run.shop)
    for part in ("embeddings", "items", "users", "dead_letters"):
        assert cloud.part(part).equals(run.part(part)), part
    near, far = (Searcher(PublishedRun.open(r.store)).search(text="small teal kettle", k=3) for r in (run, cloud))
    assert far["item_id"].equals(near["item_id"])
    # a second night reuses the first, in the bucket too
    assert run_job(job, "cloud-2", [], items=True, users=False) is not None
    assert cloud.store.latest() == "cloud-2"


DATAFLOW = ["--runner=DataflowRunner", "--project=test-project", "--region=europe-west1"]
PLACES = ["--temp_location=gs://shop/tmp", "--staging_location=gs://shop/staging"]
# Without an image, Beam builds and uploads a package from setup.py, which takes a minute.
IMAGE = "--sdk_container_image=europe-docker.example/unisono:1"


def test_the_graph_is_a_dataflow_job(bucket: str, job: str) -> None:
    plan = plan_run(load_job(job), "df", items=True, users=True)
    options = beam_options([*DATAFLOW, *PLACES, IMAGE, "--dry_run=true", "--no_auth"])
    result: Any = launch(lambda root: nightly.build(root, plan), options, {})
    pipeline = result.job.proto_pipeline
    names = " ".join(t.unique_name for t in pipeline.components.transforms.values())
    for step in ("ReadCatalog", "ShardByItem", "EncodeImage", "FitSpace", "Fuse", "BuildProfiles", "Publish"):
        assert step in names
    assert plan.run.store.manifest("df") is None  # a dry run publishes nothing


def test_dataflow_requires_its_options_and_paths_that_its_workers_can_reach(run: Run, job: str) -> None:
    with pytest.raises(JobError, match=r"command line: --temp_location: required with --runner DataflowRunner"):
        run_job(job, "df-2", DATAFLOW, items=True, users=True)
    with pytest.raises(JobError, match=r"store: .* is on this machine"):
        run_job(str(run.job), "df-3", [*DATAFLOW, *PLACES], items=True, users=True)


def test_objects_that_cannot_be_fetched(bucket: str) -> None:
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
