"""The job keys of people and what they turned to: `interactions`, `behaviour`, `profiles`, `ranking`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from unisono.pipelines.job.config_section import Positive, Section


class InteractionsConfig(Section):
    """Where the interaction log lies and what its columns and events mean."""

    path: str
    user: str
    item: str
    time: str
    time_unit: Literal["s", "ms", "us"] | None = None
    event: str | None = None
    weights: dict[str, float] | None = None

    @field_validator("weights", mode="before")
    @classmethod
    def _events_are_words(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        for event in value:
            if isinstance(event, bool):
                raise ValueError(f"YAML reads {event} as true or false; put the event type in quotes")
        return {str(event): weight for event, weight in value.items()}

    @model_validator(mode="after")
    def _events_have_weights(self) -> InteractionsConfig:
        if (self.event is None) != (self.weights is None):
            raise ValueError("give both `event` and `weights`, or neither (then every event weighs 1)")
        return self


class BehaviourConfig(Section):
    """How co-occurrence in the log becomes a modality of the items."""

    dim: Positive = 64
    recent_items: Annotated[int, Field(ge=2)] = 100
    min_users: Positive = 2
    shift: Annotated[float, Field(ge=1)] = 1.0
    method: Literal["ppmi", "ridge"] = "ppmi"
    ridge: Annotated[float, Field(gt=0)] = 200.0
    power: Annotated[float, Field(ge=0)] = 0.5
    liked_above: float = 0.0


class ProfilesConfig(Section):
    """How a user's history becomes one vector.

    `incremental`: the log holds new events only, which are added to the published run's sums; `restart`: it holds
    all, and new sums begin with it.
    """

    half_life_days: Annotated[float, Field(gt=0)] | None = 30.0
    min_events: Positive = 1
    interests: Annotated[int, Field(ge=0, le=100)] = 3
    recent_events: Positive = 100
    delta: Annotated[float, Field(ge=0, le=1)] = 1.0
    session_minutes: Annotated[float, Field(gt=0)] | None = None
    max_events_per_day: Positive | None = 5000
    robots: Literal["cap", "drop"] = "cap"
    incremental: bool | Literal["restart"] = False


class RankingConfig(Section):
    """How users are matched with items. `filter`: a column of the catalogue, true where an item may be shown.

    `exclude_seen` knows the items of the log that `interactions.path` names. Of the earlier logs of incremental
    profiles it knows each user's `profiles.recent_events` newest events; older ones may be recommended again.
    """

    k: Positive = 100
    interests: Literal["profile", "maximum", "weighted"] = "maximum"
    fusion: Literal["early", "late"] = "early"
    weights: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    exclude_seen: bool = True
    filter: str | None = None
    diversity: Annotated[float, Field(ge=0, le=1)] = 0.0
    popularity_penalty: Annotated[float, Field(ge=0)] = 0.0
    popularity_bonus: Annotated[float, Field(ge=0)] = 0.0
    popularity_half_life_days: Annotated[float, Field(gt=0)] | None = None
    caution: Annotated[float, Field(ge=0)] = 0.0
    slices: Positive = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"
