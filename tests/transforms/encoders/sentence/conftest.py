"""A tiny BERT checkpoint with sentence-transformers' files, and a tiny CLIP."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.checkpoints import save_clip, save_sentence_files, save_transformer


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bert")
    save_transformer(path)
    save_sentence_files(path, {"pooling_mode_mean_tokens": True}, normalize=True, max_tokens=40)
    return path


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("st-clip")
    save_clip(path)
    return path
