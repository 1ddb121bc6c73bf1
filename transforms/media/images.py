"""Image files into RGB pictures, within limits, and with a reason for each file that is none."""

from __future__ import annotations

import io
import warnings

import numpy as np

# Importing the plugins registers them: `Image.init()` later, from several threads, would race.
from PIL import (
    AvifImagePlugin,  # noqa: F401
    BmpImagePlugin,  # noqa: F401
    GifImagePlugin,  # noqa: F401
    Image,
    Jpeg2KImagePlugin,  # noqa: F401
    JpegImagePlugin,  # noqa: F401
    MpoImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    PpmImagePlugin,  # noqa: F401
    TiffImagePlugin,  # noqa: F401
    UnidentifiedImageError,
    WebPImagePlugin,  # noqa: F401
    features,
)

from unisono.transforms.base.errors import InputError, Reason
from unisono.transforms.media.limits import MediaLimits

# Each picture is held against its own limit, from its header, below. Pillow's check is one for the process,
# and warns through `warnings`, which threads cannot silence safely.
Image.MAX_IMAGE_PIXELS = None
warnings.filterwarnings("ignore", module=r"PIL\.")  # odd metadata in an input is no news

# (offset, magic, Pillow's name or None where Pillow gets no say, what people call it). Only listed formats
# are opened: some of Pillow's decoders start other programs (EPS) or know their files by no magic at all.
_MAGIC: tuple[tuple[int, bytes, str | None, str], ...] = (
    (0, b"\xff\xd8\xff", "JPEG", "JPEG"),
    (0, b"\x89PNG\r\n\x1a\n", "PNG", "PNG"),
    (0, b"GIF8", "GIF", "GIF"),
    (8, b"WEBP", "WEBP", "WebP"),
    (0, b"BM", "BMP", "BMP"),
    (0, b"II*\0", "TIFF", "TIFF"),
    (0, b"MM\0*", "TIFF", "TIFF"),
    (0, b"\0\0\0\x0cjP  ", "JPEG2000", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG2000", "JPEG 2000"),
    (4, b"ftypavi", "AVIF", "AVIF"),
    (0, b"P4", "PPM", "PBM"),
    (0, b"P5", "PPM", "PGM"),
    (0, b"P6", "PPM", "PPM"),
    (4, b"ftyphei", None, "HEIC"),
    (4, b"ftyphev", None, "HEIC"),
    (4, b"ftypmif1", None, "HEIF"),
    (0, b"\xff\x0a", None, "JPEG XL"),
    (0, b"\0\0\0\x0cJXL ", None, "JPEG XL"),
    (0, b"8BPS", None, "Photoshop"),
    (0, b"%PDF", None, "PDF"),
    (0, b"%!PS", None, "PostScript"),
    (0, b"\xc5\xd0\xd3\xc6", None, "PostScript"),
    (0, b"\0\0\x01\0", None, "icon"),
    (0, b"\x1f\x8b", None, "gzip (compressed SVG?)"),
    (0, b"gimp xcf", None, "GIMP"),
    (0, b"\xd7\xcd\xc6\x9a", None, "Windows metafile"),
    (0, b"v/1\x01", None, "OpenEXR"),
    (0, b"#?RADIANCE", None, "Radiance HDR"),
)

# EXIF tag 0x0112 (Exif 2.32, table 4) to what undoes it.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode_image(data: bytes, limits: MediaLimits | None = None, target: int | None = None) -> Image.Image:
    """Decodes an image file into an upright RGB picture.

    The first frame of an animation; transparency over white; EXIF orientation applied; palette, greyscale,
    CMYK and 16-bit samples brought to 8-bit RGB. Colour profiles are not applied. Safe to call from several
    threads.

    Args:
        data: the file as stored: JPEG, PNG, GIF, WebP, AVIF, BMP, TIFF, JPEG 2000, PPM.
        limits: `max_image_pixels` holds for the size that the header states, before anything is decoded.
        target: the shorter side that the caller needs, in pixels. A JPEG is then decoded at 1/2, 1/4 or 1/8
            scale where both sides stay at least `target`. None: full scale.

    Raises:
        InputError: EMPTY_FILE, UNSUPPORTED_FORMAT, NOT_AN_IMAGE, TOO_MANY_PIXELS, TRUNCATED.
    """
    pillow_name, name = _identify(data)
    limit = (limits or MediaLimits()).max_image_pixels
    try:
        with Image.open(io.BytesIO(data), formats=(pillow_name,)) as image:
            width, height = image.size
            if width * height > limit:
                raise InputError(Reason.TOO_MANY_PIXELS, f"{width}×{height} pixels, the limit is {limit}")
            if target is not None and pillow_name == "JPEG":
                image.draft(image.mode, (target, target))
            image.load()
            return _upright(_to_rgb(image), image)
    except InputError:
        raise
    except MemoryError:
        raise
    # Broken files make the plugins raise nearly anything: OSError, SyntaxError, ValueError, IndexError,
    # struct.error.
    except Exception as error:
        # Pillow's text for this one holds a memory address; a dead letter is the same on every run.
        why = "unreadable header" if isinstance(error, UnidentifiedImageError) else str(error)
        if "truncat" in why.lower() or isinstance(error, EOFError) or _is_cut(data, name):
            raise InputError(Reason.TRUNCATED, f"{name} of {len(data)} bytes: {why}") from error
        raise InputError(Reason.NOT_AN_IMAGE, f"{name} that cannot be decoded: {why}") from error


def _identify(data: bytes) -> tuple[str, str]:
    """Tells a format by its first bytes, by Pillow's name and the common one, or why it is not decoded."""
    if not data:
        raise InputError(Reason.EMPTY_FILE, "0 bytes")
    for offset, magic, pillow_name, name in _MAGIC:
        if data.startswith(magic, offset):
            if pillow_name is None or (pillow_name == "AVIF" and not features.check("avif")):
                raise InputError(Reason.UNSUPPORTED_FORMAT, f"{name} is not decoded")
            return pillow_name, name
    head = _text_head(data)
    if "<svg" in head or head.startswith(("<?xml", "<!doctype svg")):
        raise InputError(Reason.UNSUPPORTED_FORMAT, f"{'SVG' if '<svg' in head else 'XML'} is not decoded")
    if head.startswith(("<!doctype html", "<html")):
        raise InputError(Reason.NOT_AN_IMAGE, "an HTML page")
    raise InputError(Reason.NOT_AN_IMAGE, f"{len(data)} bytes that begin with {data[:8].hex(' ')}")


def _text_head(data: bytes) -> str:
    """Reads the first 4 kB as text, lower-case, whatever of UTF-8 and UTF-16 it is."""
    codec = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    return data[:4096].decode(codec, errors="replace").lstrip().lower()


def _is_cut(data: bytes, name: str) -> bool:
    """Says whether a file that failed ends before its format's own end."""
    size = len(data)
    if name == "PNG":
        return b"IEND" not in data[-64:]
    if name == "JPEG":
        return b"\xff\xd9" not in data[-64:]
    if name == "GIF":
        return not data.endswith(b";")
    if name == "WebP":
        return size < int.from_bytes(data[4:8], "little") + 8
    if name == "BMP":  # two letters are a weak magic: the reserved bytes must be zero as well
        return data[6:10] == bytes(4) and size < int.from_bytes(data[2:6], "little")
    if name == "TIFF":
        return size <= int.from_bytes(data[4:8], "little" if data[:1] == b"I" else "big")
    if name in ("AVIF", "JPEG 2000"):
        return _boxes_are_cut(data)
    return False


def _boxes_are_cut(data: bytes) -> bool:
    """Walks the top-level boxes of an ISO base media file (ISO/IEC 14496-12, 4.2)."""
    at = 0
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        if size < 8:  # 0: up to the end of the file
            return False
        at += size
    return at != len(data)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Brings a loaded picture to RGB, transparency over white."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _to_8_bit(image).convert("RGB")  # Pillow's own conversion clips at 255
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        over_white = Image.new("RGB", image.size, (255, 255, 255))
        over_white.paste(rgba, mask=rgba.getchannel("A"))
        return over_white
    if image.mode == "LAB":  # a TIFF's; Pillow converts it only through a colour profile
        raise InputError(Reason.UNSUPPORTED_FORMAT, "CIE L*a*b* samples are not decoded")
    return image.convert("RGB") if image.mode != "RGB" else image


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Scales wide greyscale samples to 0 … 255: integers from 16 bit, floats from 0 … 1."""
    samples = np.asarray(image).astype(np.float64)
    top = 1.0 if image.mode == "F" else 65535.0
    scaled = np.nan_to_num(samples) * (255.0 / top)
    return Image.fromarray(np.clip(np.rint(scaled), 0, 255).astype(np.uint8))


def _upright(picture: Image.Image, source: Image.Image) -> Image.Image:
    """Undoes the orientation that `source` states in its EXIF data."""
    try:
        orientation = source.getexif().get(0x0112, 1)
    except Exception:  # unreadable EXIF data says nothing about the picture, which is already decoded
        return picture
    turn = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return picture if turn is None else picture.transpose(turn)


# --- to a model's size -------------------------------------------------------------------------------------

_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def fit_picture(
    picture: Image.Image, size: tuple[int, int], mode: str = "shortest", interpolation: str = "bicubic", fill: int = 0
) -> np.ndarray:
    """Brings an RGB picture to a model's size: uint8 [height, width, 3], contiguous.

    The arithmetic of sizes and offsets is torchvision's `Resize` and `CenterCrop`, and for `longest` timm's
    `ResizeKeepRatio`, as open_clip puts them together. What a crop cuts off is not computed.

    Args:
        picture: RGB, of any size.
        size: (height, width).
        mode: `shortest` side to size and crop the centre, `longest` and pad with `fill`, or `squash`.
        interpolation: bicubic or bilinear, with Pillow's antialiasing.
        fill: grey level of the padding.
    """
    height, width = size
    if mode == "squash":
        return np.array(picture.resize((width, height), _FILTERS[interpolation]))
    if mode == "longest":
        return _padded(picture, size, interpolation, fill)
    down, across = _shortest(picture.size, size)
    if height != width:  # open_clip's ResizeKeepRatio is left at its own filter there
        interpolation = "bicubic"
    top, left = round((down - height) / 2.0), round((across - width) / 2.0)
    x, y = picture.width / across, picture.height / down
    box = (left * x, top * y, min((left + width) * x, picture.width), min((top + height) * y, picture.height))
    return np.array(picture.resize((width, height), _FILTERS[interpolation], box=box))


def _shortest(have: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """The (height, width) before the crop."""
    (across, down), (height, width) = have, size
    if height == width:  # torchvision cuts off the fraction; for other shapes timm rounds it
        short, long = min(across, down), max(across, down)
        other = int(height * long / short)
        return (height, other) if down <= across else (other, height)
    ratio = min(down / height, across / width)
    return max(height, round(down / ratio)), max(width, round(across / ratio))


def _padded(picture: Image.Image, size: tuple[int, int], interpolation: str, fill: int) -> np.ndarray:
    height, width = size
    ratio = max(picture.height / height, picture.width / width)
    down, across = max(1, round(picture.height / ratio)), max(1, round(picture.width / ratio))
    small = picture.resize((across, down), _FILTERS[interpolation])
    out = np.full((height, width, 3), fill, np.uint8)
    top, left = (height - down) // 2, (width - across) // 2
    out[top : top + down, left : left + across] = np.asarray(small)
    return out
