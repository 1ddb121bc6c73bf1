"""The local runner: Beam's FnApiRunner in this process, with one worker."""

from __future__ import annotations

from collections.abc import Sequence

from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions

# The full name, because Beam's `DirectRunner` can be one of three runners, depending on the machine: it may download
# Prism, or fall back to another runner.
RUNNER = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"
NAMES = {"directrunner", "fnapirunner", "local", RUNNER.lower()}
IN_PROCESS = True
WORKERS_ELSEWHERE = False


def options(argv: Sequence[str]) -> PipelineOptions:
    """Returns Beam's options for a local run.

    Args:
        argv: options for Beam; a `--runner` among them is replaced.

    Raises:
        ValueError: `--direct_running_mode multi_threading`, which loses elements in Beam 2.77.
    """
    built = PipelineOptions([*argv, f"--runner={RUNNER}"])
    direct = built.view_as(DirectOptions)
    if direct.direct_running_mode == "multi_threading":
        raise ValueError("--direct_running_mode: multi_threading loses elements in Beam 2.77; use multi_processing")
    if direct.direct_running_mode in (None, "in_memory"):
        direct.direct_num_workers = 1
    return built
