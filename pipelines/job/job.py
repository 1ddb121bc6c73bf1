"""The job file as an object: its sections, and what they mean together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from unisono.pipelines.job.sections import (
    EncoderSection,
    EncodersSection,
    LimitsSection,
    OutputSection,
    PrivacySection,
    beside_noise,
)
from unisono.transforms.base.errors import JobError
from unisono.transforms.base.modalities import BEHAVIOUR, CATALOG, JOINT
from unisono.transforms.behaviour.behaviour import BehaviourSpec
from unisono.transforms.encoders.base import EncoderSpec
from unisono.transforms.media.fetch import MediaSource
from unisono.transforms.rank.spec import RankingSpec
from unisono.transforms.read.catalog import CatalogSpec
from unisono.transforms.read.interactions import InteractionsSpec
from unisono.transforms.read.usable import UsableSpec
from unisono.transforms.space.fit.run import FitSettings
from unisono.transforms.space.fit.spec import FusionSpec, SpaceSpec
from unisono.transforms.store.runs import Store
from unisono.transforms.users.profiles import ProfileSpec


class Job(BaseModel):
    """A whole job file. Relative paths in it are relative to the file itself.

    Every section is the object that the transforms take. A property says what several sections mean together.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    store: str
    """The directory or gs:// prefix that everything is written to."""
    catalog: CatalogSpec
    """The catalogue of items."""
    shards: Annotated[int, Field(gt=0, le=65_536)] | None = None
    """How many shards the items and users are split into. By default a power of two, of about 4,096 rows each, which
    is kept from run to run."""
    encoders: EncodersSection = EncodersSection()
    """The encoder of each modality."""
    space: SpaceSpec = SpaceSpec()
    """How the joint space is fitted."""
    fusion: FusionSpec = FusionSpec()
    """How the modalities of an item become one vector."""
    interactions: InteractionsSpec | None = None
    """The interaction log. Profiles and `behaviour` need it."""
    behaviour: BehaviourSpec | None = None
    """Behaviour as a modality of the items; `{}` takes the defaults. Without the key, behaviour is not a modality."""
    profiles: ProfileSpec = ProfileSpec()
    """How user profiles are made."""
    ranking: RankingSpec | None = None
    """How items are ranked for users; `{}` takes the defaults. Without the key, `unisono nightly` makes no lists."""
    privacy: PrivacySection = PrivacySection()
    """What is done for the people in the log."""
    limits: LimitsSection = LimitsSection()
    """What a single input may cost, and how many inputs may fail."""
    output: OutputSection = OutputSection()
    """How vectors are stored."""

    @field_validator("encoders", mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        """Reads `text: lite` as `text: {model: lite}`, and `text: none` as no encoder."""
        if not isinstance(value, dict):
            return value
        meaning = {"none": None}
        return {m: meaning.get(e, {"model": e}) if isinstance(e, str) else e for m, e in value.items()}

    @model_validator(mode="after")
    def _something_to_encode(self) -> Job:
        have = [m for m in CATALOG if getattr(self.catalog, m)]
        for part in self.joint_parts:
            if part not in have:
                raise ValueError(f"encoders.joint.parts: {part!r} is no modality of the catalogue; it has {have}")
        if not self.modalities or (self.encoders.joint and not self.joint_parts):
            raise ValueError("encoders: nothing is left to encode; give one of the catalogue's modalities an encoder")
        return self

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
    def modalities(self) -> tuple[str, ...]:
        """The encoded modalities: those of the catalogue that have an encoder, and `joint` if the job asks for it."""
        own = [m for m in CATALOG if getattr(self.catalog, m) and getattr(self.encoders, m)]
        return (*own, *([JOINT] if self.encoders.joint else []))

    @property
    def joint_parts(self) -> tuple[str, ...]:
        """The modalities that go into a joint input; () without a joint encoder."""
        at = self.encoders.joint
        have = tuple(m for m in CATALOG if getattr(self.catalog, m))
        return tuple((at.model_extra or {}).get("parts", have)) if at else ()

    @property
    def space_modalities(self) -> tuple[str, ...]:
        """The modalities of the joint space."""
        return self.modalities + ((BEHAVIOUR,) if self.behaviour else ())

    @property
    def usable(self) -> UsableSpec:
        """Which events count. Everything that is learned from the log is learned from these."""
        at = self.profiles
        return UsableSpec(at.session_minutes, at.max_events_per_day, at.robots == "drop")

    @property
    def ranks(self) -> RankingSpec:
        """How items are ranked, with the settings that follow from other sections filled in."""
        at = self.ranking or RankingSpec()
        if at.liked_above is None:
            at = replace(at, liked_above=max(self.behaviour.liked_above, 0.0) if self.behaviour else 0.0)
        learned = at.learned and self.privacy.noise is None
        return replace(at, method="learned" if learned else "vectors")

    @property
    def has_ranking_vectors(self) -> bool:
        """Whether runs that make items give them ranking vectors: `ranking` and the log are there."""
        return self.ranking is not None and self.interactions is not None

    @property
    def late_modalities(self) -> tuple[str, ...]:
        """The modalities whose scores are added in late fusion; () if fusion is early or nothing is ranked."""
        if self.ranking is None or self.ranking.fusion == "early":
            return ()
        return tuple(m for m in self.space_modalities if self.ranking.weights.get(m, 1.0) > 0)

    @property
    def store_at(self) -> Store:
        """The store."""
        return Store(self.store)

    @property
    def read_catalog(self) -> CatalogSpec:
        """The catalogue with the columns that an encoder reads, and the title."""
        used = {*self.modalities, *self.joint_parts}
        unused: dict[str, Any] = {m: None for m in CATALOG if m not in used}
        return replace(self.catalog, title=self.catalog.title_column, **unused)

    @property
    def media_source(self) -> MediaSource:
        """Where media may come from."""
        root = self.catalog.media_root or self.catalog.path.rsplit("/", 1)[0]
        return MediaSource(root, self.catalog.allow, self.limits)

    @property
    def log(self) -> InteractionsSpec:
        """The interaction log.

        Raises:
            JobError: the job file has none.
        """
        if self.interactions is None:
            raise JobError("interactions: missing; a profile needs the interaction log (path, user, item, time)")
        return self.interactions

    def encoder_spec(self, modality: str) -> EncoderSpec:
        """The encoder of one modality."""
        at: EncoderSection = getattr(self.encoders, modality)
        # Lists become tuples, since a spec is hashable.
        options = {k: tuple(v) if isinstance(v, list) else v for k, v in (at.model_extra or {}).items()}
        if modality == JOINT:
            options["parts"] = self.joint_parts
        return EncoderSpec(modality, at.model, tuple(sorted(options.items())), self.limits)

    def fit_settings(self, dim: int, encoder_ids: Mapping[str, str]) -> FitSettings:
        """Gathers everything that the fit of a run's space depends on besides its data.

        Args:
            dim: the number of axes, as the plan found it.
            encoder_ids: the encoder_id of each modality.
        """
        seed = self.space.seed if self.fusion.seed is None else self.fusion.seed
        epochs = self.space.epochs if self.fusion.epochs is None else self.fusion.epochs
        weights = self.fusion.weights
        weights = weights if weights == "learned" else dict(sorted(weights.items()))
        fusion = replace(self.fusion, weights=weights, seed=seed, epochs=epochs)
        return FitSettings(replace(self.space, dim=dim), fusion, self.output.dim, dict(encoder_ids))

    def to_yaml(self) -> str:
        """Writes the job with every default filled in and every path absolute."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
