"""Computes CLAP's log-mel features in batches on the encoder's device, as transformers' `ClapFeatureExtractor` does.

Importing this file does not import torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from unisono.transforms.base.errors import JobError
from unisono.transforms.encoders.checkpoints.local import read_json

CONFIG = "preprocessor_config.json"
TRUNCATIONS = ("fusion", "rand_trunc")
PADDINGS = ("repeatpad", "repeat", "pad")

# Frames in one Fourier transform: as many as the second-level cache of a CPU holds (1 MB of float64), or enough to keep
# a GPU busy.
_CPU_FRAMES, _CUDA_FRAMES = 128, 65_536
_MEL_FLOOR = 1e-10  # `mel_floor` of transformers.audio_utils.spectrogram, and `min_value` of its `power_to_db`


class Recipe(NamedTuple):
    """What a checkpoint's `preprocessor_config.json` says about its features.

    Attributes:
        sample_rate_hz: sample rate of the waveforms that the model takes.
        window: length of the model's input, in samples.
        hop: distance between the starts of two frames, in samples.
        frame: length of a frame, in samples.
        mels: number of mel bands.
        min_hz: lowest frequency of the mel bands.
        max_hz: highest frequency of the mel bands.
        padding: how a shorter clip is filled up, one of `PADDINGS`; see `pad_clip`.
        truncation: how the model was trained on longer clips, one of `TRUNCATIONS`. It also decides the mel filters:
            HTK for `fusion`, Slaney for `rand_trunc`.
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
        """The number of frames of one window."""
        return self.window // self.hop + 1


def read_recipe(key: str, directory: Path) -> Recipe:
    """Reads the recipe of a checkpoint.

    Args:
        key: the job-file key that the error messages name.
        directory: the checkpoint's directory.

    Raises:
        JobError: there is no such file, or it asks for features that are not supported.
    """
    path = directory / CONFIG
    if not path.is_file() and (directory / "processor_config.json").is_file():  # transformers ≥ 5 saves it there
        path = directory / "processor_config.json"
        config = read_json(key, path).get("feature_extractor") or {}
    else:
        config = read_json(key, path)
    # The defaults are those of `ClapFeatureExtractor`.
    rate, seconds = int(config.get("sampling_rate", 48_000)), config.get("max_length_s", 10)
    recipe = Recipe(
        sample_rate_hz=rate,
        window=int(seconds * rate),
        hop=int(config.get("hop_length", 480)),
        frame=int(config.get("fft_window_size", 1024)),
        mels=int(config.get("feature_size", 64)),
        min_hz=float(config.get("frequency_min", 0)),
        max_hz=float(config.get("frequency_max", 14_000)),
        padding=str(config.get("padding", "repeatpad")),
        truncation=str(config.get("truncation", "fusion")),
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
    """Writes a clip that is no longer than a window into a window, and fills up the rest.

    Args:
        clip: float32 [samples], at least one sample.
        out: float32 [window], overwritten.
        padding: `repeat` repeats the clip to the end of the window. `repeatpad` repeats it as often as the whole clip
            fits, and appends zeros. `pad` only appends zeros.
    """
    fits = len(out) // len(clip)
    copies = {"repeat": fits + 1, "repeatpad": fits, "pad": 1}[padding]
    end = min(len(out), copies * len(clip))
    out[:end] = np.tile(clip, copies)[:end]
    out[end:] = 0


class MelFeatures:
    """Turns waveforms into log-mel features on one device.

    The steps are: reflected ends, Hann window, power spectrum, mel filters, decibels. The Fourier transform is in
    float64, because in float32 its rounding would show in quiet bands beside loud ones.

    Args:
        recipe: how the checkpoint's features are made.
        device: the torch.device, or its name.

    Source: Davis and Mermelstein, 1980. The constants are those of
    `ClapFeatureExtractor._np_extract_fbank_features`.
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
        used = np.flatnonzero(filters.any(axis=1))
        self._bins = int(used[-1]) + 1 if len(used) else 1  # no filter uses the bins above
        # Each bin has two rows, for its real and its imaginary part, so the product adds up the two squares.
        rows = np.repeat(filters[: self._bins], 2, axis=0)
        self._filters = torch.as_tensor(rows, dtype=torch.float32, device=device)
        self._hann = torch.hann_window(recipe.frame, dtype=torch.float64, device=device)
        self._block = _CPU_FRAMES if self._hann.device.type == "cpu" else _CUDA_FRAMES

    def __call__(self, waves: Any) -> Any:
        """Computes features.

        Args:
            waves: float32 tensor [n, samples] on the device.

        Returns:
            float32 tensor [n, frames, mels] on the device, in dB.
        """
        torch, at = self._torch, self._recipe
        half = at.frame // 2
        # No frame may contain samples of two clips, so each clip is padded separately. On a GPU, many clips are
        # transformed together.
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
        """Computes the input of a `fusion` model for a clip that is longer than the window.

        The input has four channels: the features of the whole clip shrunk to the frames of a window, then those of
        one window in each third of the clip. `ClapFeatureExtractor` draws the three places at random.

        A clip that is longer than the window by less than a hop has no more frames than a window. Its four channels
        are equal.

        Args:
            wave: float32 [samples], longer than the window.
            places: where the window lies in the first, second and last third, each as a fraction (0 to 1) of the
                places that are possible there.

        Returns:
            float32 [4, frames, mels].
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
