"""The job key `privacy`."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from unisono.pipelines.job.config_section import Section


class PseudonymsConfig(Section):
    """`key_env`: the environment variable with the key; the key itself is written nowhere."""

    key_env: str

    @model_validator(mode="after")
    def _is_a_name(self) -> PseudonymsConfig:
        # Checked here, where the message shows no value: it may be the key itself, put in the wrong place.
        if not re.fullmatch(r"[A-Z_][A-Z0-9_]{0,63}", self.key_env):
            raise ValueError("key_env is the name of an environment variable, in capitals, not the key")
        return self


class NoiseConfig(Section):
    """Gaussian noise on published profiles: (ε, δ) of each release, and the norm that vectors are clipped to."""

    epsilon: Annotated[float, Field(gt=0, lt=500)]
    delta: Annotated[float, Field(ge=1e-100, lt=1)]
    clip: Annotated[float, Field(gt=0, le=1)] = 1.0


class PrivacyConfig(Section):
    """What is done for the people in the log. `forget`: Parquet with a column user_id, of raw ids."""

    pseudonyms: PseudonymsConfig | None = None
    forget: str | None = None
    noise: NoiseConfig | None = None

    @field_validator("forget")
    @classmethod
    def _some_path(cls, value: str | None) -> str | None:
        if value == "":
            raise ValueError("give the path of a Parquet file, or leave it out")
        return value


def beside_noise(job: Any) -> list[str]:
    """Names the settings of a job that would publish of a user what noise does not cover, each with its remedy."""
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
    counting = ("popularity_penalty", "popularity_bonus", "caution")
    found += [f"ranking.{k} (set 0: it counts the events as they are)" for k in counting if getattr(ranking, k, 0)]
    if ranking and ranking.fusion == "late":
        found.append("ranking.fusion: late (set early: one vector of a user is noised, not one for each modality)")
    return found
