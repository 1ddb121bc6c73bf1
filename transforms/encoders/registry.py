"""The table of encoder families, and the loaded encoders of this process."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, cast

from unisono.transforms.base.errors import JobError
from unisono.transforms.base.extras import require_all
from unisono.transforms.base.modalities import CATALOG, JOINT
from unisono.transforms.base.registry import Lazy, Registry
from unisono.transforms.encoders.base import Encoder, EncoderInfo, EncoderSpec


@dataclass(frozen=True)
class Family(Lazy):
    """An encoder family.

    Attributes:
        place: the family's module. It has two functions, `describe(spec) -> EncoderInfo` and `load(spec) -> Encoder`.
        needs: the optional libraries that the family imports, for each modality that it encodes: import names, by the
            extra of this package that brings them.
        takes_queries: whether an encoder of the family may have a text tower. Only the loaded encoder can tell.
    """

    needs: Mapping[str, Mapping[str, Sequence[str]]]
    takes_queries: bool = True

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities that the family encodes."""
        return tuple(self.needs)

    def load(self) -> Any:
        """Imports and returns the family's module."""
        return import_module(self.place)


# Libraries by the extra that brings them.
_PICTURES = {"image": ["PIL"]}
_SOUNDS = {"audio": ["soundfile", "soxr"]}
_TRANSFORMERS = {"models": ["torch", "transformers"]}
_OPEN_CLIP = {"models": ["torch", "torchvision", "open_clip"]}
_ST = {"omni": ["torch", "sentence_transformers"]}
_LITE = {"text": {}, "image": {"image": ["PIL", "skimage"]}, "audio": {"audio": ["librosa", "soundfile", "soxr"]}}

_HERE = "unisono.transforms.encoders"
# A model named `lite` or `<family>/…` belongs to that family. Any other model is a transformers checkpoint: CLAP's for
# audio, a text encoder otherwise.
FAMILIES: Registry[Family] = Registry(
    "encoders",
    {
        "lite": Family(f"{_HERE}.lite.lite", _LITE, takes_queries=False),
        "clap": Family(f"{_HERE}.clap.towers", {"audio": _TRANSFORMERS | _SOUNDS, "text": _TRANSFORMERS}),
        "open_clip": Family(f"{_HERE}.clip.towers", {"text": _OPEN_CLIP, "image": _OPEN_CLIP | _PICTURES}),
        "st": Family(
            f"{_HERE}.sentence.st",
            {"text": _ST, "image": _ST | _PICTURES, "audio": _ST | _SOUNDS, "joint": _ST},
        ),
        "transformers": Family(f"{_HERE}.sentence.transformers_text", {"text": _TRANSFORMERS}),
    },
)

_loaded: dict[EncoderSpec, Encoder] = {}
_lock = threading.Lock()


def family_of(spec: EncoderSpec) -> str:
    """Returns the name of the family that a model belongs to.

    Raises:
        JobError: the model's family does not encode this modality.
    """
    prefix = spec.model.split("/", 1)[0]
    name = prefix if prefix in FAMILIES else "clap" if spec.modality == "audio" else "transformers"
    if spec.modality not in FAMILIES[name].modalities:
        able = sorted(n for n, f in FAMILIES.items() if spec.modality in f.modalities)
        raise JobError(
            f"{spec.key}.model: {spec.model!r} is not an encoder of {spec.modality}; "
            f"families with {spec.modality}: {', '.join(able)}"
        )
    return name


def describe_encoder(spec: EncoderSpec) -> EncoderInfo:
    """Checks that an encoder can be loaded, and returns its id and dimension. Weights are not loaded.

    Raises:
        JobError: there is no such encoder or checkpoint, or a library that it needs is not installed.
    """
    return cast(EncoderInfo, _module_of(spec).describe(spec))


def may_take_queries(spec: EncoderSpec) -> bool:
    """Says whether an encoder may have a text tower, so that loading it for `text_tower_of` is worth the time.

    Raises:
        JobError: as `family_of`.
    """
    return FAMILIES[family_of(spec)].takes_queries


def get_encoder(spec: EncoderSpec) -> Encoder:
    """Returns this process's one encoder for `spec`, and loads it on the first call.

    Beam's `Shared` does not fit: it keeps only the object acquired last, so two encoders in one process would evict
    each other again and again.

    Raises:
        JobError: as `describe_encoder`, or the encoder cannot be loaded.
    """
    with _lock:
        if spec not in _loaded:
            _loaded[spec] = _module_of(spec).load(spec)
        return _loaded[spec]


def _module_of(spec: EncoderSpec) -> Any:
    """Checks that a family's libraries are installed, and imports its module."""
    family = FAMILIES[family_of(spec)]
    require_all(_libraries_of(family, spec), spec.key, spec.model)
    return family.load()


def _libraries_of(family: Family, spec: EncoderSpec) -> dict[str, list[str]]:
    """Returns the libraries that an encoder imports, by extra. A joint encoder imports those of each of its parts."""
    modalities = [spec.modality]
    if spec.modality == JOINT:
        modalities += [part for part in dict(spec.options).get("parts", CATALOG) if part in family.modalities]
    merged: dict[str, list[str]] = {}
    for modality in modalities:
        for extra, libraries in family.needs[modality].items():
            merged[extra] = list(dict.fromkeys([*merged.get(extra, []), *libraries]))
    return merged
