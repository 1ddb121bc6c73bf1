"""The lite encoders, and inputs for them."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.media_files import image_file, sound_file
from unisono.transforms.encoders.base import EncoderSpec
from unisono.transforms.encoders.registry import get_encoder
from unisono.transforms.media.limits import MediaLimits

WORDS = "red green blue chair table lamp soft loud small song bell drum frog rain kids wood".split()  # noqa: SIM905


def lite(modality: str, **limits: Any) -> Any:
    """Returns the lite encoder of a modality."""
    return get_encoder(EncoderSpec(modality, "lite", limits=MediaLimits(**limits)))


def wav(samples: np.ndarray) -> bytes:
    """Writes a WAV of 32-bit floats at 22,050 Hz."""
    return sound_file(samples, 22_050, subtype="FLOAT")


def chirp(seconds: float = 1.5, seed: int = 0) -> np.ndarray:
    """Makes a sweep with overtones, noise and a pause: float32 [samples] at 22,050 Hz."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * 22_050)) / 22_050
    phase = 2 * np.pi * (200 * t + 300 * t**2)
    wave = 0.4 * np.sin(phase) + 0.2 * np.sin(3 * phase) + 0.02 * rng.standard_normal(len(t))
    wave[(t > 0.6) & (t < 0.8)] = 0
    return wave.astype(np.float32)


def examples(modality: str, n: int = 7) -> list[Any]:
    """Makes raw inputs of a modality."""
    rng = np.random.default_rng(3)
    if modality == "text":
        return [" ".join(rng.choice(WORDS, rng.integers(1, 9))) for _ in range(n - 1)] + ["木头椅子"]
    if modality == "image":
        return [image_file(rng.integers(0, 256, (20 + 9 * i, 50, 3), np.uint8)) for i in range(n)]
    return [wav(chirp(0.3 + 0.1 * i, i)) for i in range(n)]
