"""Decodes image files into RGB pictures, within limits, and says why a file cannot be decoded."""

from __future__ import annotations

import functools
import importlib
import io
import struct
from typing import TYPE_CHECKING, Any

import numpy as np

from unisono.transforms.base.errors import InputError, Reason
from unisono.transforms.media.image_formats import identify_image, is_cut_image
from unisono.transforms.media.limits import MediaLimits

if TYPE_CHECKING:
    from PIL import Image, ImageFile

_PLUGINS = ("Avif", "Bmp", "Gif", "Jpeg2K", "Jpeg", "Mpo", "Png", "Ppm", "Tiff", "WebP")

# EXIF tag 0x0112 (Exif 2.32, table 4), and the member of `PIL.Image.Transpose` that undoes each orientation.
_UPRIGHT = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}


def decode_image(data: bytes, limits: MediaLimits | None = None, target: int | None = None) -> Image.Image:
    """Decodes an image file into an upright RGB picture.

    Only the first frame of an animation is decoded. Transparent pixels are laid over white. The EXIF orientation is
    applied. Palettes, greyscale, CMYK and 16-bit samples become 8-bit RGB. Colour profiles are not applied.

    Safe to call from several threads.

    Args:
        data: the file as stored: JPEG, PNG, GIF, WebP, AVIF, BMP, TIFF, JPEG 2000 or PPM.
        limits: `max_image_pixels` is checked against the size that the header states, before anything is decoded.
            For the frames of a GIF and the tiles of a TIFF, Pillow has a limit of its own: 179 million pixels.
        target: the length of the shorter side that the caller needs, in pixels. A JPEG is then decoded at scale 1/2,
            1/4 or 1/8, as long as both sides keep at least `target` pixels. None means full scale.

    Raises:
        InputError: EMPTY_FILE, UNSUPPORTED_FORMAT, NOT_AN_IMAGE, TOO_MANY_PIXELS, TRUNCATED.
    """
    from PIL import Image

    pillow_name, name = identify_image(data)
    limit = (limits or MediaLimits()).max_image_pixels
    try:
        with _open(data, pillow_name, name) as image:
            width, height = image.size
            if width * height > limit:
                raise InputError(Reason.TOO_MANY_PIXELS, f"{width}×{height} pixels, the limit is {limit}")
            if target is not None and pillow_name == "JPEG":
                image.draft(image.mode, (target, target))
            image.load()
            return _upright(_to_rgb(image), image)
    except (InputError, MemoryError):
        raise
    except Image.DecompressionBombError as error:  # a frame of a GIF or a tile of a TIFF is too large
        raise InputError(Reason.TOO_MANY_PIXELS, f"{name}: {error}") from error
    # A broken file makes Pillow's plugins raise nearly anything: OSError, SyntaxError, ValueError, IndexError,
    # struct.error.
    except Exception as error:
        if "truncat" in str(error).lower() or isinstance(error, EOFError) or is_cut_image(data, name):
            raise InputError(Reason.TRUNCATED, f"{name} of {len(data)} bytes: {error}") from error
        raise InputError(Reason.NOT_AN_IMAGE, f"{name} that cannot be decoded: {error}") from error


def _open(data: bytes, pillow_name: str, name: str) -> ImageFile.ImageFile:
    """Reads the header of an image file.

    `PIL.Image.open` would do this too, but it checks the size against `PIL.Image.MAX_IMAGE_PIXELS`. That limit is
    shared by the whole process and warns through `warnings`; `decode_image` has a limit of its own.
    """
    factory, accept = _openers()[pillow_name]
    try:
        accepted = accept is None or accept(data[:16])
        if isinstance(accepted, str):  # the message says that this Pillow was built without the format's library
            raise InputError(Reason.UNSUPPORTED_FORMAT, f"{name} is not decoded")
        if accepted:
            return factory(io.BytesIO(data), "")
    except (SyntaxError, IndexError, TypeError, struct.error) as error:  # the errors that `PIL.Image.open` catches
        raise ValueError("unreadable header") from error
    raise ValueError("unreadable header")


@functools.cache
def _openers() -> dict[str, Any]:
    """Imports Pillow and the plugins of the formats that are decoded. Each plugin registers its format in `OPEN`."""
    for plugin in _PLUGINS:
        importlib.import_module(f"PIL.{plugin}ImagePlugin")
    from PIL import Image

    return Image.OPEN


def _to_rgb(image: Image.Image) -> Image.Image:
    """Converts a loaded picture to RGB, with transparent pixels over white."""
    from PIL import Image

    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _to_8_bit(image).convert("RGB")  # Pillow's own conversion would clip at 255
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        over_white = Image.new("RGB", image.size, (255, 255, 255))
        over_white.paste(rgba, mask=rgba.getchannel("A"))
        return over_white
    if image.mode == "LAB":  # occurs in TIFF; Pillow converts it only through a colour profile
        raise InputError(Reason.UNSUPPORTED_FORMAT, "CIE L*a*b* samples are not decoded")
    return image.convert("RGB") if image.mode != "RGB" else image


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Scales wide greyscale samples to 0 … 255: integers from 0 … 65,535, floats from 0 … 1."""
    from PIL import Image

    samples = np.asarray(image).astype(np.float64)
    top = 1.0 if image.mode == "F" else 65535.0
    scaled = np.nan_to_num(samples) * (255.0 / top)
    return Image.fromarray(np.clip(np.rint(scaled), 0, 255).astype(np.uint8))


def _upright(picture: Image.Image, source: Image.Image) -> Image.Image:
    """Turns a picture upright, by the orientation that the EXIF data of `source` states."""
    from PIL import Image

    try:
        orientation = source.getexif().get(0x0112, 1)
    except Exception:  # the EXIF data is unreadable, but the picture itself was decoded without an error
        return picture
    turn = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return picture if turn is None else picture.transpose(Image.Transpose[turn])
