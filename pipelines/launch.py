"""Runs a graph: the runner, the live view, and errors as one line."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence

import apache_beam as beam

from pipelines.progress_view import ProgressView
from runners import select
from transforms.errors import JobError

# A JobError raised on a worker comes back as text inside a RuntimeError: Beam carries tracebacks, not exceptions.
_REMOTE_JOB_ERROR = re.compile(r"transforms\.errors\.JobError: (.+?)(?: \[while running|\\n|\n|$)")


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
