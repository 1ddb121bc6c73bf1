"""What a manifest says about people, and which runs may stand side by side."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest

from unisono.transforms.base.errors import JobError
from unisono.transforms.privacy.forget import Forget
from unisono.transforms.privacy.noise import NoiseSpec, epsilon_of_releases, gaussian_sigma
from unisono.transforms.privacy.pseudonyms import Pseudonyms
from unisono.transforms.privacy.statement import People
from unisono.transforms.store.parquet import ParquetFile
from unisono.transforms.store.privacy import PrivacyStatement

FILES = tuple(ParquetFile(i, f"/data/forget-{i}.parquet", 1, (1,), pa.schema([])) for i in range(2))
NOISE = NoiseSpec(8.0, 1e-5, 0.5)
PEOPLE = People(Pseudonyms("KEY", "0f1e2d3c"), Forget(FILES), NOISE)
OTHERS = {
    "no pseudonyms": People(None, PEOPLE.forget, PEOPLE.noise),
    "another key": People(Pseudonyms("KEY", "ffffffff"), None, PEOPLE.noise),
    "no noise": People(PEOPLE.pseudonyms, None, None),
    "another epsilon": People(PEOPLE.pseudonyms, None, NoiseSpec(4.0, 1e-5, 0.5)),
    "another delta": People(PEOPLE.pseudonyms, None, NoiseSpec(8.0, 1e-6, 0.5)),
    "another clip": People(PEOPLE.pseudonyms, None, NoiseSpec(8.0, 1e-5, 1.0)),
}


def test_nothing_done_says_nothing() -> None:
    assert People().statement(None, True) == PrivacyStatement()
    assert People().statement(PEOPLE.statement(None, True), True).to_json() == {}


def test_the_json_has_the_keys_of_earlier_releases_in_their_order() -> None:
    body = PEOPLE.statement(None, True).to_json()
    assert {name: list(part) for name, part in body.items()} == {
        "pseudonyms": ["hash", "key_fingerprint"],
        "forget": ["files"],
        "noise": [
            "mechanism", "epsilon", "delta", "clip", "sensitivity", "sigma", "covers", "does_not_cover", "composition",
            "releases", "epsilon_of_releases",
        ],
    }  # fmt: skip
    assert list(body) == ["pseudonyms", "forget", "noise"]
    assert json.loads(json.dumps(body))["forget"] == {"files": ["/data/forget-0.parquet", "/data/forget-1.parquet"]}
    assert body["pseudonyms"] == {"hash": "HMAC-SHA256, 16 bytes, hex", "key_fingerprint": "0f1e2d3c"}
    noise = body["noise"]
    assert (noise["epsilon"], noise["delta"], noise["clip"], noise["sensitivity"]) == (8.0, 1e-5, 0.5, 1.0)
    assert noise["sigma"] == gaussian_sigma(8.0, 1e-5, 1.0)


def test_releases_are_counted_from_run_to_run() -> None:
    before = PrivacyStatement()
    for n in range(1, 4):
        before = PEOPLE.statement(before, True)
        assert before.noise is not None
        assert before.noise.releases == n
        assert before.noise.epsilon_of_releases == pytest.approx(epsilon_of_releases(NOISE, n))
        before = PrivacyStatement.from_json(json.loads(json.dumps(before.to_json())))  # as the next run reads it
    kept = PEOPLE.statement(before, False)  # a run that publishes no profiles
    assert kept.noise == before.noise
    first = PEOPLE.statement(None, False)
    assert first.noise is not None
    assert (first.noise.releases, first.noise.epsilon_of_releases) == (0, None)


def test_the_same_settings_may_stand_side_by_side() -> None:
    PEOPLE.check_same(PEOPLE.statement(None, True), "users/", "do something else")
    other_list = People(PEOPLE.pseudonyms, None, PEOPLE.noise)  # who is left out may change every night
    other_list.check_same(PEOPLE.statement(None, True), "users/", "do something else")
    People().check_same(PrivacyStatement(), "users/", "do something else")
    with pytest.raises(JobError, match="privacy"):
        People().check_same(PEOPLE.statement(None, True), "users/", "do something else")


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("turned", [False, True], ids=["this run", "the published run"])
def test_other_settings_are_refused_in_one_line(other: People, turned: bool) -> None:
    mine, theirs = (PEOPLE, other) if turned else (other, PEOPLE)
    with pytest.raises(JobError, match=r"^privacy\.(pseudonyms|noise): .* users/ .*, or do something else$") as e:
        mine.check_same(theirs.statement(None, True), "users/", "do something else")
    assert "\n" not in str(e.value)


def test_the_error_names_both_sides() -> None:
    with pytest.raises(JobError) as e:
        OTHERS["another key"].check_same(PEOPLE.statement(None, True), "state/", "begin anew")
    assert str(e.value) == (
        "privacy.pseudonyms: this job's are of the key with fingerprint ffffffff, those in the published state/ are of "
        "the key with fingerprint 0f1e2d3c; bring the setting and the key back, or begin anew"
    )
    with pytest.raises(JobError) as e:
        OTHERS["no noise"].check_same(PEOPLE.statement(None, True), "users/", "begin anew")
    assert str(e.value) == (
        "privacy.noise: this job has none, the published users/ have epsilon 8, delta 1e-05, clip 0.5; "
        "bring the setting back, or begin anew"
    )
