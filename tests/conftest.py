"""Shared by the tests: a small synthetic shop, and the whole job run on it once."""

# ruff: noqa: E402
from __future__ import annotations

import os

# Before NumPy and torch are loaded: with `pytest -n 2` each process would take every processor for its BLAS threads,
# which then wait on each other.
_THREADS = max(1, (os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, str(_THREADS))

from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pytest
import yaml

from tests.checkpoints import save_omni, save_open_clip
from unisono.pipelines.demo.demo import write_job
from unisono.pipelines.demo.shop import ShopPaths, generate_shop
from unisono.pipelines.launch import run_job
from unisono.transforms.store.runs import Manifest, Store, read_table


class Run(NamedTuple):
    """A finished run and what it was made of."""

    store: Store
    manifest: Manifest
    job: Path
    shop: ShopPaths

    def part(self, name: str) -> pa.Table:
        """All shards of a part, sorted by id."""
        tables = [read_table(self.store, r) for r in self.manifest.part(name)]
        table = pa.concat_tables(tables).combine_chunks()
        return table.sort_by(table.column_names[0])


def run_with(base: Path, shop: ShopPaths, run_id: str = "r1", **changes: object) -> Run:
    """Runs the shop's job with some keys of the job file replaced, into a store of its own."""
    base.mkdir(parents=True, exist_ok=True)
    body = yaml.safe_load(write_job(shop.directory.parent, shop).read_text())
    for section in ("catalog", "interactions"):
        for key in ("path", "media_root"):
            if key in body[section]:
                body[section][key] = str(shop.directory.parent / body[section][key])
    body["store"] = str(base / "store")
    for key, value in changes.items():
        body[key] = {**body[key], **value} if isinstance(value, dict) and key in body else value
    job = base / "job.yaml"
    job.write_text(yaml.safe_dump({k: v for k, v in body.items() if v is not None}))
    manifest = run_job(str(job), run_id, [], items=True, users=body.get("interactions") is not None)
    assert manifest is not None
    return Run(Store(body["store"]), manifest, job, shop)


@pytest.fixture(scope="session")
def omni(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny omni-modal checkpoint, as sentence-transformers saves it."""
    path = tmp_path_factory.mktemp("omni")
    save_omni(path)
    return path


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP checkpoint, as open_clip saves it."""
    path = tmp_path_factory.mktemp("clip")
    save_open_clip(path)
    return path


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> ShopPaths:
    """A synthetic shop of 150 items."""
    return generate_shop(tmp_path_factory.mktemp("shop") / "shop", items=150, users=40)


@pytest.fixture(scope="session")
def run(shop: ShopPaths, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The whole job on that shop, 4 shards."""
    return run_with(tmp_path_factory.mktemp("run"), shop, shards=4)
