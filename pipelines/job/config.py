"""The job file: validated whole, before any work."""

from __future__ import annotations

import os
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import ConfigDict, Field, ValidationError, field_validator, model_validator

from unisono.pipelines.job.config_privacy import PrivacyConfig, beside_noise
from unisono.pipelines.job.config_section import Positive, Section
from unisono.pipelines.job.config_users import BehaviourConfig, InteractionsConfig, ProfilesConfig, RankingConfig
from unisono.transforms.base import files
from unisono.transforms.base.errors import JobError
from unisono.transforms.base.files import is_remote, join
from unisono.transforms.behaviour.behaviour import BEHAVIOUR, BehaviourSpec
from unisono.transforms.encoders.base import JOINT, MODALITIES, PARTS, EncoderSpec
from unisono.transforms.encoders.registry import FAMILIES
from unisono.transforms.media.fetch import MediaSource
from unisono.transforms.media.limits import MediaLimits
from unisono.transforms.privacy.noise import NoiseSpec
from unisono.transforms.rank.ranking import RankingSpec
from unisono.transforms.read.catalog import CatalogSpec
from unisono.transforms.read.interactions import InteractionsSpec
from unisono.transforms.space.fit.fusion import FusionSpec
from unisono.transforms.space.fit.run import FitSettings
from unisono.transforms.space.fit.spec import SpaceSpec
from unisono.transforms.store.runs import Store
from unisono.transforms.users.profiles import ProfileSpec

_FAMILIES = tuple(f"{name}/" for name in FAMILIES)
Modality = Literal["text", "image", "audio", "joint", "behaviour"]
SpaceMethod = Literal[
    "auto", "none", "whiten", "procrustes", "ridge", "cca", "gcca", "anchors", "contrastive", "attention", "autoencoder"
]


class CatalogConfig(Section):
    """Where the catalogue lies and which columns hold what."""

    path: str
    id: str
    title: str | None = None
    text: str | list[str] | None = None
    image: str | None = None
    audio: str | None = None
    media_root: str | None = None
    allow: list[str] = Field(default_factory=list)

    @field_validator("text")
    @classmethod
    def _one_or_many(cls, value: str | list[str] | None) -> str | list[str] | None:
        if isinstance(value, str) and "{" not in value:
            return [value]  # a single column
        if isinstance(value, str) and any(spec or how for _, _, spec, how in string.Formatter().parse(value)):
            raise ValueError("a template takes plain {column} fields, without ! or :")
        spec = CatalogSpec("", "", text=tuple(value) if isinstance(value, list) else value)
        if value is not None and not spec.text_columns:
            raise ValueError("names no column")
        return value

    @model_validator(mode="after")
    def _some_modality(self) -> CatalogConfig:
        if not (self.text or self.image or self.audio):
            raise ValueError("names no modality; give at least one of text, image, audio")
        return self


class EncoderConfig(Section):
    """One encoder. Further keys are the family's own."""

    model_config = ConfigDict(extra="allow", frozen=True)
    model: str


