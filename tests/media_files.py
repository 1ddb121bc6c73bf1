"""Makes image and audio files for the tests."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import soundfile
from PIL import Image


def image_file(picture: Image.Image | np.ndarray, form: str = "PNG", **options: Any) -> bytes:
    """Writes a picture, or uint8 pixels [height, width, channels], in a format of Pillow."""
    stream = io.BytesIO()
    image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    image.save(stream, form, **options)
    return stream.getvalue()


def sound_file(samples: np.ndarray, rate_hz: int, form: str = "WAV", subtype: str | None = None) -> bytes:
    """Writes samples [n] or [n, channels] in a format of libsndfile."""
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate_hz, format=form, subtype=subtype)
    return stream.getvalue()


def smooth_pixels(height: int = 60, width: int = 90) -> np.ndarray:
    """Makes a colour picture that lossy formats keep well, without any symmetry: uint8 [height, width, 3]."""
    y, x = np.mgrid[0:height, 0:width]
    channels = [x * 255 / width, y * 255 / height, 128 + 90 * np.sin(x / 17) * np.cos(y / 11)]
    return np.stack(channels, axis=-1).astype(np.uint8)


def tone(rate_hz: int, seconds: float = 1.0, hz: float = 440.0) -> np.ndarray:
    """Makes a tone that fades in and out: float64 [samples]."""
    t = np.arange(round(rate_hz * seconds)) / rate_hz
    return 0.5 * np.sin(2 * np.pi * hz * t) * np.sin(np.pi * t / seconds) ** 2
