"""Importing our modules changes nothing that belongs to the whole process."""

from __future__ import annotations

import ast
import json
import subprocess
import sys

from tests.paths import ROOT
from tests.test_layout import MODULES, module_of

# Third-party modules have side effects of their own, so they are imported before the first look.
CODE = """
import importlib, json, logging, os, sys, warnings

def look():
    import PIL.Image, PIL.ImageFile
    levels = {name: getattr(log, "level", None) for name, log in logging.root.manager.loggerDict.items()}
    return {
        "pixel limit": PIL.Image.MAX_IMAGE_PIXELS,
        "truncated images": PIL.ImageFile.LOAD_TRUNCATED_IMAGES,
        "warnings": [repr(f) for f in warnings.filters],
        "logging.disable": logging.root.manager.disable,
        "root": [logging.root.level, len(logging.root.handlers), len(logging.root.filters)],
        "levels": {n: v for n, v in levels.items() if not n.startswith("unisono") and v is not None},
        "environ": dict(os.environ),
        "recursion": sys.getrecursionlimit(),
        "stderr": repr(sys.stderr),
    }

theirs, ours = json.loads(sys.argv[1])
for name in theirs:
    importlib.import_module(name)
before = look()
for name in ours:
    importlib.import_module(name)
after = look()
changed = {k: (before[k], after[k]) for k in before if before[k] != after[k]}
new = {n: (before["levels"].get(n), v) for n, v in after["levels"].items() if before["levels"].get(n, 0) != v}
changed.pop("levels", None)
print(json.dumps([changed, new]))
"""


def third_party_imports() -> set[str]:
    """Returns the modules of others that ours import when they are imported themselves."""
    names: set[str] = set()
    for path in MODULES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import):
                names |= {a.name for a in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(node.module or "")
    return {n for n in names if not n.startswith("unisono") and n.partition(".")[0] not in sys.stdlib_module_names}


def test_importing_our_modules_leaves_the_process_as_it_was() -> None:
    ours = [f"unisono.{module_of(p)}" for p in MODULES if module_of(p) != "unisono"]
    argument = json.dumps([sorted(third_party_imports()), ours])
    done = subprocess.run([sys.executable, "-c", CODE, argument], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    changed, new_levels = json.loads(done.stdout.splitlines()[-1])
    assert changed == {}
    assert new_levels == {}
