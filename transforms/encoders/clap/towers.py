"""The audio tower and the text tower of transformers' `ClapModel`, which share one embedding space.

A model is `clap/<hub id>`, `clap/<directory>` or, for audio, the hub id or directory alone.

A clip longer than the model's window is cut into windows, spread evenly over the clip; its embedding is the mean of
the windows' unit embeddings.

A model with `truncation: fusion` takes a flag for each clip that says whether the clip is longer than the window. Here
the flag is always right. If no clip of a batch is longer, the extractor of transformers marks a random one as longer.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np

from unisono.transforms.base.errors import JobError
from unisono.transforms.encoders.base import Encoder, EncoderInfo, EncoderSpec, to_units
from unisono.transforms.encoders.checkpoints.loading import load_tokenizer
from unisono.transforms.encoders.checkpoints.local import content_hash
from unisono.transforms.encoders.clap.attention import fuse_attention
from unisono.transforms.encoders.clap.checkpoint import Checkpoint, load_tower, read_checkpoint
from unisono.transforms.encoders.clap.features import CONFIG, MelFeatures, Recipe, pad_clip
from unisono.transforms.encoders.torch_runtime import (
    TorchRuntime,
    TorchSettings,
    read_choice,
    read_seconds,
    read_settings,
    read_whole,
)
from unisono.transforms.media.audio import decode_audio
from unisono.transforms.media.limits import MediaLimits
from unisono.transforms.media.text import clean_text
from unisono.transforms.media.windows import window_starts

OPTIONS = ("batch_texts", "batch_windows", "hop_seconds", "long_clips", "revision", "windows")
LONG_CLIPS = ("windows", "fusion")
# Defaults of options.
WINDOWS = 4
BATCH_WINDOWS, BATCH_TEXTS = 16, 256


class Settings(NamedTuple):
    """The options of an encoder, after their check.

    Attributes:
        torch: the options that all torch families share.
        windows: the largest number of windows that are taken from one clip.
        hop_seconds: the largest distance between the starts of two windows, as far as `windows` allows. None means
            the length of a window.
        long_clips: how clips longer than a window are encoded. `windows` takes the mean over windows. `fusion` gives
            the model four excerpts in one input, for checkpoints trained that way.
        batch_windows: the largest number of windows in one forward pass.
        batch_texts: the largest number of texts in one forward pass.
    """

    torch: TorchSettings
    windows: int
    hop_seconds: float | None
    long_clips: str
    batch_windows: int
    batch_texts: int


def describe(spec: EncoderSpec) -> EncoderInfo:
    """Checks the options and the checkpoint's files, and returns id and dimension. Weights are hashed, not loaded.

    Raises:
        JobError: an option or a file is missing or wrong.
    """
    settings, found = _read(spec)
    return EncoderInfo(_encoder_id(spec, settings, found), found.dim)


def load(spec: EncoderSpec) -> Encoder:
    """Loads the tower of `spec.modality` onto the device.

    Raises:
        JobError: as `describe`, or the weights do not fit the configuration, or this machine has no such device.
    """
    settings, found = _read(spec)
    tower = ClapAudioEncoder if spec.modality == "audio" else ClapTextEncoder
    return cast(Encoder, tower(spec, settings, found))


def _read(spec: EncoderSpec) -> tuple[Settings, Checkpoint]:
    settings = Settings(
        torch=read_settings(spec, OPTIONS),
        windows=read_whole(spec, "windows", WINDOWS),
        hop_seconds=read_seconds(spec, "hop_seconds", None),
        long_clips=read_choice(spec, "long_clips", LONG_CLIPS),
        batch_windows=read_whole(spec, "batch_windows", BATCH_WINDOWS),
        batch_texts=read_whole(spec, "batch_texts", BATCH_TEXTS),
    )
    found = read_checkpoint(spec)
    if settings.long_clips == "fusion" and found.recipe.truncation != "fusion":
        stated = f"{found.directory / CONFIG} says truncation {found.recipe.truncation}"
        raise JobError(f"{spec.key}.long_clips: got fusion, but {stated}; write windows")
    return settings, found


def _encoder_id(spec: EncoderSpec, settings: Settings, found: Checkpoint) -> str:
    # Raise `recipe` with every change of this file that changes the output.
    facts: dict[str, Any] = {"recipe": "1", "modality": spec.modality, **settings.torch.facts}
    named = [found.directory / "config.json", *found.weights]
    if spec.modality == "audio":
        facts |= {"features": found.recipe, "windows": settings.windows, "hop_seconds": settings.hop_seconds}
        facts["long_clips"] = settings.long_clips
    else:
        named += found.tokenizer_files
    return f"clap-{content_hash(named, facts)}"


@dataclass(frozen=True)
class Clip:
    """One prepared clip.

    Attributes:
        values: the waveforms of its windows, float32 [windows, samples]. A clip shorter than the window has one row
            of its own length. If `ready`, these are instead the features of one input, float32 [4, frames, mels].
        ready: whether `values` are features.
        longer: the flag that tells a `fusion` model that the clip is longer than the window.
    """

    values: np.ndarray
    ready: bool = False
    longer: bool = False

    @property
    def nbytes(self) -> int:
        """The number of bytes that the clip holds."""
        return self.values.nbytes


class ClapAudioEncoder:
    """The audio tower. The embedding of one window is a unit vector; that of several windows is their mean."""

    def __init__(self, spec: EncoderSpec, settings: Settings, found: Checkpoint) -> None:
        self.encoder_id = _encoder_id(spec, settings, found)
        self.dim = found.dim
        self.batch_cost = settings.batch_windows
        self._spec, self._settings, self._found = spec, settings, found
        self._limits: MediaLimits = spec.limits
        self._runtime = TorchRuntime(spec, settings.torch)
        self._features = MelFeatures(found.recipe, self._runtime.device)
        self._model = self._runtime.place(load_tower(f"{spec.key}.model", found.directory, "audio"))
        fuse_attention(self._model)
        self._forward = self._runtime.compiled(self._model)

    @functools.cached_property
    def text_tower(self) -> Encoder:
        """The checkpoint's text tower, loaded when it is first asked for."""
        return cast(Encoder, ClapTextEncoder(self._spec, self._settings, self._found))

    def prepare(self, raw: bytes) -> Clip:
        """Decodes an audio file into a mono waveform and cuts it into windows.

        Raises:
            InputError: as `decode_audio`.
        """
        at = self._found.recipe
        wave = decode_audio(raw, self._limits, at.sample_rate_hz)
        if len(wave) <= at.window:
            return Clip(wave[None])
        if self._settings.long_clips == "fusion":
            return Clip(self._cpu_features.fused(wave), ready=True, longer=len(wave) >= at.window + at.hop)
        hop = round((self._settings.hop_seconds or at.window / at.sample_rate_hz) * at.sample_rate_hz)
        starts = window_starts(len(wave), at.window, max(1, hop), self._settings.windows)
        return Clip(np.stack([wave[s : s + at.window] for s in starts]))

    @functools.cached_property
    def _cpu_features(self) -> MelFeatures:
        """Makes the features of `fusion` in `prepare`, on the CPU, from the whole clip.

        A clip that waits for the encoder then holds 1 MB, however long it is.
        """
        return MelFeatures(self._found.recipe, "cpu")

    def cost(self, prepared: Clip) -> int:
        """Returns the number of windows."""
        return 1 if prepared.ready else len(prepared.values)

    def encode(self, batch: Sequence[Clip]) -> np.ndarray:
        """Encodes clips: float32 [len(batch), dim]."""
        if not len(batch):
            return np.empty((0, self.dim), np.float32)
        import torch

        counts = [self.cost(clip) for clip in batch]
        with torch.inference_mode():  # without autocast: bfloat16 is too coarse for features in decibels
            features = self._make_features(batch)
            longer = torch.tensor(np.repeat([clip.longer for clip in batch], counts)[:, None])
        with self._runtime.inference():
            inputs = self._runtime.send({"is_longer": longer})
            vectors = self._forward(input_features=features, **inputs).audio_embeds
        embeddings = to_units(self._runtime.fetch(vectors))
        first = np.cumsum([0, *counts[:-1]])
        means = np.add.reduceat(embeddings, first, axis=0) / np.asarray(counts)[:, None]
        return cast(np.ndarray, means.astype(np.float32))

    def _make_features(self, batch: Sequence[Clip]) -> Any:
        """Makes the model's input: float32 [windows, channels, frames, mels] on the device.

        There are four channels if a clip of the batch has features for `fusion`, otherwise one.
        """
        at = self._found.recipe
        waves = [_padded(row, at) for clip in batch if not clip.ready for row in clip.values]
        mel = self._features(self._runtime.stack(waves))[:, None] if waves else None
        if len(waves) == sum(len(clip.values) for clip in batch):
            return mel
        ready = iter(self._runtime.stack([clip.values for clip in batch if clip.ready]))
        rows, parts = iter(mel if mel is not None else ()), []
        for clip in batch:  # rare: only `long_clips: fusion` gets here
            parts += [next(ready)] if clip.ready else [next(rows).expand(4, -1, -1) for _ in clip.values]
        import torch

        return torch.stack(parts)


