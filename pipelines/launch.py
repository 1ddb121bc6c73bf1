"""Runs a job: chooses the runner, shows progress, and turns errors of the job into one line."""

from __future__ import annotations

import contextlib
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions, WorkerOptions
from apache_beam.runners.runner import PipelineResult
from rich.console import Console

from unisono.pipelines.graph import nightly
from unisono.pipelines.job.job import Job
from unisono.pipelines.job.load import load_job
from unisono.pipelines.job.plan import plan_run
from unisono.pipelines.progress_view import ProgressView
from unisono.pipelines.summary import print_summary
from unisono.runners import select
from unisono.transforms.base.errors import JobError, UsageError
from unisono.transforms.base.files import is_remote
from unisono.transforms.store.runs import Manifest

# If a worker raises a JobError, Beam raises a RuntimeError here, with the worker's traceback as its text.
_REMOTE_JOB_ERROR = re.compile(r"unisono\.transforms\.base\.errors\.JobError: (.+?)(?: \[while running|\\n|\n|$)")

# The loggers on which Beam's workers print the traceback of an error.
_WORKER_LOGS = ("apache_beam.runners.common", "apache_beam.runners.worker.sdk_worker")


def run_job(
    config: str | Job, run_id: str | None, argv: Sequence[str], *, items: bool, users: bool, recommend: bool = False
) -> Manifest | None:
    """Checks a job file, runs the job, and prints what it made.

    Args:
        config: path of the job file, local or gs://, or a job that has been read.
        run_id: the run's id; None means an id made from the time of launch.
        argv: options for Beam.
        items: True if the run makes item vectors; see `plan_run`.
        users: True if the run makes user profiles; see `plan_run`.
        recommend: True if the run makes recommendations; see `plan_run`.

    Returns:
        The manifest of the published run; None means that the job was submitted and has not finished.

    Raises:
        UsageError: an option for Beam is wrong or missing.
        JobError: the job or its inputs are at fault.
    """
    started = time.monotonic()
    job = load_job(config) if isinstance(config, str) else config
    options = beam_options(argv)
    if select.runs_elsewhere(options):
        _check_reachable(job)
        _check_key_reaches(job, options)
    plan = plan_run(job, run_id, items=items, users=users, recommend=recommend)
    launch(lambda root: nightly.build(root, plan), options, plan.stage_totals)
    manifest = plan.run.store.manifest(plan.run.run_id)
    if manifest is None:
        Console(stderr=True).print(f"submitted run {plan.run.run_id}")
    else:
        print_summary(plan.run.store, manifest, time.monotonic() - started)
    return manifest


def beam_options(argv: Sequence[str]) -> PipelineOptions:
    """Makes Beam's options from the arguments that are not Unisono's own.

    Raises:
        UsageError: an option is unknown, wrong or missing.
    """
    try:
        if unknown := select.unknown_options(argv):
            raise ValueError(f"neither unisono nor Beam knows {', '.join(unknown)}; see `unisono nightly --help`")
        return select.options(argv)
    except (ValueError, SystemExit) as e:
        raise UsageError(f"command line: {e}") from e


def _check_reachable(job: Job) -> None:
    """Refuses local paths in a job whose workers are other machines.

    Raises:
        JobError: a path is local.
    """
    log = job.interactions.path if job.interactions else None
    paths = {"store": job.store, "catalog.path": job.catalog.path, "interactions.path": log}
    paths["privacy.forget"] = job.privacy.forget
    if job.catalog.media:
        paths["catalog.media_root"] = job.media_source.root
    for key, path in paths.items():
        if path and not is_remote(path):
            raise JobError(f"{key}: {path} is on this machine, and Dataflow's workers cannot see it; use gs://")


def _check_key_reaches(job: Job, options: PipelineOptions) -> None:
    """Refuses pseudonyms if the workers cannot have the key, which is not sent with the job.

    Raises:
        JobError: the workers run Dataflow's own image, which does not have the key.
    """
    at = job.privacy.pseudonyms
    if at and not options.view_as(WorkerOptions).sdk_container_image:
        raise JobError(
            f"privacy.pseudonyms: {at.key_env} does not travel with the job, and Dataflow's own image does not have "
            "it; give --sdk_container_image with an image that sets it when it starts, for example from Secret Manager"
        )


@contextlib.contextmanager
def _quiet_beam() -> Iterator[None]:
    """Hides Beam's warnings, and tracebacks of errors that `launch` raises as one line, for the time of a run."""
    beam_log = logging.getLogger("apache_beam")
    level = beam_log.level
    beam_log.setLevel(logging.ERROR)
    for name in _WORKER_LOGS:
        logging.getLogger(name).addFilter(_is_not_job_error)
    try:
        yield
    finally:
        beam_log.setLevel(level)
        for name in _WORKER_LOGS:
            logging.getLogger(name).removeFilter(_is_not_job_error)


def _is_not_job_error(record: logging.LogRecord) -> bool:
    raised = record.exc_info[1] if record.exc_info else None
    return not (isinstance(raised, JobError) or "unisono.transforms.base.errors.JobError" in record.getMessage())


def launch(
    build: Callable[[beam.Pipeline], object], options: PipelineOptions, totals: Mapping[str, int]
) -> PipelineResult:
    """Builds a graph, runs it to its end, and shows its progress if the run happens in this process.

    Args:
        build: adds the steps to the graph.
        options: for Beam.
        totals: the number of rows that each stage will see, for the stages where it is known.

    Raises:
        UsageError: the runner cannot be used.
        JobError: the job or its inputs are at fault, here or on a worker.
    """
    try:
        pipeline = beam.Pipeline(options=options)
    except (ValueError, ImportError) as e:
        raise UsageError(f"command line: --runner: {str(e).splitlines()[0]}") from e
    build(pipeline)
    try:
        with _quiet_beam(), ProgressView(totals) if select.is_local(options) else contextlib.nullcontext():
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
