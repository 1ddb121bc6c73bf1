"""Audio files into mono waveforms, within limits, and with a reason for each file that is none."""

from __future__ import annotations

import io

import numpy as np
import soundfile
import soxr

from unisono.transforms.base.errors import InputError, Reason
from unisono.transforms.media.limits import MediaLimits

_BLOCK_VALUES = 2**20  # samples over all channels that are held at once before they are mixed down
_MIN_RATE_HZ, _MAX_RATE_HZ = 1_000, 768_000
_UNKNOWN_SIZE = 0x7FFFFF00  # writers that cannot seek leave the largest size they can in the header
# `fmt ` codes that libsndfile knows: PCM, Microsoft ADPCM, float, A-law, µ-law, IMA ADPCM, GSM, extensible.
_WAV_CODECS = (1, 2, 3, 6, 7, 0x11, 0x31, 0xFFFE)

# (offset, magic, name): what is no audio file for libsndfile, or none whose end it can be trusted to find.
_UNSUPPORTED = (
    (4, b"ftyp", "MP4 (AAC, ALAC)"),
    (0, b"\x30\x26\xb2\x75", "Windows Media"),
    (0, b"\x1a\x45\xdf\xa3", "Matroska or WebM"),
    (0, b"#!AMR", "AMR"),
    (0, b"MThd", "MIDI"),
    (0, b"MAC ", "Monkey's Audio"),
    (0, b"wvpk", "WavPack"),
    (0, b"DSD ", "DSD"),
    (0, b".snd", "Sun audio"),
    (0, b"caff", "Core Audio"),
    (0, b"riff", "Wave64"),
    (0, b"ADIF", "AAC"),
)


class _ForwardFile(soundfile.SoundFile):
    """A file read from front to back.

    After every read of a seekable file soundfile seeks to where it should be. That costs time and, in an MP3,
    lands a little off: blocks would not join.
    """

    def seekable(self) -> bool:
        return False


def decode_audio(
    data: bytes, limits: MediaLimits | None = None, sample_rate_hz: int = 22_050, seconds: float | None = None
) -> np.ndarray:
    """Decodes an audio file into a mono waveform: the mean of its channels, resampled by soxr (`HQ`).

    Safe to call from several threads. Memory is that of the mono clip: channels are mixed down block by
    block.

    Args:
        data: the file as stored: WAV, FLAC, Ogg (Vorbis, Opus, FLAC), MP3, AIFF.
        limits: `max_audio_seconds` holds for the length that the header states, before anything is decoded;
            where the header states none (MP3 without a Xing header), decoding stops there.
        sample_rate_hz: of the result.
        seconds: decode no more than the first so many seconds. None: all.

    Returns:
        float32 [samples], at least one sample; full scale is ±1, a float file may exceed it.

    Raises:
        InputError: EMPTY_FILE (no bytes, or no samples), UNSUPPORTED_FORMAT, NOT_AUDIO, TRUNCATED (the header
            or the container promises more than there is), TOO_LONG.
    """
    name = _identify(data)
    if _is_cut(data, name):
        raise InputError(Reason.TRUNCATED, f"{name} of {len(data)} bytes: the file ends before its data does")
    max_seconds = (limits or MediaLimits()).max_audio_seconds
    try:
        with _ForwardFile(io.BytesIO(data)) as file:
            rate = file.samplerate
            if not _MIN_RATE_HZ <= rate <= _MAX_RATE_HZ:
                raise InputError(Reason.UNSUPPORTED_FORMAT, f"a sample rate of {rate} Hz")
            # Without a Xing header libsndfile only guesses how long an MP3 is.
            promised = file.frames if name != "MP3" or _xing_bytes(data) is not None else None
            if promised is not None and promised > max_seconds * rate:
                raise _too_long(promised / rate, max_seconds)
            wanted = None if seconds is None else max(1, round(seconds * rate))
            mono = _read_mono(file, wanted, int(max_seconds * rate) + 1, promised)
    except soundfile.LibsndfileError as error:
        # The text of this library's other messages holds a memory address; a dead letter is the same on every
        # run.
        why = error.error_string
        strange = name == "WAV" and _wav_codec(data) not in _WAV_CODECS
        if strange or "unsupported" in why.lower() or "not implemented" in why.lower():
            raise InputError(Reason.UNSUPPORTED_FORMAT, f"{name}: {why}") from error
        raise InputError(Reason.NOT_AUDIO, f"{name} that cannot be decoded: {why}") from error
    if len(mono) > max_seconds * rate:
        raise _too_long(len(mono) / rate, max_seconds)
    if not np.isfinite(mono).all():
        raise InputError(Reason.NOT_AUDIO, f"{name} with samples that are not finite")
    if rate == sample_rate_hz:
        return mono
    resampled = soxr.resample(mono, rate, sample_rate_hz)
    return resampled if len(resampled) else mono[:1]


