"""The image towers and text towers of every architecture that open_clip has.

    image: {model: open_clip/ViT-B-32, weights: gs://models/clip-b32/}

`weights` is a tag of open_clip (fetched from the hub), a safetensors file, or a local or gs:// directory with
`open_clip_config.json` and safetensors. `open_clip/<organisation>/<repository>` is a hub repository with such files.
"""

from __future__ import annotations

import contextlib
import json
import logging
import tempfile
import threading
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from unisono.transforms.base.errors import JobError
from unisono.transforms.encoders import torch_runtime
from unisono.transforms.encoders.base import Encoder, EncoderInfo, EncoderSpec
from unisono.transforms.encoders.checkpoints.formats import first_line
from unisono.transforms.encoders.checkpoints.local import content_hash
from unisono.transforms.encoders.clip.checkpoint import CONFIG, Checkpoint, read_checkpoint
from unisono.transforms.encoders.registry import get_encoder
from unisono.transforms.encoders.torch_runtime import TorchRuntime, TorchSettings
from unisono.transforms.media.fit import fit_picture
from unisono.transforms.media.images import decode_image
from unisono.transforms.media.text import clean_text

DECODES = ("reduced", "exact")
_SHARED = ("weights", "revision", "batch_size")
_OWN = {"image": (*_SHARED, "decode"), "text": _SHARED}
_TOWER = {"image": "vision", "text": "text"}
CPU_BATCH, CUDA_BATCH = 32, 256  # defaults of `batch_size`


class Settings(NamedTuple):
    """The options of an encoder, after their check.

    Attributes:
        torch: the options that all torch families share.
        batch_size: inputs in one batch. None means `CUDA_BATCH` or `CPU_BATCH`, by the device.
        decode: how JPEGs are decoded: `reduced` at scale 1/2, 1/4 or 1/8 where that leaves enough pixels for the
            model, `exact` always at full scale.
    """

    torch: TorchSettings
    batch_size: int | None
    decode: str


def describe(spec: EncoderSpec) -> EncoderInfo:
    """Checks the options and the checkpoint's files, and returns id and dimension. Weights are hashed, not loaded.

    Raises:
        JobError: an option or a file is missing or wrong.
    """
    settings, found = _read(spec)
    return EncoderInfo(_encoder_id(spec, found, settings), found.dim)


def load(spec: EncoderSpec) -> Encoder:
    """Loads the tower of a modality onto the device.

    Raises:
        JobError: as `describe`, or the weights do not fit the configuration, or this machine has no such device.
    """
    settings, found = _read(spec)
    tower = OpenClipImageEncoder if spec.modality == "image" else OpenClipTextEncoder
    return tower(spec, settings, found)


def _read(spec: EncoderSpec) -> tuple[Settings, Checkpoint]:
    shared = torch_runtime.read_settings(spec, _OWN[spec.modality])
    batch_size = torch_runtime.read_whole(spec, "batch_size", None)
    settings = Settings(shared, batch_size, torch_runtime.read_choice(spec, "decode", DECODES))
    return settings, read_checkpoint(spec)


def _encoder_id(spec: EncoderSpec, found: Checkpoint, settings: Settings) -> str:
    facts = {**found.facts(_TOWER[spec.modality]), **settings.torch.facts}
    if spec.modality == "image":
        facts["decode"] = settings.decode
    # Raise `recipe` with every change of this file that changes the output.
    return f"open_clip-{spec.modality}-{content_hash([], {'recipe': 1, **facts})}"


class _Tower:
    """What both towers share: the loaded model on its device, and batches of inputs that all cost the same."""

    def __init__(self, spec: EncoderSpec, settings: Settings, found: Checkpoint) -> None:
        self.encoder_id = _encoder_id(spec, found, settings)
        self.dim = found.dim
        self._runtime = TorchRuntime(spec, settings.torch)
        self.batch_cost = settings.batch_size or (CUDA_BATCH if self._runtime.on_cuda else CPU_BATCH)
        model = _load_model(f"{spec.key}.model", found)
        self._drop_other_tower(model)
        self._model = self._runtime.place(model)

    def _drop_other_tower(self, model: Any) -> None:
        """Removes the tower that is not used, so that it takes no memory on the device."""
        raise NotImplementedError

    def cost(self, prepared: np.ndarray) -> int:
        """Returns 1."""
        return 1

    def _forward(self, inputs: Any) -> Any:
        """Runs the tower over a batch on the device: unit rows."""
        raise NotImplementedError

    def encode(self, batch: Sequence[np.ndarray]) -> np.ndarray:
        """Encodes prepared inputs: float32 [len(batch), dim], unit rows."""
        if not len(batch):
            return np.empty((0, self.dim), np.float32)
        inputs = self._runtime.stack(batch)
        with self._runtime.inference():
            return self._runtime.fetch(self._forward(inputs))


