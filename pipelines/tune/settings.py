"""The settings that are chosen, and the values that are tried for each."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from unisono.pipelines.job.job import Job
from unisono.transforms.rank.sample import LearnSpec

Value = float | int | None
Settings = dict[str, Value]  # by key of the job file, such as `ranking.trend`


@dataclass(frozen=True)
class Grid:
    """Settings that are tried together, and the values that are tried for each; all combinations are.

    Attributes:
        values: by key of the job file, the values, beside the one that the job has.
        ageing: the settings say how fast something ages, which a log of less than a week cannot show.
        fits: other values need other factors, which takes longest.
    """

    values: dict[str, tuple[Value, ...]]
    ageing: bool = False
    fits: bool = False

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of the job file."""
        return tuple(self.values)


# In the order in which they are tried: those that need no new factors first, of these the ones that matter most. Two
# settings are tried together where each changes the other's best value.
GRIDS = (
    Grid(
        {"ranking.recent": (0.0, 1.0, 3.0, 10.0, 30.0), "ranking.trend": (0.0, 1.0, 2.0, 4.0, 8.0, 16.0)}, ageing=True
    ),
    Grid({"ranking.popularity_half_life_days": (3.0, 7.0, 14.0, 30.0, 60.0)}, ageing=True),
    Grid({"ranking.recent_half_life": (1.0, 2.0, 3.0, 5.0, 10.0, 20.0)}, ageing=True),
    Grid({"profiles.half_life_days": (7.0, 15.0, 30.0, 60.0, 120.0, None)}, ageing=True),
    Grid({"ranking.content_users": (0.0, 3.0, 10.0, 30.0, 100.0)}),
    Grid({"ranking.cold_exposure": (0.05, 0.1, 0.2, 0.3)}),
    Grid({"ranking.factors": (16, 32, 64, 128), "ranking.regularization": (0.005, 0.01, 0.02, 0.05)}, fits=True),
    Grid({"ranking.unobserved": (0.1, 0.2, 0.5, 1.0)}, fits=True),
)
KEYS = tuple(key for grid in GRIDS for key in grid.keys)


def settings_of(job: Job, ageing: bool) -> Settings:
    """Returns the settings that a job has now, with what follows from the length of the log filled in.

    Args:
        job: the job.
        ageing: whether the log spans at least a week.
    """
    sections = {"ranking": job.ranks, "profiles": job.profiles}
    found: Settings = {}
    for key in KEYS:
        section, name = key.split(".")
        found[key] = getattr(sections[section], name)
    for key in ("ranking.recent", "ranking.trend"):
        if found[key] is None:
            found[key] = 1.0 if ageing else 0.0
    return found


def spec_of(job: Job, settings: Settings) -> LearnSpec:
    """Returns the settings that ranking vectors are learned with: those of a job, with some replaced."""

    def own(section: str) -> dict[str, Any]:
        return {key.split(".")[1]: v for key, v in settings.items() if key.startswith(section + ".")}

    return LearnSpec(replace(job.ranks, **own("ranking")), replace(job.profiles, **own("profiles")))


def points_to_try(grid: Grid, job: Job, settings: Settings, own: Settings) -> Sequence[Settings]:
    """Returns the values of a grid that can make a difference; at most one point if none can.

    Args:
        grid: the settings.
        job: the job.
        settings: the settings so far.
        own: the job's own settings.
    """
    values = [_values(key, {settings[key], own[key], *grid.values[key]}, job, settings) for key in grid.keys]
    return [dict(zip(grid.keys, point, strict=True)) for point in itertools.product(*values)]


def _values(key: str, values: set[Value], job: Job, settings: Settings) -> Sequence[Value]:
    now, at = settings[key], job.ranks
    unused = {
        "ranking.recent_half_life": settings["ranking.recent"] == 0,
        "ranking.popularity_half_life_days": settings["ranking.trend"] == 0 and at.gain == 0,
        "ranking.cold_exposure": at.cold_quantile is not None,
    }
    if unused.get(key):
        return [now]
    if key == "ranking.cold_exposure":
        # The log holds few events with items that were never shown, so it would always call for fewer of them.
        values = {v for v in values if (v or 0) >= (now or 0)}
    return sorted(values, key=lambda v: float("inf") if v is None else v)


def name_of(settings: Settings) -> str:
    """Returns the settings as text, equal for equal settings."""
    return json.dumps(settings, sort_keys=True)
