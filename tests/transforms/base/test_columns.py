"""Helpers on rows, compared with NumPy row by row."""

from __future__ import annotations

import numpy as np
import pytest

from unisono.transforms.base.columns import row_lengths, unit_rows


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("given", [False, True], ids=["own lengths", "given lengths"])
def test_rows_are_scaled_to_unit_length_and_zeros_stay(dtype: type, given: bool) -> None:
    vectors: np.ndarray = np.random.default_rng(0).standard_normal((20, 7)).astype(dtype)
    vectors[[3, 8]] = 0
    lengths = row_lengths(vectors)
    assert lengths.dtype == dtype
    np.testing.assert_allclose(lengths, [np.sqrt(sum(float(x) ** 2 for x in row)) for row in vectors], rtol=1e-6)
    found = unit_rows(vectors, lengths if given else None)
    assert found.dtype == dtype
    for row, unit, length in zip(vectors, found, lengths, strict=True):
        np.testing.assert_allclose(unit, row / length if length else row, rtol=1e-5)
    assert unit_rows(np.zeros((0, 4))).shape == (0, 4)
