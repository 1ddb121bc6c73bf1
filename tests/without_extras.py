"""Runs Python code in a process that cannot import the libraries which only extras bring."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.paths import ROOT

# A base install has none of these.
EXTRAS = (
    "torch", "torchvision", "transformers", "open_clip", "sentence_transformers", "huggingface_hub", "google.cloud",
    "pandas", "polars", "duckdb", "implicit", "numba", "PIL", "skimage", "librosa", "soundfile", "soxr",
)  # fmt: skip

_BLOCK = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if any(name == e or name.startswith(e + ".") for e in {EXTRAS!r}):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Block())
"""


def run_without_extras(code: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Runs code in a new process, and returns what it printed."""
    return subprocess.run([sys.executable, "-c", _BLOCK + code], capture_output=True, text=True, cwd=cwd)
