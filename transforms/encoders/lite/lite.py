"""The family `lite`: encoders that need no checkpoint, one file for each modality."""

from __future__ import annotations

from typing import Any

from unisono.transforms.base.errors import JobError
from unisono.transforms.base.registry import Lazy, Registry
from unisono.transforms.encoders.base import Encoder, EncoderInfo, EncoderSpec

_HERE = "unisono.transforms.encoders.lite"
_ENCODERS: Registry[Lazy] = Registry(
    "encoders",
    {
        "text": Lazy(f"{_HERE}.text:LiteTextEncoder"),
        "image": Lazy(f"{_HERE}.image:LiteImageEncoder"),
        "audio": Lazy(f"{_HERE}.audio:LiteAudioEncoder"),
    },
)


def load(spec: EncoderSpec) -> Encoder:
    """Builds the lite encoder of a modality. The imports of its libraries take about half a second.

    Raises:
        JobError: as `describe`.
    """
    encoder: Encoder = _class_of(spec)(spec)
    return encoder


def describe(spec: EncoderSpec) -> EncoderInfo:
    """Returns the id and dimension of a lite encoder without building it.

    Raises:
        JobError: the spec names a variant or has options; `lite` has neither.
    """
    cls = _class_of(spec)
    return EncoderInfo(cls.encoder_id, cls.dim)


def _class_of(spec: EncoderSpec) -> Any:
    if spec.model != "lite":
        raise JobError(f"{spec.key}.model: got {spec.model!r}; lite has no variants, write `lite`")
    if spec.options:
        names = ", ".join(sorted(name for name, _ in spec.options))
        raise JobError(f"{spec.key}.{names}: the lite encoder takes no options; remove it")
    return _ENCODERS[spec.modality].load()
