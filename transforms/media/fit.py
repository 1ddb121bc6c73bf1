"""Resizes and crops pictures to the size that a model takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image


def fit_picture(
    picture: Image.Image, size: tuple[int, int], mode: str = "shortest", interpolation: str = "bicubic", fill: int = 0
) -> np.ndarray:
    """Brings an RGB picture to a model's size.

    Pixels that a crop would cut off are not computed.

    Args:
        picture: RGB, of any size.
        size: (height, width) in pixels.
        mode: `shortest` resizes the shorter side to `size` and crops the centre. `longest` resizes the longer side to
            `size` and pads with `fill`. `squash` resizes both sides to `size`.
        interpolation: `bicubic` or `bilinear`, with Pillow's antialiasing.
        fill: grey level of the padding, 0 … 255.

    Returns:
        uint8 [height, width, 3], contiguous.

    Source: sizes and offsets are those of torchvision's `Resize` and `CenterCrop`, and for `longest` those of timm's
    `ResizeKeepRatio`, combined as open_clip combines them.
    """
    from PIL import Image

    height, width = size
    if mode == "squash":
        return np.array(picture.resize((width, height), Image.Resampling[interpolation.upper()]))
    if mode == "longest":
        return _padded(picture, size, interpolation, fill)
    down, across = _shortest(picture.size, size)
    if height != width:  # open_clip passes no filter to ResizeKeepRatio there; its default is bicubic
        interpolation = "bicubic"
    top, left = round((down - height) / 2.0), round((across - width) / 2.0)
    x, y = picture.width / across, picture.height / down
    box = (left * x, top * y, min((left + width) * x, picture.width), min((top + height) * y, picture.height))
    return np.array(picture.resize((width, height), Image.Resampling[interpolation.upper()], box=box))


def _shortest(have: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Returns the (height, width) to which mode `shortest` resizes a picture before the crop.

    Args:
        have: (width, height) of the picture.
        size: (height, width) of the model.
    """
    (across, down), (height, width) = have, size
    if height == width:  # torchvision's Resize drops the fraction; timm, which handles other shapes, rounds it
        short, long = min(across, down), max(across, down)
        other = int(height * long / short)
        return (height, other) if down <= across else (other, height)
    ratio = min(down / height, across / width)
    return max(height, round(down / ratio)), max(width, round(across / ratio))


def _padded(picture: Image.Image, size: tuple[int, int], interpolation: str, fill: int) -> np.ndarray:
    from PIL import Image

    height, width = size
    ratio = max(picture.height / height, picture.width / width)
    down, across = max(1, round(picture.height / ratio)), max(1, round(picture.width / ratio))
    small = picture.resize((across, down), Image.Resampling[interpolation.upper()])
    out = np.full((height, width, 3), fill, np.uint8)
    top, left = (height - down) // 2, (width - across) // 2
    out[top : top + down, left : left + across] = np.asarray(small)
    return out
