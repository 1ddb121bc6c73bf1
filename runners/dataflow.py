"""On Google Dataflow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from apache_beam.options.pipeline_options import (
    DebugOptions,
    GoogleCloudOptions,
    PipelineOptions,
    SetupOptions,
    WorkerOptions,
)

NAMES = {"dataflowrunner", "apache_beam.runners.dataflow.dataflow_runner.dataflowrunner"}
_SETUP_FILE = Path(__file__).resolve().parents[1] / "setup.py"


def options(argv: Sequence[str]) -> PipelineOptions:
    """Beam's options for a Dataflow job.

    Raises:
        ValueError: an option without which Dataflow takes no job is missing.
    """
    built = PipelineOptions(list(argv))
    cloud = built.view_as(GoogleCloudOptions)
    missing = [f"--{name}" for name in ("project", "region", "temp_location") if not getattr(cloud, name)]
    if missing:
        raise ValueError(
            f"{', '.join(missing)}: required with --runner DataflowRunner; for example --project my-project "
            "--region europe-west1 --temp_location gs://my-bucket/tmp"
        )
    # One SDK process a machine, so that a machine holds one copy of each model; our own threads use its cores.
    debug = built.view_as(DebugOptions)
    debug.add_experiment("no_use_multiple_sdk_containers")
    setup = built.view_as(SetupOptions)
    if not (setup.setup_file or built.view_as(WorkerOptions).sdk_container_image) and _SETUP_FILE.exists():
        setup.setup_file = str(_SETUP_FILE)  # a custom image has the package already
    return built
