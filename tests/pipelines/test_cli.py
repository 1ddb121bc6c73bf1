"""The command line: results, one line on a mistake, exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import unisono as api
from tests.conftest import Run
from tests.paths import ROOT
from tests.small_shop import make_shop, write_job
from unisono.pipelines.cli import main


class Done(NamedTuple):
    """The exit code and the output of a command."""

    returncode: int
    stdout: str
    stderr: str


Command = Callable[..., Done]
WriteJob = Callable[..., str]


def in_a_process(*args: str) -> Done:
    """Runs the command in a process of its own: its output includes what Beam or a library prints."""
    command = [sys.executable, "-m", "unisono.pipelines.cli", *args]
    done = subprocess.run(command, capture_output=True, text=True)
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def unisono(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs the command in this process, which saves seconds of imports."""

    def run_command(*args: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["unisono", *args])
        with pytest.raises(SystemExit) as e:
            main()
        return Done(int(e.value.code or 0), *capsys.readouterr())

    return run_command


def one_line(done: Done, code: int = 1) -> str:
    assert done.returncode == code, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("unisono: error: ")
    return lines[0]


@pytest.fixture
def job(tmp_path: Path) -> WriteJob:
    """Writes a job file over three items of text, with some keys replaced."""
    table = pa.table({"id": ["a", "b", "c"], "t": ["red shoe", "blue hat", "green coat"]})
    pq.write_table(table, tmp_path / "c.parquet")

    def write(**changes: object) -> str:
        body = {"store": "out", "catalog": {"path": "c.parquet", "id": "id", "text": "t"}} | changes
        (tmp_path / "job.yaml").write_text(yaml.safe_dump(body))
        return str(tmp_path / "job.yaml")

    return write


CATALOG = {"path": "c.parquet", "id": "id", "text": "t"}
LOG = {"path": "c.parquet", "user": "id", "item": "id", "time": "t"}
MISTAKES = {
    "missing column": ({"catalog": CATALOG | {"id": "sku"}}, "catalog.id: no column 'sku'"),
    "unknown encoder": (
        {"encoders": {"image": "resnet"}, "catalog": CATALOG | {"image": "t"}},
        "encoders.image.model: 'resnet'",
    ),
    "no such checkpoint": ({"encoders": {"text": {"model": "./nowhere"}}}, "encoders.text.model"),
    "nothing matches": ({"catalog": CATALOG | {"path": "x-*.parquet"}}, "catalog.path"),
    "not Parquet": ({"catalog": CATALOG | {"path": "job.yaml"}}, "job.yaml"),
    "too many axes": ({"space": {"dim": 9999}}, "space.dim: 9999"),
    "unwritable store": ({"store": "/proc/nowhere"}, "store: cannot write to /proc/nowhere"),
    "wrong type": ({"interactions": LOG}, "interactions.time"),
}


@pytest.mark.parametrize(("changes", "said"), MISTAKES.values(), ids=MISTAKES)
def test_a_bad_job_is_one_line_and_exit_code_1(unisono: Command, job: WriteJob, changes: dict, said: str) -> None:
    assert said in one_line(unisono("nightly", "--config", job(**changes)))


def test_a_bad_page_inside_a_file_is_one_line_too(job: WriteJob, tmp_path: Path) -> None:
    path = tmp_path / "c.parquet"
    pq.write_table(pa.table({"id": [f"i{i}" for i in range(5000)], "t": ["x"] * 5000}), path, compression="zstd")
    data = bytearray(path.read_bytes())
    data[200:400] = bytes(200)  # in the first column chunk, so the footer stays good
    path.write_bytes(data)
    line = one_line(in_a_process("embed", "--config", job()))
    assert str(path) in line
    assert "row group 0" in line


