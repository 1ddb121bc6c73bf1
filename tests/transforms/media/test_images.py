"""Decodes every kind of picture and compares it with an independent reading; limits and threads."""

from __future__ import annotations

import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from tests.media_files import image_file, smooth_pixels
from tests.paths import STAMPS
from unisono.transforms.base.errors import InputError, Reason
from unisono.transforms.media.images import decode_image
from unisono.transforms.media.limits import MediaLimits

PICTURES = STAMPS / "images"


def reason_of(data: bytes, **limits: int) -> Reason:
    with pytest.raises(InputError) as caught:
        decode_image(data, MediaLimits(**limits))
    assert "0x" not in caught.value.detail  # a memory address would make the dead letter differ between runs
    return caught.value.reason


def grey_png(width: int, height: int, bits: int, rows: bytes) -> bytes:
    """Writes a greyscale PNG without Pillow, which is under test. `rows` are the filtered rows."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def gif_with_a_large_frame(width: int, height: int) -> bytes:
    """Writes a GIF of 1 × 1 pixels whose only frame is larger than that."""
    head = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + bytes(6)
    frame = b"," + struct.pack("<HHHHB", 0, 0, width, height, 0)
    return head + frame + b"\x02\x02\x44\x01\x00;"


@pytest.mark.parametrize(
    ("form", "options", "mean_error"),
    [
        pytest.param("PNG", {}, 0, id="png"),
        pytest.param("BMP", {}, 0, id="bmp"),
        pytest.param("TIFF", {"compression": "tiff_lzw"}, 0, id="tiff"),
        pytest.param("PPM", {}, 0, id="ppm"),
        pytest.param("WEBP", {"lossless": True}, 0, id="webp-lossless"),
        pytest.param("WEBP", {"quality": 95}, 3, id="webp"),
        pytest.param("JPEG", {"quality": 95}, 2, id="jpeg"),
        pytest.param("JPEG", {"quality": 95, "progressive": True}, 2, id="jpeg-progressive"),
        pytest.param("JPEG2000", {"quality_mode": "rates", "quality_layers": [2]}, 2, id="jpeg2000"),
        pytest.param("AVIF", {"quality": 95}, 3, id="avif"),
        pytest.param("GIF", {}, 12, id="gif-256-colours"),
    ],
)
def test_a_picture_survives_every_format(form: str, options: dict, mean_error: float) -> None:
    decoded = decode_image(image_file(smooth_pixels(), form, **options))
    assert decoded.mode == "RGB"
    assert decoded.size == (90, 60)
    assert np.abs(np.asarray(decoded).astype(int) - smooth_pixels()).mean() <= mean_error


def test_transparency_is_over_white() -> None:
    alpha = np.linspace(0, 255, 60 * 90).reshape(60, 90).astype(np.uint8)
    rgba = np.dstack([smooth_pixels(), alpha])
    weight = alpha[..., None] / 255.0
    expected = smooth_pixels() * weight + 255.0 * (1 - weight)
    for form, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True})):
        data = image_file(Image.fromarray(rgba), form, **options)
        assert np.abs(np.asarray(decode_image(data)) - expected).max() <= 1
    grey = np.dstack([smooth_pixels()[..., 0], alpha])
    expected = grey[..., :1] * weight + 255.0 * (1 - weight)
    assert np.abs(np.asarray(decode_image(image_file(Image.fromarray(grey, "LA"), "PNG"))) - expected).max() <= 1


def test_palette_with_a_transparent_colour() -> None:
    indexed = Image.new("P", (8, 8), 0)
    indexed.putpalette([10, 20, 30, 200, 100, 50])
    indexed.paste(1, (0, 0, 4, 8))
    for form in ("PNG", "GIF"):
        rgb = np.asarray(decode_image(image_file(indexed, form, transparency=0)))
        assert (rgb[:, :4] == [200, 100, 50]).all()
        assert (rgb[:, 4:] == 255).all()
    assert (np.asarray(decode_image(image_file(indexed, "PNG")))[:, 4:] == [10, 20, 30]).all()


def test_16_bit_grey_keeps_its_range() -> None:
    samples = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    rgb = np.asarray(decode_image(grey_png(64, 64, 16, rows)))
    assert (rgb == np.rint(samples / 257)[..., None]).all()
    tiff = image_file(Image.fromarray((samples / 65535).astype(np.float32)), "TIFF")
    assert np.abs(np.asarray(decode_image(tiff))[..., 0] - samples / 257).max() <= 0.51


def test_cmyk_jpeg() -> None:
    cmyk = Image.fromarray(smooth_pixels()).convert("CMYK")
    expected = 255 - np.asarray(cmyk)[..., :3].astype(int)  # Pillow's conversion to CMYK leaves K at zero
    rgb = np.asarray(decode_image(image_file(cmyk, "JPEG", quality=95)))
    assert np.abs(rgb - expected).mean() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    upright = smooth_pixels()
    # What a camera stores for each value (Exif 2.32, table 4).
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.transpose(1, 0, 2), 6: np.rot90(upright, 1), 7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, 3),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = image_file(Image.fromarray(np.ascontiguousarray(stored)), "PNG", exif=exif)
    assert (np.asarray(decode_image(data)) == upright).all()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_unreadable_exif_leaves_the_picture() -> None:
    data = image_file(smooth_pixels(), "PNG", exif=b"Exif\0\0MM\0*\0\0\xff\xff")
    assert (np.asarray(decode_image(data)) == smooth_pixels()).all()


def test_the_first_frame_of_an_animation_is_decoded() -> None:
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "blue")]
    data = image_file(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (np.asarray(decode_image(data)) == [255, 0, 0]).all()


@pytest.mark.parametrize(
    ("target", "size"), [(None, (640, 480)), (400, (640, 480)), (224, (320, 240)), (60, (80, 60))]
)
def test_jpeg_at_reduced_scale(target: int | None, size: tuple[int, int]) -> None:
    data = image_file(Image.fromarray(smooth_pixels(480, 640)), "JPEG", quality=95)
    small = decode_image(data, target=target)
    assert small.size == size
    expected = Image.fromarray(smooth_pixels(480, 640)).resize(size, Image.Resampling.BOX)
    assert np.abs(np.asarray(small).astype(int) - np.asarray(expected)).mean() <= 2
    assert decode_image(image_file(smooth_pixels(), "PNG"), target=8).size == (90, 60)


def test_the_pixel_limit_is_checked_before_decoding_and_without_a_warning() -> None:
    bomb = grey_png(30_000, 30_000, 1, bytes(1_000))  # only the header is read
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert reason_of(bomb) is Reason.TOO_MANY_PIXELS
        # More than the 89 million pixels that Pillow itself allows. Decoded at scale 1/8, it takes little memory.
        wide = image_file(Image.new("L", (12_000, 8_000)), "JPEG")
        limits = MediaLimits(max_image_pixels=100_000_000)
        assert decode_image(wide, limits, target=1000).size == (1_500, 1_000)
    small = image_file(smooth_pixels(), "PNG")
    assert reason_of(small, max_image_pixels=60 * 90 - 1) is Reason.TOO_MANY_PIXELS
    assert decode_image(small, MediaLimits(max_image_pixels=60 * 90)).size == (90, 60)


def test_pillows_limit_for_the_whole_process_is_neither_used_nor_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    filters = list(warnings.filters)
    for form in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "PPM", "AVIF", "JPEG2000"):
        assert decode_image(image_file(smooth_pixels(), form)).size == (90, 60)
    assert Image.MAX_IMAGE_PIXELS == 10
    assert list(warnings.filters) == filters


def test_a_frame_larger_than_its_gif_is_held_against_a_limit_too() -> None:
    assert reason_of(gif_with_a_large_frame(300, 300), max_image_pixels=80_000) is Reason.TOO_MANY_PIXELS
    assert reason_of(gif_with_a_large_frame(65_000, 65_000)) is Reason.TOO_MANY_PIXELS


def test_threads_get_what_one_thread_gets() -> None:
    files = [
        image_file(Image.fromarray(np.roll(smooth_pixels(), i, axis=1)), form)
        for i in range(8) for form in ("PNG", "JPEG", "WEBP", "GIF", "TIFF")
    ]  # fmt: skip
    with ThreadPoolExecutor(8) as pool:
        threaded = list(pool.map(decode_image, files))
    for data, image in zip(files, threaded, strict=True):
        assert image.tobytes() == decode_image(data).tobytes()


@pytest.mark.skipif(not PICTURES.is_dir(), reason="the stamps are not here")
def test_every_stamp() -> None:
    for path in PICTURES.iterdir():
        if path.suffix == ".svg":
            assert reason_of(path.read_bytes()) is Reason.UNSUPPORTED_FORMAT
        else:
            assert decode_image(path.read_bytes()).mode == "RGB"
