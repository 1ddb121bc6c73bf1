"""Runs a graph: the runner, the live view, and errors as one line."""

from __future__ import annotations

import contextlib
import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions, WorkerOptions
from apache_beam.runners.runner import PipelineResult
from rich.console import Console

from unisono.pipelines.graph import nightly
from unisono.pipelines.job.config import Job, load_job
from unisono.pipelines.job.plan import plan_run
from unisono.pipelines.progress_view import ProgressView
from unisono.pipelines.summary import print_summary
from unisono.runners import select
from unisono.transforms.base.errors import JobError, UsageError
from unisono.transforms.base.files import is_remote
from unisono.transforms.store.runs import Manifest

# A JobError raised on a worker comes back as text inside a RuntimeError: Beam carries tracebacks, not exceptions.
_REMOTE_JOB_ERROR = re.compile(r"unisono\.transforms\.base\.errors\.JobError: (.+?)(?: \[while running|\\n|\n|$)")


def _is_no_job_error(record: logging.LogRecord) -> bool:
    """Keeps Beam from logging the traceback of an error that we say in one line."""
    raised = record.exc_info[1] if record.exc_info else None
    return not (isinstance(raised, JobError) or "unisono.transforms.base.errors.JobError" in record.getMessage())


def run_job(
    config: str | Job, run_id: str | None, argv: Sequence[str], *, items: bool, users: bool, recommend: bool = False
) -> Manifest | None:
    """Checks a job file, runs the job, and prints what it made.

    Args:
        config: the job file, or a job that has been read.
        run_id: None: made from the clock.
        argv: options for Beam.
        items, users, recommend: which parts; see `plan_run`.

    Returns:
        The published run; None where the job was submitted and nobody waits for it.

    Raises:
        JobError: the job, not the code, is at fault.
    """
    started = time.monotonic()
    job = load_job(config) if isinstance(config, str) else config
    options = beam_options(argv)
    if select.runs_elsewhere(options):
        _check_reachable(job)
        _check_key_reaches(job, options)
    plan = plan_run(job, run_id, items=items, users=users, recommend=recommend)
    launch(lambda root: nightly.build(root, plan), options, plan.stage_totals)
    manifest = plan.store.manifest(plan.run_id)
    if manifest is None:
        Console(stderr=True).print(f"submitted run {plan.run_id}")
    else:
        print_summary(plan.store, manifest, time.monotonic() - started)
    return manifest


def beam_options(argv: Sequence[str]) -> PipelineOptions:
    """Makes Beam's options of what the command line left over.

    Raises:
        JobError: an option is wrong or missing.
    """
    try:
        if unknown := select.unknown_options(argv):
            raise ValueError(f"neither unisono nor Beam knows {', '.join(unknown)}; see `unisono nightly --help`")
        return select.options(argv)
    except (ValueError, SystemExit) as e:
        raise UsageError(f"command line: {e}") from e


def _check_reachable(job: Job) -> None:
    """Refuses local paths in a job whose workers are other machines."""
    log = job.interactions.path if job.interactions else None
    paths = {"store": job.store, "catalog.path": job.catalog.path, "interactions.path": log}
    paths["privacy.forget"] = job.privacy.forget
    if job.catalog.image or job.catalog.audio:
        paths["catalog.media_root"] = job.media_source.root
    for key, path in paths.items():
        if path and not is_remote(path):
            raise JobError(f"{key}: {path} is on this machine, where Dataflow's workers cannot see it; use gs://")


def _check_key_reaches(job: Job, options: PipelineOptions) -> None:
    """Refuses pseudonyms on machines that cannot have the key: it does not travel with the job."""
    at = job.privacy.pseudonyms
    if at and not options.view_as(WorkerOptions).sdk_container_image:
        raise JobError(
            f"privacy.pseudonyms: {at.key_env} does not travel with the job, and Dataflow's stock containers do "
            "not have it; give --sdk_container_image with an image whose start sets it (from Secret Manager, say)"
        )


def launch(
    build: Callable[[beam.Pipeline], object], options: PipelineOptions, totals: Mapping[str, int]
) -> PipelineResult:
    """Builds a graph, runs it to its end, and shows how far it is.

    Args:
        build: adds the steps.
        options: for Beam.
        totals: rows that each stage will see, where known.

    Raises:
        JobError: the job, not the code, is at fault.
    """
    try:
        pipeline = beam.Pipeline(options=options)
    except (ValueError, ImportError) as e:
        raise UsageError(f"command line: --runner: {str(e).splitlines()[0]}") from e
    build(pipeline)
    logging.getLogger("apache_beam").setLevel(logging.ERROR)
    for name in ("apache_beam.runners.common", "apache_beam.runners.worker.sdk_worker"):
        logging.getLogger(name).addFilter(_is_no_job_error)
    try:
        with ProgressView(totals) if select.is_local(options) else contextlib.nullcontext():
            result = pipeline.run()
            result.wait_until_finish()
        return result
    except JobError as e:
        raise JobError(str(e).split(" [while running")[0]) from e
    except Exception as e:
        found = _REMOTE_JOB_ERROR.search(str(e))
        if found:
            raise JobError(found.group(1)) from e
        raise
