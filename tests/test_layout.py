"""The layout is the architecture: who may import whom, and what a base install must do without."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = {"transforms", "pipelines", "runners"}
MAY_IMPORT = {"transforms": {"transforms"}, "runners": {"runners"}, "pipelines": OURS}
MODULES = sorted(p for package in OURS for p in (ROOT / package).rglob("*.py"))
# What the extras bring; a base install (lite encoders, local runs) has none of it.
EXTRAS = (
    "torch", "transformers", "open_clip", "sentence_transformers", "google.cloud", "pandas", "polars", "duckdb",
    "implicit",
)  # fmt: skip


def imported(path: Path, everywhere: bool) -> set[str]:
    """Names of the modules that a file imports: everywhere, or only when it is itself imported."""
    tree = ast.parse(path.read_text())
    nodes = ast.walk(tree) if everywhere else iter(tree.body)
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    ours = {name.split(".")[0] for name in imported(path, everywhere=True)} & OURS
    assert ours <= MAY_IMPORT[package]
    if package == "runners":
        outside = {n.split(".")[0] for n in imported(path, everywhere=True)} - set(sys.stdlib_module_names)
        assert outside <= {"apache_beam", "runners", "__future__"}


def test_every_module_can_be_imported_without_the_extras() -> None:
    names = [".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for p in MODULES]
    code = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if any(name == e or name.startswith(e + ".") for e in {EXTRAS!r}):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Block())
import importlib
for name in {names!r}:
    importlib.import_module(name)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
