"""The wheel and the source archive: their contents, and that they work beside packages named as our folders."""

from __future__ import annotations

import email
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.paths import ROOT

FOLDERS = ("transforms", "pipelines", "runners")
FILES = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")
CACHE = "left_by_numba.nbi"  # the name of a file that a compiled loop leaves in a __pycache__
ITEMS = 60
# The build backend called as pip calls it, in this environment: it needs no package index.
BUILD_WHEEL = "import sys, setuptools.build_meta as b; print(b.build_wheel(sys.argv[1]))"
WHERE = "import unisono, unisono.transforms.base.errors as e; print(unisono.__file__); print(e.__file__)"


def call(command: list[str], cwd: Path, **env: str) -> str:
    """Runs a command without this process's import path and returns its standard output."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PYTEST"))}
    done = subprocess.run(command, cwd=cwd, env=kept | env, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def source_files(root: Path) -> set[str]:
    """The files of our packages, named as they are imported: `unisono/…`."""
    found = {p for f in (*FOLDERS, "unisono") for p in (root / f).rglob("*") if p.is_file()}
    inside = {p.relative_to(root) for p in found if "__pycache__" not in p.parts}
    return {p.as_posix() if p.parts[0] == "unisono" else f"unisono/{p.as_posix()}" for p in inside}


def build_wheel(tree: Path, out: Path) -> Path:
    """Builds the wheel of a source tree."""
    name = call([sys.executable, "-c", BUILD_WHEEL, str(out)], tree).splitlines()[-1]
    return out / name


def wheel_of(name: str, folder: Path) -> Path:
    """Makes a wheel of somebody else's package. Importing that package fails."""
    path, info = folder / f"{name}-1.0-py3-none-any.whl", f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as z:
        z.writestr(f"{name}/__init__.py", "raise ImportError('the package of somebody else')\n")
        z.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        z.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        z.writestr(f"{info}/RECORD", "".join(f"{n},,\n" for n in (*z.namelist(), f"{info}/RECORD")))
    return path


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean copy of everything that is packaged, with a file in it as numba leaves one."""
    copy = tmp_path_factory.mktemp("tree")
    for name in FILES:
        shutil.copy(ROOT / name, copy / name)
    for name in (*FOLDERS, "unisono"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    cache = copy / "transforms" / "base" / "__pycache__"
    cache.mkdir()
    (cache / CACHE).touch()
    return copy


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tree, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive that Beam's stager makes for `--setup_file` if the package `build` is not installed."""
    out = tmp_path_factory.mktemp("sdist")
    call([sys.executable, "setup.py", "sdist", "--dist-dir", str(out)], tree)
    (archive,) = out.glob("*.tar.gz")
    return archive


