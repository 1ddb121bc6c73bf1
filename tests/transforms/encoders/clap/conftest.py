"""A tiny CLAP checkpoint of each kind."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.checkpoints import save_clap
from tests.transforms.encoders.clap.reference import KINDS


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {kind: tmp_path_factory.mktemp(f"clap-{kind}") for kind in KINDS}
    for kind, path in made.items():
        save_clap(path, kind)
    return made
