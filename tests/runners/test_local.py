"""The local runner's options, and that a graph runs under them in this process."""

from __future__ import annotations

import os

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import DirectOptions, StandardOptions
from apache_beam.testing.util import assert_that, equal_to

from unisono.runners import local


@pytest.mark.parametrize(
    ("argv", "workers"),
    [
        ([], 1),
        (["--direct_running_mode=in_memory", "--direct_num_workers=4"], 1),
        (["--direct_running_mode=multi_processing", "--direct_num_workers=4"], 4),
    ],
    ids=["by default", "in memory", "processes"],
)
def test_one_worker_except_with_processes(argv: list[str], workers: int) -> None:
    built = local.options(argv)
    assert built.view_as(StandardOptions).runner == local.RUNNER
    assert built.view_as(DirectOptions).direct_num_workers == workers


def test_threads_are_refused() -> None:
    with pytest.raises(ValueError, match="--direct_running_mode: multi_threading loses elements") as e:
        local.options(["--direct_running_mode", "multi_threading"])
    assert "\n" not in str(e.value)


def test_a_graph_runs_in_this_process() -> None:
    with beam.Pipeline(options=local.options([])) as p:
        assert_that(p | beam.Create([1, 2]) | beam.Map(lambda _: os.getpid()), equal_to([os.getpid()] * 2))
