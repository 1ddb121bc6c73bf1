"""Which files of a checkpoint are read."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable

# Files that are fetched from a bucket or from the hub.
FETCHED = ("*.json", "*.txt", "*.model", "*.safetensors", "*.jinja")

# Weights that could only be read by unpickling, which can run any code. They are never read.
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Says whether the last component of a path matches one of several patterns, such as `FETCHED`."""
    return any(fnmatch.fnmatch(name.rsplit("/", 1)[-1], pattern) for pattern in patterns)


def first_line(error: BaseException) -> str:
    """Returns the first line of an exception's text, or an empty string."""
    return next(iter(str(error).strip().splitlines()), "")
