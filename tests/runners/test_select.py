"""The table of runners: which names it knows, what it says about each runner, and what adding one takes."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import SimpleNamespace

import pytest
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

from tests.paths import ROOT
from unisono.runners import dataflow, local, select

CLOUD = ["--project=p", "--region=europe-west1", "--temp_location=gs://b/tmp"]


def runner_of(options: PipelineOptions) -> str | None:
    return options.view_as(StandardOptions).runner


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["--runner", "DirectRunner"],
        ["--runner=directrunner"],
        ["--runner=FnApiRunner"],
        ["--runner", "local"],
        [f"--runner={local.RUNNER}"],
        ["--runner=DirectRunner", "--runner", "local"],
    ],
    ids=" ".join,
)
def test_local_names_and_no_name_are_the_fn_api_runner_in_this_process(argv: list[str]) -> None:
    options = select.options(argv)
    assert runner_of(options) == "apache_beam.runners.portability.fn_api_runner.FnApiRunner"
    assert select.is_local(options)
    assert not select.runs_elsewhere(options)


@pytest.mark.parametrize("name", ["DataflowRunner", "dataflowrunner"])
def test_dataflow_keeps_its_name_and_has_workers_elsewhere(name: str) -> None:
    options = select.options([f"--runner={name}", *CLOUD])
    assert runner_of(options) == name
    assert select.runs_elsewhere(options)
    assert not select.is_local(options)


@pytest.mark.parametrize("name", ["FlinkRunner", "PortableRunner", "Nope"])
def test_a_runner_that_we_do_not_know_is_left_to_beam(name: str) -> None:
    argv = [f"--runner={name}", "--direct_running_mode=multi_threading"]  # `local` would refuse the second option.
    options = select.options(argv)
    assert options.get_all_options(drop_default=True) == PipelineOptions(argv).get_all_options(drop_default=True)
    assert not select.is_local(options)
    assert not select.runs_elsewhere(options)


def test_options_without_a_runner_are_neither_local_nor_elsewhere() -> None:
    options = PipelineOptions([])
    assert not select.is_local(options)
    assert not select.runs_elsewhere(options)


def test_every_file_of_the_folder_is_in_the_table_and_has_what_a_runner_has() -> None:
    files = {p.stem for p in (ROOT / "runners").glob("*.py")} - {"__init__", "select"}
    assert files == set(select._FILES)
    assert {Path(inspect.getfile(r)).stem for r in select.RUNNERS} == files  # type: ignore[arg-type]
    for runner in select.RUNNERS:
        assert runner.NAMES == {name.lower() for name in runner.NAMES} != set()
        assert isinstance(runner.IN_PROCESS, bool)
        assert isinstance(runner.WORKERS_ELSEWHERE, bool)
        assert callable(runner.options)
        assert not (runner.IN_PROCESS and runner.WORKERS_ELSEWHERE)
    names = [name for runner in select.RUNNERS for name in runner.NAMES]
    assert len(names) == len(set(names))


def test_a_runner_is_one_entry_more(monkeypatch: pytest.MonkeyPatch) -> None:
    def options(argv: list[str]) -> PipelineOptions:
        return PipelineOptions([*argv, "--job_name=by-mine"])

    mine = SimpleNamespace(NAMES={"minerunner"}, IN_PROCESS=False, WORKERS_ELSEWHERE=True, options=options)
    monkeypatch.setattr(select, "RUNNERS", (*select.RUNNERS, mine))
    built = select.options(["--runner", "MineRunner"])
    assert built.get_all_options()["job_name"] == "by-mine"
    assert select.runs_elsewhere(built)
    assert not select.is_local(built)
    assert select.find_runner("DataflowRunner") is dataflow


@pytest.mark.parametrize(
    ("argv", "unknown"),
    [
        ([], []),
        (["--runner", "local"], []),
        (["--job_name=x", "--direct_num_workers", "2"], []),
        (["--runid", "x"], ["--runid"]),
        (["--runid=x"], ["--runid"]),
        (["--dry-run"], ["--dry-run"]),
        (["extra"], ["extra"]),
        (["--job_name=x", "one", "two"], ["one", "two"]),
        (["--job_name", "x", "two"], ["two"]),
    ],
    ids=str,
)
def test_unknown_options_and_stray_words_are_named(argv: list[str], unknown: list[str]) -> None:
    assert select.unknown_options(argv) == unknown
