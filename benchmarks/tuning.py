"""Search over grids of settings within a budget of time, the same for every method."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Grid = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Found:
    """The result of a search.

    Attributes:
        settings: the best settings.
        value: their value.
        tried: how many different settings were tried.
        points: how many the grids hold.
    """

    settings: Mapping[str, Any]
    value: float
    tried: int
    points: int


def draw_points(grid: Grid, seed: int) -> list[dict[str, Any]]:
    """Returns every point of a grid: the one of all first values, then the others in an order drawn by the seed."""
    points = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    order = np.random.default_rng(seed).permutation(len(points) - 1) + 1
    return [points[0], *(points[i] for i in order)]


def search(
    grids: Sequence[Grid],
    value: Callable[[Mapping[str, Any]], float],
    *,
    seconds: float,
    start: Mapping[str, Any] | None = None,
    seed: int = 0,
    clock: Callable[[], float] = time.process_time,
) -> Found:
    """Searches grids, one after the other, for the settings of the highest value.

    Args:
        grids: the best settings of one are the start of the next. Each has an equal part of the time that is left.
        value: returns the value of settings; NaN counts as the lowest.
        seconds: no new settings are tried after this time. The first settings of each grid are always tried.
        start: settings that the grids do not name, or start from. None means that there are none.
        seed: seed of the order in which points are tried.
        clock: returns seconds; by default the time of the processor, so that other programs do not count.

    Guarantees:
        The order does not depend on the machine. How far the search comes within the time does.
    """
    begun = clock()
    known: dict[str, float] = {}
    best = dict(start or {})

    def value_of(settings: Mapping[str, Any]) -> float:
        name = json.dumps(settings, sort_keys=True)
        if name not in known:
            known[name] = float(np.nan_to_num(value(settings), nan=-np.inf))
        return known[name]

    for number, grid in enumerate(grids or [{}]):
        now = clock()
        until = now + (begun + seconds - now) / (max(len(grids), 1) - number)
        points = draw_points(grid, seed)
        base, best = best, {**best, **({k: v for k, v in points[0].items() if k not in best})}
        highest = value_of(best)
        for point in points:
            if clock() >= until:
                break
            if (found := value_of({**base, **point})) > highest:
                highest, best = found, {**base, **point}
    return Found(best, value_of(best), len(known), sum(len(draw_points(grid, seed)) for grid in grids) or 1)
