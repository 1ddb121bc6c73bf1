"""A tiny CLIP checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.checkpoints import save_open_clip


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip")
    save_open_clip(path)
    return path
