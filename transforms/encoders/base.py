"""What every encoder is: two methods, three facts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import numpy as np

from unisono.transforms.media.limits import MediaLimits

PARTS = ("text", "image", "audio")  # what a catalogue has columns of
JOINT = "joint"  # an item's parts together in one input
MODALITIES = (*PARTS, JOINT)




@dataclass(frozen=True)
class EncoderSpec:
    """Names an encoder: hashable, so that a process loads it once.

    Attributes:
        modality: `text`, `image`, `audio`, or `joint`: all of an item's in one input.
        model: `lite`, or a model's hub id or directory.
        options: further settings of the family, as sorted pairs.
    """

    modality: str
    model: str
    options: tuple[tuple[str, Any], ...] = ()
    limits: MediaLimits = field(default_factory=MediaLimits)

    @property
    def key(self) -> str:
        """The job-file key that a message about this encoder names."""
        return f"encoders.{self.modality}"


class Encoder(Protocol):
    """Turns raw inputs of one modality into embeddings.

    Attributes:
        encoder_id: changes whenever the output could.
        dim: length of an embedding.
        batch_cost: the most that `len(batch) × max(cost)` may be in one `encode` call.
    """

    encoder_id: str
    dim: int
    batch_cost: int

    def prepare(self, raw: Any) -> Any:
        """Makes one raw input (text: str; image, audio: the file's bytes; joint: a dict of these) model-ready.

        Of a joint input a part that cannot be used is left out, and told in an attribute `lost` of the result:
        ((part, InputError), …).

        Called from several threads at once. Depends on `raw` alone.

        Raises:
            InputError: the input cannot be used.
        """

    def cost(self, prepared: Any) -> int:
        """What one prepared input adds to a batch, in the unit of `batch_cost` (1 where all are alike)."""

    def encode(self, batch: Sequence[Any]) -> np.ndarray:
        """Encodes prepared inputs, called from one thread: float32 [len(batch), dim]."""


def text_tower_of(encoder: Encoder) -> Encoder | None:
    """The encoder that takes a *query* text into `encoder`'s own embedding space; None where it has none.

    An image or audio encoder with a text tower (CLIP, CLAP) has an attribute `text_tower`, itself an `Encoder`
    of texts with the same `dim`. A text encoder whose checkpoint asks for another prompt before a query has one
    too; any other text encoder takes queries as it takes texts, and has no such attribute.
    """
    return cast("Encoder | None", getattr(encoder, "text_tower", None))
