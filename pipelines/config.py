"""The job file: validated whole, before any work."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from transforms import files
from transforms.behaviour import BEHAVIOUR, BehaviourSpec
from transforms.catalog import CatalogSpec
from transforms.encoders.base import MODALITIES, EncoderSpec, MediaLimits
from transforms.errors import JobError
from transforms.files import is_remote, join
from transforms.interactions import InteractionsSpec
from transforms.media import MediaSource
from transforms.profiles import ProfileSpec
from transforms.ranking import RankingSpec
from transforms.store import Store

Positive = Annotated[int, Field(gt=0)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CatalogConfig(_Section):
    """Where the catalogue lies and which columns hold what."""

    path: str
    id: str
    title: str | None = None
    text: str | list[str] | None = None
    image: str | None = None
    audio: str | None = None
    media_root: str | None = None
    allow: list[str] = []

    @field_validator("text")
    @classmethod
    def _one_or_many(cls, value: str | list[str] | None) -> str | list[str] | None:
        if isinstance(value, str) and "{" not in value:
            return [value]  # a single column
        spec = CatalogSpec("", "", text=tuple(value) if isinstance(value, list) else value)
        if value is not None and not spec.text_columns:
            raise ValueError("names no column")
        return value

    @model_validator(mode="after")
    def _some_modality(self) -> CatalogConfig:
        if not (self.text or self.image or self.audio):
            raise ValueError("names no modality; give at least one of text, image, audio")
        return self


class EncoderConfig(_Section):
    """One encoder. Further keys are the family's own."""

    model_config = ConfigDict(extra="allow", frozen=True)
    model: str


class EncodersConfig(_Section):
    """The encoder of each modality; `lite` where nothing is said."""

    text: EncoderConfig = EncoderConfig(model="lite")
    image: EncoderConfig = EncoderConfig(model="lite")
    audio: EncoderConfig = EncoderConfig(model="lite")

    @field_validator("*", mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"model": value} if isinstance(value, str) else value


class SpaceConfig(_Section):
    """How the joint space is fitted. `dim`: by default 128, or as many axes as there can be."""

    method: Literal["auto", "cca", "gcca"] = "auto"
    dim: Positive | None = None
    regularization: Annotated[float, Field(ge=0)] | None = None
    sample: Annotated[float, Field(gt=0, le=1)] = 1.0


class FusionConfig(_Section):
    """How aligned modalities become one vector."""

    method: Literal["weighted"] = "weighted"
    weights: dict[Literal["text", "image", "audio", "behaviour"], Annotated[float, Field(gt=0)]] = {}


class InteractionsConfig(_Section):
    """Where the interaction log lies and what its columns and events mean."""

    path: str
    user: str
    item: str
    time: str
    time_unit: Literal["s", "ms", "us"] | None = None
    event: str | None = None
    weights: dict[str, float] | None = None

    @model_validator(mode="after")
    def _events_have_weights(self) -> InteractionsConfig:
        if (self.event is None) != (self.weights is None):
            raise ValueError("give both `event` and `weights`, or neither (then every event weighs 1)")
        return self


class BehaviourConfig(_Section):
    """How co-occurrence in the log becomes a modality of the items."""

    dim: Positive = 64
    recent_items: Annotated[int, Field(ge=2)] = 100
    min_users: Positive = 2
    shift: Annotated[float, Field(ge=1)] = 1.0


class ProfilesConfig(_Section):
    """How a user's history becomes one vector."""

    half_life_days: Annotated[float, Field(gt=0)] | None = 30.0
    min_events: Positive = 1
    interests: Annotated[int, Field(ge=0, le=100)] = 3
    recent_events: Positive = 100
    delta: Annotated[float, Field(ge=0, le=1)] = 1.0
    session_minutes: Annotated[float, Field(gt=0)] | None = None
    max_events_per_day: Positive | None = 5000
    robots: Literal["cap", "drop"] = "cap"
    incremental: bool = False


class RankingConfig(_Section):
    """How users are matched with items. `filter`: a column of the catalogue, true where an item may be shown."""

    k: Positive = 100
    interests: Literal["profile", "maximum", "weighted"] = "maximum"
    fusion: Literal["early", "late"] = "early"
    weights: dict[str, Annotated[float, Field(ge=0)]] = {}
    exclude_seen: bool = True
    filter: str | None = None
    diversity: Annotated[float, Field(ge=0, le=1)] = 0.0
    popularity_penalty: Annotated[float, Field(ge=0)] = 0.0
    slices: Positive = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"


