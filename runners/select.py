"""Picks the engine that `--runner` names."""

from __future__ import annotations

from collections.abc import Sequence

from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

from unisono.runners import dataflow, local


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


def unknown_options(argv: Sequence[str]) -> list[str]:
    """Names what Beam would pass over in silence: options that none of its classes has, and stray words."""
    built = PipelineOptions(list(argv))
    kept = set(built.get_all_options(retain_unknown_options=True)) - set(built.get_all_options())
    names = [a.split("=")[0] for a in argv if a.startswith("-")]
    # Beam's names have underscores only, and a hyphen hides from the difference above.
    options = [n for n in names if n.lstrip("-") in kept or "-" in n[2:]]
    # A word after an option may be its value; any other is stray.
    pairs = zip(["", *argv], argv, strict=False)
    return options + [a for before, a in pairs if not a.startswith("-") and not before.startswith("-")]


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
