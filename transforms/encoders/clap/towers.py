"""The `clap` family: transformers' `ClapModel`, its audio tower and its text tower in one space.

A model is `clap/<hub id>`, `clap/<directory>` or, for audio, the hub id or directory alone. Clips longer than the
model's window are cut into windows, spread evenly over the clip; an embedding is the mean of the windows' unit
embeddings. A clip no longer than the window is told to a checkpoint of `truncation: fusion` as not longer; the
extractor marks one clip of such a batch at random.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from unisono.transforms.base.errors import JobError
from unisono.transforms.encoders.base import Encoder, EncoderSpec
from unisono.transforms.encoders.checkpoints import local as files
from unisono.transforms.encoders.clap.attention import fuse_attention
from unisono.transforms.encoders.clap.features import CONFIG, MelFeatures, Recipe, pad_clip, read_recipe
from unisono.transforms.encoders.registry import EncoderInfo
from unisono.transforms.encoders.torch_runtime import (
    TorchRuntime,
    TorchSettings,
    read_choice,
    read_settings,
    read_whole,
)
from unisono.transforms.media.audio import decode_audio, window_starts
from unisono.transforms.media.limits import MediaLimits
from unisono.transforms.media.text import clean_text

OPTIONS = ("batch_texts", "batch_windows", "hop_seconds", "long_clips", "revision", "windows")
LONG_CLIPS = ("windows", "fusion")
WINDOWS = 4
BATCH_WINDOWS, BATCH_TEXTS = 16, 256
_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")


class Settings(NamedTuple):
    """The options of a spec, checked.

    Attributes:
        torch: those that all torch families share.
        windows: the most that are taken of one clip.
        hop_seconds: between the starts of windows, the most while `windows` allow; None: the window's length.
        long_clips: `windows`, or `fusion`: four views in one input, for checkpoints trained so.
        batch_windows, batch_texts: the most in one forward pass.
    """

    torch: TorchSettings
    windows: int
    hop_seconds: float | None
    long_clips: str
    batch_windows: int
    batch_texts: int


class Checkpoint(NamedTuple):
    """A checkpoint's files, looked at."""

    directory: Path
    weights: tuple[Path, ...]
    recipe: Recipe
    dim: int


def describe(spec: EncoderSpec) -> EncoderInfo:
    """Checks libraries, options and the checkpoint's files, and tells id and dimension; only hashes weights.

    Raises:
        JobError: any of them is missing or wrong.
    """
    settings, found = _read(spec)
    return EncoderInfo(_encoder_id(spec, settings, found), found.dim)


def load(spec: EncoderSpec) -> Encoder:
    """Loads the tower of `spec.modality` onto the device.

    Raises:
        JobError: as `describe`, or the weights do not fit the configuration, or there is no such device.
    """
    settings, found = _read(spec)
    made = ClapAudioEncoder if spec.modality == "audio" else ClapTextEncoder
    return cast(Encoder, made(spec, settings, found))


def _read(spec: EncoderSpec) -> tuple[Settings, Checkpoint]:
    settings = _read_settings(spec)
    files.require(spec, "torch", "transformers")
    key = f"{spec.key}.model"
    root = files.find_directory(spec, dict(spec.options).get("revision"), where=spec.model.removeprefix("clap/"))
    config = files.read_json(key, root / "config.json")
    if config.get("model_type") != "clap":
        raise JobError(f"{key}: {root / 'config.json'} has model_type {config.get('model_type')!r}; allowed: clap")
    recipe = read_recipe(key, root)
    if settings.long_clips == "fusion" and recipe.truncation != "fusion":
        raise JobError(
            f"{spec.key}.long_clips: got fusion, but {root / CONFIG} says truncation {recipe.truncation}; write windows"
        )
    weights = tuple(files.weight_files(key, root))
    return settings, Checkpoint(root, weights, recipe, int(config.get("projection_dim", 512)))