def _padded(wave: np.ndarray, at: Recipe) -> np.ndarray:
    if len(wave) == at.window:
        return wave
    out = np.empty(at.window, np.float32)
    pad_clip(wave, out, at.padding)
    return out


class ClapTextEncoder:
    """The text tower. It encodes texts into the embedding space of the audio tower, as unit vectors."""

    def __init__(self, spec: EncoderSpec, settings: Settings, found: Checkpoint) -> None:
        key = f"{spec.key}.model"
        self.encoder_id = _encoder_id(EncoderSpec("text", spec.model, spec.options), settings, found)
        self.dim = found.dim
        self.batch_cost = settings.batch_texts
        self._runtime = TorchRuntime(spec, settings.torch)
        self._tokenizer = load_tokenizer(key, found.directory)
        self._model = self._runtime.place(load_tower(key, found.directory, "text"))
        self._forward = self._runtime.compiled(self._model)

    def prepare(self, raw: str) -> str:
        """Strips one text. Its tokens are made in `encode`, because a tokenizer serves only one thread at a time.

        Raises:
            InputError: EMPTY_TEXT.
        """
        return clean_text(raw)

    def cost(self, prepared: str) -> int:
        """Returns 1."""
        return 1

    def encode(self, batch: Sequence[str]) -> np.ndarray:
        """Encodes texts: float32 [len(batch), dim]. Longer texts are cut at the checkpoint's maximum."""
        if not len(batch):
            return np.empty((0, self.dim), np.float32)
        positions = self._model.config.max_position_embeddings - self._model.config.pad_token_id - 1
        tokens = self._tokenizer(
            list(batch),
            padding=True,
            truncation=True,
            max_length=min(self._tokenizer.model_max_length, positions),
            return_tensors="pt",
        )
        inputs = {n: tokens[n] for n in ("input_ids", "attention_mask")}
        with self._runtime.inference():
            vectors = self._forward(**self._runtime.send(inputs)).text_embeds
        return to_units(self._runtime.fetch(vectors)).astype(np.float32)
