"""The lite image encoder, compared with plain loops over pixels."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
from PIL import Image

from tests.media_files import image_file
from tests.transforms.encoders.lite.examples import examples, lite
from unisono.transforms.encoders.lite import image as lite_image


def test_colour_histograms_count_pixels() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    hsv = np.asarray(Image.fromarray(rgb).convert("HSV"))
    joint = np.zeros((8, 3, 3))
    saturation, hue = np.zeros((4, 8)), np.zeros((4, 8))
    for y in range(16):
        for x in range(16):
            h, s, v = (int(c) for c in hsv[y, x])
            exact = np.array(colorsys.rgb_to_hsv(*(rgb[y, x] / 255.0))) * 255
            assert np.abs(exact[1:] - (s, v)).max() <= 1  # the bytes are saturation and value on the scale 0 … 255
            joint[h * 8 // 256, s * 3 // 256, v * 3 // 256] += 1
            quarter = (y >= 8) * 2 + (x >= 8)
            hue[quarter, h // 32] += s / 255
            saturation[quarter, s // 32] += 1
    np.testing.assert_array_equal(lite_image.colour_histogram(hsv), joint.ravel())
    layout = lite_image.layout_histogram(hsv)
    np.testing.assert_allclose(layout[:32], hue.ravel(), atol=1e-9)
    np.testing.assert_array_equal(layout[32:64], saturation.ravel())
    assert layout[64:].sum() == 256


def test_texture_tells_patterns_apart() -> None:
    encoder = lite("image")
    grey = np.random.default_rng(1).integers(0, 256, (64, 64), np.uint8)
    # The expected counts inside one quarter, from eight neighbours at distance 1. The diagonal ones are interpolated.
    padded = grey.astype(np.float64)
    angles = 2 * np.pi * np.arange(8) / 8
    counts = np.zeros(10)
    for y in range(1, 31):
        for x in range(1, 31):
            bits = []
            for angle in angles:
                row, column = y - np.sin(angle).round(5), x + np.cos(angle).round(5)
                r0, c0 = int(np.floor(row)), int(np.floor(column))
                dr, dc = row - r0, column - c0
                r1, c1 = int(np.ceil(row)), int(np.ceil(column))
                top = (1 - dc) * padded[r0, c0] + dc * padded[r0, c1]
                bottom = (1 - dc) * padded[r1, c0] + dc * padded[r1, c1]
                bits.append(int((1 - dr) * top + dr * bottom >= padded[y, x]))
            changes = sum(bits[i] != bits[i - 1] for i in range(8))
            counts[sum(bits) if changes <= 2 else 9] += 1
    quarter = encoder.texture_histogram(grey)[:10]
    # The pixels on the edge of the quarter, 124 of them, are not in the expected counts.
    assert quarter.sum() == 32 * 32
    assert (quarter >= counts - 1).all()
    assert np.abs(quarter - counts).sum() <= 124 + 2


def test_gradients_follow_edges() -> None:
    encoder = lite("image")
    y, x = np.mgrid[0:64, 0:64]
    for angle in range(8):
        theta = np.pi * (angle + 0.5) / 8  # the middle of an orientation bin of scikit-image
        wave = 127 + 120 * np.sin((x * np.cos(theta) + y * np.sin(theta)) / 2.0)
        cells = encoder.gradient_histogram(wave.astype(np.uint8)).reshape(16, 8)
        assert (cells.argmax(axis=1) == angle).all()
    plain = encoder.gradient_histogram(np.full((64, 64), 90, np.uint8))
    assert (plain == 0).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (3, 2), (64, 64), (700, 300)])
def test_pictures_of_any_size_and_of_one_colour_have_unit_embeddings(shape: tuple[int, int]) -> None:
    encoder = lite("image")
    pictures = [image_file(np.full((*shape, 3), level, np.uint8)) for level in (0, 128, 255)]
    rows = encoder.encode([encoder.prepare(picture) for picture in pictures])
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    assert rows[0] @ rows[2] < 0.999  # black and white differ


def test_the_four_groups_have_the_same_norm() -> None:
    encoder = lite("image")
    row = encoder.prepare(examples("image")[3]).astype(np.float64)
    ends = np.cumsum([72, 96, 112, 128])
    assert ends[-1] == encoder.dim
    norms = [np.linalg.norm(part) for part in np.split(row, ends[:-1])]
    np.testing.assert_allclose(norms, 0.5, atol=1e-6)
