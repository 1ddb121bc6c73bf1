"""Finds the runner that `--runner` names.

To add a runner, write its file in this folder, with everything that `Runner` lists, and add the file to `_FILES`.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from importlib import import_module
from typing import Protocol, cast

from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

_FILES = (
    "local",
    "dataflow",
)
_DEFAULT = "local"  # the runner if `--runner` is not given


class Runner(Protocol):
    """The contents of a runner's file."""

    @property
    def NAMES(self) -> AbstractSet[str]:
        """The values of `--runner` that mean this runner, in lower case."""

    @property
    def IN_PROCESS(self) -> bool:
        """True if the run happens in this process, so that its progress can be shown here."""

    @property
    def WORKERS_ELSEWHERE(self) -> bool:
        """True if the workers are other machines, which cannot see this machine's files."""

    def options(self, argv: Sequence[str]) -> PipelineOptions:
        """Returns Beam's options for this runner.

        Raises:
            ValueError: an option is wrong or missing.
        """


RUNNERS = tuple(cast(Runner, import_module(f"unisono.runners.{name}")) for name in _FILES)


def find_runner(name: str | None) -> Runner | None:
    """Returns the runner of this name; None means that Unisono does not know it, but Beam may."""
    return next((r for r in RUNNERS if name is not None and name.lower() in r.NAMES), None)


def options(argv: Sequence[str]) -> PipelineOptions:
    """Returns Beam's options for the runner that the command line asks for.

    Args:
        argv: options for Beam. Without `--runner`, the run is local.

    Raises:
        ValueError: an option of the runner is wrong or missing.
    """
    asked = PipelineOptions(list(argv))
    runner = find_runner(asked.view_as(StandardOptions).runner or _DEFAULT)
    return runner.options(argv) if runner else asked


def unknown_options(argv: Sequence[str]) -> list[str]:
    """Lists options that no class of Beam has, and stray words: Beam would ignore both in silence."""
    built = PipelineOptions(list(argv))
    kept = set(built.get_all_options(retain_unknown_options=True)) - set(built.get_all_options())
    names = [a.split("=")[0] for a in argv if a.startswith("-")]
    # No option of Beam has a hyphen. In `kept` an unknown option with hyphens has underscores instead.
    options = [n for n in names if n.lstrip("-") in kept or "-" in n[2:]]
    # A word after an option without "=" may be the option's value; any other word is stray.
    pairs = zip(["", *argv], argv, strict=False)
    return options + [a for before, a in pairs if a[:1] != "-" and (before[:1] != "-" or "=" in before)]


def runs_elsewhere(options: PipelineOptions) -> bool:
    """Returns True if the workers are other machines, which cannot see this machine's files."""
    runner = find_runner(options.view_as(StandardOptions).runner)
    return runner is not None and runner.WORKERS_ELSEWHERE


def is_local(options: PipelineOptions) -> bool:
    """Returns True if the run happens in this process."""
    runner = find_runner(options.view_as(StandardOptions).runner)
    return runner is not None and runner.IN_PROCESS
