"""Settings: one declaration gives the default, the check and the line that says what is wrong."""

from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError, replace
from typing import Annotated

import pytest
from pydantic import BaseModel, Field, ValidationError

from unisono.transforms.base.errors import JobError
from unisono.transforms.base.settings import Positive, Share, first_error, names_allowed, one_of, settings


@settings("shop.window")
class Window:
    """A section."""

    panes: Positive = 4
    """How many."""
    glass: Annotated[str, one_of(("clear", "frosted"))] = "clear"
    """Which."""
    shares: dict[str, Share] = Field(default_factory=dict)
    """Parts of a whole."""
    height: float = 1.0
    """In metres."""

    def __post_init__(self) -> None:
        if self.glass == "frosted" and self.panes > 9:
            raise ValueError("panes: frosted glass comes in nine panes at most")


@settings("shop.door")
class Door(Window):
    """A section that inherits."""

    handle: str = "brass"
    """Made of."""


class Shop(BaseModel):
    """A file with a section."""

    window: Window = Window()


BAD = {
    "bound": ({"panes": 0}, "panes: Input should be greater than 0 (got 0)"),
    "name": ({"glass": "blue"}, "glass: Input should be 'clear' or 'frosted' (got 'blue')"),
    "inner": ({"shares": {"a": 2}}, "shares.a: Input should be less than or equal to 1 (got 2)"),
    "not finite": ({"height": float("nan")}, "height: Input should be a finite number (got nan)"),
    "two attributes": ({"glass": "frosted", "panes": 10}, "panes: frosted glass comes in nine panes at most"),
    "unknown": ({"frame": 1}, "frame: unknown key"),
}


@pytest.mark.parametrize(("given", "says"), BAD.values(), ids=BAD)
def test_an_object_and_a_file_are_refused_by_the_same_line(given: dict, says: str) -> None:
    with pytest.raises(JobError) as direct:
        Window(**given)
    assert str(direct.value) == f"shop.window.{says}"
    with pytest.raises(ValidationError) as in_file:
        Shop.model_validate({"window": given})
    assert first_error(in_file.value) == f"window.{says}"


def test_a_positional_argument_is_named() -> None:
    with pytest.raises(JobError, match=r"shop\.window\.panes: .*got -1"):
        Window(-1)


def test_an_unknown_key_is_told_the_allowed_ones_and_further_errors_are_counted() -> None:
    with pytest.raises(ValidationError) as e:
        Shop.model_validate({"window": {"frame": 1, "panes": 0}})
    assert first_error(e.value, keys_at=lambda place: ["panes"] if place == ("window",) else []) in (
        "window.frame: unknown key; allowed here: panes (and 1 more)",
        "window.panes: Input should be greater than 0 (got 0) (and 1 more)",
    )


def test_objects_are_frozen_equal_by_value_and_travel() -> None:
    window = Window(2, shares={"a": 0.5})
    with pytest.raises(FrozenInstanceError):
        window.panes = 3  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(window)) == window
    assert replace(window, panes=3) == Window(3, shares={"a": 0.5})
    with pytest.raises(JobError, match=r"shop\.window\.panes"):
        replace(window, panes=-3)


def test_docstrings_of_attributes_are_kept_also_when_inherited() -> None:
    fields = Door.__pydantic_fields__  # type: ignore[attr-defined]
    assert {name: f.description for name, f in fields.items()} == {
        "panes": "How many.", "glass": "Which.", "shares": "Parts of a whole.", "height": "In metres.",
        "handle": "Made of.",
    }  # fmt: skip
    assert names_allowed(fields["glass"].metadata[0]) == ("clear", "frosted")
    with pytest.raises(JobError, match=r"shop\.door\.panes"):
        Door(panes=0)
