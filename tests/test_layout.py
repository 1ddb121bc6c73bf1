"""The layout is the architecture: each folder imports only folders above it in `ORDER`."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from tests.paths import ROOT
from tests.without_extras import run_without_extras

# From the bottom of the house to its top. A file may import its own folder and any folder named before it.
ORDER = (
    "transforms",  # its `__init__` alone
    "runners",
    "transforms.base",
    "transforms.media",
    "transforms.store",
    "transforms.privacy",
    "transforms.encoders",
    "transforms.encoders.checkpoints",
    "transforms.encoders.lite",
    "transforms.encoders.clip",
    "transforms.encoders.sentence",
    "transforms.encoders.clap",
    "transforms.encoders.<family>",  # a further family needs no line here
    "transforms.encode",
    "transforms.read",
    "transforms.space.parts",
    "transforms.space",
    "transforms.space.fit",
    "transforms.space.fit.trained",
    "transforms.behaviour",
    "transforms.users",
    "transforms.rank",
    "transforms.measure",
    "pipelines.job",
    "pipelines.graph",
    "pipelines",
    "pipelines.ask",
    "pipelines.tune",
    "pipelines.demo",
    "unisono",
    "pipelines.cli",
)
MODULES = sorted(p for top in ("transforms", "pipelines", "runners", "unisono") for p in (ROOT / top).rglob("*.py"))


def module_of(path: Path) -> str:
    """The import name of a file, without the leading `unisono.`."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def folder_of(module: str) -> str:
    """The longest entry of `ORDER` that a module is in."""
    found = max((f for f in ORDER if module == f or module.startswith(f + ".")), key=len)
    in_folder_of_its_own = found == "transforms.encoders" and module.count(".") > 2
    return "transforms.encoders.<family>" if in_folder_of_its_own else found


def our_imports(path: Path) -> set[str]:
    """The modules of ours that a file imports anywhere in it, without the leading `unisono.`."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names.add(node.module or "")
    return {n.removeprefix("unisono.") for n in names if n.startswith("unisono.")}


@pytest.mark.parametrize("path", MODULES, ids=module_of)
def test_each_folder_imports_only_those_before_it(path: Path) -> None:
    own = folder_of(module_of(path))
    for name in our_imports(path):
        assert ORDER.index(folder_of(name)) <= ORDER.index(own), f"{module_of(path)} imports {name}"


@pytest.mark.parametrize("path", [p for p in MODULES if folder_of(module_of(p)) == "runners"], ids=module_of)
def test_a_runner_imports_only_beam_and_its_own_folder(path: Path) -> None:
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = {a.name for node in nodes if isinstance(node, ast.Import) for a in node.names}
    names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    outside = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names)
    assert outside <= {"apache_beam", "unisono"}
    assert our_imports(path) <= {module_of(p) for p in MODULES if folder_of(module_of(p)) == "runners"}


def test_no_two_modules_import_each_other_in_a_circle() -> None:
    graph = {module_of(p): our_imports(p) for p in MODULES}
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, f"a circle: {' → '.join((*above, name))}"
        if name in graph and name not in done:
            for other in graph[name]:
                visit(other, (*above, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_every_module_can_be_imported_without_the_extras() -> None:
    names = [f"unisono.{module_of(p)}" for p in MODULES if module_of(p) != "unisono"]
    done = run_without_extras(f"import importlib\nfor name in {names!r}:\n    importlib.import_module(name)\n")
    assert done.returncode == 0, done.stderr
