"""Specs of CLIP encoders, and pictures for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from unisono.transforms.encoders.base import EncoderSpec


def spec_of(path: Path | str, modality: str = "image", model: str = "open_clip", **options: object) -> EncoderSpec:
    """Returns the spec of an encoder on the CPU."""
    return EncoderSpec(modality, model, tuple(sorted({"weights": str(path), "device": "cpu", **options}.items())))


def scene(height: int = 90, width: int = 130, seed: int = 0) -> Image.Image:
    """Makes an RGB picture with smooth colours, edges and some noise."""
    y, x = np.mgrid[0:height, 0:width]
    rng = np.random.default_rng(seed)
    centre_y, centre_x, wave = rng.uniform(0.2, 0.8), rng.uniform(0.2, 0.8), rng.uniform(5, 25)
    disc = ((y / height - centre_y) ** 2 + (x / width - centre_x) ** 2 < 0.06) * 120
    channels = [x * 200 / width + disc, y * 255 / height, 128 + 90 * np.sin(x / wave) * np.cos(y / 11) - disc]
    noisy = np.stack(channels, axis=-1) + rng.normal(0, 6, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
