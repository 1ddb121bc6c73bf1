"""The runner for Google Dataflow."""

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
IN_PROCESS = False
WORKERS_ELSEWHERE = True
# The repository's setup.py. Where the package was installed from a wheel, there is no such file.
_SETUP_FILE = Path(__file__).resolve().parents[1] / "setup.py"


def options(argv: Sequence[str]) -> PipelineOptions:
    """Returns Beam's options for a Dataflow job.

    Args:
        argv: options for Beam.

    Raises:
        ValueError: an option that Dataflow requires is missing.
    """
    built = PipelineOptions(list(argv))
    cloud = built.view_as(GoogleCloudOptions)
    missing = [f"--{name}" for name in ("project", "region", "temp_location") if not getattr(cloud, name)]
    if missing:
        raise ValueError(
            f"{', '.join(missing)}: required with --runner DataflowRunner; for example --project my-project "
            "--region europe-west1 --temp_location gs://my-bucket/tmp"
        )
    # With one SDK process on each machine, a machine loads each model once. Our own threads use all its cores.
    debug = built.view_as(DebugOptions)
    debug.add_experiment("no_use_multiple_sdk_containers")
    setup = built.view_as(SetupOptions)
    # A custom image has Unisono installed. In Dataflow's own image, the workers install it from setup.py.
    if not (setup.setup_file or built.view_as(WorkerOptions).sdk_container_image) and _SETUP_FILE.exists():
        setup.setup_file = str(_SETUP_FILE)
    return built
