"""Audio decoding: every container against the samples that went in, every bad file with its reason."""

from __future__ import annotations

import io
import struct
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import soundfile
from scipy import signal

from tests.paths import STAMPS
from unisono.transforms.base.errors import InputError, Reason
from unisono.transforms.media.audio import decode_audio
from unisono.transforms.media.limits import MediaLimits

SOUNDS = STAMPS / "audio"


def tone(rate: int, seconds: float = 1.0, hz: float = 440.0) -> np.ndarray:
    """A tone that fades in and out: float64 [samples]."""
    t = np.arange(round(rate * seconds)) / rate
    return 0.5 * np.sin(2 * np.pi * hz * t) * np.sin(np.pi * t / seconds) ** 2


def save(samples: np.ndarray, rate: int, form: str = "WAV", subtype: str | None = None) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate, format=form, subtype=subtype)
    return stream.getvalue()


def reason_of(data: bytes, **limits: Any) -> Reason:
    with pytest.raises(InputError) as caught:
        decode_audio(data, MediaLimits(**limits))
    assert "0x" not in caught.value.detail  # no memory address: letters are equal from run to run
    return caught.value.reason


def without_xing(mp3: bytes) -> bytes:
    """Drops an MP3's first frame, which holds nothing but the Info header."""
    at = mp3.index(b"\xff\xfb", 4)
    assert b"Info" in mp3[:at] or b"Xing" in mp3[:at]
    return mp3[at:]


# --- containers --------------------------------------------------------------------------------------------


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
    decoded = decode_audio(save(samples, 48_000, form, subtype), sample_rate_hz=48_000)
    assert decoded.dtype == np.float32
    assert abs(len(decoded) - len(samples)) <= 2500  # lossy coders pad
    n = min(len(decoded), len(samples))
    assert np.abs(decoded[:n] - samples[:n]).max() <= error


def test_channels_are_averaged() -> None:
    left, right = tone(22_050, hz=300), tone(22_050, hz=1000)
    data = save(np.stack([left, right, 0 * left], axis=1), 22_050, subtype="FLOAT")
    np.testing.assert_allclose(decode_audio(data), (left + right) / 3, atol=1e-6)


@pytest.mark.parametrize("rate", [5_000, 8_000, 11_127, 16_000, 44_100, 96_000])
def test_resampling_keeps_the_tone(rate: int) -> None:
    decoded = decode_audio(save(tone(rate, 2.0), rate, subtype="FLOAT"), sample_rate_hz=22_050)
    assert abs(len(decoded) - 44_100) <= 1
    # The same tone, computed at the new rate; soxr's filters ring a little where it fades in.
    n = min(len(decoded), 44_100)
    assert np.abs(decoded[:n] - tone(22_050, 2.0)[:n]).max() <= 2e-4


def test_resampling_against_scipy_has_no_alias() -> None:
    noise = np.random.default_rng(0).standard_normal(44_100) * 0.1
    decoded = decode_audio(save(noise, 44_100, subtype="FLOAT"), sample_rate_hz=22_050)
    _, mine = signal.welch(decoded, 22_050, nperseg=512)
    _, scipys = signal.welch(signal.resample_poly(noise, 1, 2, window=("kaiser", 12.0)), 22_050, nperseg=512)
    np.testing.assert_allclose(mine[:180], scipys[:180], rtol=0.02)


def test_blocks_join_without_a_seam() -> None:
    samples = np.random.default_rng(1).uniform(-0.5, 0.5, (150_000, 16))  # 2.4 million values: three blocks
    for form in ("WAV", "FLAC"):
        stored = save(samples[:, :8] if form == "FLAC" else samples, 44_100, form, "PCM_16")
        expected, _ = soundfile.read(io.BytesIO(stored), dtype="float32")
        decoded = decode_audio(stored, sample_rate_hz=44_100)
        np.testing.assert_allclose(decoded, expected.mean(axis=1, dtype=np.float64), atol=1e-6)


def test_mp3_block_by_block_is_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    data = save(tone(44_100, 3.0), 44_100, "MP3")
    whole = decode_audio(data)
    monkeypatch.setattr("unisono.transforms.media.audio._BLOCK_VALUES", 10_000)
    np.testing.assert_array_equal(decode_audio(data), whole)


@pytest.mark.parametrize("frames", [1, 2, 3, 100])
@pytest.mark.parametrize("rate", [8_000, 22_050, 48_000])
def test_very_short_and_silent_clips(frames: int, rate: int) -> None:
    decoded = decode_audio(save(np.zeros(frames), rate))
    assert len(decoded) >= 1
    assert (decoded == 0).all()


