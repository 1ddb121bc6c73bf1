"""What every question to a published run reads first: its space and its job file."""

from __future__ import annotations

import yaml

from unisono.pipelines.job.job import Job
from unisono.transforms.base import files
from unisono.transforms.base.errors import JobError
from unisono.transforms.space.space import Space
from unisono.transforms.store.runs import Manifest, Store


def read_space(store: Store, manifest: Manifest) -> Space:
    """Loads the joint space that a run was made with."""
    record = next(r for r in manifest.part("space") if r.path.endswith(".safetensors"))
    return Space.from_bytes(_read(store.path(record.path)))


def read_job(store: Store, manifest: Manifest) -> Job:
    """Loads the job file that a run was made with; its paths are absolute already."""
    # A run of profiles alone has a config of its own, but its space is the earlier run's: so is the job.
    run = manifest.part("space")[0].path.split("/")[1]
    path = store.run_path(run, "config.yaml")
    try:
        return Job.model_validate(yaml.safe_load(_read(path)))
    except (ValueError, yaml.YAMLError) as e:
        raise JobError(f"{path}: not the job file of a run ({str(e).splitlines()[0]}); make a new run") from e


def _read(path: str) -> bytes:
    try:
        return files.read_bytes(path)
    except FileNotFoundError as e:
        raise JobError(f"{path}: missing, and the manifest names it; bring it back or make a new run") from e
