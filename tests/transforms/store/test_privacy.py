"""The privacy statement of a manifest: the same JSON as in earlier releases, in both directions."""

from __future__ import annotations

import json
from typing import Any

import pytest

from unisono.transforms.store.privacy import ForgetStatement, NoiseStatement, PrivacyStatement, PseudonymsStatement

# As a run of the first release with privacy settings wrote it.
WRITTEN: dict[str, dict[str, Any]] = {
    "pseudonyms": {"hash": "HMAC-SHA256, 16 bytes, hex", "key_fingerprint": "0f1e2d3c4b5a6978"},
    "forget": {"files": ["/data/forget-1.parquet", "/data/forget-2.parquet"], "removed": 2},
    "noise": {
        "mechanism": "Gaussian, calibrated after Balle and Wang 2018",
        "epsilon": 8.0,
        "delta": 1e-05,
        "clip": 0.5,
        "sensitivity": 1.0,
        "sigma": 0.6,
        "covers": "one release",
        "does_not_cover": "the totals",
        "composition": "every run is a release",
        "releases": 3,
        "epsilon_of_releases": 15.5,
    },
}
READ = PrivacyStatement(
    PseudonymsStatement("HMAC-SHA256, 16 bytes, hex", "0f1e2d3c4b5a6978"),
    ForgetStatement(("/data/forget-1.parquet", "/data/forget-2.parquet"), 2),
    NoiseStatement(
        mechanism="Gaussian, calibrated after Balle and Wang 2018",
        epsilon=8.0,
        delta=1e-05,
        clip=0.5,
        sensitivity=1.0,
        sigma=0.6,
        covers="one release",
        does_not_cover="the totals",
        composition="every run is a release",
        releases=3,
        epsilon_of_releases=15.5,
    ),
)


def test_what_was_written_is_read_and_written_again_the_same() -> None:
    assert PrivacyStatement.from_json(WRITTEN) == READ
    assert json.dumps(READ.to_json()) == json.dumps(WRITTEN)


@pytest.mark.parametrize("part", WRITTEN)
def test_a_part_that_was_not_done_is_left_out(part: str) -> None:
    without = {name: values for name, values in WRITTEN.items() if name != part}
    statement = PrivacyStatement.from_json(without)
    assert getattr(statement, part) is None
    assert json.dumps(statement.to_json()) == json.dumps(without)


def test_nothing_done_is_an_empty_object() -> None:
    assert PrivacyStatement().to_json() == {}
    assert PrivacyStatement.from_json({}) == PrivacyStatement()


def test_values_that_are_not_known_are_left_out() -> None:
    noise = {name: value for name, value in WRITTEN["noise"].items() if name != "epsilon_of_releases"} | {"releases": 0}
    body = {"forget": {"files": []}, "noise": noise}
    statement = PrivacyStatement.from_json(body)
    assert statement.forget == ForgetStatement((), None)
    assert statement.noise is not None
    assert statement.noise.epsilon_of_releases is None
    assert json.loads(json.dumps(statement.to_json())) == body


def test_the_number_of_people_left_out_is_filled_in_where_there_is_a_list() -> None:
    listed = PrivacyStatement(forget=ForgetStatement(("a.parquet",)))
    assert listed.with_removed(0).to_json() == {"forget": {"files": ("a.parquet",), "removed": 0}}
    assert listed.with_removed(7).forget == ForgetStatement(("a.parquet",), 7)
    assert PrivacyStatement(READ.pseudonyms).with_removed(7) == PrivacyStatement(READ.pseudonyms)


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"shuffling": {}}, KeyError),
        ({"forget": {"files": [], "reason": "asked"}}, TypeError),
        ({"pseudonyms": {"hash": "HMAC-SHA256"}}, TypeError),
        ({"noise": {}}, TypeError),
    ],
    ids=["unknown part", "unknown value", "missing value", "no values"],
)
def test_what_is_no_statement_is_refused(body: dict, error: type[Exception]) -> None:
    with pytest.raises(error):
        PrivacyStatement.from_json(body)
