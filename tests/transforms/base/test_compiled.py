"""Compiled loops: kept on disk, shared by processes, and never the reason that a run fails."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unisono.transforms.rank import topk_kernels

# Each script runs in a process of its own. It writes a module with two compiled loops, calls one of them, and prints
# its result and whether the machine code came from the disk.
LOOPS = '''
import numpy as np
from unisono.transforms.base.compiled import compiled

@compiled
def total(values):
    sum = 0.0
    for v in values:
        sum += twice(v)
    return sum

@compiled
def twice(v):
    return 2 * v
'''
CALL = '''
import logging, sys
import numpy as np
logging.basicConfig(level=logging.WARNING, format="%(message)s")
sys.path.insert(0, sys.argv[1])
import loops
values = np.arange(5, dtype=sys.argv[2])
print(loops.total(values), sum(loops.total.stats.cache_hits.values()))
'''


def start(folder: Path, dtype: str = "float64", **env: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", CALL, str(folder), dtype], env={**os.environ, **env}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def end(process: subprocess.Popen) -> tuple[str, str]:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out.strip(), err


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "loops.py").write_text(LOOPS)
    return tmp_path


def test_a_later_process_reads_what_an_earlier_one_compiled(folder: Path) -> None:
    assert end(start(folder)) == ("20.0 0", "")
    assert end(start(folder)) == ("20.0 1", "")
    assert end(start(folder, "int64")) == ("20.0 0", "")  # other types are compiled too
    assert end(start(folder, "int64")) == ("20.0 1", "")
    assert list((folder / "__pycache__").glob("loops.total-*.nbc"))


def test_a_changed_file_is_compiled_anew(folder: Path) -> None:
    assert end(start(folder))[0] == "20.0 0"
    (folder / "loops.py").write_text(LOOPS.replace("2 * v", "3 * v"))
    assert end(start(folder))[0] == "30.0 0"
    assert end(start(folder))[0] == "30.0 1"


def test_the_cache_can_lie_elsewhere(folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "cache"
    assert end(start(folder, NUMBA_CACHE_DIR=str(elsewhere)))[0] == "20.0 0"
    assert end(start(folder, NUMBA_CACHE_DIR=str(elsewhere)))[0] == "20.0 1"
    assert not list((folder / "__pycache__").glob("*.nbc"))


def test_several_processes_at_once_do_not_disturb_each_other(folder: Path) -> None:
    kinds = ["float64", "float32", "int64"]
    for process in [start(folder, kind) for kind in kinds]:
        assert end(process) == ("20.0 0", "")
    for process in [start(folder, kind) for kind in kinds]:
        assert end(process) == ("20.0 1", "")


@pytest.mark.parametrize(("suffix", "damage"), [("nbi", b"not a pickle"), ("nbc", b"")], ids=["index", "code"])
def test_damaged_code_is_compiled_anew(folder: Path, suffix: str, damage: bytes) -> None:
    end(start(folder))
    for path in (folder / "__pycache__").glob(f"loops.total-*.{suffix}"):
        path.write_bytes(damage)
    out, err = end(start(folder))
    assert out == "20.0 0"
    assert err.startswith("Compiled loops in ")
    assert end(start(folder)) == ("20.0 1", "")  # the damage is gone


def test_a_full_disk_fails_no_run(folder: Path) -> None:
    # A directory in the place of the lock file: saving raises OSError, as on a full disk.
    (folder / "__pycache__" / "unisono-loops.lock").mkdir(parents=True)
    out, err = end(start(folder))
    assert out == "20.0 0"
    assert err.startswith("Compiled loops cannot be kept in ")
    assert len(err.splitlines()) == 1


def test_no_directory_at_all_fails_no_run(folder: Path) -> None:
    (folder / "__pycache__").write_text("a file where the directory should be")
    out, err = end(start(folder, HOME="/proc/nowhere", XDG_CACHE_HOME="/proc/nowhere", PYTHONDONTWRITEBYTECODE="1"))
    assert out == "20.0 0"
    assert err.splitlines() == [
        "No directory for compiled loops can be written: every process compiles them anew. Set NUMBA_CACHE_DIR."
    ]


WITHOUT_NUMBA = '''
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name == "numba":
            raise ModuleNotFoundError("No module named 'numba'", name=name)
sys.meta_path.insert(0, Block())
import numpy as np
from unisono.transforms.base.errors import JobError
from unisono.transforms.rank import topk, topk_kernels
from unisono.transforms.users import cluster_kernels, event_kernels, state
one = np.ones((1, 2), np.float32)
for call in (
    lambda: topk.top_items(one, one, 1),
    lambda: state.add_rows(one, np.array([0]), np.ones(1), np.array([0, 1])),
    lambda: event_kernels.add_rows(),
):
    try:
        call()
    except (JobError, ModuleNotFoundError) as error:
        print(f"{type(error).__name__}: {error}")
'''


def test_without_numba_modules_load_and_calls_name_the_extra() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_NUMBA], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "JobError: ranking: needs numba, which is not installed; pip install 'unisono[ranking]'",
        "JobError: profiles: needs numba, which is not installed; pip install 'unisono[ranking]'",
        "ModuleNotFoundError: No module named 'numba'",
    ]


def test_a_compiled_loop_computes_what_the_python_function_does() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 37)).astype(np.float32)
    loop: Any = topk_kernels._dot
    lanes = np.empty(32)
    assert loop(a, b, lanes) == loop.py_func(a, b, lanes)
    assert loop(a, b, lanes) == pytest.approx(a.astype(float) @ b.astype(float), rel=1e-12)
