"""The interface of every encoder, and the specification by which a job asks for one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, cast

import numpy as np

from unisono.transforms.media.limits import MediaLimits


@dataclass(frozen=True)
class EncoderSpec:
    """Says which encoder a job asks for. It is hashable, so a process can keep one loaded encoder for each spec.

    Attributes:
        modality: one of `unisono.transforms.base.modalities.ENCODED`.
        model: `lite`, or the hub id or directory of a checkpoint, with or without the prefix of its family.
        options: further settings for the family, as pairs sorted by name.
        limits: what one input may cost.
    """

    modality: str
    model: str
    options: tuple[tuple[str, Any], ...] = ()
    limits: MediaLimits = field(default_factory=MediaLimits)

    @property
    def key(self) -> str:
        """The job-file key of this encoder. Error messages start with it."""
        return f"encoders.{self.modality}"


class EncoderInfo(NamedTuple):
    """What is known about an encoder before its weights are loaded.

    Attributes:
        encoder_id: as in `Encoder`.
        dim: as in `Encoder`.
    """

    encoder_id: str
    dim: int


class Encoder(Protocol):
    """Turns raw inputs of one modality into embeddings.

    Attributes:
        encoder_id: names the encoder; it changes whenever the encoder's output could change.
        dim: the length of an embedding.
        batch_cost: the largest allowed value of `len(batch) × max(cost)` in one call to `encode`.
    """

    encoder_id: str
    dim: int
    batch_cost: int

    def prepare(self, raw: Any) -> Any:
        """Turns one raw input into the form that `encode` takes.

        Called from several threads at once. The result depends on `raw` alone.

        A part of a joint input that cannot be used is left out. The result then has an attribute `lost`, which holds
        a pair (part, InputError) for each such part.

        Args:
            raw: a str for text, the bytes of a file for image and audio, or a dict of these by part for joint.

        Raises:
            InputError: the input cannot be used.
        """

    def cost(self, prepared: Any) -> int:
        """Returns the cost of one prepared input, in the unit of `batch_cost`: 1 if all inputs cost the same."""

    def encode(self, batch: Sequence[Any]) -> np.ndarray:
        """Encodes prepared inputs: float32 [len(batch), dim]. Called from one thread at a time."""


def text_tower_of(encoder: Encoder) -> Encoder | None:
    """Returns the encoder that maps a text *query* into the embedding space of `encoder`.

    An image or audio encoder with a text tower (CLIP, CLAP) has an attribute `text_tower`: an `Encoder` of texts with
    the same `dim`. A text encoder has this attribute only if its checkpoint puts another prompt before queries than
    before texts. None means that there is no such encoder; a text encoder then encodes queries itself.
    """
    return cast("Encoder | None", getattr(encoder, "text_tower", None))


def to_units(embeddings: np.ndarray) -> np.ndarray:
    """Scales embeddings to unit L2 norm: float64 [n, dim].

    Zero rows stay zero. NaN stays NaN, unlike in `unisono.transforms.base.columns.unit_rows`: an embedding that is not
    finite must become a dead letter, not a zero vector.

    Args:
        embeddings: float32 [n, dim].
    """
    wide = embeddings.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    return cast(np.ndarray, wide / np.where(norms > 0, norms, 1))
