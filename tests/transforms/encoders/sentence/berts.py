"""Specs of text encoders, and changes to their checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tests.checkpoints import write_json
from unisono.transforms.encoders.base import EncoderSpec


def spec_of(path: Path | str, **options: object) -> EncoderSpec:
    """Returns the spec of a text encoder."""
    return EncoderSpec("text", str(path), tuple(sorted(options.items())))


def edit(name: str, **values: object) -> Callable[[Path], None]:
    """Returns a function that sets keys of a JSON file in a checkpoint's directory."""

    def change(path: Path) -> None:
        write_json(path / name, {**json.loads((path / name).read_text()), **values})

    return change
