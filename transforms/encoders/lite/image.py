"""The `lite` image encoder: HSV histograms, local binary patterns, histograms of oriented gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from unisono.transforms.encoders.base import EncoderSpec
from unisono.transforms.media.images import decode_image

if TYPE_CHECKING:
    from PIL import Image

SIDE = 64  # every picture is resized to SIDE × SIDE pixels, whatever its shape
_HUES, _SATURATIONS, _VALUES = 8, 3, 3
_GRID_BINS = 8  # bins for each of hue, saturation and value, in each quarter of the picture
_LBP = ((8, 1), (16, 2))  # (points, radius)
_CELL, _BLOCK, _ORIENTATIONS = 16, 2, 8

_COLOURS = _HUES * _SATURATIONS * _VALUES
_LAYOUT = 4 * 3 * _GRID_BINS
_TEXTURES = 4 * sum(points + 2 for points, _ in _LBP)
_GRADIENTS = (SIDE // _CELL) ** 2 * _ORIENTATIONS
DIM = _COLOURS + _LAYOUT + _TEXTURES + _GRADIENTS


class LiteImageEncoder:
    """Describes a picture by its colours, its textures and the directions of its edges."""

    encoder_id = "lite-image-1"
    dim = DIM
    batch_cost = 256

    def __init__(self, spec: EncoderSpec) -> None:
        import skimage.feature  # it loads its submodules on first use, which must not happen in several threads

        self._hog = skimage.feature.hog
        self._lbp = skimage.feature.local_binary_pattern
        self._limits = spec.limits

    def prepare(self, raw: bytes) -> np.ndarray:
        """Decodes and describes one picture: float32 [dim].

        Raises:
            InputError: as `decode_image`.
        """
        return self.describe(decode_image(raw, self._limits, target=2 * SIDE))

    def cost(self, prepared: np.ndarray) -> int:
        """Returns 1."""
        return 1

    def encode(self, batch: Sequence[np.ndarray]) -> np.ndarray:
        """Stacks the descriptors that `prepare` returned: float32 [len(batch), dim]."""
        return np.stack(batch) if len(batch) else np.empty((0, DIM), np.float32)

    def describe(self, picture: Image.Image) -> np.ndarray:
        """Describes an RGB picture of any size: float32 [dim], unit norm.

        The square root of each histogram is taken (Hellinger kernel), so all four groups have the same norm.

        Source: Arandjelović and Zisserman, "Three things everyone should know to improve object retrieval", 2012.
        """
        from PIL import Image

        # The picture is resized to a square without padding: padding would add a colour and an edge.
        small = picture.resize((SIDE, SIDE), Image.Resampling.BOX, reducing_gap=2.0)
        hsv = np.asarray(small.convert("HSV"))
        grey = np.asarray(small.convert("L"))
        counts = (colour_histogram(hsv), layout_histogram(hsv), self.texture_histogram(grey))
        scaled = [np.sqrt(c / c.sum()) for c in counts]
        gradients = self.gradient_histogram(grey)
        # A picture of one colour has no gradients; then this group is zero.
        scaled.append(gradients / max(float(np.linalg.norm(gradients)), 1e-9))
        joined = np.concatenate(scaled)
        return (joined / np.linalg.norm(joined)).astype(np.float32)

    def texture_histogram(self, grey: np.ndarray) -> np.ndarray:
        """Counts uniform local binary patterns in each quarter: float64 [4 × (10 + 18)].

        Source: Ojala, Pietikäinen and Mäenpää, "Multiresolution gray-scale and rotation invariant texture
        classification with local binary patterns", 2002.
        """
        counts = []
        for points, radius in _LBP:
            codes = self._lbp(grey, points, radius, method="uniform").astype(np.int64)
            counts.append(_count(_quarter(codes.shape) * (points + 2) + codes, 4 * (points + 2)))
        return np.concatenate(counts)

    def gradient_histogram(self, grey: np.ndarray) -> np.ndarray:
        """Sums gradients by direction in each cell: float64 [4 × 4 × 8].

        A cell lies in up to four blocks. Its histogram is normalised in each of these blocks, and the results are
        averaged.

        Source: Dalal and Triggs, "Histograms of oriented gradients for human detection", 2005. For the average:
        Felzenszwalb et al., "Object detection with discriminatively trained part-based models", 2010, section 6.1.
        """
        blocks = self._hog(
            grey, _ORIENTATIONS, (_CELL, _CELL), (_BLOCK, _BLOCK), block_norm="L2-Hys", feature_vector=False
        )
        side = SIDE // _CELL
        rows = np.arange(side - _BLOCK + 1)
        total = np.zeros((side, side, _ORIENTATIONS))
        times = np.zeros((side, side, 1))
        for down in range(_BLOCK):
            for right in range(_BLOCK):
                at = np.ix_(rows + down, rows + right)
                total[at] += blocks[:, :, down, right]
                times[at] += 1.0
        return (total / times).ravel()


def colour_histogram(hsv: np.ndarray) -> np.ndarray:
    """Counts the joint bins of hue, saturation and value in uint8 [h, w, 3]: float64 [72]."""
    hue, saturation, value = (
        hsv[..., channel].astype(np.int64) * bins // 256
        for channel, bins in enumerate((_HUES, _SATURATIONS, _VALUES))
    )
    return _count((hue * _SATURATIONS + saturation) * _VALUES + value, _COLOURS)


def layout_histogram(hsv: np.ndarray) -> np.ndarray:
    """Makes histograms of hue, saturation and value in each quarter of uint8 [h, w, 3]: float64 [96].

    A pixel counts for its hue by its saturation, because grey has no hue.
    """
    bins = hsv.astype(np.int64) * _GRID_BINS // 256
    quarter = _quarter(hsv.shape[:2]) * _GRID_BINS
    size = 4 * _GRID_BINS
    hue = np.bincount((quarter + bins[..., 0]).ravel(), hsv[..., 1].ravel() / 255.0, minlength=size)
    return np.concatenate([hue, *(_count(quarter + bins[..., channel], size) for channel in (1, 2))])


def _quarter(shape: tuple[int, ...]) -> np.ndarray:
    """Returns the quarter of the picture, 0 … 3, that each pixel lies in: int64 [h, w]."""
    rows, columns = (np.arange(n) * 2 // n for n in shape)
    return rows[:, None] * 2 + columns


def _count(codes: np.ndarray, size: int) -> np.ndarray:
    return np.bincount(codes.ravel(), minlength=size).astype(np.float64)
