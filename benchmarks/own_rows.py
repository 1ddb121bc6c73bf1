"""Unisono's rows in `benchmarks.ranking`: what is fixed in each, what is tuned, and how a job scores a case."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow.compute as pc

from unisono.pipelines.ask.ranking_case import Case
from unisono.pipelines.ask.trial import Items, build_items, build_users
from unisono.pipelines.job.job import Job
from unisono.transforms.base.columns import RANKING_VECTOR
from unisono.transforms.base.tables import from_vector_column, one_chunk
from unisono.transforms.measure.baselines import Scorer

Grid = Mapping[str, Sequence[Any]]
_MOST_MADE = 12


def own_scores(job: Job, case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Makes the ranking vectors of a job from the training events of a case.

    Args:
        job: the job.
        case: the split log.

    Returns:
        The vectors of the users in `case.who`, float32 [who, d], and of the items in `case.embeddings`, float32
        [items, d].

    Raises:
        JobError: the job cannot make them.
    """
    items = _items_of(job, case)
    profiles = build_users(job, items, case.train, case.who)
    place = pc.index_in(one_chunk(profiles["user_id"]), value_set=case.who).to_numpy()
    own, _ = from_vector_column(profiles[RANKING_VECTOR])
    users = np.zeros((len(case.who), own.shape[1]), np.float32)
    users[place] = own
    vectors = np.zeros((case.items, own.shape[1]), np.float32)
    vectors[items.place] = items.ranking.vectors
    return users, vectors


_MADE: dict[tuple[int, str], Items] = {}  # the items of the last cases and settings: most settings change only users


def _items_of(job: Job, case: Case) -> Items:
    at = replace(job.ranks, recent=None, recent_half_life=3.0, trend=None, k=10)
    exposure = at.cold_quantile is None and at.cold_exposure > 0
    key = id(case), repr([job.ranks if exposure else at, job.space, job.fusion, job.profiles if exposure else 0])
    if key not in _MADE:
        while len(_MADE) >= _MOST_MADE:
            del _MADE[next(iter(_MADE))]
        _MADE[key] = build_items(job, case.embeddings, case.train)
    return _MADE[key]


def own_scorer(job: Job, case: Case) -> Scorer:
    """Scores items by the plain inner product of float32 ranking vectors."""
    users, items = own_scores(job, case)
    if users.dtype != np.float32 or items.dtype != np.float32:
        raise ValueError(f"ranking vectors are {users.dtype} and {items.dtype}; float32 is what is exported")
    place = np.full(case.log.shape[0], -1, np.int64)
    place[case.rows] = np.arange(len(case.who))
    return lambda rows: users[place[rows]] @ items.T


def with_settings(content: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a copy of a job file's content in which keys such as `ranking.factors` are set."""
    out: dict[str, Any] = json.loads(json.dumps(content))
    for key, value in settings.items():
        at = out
        *path, last = key.split(".")
        for part in path:
            at = at.setdefault(part, {})
        at[last] = value
    return out


# --- the rows ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A row of Unisono.

    Attributes:
        fixed: keys of the job file that are set and not tuned.
        tune: grids of keys of the job file, tuned one after the other. Each has an equal part of the time that is left.
        like: the row whose settings are taken before `fixed` is set. None means that there is none.
        together: the row has one setting for all splits, the one with the highest geometric mean of the validation
            values of `TOGETHER`. Otherwise each split has its own.
        ages: the row gives old events less weight.
    """

    fixed: Mapping[str, Any] = field(default_factory=dict)
    tune: Sequence[Grid] = ()
    like: str | None = None
    together: bool = False
    ages: bool = True


TOGETHER = ("leave-last-out", "global-time")  # the splits that choose the one setting

_AGELESS = {"profiles.half_life_days": None, "ranking.recent": 0, "ranking.trend": 0}
_NO_COLD = {"ranking.cold_exposure": 0}
_LAUNCH = {"ranking.cold_quantile": 0.85}
_FIXED = {"ranking.recent": 10, "ranking.trend": 8}  # what was found good on both splits before
_MODEL: Grid = {
    "ranking.factors": (64, 128),
    "ranking.regularization": (None, 0.005, 0.02, 0.04),
    "ranking.unobserved": (0.5, 0.2, 1.0),
}
_AGEING: Grid = {"ranking.recent": (1, 0, 3, 10, 30), "ranking.trend": (1, 0, 2, 4, 8, 16)}
_HALF_LIVES: Grid = {
    "profiles.half_life_days": (30, 7, 90),
    "ranking.recent_half_life": (3, 1, 10),
    "ranking.popularity_half_life_days": (14, 7, 30),
}

OWN_ROWS: dict[str, Row] = {
    "unisono, nothing ages": Row(_AGELESS | _NO_COLD, (_MODEL,), ages=False),
    "unisono, ageing": Row(_NO_COLD, (_AGEING,)),
    "unisono, ageing, all tuned": Row(_NO_COLD, (_AGEING, _MODEL, _HALF_LIVES)),
    "unisono, ageing, default exposure": Row(like="unisono, ageing"),
    "unisono, one setting": Row(_NO_COLD, (_AGEING,), together=True),
    "unisono, one setting, default exposure": Row(like="unisono, one setting", together=True),
    "unisono, one setting, launch": Row(_LAUNCH, like="unisono, one setting", together=True),
    "unisono, recent 10, trend 8": Row(_NO_COLD | _FIXED),
    "unisono, recent 10, trend 8, default exposure": Row(_FIXED),
    "unisono, recent 10, trend 8, launch": Row(_FIXED | _LAUNCH),
}
# Pairs of rows whose figures are divided, the first by the second.
COMPARED = (
    ("unisono, ageing, default exposure", "unisono, ageing"),
    ("unisono, one setting, default exposure", "unisono, one setting"),
    ("unisono, recent 10, trend 8, default exposure", "unisono, recent 10, trend 8"),
)


def start_of(row: Row, inherited: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a row's settings before it is tuned.

    Args:
        row: the row.
        inherited: the settings of the row that `row.like` names. Its exposure of cold items is not taken.
    """
    cold = ("ranking.cold_exposure", "ranking.cold_quantile")
    return {k: v for k, v in inherited.items() if k not in cold} | dict(row.fixed)
