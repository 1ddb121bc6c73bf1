"""Decodes every container and compares it with the samples that were written; long clips and limits."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import soundfile
from scipy import signal

from tests.media_files import sound_file, tone
from tests.paths import STAMPS
from unisono.transforms.base.errors import InputError, Reason
from unisono.transforms.media.audio import decode_audio
from unisono.transforms.media.limits import MediaLimits

SOUNDS = STAMPS / "audio"


def reason_of(data: bytes, max_seconds: float) -> Reason:
    with pytest.raises(InputError) as caught:
        decode_audio(data, MediaLimits(max_audio_seconds=max_seconds))
    assert "0x" not in caught.value.detail  # a memory address would make the dead letter differ between runs
    return caught.value.reason


def without_xing(mp3: bytes) -> bytes:
    """Drops an MP3's first frame, which holds nothing but the Info header."""
    at = mp3.index(b"\xff\xfb", 4)
    assert b"Info" in mp3[:at] or b"Xing" in mp3[:at]
    return mp3[at:]


@pytest.mark.parametrize(
    ("form", "subtype", "error"),
    [
        pytest.param("WAV", "PCM_16", 1e-4, id="wav"),
        pytest.param("WAV", "PCM_U8", 1e-2, id="wav-8-bit"),
        pytest.param("WAV", "FLOAT", 1e-6, id="wav-float"),
        pytest.param("RF64", "PCM_24", 1e-4, id="rf64"),
        pytest.param("AIFF", "PCM_16", 1e-4, id="aiff"),
        pytest.param("FLAC", "PCM_16", 1e-4, id="flac"),
        pytest.param("OGG", "VORBIS", 2e-2, id="ogg-vorbis"),
        pytest.param("OGG", "OPUS", 2e-2, id="ogg-opus"),
        pytest.param("MP3", "MPEG_LAYER_III", 2e-2, id="mp3"),
    ],
)
def test_containers(form: str, subtype: str, error: float) -> None:
    samples = tone(48_000)
    decoded = decode_audio(sound_file(samples, 48_000, form, subtype), sample_rate_hz=48_000)
    assert decoded.dtype == np.float32
    assert abs(len(decoded) - len(samples)) <= 2500  # lossy coders pad
    n = min(len(decoded), len(samples))
    assert np.abs(decoded[:n] - samples[:n]).max() <= error


def test_channels_are_averaged() -> None:
    left, right = tone(22_050, hz=300), tone(22_050, hz=1000)
    data = sound_file(np.stack([left, right, 0 * left], axis=1), 22_050, subtype="FLOAT")
    np.testing.assert_allclose(decode_audio(data), (left + right) / 3, atol=1e-6)


@pytest.mark.parametrize("rate", [5_000, 8_000, 11_127, 16_000, 44_100, 96_000])
def test_resampling_keeps_the_tone(rate: int) -> None:
    decoded = decode_audio(sound_file(tone(rate, 2.0), rate, subtype="FLOAT"), sample_rate_hz=22_050)
    assert abs(len(decoded) - 44_100) <= 1
    # The same tone, computed at the new rate; soxr's filters ring a little where it fades in.
    n = min(len(decoded), 44_100)
    assert np.abs(decoded[:n] - tone(22_050, 2.0)[:n]).max() <= 2e-4


def test_resampling_against_scipy_has_no_alias() -> None:
    noise = np.random.default_rng(0).standard_normal(44_100) * 0.1
    decoded = decode_audio(sound_file(noise, 44_100, subtype="FLOAT"), sample_rate_hz=22_050)
    _, mine = signal.welch(decoded, 22_050, nperseg=512)
    _, scipys = signal.welch(signal.resample_poly(noise, 1, 2, window=("kaiser", 12.0)), 22_050, nperseg=512)
    np.testing.assert_allclose(mine[:180], scipys[:180], rtol=0.02)


def test_blocks_join_without_a_seam() -> None:
    samples = np.random.default_rng(1).uniform(-0.5, 0.5, (150_000, 16))  # 2.4 million values: three blocks
    for form in ("WAV", "FLAC"):
        stored = sound_file(samples[:, :8] if form == "FLAC" else samples, 44_100, form, "PCM_16")
        expected, _ = soundfile.read(io.BytesIO(stored), dtype="float32")
        decoded = decode_audio(stored, sample_rate_hz=44_100)
        np.testing.assert_allclose(decoded, expected.mean(axis=1, dtype=np.float64), atol=1e-6)


def test_mp3_block_by_block_is_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    data = sound_file(tone(44_100, 3.0), 44_100, "MP3")
    whole = decode_audio(data)
    monkeypatch.setattr("unisono.transforms.media.audio._BLOCK_VALUES", 10_000)
    np.testing.assert_array_equal(decode_audio(data), whole)


@pytest.mark.parametrize("frames", [1, 2, 3, 100])
@pytest.mark.parametrize("rate", [8_000, 22_050, 48_000])
def test_very_short_and_silent_clips(frames: int, rate: int) -> None:
    decoded = decode_audio(sound_file(np.zeros(frames), rate))
    assert len(decoded) >= 1
    assert (decoded == 0).all()


def test_only_the_first_seconds() -> None:
    for form in ("WAV", "FLAC", "OGG", "MP3"):
        data = sound_file(tone(22_050, 2.0), 22_050, form)
        np.testing.assert_array_equal(decode_audio(data, seconds=0.5), decode_audio(data)[:11_025])


@pytest.mark.parametrize("form", ["WAV", "FLAC", "OGG", "MP3"])
def test_too_long_by_the_header(form: str) -> None:
    data = sound_file(np.zeros(8_000 * 20), 8_000, form)
    assert reason_of(data, max_seconds=19.0) is Reason.TOO_LONG
    assert len(decode_audio(data, MediaLimits(max_audio_seconds=21.0), 8_000)) >= 160_000


def test_too_long_stops_decoding_where_the_header_is_silent() -> None:
    data = without_xing(sound_file(tone(44_100, 10.0), 44_100, "MP3"))
    assert reason_of(data, max_seconds=5.0) is Reason.TOO_LONG
    assert abs(len(decode_audio(data, MediaLimits(max_audio_seconds=11.0), 44_100)) - 441_000) <= 4_000


def test_threads_get_what_one_thread_gets() -> None:
    tones = [tone(44_100, 0.5, 200.0 + 50 * i) for i in range(6)]
    files = [sound_file(samples, 44_100, form) for samples in tones for form in ("WAV", "OGG", "FLAC")]
    with ThreadPoolExecutor(8) as pool:
        threaded = list(pool.map(decode_audio, files))
    for data, samples in zip(files, threaded, strict=True):
        np.testing.assert_array_equal(samples, decode_audio(data))


@pytest.mark.skipif(not SOUNDS.is_dir(), reason="the stamps are not here")
def test_every_stamp() -> None:
    for path in SOUNDS.iterdir():
        samples = decode_audio(path.read_bytes())
        info = soundfile.info(path)
        assert abs(len(samples) / 22_050 - info.frames / info.samplerate) <= 1e-3