def test_only_the_first_seconds() -> None:
    for form in ("WAV", "FLAC", "OGG", "MP3"):
        data = save(tone(22_050, 2.0), 22_050, form)
        np.testing.assert_array_equal(decode_audio(data, seconds=0.5), decode_audio(data)[:11_025])


# --- reasons -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(b"", Reason.EMPTY_FILE, id="zero-bytes"),
        pytest.param(save(np.zeros(0), 8_000), Reason.EMPTY_FILE, id="no-samples"),
        pytest.param(b"I am no sound at all", Reason.NOT_AUDIO, id="text"),
        pytest.param(bytes(500), Reason.NOT_AUDIO, id="zeros"),
        pytest.param(b"\x89PNG\r\n\x1a\n" + bytes(100), Reason.NOT_AUDIO, id="picture"),
        pytest.param(b"\xff\xd8\xff\xe0" + bytes(100), Reason.NOT_AUDIO, id="jpeg"),
        pytest.param(b"ID3\x04\0\0\0\0\0\x0a" + b"tag only  ", Reason.NOT_AUDIO, id="id3-only"),
        pytest.param(b"\0\0\0\x20ftypM4A \0\0\0\0", Reason.UNSUPPORTED_FORMAT, id="m4a"),
        pytest.param(b"\xff\xf1\x50\x80" + bytes(100), Reason.UNSUPPORTED_FORMAT, id="aac"),
        pytest.param(b"\x1a\x45\xdf\xa3" + bytes(100), Reason.UNSUPPORTED_FORMAT, id="webm"),
        pytest.param(b"MThd\0\0\0\x06" + bytes(20), Reason.UNSUPPORTED_FORMAT, id="midi"),
        pytest.param(
            b"OggS\0\2" + bytes(20) + b"\1\x10Speex   " + bytes(8), Reason.UNSUPPORTED_FORMAT, id="speex"
        ),
        pytest.param(save(np.array([0.0, np.nan, 0.5]), 8_000, subtype="FLOAT"), Reason.NOT_AUDIO, id="nan"),
    ],
)
def test_files_that_are_no_audio(data: bytes, reason: Reason) -> None:
    assert reason_of(data) is reason


def test_unknown_codec_in_a_wav() -> None:
    data = bytearray(save(tone(8_000), 8_000))
    data[20:22] = struct.pack("<H", 0x0161)  # Windows Media Audio
    assert reason_of(bytes(data)) is Reason.UNSUPPORTED_FORMAT


@pytest.mark.parametrize("form", ["WAV", "RF64", "AIFF", "FLAC", "OGG", "MP3"])
def test_cut_files_are_truncated(form: str) -> None:
    data = save(tone(44_100, 3.0), 44_100, form)
    for part in (0.4, 0.7, 0.97):
        assert reason_of(data[: int(len(data) * part)]) is Reason.TRUNCATED


def test_a_wav_from_a_pipe_states_no_size() -> None:
    data = bytearray(save(tone(22_050), 22_050))
    data[4:8] = data[40:44] = b"\xff\xff\xff\xff"
    np.testing.assert_array_equal(decode_audio(bytes(data)), decode_audio(save(tone(22_050), 22_050)))


@pytest.mark.parametrize("form", ["WAV", "FLAC", "OGG", "MP3"])
def test_too_long_by_the_header(form: str) -> None:
    data = save(np.zeros(8_000 * 20), 8_000, form)
    assert reason_of(data, max_audio_seconds=19.0) is Reason.TOO_LONG
    assert len(decode_audio(data, MediaLimits(max_audio_seconds=21.0), 8_000)) >= 160_000


def test_too_long_stops_decoding_where_the_header_is_silent() -> None:
    data = without_xing(save(tone(44_100, 10.0), 44_100, "MP3"))
    assert reason_of(data, max_audio_seconds=5.0) is Reason.TOO_LONG
    assert abs(len(decode_audio(data, MediaLimits(max_audio_seconds=11.0), 44_100)) - 441_000) <= 4_000


def test_threads_get_what_one_thread_gets() -> None:
    tones = [tone(44_100, 0.5, 200.0 + 50 * i) for i in range(6)]
    files = [save(samples, 44_100, form) for samples in tones for form in ("WAV", "OGG", "FLAC")]
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
