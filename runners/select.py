"""Picks the engine that `--runner` names."""

from __future__ import annotations

from collections.abc import Sequence

from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

from runners import dataflow, local


def options(argv: Sequence[str]) -> PipelineOptions:
    """Beam's options for whatever the command line asks for; nothing asked for is a local run.

    Raises:
        ValueError: see the engine's own file.
    """
    runner = PipelineOptions(list(argv)).view_as(StandardOptions).runner
    if runner is None or runner.lower() in local.NAMES:
        return local.options(_without_runner(argv))
    if runner.lower() in dataflow.NAMES:
        return dataflow.options(argv)
    return PipelineOptions(list(argv))


def _without_runner(argv: Sequence[str]) -> list[str]:
    kept, skip = [], False
    for a in argv:
        if skip:
            skip = False
        elif a == "--runner":
            skip = True
        elif not a.startswith("--runner="):
            kept.append(a)
    return kept


def runs_elsewhere(options: PipelineOptions) -> bool:
    """Says whether the workers are machines that cannot see this one's files."""
    return (options.view_as(StandardOptions).runner or "").lower() in dataflow.NAMES


def is_local(options: PipelineOptions) -> bool:
    """Says whether a run happens in this process."""
    return options.view_as(StandardOptions).runner == local.RUNNER