def test_multi_threading_is_refused(job: WriteJob) -> None:
    line = one_line(in_a_process("embed", "--config", job(), "--direct_running_mode", "multi_threading"), code=2)
    assert "loses elements" in line


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--runid", "x"), "knows --runid"),
        (("--dry-run",), "knows --dry-run"),
        (("extra",), "knows extra"),
        (("--runner", "Nope"), "--runner"),
    ],
    ids=lambda a: " ".join(a) if isinstance(a, tuple) else "",
)
def test_what_neither_unisono_nor_beam_knows_is_refused(
    unisono: Command, job: WriteJob, args: tuple[str, ...], said: str
) -> None:
    assert said in one_line(unisono("nightly", "--config", job(), *args), code=2)


def test_titles_that_look_like_markup_are_shown_as_they_are(unisono: Command, job: WriteJob, tmp_path: Path) -> None:
    titles = ["Screw [M4] lamp", "Screw [/M4] bolt", "Nut :smile: lamp"]
    pq.write_table(pa.table({"id": ["a[x]", "b", "c"], "t": titles}), tmp_path / "c.parquet")
    assert unisono("embed", "--config", job()).returncode == 0
    shown = unisono("search", "--store", str(tmp_path / "out"), "--text", "lamp").stdout
    assert all(t in shown for t in [*titles, "a[x]"])


@pytest.mark.parametrize("lost", ["items", "space", "config.yaml", "manifest.json"])
def test_search_in_a_damaged_run_is_one_line(unisono: Command, job: WriteJob, tmp_path: Path, lost: str) -> None:
    assert unisono("embed", "--config", job(), "--run-id", "r").returncode == 0
    run_dir = tmp_path / "out/runs/r"
    if lost == "manifest.json":
        (run_dir / lost).write_text('{"run_id": ')
    else:
        for path in [run_dir / lost] if lost.endswith(".yaml") else (run_dir / lost).iterdir():
            path.unlink()
    line = one_line(unisono("search", "--store", str(tmp_path / "out"), "--text", "shoe"))
    assert lost.split(".")[0] in line


@pytest.mark.parametrize("lost", ["users", "config.yaml"])
def test_explain_in_a_damaged_run_is_one_line(unisono: Command, tmp_path: Path, lost: str) -> None:
    job = str(write_job(make_shop(tmp_path), "s"))
    assert unisono("nightly", "--config", job, "--run-id", "r").returncode == 0
    at = ("--store", str(tmp_path / "s"), "--user", "u1", "--item", "i1")
    assert unisono("explain", *at).returncode == 0
    path = tmp_path / "s/runs/r" / lost
    for file in path.iterdir() if path.is_dir() else [path]:
        file.unlink()
    assert lost in one_line(unisono("explain", *at))


# --- each command is the function of the same name ---------------------------------------------------------


RUNS: dict[str, dict[str, Any]] = {
    "nightly": {},
    "embed": {"users": False},
    "profile": {"items": False, "users": True, "recommend": False},
    "recommend": {"items": False, "users": False, "recommend": True},
}


