"""Image decoding: every variant against an independent reading, every bad file with its reason."""

from __future__ import annotations

import gzip
import io
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from tests.paths import STAMPS
from unisono.transforms.base.errors import InputError, Reason
from unisono.transforms.media.images import decode_image
from unisono.transforms.media.limits import MediaLimits

PICTURES = STAMPS / "images"


def picture(height: int = 60, width: int = 90) -> np.ndarray:
    """A smooth colour picture (so that lossy formats keep it) with no symmetry: uint8 [height, width, 3]."""
    y, x = np.mgrid[0:height, 0:width]
    channels = [x * 255 / width, y * 255 / height, 128 + 90 * np.sin(x / 17) * np.cos(y / 11)]
    return np.stack(channels, axis=-1).astype(np.uint8)


def save(image: Image.Image, form: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def reason_of(data: bytes, **limits: int) -> Reason:
    with pytest.raises(InputError) as caught:
        decode_image(data, MediaLimits(**limits))
    assert "0x" not in caught.value.detail  # no memory address: letters are equal from run to run
    return caught.value.reason


def grey_png(width: int, height: int, bits: int, rows: bytes) -> bytes:
    """Writes a greyscale PNG by hand, so that Pillow does not judge itself; `rows` as they are filtered."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(
        b"IEND", b""
    )


# --- variants ----------------------------------------------------------------------------------------------


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
def test_formats(form: str, options: dict, mean_error: float) -> None:
    decoded = decode_image(save(Image.fromarray(picture()), form, **options))
    assert decoded.mode == "RGB"
    assert decoded.size == (90, 60)
    assert np.abs(np.asarray(decoded).astype(int) - picture()).mean() <= mean_error


def test_transparency_is_over_white() -> None:
    alpha = np.linspace(0, 255, 60 * 90).reshape(60, 90).astype(np.uint8)
    rgba = np.dstack([picture(), alpha])
    weight = alpha[..., None] / 255.0
    expected = picture() * weight + 255.0 * (1 - weight)
    for form, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True})):
        data = save(Image.fromarray(rgba), form, **options)
        assert np.abs(np.asarray(decode_image(data)) - expected).max() <= 1
    grey = np.dstack([picture()[..., 0], alpha])
    expected = grey[..., :1] * weight + 255.0 * (1 - weight)
    assert np.abs(np.asarray(decode_image(save(Image.fromarray(grey, "LA"), "PNG"))) - expected).max() <= 1


def test_palette_with_a_transparent_colour() -> None:
    indexed = Image.new("P", (8, 8), 0)
    indexed.putpalette([10, 20, 30, 200, 100, 50])
    indexed.paste(1, (0, 0, 4, 8))
    for form in ("PNG", "GIF"):
        rgb = np.asarray(decode_image(save(indexed, form, transparency=0)))
        assert (rgb[:, :4] == [200, 100, 50]).all()
        assert (rgb[:, 4:] == 255).all()
    assert (np.asarray(decode_image(save(indexed, "PNG")))[:, 4:] == [10, 20, 30]).all()


def test_16_bit_grey_keeps_its_range() -> None:
    samples = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    rgb = np.asarray(decode_image(grey_png(64, 64, 16, rows)))
    assert (rgb == np.rint(samples / 257)[..., None]).all()
    tiff = save(Image.fromarray((samples / 65535).astype(np.float32)), "TIFF")
    assert np.abs(np.asarray(decode_image(tiff))[..., 0] - samples / 257).max() <= 0.51


def test_cmyk_jpeg() -> None:
    cmyk = Image.fromarray(picture()).convert("CMYK")
    expected = 255 - np.asarray(cmyk)[..., :3].astype(int)  # Pillow's separation leaves K at zero
    rgb = np.asarray(decode_image(save(cmyk, "JPEG", quality=95)))
    assert np.abs(rgb - expected).mean() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int) -> None:
    upright = picture()
    # What a camera stores for each value (Exif 2.32, table 4): rows and columns as they come off the sensor.
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.transpose(1, 0, 2), 6: np.rot90(upright, 1), 7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, 3),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = save(Image.fromarray(np.ascontiguousarray(stored)), "PNG", exif=exif)
    assert (np.asarray(decode_image(data)) == upright).all()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # unisono.transforms.media.images silences it, pytest listens again
def test_unreadable_exif_leaves_the_picture() -> None:
    data = save(Image.fromarray(picture()), "PNG", exif=b"Exif\0\0MM\0*\0\0\xff\xff")
    assert (np.asarray(decode_image(data)) == picture()).all()


def test_gif_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "blue")]
    data = save(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (np.asarray(decode_image(data)) == [255, 0, 0]).all()


@pytest.mark.parametrize(
    ("target", "size"), [(None, (640, 480)), (400, (640, 480)), (224, (320, 240)), (60, (80, 60))]
)
def test_jpeg_at_reduced_scale(target: int | None, size: tuple[int, int]) -> None:
    data = save(Image.fromarray(picture(480, 640)), "JPEG", quality=95)
    small = decode_image(data, target=target)
    assert small.size == size
    expected = Image.fromarray(picture(480, 640)).resize(size, Image.Resampling.BOX)
    assert np.abs(np.asarray(small).astype(int) - np.asarray(expected)).mean() <= 2
    assert decode_image(save(Image.fromarray(picture()), "PNG"), target=8).size == (90, 60)


# --- reasons -----------------------------------------------------------------------------------------------

SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="4" height="4"/>'


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(b"", Reason.EMPTY_FILE, id="zero-bytes"),
        pytest.param(SVG, Reason.UNSUPPORTED_FORMAT, id="svg"),
        pytest.param(
            b'\xef\xbb\xbf \n<?xml version="1.0"?>\n' + SVG, Reason.UNSUPPORTED_FORMAT, id="svg-xml"
        ),
        pytest.param(
            ("\ufeff" + SVG.decode()).encode("utf-16-le"), Reason.UNSUPPORTED_FORMAT, id="svg-utf16"
        ),
        pytest.param(gzip.compress(SVG), Reason.UNSUPPORTED_FORMAT, id="svgz"),
        pytest.param(b"%PDF-1.7\n", Reason.UNSUPPORTED_FORMAT, id="pdf"),
        pytest.param(b"%!PS-Adobe-3.0 EPSF-3.0\n", Reason.UNSUPPORTED_FORMAT, id="eps"),
        pytest.param(b"\0\0\0\x18ftypheic\0\0\0\0", Reason.UNSUPPORTED_FORMAT, id="heic"),
        pytest.param(b"<!DOCTYPE html><html><title>404</title></html>", Reason.NOT_AN_IMAGE, id="html"),
        pytest.param(b"hello, I am no picture", Reason.NOT_AN_IMAGE, id="text"),
        pytest.param(bytes(1000), Reason.NOT_AN_IMAGE, id="zeros"),
        pytest.param(b"RIFF\x24\0\0\0WAVEfmt ", Reason.NOT_AN_IMAGE, id="sound"),
    ],
)
def test_files_that_are_no_image(data: bytes, reason: Reason) -> None:
    assert reason_of(data) is reason


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "JPEG2000", "AVIF", "PPM"])
def test_cut_files_are_truncated(form: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    data = save(Image.fromarray(noise), form)
    for part in (0.3, 0.6, 0.9):
        assert reason_of(data[: int(len(data) * part)]) is Reason.TRUNCATED


def test_broken_bytes_in_a_whole_file() -> None:
    data = bytearray(save(Image.fromarray(picture()), "PNG"))
    data[60:90] = bytes(30)
    assert reason_of(bytes(data)) is Reason.NOT_AN_IMAGE


def test_pixel_limit_holds_before_decoding_and_says_nothing() -> None:
    bomb = grey_png(30_000, 30_000, 1, bytes(1_000))  # the header is enough
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert reason_of(bomb) is Reason.TOO_MANY_PIXELS
        # Past Pillow's own 89 million pixels; decoded at 1/8, it costs little.
        wide = save(Image.new("L", (12_000, 8_000)), "JPEG")
        limits = MediaLimits(max_image_pixels=100_000_000)
        assert decode_image(wide, limits, target=1000).size == (1_500, 1_000)
    small = save(Image.fromarray(picture()), "PNG")
    assert reason_of(small, max_image_pixels=60 * 90 - 1) is Reason.TOO_MANY_PIXELS
    assert decode_image(small, MediaLimits(max_image_pixels=60 * 90)).size == (90, 60)


def test_threads_get_what_one_thread_gets() -> None:
    files = [
        save(Image.fromarray(np.roll(picture(), i, axis=1)), form)
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
