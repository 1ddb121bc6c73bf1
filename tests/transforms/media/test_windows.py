"""Windows cover a clip evenly, and there are no more of them than wanted."""

from __future__ import annotations

import numpy as np
import pytest

from unisono.transforms.media.windows import window_starts


@pytest.mark.parametrize("samples", [100, 101, 105, 106, 199, 200, 205, 206, 1000, 12345])
@pytest.mark.parametrize("most", [1, 4, 1000])
def test_windows_cover_a_clip(samples: int, most: int) -> None:
    starts = window_starts(samples, 100, 50, most)
    assert len(starts) <= most
    assert starts == sorted(set(starts))
    assert 0 <= min(starts) <= max(starts) <= samples - 100
    if len(starts) > 1:
        assert [starts[0], starts[-1]] == [0, samples - 100]
    if len(starts) < most:
        assert max(np.diff([*starts, samples - 100]), default=0) <= 55
