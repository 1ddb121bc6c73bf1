"""Keys of encoders, text towers, and unit vectors."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from unisono.transforms.encoders.base import Encoder, EncoderSpec, text_tower_of, to_units


def test_a_spec_names_its_key_and_is_hashable() -> None:
    spec = EncoderSpec("image", "lite", (("a", ("b", "c")),))
    assert spec.key == "encoders.image"
    assert {spec: 1}[EncoderSpec("image", "lite", (("a", ("b", "c")),))] == 1


def test_only_some_encoders_have_a_text_tower() -> None:
    tower: Any = object()
    assert text_tower_of(cast(Encoder, SimpleNamespace(text_tower=tower))) is tower
    assert text_tower_of(cast(Encoder, SimpleNamespace(text_tower=None))) is None
    assert text_tower_of(cast(Encoder, SimpleNamespace())) is None


def test_unit_vectors_keep_zero_and_nan() -> None:
    units = to_units(np.array([[3, 4], [0, 0], [np.nan, 1]], np.float32))
    assert units.dtype == np.float64
    np.testing.assert_allclose(units[:2], np.array([[0.6, 0.8], [0, 0]]))
    assert np.isnan(units[2]).any()