def _read_settings(spec: EncoderSpec) -> Settings:
    shared = read_settings(spec, OPTIONS)
    hop = dict(spec.options).get("hop_seconds")
    if hop is not None and (isinstance(hop, bool) or not isinstance(hop, int | float) or hop <= 0):
        raise JobError(f"{spec.key}.hop_seconds: got {hop!r}; allowed: a number over 0")
    return Settings(
        shared,
        read_whole(spec, "windows", WINDOWS),
        None if hop is None else float(hop),
        read_choice(spec, "long_clips", LONG_CLIPS),
        read_whole(spec, "batch_windows", BATCH_WINDOWS),
        read_whole(spec, "batch_texts", BATCH_TEXTS),
    )


def _encoder_id(spec: EncoderSpec, settings: Settings, found: Checkpoint) -> str:
    # `recipe` is this file's: raise it with any change of the output.
    facts: dict[str, Any] = {"recipe": "1", "modality": spec.modality, **settings.torch.facts}
    named = [found.directory / "config.json", *found.weights]
    if spec.modality == "audio":
        facts |= {"features": found.recipe, "windows": settings.windows, "hop_seconds": settings.hop_seconds}
        facts["long_clips"] = settings.long_clips
    else:
        named += [p for n in _TOKENIZER_FILES if (p := found.directory / n).is_file()]
    return f"clap-{files.content_hash(named, facts)}"


@dataclass(frozen=True)
class Clip:
    """One clip, ready.

    Attributes:
        values: float32 [windows, samples], shorter than the window if the clip is; or, where `ready`,
            the features of one input, float32 [4, frames, mels].
        ready: its features are made already.
        longer: what a `fusion` model is told of it.
    """

    values: np.ndarray
    ready: bool = False
    longer: bool = False

    @property
    def nbytes(self) -> int:
        """What it holds."""
        return self.values.nbytes


class ClapAudioEncoder:
    """The audio tower. Embeddings of one window are unit vectors; of several, the mean of them."""

    def __init__(self, spec: EncoderSpec, settings: Settings, found: Checkpoint) -> None:
        self.encoder_id = _encoder_id(spec, settings, found)
        self.dim = found.dim
        self.batch_cost = settings.batch_windows
        self._spec, self._settings, self._found = spec, settings, found
        self._limits: MediaLimits = spec.limits
        self._runtime = TorchRuntime(spec, settings.torch)
        self._features = MelFeatures(found.recipe, self._runtime.device)
        self._model = self._runtime.place(_load_tower(f"{spec.key}.model", found.directory, "audio"))
        fuse_attention(self._model)
        self._forward = self._runtime.compiled(self._model)

    @functools.cached_property
    def text_tower(self) -> Encoder:
        """The checkpoint's text tower, loaded when it is first asked for."""
        return cast(Encoder, ClapTextEncoder(self._spec, self._settings, self._found))

    def prepare(self, raw: bytes) -> Clip:
        """Decodes a file, mixes it down, resamples it, and cuts it into windows.

        Raises:
            InputError: as `unisono.transforms.media.audio.decode_audio`.
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
        """For whole clips of `fusion`, in `prepare`: what waits for the encoder is then 1 MB, however long they are."""
        return MelFeatures(self._found.recipe, "cpu")

    def cost(self, prepared: Clip) -> int:
        """Counts windows."""
        return 1 if prepared.ready else len(prepared.values)

    def encode(self, batch: Sequence[Clip]) -> np.ndarray:
        """Encodes clips: float32 [len(batch), dim]."""
        if not len(batch):
            return np.empty((0, self.dim), np.float32)
        import torch

        counts = [self.cost(clip) for clip in batch]
        with torch.inference_mode():  # outside of autocast: decibels of bfloat16 would be no features
            features = self._make_features(batch)
            longer = torch.tensor(np.repeat([clip.longer for clip in batch], counts)[:, None])
        with self._runtime.inference():
            inputs = self._runtime.send({"is_longer": longer})
            vectors = self._forward(input_features=features, **inputs).audio_embeds
        embeddings = _unit_rows(self._runtime.fetch(vectors))
        first = np.cumsum([0, *counts[:-1]])
        means = np.add.reduceat(embeddings, first, axis=0) / np.asarray(counts)[:, None]
        return cast(np.ndarray, means.astype(np.float32))

    def _make_features(self, batch: Sequence[Clip]) -> Any:
        """Makes the model's input [windows, views, frames, mels]: one view, as a clip that is not longer needs,
        or four.
        """
        at = self._found.recipe
        waves = [_padded(row, at) for clip in batch if not clip.ready for row in clip.values]
        mel = self._features(self._runtime.stack(waves))[:, None] if waves else None
        if len(waves) == sum(len(clip.values) for clip in batch):
            return mel
        ready = iter(self._runtime.stack([clip.values for clip in batch if clip.ready]))
        rows, parts = iter(mel if mel is not None else ()), []
        for clip in batch:  # seldom: only checkpoints and jobs of `fusion` come here
            parts += [next(ready)] if clip.ready else [next(rows).expand(4, -1, -1) for _ in clip.values]
        import torch

        return torch.stack(parts)


def _padded(wave: np.ndarray, at: Recipe) -> np.ndarray:
    if len(wave) == at.window:
        return wave
    out = np.empty(at.window, np.float32)
    pad_clip(wave, out, at.padding)
    return out


def _unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Scales rows to unit L2 norm: float64."""
    wide = vectors.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    return cast(np.ndarray, wide / np.where(norms > 0, norms, 1))