class LimitsConfig(_Section):
    """What a single input may cost, and how many may fail before the publish is refused."""

    max_dead_letter_fraction: Annotated[float, Field(ge=0, le=1)] = 0.05
    max_media_bytes: Positive = MediaLimits.max_media_bytes
    max_image_pixels: Positive = MediaLimits.max_image_pixels
    max_audio_seconds: Annotated[float, Field(gt=0)] = MediaLimits.max_audio_seconds


class OutputConfig(_Section):
    """How vectors are stored."""

    embedding_dtype: Literal["float16", "float32"] = "float32"


class Job(_Section):
    """A whole job file. Relative paths in it are relative to the file itself."""

    store: str
    catalog: CatalogConfig
    shards: Positive | None = None
    encoders: EncodersConfig = EncodersConfig()
    space: SpaceConfig = SpaceConfig()
    fusion: FusionConfig = FusionConfig()
    interactions: InteractionsConfig | None = None
    behaviour: BehaviourConfig | None = None
    profiles: ProfilesConfig = ProfilesConfig()
    ranking: RankingConfig | None = None
    limits: LimitsConfig = LimitsConfig()
    output: OutputConfig = OutputConfig()

    # --- what the transforms take ---

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities that the catalogue has a column for."""
        return self.catalog_spec.modalities

    @property
    def space_modalities(self) -> tuple[str, ...]:
        """The modalities of the joint space."""
        return self.modalities + ((BEHAVIOUR,) if self.behaviour else ())

    @property
    def behaviour_spec(self) -> BehaviourSpec | None:
        """What `transforms.behaviour` takes; None where behaviour is no modality."""
        at = self.behaviour
        return None if at is None else BehaviourSpec(at.dim, at.recent_items, at.min_users, at.shift)

    @property
    def store_at(self) -> Store:
        """The store."""
        return Store(self.store)

    @property
    def media_limits(self) -> MediaLimits:
        """What a single input may cost."""
        at = self.limits
        return MediaLimits(at.max_media_bytes, at.max_image_pixels, at.max_audio_seconds)

    @property
    def catalog_spec(self) -> CatalogSpec:
        """What `transforms.catalog` takes."""
        at = self.catalog
        text = tuple(at.text) if isinstance(at.text, list) else at.text
        return CatalogSpec(at.path, at.id, text, at.title, at.image, at.audio)

    @property
    def media_source(self) -> MediaSource:
        """What `transforms.media` takes."""
        root = self.catalog.media_root or self.catalog.path.rsplit("/", 1)[0]
        return MediaSource(root, tuple(self.catalog.allow), self.media_limits)

    def encoder_spec(self, modality: str) -> EncoderSpec:
        """What `transforms.encoders` takes."""
        at = getattr(self.encoders, modality)
        options = tuple(sorted((at.model_extra or {}).items()))
        return EncoderSpec(modality, at.model, options, self.media_limits)

    @property
    def interactions_spec(self) -> InteractionsSpec:
        """What `transforms.interactions` takes.

        Raises:
            JobError: the job file has no `interactions`.
        """
        at = self.interactions
        if at is None:
            raise JobError("interactions: missing; a profile needs the interaction log (path, user, item, time)")
        weights = None if at.weights is None else tuple(sorted(at.weights.items()))
        return InteractionsSpec(at.path, at.user, at.item, at.time, at.event, weights, time_unit=at.time_unit)

    @property
    def profile_spec(self) -> ProfileSpec:
        """What `transforms.profiles` takes."""
        at = self.profiles
        return ProfileSpec(
            half_life_days=at.half_life_days,
            min_events=at.min_events,
            interests=at.interests,
            recent_events=at.recent_events,
            delta=at.delta,
            session_minutes=at.session_minutes,
            max_events_per_day=at.max_events_per_day,
            robots=at.robots,
            modalities=self.space_modalities,
            modality_vectors=self.ranking is not None and self.ranking.fusion == "late",
        )

    @property
    def ranking_spec(self) -> RankingSpec:
        """What `transforms.ranking` takes.

        Raises:
            JobError: its keys do not go together.
        """
        at = self.ranking or RankingConfig()
        weights = tuple(sorted(at.weights.items()))
        return RankingSpec(
            at.k, at.interests, at.fusion, weights, at.diversity, at.popularity_penalty, at.slices, at.device
        )

    @model_validator(mode="after")
    def _behaviour_has_a_log(self) -> Job:
        if self.behaviour and not self.interactions:
            raise ValueError("behaviour: needs the interaction log; give `interactions`, or leave `behaviour` out")
        return self

    def to_yaml(self) -> str:
        """Writes the job with every default filled in and every path absolute."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _absolute(path: str, base: str) -> str:
    if is_remote(path) or os.path.isabs(path):
        return path
    return join(base, path) if is_remote(base) else os.path.normpath(os.path.join(base, path))


