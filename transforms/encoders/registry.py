"""Finds an encoder family by a model's name, and keeps one loaded encoder per process."""

from __future__ import annotations

import importlib
import threading
from typing import NamedTuple, cast

from unisono.transforms.base.errors import JobError
from unisono.transforms.encoders.base import Encoder, EncoderSpec


class EncoderInfo(NamedTuple):
    """What is known of an encoder before its weights are loaded."""

    encoder_id: str
    dim: int


class _Family(NamedTuple):
    module: str
    modalities: tuple[str, ...]
    takes_queries: bool = True  # whether an encoder may have a text tower; to know, it has to be loaded


# A model `lite` or `<family>/…` names its family; any other is a transformers checkpoint: of text, or CLAP's of audio.
# Each module has `load(spec) -> Encoder` and `describe(spec) -> EncoderInfo`.
FAMILIES = {
    "lite": _Family("unisono.transforms.encoders.lite.lite", ("text", "image", "audio"), takes_queries=False),
    "clap": _Family("unisono.transforms.encoders.clap.towers", ("audio", "text")),
    "open_clip": _Family("unisono.transforms.encoders.clip.towers", ("text", "image")),
    "st": _Family("unisono.transforms.encoders.sentence.st", ("text", "image", "audio", "joint")),
    "transformers": _Family("unisono.transforms.encoders.sentence.transformers_text", ("text",)),
}

_loaded: dict[EncoderSpec, Encoder] = {}
_lock = threading.Lock()


def family_of(spec: EncoderSpec) -> str:
    """Names the family of a model, or says in one line why there is none.

    Raises:
        JobError: unknown family, or a family without this modality.
    """
    prefix = spec.model.split("/", 1)[0]
    name = prefix if prefix in FAMILIES else "clap" if spec.modality == "audio" else "transformers"
    if spec.modality not in FAMILIES[name].modalities:
        able = sorted(n for n, f in FAMILIES.items() if spec.modality in f.modalities)
        raise JobError(
            f"{spec.key}.model: {spec.model!r} is no {spec.modality} encoder; "
            f"families with {spec.modality}: {', '.join(able)}"
        )
    return name


def describe_encoder(spec: EncoderSpec) -> EncoderInfo:
    """Checks that an encoder can be loaded, and tells its id and dimension, without loading its weights.

    Raises:
        JobError: no such encoder or checkpoint, or its library is not installed.
    """
    return cast(EncoderInfo, importlib.import_module(FAMILIES[family_of(spec)].module).describe(spec))


def may_take_queries(spec: EncoderSpec) -> bool:
    """Says whether a text query is worth asking `base.text_tower_of` this encoder, which loads it.

    Raises:
        JobError: as `family_of`.
    """
    return FAMILIES[family_of(spec)].takes_queries


def get_encoder(spec: EncoderSpec) -> Encoder:
    """Gives the process's one encoder for `spec`, loading it on first use.

    A dictionary rather than Beam's `Shared`, which keeps only the object last acquired: two encoders in
    one process would evict each other for ever.
    """
    with _lock:
        if spec not in _loaded:
            module = importlib.import_module(FAMILIES[family_of(spec)].module)
            _loaded[spec] = module.load(spec)
        return _loaded[spec]
