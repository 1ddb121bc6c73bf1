"""CLAP's features, compared with those of transformers' extractor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.transforms.encoders.clap.reference import KINDS, RATE, reference, wave
from unisono.transforms.encoders.clap.features import MelFeatures, pad_clip, read_recipe


@pytest.mark.parametrize("padding", ["repeatpad", "repeat", "pad"])
@pytest.mark.parametrize("kind", KINDS)
def test_features_are_those_of_the_extractor(kind: str, padding: str, tmp_path: Path) -> None:
    import transformers as hf

    extractor = hf.ClapFeatureExtractor(truncation=kind, padding=padding, max_length_s=1)
    extractor.save_pretrained(tmp_path)
    recipe = read_recipe("k", tmp_path)
    clips = [wave(s, i) for i, s in enumerate((1.0, 0.3, 0.5, 0.013, 0.999))] + [np.zeros(RATE, np.float32)]
    expected = extractor(clips, sampling_rate=RATE, return_tensors="np")["input_features"]
    padded = np.empty((len(clips), recipe.window), np.float32)
    for clip, out in zip(clips, padded, strict=True):
        pad_clip(clip, out, padding)
    import torch

    ours = MelFeatures(recipe, "cpu")(torch.from_numpy(padded)).numpy()
    assert ours.shape == expected[:, 0].shape
    np.testing.assert_allclose(ours, expected[:, 0], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "config",
    [{"sampling_rate": 16_000, "hop_length": 160, "fft_window_size": 512, "frequency_min": 50, "frequency_max": 8000},
     {"feature_size": 80, "hop_length": 333, "fft_window_size": 1200, "frequency_max": 24_000}],
    ids=["16 kHz", "80 bands, odd hop"],
)  # fmt: skip
@pytest.mark.parametrize("kind", KINDS)
def test_features_follow_the_checkpoints_own_settings(kind: str, config: dict[str, Any], tmp_path: Path) -> None:
    import torch
    import transformers as hf

    extractor: Any = hf.ClapFeatureExtractor(truncation=kind, max_length_s=1, **config)
    extractor.save_pretrained(tmp_path)
    rate = config.get("sampling_rate", RATE)
    clips = np.stack([wave(1.0, i, rate) for i in range(3)])
    expected = extractor(list(clips), sampling_rate=rate, return_tensors="np")["input_features"]
    ours = MelFeatures(read_recipe("k", tmp_path), "cpu")(torch.from_numpy(clips)).numpy()
    np.testing.assert_allclose(ours, expected[:, 0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("seconds", [1.005, 1.011, 1.3, 4.0])
def test_fused_features_are_those_of_the_extractor(
    seconds: float, checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    extractor, _ = reference(checkpoints["fusion"])
    monkeypatch.setattr(np.random, "choice", lambda a: a[round(0.5 * (len(a) - 1))])  # the middle, not a random draw
    clip = wave(seconds)
    expected = extractor([clip], sampling_rate=RATE, return_tensors="np")["input_features"][0]
    ours = MelFeatures(read_recipe("k", checkpoints["fusion"]), "cpu").fused(clip)
    np.testing.assert_allclose(ours, expected, atol=1e-4, rtol=0)