class ClapTextEncoder:
    """The text tower: texts into the space of the audio tower, unit vectors."""

    def __init__(self, spec: EncoderSpec, settings: Settings, found: Checkpoint) -> None:
        key = f"{spec.key}.model"
        self.encoder_id = _encoder_id(EncoderSpec("text", spec.model, spec.options), settings, found)
        self.dim = found.dim
        self.batch_cost = settings.batch_texts
        self._runtime = TorchRuntime(spec, settings.torch)
        self._tokenizer = _load_tokenizer(key, found.directory)
        self._model = self._runtime.place(_load_tower(key, found.directory, "text"))
        self._forward = self._runtime.compiled(self._model)

    def prepare(self, raw: str) -> str:
        """Strips one text. Tokens are made in `encode`: a tokenizer serves one thread at a time.

        Raises:
            InputError: EMPTY_TEXT.
        """
        return clean_text(raw)

    def cost(self, prepared: str) -> int:
        """1: texts are short."""
        return 1

    def encode(self, batch: Sequence[str]) -> np.ndarray:
        """Encodes texts: float32 [len(batch), dim]. Texts past the checkpoint's maximum are cut there."""
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
        return _unit_rows(self._runtime.fetch(vectors)).astype(np.float32)


# --- loading -----------------------------------------------------------------------------------------------


def _load_tower(key: str, directory: Path, modality: str) -> Any:
    """Loads one tower with its projection; the other's weights stay on disk.

    Raises:
        JobError: the weights do not fit the configuration.
    """
    import transformers

    from unisono.transforms.encoders.sentence.transformers_text import quiet

    audio = modality == "audio"
    made: Any = transformers.ClapAudioModelWithProjection if audio else transformers.ClapTextModelWithProjection
    try:
        with quiet(transformers):
            whole = transformers.ClapConfig.from_pretrained(directory, local_files_only=True)
            model, report = made.from_pretrained(
                directory,
                config=whole.audio_config if audio else whole.text_config,
                dtype="float32",
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        raise JobError(f"{key}: {directory} cannot be loaded ({files.first_line(error)})") from error
    if missing := sorted(report["missing_keys"]):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise JobError(f"{key}: the weights in {directory} lack {missing[0]}{more}; copy them whole")
    return model


def _load_tokenizer(key: str, directory: Path) -> Any:
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        why = files.first_line(error)
        raise JobError(f"{key}: the tokenizer in {directory} cannot be loaded ({why})") from error
