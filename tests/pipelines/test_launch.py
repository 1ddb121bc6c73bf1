"""Launching a graph: errors as one line, what other machines cannot reach, and nothing left behind in this process."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from apache_beam.testing.util import assert_that, equal_to

from tests.paths import ROOT
from unisono.pipelines import cli, launch
from unisono.pipelines.launch import beam_options, run_job
from unisono.runners import local
from unisono.transforms.base.errors import JobError, Reason, UsageError
from unisono.transforms.base.progress import BOARD, advance
from unisono.transforms.store.runs import Store

DATAFLOW = ["--runner=DataflowRunner", "--project=p", "--region=europe-west1", "--temp_location=gs://b/tmp"]


@pytest.fixture
def job(tmp_path: Path):
    pq.write_table(pa.table({"id": ["a", "b", "c"], "t": ["red", "blue", "green"]}), tmp_path / "c.parquet")

    def write(**changes: object) -> str:
        body = {"store": "out", "catalog": {"path": "c.parquet", "id": "id", "text": "t"}} | changes
        (tmp_path / "job.yaml").write_text(json.dumps(body))
        return str(tmp_path / "job.yaml")

    return write


# --- a graph -----------------------------------------------------------------------------------------------


def run(do, elements: list[int], argv: list[str] | None = None, totals: dict[str, int] | None = None) -> None:
    """Launches a graph that calls a function on each element."""
    launch.launch(
        lambda root: root | beam.Create(elements) | beam.Reshuffle() | beam.Map(do),
        local.options(argv or []),
        totals or {},
    )


def fail(element: int) -> None:
    if element == 3:
        raise JobError("catalog.path: /c.parquet: row group 3 cannot be read; write the file again")


@pytest.mark.parametrize(
    "argv",
    [[], ["--direct_running_mode=multi_processing", "--direct_num_workers=1"]],
    ids=["in this process", "in another process"],
)
def test_a_job_error_of_a_worker_is_its_one_line(argv: list[str]) -> None:
    with pytest.raises(JobError) as e:
        run(fail, [1, 2, 3, 4], argv)
    assert str(e.value) == "catalog.path: /c.parquet: row group 3 cannot be read; write the file again"


@pytest.mark.parametrize(
    "text",
    [
        "Error processing instruction 7. Original traceback is\nTraceback (most recent call last):\n  File x\n"
        "unisono.transforms.base.errors.JobError: store: no room [while running 'Write/Write-ptransform-12']\n",
        "RuntimeError('unisono.transforms.base.errors.JobError: store: no room\\n [while running Write]')",
        "unisono.transforms.base.errors.JobError: store: no room",
        "unisono.transforms.base.errors.JobError: store: no room\nduring handling of this error",
    ],
    ids=["traceback", "escaped", "alone", "more lines"],
)
def test_a_job_error_is_found_in_the_text_that_beam_raises(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def raised(*_: object) -> None:
        raise RuntimeError(text)

    monkeypatch.setattr(beam.Pipeline, "run", raised)
    with pytest.raises(JobError) as e:
        run(int, [1])
    assert str(e.value) == "store: no room"
    assert isinstance(e.value.__cause__, RuntimeError)


def test_any_other_error_is_raised_as_it_is() -> None:
    def break_down(element: int) -> None:
        raise ZeroDivisionError(f"element {element}")

    with pytest.raises(ZeroDivisionError, match="element 1"):
        run(break_down, [1])


@pytest.mark.parametrize("name", ["Nope", "NopeRunner"])
def test_a_runner_that_beam_does_not_know_is_a_usage_error(name: str) -> None:
    with pytest.raises(UsageError, match=r"^command line: --runner: ") as e:
        launch.launch(lambda root: root, PipelineOptions([f"--runner={name}"]), {})
    assert "\n" not in str(e.value)


def test_a_local_run_clears_the_board_and_shows_its_own_stages(capsys: pytest.CaptureFixture[str]) -> None:
    BOARD.add("an earlier run", 5, 0)
    run(lambda n: advance("encode-text", done=n), [1, 2, 3], totals={"encode-text": 6})
    assert list(BOARD.snapshot()) == ["encode-text"]
    assert BOARD.snapshot()["encode-text"].done == 6
    assert "\x1b" not in capsys.readouterr().err


# --- nothing left behind -----------------------------------------------------------------------------------


def log_state() -> dict[str, tuple[int, list]]:
    names = ("apache_beam", *launch._WORKER_LOGS, "")
    return {name: (logging.getLogger(name).level, list(logging.getLogger(name).filters)) for name in names}


@pytest.mark.parametrize("elements", [[1, 2], [3]], ids=["done", "failed"])
def test_log_levels_and_filters_are_as_before(elements: list[int]) -> None:
    beam_log = logging.getLogger("apache_beam")
    before_level = beam_log.level
    beam_log.setLevel(logging.INFO)
    try:
        before = log_state()
        if elements == [3]:
            with pytest.raises(JobError):
                run(fail, elements)
        else:
            run(fail, elements)
        assert log_state() == before
    finally:
        beam_log.setLevel(before_level)


def beam_warns(_: object = None) -> bool:
    return logging.getLogger("apache_beam.something").isEnabledFor(logging.WARNING)


def test_beam_is_quiet_only_during_the_run() -> None:
    def build(root: beam.Pipeline) -> None:
        assert_that(root | beam.Create([1]) | beam.Map(beam_warns), equal_to([False]))

    assert beam_warns()
    launch.launch(build, local.options([]), {})
    assert beam_warns()


def test_the_traceback_of_a_job_error_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(JobError):
        run(fail, [3])
    assert not [r for r in caplog.records if "JobError" in r.getMessage() or r.exc_info]


def test_the_command_leaves_the_warning_filters_alone(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["unisono", "--version"])
    before = list(warnings.filters)
    with pytest.raises(SystemExit) as e:
        cli.main()
    assert e.value.code in (0, None)
    assert warnings.filters == before
    assert capsys.readouterr().out.strip()


def test_importing_the_launcher_changes_no_logger_of_beam() -> None:
    code = """
    import logging
    import apache_beam.options.pipeline_options, apache_beam.io.filesystems

    def state():
        loggers = {k: v for k, v in logging.Logger.manager.loggerDict.items() if isinstance(v, logging.Logger)}
        return {k: (v.level, v.filters, v.disabled) for k, v in loggers.items() if k.startswith("apache_beam")}

    before, disabled = state(), logging.root.manager.disable
    import unisono.pipelines.launch, unisono.pipelines.cli
    after = state()
    assert {k: after[k] for k in before} == before
    assert not any(level or filters or off for k, (level, filters, off) in after.items() if k not in before)
    assert logging.root.manager.disable == disabled
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


