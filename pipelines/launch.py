"""Runs a graph: the runner, the live view, and errors as one line."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence

import apache_beam as beam
from rich.console import Console

from pipelines import nightly
from pipelines.config import load_job
from pipelines.plan import plan_run
from pipelines.progress_view import ProgressView
from pipelines.summary import print_summary
from runners import select
from transforms.errors import JobError
from transforms.store import Manifest

# A JobError raised on a worker comes back as text inside a RuntimeError: Beam carries tracebacks, not exceptions.
_REMOTE_JOB_ERROR = re.compile(r"transforms\.errors\.JobError: (.+?)(?: \[while running|\\n|\n|$)")


def _is_no_job_error(record: logging.LogRecord) -> bool:
    """Keeps Beam from logging the traceback of an error that we say in one line."""
    raised = record.exc_info[1] if record.exc_info else None
    return not (isinstance(raised, JobError) or "transforms.errors.JobError" in record.getMessage())


def run_job(config: str, run_id: str | None, argv: Sequence[str], *, items: bool, users: bool) -> Manifest | None:
    """Checks a job file, runs the job, and prints what it made.

    Args:
        config: the job file.
        run_id: None: made from the clock.
        argv: options for Beam.
        items, users: which parts; see `plan_run`.

    Returns:
        The published run; None where the job was submitted and nobody waits for it.

    Raises:
        JobError: the job, not the code, is at fault.
    """
    started = time.monotonic()
    plan = plan_run(load_job(config), run_id, items=items, users=users)
    launch(lambda root: nightly.build(root, plan), argv, plan.stage_totals)
    manifest = plan.store.manifest(plan.run_id)
    if manifest is None:
        Console(stderr=True).print(f"submitted run {plan.run_id}")
    else:
        print_summary(plan.store, manifest, time.monotonic() - started)
    return manifest


def launch(build: Callable[[beam.Pipeline], object], argv: Sequence[str], totals: Mapping[str, int]) -> None:
    """Builds a graph, runs it to its end, and shows how far it is.

    Args:
        build: adds the steps.
        argv: options for Beam.
        totals: rows that each stage will see, where known.

    Raises:
        JobError: the job, not the code, is at fault.
    """
    try:
        options = select.options(argv)
    except (ValueError, SystemExit) as e:
        raise JobError(f"command line: {e}") from e
    pipeline = beam.Pipeline(options=options)
    build(pipeline)
    logging.getLogger("apache_beam").setLevel(logging.ERROR)
    for name in ("apache_beam.runners.common", "apache_beam.runners.worker.sdk_worker"):
        logging.getLogger(name).addFilter(_is_no_job_error)
    try:
        if select.is_local(options):
            with ProgressView(totals):
                pipeline.run().wait_until_finish()
        else:
            pipeline.run().wait_until_finish()
    except JobError as e:
        raise JobError(str(e).split(" [while running")[0]) from e
    except Exception as e:
        found = _REMOTE_JOB_ERROR.search(str(e))
        if found:
            raise JobError(found.group(1)) from e
        raise