def window_starts(samples: int, window: int, hop: int, most: int) -> list[int]:
    """Places windows over a clip: spread evenly from its beginning to its end.

    As many as lie at most `hop` apart, but no more than `most`; a rest under a twentieth of the window (the silence
    that an MP3 encoder adds) is not worth one. A single window lies in the middle.

    Args:
        samples, window, hop: lengths in samples; `samples` ≥ `window`.
        most: windows.

    Returns:
        First samples, rising.
    """
    rest = samples - window
    wanted = 1 + -(-max(0, rest - window // 20) // hop)
    count = min(most, wanted)
    if count == 1:
        return [rest // 2]
    return [round(i * rest / (count - 1)) for i in range(count)]


def _too_long(seconds: float, limit: float) -> InputError:
    return InputError(Reason.TOO_LONG, f"{seconds:.1f} s or more, the limit is {limit:g} s")


def _read_mono(file: soundfile.SoundFile, wanted: int | None, stop: int, promised: int | None) -> np.ndarray:
    """Reads and mixes down, until the end, `wanted` or `stop` frames.

    Raises:
        InputError: TRUNCATED (fewer frames than promised), EMPTY_FILE (none at all).
    """
    end = min(stop, wanted if wanted is not None else stop)
    block = max(1, _BLOCK_VALUES // file.channels)
    blocks: list[np.ndarray] = []
    got = 0
    failure = ""
    while got < end:
        try:
            frames = file.read(min(block, end - got), dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            failure = f" ({error.error_string})"
            break
        if len(frames) == 0:
            break
        got += len(frames)
        blocks.append(frames[:, 0] if file.channels == 1 else frames.mean(axis=1))
    if promised is not None and got < min(promised, end):
        raise InputError(
            Reason.TRUNCATED, f"{file.format}: {got} frames, {promised} promised by the header{failure}"
        )
    if failure:
        raise InputError(Reason.NOT_AUDIO, f"{file.format}: broken after {got} frames{failure}")
    if got == 0:
        raise InputError(Reason.EMPTY_FILE, f"{file.format} with 0 samples")
    return np.ascontiguousarray(np.concatenate(blocks))


# --- containers --------------------------------------------------------------------------------------------


def _identify(data: bytes) -> str:
    """Names the container by its first bytes, or says why it will not be decoded."""
    if not data:
        raise InputError(Reason.EMPTY_FILE, "0 bytes")
    for offset, magic, name in _UNSUPPORTED:
        if data.startswith(magic, offset):
            raise InputError(Reason.UNSUPPORTED_FORMAT, f"{name} is not decoded")
    if data[:4] in (b"RIFF", b"RIFX", b"RF64") and data[8:12] == b"WAVE":
        return "WAV"
    if data[:4] == b"FORM" and data[8:12] in (b"AIFF", b"AIFC"):
        return "AIFF"
    if data[:4] == b"fLaC":
        return "FLAC"
    if data[:4] == b"OggS":
        body = data[27 + data[26] : 27 + data[26] + 8] if len(data) > 26 else b""
        if len(body) == 8 and not body.startswith((b"\x01vorbis", b"OpusHead", b"\x7fFLAC")):
            raise InputError(Reason.UNSUPPORTED_FORMAT, "Ogg without Vorbis, Opus or FLAC is not decoded")
        return "Ogg"
    if data[:3] == b"ID3":
        return "MP3"
    if data[0] == 0xFF and len(data) > 1 and data[1] & 0xE0 == 0xE0:  # MPEG frame sync; layer 0 is AAC's
        if data[1] & 0xF6 == 0xF0:
            raise InputError(Reason.UNSUPPORTED_FORMAT, "AAC is not decoded")
        if data[1] & 0x06:
            return "MP3"
    raise InputError(Reason.NOT_AUDIO, f"{len(data)} bytes that begin with {data[:8].hex(' ')}")


def _is_cut(data: bytes, name: str) -> bool:
    """Says whether the container states more bytes than there are.

    libsndfile silently shortens a cut WAV or AIFF to what is there, and says `malformed` of a cut Ogg.
    """
    if name == "WAV":
        return _riff_is_cut(data, "big" if data[:4] == b"RIFX" else "little", b"data")
    if name == "AIFF":
        return _riff_is_cut(data, "big", b"SSND")
    if name == "Ogg":
        return _ogg_is_cut(data)
    if name == "FLAC":
        return _flac_head_is_cut(data)
    if name == "MP3":
        stated = _xing_bytes(data)
        # mpg123 forgives 1 % as well: writers differ in what they count.
        return stated is not None and len(data) < 0.99 * stated
    return False


def _riff_is_cut(data: bytes, order: str, wanted: bytes) -> bool:
    """Walks the chunks of a RIFF or IFF file up to the one that holds the samples."""
    at = 12
    size64 = None
    while at + 8 <= len(data):
        chunk = data[at : at + 4]
        size = int.from_bytes(data[at + 4 : at + 8], order)  # type: ignore[arg-type]
        if chunk == b"ds64":  # RF64 (EBU Tech 3306): the true sizes, 64 bits wide
            size64 = int.from_bytes(data[at + 16 : at + 24], "little")
        if chunk == wanted:
            if size >= _UNKNOWN_SIZE:
                size = size64 or 0
            return at + 8 + size > len(data)
        at += 8 + size + (size & 1)
    return True


def _wav_codec(data: bytes) -> int:
    """Reads the code of a WAV's `fmt ` chunk; PCM's where it has no such chunk."""
    at = data.find(b"fmt ")
    return int.from_bytes(data[at + 8 : at + 10], "little") if at >= 0 else 1


def _ogg_is_cut(data: bytes) -> bool:
    """Walks the pages of an Ogg stream (RFC 3533, 6): a few thousand for half an hour."""
    at = 0
    while data.startswith(b"OggS", at):
        segments = data[at + 27 : at + 27 + data[at + 26]] if at + 26 < len(data) else b""
        at += 27 + len(segments) + sum(segments)
        if not segments and at > len(data):
            break
    return at > len(data)


def _flac_head_is_cut(data: bytes) -> bool:
    """Walks the metadata blocks of a FLAC file (RFC 9639, 8.1); libsndfile sees to the rest."""
    at = 4
    while at + 4 <= len(data):
        last = data[at] & 0x80
        at += 4 + int.from_bytes(data[at + 1 : at + 4], "big")
        if last:
            return at > len(data)
    return True


def _xing_bytes(data: bytes) -> int | None:
    """Reads the bytes that an MP3's Xing or Info header states, 0 if it omits them; None without a header."""
    start = 0
    if data[:3] == b"ID3" and len(data) >= 10:  # the tag's size: four times 7 bits
        start = 10 + (data[6] << 21 | data[7] << 14 | data[8] << 7 | data[9])
    head = data[start : start + 256]
    at = max(head.find(b"Xing"), head.find(b"Info"))
    if at < 0:
        return None
    flags = int.from_bytes(head[at + 4 : at + 8], "big")
    if not flags & 1:
        return None  # no count of frames: the length stays a guess
    return start + int.from_bytes(head[at + 12 : at + 16], "big") if flags & 2 else 0
