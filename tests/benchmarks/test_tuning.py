"""The search over grids: its order, its budget and its result."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.tuning import draw_points, search

GRID = {"a": (3, 1, 2), "b": ("x", "y")}


def value(settings: Any) -> float:
    return settings.get("a", 0) * 10 + (settings.get("b") == "y") + settings.get("c", 0)


class Clock:
    """A clock that a counted function moves on."""

    def __init__(self) -> None:
        self.now = 0.0
        self.asked: list[dict[str, Any]] = []

    def __call__(self) -> float:
        return self.now

    def slow(self, settings: Any) -> float:
        self.now += 10
        self.asked.append(dict(settings))
        return value(settings)


def test_points_are_all_of_the_grid_and_begin_with_the_first_values() -> None:
    points = draw_points(GRID, 0)
    assert points[0] == {"a": 3, "b": "x"}
    assert len({tuple(p.values()) for p in points}) == len(points) == 6
    assert draw_points(GRID, 0) == points != draw_points(GRID, 1)
    assert draw_points({}, 0) == [{}]


def test_a_small_grid_is_searched_whole() -> None:
    found = search([GRID], value, seconds=1e9)
    assert (found.settings, found.value, found.tried, found.points) == ({"a": 3, "b": "y"}, 31, 6, 6)


@pytest.mark.parametrize(("seconds", "tried"), [(0, 1), (25, 3), (1000, 6)])
def test_no_point_is_begun_after_the_time(seconds: float, tried: int) -> None:
    clock = Clock()
    found = search([GRID], clock.slow, seconds=seconds, clock=clock)
    assert found.tried == tried
    assert clock.asked == draw_points(GRID, 0)[:tried]
    assert found.value == max(value(p) for p in clock.asked)


def test_grids_are_searched_one_after_the_other_in_equal_parts_of_the_time() -> None:
    clock = Clock()
    found = search([GRID, {"c": (0, 5, 7, 6)}], clock.slow, seconds=60, start={"d": 1}, clock=clock)
    first = [p for p in clock.asked if "c" not in p]
    second = [p for p in clock.asked if "c" in p]
    assert (len(first), len(second)) == (3, 3)
    best = max(first, key=value)
    assert all({k: v for k, v in p.items() if k != "c"} == best for p in second)
    assert found.settings == max(second, key=value)
    assert found.points == 10


def test_settings_that_a_grid_does_not_name_stay_and_no_point_is_tried_twice() -> None:
    asked: list[Any] = []

    def counted(settings: Any) -> float:
        asked.append(dict(settings))
        return value(settings)

    found = search([{"a": (1, 2)}, {"a": (2, 1)}], counted, seconds=1e9, start={"b": "y"})
    assert found.settings == {"a": 2, "b": "y"}
    assert len(asked) == found.tried == 2


def test_without_grids_the_start_is_measured() -> None:
    found = search([], value, seconds=0, start={"a": 2})
    assert (found.settings, found.value, found.tried, found.points) == ({"a": 2}, 20, 1, 1)


def test_a_value_that_is_not_a_number_is_the_lowest() -> None:
    found = search([{"a": (1, 2)}], lambda s: float("nan") if s["a"] == 1 else -5.0, seconds=1e9)
    assert found.settings == {"a": 2}
