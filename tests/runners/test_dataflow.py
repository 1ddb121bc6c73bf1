"""Dataflow's options: what is required, and the setup.py from which the workers install Unisono."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from apache_beam.options.pipeline_options import DebugOptions, SetupOptions

from tests.paths import ROOT
from unisono.runners import dataflow

RUNNER = "--runner=DataflowRunner"
REQUIRED = {"--project": "p", "--region": "europe-west1", "--temp_location": "gs://b/tmp"}
GIVEN = [RUNNER, *(f"{name}={value}" for name, value in REQUIRED.items())]


@pytest.mark.parametrize("missing", REQUIRED)
def test_each_required_option_is_named_when_it_is_missing(missing: str) -> None:
    argv = [a for a in GIVEN if not a.startswith(missing)]
    with pytest.raises(ValueError, match=f"^{missing}: required with --runner DataflowRunner; for example ") as e:
        dataflow.options(argv)
    assert "\n" not in str(e.value)


def test_all_missing_options_are_named_at_once() -> None:
    with pytest.raises(ValueError, match=r"^--project, --region, --temp_location: required"):
        dataflow.options([RUNNER])


def test_a_machine_has_one_process_and_so_one_copy_of_each_model() -> None:
    experiments = dataflow.options(GIVEN).view_as(DebugOptions).experiments
    assert "no_use_multiple_sdk_containers" in experiments


def test_the_workers_install_unisono_from_this_repository() -> None:
    setup = dataflow.options(GIVEN).view_as(SetupOptions).setup_file
    assert Path(setup) == ROOT / "setup.py"
    assert 'name="unisono"' in Path(setup).read_text()


@pytest.mark.parametrize(
    ("argv", "setup"),
    [(["--setup_file=/mine/setup.py"], "/mine/setup.py"), (["--sdk_container_image=mine:1"], None)],
    ids=["another setup.py", "an image that has Unisono"],
)
def test_what_the_user_gives_is_kept(argv: list[str], setup: str | None) -> None:
    assert dataflow.options([*GIVEN, *argv]).view_as(SetupOptions).setup_file == setup


SAY = f"""
from apache_beam.options.pipeline_options import SetupOptions
from unisono.runners import dataflow
print(dataflow.__file__)
print(dataflow.options({GIVEN!r}).view_as(SetupOptions).setup_file)
"""


def said_from(site: Path, cwd: Path) -> list[str]:
    """Runs `SAY` in a Python that finds Unisono in `site` before any other."""
    code = f"import sys; sys.path.insert(0, {str(site)!r})\n{SAY}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
def test_an_installed_wheel_has_no_setup_file_to_give(tmp_path: Path) -> None:
    source, site = tmp_path / "source", tmp_path / "site"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("unisono", "transforms", "pipelines", "runners"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "setup.py", "-q", "bdist_wheel", "-d", str(tmp_path / "wheels")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=source)
    assert done.returncode == 0, done.stderr
    (wheel,) = (tmp_path / "wheels").glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(site)
    (site / "setup.py").write_text("raise SystemExit('the setup.py of some other package')")
    assert said_from(site, tmp_path) == [str(site / "unisono/runners/dataflow.py"), "None"]


def test_a_checkout_seen_through_links_finds_its_setup_file(tmp_path: Path) -> None:
    """This is how `make types` lays out the packages."""
    (tmp_path / "unisono").mkdir()
    (tmp_path / "unisono/__init__.py").write_text("")
    for name in ("transforms", "pipelines", "runners"):
        (tmp_path / "unisono" / name).symlink_to(ROOT / name)
    assert said_from(tmp_path, tmp_path) == [str(tmp_path / "unisono/runners/dataflow.py"), str(ROOT / "setup.py")]
