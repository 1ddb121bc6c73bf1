"""The reference for CLAP: transformers' own extractor and model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

RATE = 48_000
KINDS = ["rand_trunc", "fusion"]


def wave(seconds: float, seed: int = 0, rate: int = RATE) -> np.ndarray:
    """Makes a sweep that fades in from silence, with a little noise, so that it has loud and quiet bands."""
    rng = np.random.default_rng(seed)
    n = round(seconds * rate)
    time = np.arange(n) / rate
    tone = np.sin(2 * np.pi * (200 + 300 * seed + 1500 * time) * time)
    return (0.6 * tone * np.linspace(0, 1, n) ** 3 + 1e-4 * rng.standard_normal(n)).astype(np.float32)


def reference(path: Path) -> tuple[Any, Any]:
    """Loads the extractor and the model of a checkpoint."""
    import transformers as hf

    model: Any = hf.ClapModel
    return hf.ClapFeatureExtractor.from_pretrained(path), model.from_pretrained(path).eval()


def reference_embeddings(path: Path, windows: list[np.ndarray], longer: bool = False) -> np.ndarray:
    """Encodes windows with the library's extractor and model.

    Args:
        path: the checkpoint.
        windows: the waveforms.
        longer: what a `fusion` model is told about every window.
    """
    import torch

    extractor, model = reference(path)
    inputs = extractor(windows, sampling_rate=RATE, return_tensors="pt")
    inputs["is_longer"] = torch.full((len(windows), 1), longer)  # the extractor marks one of them at random
    with torch.inference_mode():
        embeddings: np.ndarray = model.get_audio_features(**inputs).pooler_output.numpy()
    return embeddings
