"""The sections of the job file that are not settings of one transform alone."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from unisono.transforms.base.settings import Positive, Share, settings
from unisono.transforms.media.limits import MediaLimits
from unisono.transforms.privacy.noise import NoiseSpec


class EncoderSection(BaseModel):
    """The encoder of one modality. A name alone, such as `lite`, stands for `{model: lite}`."""

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)

    model: str
    """`lite`, a hub id, a directory or gs:// prefix, or `<family>/<name>`. Further keys belong to the family."""


@settings("encoders")
class EncodersSection:
    """The encoder of each modality. `none` leaves a modality out."""

    text: EncoderSection | None = EncoderSection(model="lite")
    """Encoder of the text."""
    image: EncoderSection | None = EncoderSection(model="lite")
    """Encoder of the pictures."""
    audio: EncoderSection | None = EncoderSection(model="lite")
    """Encoder of the sounds."""
    joint: EncoderSection | None = None
    """Encoder of an item's text, picture and sound in one input, as a modality of its own. Its key `parts` names the
    modalities of the input; by default all that the catalogue has."""


@settings("limits")
class LimitsSection(MediaLimits):
    """What a single input may cost, and how many inputs may fail before the run is refused."""

    max_dead_letter_fraction: Share = 0.05
    """A run with a larger share of dead letters, of the catalogue's rows or of the events, is not published."""
    max_unknown_item_fraction: Share = 0.5
    """A run that makes profiles is not published if a larger share of its events have items that have no item vector.
    Raise it for a log that goes back further than the catalogue."""


@settings("output")
class OutputSection:
    """How vectors are stored."""

    embedding_dtype: Literal["float16", "float32"] = "float32"
    """Type of the embeddings."""
    dtype: Literal["float32", "float16", "int8"] = "float32"
    """Type of the item vectors."""
    dim: Positive | None = None
    """How many axes the item vectors keep. By default all."""


@settings("privacy.pseudonyms")
class PseudonymsSection:
    """User ids are replaced by a keyed hash (HMAC-SHA256, 16 bytes, hex) as they are read."""

    key_env: str
    """The environment variable that holds the key. The key itself is written nowhere."""

    def __post_init__(self) -> None:
        # Checked here, where the message shows no value: the value may be the key itself, put in the wrong place.
        if not re.fullmatch(r"[A-Z_][A-Z0-9_]{0,63}", self.key_env):
            raise ValueError("key_env is the name of an environment variable, in capitals, not the key")


@settings("privacy")
class PrivacySection:
    """What is done for the people in the log."""

    pseudonyms: PseudonymsSection | None = None
    """Replace user ids by pseudonyms."""
    forget: Annotated[str | None, Field(min_length=1)] = None
    """A Parquet file with a column user_id of raw ids. These people are left out."""
    noise: NoiseSpec | None = None
    """Add noise to each published profile."""


def beside_noise(job: Any) -> list[str]:
    """Lists the settings of a job that would publish what noise does not cover, each with its remedy."""
    profiles, ranking, found = job.profiles, job.ranking, []
    if profiles.interests:
        found.append(f"profiles.interests: {profiles.interests} (set 0: they name items that the user turned to)")
    if profiles.incremental:
        found.append("profiles.incremental (set false: state/ holds sums and events as they are)")
    if profiles.robots == "drop":
        found.append("profiles.robots: drop (set cap: a missing row tells of the user's events)")
    if job.behaviour:
        found.append("behaviour (leave it out: item vectors would be made of the events as they are)")
    if ranking and ranking.exclude_seen:
        found.append("ranking.exclude_seen: true (set false: what is missing from a list was seen)")
    if ranking and ranking.method == "learned":
        found.append("ranking.method: learned (set vectors: ranking vectors would be made of the events as they are)")
    counting = ("popularity_penalty", "popularity_bonus", "caution", "trend")
    found += [f"ranking.{k} (set 0: it counts the events as they are)" for k in counting if getattr(ranking, k, 0)]
    if ranking and ranking.fusion == "late":
        found.append("ranking.fusion: late (set early: one vector of a user is noised, not one for each modality)")
    return found
