"""Small pictures on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def write_pictures(directory: Path, n: int) -> list[str]:
    """Writes n random JPEG pictures, the same at every call, and returns their file names."""
    directory.mkdir(exist_ok=True)
    rng = np.random.default_rng(3)
    for i in range(n):
        pixels = rng.integers(0, 256, (6, 8, 3), np.uint8)
        Image.fromarray(pixels).resize((48, 36), Image.Resampling.BICUBIC).save(directory / f"{i:03}.jpg", quality=90)
    return [f"{i:03}.jpg" for i in range(n)]
