"""On this machine: Beam's FnApiRunner in this process, one worker."""

from __future__ import annotations

from collections.abc import Sequence

from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions

# Named in full: `DirectRunner` may download Prism, or fall back to a third runner, and so differ between machines.
RUNNER = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"
NAMES = {"directrunner", "fnapirunner", "local", RUNNER.lower()}


def options(argv: Sequence[str]) -> PipelineOptions:
    """Beam's options for a local run.

    Raises:
        ValueError: more than one worker thread was asked for, which loses elements in Beam 2.77.
    """
    built = PipelineOptions([*argv, f"--runner={RUNNER}"])
    direct = built.view_as(DirectOptions)
    if direct.direct_running_mode == "multi_threading":
        raise ValueError("--direct_running_mode: multi_threading loses elements in Beam 2.77; use multi_processing")
    if direct.direct_running_mode in (None, "in_memory"):
        direct.direct_num_workers = 1
    return built
