"""Pictures brought to a model's size: compared with torchvision through open_clip, and with plain arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tests.media_files import smooth_pixels
from unisono.transforms.media.fit import fit_picture

SHAPES = [(90, 130), (130, 90), (32, 32), (20, 20), (33, 500), (500, 33), (64, 31), (1, 3)]


@pytest.mark.parametrize("shape", SHAPES)
def test_pixels_differ_from_torchvisions_by_one_level_at_most(shape: tuple[int, int]) -> None:
    open_clip = pytest.importorskip("open_clip")
    picture = Image.fromarray(smooth_pixels(*shape))
    expected = open_clip.image_transform(32, is_train=False, mean=(0,) * 3, std=(1,) * 3)(picture) * 255
    ours = fit_picture(picture, (32, 32)).astype(int).transpose(2, 0, 1)
    assert np.abs(ours - expected.numpy().round()).max() <= 1


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("size", [(24, 24), (16, 40), (40, 16)])
def test_the_result_has_the_models_size(mode: str, size: tuple[int, int], shape: tuple[int, int]) -> None:
    fitted = fit_picture(Image.fromarray(smooth_pixels(*shape)), size, mode, "bilinear")
    assert fitted.shape == (*size, 3)
    assert fitted.dtype == np.uint8
    assert fitted.flags.c_contiguous


def test_shortest_crops_the_centre() -> None:
    stripes = np.zeros((10, 30, 3), np.uint8)
    stripes[:, 10:20] = 200
    assert (fit_picture(Image.fromarray(stripes), (10, 10)) == 200).all()


def test_longest_pads_both_sides_alike() -> None:
    fitted = fit_picture(Image.fromarray(np.full((10, 20, 3), 50, np.uint8)), (20, 20), "longest", fill=90)
    assert (fitted[5:15] == 50).all()
    assert (fitted[:5] == 90).all()
    assert (fitted[15:] == 90).all()


def test_squash_keeps_everything() -> None:
    halves = np.zeros((8, 40, 3), np.uint8)
    halves[:, 20:] = 240
    fitted = fit_picture(Image.fromarray(halves), (8, 8), "squash", "bilinear")
    assert abs(fitted.mean() - 120) <= 2
    assert (fitted[:, 0] == 0).all()
    assert (fitted[:, -1] == 240).all()
