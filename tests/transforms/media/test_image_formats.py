"""Files that are no image, are not supported, or were cut off: each has its reason."""

from __future__ import annotations

import gzip

import numpy as np
import pytest

from tests.media_files import image_file, smooth_pixels
from unisono.transforms.base.errors import InputError, Reason
from unisono.transforms.media.image_formats import identify_image
from unisono.transforms.media.images import decode_image


def reason_of(data: bytes) -> Reason:
    with pytest.raises(InputError) as caught:
        decode_image(data)
    assert "0x" not in caught.value.detail  # a memory address would make the dead letter differ between runs
    return caught.value.reason


@pytest.mark.parametrize(
    ("form", "names"),
    [
        pytest.param("PNG", ("PNG", "PNG"), id="png"),
        pytest.param("WEBP", ("WEBP", "WebP"), id="webp"),
        pytest.param("JPEG2000", ("JPEG2000", "JPEG 2000"), id="jpeg-2000"),
        pytest.param("PPM", ("PPM", "PPM"), id="ppm"),
    ],
)
def test_a_format_has_pillows_name_and_a_common_one(form: str, names: tuple[str, str]) -> None:
    assert identify_image(image_file(smooth_pixels(), form)) == names


SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="4" height="4"/>'


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(b"", Reason.EMPTY_FILE, id="zero-bytes"),
        pytest.param(SVG, Reason.UNSUPPORTED_FORMAT, id="svg"),
        pytest.param(b'\xef\xbb\xbf \n<?xml version="1.0"?>\n' + SVG, Reason.UNSUPPORTED_FORMAT, id="svg-xml"),
        pytest.param(("\ufeff" + SVG.decode()).encode("utf-16-le"), Reason.UNSUPPORTED_FORMAT, id="svg-utf16"),
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
def test_each_file_that_is_not_decoded_has_its_reason(data: bytes, reason: Reason) -> None:
    assert reason_of(data) is reason


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "JPEG2000", "AVIF", "PPM"])
def test_files_that_were_cut_off_are_truncated(form: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    data = image_file(noise, form)
    for part in (0.3, 0.6, 0.9):
        assert reason_of(data[: int(len(data) * part)]) is Reason.TRUNCATED


def test_a_complete_file_with_broken_bytes_is_not_truncated() -> None:
    data = bytearray(image_file(smooth_pixels(), "PNG"))
    data[60:90] = bytes(30)
    assert reason_of(bytes(data)) is Reason.NOT_AN_IMAGE
