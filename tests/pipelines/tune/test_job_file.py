"""Chosen settings in the text of a job file: nothing else changes, and what cannot be changed so is refused."""

from __future__ import annotations

import pytest
import yaml

from unisono.pipelines.tune.job_file import changed_text, tuned_path

CHANGES = {"ranking.trend": 8.0, "ranking.factors": 32, "profiles.half_life_days": None}
TEXTS = {
    "comments": (
        "# c\nstore: out  # x\nranking:\n  k: 10 # ten\n  trend: 1.0  # t\n\n# d\ncatalog: {path: a}\n",
        "# c\nstore: out  # x\nranking:\n  factors: 32\n  k: 10 # ten\n  trend: 8.0  # t\n\n# d\ncatalog: {path: a}\n"
        "profiles: {half_life_days: null}\n",
    ),
    "no section": ("store: out", "store: out\nranking: {factors: 32, trend: 8.0}\nprofiles: {half_life_days: null}\n"),
    "no value": (
        "ranking:\n# e\nstore: s\nprofiles:\n  half_life_days:  # h\n",
        "ranking: {factors: 32, trend: 8.0}\n# e\nstore: s\nprofiles:\n  half_life_days: null  # h\n",
    ),
    "empty": (
        "ranking: {} # f\nprofiles: ~\n",
        "ranking: {factors: 32, trend: 8.0} # f\nprofiles: {half_life_days: null}\n",
    ),
    "in one line": (
        '{"store": "s", "ranking": {"trend": 2, "k": 10}}',
        '{profiles: {half_life_days: null}, "store": "s", "ranking": {factors: 32, "trend": 8.0, "k": 10}}',
    ),
    "deep": (
        "ranking:\n    # g\n    'k': 10\nprofiles: {half_life_days: 30}\n",
        "ranking:\n    # g\n    factors: 32\n    trend: 8.0\n    'k': 10\nprofiles: {half_life_days: null}\n",
    ),
}


@pytest.mark.parametrize("name", TEXTS)
def test_only_the_values_change(name: str) -> None:
    before, after = TEXTS[name]
    assert changed_text(before, CHANGES) == after
    old, new = yaml.safe_load(before), yaml.safe_load(after)
    assert new["ranking"] == {**(old.get("ranking") or {}), "trend": 8.0, "factors": 32}
    assert new["profiles"] == {**(old.get("profiles") or {}), "half_life_days": None}
    assert {k: v for k, v in new.items() if k not in ("ranking", "profiles")} == {
        k: v for k, v in old.items() if k not in ("ranking", "profiles")
    }


def test_a_text_whose_sections_share_an_anchor_is_not_changed() -> None:
    assert changed_text("other: &x {k: 10}\nranking: *x\n", {"ranking.trend": 8.0}) is None


@pytest.mark.parametrize(
    ("path", "beside"),
    [
        ("job.yaml", "job.tuned.yaml"),
        ("/a/b.c/job.yml", "/a/b.c/job.tuned.yaml"),
        ("gs://x/job", "gs://x/job.tuned.yaml"),
    ],
)
def test_the_name_of_the_new_file(path: str, beside: str) -> None:
    assert tuned_path(path) == beside
