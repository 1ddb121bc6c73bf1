"""The lite audio encoder, compared with librosa."""

from __future__ import annotations

import numpy as np
import pytest

from tests.transforms.encoders.lite.examples import chirp, lite, wav
from unisono.transforms.encoders.lite import audio as lite_audio


def test_spectra_are_librosas() -> None:
    librosa = pytest.importorskip("librosa")
    encoder = lite("audio")
    samples = chirp()
    samples /= np.abs(samples).max()
    mel, chroma = encoder.spectra(samples)
    power = librosa.feature.melspectrogram(y=samples, sr=22_050, n_mels=64)
    expected = librosa.power_to_db(power, top_db=80.0)
    np.testing.assert_allclose(mel, expected, atol=0.02)
    np.testing.assert_allclose(
        chroma, librosa.feature.chroma_stft(y=samples, sr=22_050, tuning=0.0, n_chroma=12), atol=1e-3
    )
    np.testing.assert_allclose(
        lite_audio.chroma_filters(), librosa.filters.chroma(sr=22_050, n_fft=2048, tuning=0.0), atol=1e-6
    )
    # The statistics of four groups, from librosa's own features over the frames that are not pauses.
    mfcc = librosa.feature.mfcc(S=expected, n_mfcc=20)
    active = expected.max(axis=0) >= expected.max() - lite_audio.ACTIVE_DB
    start = 0
    groups = {}
    row = encoder.describe(samples)
    for name, width, weight in lite_audio._GROUPS:
        groups[name] = row[start : start + width] / np.sqrt(weight)
        start += width
    for name, feature in (
        ("mel_std", expected),
        ("mfcc_std", mfcc),
        ("mfcc_delta", librosa.feature.delta(mfcc, mode="nearest")),
        ("mfcc_delta2", librosa.feature.delta(mfcc, order=2, mode="nearest")),
    ):
        deviation = feature[:, active].std(axis=1)
        np.testing.assert_allclose(groups[name], deviation / np.linalg.norm(deviation), atol=1e-3)


def test_gain_does_not_matter_and_pitch_does() -> None:
    encoder = lite("audio")
    quiet, loud = (encoder.prepare(wav(chirp() * gain)) for gain in (0.01, 0.9))
    np.testing.assert_allclose(quiet, loud, atol=2e-3)
    t = np.arange(22_050) / 22_050
    low, high = (encoder.prepare(wav(np.sin(2 * np.pi * hz * t))) for hz in (220.0, 1760.0))
    assert low @ high < 0.9 * (low @ low)


@pytest.mark.parametrize(
    "samples",
    [
        pytest.param(np.zeros(22_050), id="silence"),
        pytest.param(np.zeros(1), id="one-zero"),
        pytest.param(np.ones(1), id="one-sample"),
        pytest.param(np.full(5_000, 0.5), id="constant"),
        pytest.param(chirp(0.05), id="short"),
        pytest.param(chirp(0.5) * 1e30, id="huge"),
        pytest.param(chirp(0.5) * 1e-9, id="faint"),
        pytest.param(chirp(40.0), id="past-the-listening-time"),
    ],
)
def test_odd_sounds_are_finite(samples: np.ndarray) -> None:
    encoder = lite("audio")
    row = encoder.prepare(wav(samples))
    assert np.isfinite(row).all()
    assert np.linalg.norm(row) < 3
