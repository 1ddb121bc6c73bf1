"""Which names of files belong to a checkpoint, and the first line of an error."""

from __future__ import annotations

import pytest

from unisono.transforms.encoders.checkpoints.formats import FETCHED, PICKLED, first_line, matches


@pytest.mark.parametrize(
    ("name", "fetched", "pickled"),
    [
        ("config.json", True, False),
        ("1_Dense/model.safetensors", True, False),
        ("vocab.txt", True, False),
        ("sub/pytorch_model.bin", False, True),
        ("weights.pt", False, True),
        ("README.md", False, False),
        ("model.json/readme", False, False),
    ],
)
def test_names_of_files(name: str, fetched: bool, pickled: bool) -> None:
    assert matches(name, FETCHED) is fetched
    assert matches(name, PICKLED) is pickled


def test_the_first_line_of_an_error() -> None:
    assert first_line(ValueError("\n one \n two")) == "one "
    assert first_line(ValueError()) == ""
