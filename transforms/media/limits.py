"""What a single input may cost."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MediaLimits:
    """What a single input may cost before it becomes a dead letter.

    Attributes:
        max_media_bytes: of one image or audio file as stored.
        max_image_pixels: width × height, read from the header before anything is decoded.
        max_audio_seconds: read from the header before anything is decoded.
    """

    max_media_bytes: int = 64 * 2**20
    max_image_pixels: int = 64_000_000
    max_audio_seconds: float = 1800.0
