"""Decodes audio files into mono waveforms, within limits, and says why a file cannot be decoded."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

from unisono.transforms.base.errors import InputError, Reason
from unisono.transforms.media.audio_formats import has_unknown_codec, identify_audio, is_cut_audio, xing_bytes
from unisono.transforms.media.limits import MediaLimits

if TYPE_CHECKING:
    import soundfile

_BLOCK_VALUES = 2**20  # samples, over all channels, that are held at once before they are mixed down
_MIN_RATE_HZ, _MAX_RATE_HZ = 1_000, 768_000


def decode_audio(
    data: bytes, limits: MediaLimits | None = None, sample_rate_hz: int = 22_050, seconds: float | None = None
) -> np.ndarray:
    """Decodes an audio file into a mono waveform: the mean of its channels, resampled by soxr (quality `HQ`).

    Safe to call from several threads. Channels are mixed down block by block, so the memory needed is that of the
    mono clip.

    Args:
        data: the file as stored: WAV, FLAC, Ogg (Vorbis, Opus, FLAC), MP3 or AIFF.
        limits: `max_audio_seconds` is checked against the length that the header states, before anything is decoded.
            Where the header states no length (an MP3 without a Xing header), decoding stops at the limit.
        sample_rate_hz: the sample rate of the result.
        seconds: only this much from the beginning of the clip is decoded. None means the whole clip.

    Returns:
        float32 [samples], at least one sample. Full scale is ±1; a file of floats may exceed it.

    Raises:
        InputError: EMPTY_FILE (no bytes, or no samples), UNSUPPORTED_FORMAT, NOT_AUDIO, TOO_LONG, or TRUNCATED (the
            header or the container promises more than the file holds).
    """
    import soxr

    name = identify_audio(data)
    if is_cut_audio(data, name):
        raise InputError(Reason.TRUNCATED, f"{name} of {len(data)} bytes: the file ends before its data does")
    mono, rate = _decode_mono(data, name, (limits or MediaLimits()).max_audio_seconds, seconds)
    if not np.isfinite(mono).all():
        raise InputError(Reason.NOT_AUDIO, f"{name} with samples that are not finite")
    if rate == sample_rate_hz:
        return mono
    resampled = soxr.resample(mono, rate, sample_rate_hz)
    return resampled if len(resampled) else mono[:1]


def _decode_mono(data: bytes, name: str, max_seconds: float, seconds: float | None) -> tuple[np.ndarray, int]:
    """Decodes an audio file at its own sample rate.

    Args:
        data: the file.
        name: its container.
        max_seconds: a longer clip is refused.
        seconds: as in `decode_audio`.

    Returns:
        The mono waveform, float32 [samples], and its sample rate in Hz.

    Raises:
        InputError: UNSUPPORTED_FORMAT, NOT_AUDIO, TOO_LONG, TRUNCATED, EMPTY_FILE.
    """
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            # After each read of a seekable file, soundfile seeks to the place where it should be. That costs time, and
            # in an MP3 it misses the place by a little, so that blocks would not join.
            file.seekable = lambda: False
            rate = file.samplerate
            if not _MIN_RATE_HZ <= rate <= _MAX_RATE_HZ:
                raise InputError(Reason.UNSUPPORTED_FORMAT, f"a sample rate of {rate} Hz")
            promised = file.frames if name != "MP3" or xing_bytes(data) is not None else None
            if promised is not None and promised > max_seconds * rate:
                raise _too_long(promised / rate, max_seconds)
            wanted = None if seconds is None else max(1, round(seconds * rate))
            mono = _read_mono(file, wanted, int(max_seconds * rate) + 1, promised)
    except soundfile.LibsndfileError as error:
        # `error_string` and not `str(error)`, which holds a memory address: a dead letter must be equal in every run.
        why = error.error_string
        unknown = name == "WAV" and has_unknown_codec(data)
        if unknown or "unsupported" in why.lower() or "not implemented" in why.lower():
            raise InputError(Reason.UNSUPPORTED_FORMAT, f"{name}: {why}") from error
        raise InputError(Reason.NOT_AUDIO, f"{name} that cannot be decoded: {why}") from error
    if len(mono) > max_seconds * rate:
        raise _too_long(len(mono) / rate, max_seconds)
    return mono, rate


def _too_long(seconds: float, limit: float) -> InputError:
    return InputError(Reason.TOO_LONG, f"{seconds:.1f} s or more, the limit is {limit:g} s")


def _read_mono(file: soundfile.SoundFile, wanted: int | None, stop: int, promised: int | None) -> np.ndarray:
    """Reads frames block by block and mixes them down.

    Args:
        file: open for reading.
        wanted: the number of frames that the caller needs. None means all.
        stop: never read more frames than this.
        promised: the number of frames that the header states. None means that it states none.

    Returns:
        float32 [frames], contiguous.

    Raises:
        InputError: TRUNCATED (there are fewer frames than promised), NOT_AUDIO (decoding failed), EMPTY_FILE (there
            are no frames).
    """
    from soundfile import LibsndfileError

    end = min(stop, wanted if wanted is not None else stop)
    block = max(1, _BLOCK_VALUES // file.channels)
    blocks: list[np.ndarray] = []
    got = 0
    failure = ""
    while got < end:
        try:
            frames = file.read(min(block, end - got), dtype="float32", always_2d=True)
        except LibsndfileError as error:
            failure = f" ({error.error_string})"
            break
        if len(frames) == 0:
            break
        got += len(frames)
        blocks.append(frames[:, 0] if file.channels == 1 else frames.mean(axis=1))
    if promised is not None and got < min(promised, end):
        raise InputError(Reason.TRUNCATED, f"{file.format}: {got} frames, {promised} promised by the header{failure}")
    if failure:
        raise InputError(Reason.NOT_AUDIO, f"{file.format}: broken after {got} frames{failure}")
    if got == 0:
        raise InputError(Reason.EMPTY_FILE, f"{file.format} with 0 samples")
    return np.ascontiguousarray(np.concatenate(blocks))