# --- options -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--runid", "x"], "neither unisono nor Beam knows --runid; see `unisono nightly --help`"),
        (["--job_name=x", "stray"], "neither unisono nor Beam knows stray; see"),
        (["--direct_running_mode=multi_threading"], "--direct_running_mode: multi_threading loses elements"),
        (["--runner=DataflowRunner"], "--project, --region, --temp_location: required with --runner DataflowRunner"),
    ],
    ids=["unknown", "stray", "threads", "incomplete"],
)
def test_wrong_options_are_usage_errors_in_one_line(argv: list[str], says: str) -> None:
    with pytest.raises(UsageError, match=f"^command line: {says}") as e:
        beam_options(argv)
    assert "\n" not in str(e.value)


def test_good_options_reach_beam() -> None:
    assert beam_options([]).view_as(StandardOptions).runner == local.RUNNER
    built = beam_options(["--direct_running_mode=multi_processing", "--direct_num_workers=3"])
    assert built.get_all_options()["direct_num_workers"] == 3


# --- a job -------------------------------------------------------------------------------------------------


def test_a_run_returns_its_manifest_and_prints_it(job, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = run_job(job(), "first", [], items=True, users=False)
    assert manifest == Store(str(tmp_path / "out")).published()
    assert manifest.run_id == "first"
    assert f"published {tmp_path}/out/runs/first" in capsys.readouterr().out


def test_a_job_that_is_only_submitted_has_no_manifest(
    job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launch, "launch", lambda *_: None)  # as a runner that does not wait
    assert run_job(job(), "later", [], items=True, users=False) is None
    said = capsys.readouterr()
    assert said.err == "submitted run later\n"
    assert said.out == ""


def test_a_wrong_option_is_refused_before_the_store_is_touched(job, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        run_job(job(), "r", ["--runid", "x"], items=True, users=False)
    assert not (tmp_path / "out").exists()


REMOTE: dict[str, Any] = {
    "store": "gs://b/store",
    "catalog": {"path": "gs://b/c.parquet", "id": "id", "text": "t", "image": "i", "media_root": "gs://b/media"},
    "interactions": {"path": "gs://b/log.parquet", "user": "u", "item": "i", "time": "t"},
    "privacy": {"forget": "gs://b/forget.parquet"},
}
LOCAL = {
    "store": ({"store": "/here"}, r"store: /here"),
    "catalogue": ({"catalog": REMOTE["catalog"] | {"path": "/c.parquet"}}, r"catalog\.path: /c\.parquet"),
    "log": ({"interactions": REMOTE["interactions"] | {"path": "/l.parquet"}}, r"interactions\.path: /l\.parquet"),
    "media": ({"catalog": REMOTE["catalog"] | {"media_root": "/media"}}, r"catalog\.media_root: /media"),
    "forget": ({"privacy": {"forget": "/f.parquet"}}, r"privacy\.forget: /f\.parquet"),
}


@pytest.mark.parametrize(("change", "says"), LOCAL.values(), ids=LOCAL)
def test_paths_that_dataflow_cannot_reach_are_named(job, change: dict, says: str) -> None:
    path = job(**REMOTE | change)
    with pytest.raises(JobError, match=f"^{says} is on this machine, and Dataflow's workers cannot see it; use gs://$"):
        run_job(path, "r", DATAFLOW, items=True, users=True)


def test_local_media_do_not_matter_without_a_media_column(job, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = {k: v for k, v in REMOTE["catalog"].items() if k != "image"} | {"media_root": "/media"}

    def reached(*_: object, **__: object) -> None:
        raise InterruptedError

    monkeypatch.setattr(launch, "plan_run", reached)
    with pytest.raises(InterruptedError):
        run_job(job(**REMOTE | {"catalog": catalog}), "r", DATAFLOW, items=True, users=True)


@pytest.mark.parametrize("image", [None, "--sdk_container_image=mine:1"])
def test_pseudonyms_need_an_image_that_has_the_key(job, monkeypatch: pytest.MonkeyPatch, image: str | None) -> None:
    def reached(*_: object, **__: object) -> None:
        raise InterruptedError

    monkeypatch.setattr(launch, "plan_run", reached)
    path = job(**REMOTE | {"privacy": {"pseudonyms": {"key_env": "SOME_KEY"}}})
    with pytest.raises(InterruptedError if image else JobError) as e:
        run_job(path, "r", [*DATAFLOW, *([image] if image else [])], items=True, users=True)
    if not image:
        assert str(e.value).startswith("privacy.pseudonyms: SOME_KEY does not travel with the job, ")
        assert "--sdk_container_image" in str(e.value)


# --- exit codes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raised", "code", "says"),
    [
        (None, 0, ""),
        (JobError("store: full; free space"), 1, "unisono: error: store: full; free space\n"),
        (UsageError("command line: --runner: no"), 2, "unisono: error: command line: --runner: no\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
    ids=["done", "job", "command line", "interrupted"],
)
def test_exit_codes(job, monkeypatch: pytest.MonkeyPatch, capsys, raised, code: int, says: str) -> None:
    def run_job(*_: object, **__: object) -> None:
        if raised:
            raise raised

    monkeypatch.setattr(launch, "run_job", run_job)
    monkeypatch.setattr(sys, "argv", ["unisono", "embed", "--config", job()])
    with pytest.raises(SystemExit) as e:
        cli.main()
    assert (e.value.code or 0) == code
    assert capsys.readouterr().err == says


def test_an_error_in_the_code_is_not_hidden(job, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_job(*_: object, **__: object) -> None:
        raise ZeroDivisionError(Reason.NOT_FOUND)

    monkeypatch.setattr(launch, "run_job", run_job)
    monkeypatch.setattr(sys, "argv", ["unisono", "embed", "--config", job()])
    with pytest.raises(ZeroDivisionError):
        cli.main()
