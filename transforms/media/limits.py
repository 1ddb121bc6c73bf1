"""What a single input may cost."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from unisono.transforms.base.settings import Positive, settings


@settings("limits")
class MediaLimits:
    """What a single input may cost before it becomes a dead letter."""

    max_media_bytes: Positive = 64 * 2**20
    """Size of one image or audio file as stored, in bytes."""
    max_image_pixels: Positive = 64_000_000
    """Width × height of an image, read from its header before anything is decoded."""
    max_audio_seconds: Annotated[float, Field(gt=0)] = 1800.0
    """Length of a sound, read from its header before anything is decoded."""