class EncodersConfig(Section):
    """The encoder of each modality: `lite` where nothing is said, none where it is `none`.

    `joint` encodes an item's text, image and audio in one input (its `parts`; all that the catalogue has).
    """

    text: EncoderConfig | None = EncoderConfig(model="lite")
    image: EncoderConfig | None = EncoderConfig(model="lite")
    audio: EncoderConfig | None = EncoderConfig(model="lite")
    joint: EncoderConfig | None = None

    @field_validator("*", mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        if value == "none":
            return None
        return {"model": value} if isinstance(value, str) else value


class SpaceConfig(Section):
    """How the joint space is fitted. `dim`: by default 128, or as many axes as there can be."""

    method: SpaceMethod = "auto"
    dim: Positive | None = None
    regularization: Annotated[float, Field(ge=0)] | None = None
    weighting: Annotated[float, Field(ge=0)] = 1.0
    hub: Modality | None = None
    remove_top: Annotated[int, Field(ge=0)] = 0
    anchors: Positive | Annotated[list[str], Field(min_length=2)] | None = None
    seed: Annotated[int, Field(ge=0)] = 0
    epochs: Positive | None = None
    sample: Annotated[float, Field(gt=0, le=1)] = 1.0
    refit: Literal["never", "always", "on_drift"] = "always"
    drift_threshold: Annotated[float, Field(ge=0, le=2)] = 0.02
    inertia: Annotated[float, Field(ge=0, lt=1)] = 0.5


class FusionConfig(Section):
    """How aligned modalities become one vector."""

    method: Literal["mean", "weighted", "concat", "attention", "gated"] = "mean"
    weights: Literal["learned"] | dict[Modality, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    impute: bool = False

    @model_validator(mode="after")
    def _weights_are_used(self) -> FusionConfig:
        if self.weights and self.method != "weighted":
            raise ValueError(f"`weights` are used by method weighted, not by {self.method}; take one of them out")
        return self


class LimitsConfig(Section):
    """What a single input may cost, and how many may fail before the publish is refused."""

    max_dead_letter_fraction: Annotated[float, Field(ge=0, le=1)] = 0.05
    max_media_bytes: Positive = MediaLimits.max_media_bytes
    max_image_pixels: Positive = MediaLimits.max_image_pixels
    max_audio_seconds: Annotated[float, Field(gt=0)] = MediaLimits.max_audio_seconds


class OutputConfig(Section):
    """How vectors are stored: `dtype` and `dim` (axes kept; default: all) are those of items/."""

    embedding_dtype: Literal["float16", "float32"] = "float32"
    dtype: Literal["float32", "float16", "int8"] = "float32"
    dim: Positive | None = None


class Job(Section):
    """A whole job file. Relative paths in it are relative to the file itself."""

    store: str
    catalog: CatalogConfig
    shards: Annotated[int, Field(gt=0, le=65_536)] | None = None
    encoders: EncodersConfig = EncodersConfig()
    space: SpaceConfig = SpaceConfig()
    fusion: FusionConfig = FusionConfig()
    interactions: InteractionsConfig | None = None
    behaviour: BehaviourConfig | None = None
    profiles: ProfilesConfig = ProfilesConfig()
    ranking: RankingConfig | None = None
    privacy: PrivacyConfig = PrivacyConfig()
    limits: LimitsConfig = LimitsConfig()
    output: OutputConfig = OutputConfig()

    @model_validator(mode="after")
    def _something_to_encode(self) -> Job:
        have = [m for m in PARTS if getattr(self.catalog, m)]
        for part in self.joint_parts:
            if part not in have:
                raise ValueError(f"encoders.joint.parts: {part!r} is no modality of the catalogue; it has {have}")
        if not self.modalities or (self.encoders.joint and not self.joint_parts):
            raise ValueError("encoders: nothing is left to encode; give one of the catalogue's modalities an encoder")
        return self

    # --- what the transforms take ---

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities that are encoded: of the catalogue's columns, and `joint` if the job asks for it."""
        own = [m for m in self.catalog_spec.modalities if getattr(self.encoders, m)]
        return (*own, *([JOINT] if self.encoders.joint else []))

    @property
    def joint_parts(self) -> tuple[str, ...]:
        """The columns that go into a joint input; () without a joint encoder."""
        at = self.encoders.joint
        have = tuple(m for m in PARTS if getattr(self.catalog, m))
        return tuple((at.model_extra or {}).get("parts", have)) if at else ()

    @property
    def space_modalities(self) -> tuple[str, ...]:
        """The modalities of the joint space."""
        return self.modalities + ((BEHAVIOUR,) if self.behaviour else ())

    @property
    def behaviour_spec(self) -> BehaviourSpec | None:
        """What `unisono.transforms.behaviour.behaviour` takes; None where behaviour is no modality."""
        at = self.behaviour
        return None if at is None else BehaviourSpec(**at.model_dump())

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
        """What `unisono.transforms.read.catalog` takes."""
        at = self.catalog
        text = tuple(at.text) if isinstance(at.text, list) else at.text
        title = at.title or CatalogSpec("", "", text).title_column
        used = [m for m in PARTS if getattr(self.encoders, m) or m in self.joint_parts]
        columns: dict[str, Any] = {"text": text, "image": at.image, "audio": at.audio}
        return CatalogSpec(at.path, at.id, title=title, **{m: columns[m] for m in used})

    @property
    def media_source(self) -> MediaSource:
        """What `unisono.transforms.media.fetch` takes."""
        root = self.catalog.media_root or self.catalog.path.rsplit("/", 1)[0]
        return MediaSource(root, tuple(self.catalog.allow), self.media_limits)

    def encoder_spec(self, modality: str) -> EncoderSpec:
        """What `transforms.encoders` takes."""
        at = getattr(self.encoders, modality)
        # Lists as tuples: a spec is hashable.
        options = {k: tuple(v) if isinstance(v, list) else v for k, v in (at.model_extra or {}).items()}
        if modality == JOINT:
            options["parts"] = self.joint_parts
        return EncoderSpec(modality, at.model, tuple(sorted(options.items())), self.media_limits)

    def fit_settings(self, dim: int, encoder_ids: Mapping[str, str]) -> FitSettings:
        """What `unisono.transforms.space.fit.run` takes; `dim` is the number of axes, as the plan found it."""
        at = self.space
        anchors = tuple(at.anchors) if isinstance(at.anchors, list) else at.anchors
        space = SpaceSpec(
            at.method, dim, at.regularization, at.weighting, at.hub, at.remove_top, anchors, at.seed, at.epochs
        )
        weights = self.fusion.weights if self.fusion.weights == "learned" else {str(m): w for m, w in self.weights()}
        fusion = FusionSpec(self.fusion.method, weights, self.fusion.impute, at.seed, at.epochs)
        return FitSettings(
            space,
            fusion,
            at.refit,
            at.drift_threshold,
            at.inertia,
            self.output.dim,
            at.sample,
            dict(encoder_ids),
        )

    def weights(self) -> list[tuple[str, float]]:
        """The fusion weights that the job file gives, by modality."""
        given = self.fusion.weights
        return [] if given == "learned" else sorted((str(m), w) for m, w in given.items())

    @property
    def interactions_spec(self) -> InteractionsSpec:
        """What `unisono.transforms.read.interactions` takes.

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
        """What `unisono.transforms.users.profiles` takes."""
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
        """What `unisono.transforms.rank.ranking` takes.

        Raises:
            JobError: its keys do not go together.
        """
        at = self.ranking or RankingConfig()
        weights = tuple(sorted(at.weights.items()))
        return RankingSpec(
            at.k, at.interests, at.fusion, weights, at.diversity, at.popularity_penalty, at.slices, at.device,
            at.popularity_bonus, at.popularity_half_life_days, at.caution,
        )  # fmt: skip

    @model_validator(mode="after")
    def _behaviour_has_a_log(self) -> Job:
        if self.behaviour and not self.interactions:
            raise ValueError("behaviour: needs the interaction log; give `interactions`, or leave `behaviour` out")
        return self

    @model_validator(mode="after")
    def _noise_covers_everything(self) -> Job:
        if self.privacy.noise and (found := beside_noise(self)):
            raise ValueError(f"privacy.noise: its guarantee would be broken by {'; '.join(found)}")
        return self

    @property
    def noise_spec(self) -> NoiseSpec | None:
        """What `unisono.transforms.privacy.noise` takes; None: profiles are published as they are."""
        at = self.privacy.noise
        return None if at is None else NoiseSpec(at.epsilon, at.delta, at.clip)

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
    for section, keys in (("catalog", ("path", "media_root")), ("interactions", ("path",)), ("privacy", ("forget",))):
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
    """A model that starts with ./ or ../, itself or after a family's name, is a directory beside the job file;
    anything else is a name.
    """
    if isinstance(encoder, str):
        family, at, path = encoder.partition("/") if encoder.startswith(_FAMILIES) else ("", "", encoder)
        return f"{family}{at}{_absolute(path, base)}" if path.startswith(("./", "../")) else encoder
    if isinstance(encoder, dict):
        return {k: _absolute_model(v, base) if k in ("model", "weights") else v for k, v in encoder.items()}
    return encoder


def _one_line(error: ValidationError, where: str) -> str:
    """Says the first thing that is wrong: the key, what it got, what is allowed."""
    # Where a value may be of two kinds, pydantic says what is wrong with it as either: the second tells more.
    errors = sorted(error.errors(), key=lambda e: any(str(p).startswith("literal[") for p in e["loc"]))
    first = errors[0]
    key = ".".join(str(p) for p in first["loc"] if "[" not in str(p))
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
