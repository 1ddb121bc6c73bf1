"""The `lite` audio encoder: statistics of log-mel bands, MFCC and chroma over time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import fft, signal, sparse

from unisono.transforms.encoders.base import EncoderSpec
from unisono.transforms.media.audio import decode_audio

SAMPLE_RATE_HZ = 22_050
WINDOW, HOP = 2048, 512  # in samples, 93 ms and 23 ms: librosa's defaults
MELS, MFCCS, CHROMAS = 64, 20, 12
MAX_SECONDS = 30.0  # only this much from the beginning of a clip is decoded
ACTIVE_DB = 50.0  # frames this far below the loudest frame are pauses and do not enter the statistics
DYNAMIC_DB = 80.0  # levels this far below the loudest are raised to that level, as in librosa's `power_to_db`
SILENCE = 1e-6  # a clip whose peak is below -120 dB is silence

# Groups of features: name, width, and the squared norm of the group in the embedding.
_GROUPS = (
    ("mel_mean", MELS, 1.0),
    ("mel_std", MELS, 0.5),
    ("mfcc_mean", MFCCS - 1, 1.0),
    ("mfcc_std", MFCCS, 1.0),
    ("mfcc_delta", MFCCS, 0.5),
    ("mfcc_delta2", MFCCS, 0.5),
    ("chroma_mean", CHROMAS, 0.25),
    ("chroma_std", CHROMAS, 0.25),
    ("shape", 4, 0.5),
)
DIM = sum(width for _, width, _ in _GROUPS)


class LiteAudioEncoder:
    """Describes a clip by statistics of its spectrum over time. The result does not depend on the clip's gain."""

    encoder_id = "lite-audio-1"
    dim = DIM
    batch_cost = 256

    def __init__(self, spec: EncoderSpec) -> None:
        import librosa.filters  # takes a third of a second

        self._limits = spec.limits
        mel = librosa.filters.mel(sr=SAMPLE_RATE_HZ, n_fft=WINDOW, n_mels=MELS)
        # Sparse: a mel band covers a few of the 1,025 bins, and a sparse product starts no BLAS threads.
        self._filters = sparse.csr_array(np.concatenate([mel, chroma_filters()]))
        self._window = signal.get_window("hann", WINDOW, fftbins=True).astype(np.float32)

    def prepare(self, raw: bytes) -> np.ndarray:
        """Decodes and describes one clip: float32 [dim].

        Raises:
            InputError: as `decode_audio`.
        """
        return self.describe(decode_audio(raw, self._limits, SAMPLE_RATE_HZ, MAX_SECONDS))

    def cost(self, prepared: np.ndarray) -> int:
        """Returns 1."""
        return 1

    def encode(self, batch: Sequence[np.ndarray]) -> np.ndarray:
        """Stacks the descriptors that `prepare` returned: float32 [len(batch), dim]."""
        return np.stack(batch) if len(batch) else np.empty((0, DIM), np.float32)

    def describe(self, samples: np.ndarray) -> np.ndarray:
        """Describes a waveform.

        Args:
            samples: float32 [n] at `SAMPLE_RATE_HZ`, n ≥ 1.

        Returns:
            float32 [dim], always finite.
        """
        peak = float(np.abs(samples).max())
        if peak < SILENCE:
            samples, peak = np.zeros_like(samples), 1.0
        mel_db, chroma = self.spectra(samples / np.float32(peak))
        mfcc = fft.dct(mel_db, axis=0, type=2, norm="ortho")[:MFCCS]
        delta, delta2 = (signal.savgol_filter(mfcc, 9, n, deriv=n, mode="nearest") for n in (1, 2))
        level = mel_db.max(axis=0)
        active = level >= level.max() - ACTIVE_DB
        mel_db, mfcc, chroma = mel_db[:, active], mfcc[:, active], chroma[:, active]
        delta, delta2 = delta[:, active], delta2[:, active]
        mel_mean = mel_db.mean(axis=1)
        seconds = len(samples) / SAMPLE_RATE_HZ
        rms = float(np.sqrt(np.mean(np.square(samples, dtype=np.float64)))) / peak
        shape = np.array(
            [np.log1p(seconds) - 1.0, active.mean() - 0.5, np.log10(rms + 1e-3) + 1.0, level[active].std() / 20.0]
        )
        parts = (
            mel_mean - mel_mean.mean(),
            mel_db.std(axis=1),
            mfcc.mean(axis=1)[1:],
            mfcc.std(axis=1),
            delta.std(axis=1),
            delta2.std(axis=1),
            chroma.mean(axis=1),
            chroma.std(axis=1),
            shape,
        )
        scaled = [
            part * (np.sqrt(weight) / max(float(np.linalg.norm(part)), 1e-9))
            for part, (_, _, weight) in zip(parts, _GROUPS, strict=True)
        ]
        return np.concatenate(scaled).astype(np.float32)

    def spectra(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Computes log-mel bands and chroma, as librosa's `melspectrogram`, `power_to_db` and `chroma_stft` do.

        Args:
            samples: float32 [n], peak at most 1.

        Returns:
            The log-mel bands, float64 [MELS, frames], in dB, none more than `DYNAMIC_DB` below the loudest.
            The chroma, float64 [CHROMAS, frames], scaled so that the largest value of each frame is 1.
        """
        padded = np.pad(samples.astype(np.float32, copy=False), WINDOW // 2)
        frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
        spectrum = fft.rfft(frames * self._window, axis=1)
        power = np.square(spectrum.real) + np.square(spectrum.imag)
        bands = self._filters @ power.T.astype(np.float64)
        mel = 10.0 * np.log10(np.maximum(bands[:MELS], 1e-10))
        mel = np.maximum(mel, mel.max() - DYNAMIC_DB)
        chroma = bands[MELS:]
        chroma /= np.maximum(chroma.max(axis=0), np.finfo(np.float32).tiny)
        return mel, chroma


def chroma_filters() -> np.ndarray:
    """Computes the weight of each FFT bin in each pitch class: float64 [CHROMAS, WINDOW // 2 + 1].

    The first pitch class is C; A4 is 440 Hz. `librosa.filters.chroma` returns the same, but its first call compiles
    for ten seconds.

    Source: D. Ellis, `fft2chromamx`, as in `librosa.filters.chroma`.
    """
    bins = CHROMAS * np.log2(np.arange(1, WINDOW) * SAMPLE_RATE_HZ / WINDOW / (440.0 / 16))
    bins = np.concatenate([[bins[0] - 1.5 * CHROMAS], bins])
    widths = np.concatenate([np.maximum(np.diff(bins), 1.0), [1.0]])
    half = CHROMAS / 2
    distance = np.remainder(bins - np.arange(CHROMAS)[:, None] + half, CHROMAS) - half
    weights = np.exp(-0.5 * (2 * distance / widths) ** 2)
    weights /= np.linalg.norm(weights, axis=0)
    weights *= np.exp(-0.5 * ((bins / CHROMAS - 5.0) / 2.0) ** 2)
    return np.roll(weights, -3, axis=0)[:, : WINDOW // 2 + 1]