def _resolve_paths(raw: dict[str, Any], base: str) -> dict[str, Any]:
    """Makes the paths of a job file absolute; whatever is not a string is left for validation."""
    out = dict(raw)
    for section, keys in (("catalog", ("path", "media_root")), ("interactions", ("path",))):
        if isinstance(raw.get(section), dict):
            out[section] = dict(raw[section])
            for key in keys:
                if isinstance(value := raw[section].get(key), str):
                    out[section][key] = _absolute(value, base)
    if isinstance(raw.get("catalog"), dict) and isinstance(allow := raw["catalog"].get("allow"), list):
        out["catalog"]["allow"] = [_absolute(p, base) if isinstance(p, str) else p for p in allow]
    if isinstance(raw.get("store"), str):
        out["store"] = _absolute(raw["store"], base)
    encoders = raw.get("encoders")
    if isinstance(encoders, dict):
        out["encoders"] = {
            m: _absolute_model(e, base) if m in MODALITIES else e for m, e in encoders.items()
        }
    return out


def _absolute_model(encoder: Any, base: str) -> Any:
    """A model that starts with ./ or ../ is a directory beside the job file; anything else is a name."""
    if isinstance(encoder, str) and encoder.startswith(("./", "../")):
        return _absolute(encoder, base)
    if isinstance(encoder, dict):
        return {k: _absolute_model(v, base) if k in ("model", "weights") else v for k, v in encoder.items()}
    return encoder


def _one_line(error: ValidationError, where: str) -> str:
    """Says the first thing that is wrong: the key, what it got, what is allowed."""
    errors = error.errors()
    first = errors[0]
    key = ".".join(str(p) for p in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "unknown key"
        model: Any = Job
        for part in first["loc"][:-1]:
            model = getattr(getattr(model, "model_fields", {}).get(part), "annotation", None)
            model = next((a for a in getattr(model, "__args__", ()) if hasattr(a, "model_fields")), model)
        if hasattr(model, "model_fields"):
            message += f"; allowed here: {', '.join(model.model_fields)}"
    elif first["type"] == "missing":
        message = "required"
    else:
        got = first["input"]
        message += "" if isinstance(got, dict) else f" (got {got!r})"
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"{where}: {key or 'job'}: {message}{more}"


def load_job(path: str) -> Job:
    """Reads and validates a job file.

    Raises:
        JobError: it is not there, is not YAML, or does not say what a job must say.
    """
    try:
        text = files.read_bytes(path) if is_remote(path) else Path(path).read_bytes()
    except (OSError, ImportError, ValueError) as e:
        raise JobError(f"--config: cannot read {path} ({getattr(e, 'strerror', None) or e})") from e
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as e:
        raise JobError(f"{path}: not YAML: {' '.join(str(e).split())}") from e
    return parse_job(raw, path)


def parse_job(raw: Any, path: str) -> Job:
    """Validates what a job file holds; its relative paths are relative to `path`'s directory."""
    if not isinstance(raw, dict):
        raise JobError(f"{path}: a job file is a mapping of keys such as store and catalog, got {type(raw).__name__}")
    base = path.rsplit("/", 1)[0] if is_remote(path) else os.path.dirname(os.path.abspath(path))
    try:
        return Job.model_validate(_resolve_paths(raw, base))
    except ValidationError as e:
        raise JobError(_one_line(e, path)) from e
