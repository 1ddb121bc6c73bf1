"""Sounds of the synthetic shop. A sound expresses its item's attributes and has noise of its own."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np

from unisono.pipelines.demo.items import CATEGORIES, Latent

SAMPLE_RATE_HZ = 16_000

# A category is a timbre: a series of partials, a shape of the notes, and a formant. Four series and three shapes make
# twelve categories.
_PARTIALS = ((1, 2, 3, 4, 5), (1, 3, 5, 7, 9), (1, 2.76, 5.4, 8.93), (1, 2, 4, 8))  # multiples of the root
_SHAPES = ((0.004, 0.07), (0.08, 0.25), (0.02, 0.9))  # attack and decay of a note, in seconds
_FORMANTS_HZ = np.geomspace(300, 4500, len(CATEGORIES))[np.array((5, 0, 8, 3, 11, 6, 1, 9, 4, 10, 2, 7))]
_ROOTS = (0, 1.5, 3, 4.5, 6, 7.5, 9, 10.5)  # semitones above A, by colour
_BANDS_HZ = (500, 900, 1600, 2700, 4300, 6500)  # centre of the noise band, by style
_NOTES_PER_S = (1.0, 2.2, 3.6, 5.4, 8.0)  # by mood


def _notes(rng: np.random.Generator, time: np.ndarray, rate: float, shape: tuple[float, float]) -> np.ndarray:
    """Returns the envelope of notes that are struck `rate` times a second, with uneven strength: float32 [samples].

    Args:
        rng: the sound's random generator.
        time: float32 [samples], in seconds.
        rate: notes per second.
        shape: attack and decay of a note, in seconds.
    """
    attack, decay = shape
    phase = time * rate + rng.uniform(0, 1)
    since = ((phase % 1) / rate).astype(np.float32)
    strength = rng.uniform(0.7, 1.0, int(phase[-1]) + 1).astype(np.float32)
    return np.minimum(since / attack, 1) * np.exp(-since / decay) * strength[phase.astype(np.int64)]


def _partials(
    rng: np.random.Generator, latent: Latent, size: float, depth: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the frequencies in Hz and the weights (unit L2 norm) of an item's partials, float64 [partials] each.

    The root sounds in four octaves at once, with weights around a register. So size moves the register and leaves the
    pitch class, which is the colour, alone.
    """
    root = 110 * 2 ** ((_ROOTS[latent.colour] + rng.normal(0, 0.2)) / 12)
    octaves = np.arange(4)
    register = np.exp(-(((octaves - 3 * (1 - size)) / 0.8) ** 2))
    ratios = np.array(_PARTIALS[latent.category // 3])
    frequency = (root * 2.0**octaves[:, None] * ratios).ravel()
    formant = np.exp(-((np.log2(frequency / _FORMANTS_HZ[latent.category]) / 0.9) ** 2))
    weight = (register[:, None] / ratios**0.6).ravel() * (0.15 + formant)
    weight *= (frequency / 440) ** (0.5 - 1.6 * depth)
    keep = (frequency < 7600) & (weight > 0.02 * weight.max())
    return frequency[keep], weight[keep] / np.linalg.norm(weight[keep])


def play_sound(latent: Latent, rng: np.random.Generator) -> np.ndarray:
    """Synthesises an item's sound: float32 [samples] in −1 … 1, 1 to 1.5 s at 16 kHz.

    The category is the timbre, the colour is the pitch class, the style is the frequency of a band of noise, the mood
    is the number of notes per second, the size is the register (a large item is low), the depth is the spectral tilt (a
    deep colour is dull), the ornament is the number of bells, and the age is the hiss.

    Args:
        latent: the attributes to express, already with the noise of this modality.
        rng: draws everything that expresses no attribute, such as length, phase and loudness.
    """
    size, depth, ornament, age = latent.grades
    time = np.arange(int(SAMPLE_RATE_HZ * rng.uniform(1.0, 1.5)), dtype=np.float32) / SAMPLE_RATE_HZ
    rate = _NOTES_PER_S[latent.mood] * np.exp(rng.normal(0, 0.08))
    note = _notes(rng, time, rate, _SHAPES[latent.category % 3])

    frequency, weight = _partials(rng, latent, size, depth)
    # A row for each partial, in float32, for which NumPy has vectorised sines.
    phase = rng.uniform(0, 2 * np.pi, (len(weight), 1)).astype(np.float32)
    angle = (2 * np.pi * frequency)[:, None].astype(np.float32) * time + phase
    wave = (weight.astype(np.float32) @ np.sin(angle)) * note

    slow = rng.standard_normal(len(time) // 24 + 2, np.float32)
    breath = np.interp(time * (SAMPLE_RATE_HZ / 24), np.arange(len(slow)), slow).astype(np.float32)
    wave += 0.16 * breath * np.sin(np.float32(2 * np.pi * _BANDS_HZ[latent.style]) * time)
    for start in rng.uniform(0, time[-1] - 0.1, round(8 * ornament)):
        since = time[int(start * SAMPLE_RATE_HZ) :] - np.float32(start)
        wave[-len(since) :] += 0.35 * np.exp(-since * 30) * np.sin(np.float32(2 * np.pi * 5600) * since)
    wave += rng.standard_normal(len(time), np.float32) * np.float32(0.004 * 30**age)
    return wave * np.float32(rng.uniform(0.3, 0.9) / np.abs(wave).max())


_REVERSED = bytes(int(f"{octet:08b}"[::-1], 2) for octet in range(256))


def _ogg_checksum(page: bytes) -> int:
    """Computes the CRC of an Ogg page from zlib's CRC.

    Source: RFC 3533; the polynomial is the one of zlib, but bits are not reflected.
    """
    reflected = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{reflected:032b}"[::-1], 2)


def _with_serial(ogg: bytes, serial: int) -> bytes:
    """Sets the serial number of an Ogg stream, because libsndfile chooses a random one."""
    pages = []
    start = 0
    while start < len(ogg):
        segments = ogg[start + 26]
        end = start + 27 + segments + sum(ogg[start + 27 : start + 27 + segments])
        page = bytearray(ogg[start:end])
        page[14:18] = struct.pack("<I", serial)
        page[22:26] = bytes(4)
        page[22:26] = struct.pack("<I", _ogg_checksum(bytes(page)))
        pages.append(bytes(page))
        start = end
    return b"".join(pages)


def encode_sound(wave: np.ndarray, suffix: str, serial: int = 1) -> bytes:
    """Encodes a sound; equal arguments give equal bytes.

    Args:
        wave: float32 [samples] in −1 … 1, at 16 kHz.
        suffix: `ogg` means Vorbis; anything else means WAV with 16-bit PCM.
        serial: the serial number of the Ogg stream.
    """
    import soundfile

    buffer = io.BytesIO()
    if suffix == "ogg":
        soundfile.write(buffer, wave, SAMPLE_RATE_HZ, format="OGG", subtype="VORBIS")
        return _with_serial(buffer.getvalue(), serial)
    soundfile.write(buffer, wave, SAMPLE_RATE_HZ, format="WAV", subtype="PCM_16")
    return buffer.getvalue()
