"""CLAP's log-mel features in batch, on the encoder's device, equal to transformers' `ClapFeatureExtractor`.

Imports torch only when it is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from unisono.transforms.base.errors import JobError
from unisono.transforms.encoders.checkpoints import local as files

CONFIG = "preprocessor_config.json"
TRUNCATIONS = ("fusion", "rand_trunc")
PADDINGS = ("repeatpad", "repeat", "pad")

# Frames in one transform: on a CPU what the second-level cache holds (1 MB of float64), on a GPU enough to fill it.
_CPU_FRAMES, _CUDA_FRAMES = 128, 65_536
_MEL_FLOOR = 1e-10  # transformers.audio_utils.spectrogram: `mel_floor`, and `min_value` of `power_to_db`


class Recipe(NamedTuple):
    """What a checkpoint's `preprocessor_config.json` says of its features.

    Attributes:
        window: samples that the model takes.
        hop, frame: samples.
        padding: what becomes of shorter clips: one of `PADDINGS`.
        truncation: one of `TRUNCATIONS`; it also chooses the filters: HTK for `fusion`, Slaney for `rand_trunc`.
    """

    sample_rate_hz: int
    window: int
    hop: int
    frame: int
    mels: int
    min_hz: float
    max_hz: float
    padding: str
    truncation: str

    @property
    def frames(self) -> int:
        """Frames of one window."""
        return self.window // self.hop + 1


def read_recipe(key: str, directory: Path) -> Recipe:
    """Reads a checkpoint's recipe.

    Args:
        key: the job-file key that a message names.
        directory: the checkpoint's.

    Raises:
        JobError: no such file, or it asks for features of another kind.
    """
    path = directory / CONFIG
    if not path.is_file() and (directory / "processor_config.json").is_file():  # transformers ≥ 5 saves it in there
        path = directory / "processor_config.json"
        config = files.read_json(key, path).get("feature_extractor") or {}
    else:
        config = files.read_json(key, path)
    # What the file leaves out is the extractor's own default.
    rate, seconds = int(config.get("sampling_rate", 48_000)), config.get("max_length_s", 10)
    recipe = Recipe(
        rate,
        int(seconds * rate),
        int(config.get("hop_length", 480)),
        int(config.get("fft_window_size", 1024)),
        int(config.get("feature_size", 64)),
        float(config.get("frequency_min", 0)),
        float(config.get("frequency_max", 14_000)),
        str(config.get("padding", "repeatpad")),
        str(config.get("truncation", "fusion")),
    )
    if recipe.truncation not in TRUNCATIONS or recipe.padding not in PADDINGS:
        raise JobError(
            f"{key}: {path} has truncation {recipe.truncation!r} and padding {recipe.padding!r}; allowed: "
            f"{', '.join(TRUNCATIONS)} and {', '.join(PADDINGS)}"
        )
    if recipe.window < recipe.frame:
        raise JobError(f"{key}: {path} has a window of {recipe.window} samples, shorter than one frame")
    return recipe


def pad_clip(clip: np.ndarray, out: np.ndarray, padding: str) -> None:
    """Writes a clip no longer than `out` into `out`, filled up as the recipe says.

    Args:
        clip: float32 [samples], at least one.
        out: float32 [window], overwritten.
        padding: `repeat`: repeated to the end; `repeatpad`: repeated as often as it fits whole; then zeros.
    """
    fits = len(out) // len(clip)
    copies = {"repeat": fits + 1, "repeatpad": fits, "pad": 1}[padding]
    end = min(len(out), copies * len(clip))
    out[:end] = np.tile(clip, copies)[:end]
    out[end:] = 0


class MelFeatures:
    """Waveforms to log-mel features on one device.

    Hann window, reflected ends, power, mel filters, decibels (Davis & Mermelstein 1980; the constants are those of
    `ClapFeatureExtractor._np_extract_fbank_features`). The transform is float64: in float32 its rounding shows in
    quiet bands beside loud ones.
    """

    def __init__(self, recipe: Recipe, device: Any) -> None:
        import torch
        from transformers.audio_utils import mel_filter_bank

        fusion = recipe.truncation == "fusion"
        filters = mel_filter_bank(
            num_frequency_bins=recipe.frame // 2 + 1,
            num_mel_filters=recipe.mels,
            min_frequency=recipe.min_hz,
            max_frequency=recipe.max_hz,
            sampling_rate=recipe.sample_rate_hz,
            norm=None if fusion else "slaney",
            mel_scale="htk" if fusion else "slaney",
        )
        self._torch, self._recipe, self.device = torch, recipe, device
        heard = np.flatnonzero(filters.any(axis=1))
        self._bins = int(heard[-1]) + 1 if len(heard) else 1
        # A row for the real and one for the imaginary part of each bin: their squares are summed by the product.
        rows = np.repeat(filters[: self._bins], 2, axis=0)
        self._filters = torch.as_tensor(rows, dtype=torch.float32, device=device)
        self._hann = torch.hann_window(recipe.frame, dtype=torch.float64, device=device)
        self._block = _CPU_FRAMES if self._hann.device.type == "cpu" else _CUDA_FRAMES

    def __call__(self, waves: Any) -> Any:
        """Computes features: float32 tensor [n, samples] on the device to float32 [n, frames, mels], in dB."""
        torch, at = self._torch, self._recipe
        half = at.frame // 2
        # A frame never runs over two clips, so clips are padded one by one; on a GPU many go together.
        per_row = 1 + waves.shape[1] // at.hop
        out = torch.empty(len(waves) * per_row, at.mels, device=self.device)
        rows = max(1, self._block // per_row)
        for first in range(0, len(waves), rows):
            part = waves[first : first + rows].double()[:, None]
            padded = torch.nn.functional.pad(part, (half, half), mode="reflect")[:, 0]
            frames = padded.unfold(1, at.frame, at.hop)
            if rows == 1:
                for start in range(0, per_row, self._block):
                    stop = min(per_row, start + self._block)
                    self._transform(frames[0, start:stop], out[first * per_row + start : first * per_row + stop])
            else:
                self._transform(frames.flatten(0, 1), out[first * per_row : (first + len(part)) * per_row])
        return out.clamp_min_(_MEL_FLOOR).log10_().mul_(10).view(len(waves), per_row, at.mels)

    def _transform(self, frames: Any, out: Any) -> None:
        torch = self._torch
        spectrum = torch.fft.rfft(frames * self._hann)
        parts = torch.view_as_real(spectrum).flatten(1)[:, : 2 * self._bins].float()
        torch.mm(parts.square_(), self._filters, out=out)

    def fused(self, wave: np.ndarray, places: Sequence[float] = (0.5, 0.5, 0.5)) -> np.ndarray:
        """Computes what a `fusion` model takes of a clip longer than its window: float32 [4, frames, mels].

        Of one longer by less than a hop, which has no frame more, four times its features.

        The whole clip shrunk to a window's frames, then a window from the first, the second and the last third.
        The extractor draws those at random; here they lie at `places`, fractions of each third's choices (0 to 1).

        Args:
            wave: float32 [samples], longer than the window.
            places: front, middle, back.
        """
        torch, frames = self._torch, self._recipe.frames
        mel = self(torch.from_numpy(wave)[None].to(self.device))
        if mel.shape[1] == frames:
            return cast(np.ndarray, mel.expand(4, -1, -1).contiguous().cpu().numpy())
        size = [frames, self._recipe.mels]
        shrunk = torch.nn.functional.interpolate(mel[None], size=size, mode="bilinear", align_corners=False)[0, 0]
        thirds = np.array_split(np.arange(mel.shape[1] - frames + 1), 3)
        starts = [int(t[round(p * (len(t) - 1))]) if len(t) else 0 for t, p in zip(thirds, places, strict=True)]
        stacked: np.ndarray = torch.stack([shrunk, *(mel[0, s : s + frames] for s in starts)]).cpu().numpy()
        return stacked
