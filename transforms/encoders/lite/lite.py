"""The door to the `lite` encoders: descriptors that need no download, one file per modality."""

from __future__ import annotations

import importlib
from typing import Any

from unisono.transforms.base.errors import JobError
from unisono.transforms.encoders.base import Encoder, EncoderSpec
from unisono.transforms.encoders.registry import EncoderInfo

_CLASSES = {
    "text": ("unisono.transforms.encoders.lite.text", "LiteTextEncoder"),
    "image": ("unisono.transforms.encoders.lite.image", "LiteImageEncoder"),
    "audio": ("unisono.transforms.encoders.lite.audio", "LiteAudioEncoder"),
}


def load(spec: EncoderSpec) -> Encoder:
    """Builds the lite encoder of `spec.modality`: half a second, for the libraries' imports.

    Raises:
        JobError: the spec names a variant, or carries options: there are none.
    """
    encoder: Encoder = _class_of(spec)(spec)
    return encoder


def describe(spec: EncoderSpec) -> EncoderInfo:
    """Tells id and dimension without building the encoder.

    Raises:
        JobError: as `load`.
    """
    cls = _class_of(spec)
    return EncoderInfo(cls.encoder_id, cls.dim)


def _class_of(spec: EncoderSpec) -> Any:
    if spec.model != "lite":
        raise JobError(f"{spec.key}.model: got {spec.model!r}; lite has no variants, write `lite`")
    if spec.options:
        names = ", ".join(sorted(name for name, _ in spec.options))
        raise JobError(f"{spec.key}.{names}: the lite encoder takes no options; remove it")
    module, name = _CLASSES[spec.modality]
    return getattr(importlib.import_module(module), name)