class OpenClipImageEncoder(_Tower):
    """An image tower."""

    def __init__(self, spec: EncoderSpec, settings: Settings, found: Checkpoint) -> None:
        super().__init__(spec, settings, found)
        import torch

        self._spec = spec
        self._fit = found.preprocess
        self._target = max(found.preprocess.size) if settings.decode == "reduced" else None
        self._encode_image = self._runtime.compiled(self._model.encode_image)
        mean, std = (torch.tensor(v, dtype=torch.float64).view(1, -1, 1, 1) for v in self._fit[1:3])
        self._scale = (1 / (255 * std)).float().to(self._runtime.device)
        self._shift = (-mean / std).float().to(self._runtime.device)

    def _drop_other_tower(self, model: Any) -> None:
        for name in ("text", "transformer", "token_embedding", "ln_final", "text_decoder"):
            if getattr(model, name, None) is not None:
                setattr(model, name, None)

    def prepare(self, raw: bytes) -> np.ndarray:
        """Decodes one picture and brings it to the model's size: uint8 [height, width, 3].

        This differs from open_clip's own transform in two points. Transparent pixels are laid over white; open_clip
        keeps the colour that the file stores for them, often black. The EXIF orientation is applied; open_clip ignores
        it.

        Raises:
            InputError: as `decode_image`.
        """
        picture = decode_image(raw, self._spec.limits, target=self._target)
        fit = self._fit
        return fit_picture(picture, fit.size, fit.resize_mode, fit.interpolation, fit.fill)

    def _forward(self, inputs: Any) -> Any:
        # Pixels are normalised on the device: as bytes they take a quarter of the transfer that floats would take.
        pixels = inputs.permute(0, 3, 1, 2).float().mul_(self._scale).add_(self._shift)
        return self._encode_image(pixels, normalize=True)

    @cached_property
    def text_tower(self) -> Encoder:
        """The text tower of the same checkpoint, loaded when it is first asked for."""
        options = tuple((name, value) for name, value in self._spec.options if name != "decode")
        return get_encoder(EncoderSpec("text", self._spec.model, options, self._spec.limits))


class OpenClipTextEncoder(_Tower):
    """A text tower. Every text is padded or cut to the checkpoint's context length."""

    def __init__(self, spec: EncoderSpec, settings: Settings, found: Checkpoint) -> None:
        super().__init__(spec, settings, found)
        import open_clip

        try:
            with _quiet_open_clip():
                self._tokenizer = open_clip.get_tokenizer(found.tokenizer)
        except Exception as error:  # such as no tokenizer files, no network, a vocabulary that cannot be read
            raise JobError(
                f"{spec.key}.model: the tokenizer of {spec.model} cannot be loaded ({first_line(error)}); "
                "put its files in the directory of the weights"
            ) from error
        self._encode_text = self._runtime.compiled(self._model.encode_text)

    def _drop_other_tower(self, model: Any) -> None:
        model.visual = None

    def prepare(self, raw: str) -> np.ndarray:
        """Tokenises one text: int64 [context length].

        Raises:
            InputError: EMPTY_TEXT.
        """
        tokens: np.ndarray = self._tokenizer([clean_text(raw)])[0].numpy()
        return tokens

    def _forward(self, inputs: Any) -> Any:
        return self._encode_text(inputs, normalize=True)


def _load_model(key: str, found: Checkpoint) -> Any:
    """Builds the architecture and loads every weight into it.

    open_clip does both for a directory in its own layout, so this function makes a temporary one.

    Raises:
        JobError: the weights do not fit the configuration.
    """
    import open_clip

    model = {name: value for name, value in found.model.items() if name != "name"}
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / CONFIG).write_text(json.dumps({"model_cfg": model, "preprocess_cfg": {}}))
        (Path(directory) / "open_clip_model.safetensors").symlink_to(found.weights.resolve())
        try:
            with _quiet_open_clip():
                return open_clip.create_model(f"local-dir:{directory}", pretrained_text=False)
        except Exception as error:  # torch raises errors of many types for weights that do not fit
            why = " ".join(line.strip() for line in str(error).strip().splitlines()[:2])
            raise JobError(
                f"{key}: {found.weights} cannot be loaded ({why}); name the architecture of these weights"
            ) from error


@contextlib.contextmanager
def _quiet_open_clip() -> Iterator[None]:
    """Drops what open_clip logs in this thread while a checkpoint loads.

    open_clip logs to the root logger itself. A filter there does not see what other loggers propagate to the root, and
    this one lets the records of other threads through.
    """
    thread = threading.get_ident()

    def keep(record: logging.LogRecord) -> bool:
        return record.thread != thread or record.levelno > logging.WARNING

    logging.getLogger().addFilter(keep)
    try:
        yield
    finally:
        logging.getLogger().removeFilter(keep)