@pytest.mark.parametrize("command", RUNS)
def test_a_run_is_handed_to_the_api(unisono: Command, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    calls = []
    monkeypatch.setattr(api, "run", lambda *args, **kwargs: calls.append((args, kwargs)))
    assert unisono(command, "--config", "job.yaml", "--run-id", "x", "--runner", "DirectRunner").returncode == 0
    assert calls == [(("job.yaml", "x"), RUNS[command] | {"beam_options": ["--runner", "DirectRunner"]})]


def test_search_and_explain_print_what_the_api_returns(unisono: Command, run: Run) -> None:
    opened = api.open(run.store.root)
    user, item = opened.users(["user_id"])["user_id"][0].as_py(), opened.items(["item_id"])["item_id"][0].as_py()
    at = ("--store", run.store.root)
    hits = json.loads(unisono("search", *at, "--item", item, "-k", "4", "--json").stdout)
    expected = opened.search(item=item, k=4).to_pylist()
    assert [h["item_id"] for h in hits] == [h["item_id"] for h in expected]
    assert [h["score"] for h in hits] == pytest.approx([h["score"] for h in expected], abs=5e-5)
    assert list(hits[0]) == ["rank", "score", "item_id", "title", "modalities"]
    found = json.loads(unisono("explain", *at, "--user", user, "--item", item, "--json").stdout)
    assert found == json.loads(json.dumps(asdict(opened.explain(user, item))))
    shown = unisono("explain", *at, "--user", user, "--item", item, "--events", "1").stdout
    assert f"score {found['score']:.4f} by {found['query']}" in shown
    assert f"{len(found['events']) - 1} more events" in shown


def test_help_and_version_load_nothing_heavy() -> None:
    code = """
import sys
sys.argv = ["unisono", "--help"]
from unisono.pipelines import cli
try:
    cli.main()
except SystemExit as e:
    assert e.code == 0
heavy = ("apache_beam", "numpy", "pyarrow", "pydantic", "torch")
print("heavy:", *[m for m in sys.modules if m.split(".")[0] in heavy])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(command in done.stdout for command in (*RUNS, "search", "explain", "evaluate", "demo"))
    assert done.stdout.splitlines()[-1] == "heavy:"


def test_embed_says_what_it_made_and_logs_off_a_terminal(job: WriteJob) -> None:
    done = in_a_process("embed", "--config", job(), "--run-id", "first", "--runner", "DirectRunner")
    assert done.returncode == 0, done.stderr
    assert "item vectors" in done.stdout
    assert done.stdout.strip().endswith("runs/first")
    assert "\x1b" not in done.stdout + done.stderr  # no terminal codes in a log


def test_profile_without_a_log(unisono: Command, job: WriteJob) -> None:
    assert "interactions: missing" in one_line(unisono("profile", "--config", job()))


@pytest.mark.parametrize("kind", ["text", "image", "audio", "item"])
def test_search(unisono: Command, run: Run, kind: str) -> None:
    catalog = {r["item_id"]: r for r in pq.read_table(run.shop.catalog).to_pylist()}
    faulty = set(pq.read_table(run.shop.truth_faults)["item_id"].to_pylist())
    item = next(i for i, r in catalog.items() if i not in faulty and all(r.values()))
    media = {k: str(run.shop.directory / catalog[item][f"{k}_uri"]) for k in ("image", "audio")}
    query = {"text": catalog[item]["title"], "item": item, **media}[kind]
    done = unisono("search", "--store", run.store.root, f"--{kind}", query, "-k", "5", "--json")
    assert done.returncode == 0, done.stderr
    hits = json.loads(done.stdout)
    assert [h["rank"] for h in hits] == [1, 2, 3, 4, 5]
    assert [h["score"] for h in hits] == sorted((h["score"] for h in hits), reverse=True)
    assert all(h["title"] == catalog[h["item_id"]]["title"] and h["modalities"] for h in hits)
    if kind == "item":
        assert item not in {h["item_id"] for h in hits}
    else:
        assert hits[0]["item_id"] == item  # an item is found by its own title, picture or sound


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--item", "nope"), "no item 'nope'"),
        (("--text", "a", "--item", "b"), "exactly one"),
        ((), "exactly one"),
        (("--image", "/nowhere.png"), "cannot read /nowhere.png"),
        (("--audio", str(ROOT / "README.md")), "audio: not_audio"),
    ],
    ids=["item", "two", "none", "missing file", "not audio"],
)
def test_a_query_that_cannot_be_used_is_one_line(unisono: Command, run: Run, args: tuple[str, ...], said: str) -> None:
    assert said in one_line(unisono("search", "--store", run.store.root, *args))


def test_search_in_an_empty_store(unisono: Command, tmp_path: Path) -> None:
    assert "has no published run" in one_line(unisono("search", "--store", str(tmp_path), "--text", "x"))
