"""What transformers prints and raises while it loads a checkpoint."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import save_transformer
from unisono.transforms.base.errors import JobError
from unisono.transforms.encoders.checkpoints.loading import load_model, load_tokenizer, loading, quiet_transformers

transformers = pytest.importorskip("transformers")
pytest.importorskip("torch")


def settings() -> tuple[int, bool]:
    logging = transformers.utils.logging
    return logging.get_verbosity(), logging.is_progress_bar_enabled()


def test_the_settings_of_the_library_come_back_whatever_threads_do() -> None:
    before = settings()
    start = threading.Barrier(4)

    def load() -> None:
        start.wait()
        for _ in range(50):
            with quiet_transformers(), quiet_transformers():
                assert settings() == (transformers.utils.logging.ERROR, False)

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with pytest.raises(ZeroDivisionError), quiet_transformers():
        _ = 1 / 0
    assert settings() == before


def test_what_transformers_raises_becomes_one_line() -> None:
    with pytest.raises(JobError, match=r"^k: the model cannot be loaded \(first\)$"), loading("k", "the model"):
        raise OSError("first\nsecond")
    with pytest.raises(ZeroDivisionError), loading("k", "the model"):
        _ = 1 / 0  # a fault of ours is not hidden


def test_weights_that_may_be_missing(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_transformer(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(
        {n: t for n, t in tensors.items() if not n.startswith("pooler.")},
        tmp_path / "model.safetensors",
        {"format": "pt"},
    )
    auto: Any = transformers.AutoModel
    with pytest.raises(JobError, match=r"^k: the weights in .* lack pooler\.dense\.bias and 1 more; copy the whole"):
        load_model("k", tmp_path, auto)
    model = load_model("k", tmp_path, auto, ("pooler.",))
    assert {str(p.dtype) for p in model.parameters()} == {"torch.float32"}


def test_a_tokenizer_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"^k: the tokenizer in .* cannot be loaded \("):
        load_tokenizer("k", tmp_path)