@pytest.fixture(scope="module")
def scratch(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with our wheel and, installed after it, packages of other people with the names of our folders.

    The dependencies come from this environment's site-packages: a .pth file appends them to the import path. Python
    does not read further .pth files there, so an editable installation of ours has no effect.
    """
    base = tmp_path_factory.mktemp("scratch")
    call([sys.executable, "-m", "venv", "--without-pip", str(base / "env")], base)
    python = base / "env" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", "--no-index"]
    for path in (wheel, *(wheel_of(name, base) for name in FOLDERS)):
        call([*pip, str(path)], base)
    site = Path(call([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], base).strip())
    for name in FOLDERS:
        assert "somebody else" in (site / name / "__init__.py").read_text()
    ours = {sysconfig.get_path(kind) for kind in ("purelib", "platlib")}
    (site / "dependencies.pth").write_text("".join(f"{path}\n" for path in sorted(ours)))
    return base


@pytest.fixture(scope="module")
def demo(scratch: Path) -> Path:
    """The store that `unisono demo` makes in the scratch environment, run from a directory without our source tree."""
    call([str(scratch / "env" / "bin" / "unisono"), "demo", "--items", str(ITEMS)], scratch)
    return scratch / "out" / "demo" / "store"


def part(store: Path, name: str) -> pa.Table:
    """One part of the published run, all shards."""
    run_id = (store / "LATEST").read_text().strip()
    return pa.concat_tables([pq.read_table(p) for p in sorted((store / "runs" / run_id / name).glob("*.parquet"))])


def test_a_wheel_holds_every_file_of_ours_under_one_name(tree: Path, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as z:
        names = {n for n in z.namelist() if not n.endswith("/")}
    info = {n for n in names if n.split("/")[0].endswith(".dist-info")}
    assert {n.split("/")[0] for n in names - info} == {"unisono"}
    assert names - info == source_files(tree)
    assert "unisono/py.typed" in names
    assert any(n.endswith("/licenses/LICENSE") for n in info)
    assert not any(n.endswith(CACHE) for n in names)


def test_a_wheel_says_whose_it_is_and_on_which_terms(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as z:
        (name,) = (n for n in z.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = z.read(name).decode()
    head, _, readme = metadata.partition("\n\n")
    assert "License-Expression: Apache-2.0" in head
    assert "Author: the Unisono developers" in head
    assert readme.startswith("# Unisono")


def test_the_constraints_name_a_version_of_every_requirement(wheel: Path) -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))  # each line is name==version
    versions = {canonicalize_name(name): version for name, version in pinned.items()}
    with zipfile.ZipFile(wheel) as z:
        (name,) = (n for n in z.namelist() if n.endswith(".dist-info/METADATA"))
        found = email.message_from_bytes(z.read(name)).get_all("Requires-Dist", [])
    assert found
    for required in map(Requirement, found):
        if required.name == "unisono":  # an extra that is made of other extras
            continue
        assert versions[canonicalize_name(required.name)] in required.specifier, required


def test_an_sdist_builds_the_same_wheel(tree: Path, wheel: Path, sdist: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as t:
        t.extractall(tmp_path, filter="data")
    (inside,) = (p for p in tmp_path.iterdir() if p.is_dir())
    made = {p.name for p in inside.iterdir()} - {"PKG-INFO", "setup.cfg", "unisono.egg-info"}
    assert made == {*FOLDERS, "unisono", *FILES}
    (tmp_path / "out").mkdir()
    again = build_wheel(inside, tmp_path / "out")
    with zipfile.ZipFile(wheel) as a, zipfile.ZipFile(again) as b:
        assert again.name == wheel.name
        assert sorted(a.namelist()) == sorted(b.namelist())
        ours = [n for n in a.namelist() if n.startswith("unisono/") and not n.endswith("/")]
        assert all(a.read(n) == b.read(n) for n in ours)


@pytest.mark.slow
def test_an_installed_wheel_runs_the_demo_beside_packages_of_the_same_names(scratch: Path, demo: Path) -> None:
    python = scratch / "env" / "bin" / "python"
    for line in call([str(python), "-c", WHERE], scratch).splitlines():
        assert Path(line).is_relative_to(scratch / "env")
    items, letters = part(demo, "items"), part(demo, "dead_letters").to_pylist()
    assert items.num_rows + sum(letter["stage"] == "catalog" for letter in letters) == ITEMS
    assert part(demo, "users").num_rows > 0
    assert part(demo, "recommendations").num_rows == part(demo, "users").num_rows


@pytest.mark.slow
def test_an_installed_wheel_answers_as_a_module(scratch: Path, wheel: Path) -> None:
    python = scratch / "env" / "bin" / "python"
    version = call([str(python), "-m", "unisono.pipelines.cli", "--version"], scratch).strip()
    assert wheel.name.startswith(f"unisono-{version}-")


@pytest.mark.slow
def test_worker_processes_import_the_installed_wheel(scratch: Path, demo: Path) -> None:
    before = part(demo, "items")
    command = [str(scratch / "env" / "bin" / "unisono"), "nightly", "--run-id", "two-workers"]
    command += ["--config", str(demo.parent / "job.yaml")]
    call([*command, "--direct_running_mode=multi_processing", "--direct_num_workers=2"], scratch)
    assert (demo / "LATEST").read_text().strip() == "two-workers"
    assert part(demo, "items")["item_id"].equals(before["item_id"])


def test_mypy_refuses_a_wrong_type_through_the_folder_of_links(tmp_path: Path) -> None:
    """Without the links mypy takes every import of ours for `Any` and finds no fault in anything."""
    call(["make", "-s", "types", f"TYPES={tmp_path / 'types' / 'unisono'}"], ROOT)
    right = "from unisono.transforms.base.errors import InputError, Reason\nInputError(Reason.NOT_FOUND, 'no file')\n"
    (tmp_path / "wrong.py").write_text(right + "InputError('not_found', 1)\n")
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), "--no-error-summary"]
    command += ["--cache-dir", str(tmp_path / "cache"), str(tmp_path / "wrong.py")]
    env = os.environ | {"MYPYPATH": str(tmp_path / "types")}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    said = done.stdout.splitlines()
    assert done.returncode == 1, done.stdout + done.stderr
    assert len(said) == 2, said
    assert all(line.startswith("wrong.py:3: error: Argument") and "[arg-type]" in line for line in said), said
